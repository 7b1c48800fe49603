//! The model with units masked instead of removed: a multiplication by 0 and 1
//! on each sink's input, before any quantisation of it. What a pruned model has
//! to compute.

use super::draft::Draft;
use crate::axes::Sink;
use crate::graph::{Graph, NodeId, ValueId};
use crate::mask::{Kept, Mask};
use crate::network::Network;
use crate::onnx::proto;
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// Entries of a mask, at most.
const MOST_VALUES: usize = 1 << 25;

/// Inserts the masks.
///
/// # Errors
/// An axis with symbolic parts (it is never part of a group).
pub fn masked(network: &Network, mask: &Mask) -> Result<proto::ModelProto> {
    let (graph, analysis) = (&network.graph, &network.axes);
    let mut draft = Draft::new(network, Kept::default())?;
    let kept = mask.by_factor(analysis);
    let mut done: Vec<(NodeId, usize)> = Vec::new();
    for (group, flags) in &mask.kept {
        let Some(group) = analysis.groups.get(group.0) else {
            continue;
        };
        if flags.iter().all(|k| *k) {
            continue;
        }
        for sink in &group.sinks {
            let (node, input, value) = before_quantisation(graph, sink);
            if done.contains(&(node, input)) {
                continue;
            }
            done.push((node, input));
            let dims = analysis.operand(graph, node, input).cloned().unwrap_or_default();
            let mut shape = vec![1usize; dims.len()];
            let mut values = vec![1.0f32];
            for (axis, dim) in dims.iter().enumerate() {
                if !kept.touches(&analysis.space, dim) {
                    continue;
                }
                let size = analysis.space.size(dim);
                let indices = kept.indices(&analysis.space, dim);
                let (Some(size), Some(indices)) = (size, indices) else {
                    return Err(Error::input(format!(
                        "node {} has a symbolic pruned axis",
                        graph.label(node)
                    )));
                };
                if values.len().checked_mul(size).is_none_or(|n| n > MOST_VALUES) {
                    return Err(Error::input(format!(
                        "the axes of node {} that shrink are too long for a mask",
                        graph.label(node)
                    )));
                }
                shape[axis] = size;
                let mut row = vec![0.0f32; size];
                indices.iter().for_each(|i| row[*i] = 1.0);
                values = values
                    .iter()
                    .flat_map(|v| row.iter().map(move |r| v * r))
                    .collect();
            }
            let elem = float_type(graph, sink);
            let data = match elem {
                Elem::F16 => Data::F16(values.into_iter().map(half::f16::from_f32).collect()),
                Elem::BF16 => Data::BF16(values.into_iter().map(half::bf16::from_f32).collect()),
                Elem::F64 => Data::F64(values.into_iter().map(f64::from).collect()),
                _ => Data::F32(values),
            };
            let name = graph.value(value).name.clone();
            let factor = draft.constant(&format!("{name}_mask"), &Tensor::new(shape, data));
            let output = draft.node("Mul", &name, &[&name, &factor], vec![]);
            draft.inputs.insert((node, input), output);
        }
    }
    Ok(draft.finish()?.0)
}

/// The use of the sink's activation where it is still a float; one position may
/// be cut out of what was quantised.
fn before_quantisation(graph: &Graph, sink: &Sink) -> (NodeId, usize, ValueId) {
    let mut at = (sink.node, sink.activation_input, sink.activation);
    while let Some((node, _)) = graph.value(at.2).producer
        && matches!(
            graph.node(node).op.as_str(),
            "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear" | "Slice"
        )
        && let Some(inner) = graph.input(node, 0)
    {
        at = (node, 0, inner);
    }
    at
}

/// The float type that a sink computes with.
pub fn float_type(graph: &Graph, sink: &Sink) -> Elem {
    let mut value = sink.weight;
    loop {
        if let Some(elem) = graph.value(value).elem.filter(|e| e.is_float()) {
            return elem;
        }
        let Some((node, _)) = graph.value(value).producer else {
            return Elem::F32;
        };
        let n = graph.node(node);
        let to = i32::try_from(n.int("to", 0)).ok().and_then(Elem::from_onnx);
        let next = match (n.op.as_str(), to) {
            ("Cast", Some(elem)) if elem.is_float() => return elem,
            ("DequantizeLinear", _) => graph.input(node, 1),
            _ => graph.input(node, 0),
        };
        match next {
            Some(next) => value = next,
            None => return Elem::F32,
        }
    }
}
