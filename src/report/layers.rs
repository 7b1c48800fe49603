//! Which groups make one layer of the network, for pictures.

use super::GroupReport;
use crate::axes::Kind;

/// The groups of one layer, in the order of the graph.
#[derive(Debug, Clone)]
pub struct LayerRow<'r> {
    /// Its place, from 0.
    pub index: usize,
    /// Attention: more than one where there is cross attention.
    pub heads: Vec<&'r GroupReport>,
    /// Feed-forward.
    pub neurons: Vec<&'r GroupReport>,
}

/// The layers: attention and what follows it up to the next attention.
///
/// Nothing else than the order of the groups is needed, with one exception: where
/// the attention of a layer stands after its feed-forward block (they run side by
/// side), the numbers in both names are the same.
pub fn layers(groups: &[GroupReport]) -> Vec<LayerRow<'_>> {
    let feed_forward = groups.iter().any(|g| g.kind != Kind::Heads);
    let mut out: Vec<LayerRow> = Vec::new();
    for group in groups {
        let heads = group.kind == Kind::Heads;
        let joins = out
            .last()
            .is_some_and(|layer| match (heads, layer.neurons.last()) {
                (false, None) => true,
                (true, None) => feed_forward,
                (true, Some(before)) => layer.heads.is_empty() && same_numbers(&before.name, &group.name),
                (false, Some(_)) => false,
            });
        if !joins {
            out.push(LayerRow {
                index: out.len(),
                heads: Vec::new(),
                neurons: Vec::new(),
            });
        }
        if let Some(layer) = out.last_mut() {
            let list = if heads {
                &mut layer.heads
            } else {
                &mut layer.neurons
            };
            list.push(group);
        }
    }
    out
}

/// Whether two names count layers and come to the same ones.
fn same_numbers(a: &str, b: &str) -> bool {
    let numbers = numbers(a);
    !numbers.is_empty() && numbers == self::numbers(b)
}

/// The numbers that follow words for layers, as in `layers.3` or `block/3`.
fn numbers(name: &str) -> Vec<usize> {
    let parts: Vec<&str> = name.split(['.', '/', '_', ':']).collect();
    let is_layer = |word: &str| {
        let word = word.to_ascii_lowercase();
        ["layer", "layers", "block", "blocks", "h"].contains(&word.as_str())
    };
    parts
        .windows(2)
        .filter(|pair| is_layer(pair[0]))
        .filter_map(|pair| pair[1].parse().ok())
        .collect()
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

    fn group(name: &str, kind: Kind) -> GroupReport {
        GroupReport {
            name: name.into(),
            kind,
            units: 4,
            kept: vec![0],
            damage: 0.0,
            curve: None,
        }
    }

    fn shape(groups: &[(&str, Kind)]) -> Vec<(usize, usize)> {
        let groups: Vec<_> = groups.iter().map(|(n, k)| group(n, *k)).collect();
        layers(&groups)
            .iter()
            .map(|l| (l.heads.len(), l.neurons.len()))
            .collect()
    }

    #[test]
    fn attention_and_what_follows_is_a_layer() {
        use Kind::{Heads, Neurons};
        let plain = [("a", Heads), ("b", Neurons), ("c", Heads), ("d", Neurons)];
        assert_eq!(shape(&plain), [(1, 1), (1, 1)]);
        let decoder = [("a", Heads), ("b", Heads), ("c", Neurons), ("d", Heads)];
        assert_eq!(shape(&decoder), [(2, 1), (1, 0)]);
        assert_eq!(shape(&[("a", Heads), ("b", Heads)]), [(1, 0), (1, 0)]);
        assert_eq!(shape(&[("a", Neurons), ("b", Neurons)]), [(0, 1), (0, 1)]);
    }

    #[test]
    fn side_by_side_blocks_are_told_by_their_numbers() {
        use Kind::{Heads, Neurons};
        let names = [
            ("m/layers.0/mlp", Neurons),
            ("m/layers.0/attention", Heads),
            ("m/layers.1/mlp", Neurons),
            ("m/layers.1/attention", Heads),
        ];
        assert_eq!(shape(&names), [(1, 1), (1, 1)]);
        let none = [("node_2", Neurons), ("node_2_b", Heads)];
        assert_eq!(shape(&none), [(0, 1), (1, 0)]);
    }
}
