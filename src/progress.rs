//! Progress of long stages: a bar on a terminal, a line now and then elsewhere.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cli")]
mod bars;

#[cfg(feature = "cli")]
pub use bars::{Bars, LogLines};

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
