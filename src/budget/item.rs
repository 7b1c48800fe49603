//! What one decision of an allocation is about.

/// What is kept or removed by one decision: a group, or groups of several files
/// that share one mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Units.
    pub units: usize,
    /// Least number of units to keep.
    pub least: usize,
    /// Multiply-accumulates of one unit.
    pub price: u64,
}
