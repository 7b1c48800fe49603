//! Where the seconds went.

use std::time::Instant;

/// Seconds per stage.
pub(super) struct Clock {
    last: Instant,
    stages: Vec<(String, f64)>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            last: Instant::now(),
            stages: Vec::new(),
        }
    }

    /// Ends a stage; one of the same name goes on.
    pub(super) fn lap(&mut self, stage: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        match self.stages.iter_mut().find(|(name, _)| name == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.stages.push((stage.to_string(), seconds)),
        }
        self.last = Instant::now();
    }

    pub(super) fn stages(&self) -> Vec<(String, f64)> {
        self.stages.clone()
    }
}
