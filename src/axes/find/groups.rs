//! From free factors to groups of units that can be pruned.

use std::collections::{BTreeMap, BTreeSet};

use super::kind;
use super::{names, places};
use crate::axes::algebra::dim::{Dim, FactorId};
use crate::axes::facts::Analysis;
use crate::axes::group::{FrozenAxis, PruneGroup, Sink};
use crate::graph::{Graph, NodeId, Role, ValueId};

/// What was found about one leaf.
#[derive(Default)]
struct UnitClass {
    sinks: Vec<Sink>,
    sources: BTreeSet<ValueId>,
    /// Nodes that carry the class, for its name.
    nodes: BTreeSet<NodeId>,
}

/// More units are a file made to exhaust memory: each takes a place in masks and
/// curves. The largest models have some hundred thousand in a group.
const MOST_UNITS: usize = 1 << 24;

pub(crate) fn find(analysis: &mut Analysis, graph: &Graph) {
    let classes = classes(analysis, graph);
    // Where an axis leads into a node that is not followed, nothing is known of its
    // sinks: it is told as frozen all the same.
    let ends = |leaf: FactorId, class: &UnitClass| {
        let node = analysis.space.frozen(leaf).and_then(|f| f.node);
        !class.nodes.is_empty() && node.is_some_and(|n| analysis.lost.contains(&n))
    };
    let rank: BTreeMap<NodeId, usize> = graph.order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut groups = Vec::new();
    let mut frozen = Vec::new();
    let roles = kind::Roles::of(analysis, graph);
    let mut names = names::GroupNames::default();
    let mut found: Vec<(FactorId, UnitClass)> = classes
        .into_iter()
        .filter(|(leaf, class)| {
            let without_sink =
                || ends(*leaf, class) || roles.is_multiplied(*leaf) && analysis.space.frozen(*leaf).is_none();
            !class.sources.is_empty() && (!class.sinks.is_empty() || without_sink())
        })
        .collect();
    found.sort_by_key(|(leaf, class)| {
        let first = class.sinks.iter().filter_map(|s| rank.get(&s.node)).min();
        (first.is_none(), first.copied(), *leaf)
    });
    for (leaf, mut class) in found {
        let units = analysis.space.factor_size(leaf);
        let prefix = names::prefix(graph, &class.nodes, &class.sources);
        let why = match analysis.space.frozen(leaf) {
            Some(freeze) => Some(freeze.describe(graph)),
            None => (units > MOST_UNITS).then(|| format!("it has more than {MOST_UNITS} units")),
        };
        if let Some(why) = why {
            frozen.push(FrozenAxis {
                name: prefix,
                units,
                why,
            });
            continue;
        }
        for sink in &mut class.sinks {
            sink.residual = kind::reaches_residual(analysis, graph, &rank, sink);
        }
        let kind = roles.kind(leaf, &class.sinks);
        groups.push(PruneGroup {
            name: names.unique(&prefix, kind),
            kind,
            place: None,
            leaf,
            units,
            sinks: class.sinks,
            sources: class.sources.into_iter().collect(),
        });
    }
    places::name(analysis, graph, &mut groups);
    analysis.groups = groups;
    analysis.frozen = frozen;
}

fn classes(analysis: &Analysis, graph: &Graph) -> BTreeMap<FactorId, UnitClass> {
    let mut classes: BTreeMap<FactorId, UnitClass> = BTreeMap::new();
    let space = &analysis.space;
    for (index, c) in analysis.contractions.iter().enumerate() {
        if c.inner || c.constant[0] == c.constant[1] {
            continue;
        }
        let weight_side = usize::from(c.constant[1]);
        let (weight_input, activation_input) = (c.inputs[weight_side], c.inputs[1 - weight_side]);
        let (Some(weight), Some(activation)) = (
            graph.input(c.node, weight_input),
            graph.input(c.node, activation_input),
        ) else {
            continue;
        };
        let mut contracted: BTreeSet<FactorId> = BTreeSet::new();
        for (_, _, dim) in &c.contracted {
            contracted.extend(space.leaves(dim));
        }
        for leaf in contracted {
            let axes = |side: usize| -> Vec<usize> {
                c.contracted
                    .iter()
                    .map(|(a, b, _)| if side == 0 { *a } else { *b })
                    .collect()
            };
            let class = classes.entry(leaf).or_default();
            class.nodes.insert(c.node);
            class.sinks.push(Sink {
                contraction: index,
                node: c.node,
                activation_input,
                activation,
                activation_axes: axes(1 - weight_side),
                weight_input,
                weight,
                weight_axes: axes(weight_side),
                residual: false,
            });
        }
        for leaf in c.free[weight_side].iter().flat_map(|d| space.leaves(d)) {
            let class = classes.entry(leaf).or_default();
            class.nodes.insert(c.node);
            class.sources.insert(weight);
        }
    }
    tables(analysis, graph, &mut classes);
    classes
}

/// Constants of two and more axes that carry a leaf and are no operand of a
/// contraction (embedding tables, convolution filters) are sources, too.
fn tables(analysis: &Analysis, graph: &Graph, classes: &mut BTreeMap<FactorId, UnitClass>) {
    for (at, value) in graph.values.iter().enumerate() {
        let id = ValueId(at as u32);
        if value.role != Role::Constant {
            continue;
        }
        for (node, input) in &value.consumers {
            if analysis
                .contractions
                .iter()
                .rev()
                .any(|c| c.node == *node && !c.inner && c.inputs.contains(input))
            {
                continue;
            }
            let Some(dims) = analysis.operand(graph, *node, *input) else {
                continue;
            };
            let carrying: Vec<&Dim> = dims.iter().filter(|d| !d.is_one()).collect();
            if carrying.len() < 2 {
                continue;
            }
            // What is computed from constants only is seen at its own consumer.
            let folded = graph
                .node(*node)
                .outputs
                .iter()
                .flatten()
                .all(|o| analysis.facts(*o).constant);
            if folded {
                continue;
            }
            for leaf in carrying.into_iter().flat_map(|d| analysis.space.leaves(d)) {
                classes.entry(leaf).or_default().sources.insert(id);
            }
        }
    }
}
