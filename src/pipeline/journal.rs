//! What a stage has to say: notes, warnings, and where the seconds went.

use std::time::Instant;

use crate::error::Warning;
use crate::{Error, Result};

/// What one stage says. Stages hand theirs on in their values; a report lays them together.
#[derive(Debug, Clone)]
pub struct Journal {
    /// What the user should know.
    pub notes: Vec<String>,
    /// What could not be done.
    pub warnings: Vec<Warning>,
    /// Seconds per stage.
    pub seconds: Vec<(String, f64)>,
    /// Whether a warning ends the run.
    strict: bool,
    last: Instant,
}

impl Journal {
    /// Nothing yet; the clock runs from now on.
    pub fn new(strict: bool) -> Self {
        Self {
            notes: Vec::new(),
            warnings: Vec::new(),
            seconds: Vec::new(),
            strict,
            last: Instant::now(),
        }
    }

    /// Ends a stage; one of the same name goes on.
    pub fn lap(&mut self, stage: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.add(stage, seconds);
        self.last = Instant::now();
    }

    fn add(&mut self, stage: &str, seconds: f64) {
        match self.seconds.iter_mut().find(|(name, _)| name == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((stage.to_string(), seconds)),
        }
    }

    /// Says that something could not be done, and what that costs.
    ///
    /// # Errors
    /// [`Error::Strict`] where warnings are errors.
    pub fn warn(&mut self, name: &'static str, text: impl Into<String>) -> Result<()> {
        let warning = Warning {
            name,
            text: text.into(),
        };
        if self.strict {
            return Err(Error::Strict(warning));
        }
        self.warnings.push(warning);
        Ok(())
    }

    /// What was made, or nothing and a warning: `what` could not be done, and `costs` says
    /// what that means. Only an interrupt ends the run.
    ///
    /// # Errors
    /// An interrupt; [`Error::Strict`] where warnings are errors.
    pub fn attempt<T>(
        &mut self,
        made: Result<T>,
        name: &'static str,
        what: &str,
        costs: &str,
    ) -> Result<Option<T>> {
        match made {
            Ok(made) => Ok(Some(made)),
            Err(error) if error.is_interrupt() => Err(error),
            Err(error) => {
                self.warn(name, format!("{what} ({}); {costs}", error.chain()))?;
                Ok(None)
            }
        }
    }

    /// Everything of some journals, in order.
    pub fn together<'j>(journals: impl IntoIterator<Item = &'j Journal>) -> Self {
        let mut all = Journal::new(false);
        for journal in journals {
            all.notes.extend(journal.notes.iter().cloned());
            all.warnings.extend(journal.warnings.iter().cloned());
            for (stage, seconds) in &journal.seconds {
                all.add(stage, *seconds);
            }
        }
        all
    }
}
