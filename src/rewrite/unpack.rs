//! Queries, keys and values that one reshaping takes apart: each by itself.
//!
//! ```text
//! x -> Reshape(B, N, 3, H, D) -> Transpose -> Split or Gather of the first axis -> q, k, v
//! x -> Split into three -> Reshape(B, N, H, D) -> Transpose -> q; k; v
//! ```
//!
//! Both compute the same. In the first the heads of all three have the same number of
//! channels, in the second values may have fewer than queries and keys.

use std::collections::{BTreeMap, BTreeSet};

use super::reads::{int_attribute, ints_attribute};
use crate::graph::{Graph, NodeId, ValueId};
use crate::network::Network;
use crate::onnx::proto::{AttributeProto, ModelProto, NodeProto};
use crate::onnx::{self};
use crate::tensor::Tensor;

/// `Split` takes sizes as an input from this opset on.
const SPLIT_INPUT: i64 = 13;

/// One place where three values are taken apart.
struct Packing {
    reshape: NodeId,
    transpose: NodeId,
    /// What takes the parts out, and what drops their axis.
    takes: Vec<NodeId>,
    /// The parts in order.
    parts: Vec<ValueId>,
    /// The axis that counts them, in front of heads and channels.
    axis: usize,
    perm: Vec<usize>,
    /// The size of each part.
    width: usize,
}

/// The model with every such place written the second way; `None` where there is none.
pub fn unpack(network: &Network) -> Option<ModelProto> {
    let graph = &network.graph;
    let opset = network
        .proto
        .opset_import
        .iter()
        .find(|o| ["", "ai.onnx"].contains(&o.domain()));
    if opset.is_none_or(|o| o.version() < SPLIT_INPUT) {
        return None;
    }
    let found: Vec<Packing> = (0..graph.nodes.len())
        .filter_map(|at| packing(network, NodeId(at as u32)))
        .collect();
    if found.is_empty() {
        return None;
    }
    let mut model = network.proto.clone();
    let own = model.graph.as_mut()?;
    let mut put: BTreeMap<usize, Vec<NodeProto>> = BTreeMap::new();
    let mut gone: BTreeSet<usize> = BTreeSet::new();
    for packing in &found {
        let Unpacked { nodes, constants } = packing.unpacked(graph, &own.node)?;
        put.insert(packing.reshape.0 as usize, nodes);
        own.initializer
            .extend(constants.iter().map(|(name, t)| onnx::tensor_proto(name, t)));
        gone.extend([packing.reshape, packing.transpose].map(|n| n.0 as usize));
        gone.extend(packing.takes.iter().map(|n| n.0 as usize));
    }
    let old = std::mem::take(&mut own.node);
    for (at, node) in old.into_iter().enumerate() {
        own.node.extend(put.remove(&at).into_iter().flatten());
        if !gone.contains(&at) {
            own.node.push(node);
        }
    }
    let stale: BTreeSet<&str> = found
        .iter()
        .flat_map(|p| {
            [p.reshape, p.transpose]
                .into_iter()
                .chain(p.takes.iter().copied())
        })
        .flat_map(|n| graph.node(n).outputs.iter().flatten())
        .filter(|v| !found.iter().any(|p| p.parts.contains(v)))
        .map(|v| graph.value(*v).name.as_str())
        .collect();
    own.value_info.retain(|info| !stale.contains(info.name()));
    Some(model)
}

/// The place that begins with this `Transpose`.
fn packing(network: &Network, transpose: NodeId) -> Option<Packing> {
    let graph = &network.graph;
    let node = graph.node(transpose);
    if (node.domain.as_str(), node.op.as_str()) != ("", "Transpose") {
        return None;
    }
    let perm: Vec<usize> = (node.ints("perm")?.iter())
        .map(|p| usize::try_from(*p).ok())
        .collect::<Option<_>>()?;
    let axis = *perm.first()?;
    let from = graph.input(transpose, 0)?;
    let reshape = only_maker(graph, from, "Reshape")?;
    // Heads and channels are the two axes behind that of the parts.
    if axis + 3 != perm.len() || !is_read_once(graph, from) {
        return None;
    }
    let packed = graph.input(reshape, 0)?;
    let dims = network.axes.facts(packed).dims.as_ref()?;
    let width = network.axes.space.size(dims.get(axis)?)?;
    let (takes, parts) = parts(graph, node.outputs.first().copied().flatten()?)?;
    let whole = dims.len() == axis + 1 && parts.len() == 3 && width.is_multiple_of(3);
    let listed = network.axes.facts(from).dims.as_ref()?;
    let counts = network.axes.space.size(listed.get(axis)?) == Some(3);
    (whole && counts).then_some(Packing {
        reshape,
        transpose,
        takes,
        parts,
        axis,
        perm,
        width: width / 3,
    })
}

fn only_maker(graph: &Graph, value: ValueId, op: &str) -> Option<NodeId> {
    let (node, 0) = graph.value(value).producer? else {
        return None;
    };
    let n = graph.node(node);
    (n.domain.is_empty() && n.op == op).then_some(node)
}

