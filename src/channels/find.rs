//! Channels inside the heads of an attention block that can be turned: which constants
//! make them and read them.
//!
//! A basis can be changed where everything between the weights that make the channels
//! and those that read them treats all channels of a head alike: views, sums with a
//! bias that is turned too, products with the attention or with a scalar. A rotation by
//! position, a normalisation or a factor per channel does not.

use std::collections::{BTreeMap, BTreeSet};

use crate::axes::{Analysis, FactorId, GroupId, Kind, PruneGroup};
use crate::graph::operators::is_view_of_constant;
use crate::graph::{Graph, NodeId, ValueId, ancestors};
use crate::mask::Kept;
use crate::network::{Network, WeightReader};
use crate::tensor::Elem;

/// What the channels are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// What a head adds up and its output projection reads.
    Values,
    /// What queries and keys are multiplied along.
    QueriesAndKeys,
}

impl ChannelKind {
    /// As people say it.
    pub fn word(self) -> &'static str {
        match self {
            ChannelKind::Values => "values",
            ChannelKind::QueriesAndKeys => "queries and keys",
        }
    }
}

/// The channels of one attention block.
#[derive(Debug, Clone)]
pub(super) struct HeadChannels {
    pub(super) what: ChannelKind,
    /// The group in the open analysis.
    pub(super) group: GroupId,
    /// Channels of each head.
    pub(super) count: usize,
    /// The constants that make them.
    pub(super) makers: Vec<Maker>,
}

/// Whose channels a constant makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Values, or queries.
    Left,
    /// Keys.
    Right,
}

/// A weight or a bias whose entries along one axis are channels.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    pub(super) side: Side,
    /// The constant, as the one node that reads it sees it.
    pub(super) reader: WeightReader,
    /// The axis.
    pub(super) axis: usize,
    /// Its entries, by head.
    pub(super) blocks: HeadBlocks,
    /// Which runs of each head these are, where queries and keys come out of one weight.
    packed: Option<Packed>,
}

/// Queries and keys in one weight: of the runs of each head the keys have the last one, or
/// the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    side: Side,
    keys_first: bool,
}

impl Packed {
    /// The runs of this side, where there are some of both.
    fn of(self, blocks: &HeadBlocks) -> Option<HeadBlocks> {
        let own = |runs: &Vec<Vec<usize>>| {
            let last = runs.len().checked_sub(1).filter(|n| *n > 0)?;
            let own = match (self.side, self.keys_first) {
                (Side::Left, false) => &runs[..last],
                (Side::Left, true) => &runs[1..],
                (Side::Right, false) => &runs[last..],
                (Side::Right, true) => &runs[..1],
            };
            Some(own.to_vec())
        };
        blocks
            .iter()
            .map(|(head, runs)| Some((*head, own(runs)?)))
            .collect()
    }
}

/// Entries of an axis by head: of each head some runs of all its channels, in order.
pub(super) type HeadBlocks = BTreeMap<usize, Vec<Vec<usize>>>;

/// The values, and the queries and keys, of the block that a group of heads is; as many
/// of the two as can be turned.
pub(super) fn find(open: &Network, heads: &PruneGroup) -> Vec<HeadChannels> {
    let (graph, open) = (&open.graph, &open.axes);
    let [sink] = &heads.sinks[..] else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (at, group) in open.indexed() {
        let own = match group.kind {
            Kind::ValueDims => match &group.sinks[..] {
                [own] if own.node == sink.node => values(graph, open, heads.leaf, group),
                _ => None,
            },
            Kind::QueryDims => queries(graph, open, heads.leaf, group),
            _ => None,
        };
        let Some(makers) = own else { continue };
        let what = match group.kind {
            Kind::QueryDims => ChannelKind::QueriesAndKeys,
            _ => ChannelKind::Values,
        };
        // Two of a kind are no block that is understood.
        if found.iter().any(|c: &HeadChannels| c.what == what) {
            return Vec::new();
        }
        found.push(HeadChannels {
            what,
            group: at,
            count: group.units,
            makers,
        });
    }
    found
}

