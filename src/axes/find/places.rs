//! Where in the network groups are: which block, and which part of it.
//!
//! A block is attention and what follows it up to the next attention. Nothing else than the
//! order of the groups is needed, with one exception: where the attention of a block stands
//! after its feed-forward part (they run side by side), the numbers in both names are the same.

use std::collections::BTreeSet;

use crate::axes::facts::Analysis;
use crate::axes::group::{BlockPart, Kind, Place, PruneGroup};
use crate::graph::{Graph, NodeId, Role, ValueId};

/// Gives every group of heads and neurons its place, and channels inside of heads that of
/// their heads.
pub(super) fn name(analysis: &Analysis, graph: &Graph, groups: &mut [PruneGroup]) {
    // Query heads of groups that keep all their heads stand for these.
    let made: BTreeSet<ValueId> = (groups.iter().filter(|g| g.kind == Kind::Heads))
        .flat_map(|g| g.sources.iter().copied())
        .collect();
    let alone = |g: &PruneGroup| g.kind == Kind::Repeats && !g.sources.iter().any(|s| made.contains(s));
    let counted = |g: &PruneGroup| matches!(g.kind, Kind::Heads | Kind::Neurons) || alone(g);
    let neurons = groups.iter().any(|g| g.kind == Kind::Neurons);
    let mut block: Option<Block> = None;
    let mut taken = BTreeSet::new();
    for group in groups.iter_mut().filter(|g| counted(g)) {
        let part = match group.kind {
            Kind::Neurons => BlockPart::FeedForward,
            _ if is_cross(analysis, graph, group) => BlockPart::CrossAttention,
            _ => BlockPart::Attention,
        };
        let joins = block.as_ref().filter(|b| b.takes(group, neurons));
        let index = match (joins, &block) {
            (Some(joined), _) => joined.index,
            (None, Some(before)) => before.index + 1,
            (None, None) => 0,
        };
        let attention = group.kind != Kind::Neurons || joins.is_some_and(|b| b.attention);
        let feed_forward = match group.kind {
            Kind::Neurons => Some(group.name.clone()),
            _ => joins.and_then(|b| b.feed_forward.clone()),
        };
        block = Some(Block {
            index,
            attention,
            feed_forward,
        });
        let mut place = Place {
            block: index,
            part,
            nth: 1,
        };
        while !taken.insert(place) {
            place.nth += 1;
        }
        group.place = Some(place);
    }
    let attention: Vec<(BTreeSet<ValueId>, Option<Place>)> = groups
        .iter()
        .filter(|g| g.kind == Kind::Heads)
        .map(|g| (g.sources.iter().copied().collect(), g.place))
        .collect();
    for group in groups.iter_mut() {
        if group.place.is_none() && matches!(group.kind, Kind::ValueDims | Kind::QueryDims | Kind::Repeats) {
            let beside =
                |(sources, _): &&(BTreeSet<ValueId>, _)| group.sources.iter().any(|s| sources.contains(s));
            group.place = attention.iter().find(beside).and_then(|(_, place)| *place);
        }
    }
}

/// The block that is being put together.
struct Block {
    index: usize,
    /// Whether it has attention already.
    attention: bool,
    /// Its feed-forward part, by name.
    feed_forward: Option<String>,
}

impl Block {
    /// Whether the next group belongs to it; `neurons` where the network has feed-forward
    /// parts at all.
    fn takes(&self, next: &PruneGroup, neurons: bool) -> bool {
        match (next.kind, &self.feed_forward) {
            (Kind::Neurons, before) => before.is_none(),
            (_, None) => neurons,
            (_, Some(before)) => !self.attention && same_numbers(before, &next.name),
        }
    }
}

