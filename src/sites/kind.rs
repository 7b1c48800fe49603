//! What a run may prune.

use crate::axes::{Kind, PruneGroup};
use crate::words::words;

/// Kinds of units that may be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// Attention heads or key/value groups.
    Heads,
    /// Feed-forward neurons.
    Neurons,
    /// Query heads, the same ones in every key/value group of a layer, which all
    /// stay: instead of heads.
    Queries,
}

words!(UnitKind { Heads = "heads", Neurons = "neurons", Queries = "queries" });

/// Which groups a run may prune.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Kinds of units.
    pub targets: Vec<UnitKind>,
    /// Groups whose name or place (`block 3 attention`) matches stay whole.
    pub exclude: Vec<regex::Regex>,
    /// Least number of units that every group keeps; with 0, whole sublayers may go.
    pub min_units: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Selection {
            targets: vec![UnitKind::Heads, UnitKind::Neurons],
            exclude: Vec::new(),
            min_units: 0,
        }
    }
}

impl Selection {
    /// Whether a group may be pruned.
    pub fn takes(&self, group: &PruneGroup) -> bool {
        let kind = match group.kind {
            Kind::Heads => UnitKind::Heads,
            Kind::Repeats => UnitKind::Queries,
            Kind::Neurons => UnitKind::Neurons,
            _ => return false,
        };
        self.targets.contains(&kind) && !self.exclude.iter().any(|r| is_named(group, r))
    }
}

/// Whether a pattern is that of a group's name or place.
pub fn is_named(group: &PruneGroup, pattern: &regex::Regex) -> bool {
    pattern.is_match(&group.name) || group.place.is_some_and(|p| pattern.is_match(&p.to_string()))
}