fn values(graph: &Graph, open: &Analysis, heads: FactorId, group: &PruneGroup) -> Option<Vec<Maker>> {
    let sink = group.sinks.first()?;
    let makers = makers(graph, open, heads, group, |_| Some(Whose::One(Side::Left)))?;
    // The sink's weight is turned by its rows, all of which must be known.
    let dims = &open.contractions.get(sink.contraction)?.contracted;
    let dims = dims.iter().map(|(_, _, dim)| dim);
    let rows = dims.fold(crate::axes::Dim::one(), |all, dim| all.times(dim.clone()));
    blocks(open, &rows, heads, group)?;
    Some(makers)
}

fn queries(graph: &Graph, open: &Analysis, heads: FactorId, group: &PruneGroup) -> Option<Vec<Maker>> {
    let mut products = open.contractions.iter().filter(|c| {
        let contracted = c.contracted.iter().flat_map(|(_, _, d)| open.space.leaves(d));
        c.constant == [false, false] && contracted.into_iter().any(|l| l == group.leaf)
    });
    let (product, None) = (products.next()?, products.next()) else {
        return None;
    };
    let of_heads = product
        .batch
        .iter()
        .any(|d| open.space.leaves(d).contains(&heads));
    if product.inner || !of_heads {
        return None;
    }
    let [left, right] = product.inputs.map(|input| graph.input(product.node, input));
    let (left, right) = (ancestors(graph, left?), ancestors(graph, right?));
    let of = |value: ValueId| {
        let at = value.0 as usize;
        (left.get(at) == Some(&true), right.get(at) == Some(&true))
    };
    let side = |value: ValueId| match of(value) {
        (true, false) => Some(Whose::One(Side::Left)),
        (false, true) => Some(Whose::One(Side::Right)),
        (true, true) => keys_first(graph, open, group, of).map(Whose::Both),
        (false, false) => None,
    };
    let makers = makers(graph, open, heads, group, side)?;
    let has = |side| makers.iter().any(|m| m.side == side);
    (has(Side::Left) && has(Side::Right)).then_some(makers)
}

/// Whose channels a constant makes: of one side, or of both, and whether keys come first.
#[derive(Debug, Clone, Copy)]
enum Whose {
    One(Side),
    Both(bool),
}

/// Whether the keys come before the queries in what both are taken out of: by where the
/// one node, or the nodes of a kind, that take them out look. `of` tells which of the two
/// a value is a part of.
fn keys_first(
    graph: &Graph,
    open: &Analysis,
    group: &PruneGroup,
    of: impl Fn(ValueId) -> (bool, bool),
) -> Option<bool> {
    let carries = |value: ValueId| {
        let dims = open.facts(value).dims.iter().flatten();
        dims.into_iter()
            .any(|d| open.space.leaves(d).contains(&group.leaf))
    };
    // What is read, and from where on.
    let mut taken: [Option<(ValueId, i64)>; 2] = [None, None];
    for (at, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(at as u32);
        let Some(from) = graph
            .input(id, 0)
            .filter(|v| of(*v) == (true, true) && carries(*v))
        else {
            continue;
        };
        for (output, value) in node.outputs.iter().enumerate() {
            let Some(value) = value.filter(|v| carries(*v)) else {
                continue;
            };
            let side = match of(value) {
                (true, false) => 0,
                (false, true) => 1,
                _ => continue,
            };
            let start = match node.op.as_str() {
                "Split" => output as i64,
                "Gather" | "Slice" => {
                    let index = graph.value(graph.input(id, 1)?).constant.as_ref()?;
                    *index.ints.as_ref()?.first()?
                }
                _ => return None,
            };
            if taken[side].replace((from, start)).is_some() {
                return None;
            }
        }
    }
    let [Some((a, queries)), Some((b, keys))] = taken else {
        return None;
    };
    (a == b && queries >= 0 && keys >= 0 && queries != keys).then_some(keys < queries)
}