/// Whether what heads are made of comes from two places that have nothing in common since
/// the last layer before each: a decoder's queries and an encoder's keys.
fn is_cross(analysis: &Analysis, graph: &Graph, heads: &PruneGroup) -> bool {
    let mut read = BTreeSet::new();
    for c in &analysis.contractions {
        if c.inner || c.constant[0] == c.constant[1] {
            continue;
        }
        let side = usize::from(c.constant[1]);
        let weight = graph.input(c.node, c.inputs[side]);
        if weight.is_some_and(|w| heads.sources.contains(&w)) {
            read.extend(graph.input(c.node, c.inputs[1 - side]));
        }
    }
    // Most heads are made of one value, and the walk back from it is long.
    if read.len() < 2 {
        return false;
    }
    let contractions = analysis.contractions.iter().map(|c| c.node).collect();
    let mut all: Option<BTreeSet<ValueId>> = None;
    for value in read {
        let own = origins(&contractions, graph, value);
        match &mut all {
            None => all = Some(own),
            Some(all) if all.is_disjoint(&own) => return !all.is_empty() && !own.is_empty(),
            Some(all) => all.extend(own),
        }
    }
    false
}

/// The results of contractions and the inputs of the graph that a value is made of with
/// nothing but other operators in between.
fn origins(contractions: &BTreeSet<NodeId>, graph: &Graph, value: ValueId) -> BTreeSet<ValueId> {
    let mut seen = BTreeSet::from([value]);
    let mut open = vec![value];
    let mut found = BTreeSet::new();
    while let Some(value) = open.pop() {
        if graph.value(value).role == Role::Constant {
            continue;
        }
        match graph.value(value).producer {
            Some((node, _)) if graph.node(node).op == "Shape" => {}
            Some((node, _)) if !contractions.contains(&node) => {
                let inputs = graph.node(node).inputs.iter().flatten();
                open.extend(inputs.filter(|v| seen.insert(**v)));
            }
            _ => {
                found.insert(value);
            }
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axes::FactorId;

    fn places(groups: &[(&str, Kind)]) -> Vec<String> {
        let group = |(name, kind): &(&str, Kind)| PruneGroup {
            name: (*name).into(),
            kind: *kind,
            place: None,
            leaf: FactorId(0),
            units: 4,
            sinks: Vec::new(),
            sources: Vec::new(),
        };
        let mut groups: Vec<PruneGroup> = groups.iter().map(group).collect();
        name(&Analysis::default(), &Graph::default(), &mut groups);
        let text = |g: &PruneGroup| g.place.map_or(String::new(), |p| p.to_string());
        groups.iter().map(text).collect()
    }

    #[test]
    fn attention_and_what_follows_is_a_block() {
        use Kind::{Heads, Neurons, Other};
        let plain = [
            ("a", Heads),
            ("b", Neurons),
            ("c", Heads),
            ("d", Neurons),
            ("e", Other),
        ];
        let [a, f] = ["attention", "feed-forward"];
        assert_eq!(
            places(&plain),
            [
                format!("block 0 {a}"),
                format!("block 0 {f}"),
                format!("block 1 {a}"),
                format!("block 1 {f}"),
                String::new()
            ]
        );
        let decoder = [("a", Heads), ("b", Heads), ("c", Neurons), ("d", Heads)];
        assert_eq!(
            places(&decoder),
            [
                format!("block 0 {a}"),
                format!("block 0 {a} 2"),
                format!("block 0 {f}"),
                format!("block 1 {a}")
            ]
        );
        assert_eq!(
            places(&[("a", Heads), ("b", Heads)]),
            [format!("block 0 {a}"), format!("block 1 {a}")]
        );
        assert_eq!(
            places(&[("a", Neurons), ("b", Neurons)]),
            [format!("block 0 {f}"), format!("block 1 {f}")]
        );
    }

    #[test]
    fn side_by_side_parts_are_told_by_their_numbers() {
        use Kind::{Heads, Neurons};
        let names = [
            ("m/layers.0/mlp", Neurons),
            ("m/layers.0/attention", Heads),
            ("m/layers.1/mlp", Neurons),
            ("m/layers.1/attention", Heads),
        ];
        let blocks = |groups: &[(&str, Kind)]| {
            let places = places(groups);
            places.iter().map(|p| p[..7].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(blocks(&names), ["block 0", "block 0", "block 1", "block 1"]);
        let none = [("node_2", Neurons), ("node_2_b", Heads)];
        assert_eq!(blocks(&none), ["block 0", "block 1"]);
    }
}
