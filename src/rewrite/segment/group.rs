//! A group cut out of its model.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::axes::{Analysis, FactorId, GroupId};
use crate::graph::{self, Graph, NodeId, ValueId};
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::tensor::{Feeds, Tensor};
use crate::{Error, Result};

/// The operators between what a group's sources read and its sinks' outputs.
#[derive(Debug, Clone)]
pub struct GroupCut {
    /// Values that it reads: graph inputs and activations.
    pub inputs: Vec<String>,
    /// The outputs of the sinks.
    pub outputs: Vec<String>,
    whole: proto::ModelProto,
}

/// Cuts a group out of `model`: that of `dense`, or the same with units of this
/// group gone (one unit at least is left).
///
/// # Errors
/// A sink that is not in `model`.
pub fn cut(model: &proto::ModelProto, dense: &Network, group: GroupId) -> Result<GroupCut> {
    let (graph, analysis) = (&dense.graph, &dense.axes);
    let (Some(group), Some(proto)) = (analysis.groups.get(group.0), model.graph.as_ref()) else {
        return Err(Error::input("there is no such group"));
    };
    let ids: HashMap<&str, ValueId> = graph
        .values
        .iter()
        .enumerate()
        .map(|(i, v)| (v.name.as_str(), ValueId(i as u32)))
        .collect();
    let makers: HashMap<&str, usize> = proto
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    let constants = onnx::constant_names(proto);
    let mut outputs = BTreeSet::new();
    for sink in &group.sinks {
        for output in graph.node(sink.node).outputs.iter().flatten().take(1) {
            let name = &graph.value(*output).name;
            if !makers.contains_key(name.as_str()) {
                return Err(Error::input(format!(
                    "the group '{}' has lost its sink '{name}'",
                    group.name
                )));
            }
            outputs.insert(name.clone());
        }
    }
    let mut inputs = BTreeSet::new();
    let mut inside = BTreeSet::new();
    let mut used = HashSet::new();
    let mut stack: Vec<String> = outputs.iter().cloned().collect();
    while let Some(name) = stack.pop() {
        if !used.insert(name.clone()) || constants.contains(name.as_str()) {
            continue;
        }
        let known = ids.get(name.as_str()).copied();
        let border = known.is_some_and(|v| is_border(graph, analysis, group.leaf, v));
        match makers.get(name.as_str()) {
            Some(&node) if !border || outputs.contains(&name) => {
                if inside.insert(node) {
                    stack.extend(graph::node_reads(&proto.node[node]));
                }
            }
            _ => {
                inputs.insert(name);
            }
        }
    }
    let read = |name: &str| used.contains(name) && !inputs.contains(name);
    let cut = proto::GraphProto {
        name: Some("cut".into()),
        node: inside.iter().map(|i| proto.node[*i].clone()).collect(),
        initializer: proto
            .initializer
            .iter()
            .filter(|t| read(t.name()))
            .cloned()
            .collect(),
        sparse_initializer: proto
            .sparse_initializer
            .iter()
            .filter(|t| t.values.as_ref().is_some_and(|v| read(v.name())))
            .cloned()
            .collect(),
        ..Default::default()
    };
    Ok(GroupCut {
        inputs: inputs.into_iter().collect(),
        outputs: outputs.into_iter().collect(),
        whole: proto::ModelProto {
            ir_version: model.ir_version,
            opset_import: model.opset_import.clone(),
            graph: Some(cut),
            ..Default::default()
        },
    })
}

/// Whether a value comes to the group from outside: an activation that a node
/// makes that has nothing to do with it.
fn is_border(graph: &Graph, analysis: &Analysis, leaf: FactorId, value: ValueId) -> bool {
    let facts = analysis.facts(value);
    if facts.constant || facts.ints.is_some() {
        return false;
    }
    match graph.value(value).producer {
        Some((node, _)) => !touches(graph, analysis, leaf, node),
        None => true,
    }
}

/// Whether a node reads or makes the axis.
fn touches(graph: &Graph, analysis: &Analysis, leaf: FactorId, node: NodeId) -> bool {
    let carries =
        |dims: &Vec<crate::axes::Dim>| dims.iter().any(|d| analysis.space.leaves(d).contains(&leaf));
    let n = graph.node(node);
    (0..n.inputs.len()).any(|i| analysis.operand(graph, node, i).is_some_and(carries))
        || n.outputs
            .iter()
            .flatten()
            .any(|o| analysis.facts(*o).dims.as_ref().is_some_and(carries))
}

impl GroupCut {
    /// What it is fed, out of what is known.
    ///
    /// # Errors
    /// A value that is not known.
    pub fn feeds(&self, known: &Feeds) -> Result<Feeds> {
        self.inputs
            .iter()
            .map(|name| match known.get(name) {
                Some(tensor) => Ok((name.clone(), tensor.clone())),
                None => Err(Error::input(format!("the value '{name}' was not fetched"))),
            })
            .collect()
    }

    /// The model that takes such feeds, of any size.
    pub fn model(&self, feeds: &Feeds) -> proto::ModelProto {
        let mut model = self.whole.clone();
        if let Some(graph) = &mut model.graph {
            graph.input = feeds.iter().map(|(name, t)| declared(name, t)).collect();
            graph.output = self
                .outputs
                .iter()
                .map(|name| proto::ValueInfoProto {
                    name: Some(name.clone()),
                    ..Default::default()
                })
                .collect();
        }
        model
    }

    /// A model with the same inputs and outputs that computes nothing.
    pub fn empty_model(&self, feeds: &Feeds, outputs: &[Tensor]) -> proto::ModelProto {
        let mut model = self.model(feeds);
        if let Some(graph) = &mut model.graph {
            graph.node.clear();
            graph.initializer.clear();
            graph.sparse_initializer.clear();
            for (name, tensor) in self.outputs.iter().zip(outputs) {
                let constant = format!("{name}_constant");
                graph.initializer.push(onnx::tensor_proto(&constant, tensor));
                graph.node.push(proto::NodeProto {
                    op_type: Some("Identity".into()),
                    input: vec![constant],
                    output: vec![name.clone()],
                    ..Default::default()
                });
            }
        }
        model
    }

    /// What tells cuts apart that may differ in time: operators, sizes of
    /// constants, shapes of inputs; not names and values.
    pub fn signature(&self, known: &Feeds) -> String {
        let mut text = String::new();
        let Some(graph) = &self.whole.graph else {
            return text;
        };
        let sizes: HashMap<&str, &proto::TensorProto> =
            graph.initializer.iter().map(|t| (t.name(), t)).collect();
        for node in &graph.node {
            text += &format!("{}::{}(", node.domain(), node.op_type());
            for input in &node.input {
                if let Some(tensor) = sizes.get(input.as_str()) {
                    text += &format!("{:?}:{} ", tensor.dims, tensor.data_type());
                } else if let Some(tensor) = known.get(input) {
                    text += &format!("{:?}{:?} ", tensor.elem(), tensor.shape);
                } else {
                    text += "- ";
                }
            }
            text += ")";
        }
        text
    }
}

/// An input of known type and rank.
fn declared(name: &str, tensor: &Tensor) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::Dimension;
    use proto::{TensorShapeProto, TypeProto, type_proto};
    let shape = TensorShapeProto {
        dim: vec![Dimension::default(); tensor.shape.len()],
    };
    proto::ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(tensor.elem().to_onnx()),
                shape: Some(shape),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