/// The constants that make the channels of `group`; `None` where they cannot be turned.
fn makers(
    graph: &Graph,
    open: &Analysis,
    heads: FactorId,
    group: &PruneGroup,
    whose: impl Fn(ValueId) -> Option<Whose>,
) -> Option<Vec<Maker>> {
    let leaf = group.leaf;
    let sinks: BTreeSet<ValueId> = group.sinks.iter().map(|s| s.weight).collect();
    let mut makers: Vec<Maker> = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(at as u32);
        let carries = |value: ValueId, dims: Option<&Vec<crate::axes::Dim>>| {
            let own = dims.or(open.facts(value).dims.as_ref());
            own.is_some_and(|d| d.iter().any(|d| open.space.leaves(d).contains(&leaf)))
        };
        let reads: Vec<bool> = (0..node.inputs.len())
            .map(|i| {
                graph
                    .input(id, i)
                    .is_some_and(|v| carries(v, open.operand(graph, id, i)))
            })
            .collect();
        let makes = node.outputs.iter().flatten().any(|v| carries(*v, None));
        let captured = node.captures.iter().any(|v| carries(*v, None));
        if captured
            || node
                .outputs
                .iter()
                .flatten()
                .any(|v| carries(*v, None) && graph.value(*v).is_output)
        {
            return None;
        }
        if !makes && !reads.contains(&true) {
            continue;
        }
        let alike = match (node.domain.as_str(), node.op.as_str()) {
            ("", "MatMul" | "Gemm" | "Einsum") | ("com.microsoft", "FusedMatMul") => {
                let own = open.contractions.iter().filter(|c| c.node == id);
                let mut own = own.flat_map(|c| &c.batch);
                let each = own.any(|d| open.space.leaves(d).contains(&leaf));
                let bias = node.op == "Gemm" && makes && node.inputs.get(2).copied().flatten().is_some();
                !each && (!bias || reads.get(2) == Some(&true))
            }
            // A constant that carries no channel adds the same to all: no bias.
            ("", "Add") => reads.iter().all(|r| *r),
            ("", "Mul") => reads.iter().filter(|r| **r).count() == 1,
            ("", "Div") => reads == [true, false],
            (
                "",
                "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Split" | "Slice" | "Gather"
                | "Identity" | "Cast" | "Dropout" | "Expand" | "Attention" | "Shape",
            )
            | ("com.microsoft", "MultiHeadAttention") => true,
            _ => false,
        };
        if !alike {
            return None;
        }
        for (input, _) in reads.iter().enumerate().filter(|(_, r)| **r) {
            let value = graph.input(id, input)?;
            if graph.value(value).constant.is_none() || makers.iter().any(|m| m.reader.value == value) {
                continue;
            }
            if sinks.contains(&value) || reads_into(graph, id).is_some_and(|v| sinks.contains(&v)) {
                continue;
            }
            let (last, at) = final_use(graph, id, input)?;
            let weighs = open.contractions.iter().any(|c| {
                c.node == last && c.inputs.contains(&at) && !c.inner && c.constant != [false, false]
            });
            let adds = matches!(graph.node(last).op.as_str(), "Add")
                || graph.node(last).op == "Gemm" && at == 2
                || graph.node(last).op == "MultiHeadAttention" && at == 3;
            if !weighs && !adds {
                return None;
            }
            let maker = maker(graph, open, heads, group, value)?;
            match whose(value)? {
                Whose::One(side) => makers.push(Maker { side, ..maker }),
                Whose::Both(keys_first) => {
                    for side in [Side::Left, Side::Right] {
                        let packed = Packed { side, keys_first };
                        makers.push(Maker {
                            side,
                            blocks: packed.of(&maker.blocks)?,
                            packed: Some(packed),
                            ..maker.clone()
                        });
                    }
                }
            }
        }
    }
    (!makers.is_empty()).then_some(makers)
}

/// Where a constant is used in the end, behind views of it.
fn final_use(graph: &Graph, mut node: NodeId, mut input: usize) -> Option<(NodeId, usize)> {
    while is_view_of_constant(&graph.node(node).domain, &graph.node(node).op) {
        let output = graph.node(node).outputs.first().copied().flatten()?;
        let [(next, at)] = graph.value(output).consumers[..] else {
            return None;
        };
        (node, input) = (next, at);
    }
    Some((node, input))
}

