//! What the parts of a model take: the vocabulary, the positions, the blocks, and the rest.

use std::collections::BTreeSet;

use super::cost::Cost;
use crate::graph::{NodeId, Role, ValueId};
use crate::mask::Mask;
use crate::network::Network;

/// What one part of a model takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PartCost {
    /// Bytes of its constants.
    pub bytes: u64,
    /// Multiply-accumulates of one run.
    pub flops: u64,
}

/// The parts of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ModelParts {
    /// Tables that token ids index, and the heads that are as wide.
    pub vocabulary: PartCost,
    /// Tables that something else indexes: positions, segments, relative distances.
    pub positions: PartCost,
    /// What goes with the units of all groups.
    pub blocks: PartCost,
    /// Everything else.
    pub rest: PartCost,
}

/// Tables with fewer rows hold no vocabulary.
const LEAST_TOKENS: usize = 64;

/// Operators between token ids and the node that looks them up.
const HANDS_ON: [&str; 7] = [
    "Cast",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Clip",
];

impl ModelParts {
    /// Of a network with the units that a mask leaves.
    pub fn of(network: &Network, cost: &Cost, mask: &Mask) -> Self {
        let (graph, analysis) = (&network.graph, &network.axes);
        let mut tables = [BTreeSet::new(), BTreeSet::new()];
        let mut sizes = BTreeSet::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            if !matches!(node.op.as_str(), "Gather" | "GatherBlockQuantized") || node.int("axis", 0) != 0 {
                continue;
            }
            let id = NodeId(at as u32);
            let (Some(table), Some(ids)) = (graph.input(id, 0), graph.input(id, 1)) else {
                continue;
            };
            let held = constants(network, table);
            let matrix = |v: &ValueId| graph.value(*v).constant.as_ref().filter(|c| c.shape.len() > 1);
            let Some(rows) = held.iter().find_map(|v| Some(*matrix(v)?.shape.first()?)) else {
                continue;
            };
            let is_vocabulary = rows >= LEAST_TOKENS && are_tokens(network, ids);
            if is_vocabulary {
                sizes.insert(rows);
            }
            tables[usize::from(!is_vocabulary)].extend(held);
        }
        let [mut vocabulary, positions] = tables;
        let wide = |shape: &[usize]| shape.iter().any(|n| sizes.contains(n));
        for (at, value) in graph.values.iter().enumerate() {
            if value.constant.as_ref().is_some_and(|c| wide(&c.shape)) {
                vocabulary.insert(ValueId(at as u32));
            }
        }
        let heads: u64 = (analysis.contractions.iter().enumerate())
            .filter(|(_, c)| {
                let reads = c.inputs.iter().filter_map(|at| graph.input(c.node, *at));
                reads.zip(c.constant).any(|(v, constant)| {
                    constant && constants(network, v).iter().any(|v| vocabulary.contains(v))
                })
            })
            .map(|(at, _)| cost.macs_of(at))
            .sum();
        let bytes = |values: &BTreeSet<ValueId>| -> u64 {
            let of = |v: &ValueId| {
                let value = graph.value(*v);
                let numbers: usize = value.constant.as_ref()?.shape.iter().product();
                Some((numbers * value.elem?.size()) as u64)
            };
            values.iter().filter_map(of).sum()
        };
        let mut none = Mask::default();
        for (at, group) in analysis.indexed() {
            none.kept.insert(at, vec![false; group.units]);
        }
        let blocks = PartCost {
            bytes: cost.dense_bytes(mask).saturating_sub(cost.dense_bytes(&none)),
            flops: cost.dense_macs(mask).saturating_sub(cost.dense_macs(&none)),
        };
        let vocabulary = PartCost {
            bytes: bytes(&vocabulary),
            flops: heads,
        };
        let positions = PartCost {
            bytes: bytes(
                &positions
                    .iter()
                    .filter(|v| !wide_value(network, **v, &sizes))
                    .copied()
                    .collect(),
            ),
            flops: 0,
        };
        let others = |of: fn(&PartCost) -> u64| of(&vocabulary) + of(&positions) + of(&blocks);
        Self {
            vocabulary,
            positions,
            blocks,
            rest: PartCost {
                bytes: cost.dense_bytes(mask).saturating_sub(others(|p| p.bytes)),
                flops: cost.dense_macs(mask).saturating_sub(others(|p| p.flops)),
            },
        }
    }

    /// The parts by their names.
    pub fn named(&self) -> [(&'static str, PartCost); 4] {
        [
            ("vocabulary", self.vocabulary),
            ("positions", self.positions),
            ("blocks", self.blocks),
            ("rest", self.rest),
        ]
    }
}

fn wide_value(network: &Network, value: ValueId, sizes: &BTreeSet<usize>) -> bool {
    let constant = network.graph.value(value).constant.as_ref();
    constant.is_some_and(|c| c.shape.iter().any(|n| sizes.contains(n)))
}

/// The constants that a constant value is made of.
fn constants(network: &Network, value: ValueId) -> Vec<ValueId> {
    let graph = &network.graph;
    if graph.value(value).role == Role::Constant {
        return vec![value];
    }
    if !network.axes.facts(value).constant {
        return Vec::new();
    }
    let behind = crate::graph::ancestors(graph, value);
    let all = (0..graph.values.len())
        .filter(|at| behind[*at])
        .map(|at| ValueId(at as u32));
    all.filter(|v| graph.value(*v).role == Role::Constant).collect()
}

/// Whether indices are ids that the graph is given.
fn are_tokens(network: &Network, ids: ValueId) -> bool {
    let graph = &network.graph;
    let mut value = ids;
    for _ in 0..16 {
        let here = graph.value(value);
        if here.role == Role::Input {
            let name = here.name.to_ascii_lowercase();
            return !["position", "type", "segment", "mask"]
                .iter()
                .any(|word| name.contains(word));
        }
        let Some((node, _)) = here.producer else {
            return false;
        };
        let op = graph.node(node);
        let is_list = || {
            let list = graph
                .input(node, 0)
                .and_then(|v| graph.value(v).constant.as_ref());
            op.op == "Gather" && list.is_some_and(|c| c.shape.len() == 1)
        };
        // A list may have another id for each.
        let at = match op.op.as_str() {
            "Where" => 1,
            other if HANDS_ON.contains(&other) => 0,
            _ if is_list() => 1,
            _ => return false,
        };
        let Some(next) = graph.input(node, at) else {
            return false;
        };
        value = next;
    }
    false
}
