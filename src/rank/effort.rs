//! How much time measurements may take.

use crate::words::words;

/// How much time measurements may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// As many samples as a few passes of the dense model take.
    #[default]
    Normal,
    /// What changes do to the outputs is measured on eight times the samples, and layers
    /// are re-fitted on all.
    High,
}

impl Effort {
    /// By what numbers of samples are multiplied.
    pub fn samples(self) -> usize {
        match self {
            Effort::Normal => 1,
            Effort::High => 8,
        }
    }
}

words!(Effort { Normal = "normal", High = "high" });
