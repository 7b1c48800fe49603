//! What one decision of an allocation is about.

use crate::axes::Kind;
use crate::numerics::score::Ranking;

/// What is kept or removed by one decision: a group, or groups of several networks that
/// share one mask.
#[derive(Debug, Clone)]
pub struct Item {
    /// What its units are.
    pub kind: Kind,
    /// Units.
    pub units: usize,
    /// Least number of units to keep.
    pub least: usize,
    /// What the method says about it.
    pub ranking: Ranking,
}

impl Item {
    /// The units that stay where `kept` do.
    pub fn flags(&self, kept: usize) -> Vec<bool> {
        flags(&self.ranking, self.units, kept)
    }
}

/// The `kept` units that stay, by a ranking.
pub fn flags(ranking: &Ranking, units: usize, kept: usize) -> Vec<bool> {
    match ranking {
        Ranking::Curve(curve) => curve.kept(units.saturating_sub(kept)),
        Ranking::Scores(scores) => super::scores::best(scores, kept),
        Ranking::Whole => vec![true; units],
    }
}

/// The damage that a ranking expects where `kept` units stay.
pub fn damage(ranking: &Ranking, units: usize, kept: usize) -> f64 {
    match ranking {
        Ranking::Curve(curve) => curve
            .error
            .get(units.saturating_sub(kept))
            .copied()
            .unwrap_or(1.0),
        _ => 0.0,
    }
}
