//! What the parts of a model take: the vocabulary, the positions, the blocks, the heads behind
//! them, and the rest.

use std::collections::BTreeSet;

use super::cost::Cost;
use crate::axes::Contraction;
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
    /// Tables that token ids index.
    pub vocabulary: PartCost,
    /// Tables that something else indexes: positions, segments, relative distances.
    pub positions: PartCost,
    /// What goes with the units of all groups.
    pub blocks: PartCost,
    /// What lies behind the last of these: a pooler, classes, logits of tokens. The numbers of
    /// a head that is tied to the table of tokens are counted there.
    pub heads: PartCost,
    /// Everything else.
    pub rest: PartCost,
    /// What of the heads has an entry for each token.
    #[serde(skip)]
    of_tokens: PartCost,
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
        let [vocabulary, mut positions] = tables;
        let wide = |v: ValueId| wide_value(network, v, &sizes);
        positions.retain(|v| !wide(*v));
        let behind = behind_blocks(network);
        let mut heads: BTreeSet<ValueId> = (0..graph.values.len() as u32)
            .map(ValueId)
            .filter(|v| wide(*v))
            .collect();
        for at in (0..graph.nodes.len()).filter(|at| behind[*at]) {
            let reads = graph.nodes[at].inputs.iter().flatten();
            heads.extend(reads.flat_map(|v| constants(network, *v)));
        }
        heads.retain(|v| !vocabulary.contains(v) && !positions.contains(v));
        let is_wide = |c: &Contraction| {
            let reads = c.inputs.iter().filter_map(|at| graph.input(c.node, *at));
            reads.zip(c.constant).any(|(v, constant)| {
                let held = || constants(network, v);
                constant && held().iter().any(|v| wide(*v) || vocabulary.contains(v))
            })
        };
        let (mut head_flops, mut token_flops) = (0, 0);
        for (at, contraction) in analysis.contractions.iter().enumerate() {
            match is_wide(contraction) {
                true => token_flops += cost.macs_of(at),
                false if behind[contraction.node.0 as usize] => head_flops += cost.macs_of(at),
                false => {}
            }
        }
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
        let table = |values| PartCost {
            bytes: bytes(values),
            flops: 0,
        };
        let (vocabulary, positions) = (table(&vocabulary), table(&positions));
        let of_tokens = PartCost {
            bytes: bytes(&heads.iter().copied().filter(|v| wide(*v)).collect()),
            flops: token_flops,
        };
        let heads = PartCost {
            bytes: bytes(&heads),
            flops: head_flops + token_flops,
        };
        let others = |of: fn(&PartCost) -> u64| {
            [&vocabulary, &positions, &blocks, &heads]
                .into_iter()
                .map(of)
                .sum::<u64>()
        };
        Self {
            vocabulary,
            positions,
            blocks,
            heads,
            of_tokens,
            rest: PartCost {
                bytes: cost.dense_bytes(mask).saturating_sub(others(|p| p.bytes)),
                flops: cost.dense_macs(mask).saturating_sub(others(|p| p.flops)),
            },
        }
    }

    /// With all tokens again, of which `rows` are left of so many before, and the tables lost
    /// `bytes`.
    #[must_use]
    pub fn with_tokens(mut self, [before, left]: [usize; 2], bytes: u64) -> Self {
        let more = |of: u64| {
            let each = of as f64 / left.max(1) as f64;
            (each * before.saturating_sub(left) as f64).round() as u64
        };
        let heads = more(self.of_tokens.bytes).min(bytes);
        self.heads.bytes += heads;
        self.heads.flops += more(self.of_tokens.flops);
        self.vocabulary.bytes += bytes - heads;
        self
    }

    /// The parts by their names.
    pub fn named(&self) -> [(&'static str, PartCost); 5] {
        [
            ("vocabulary", self.vocabulary),
            ("positions", self.positions),
            ("blocks", self.blocks),
            ("heads", self.heads),
            ("rest", self.rest),
        ]
    }
}

/// The nodes that nothing of a group is behind and that read what groups make.
fn behind_blocks(network: &Network) -> Vec<bool> {
    let graph = &network.graph;
    let mut sinks = vec![false; graph.nodes.len()];
    for (_, group) in network.axes.indexed() {
        group
            .sinks
            .iter()
            .for_each(|sink| sinks[sink.node.0 as usize] = true);
    }
    let makers = |at: usize| {
        let node = &graph.nodes[at];
        let reads = node.inputs.iter().flatten().chain(&node.captures);
        reads.filter_map(|v| Some(graph.value(*v).producer?.0.0 as usize))
    };
    let mut behind = vec![false; graph.nodes.len()];
    let mut before = sinks.clone();
    let order = || graph.order.iter().map(|node| node.0 as usize);
    for at in order() {
        behind[at] = makers(at).any(|maker| sinks[maker] || behind[maker]);
    }
    for at in order().rev() {
        if before[at] {
            makers(at).for_each(|maker| before[maker] = true);
        }
    }
    behind
        .iter()
        .zip(&before)
        .map(|(behind, before)| *behind && !*before)
        .collect()
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