/// What a view of a constant makes of it in the end.
fn reads_into(graph: &Graph, mut node: NodeId) -> Option<ValueId> {
    let mut made = None;
    while is_view_of_constant(&graph.node(node).domain, &graph.node(node).op) {
        let output = graph.node(node).outputs.first().copied().flatten()?;
        made = Some(output);
        let [(next, _)] = graph.value(output).consumers[..] else {
            return made;
        };
        node = next;
    }
    made
}

fn maker(
    graph: &Graph,
    open: &Analysis,
    heads: FactorId,
    group: &PruneGroup,
    value: ValueId,
) -> Option<Maker> {
    let v = graph.value(value);
    let [(node, input)] = v.consumers[..] else {
        return None;
    };
    let reader = WeightReader { node, input, value };
    if !matches!(v.elem, Some(Elem::F32 | Elem::F16 | Elem::BF16)) || v.is_output {
        return None;
    }
    let dims = open.facts(value).dims.as_ref()?;
    let mut axes = dims
        .iter()
        .enumerate()
        .filter(|(_, d)| open.space.leaves(d).contains(&group.leaf));
    let (axis, dim) = axes.next()?;
    if axes.next().is_some() {
        // An axis for heads and one for channels: an Einsum's weight.
        return None;
    }
    Some(Maker {
        side: Side::Left,
        reader,
        axis,
        blocks: blocks(open, dim, heads, group)?,
        packed: None,
    })
}

/// The entries along a dimension that are channels of `group`, by head; `None` where a
/// channel is of no head.
pub(super) fn blocks(
    open: &Analysis,
    dim: &crate::axes::Dim,
    heads: FactorId,
    group: &PruneGroup,
) -> Option<HeadBlocks> {
    let head = Kept::unit_of_index(&open.space, dim, heads)?;
    let channel = Kept::unit_of_index(&open.space, dim, group.leaf)?;
    let mut blocks = HeadBlocks::new();
    for (at, channel) in channel.iter().enumerate() {
        let Some(channel) = *channel else { continue };
        let runs = blocks.entry((*head.get(at)?)?).or_default();
        // Query heads of one key head repeat its channels.
        let run = runs.iter_mut().find(|run: &&mut Vec<usize>| run.len() == channel);
        match run {
            Some(run) => run.push(at),
            None if channel == 0 => runs.push(vec![at]),
            None => return None,
        }
    }
    let whole = blocks.values().flatten().all(|run| run.len() == group.units);
    whole.then_some(blocks)
}

/// Where the channels of one side can be watched: after its last weight or bias.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) value: ValueId,
    /// Its axes of heads and channels.
    pub(super) axes: Vec<usize>,
    /// The product of their sizes.
    pub(super) width: usize,
    /// Entries along them, by head.
    pub(super) blocks: HeadBlocks,
}

/// Where the channels of a side can be watched.
pub(super) fn seen(open: &Network, heads: FactorId, channels: &HeadChannels, side: Side) -> Option<Seen> {
    let (graph, open) = (&open.graph, &open.axes);
    let group = open.groups.get(channels.group.0)?;
    let own = channels.makers.iter().filter(|m| m.side == side);
    let place = |maker: &Maker| {
        let (node, _) = final_use(graph, maker.reader.node, maker.reader.input)?;
        let at = graph.order.iter().position(|n| *n == node)?;
        Some((at, maker.packed))
    };
    let (last, packed) = own.filter_map(place).max_by_key(|(at, _)| *at)?;
    let node = *graph.order.get(last)?;
    let value = graph.node(node).outputs.first().copied().flatten()?;
    let dims = open.facts(value).dims.as_ref()?;
    let mut all = crate::axes::Dim::one();
    let mut axes = Vec::new();
    for (axis, dim) in dims.iter().enumerate() {
        let leaves = open.space.leaves(dim);
        if leaves.contains(&heads) || leaves.contains(&group.leaf) {
            axes.push(axis);
            all = all.times(dim.clone());
        }
    }
    let whole = blocks(open, &all, heads, group)?;
    Some(Seen {
        value,
        axes,
        width: open.space.size(&all)?,
        blocks: match packed {
            Some(packed) => packed.of(&whole)?,
            None => whole,
        },
    })
}
