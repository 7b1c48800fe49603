//! Rows that wait to be summed, and what they are summed into.

use crate::numerics::SiteStatistics;
use crate::numerics::solve::Regression;

/// Sums over the rows of some samples.
pub(super) struct FitTarget {
    pub(super) regression: Regression,
    /// Of the dense model's X, where that stands for the target.
    pub(super) dense: SiteStatistics,
}

/// Rows that wait to be summed.
#[derive(Default)]
pub(super) struct RefitBlock {
    /// The dense model's X, all columns, where it is needed.
    pub(super) dense: Vec<f32>,
    /// The pruned model's, kept columns.
    pub(super) pruned: Vec<f32>,
    /// The target; where it is made of X W, what comes on top of that.
    pub(super) target: Vec<f32>,
    pub(super) weights: Vec<f32>,
}
