//! What a method says about one group.

use super::Curve;

/// What a method says about one group.
#[derive(Debug, Clone)]
pub enum Ranking {
    /// An order of elimination and the damage after each step.
    Curve(Curve),
    /// A score per unit, comparable over groups.
    Scores(Vec<f64>),
    /// The method does not touch the group.
    Whole,
}

impl Ranking {
    /// The curve, where it is one.
    pub fn into_curve(self) -> Option<Curve> {
        match self {
            Ranking::Curve(curve) => Some(curve),
            _ => None,
        }
    }
}
