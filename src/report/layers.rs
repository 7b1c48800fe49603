//! Which groups make one row of a picture.

use super::GroupReport;
use crate::axes::{BlockPart, Kind};

/// The groups of one block of the network, or its attention to another sequence.
#[derive(Debug, Clone)]
pub struct LayerRow<'r> {
    /// Its block, from 0.
    pub block: usize,
    /// What it is called: the number, and `cross` for attention to another sequence.
    pub label: String,
    /// Attention.
    pub heads: Vec<&'r GroupReport>,
    /// Feed-forward.
    pub neurons: Vec<&'r GroupReport>,
}

/// The rows, in the order of the graph: one per block, and one for each block's attention to
/// another sequence.
pub fn layers(groups: &[GroupReport]) -> Vec<LayerRow<'_>> {
    let mut out: Vec<LayerRow> = Vec::new();
    for group in groups {
        let heads = group.kind != Kind::Neurons;
        let (block, cross) = match &group.place {
            Some(place) => (place.block, place.part == BlockPart::CrossAttention),
            None => (out.last().map_or(0, |row| row.block + 1), false),
        };
        let label = match cross {
            true => format!("{block} cross"),
            false => block.to_string(),
        };
        let at = match out.iter().rposition(|row| row.label == label) {
            Some(at) => at,
            None => {
                out.push(LayerRow {
                    block,
                    label,
                    heads: Vec::new(),
                    neurons: Vec::new(),
                });
                out.len() - 1
            }
        };
        match heads {
            true => out[at].heads.push(group),
            false => out[at].neurons.push(group),
        }
    }
    out
}

/// Units of some groups that stay, and all of them.
pub fn kept_of(groups: &[&GroupReport]) -> (usize, usize) {
    let kept = groups.iter().map(|g| g.kept.len()).sum();
    let units = groups.iter().map(|g| g.units).sum();
    (kept, units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axes::Place;

    #[test]
    fn attention_to_another_sequence_has_its_own_row() {
        use BlockPart::{Attention, CrossAttention, FeedForward};
        let group = |(block, part): (usize, BlockPart)| GroupReport {
            name: String::new(),
            kind: match part {
                FeedForward => Kind::Neurons,
                _ => Kind::Heads,
            },
            place: Some(Place { block, part, nth: 1 }),
            units: 4,
            kept: vec![0],
            damage: 0.0,
            curve: None,
        };
        let parts = [
            (0, Attention),
            (0, CrossAttention),
            (0, FeedForward),
            (2, FeedForward),
        ];
        let groups: Vec<GroupReport> = parts.into_iter().map(group).collect();
        let rows: Vec<(String, usize, usize)> = layers(&groups)
            .into_iter()
            .map(|row| (row.label, row.heads.len(), row.neurons.len()))
            .collect();
        let row = |label: &str, heads, neurons| (label.to_string(), heads, neurons);
        assert_eq!(rows, [row("0", 1, 1), row("0 cross", 1, 0), row("2", 0, 1)]);
    }
}