fn is_read_once(graph: &Graph, value: ValueId) -> bool {
    let v = graph.value(value);
    v.consumers.len() == 1 && !v.is_output
}

/// What is taken out of a value along its first axis, an entry each, in order.
fn parts(graph: &Graph, value: ValueId) -> Option<(Vec<NodeId>, Vec<ValueId>)> {
    let v = graph.value(value);
    if v.is_output {
        return None;
    }
    let mut nodes = Vec::new();
    let mut found: BTreeMap<i64, ValueId> = BTreeMap::new();
    for (id, input) in &v.consumers {
        let node = graph.node(*id);
        let first = node.int("axis", 0) == 0;
        if *input != 0 || !node.domain.is_empty() || !first {
            return None;
        }
        nodes.push(*id);
        match node.op.as_str() {
            "Gather" => {
                let index = graph.value(graph.input(*id, 1)?).constant.as_ref()?;
                let at = index.shape.is_empty().then_some(*index.ints.as_ref()?.first()?)?;
                let output = node.outputs.first().copied().flatten()?;
                if !(-3..3).contains(&at) || found.insert(at.rem_euclid(3), output).is_some() {
                    return None;
                }
            }
            "Split" => {
                for (at, output) in node.outputs.iter().enumerate() {
                    let output = (*output).filter(|o| is_read_once(graph, *o))?;
                    let (squeeze, 0) = *graph.value(output).consumers.first()? else {
                        return None;
                    };
                    let n = graph.node(squeeze);
                    let axes = graph.input(squeeze, 1)?;
                    let axes = graph.value(axes).constant.as_ref()?.ints.as_deref()?;
                    if n.op != "Squeeze" || axes != [0] {
                        return None;
                    }
                    nodes.push(squeeze);
                    if found
                        .insert(at as i64, n.outputs.first().copied().flatten()?)
                        .is_some()
                    {
                        return None;
                    }
                }
            }
            _ => return None,
        }
    }
    let whole = found.keys().copied().eq(0..3) && found.values().all(|v| !graph.value(*v).is_output);
    whole.then(|| (nodes, found.into_values().collect()))
}

/// What stands in place of a packing.
struct Unpacked {
    nodes: Vec<NodeProto>,
    constants: Vec<(String, Tensor)>,
}

impl Packing {
    /// The nodes and constants in place of these.
    fn unpacked(&self, graph: &Graph, old: &[NodeProto]) -> Option<Unpacked> {
        let reshape = old.get(self.reshape.0 as usize)?;
        let base = reshape.output.first()?.clone();
        let name = |what: &str| format!("{base}_{what}");
        let node =
            |op: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>| NodeProto {
                name: Some(format!("{}_{op}", output.first().cloned().unwrap_or_default())),
                op_type: Some(op.to_owned()),
                input,
                output,
                attribute,
                ..NodeProto::default()
            };
        let mut constants = vec![(name("widths"), Tensor::i64([3], vec![self.width as i64; 3]))];
        let slices: Vec<String> = (0..3).map(|i| name(&format!("part_{i}"))).collect();
        let mut nodes = vec![node(
            "Split",
            vec![reshape.input.first()?.clone(), name("widths")],
            slices.clone(),
            vec![int_attribute("axis", self.axis as i64)],
        )];
        let shape = graph.input(self.reshape, 1)?;
        let entries: Vec<usize> = (0..self.perm.len()).filter(|at| *at != self.axis).collect();
        let known = graph.value(shape).constant.as_ref().and_then(|c| c.ints.as_ref());
        if known.is_none() {
            let wanted = entries.iter().map(|e| *e as i64).collect();
            constants.push((name("entries"), Tensor::i64([entries.len()], wanted)));
        }
        let perm = self.perm.iter().skip(1);
        let perm: Vec<usize> = perm.map(|p| if *p > self.axis { p - 1 } else { *p }).collect();
        for ((i, part), out) in slices.into_iter().enumerate().zip(&self.parts) {
            let own = name(&format!("shape_{i}"));
            match known {
                Some(shape) => {
                    let kept: Option<Vec<i64>> = entries.iter().map(|e| shape.get(*e).copied()).collect();
                    constants.push((own.clone(), Tensor::i64([entries.len()], kept?)));
                }
                None => nodes.push(node(
                    "Gather",
                    vec![reshape.input.get(1)?.clone(), name("entries")],
                    vec![own.clone()],
                    vec![int_attribute("axis", 0)],
                )),
            }
            let (reshaped, output) = (name(&format!("heads_{i}")), graph.value(*out).name.clone());
            let mut again = node("Reshape", vec![part, own], vec![reshaped.clone()], Vec::new());
            again.attribute = reshape.attribute.clone();
            nodes.push(again);
            let turned = vec![ints_attribute("perm", perm.iter().map(|p| *p as i64).collect())];
            nodes.push(node("Transpose", vec![reshaped], vec![output], turned));
        }
        Some(Unpacked { nodes, constants })
    }
}
