//! A model of the nodes between two cuts.

use std::collections::BTreeSet;

use crate::graph::{Graph, NodeId, ValueId};
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// A value that a piece is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// The value: of a node, of the graph's inputs, or a constant that is to be
    /// fed.
    pub value: ValueId,
    /// Its type.
    pub elem: Elem,
    /// Its number of axes.
    pub rank: usize,
}

impl Boundary {
    /// That of a value that is this tensor.
    pub fn of(value: ValueId, tensor: &Tensor) -> Self {
        Self {
            value,
            elem: tensor.elem(),
            rank: tensor.shape.len(),
        }
    }
}

/// The model that computes `outputs` from `inputs` and constants.
///
/// # Errors
/// An output that depends on a graph input that is not given.
pub fn piece(network: &Network, inputs: &[Boundary], outputs: &[ValueId]) -> Result<proto::ModelProto> {
    let (model, graph, whole) = (&network.proto, &network.graph, network.main()?);
    let given: BTreeSet<ValueId> = inputs.iter().map(|b| b.value).collect();
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut constants: BTreeSet<&str> = BTreeSet::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut seen = vec![false; graph.values.len()];
    let mut stack = outputs.to_vec();
    while let Some(value) = stack.pop() {
        if std::mem::replace(&mut seen[value.0 as usize], true) || given.contains(&value) {
            continue;
        }
        let v = graph.value(value);
        names.insert(&v.name);
        match v.producer {
            Some((node, _)) => {
                nodes.insert(node);
                let n = graph.node(node);
                stack.extend(n.inputs.iter().flatten());
                stack.extend(&n.captures);
            }
            None if graph.inputs.contains(&value) => {
                return Err(Error::input(format!(
                    "a piece of the graph reads the input '{}', which is not given to it",
                    v.name
                )));
            }
            None => {
                constants.insert(&v.name);
            }
        }
    }
    let given_names: BTreeSet<&str> = given.iter().map(|v| graph.value(*v).name.as_str()).collect();
    let body = graph
        .order
        .iter()
        .filter(|n| nodes.contains(n))
        .filter_map(|n| Some(without_given(whole.node.get(n.0 as usize)?.clone(), &given_names)))
        .collect();
    let named = |name: &str| names.contains(name);
    let sparse =
        |t: &&proto::SparseTensorProto| t.values.as_ref().is_some_and(|v| constants.contains(v.name()));
    let info = |value: ValueId| {
        let name = &graph.value(value).name;
        whole.output.iter().find(|o| o.name() == name).cloned()
    };
    Ok(proto::ModelProto {
        graph: Some(proto::GraphProto {
            name: whole.name.clone(),
            node: body,
            initializer: whole
                .initializer
                .iter()
                .filter(|t| constants.contains(t.name()))
                .cloned()
                .collect(),
            sparse_initializer: whole.sparse_initializer.iter().filter(sparse).cloned().collect(),
            input: inputs.iter().map(|b| declared(graph, b)).collect(),
            output: outputs
                .iter()
                .map(|o| {
                    info(*o).unwrap_or_else(|| proto::ValueInfoProto {
                        name: Some(graph.value(*o).name.clone()),
                        ..Default::default()
                    })
                })
                .collect(),
            value_info: whole
                .value_info
                .iter()
                .filter(|i| named(i.name()) && !outputs.iter().any(|o| graph.value(*o).name == i.name()))
                .cloned()
                .collect(),
            ..Default::default()
        }),
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        ..Default::default()
    })
}

/// A node that is there for one of its outputs, while another is given to the piece (as the
/// sum that a fused normalisation gives beside its result): that one gets another name.
fn without_given(mut node: proto::NodeProto, given: &BTreeSet<&str>) -> proto::NodeProto {
    for output in &mut node.output {
        if given.contains(output.as_str()) {
            output.push_str("/again");
        }
    }
    node
}

/// A piece with constants in place of some of its inputs, by name: an engine lays these
/// out once instead of in every run.
///
/// # Errors
/// A piece without a graph.
pub fn with_constants<'a>(
    mut piece: proto::ModelProto,
    constants: impl Iterator<Item = (&'a String, &'a Tensor)>,
) -> Result<proto::ModelProto> {
    let graph = piece
        .graph
        .as_mut()
        .ok_or_else(|| Error::input("the piece has no graph"))?;
    for (name, tensor) in constants {
        let before = graph.input.len();
        graph.input.retain(|i| i.name() != name);
        if graph.input.len() < before {
            graph.initializer.push(onnx::tensor_proto(name, tensor));
        }
    }
    Ok(piece)
}

fn declared(graph: &Graph, boundary: &Boundary) -> proto::ValueInfoProto {
    use proto::type_proto::{Tensor, Value};
    let shape = proto::TensorShapeProto {
        dim: vec![Default::default(); boundary.rank],
    };
    proto::ValueInfoProto {
        name: Some(graph.value(boundary.value).name.clone()),
        r#type: Some(proto::TypeProto {
            value: Some(Value::TensorType(Tensor {
                elem_type: Some(boundary.elem.to_onnx()),
                shape: Some(shape),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
