//! Progress as a bar, or as a line now and then where there is no terminal.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Progress;

/// One bar on standard error with the time left.
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

/// How long nothing is said.
const SILENCE: Duration = Duration::from_secs(30);

/// A line on standard error every half a minute, for a log that somebody may look at while
/// a long run goes on; a short run says nothing.
#[derive(Debug)]
pub struct LogLines {
    told: Mutex<LoggedStage>,
}

#[derive(Debug)]
struct LoggedStage {
    what: String,
    done: u64,
    total: u64,
    started: Instant,
    said: Instant,
}

impl Default for LogLines {
    fn default() -> Self {
        let now = Instant::now();
        let nothing = LoggedStage {
            what: String::new(),
            done: 0,
            total: 0,
            started: now,
            said: now,
        };
        Self {
            told: Mutex::new(nothing),
        }
    }
}

impl LogLines {
    fn change(&self, change: impl FnOnce(&mut LoggedStage)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut told);
        if told.said.elapsed() < SILENCE {
            return;
        }
        told.said = Instant::now();
        let seconds = told.started.elapsed().as_secs();
        // Nobody who reads is no reason to stop.
        let _ = writeln!(
            std::io::stderr(),
            "onnx-prune: {} {} of {}, {seconds} s so far",
            told.what,
            told.done,
            told.total
        );
    }
}

impl Progress for LogLines {
    fn start(&self, what: &str, total: u64) {
        self.change(|told| (told.what, told.done, told.total) = (what.to_owned(), 0, total));
    }

    fn step(&self, n: u64) {
        self.change(|told| told.done += n);
    }

    fn finish(&self) {}
}
