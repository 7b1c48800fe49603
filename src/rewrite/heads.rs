//! Outputs over a vocabulary, at some positions only.
//!
//! A language model has as many logits per position as its vocabulary has words: all of them
//! at all positions are more than everything else in it, in memory and, for a small model, in
//! time. What positions have in common with the dense model can be told from some of them, so
//! the last product is made there only: its activation is gathered along the positions before.

use crate::data::POSITIONS;
use crate::graph::operators::{is_broadcast, is_unary};
use crate::graph::{Graph, ValueId};
use crate::network::Network;
use crate::onnx::proto::{self, NodeProto, ValueInfoProto};
use crate::rewrite::reads::int_attribute;

/// Outputs with fewer entries per position are looked at everywhere.
const WIDE: usize = 4096;

/// The axis of positions in the activation and the output of a head.
const AXIS: usize = 1;

/// The product that makes an output of each position.
#[derive(Debug, Clone)]
pub struct OutputHead {
    /// The value that is multiplied.
    activation: String,
    /// What the nodes from the product to the output make, the product first.
    made: Vec<String>,
}

impl OutputHead {
    /// The head of the first of `outputs` that has one: it is wide enough, and nothing but
    /// operators that treat every position alike lies behind the product.
    pub fn of(network: &Network, outputs: &[ValueId]) -> Option<Self> {
        outputs.iter().find_map(|output| Self::behind(network, *output))
    }

    fn behind(network: &Network, output: ValueId) -> Option<Self> {
        let (graph, axes) = (&network.graph, &network.axes);
        let mut value = output;
        let mut made = Vec::new();
        loop {
            made.push(graph.value(value).name.clone());
            let (node, _) = graph.value(value).producer?;
            let contraction = axes.contractions.iter().find(|c| c.node == node);
            if let Some(c) = contraction {
                if c.inner || c.constant != [false, true] {
                    return None;
                }
                let activation = graph.input(node, c.inputs[0])?;
                let dims = axes.facts(activation).dims.as_ref()?;
                let [(axis, ..)] = c.contracted[..] else {
                    return None;
                };
                let words = match &c.free[1][..] {
                    [words] => axes.space.size(words),
                    _ => None,
                };
                let plain = dims.len() == 3 && axis == 2 && words.is_some_and(|n| n >= WIDE);
                made.reverse();
                return plain.then(|| Self {
                    activation: graph.value(activation).name.clone(),
                    made,
                });
            }
            let n = graph.node(node);
            let alike = matches!(n.op.as_str(), "Cast" | "Identity") && n.domain.is_empty()
                || is_unary(&n.domain, &n.op)
                || is_broadcast(&n.domain, &n.op);
            let mut varying =
                (n.inputs.iter().flatten().copied()).filter(|v| graph.value(*v).constant.is_none());
            let next = varying.next()?;
            if !alike || varying.next().is_some() || !n.inputs.iter().flatten().all(|v| is_flat(graph, *v)) {
                return None;
            }
            value = next;
        }
    }

    /// The model with its output at the positions that [`POSITIONS`] gives; `None` where it
    /// has no such head any more.
    pub fn sampled(&self, model: &proto::ModelProto) -> Option<proto::ModelProto> {
        let mut model = model.clone();
        let graph = model.graph.as_mut()?;
        let first = self.made.first()?;
        let at = graph.node.iter().position(|n| n.output.contains(first))?;
        let gathered = format!("{POSITIONS}/of/{}", self.activation);
        let reads = graph.node[at].input.iter_mut().find(|i| **i == self.activation)?;
        reads.clone_from(&gathered);
        graph.node.insert(
            at,
            NodeProto {
                op_type: Some("Gather".into()),
                name: Some(gathered.clone()),
                input: vec![self.activation.clone(), POSITIONS.into()],
                output: vec![gathered],
                attribute: vec![int_attribute("axis", AXIS as i64)],
                ..NodeProto::default()
            },
        );
        graph.input.push(integers());
        graph
            .value_info
            .retain(|info| !self.made.iter().any(|name| name == info.name()));
        for info in graph
            .output
            .iter_mut()
            .filter(|o| self.made.iter().any(|name| name == o.name()))
        {
            if let Some(proto::type_proto::Value::TensorType(tensor)) =
                info.r#type.as_mut().and_then(|t| t.value.as_mut())
                && let Some(dim) = tensor.shape.as_mut().and_then(|s| s.dim.get_mut(AXIS))
            {
                *dim = proto::tensor_shape_proto::Dimension::default();
            }
        }
        Some(model)
    }
}

/// A value of a head's chain: not a constant, or one with nothing but a last axis.
fn is_flat(graph: &Graph, value: ValueId) -> bool {
    let constant = graph.value(value).constant.as_ref();
    constant.is_none_or(|c| c.shape.iter().rev().skip(1).all(|d| *d == 1))
}

/// [`POSITIONS`] as an input.
fn integers() -> ValueInfoProto {
    use proto::type_proto::{Tensor, Value};
    ValueInfoProto {
        name: Some(POSITIONS.into()),
        r#type: Some(proto::TypeProto {
            value: Some(Value::TensorType(Tensor {
                elem_type: Some(crate::tensor::Elem::I64.to_onnx()),
                shape: Some(proto::TensorShapeProto {
                    dim: vec![Default::default()],
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
