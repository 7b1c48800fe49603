//! Progress of long stages: a bar on a terminal, nothing elsewhere.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Told how far a stage has come.
pub trait Progress: Send + Sync {
    /// A stage of `total` steps begins; one that was running ends.
    fn start(&self, what: &str, total: u64);
    /// `n` more steps are done.
    fn step(&self, n: u64);
    /// The stage is done.
    fn finish(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn start(&self, _what: &str, _total: u64) {}
    fn step(&self, _n: u64) {}
    fn finish(&self) {}
}

/// One bar on standard error with the time left; hidden where standard error
/// is not a terminal.
#[derive(Debug, Default)]
pub struct Bars {
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// No bar is shown before the first [`Progress::start`].
    pub fn new() -> Self {
        Self::default()
    }

    fn replace(&self, next: Option<ProgressBar>) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = std::mem::replace(&mut *bar, next) {
            previous.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn start(&self, what: &str, total: u64) {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(
            "{msg:<12} {bar:32.green/dim} {pos}/{len}  {elapsed} so far, {eta} left",
        ) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        self.replace(Some(bar));
    }

    fn step(&self, n: u64) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &*bar {
            bar.inc(n);
        }
    }

    fn finish(&self) {
        self.replace(None);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.replace(None);
    }
}

/// A line of JSON on standard error for each step, for a program that shows
/// progress its own way: `{"stage": "damage", "done": 3, "total": 32}`.
#[derive(Debug, Default)]
pub struct JsonLines {
    stage: Mutex<Option<(String, u64, u64)>>,
}

impl JsonLines {
    /// Nothing is written before the first [`Progress::start`].
    pub fn new() -> Self {
        Self::default()
    }

    fn tell(&self, change: impl FnOnce(&mut Option<(String, u64, u64)>)) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stage);
        if let Some((name, done, total)) = &*stage {
            let line = serde_json::json!({ "stage": name, "done": done, "total": total });
            // Nobody who reads is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

impl Progress for JsonLines {
    fn start(&self, what: &str, total: u64) {
        self.tell(|stage| *stage = Some((what.to_owned(), 0, total)));
    }

    fn step(&self, n: u64) {
        self.tell(|stage| {
            if let Some((_, done, _)) = stage {
                *done += n;
            }
        });
    }

    fn finish(&self) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = None;
    }
}
