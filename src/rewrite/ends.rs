//! The ends of a graph that no engine runs: a tokenizer in front that reads strings, an
//! operator of the user's own behind. A run measures and prunes the graph between them;
//! what is written has them again.

use std::collections::{BTreeSet, HashSet};

use super::inner::mend;
use crate::graph::node_reads;
use crate::onnx;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::tensor::Elem;
use crate::{Error, Result};

/// The code of strings among element types.
const STRING: i32 = 8;

/// Domains whose operators are standard or come with ONNX Runtime.
const KNOWN: [&str; 6] = [
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "com.microsoft.nchwc",
    "ai.onnx.preview",
];

/// Whether a node makes token ids of rows and positions out of those of a tokenizer.
fn shapes_ids(graph: &GraphProto, node: &NodeProto) -> bool {
    match node.op_type() {
        "Identity" | "Reshape" | "Squeeze" => true,
        "Cast" => {
            let integers = [Elem::I32.to_onnx(), Elem::I64.to_onnx()].map(i64::from);
            node.attribute
                .iter()
                .any(|a| a.name() == "to" && integers.contains(&a.i()))
        }
        "Unsqueeze" => {
            let own = node
                .attribute
                .iter()
                .find(|a| a.name() == "axes")
                .map(|a| a.ints.clone());
            own.or_else(|| ints_of(graph, node.input.get(1)?)) == Some(vec![0])
        }
        _ => false,
    }
}

/// The values of a constant of integers.
fn ints_of(graph: &GraphProto, name: &str) -> Option<Vec<i64>> {
    let held = graph.initializer.iter().find(|t| t.name() == name).cloned();
    let made = || {
        let node = graph
            .node
            .iter()
            .find(|n| n.op_type() == "Constant" && n.output.iter().any(|o| o == name))?;
        let listed = node.attribute.iter().find(|a| a.name() == "value_ints");
        match listed {
            Some(listed) => return Some(listed.ints.clone()),
            None => node.attribute.iter().find_map(|a| a.t.clone()),
        }
        .and_then(|t| onnx::tensor(&t).ok()?.to_i64())
    };
    match held {
        Some(tensor) => onnx::tensor(&tensor).ok()?.to_i64(),
        None => made(),
    }
}

/// What was cut off.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    nodes: Vec<NodeProto>,
    /// Constants of these nodes.
    constants: Vec<TensorProto>,
    /// The inputs in place of which the graph has others.
    inputs: Option<Vec<ValueInfoProto>>,
    /// The outputs in place of which the graph has others.
    outputs: Option<Vec<ValueInfoProto>>,
    /// Operators that were cut off, by name.
    pub operators: BTreeSet<String>,
}

impl Ends {
    /// The model with what was cut off.
    ///
    /// # Errors
    /// A model without a graph.
    pub fn attach(&self, model: &ModelProto) -> Result<ModelProto> {
        let mut model = model.clone();
        let graph = model
            .graph
            .as_mut()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        let middle = std::mem::take(&mut graph.node);
        let (front, behind): (Vec<NodeProto>, Vec<NodeProto>) = match self.inputs {
            Some(_) => (self.nodes.clone(), Vec::new()),
            None => (Vec::new(), self.nodes.clone()),
        };
        // Constants that are nodes may be needed at both sides.
        let made: HashSet<String> = middle.iter().flat_map(|n| n.output.iter().cloned()).collect();
        let behind = behind
            .into_iter()
            .filter(|n| !n.output.iter().any(|o| !o.is_empty() && made.contains(o)));
        graph.node = front.into_iter().chain(middle).chain(behind).collect();
        let held: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        let missing = self.constants.iter().filter(|t| !held.contains(t.name()));
        let missing: Vec<TensorProto> = missing.cloned().collect();
        graph.initializer.extend(missing);
        // What is still there may have other sizes.
        if let Some(inputs) = &self.inputs {
            let middle = std::mem::replace(&mut graph.input, inputs.clone());
            mend(&mut graph.input, &middle);
        }
        if let Some(outputs) = &self.outputs {
            let middle = std::mem::replace(&mut graph.output, outputs.clone());
            mend(&mut graph.output, &middle);
        }
        Ok(model)
    }
}

fn name(node: &NodeProto) -> String {
    match node.domain() {
        "" => node.op_type().to_owned(),
        domain => format!("{domain}::{}", node.op_type()),
    }
}

/// The constants that some nodes read.
fn constants_of(graph: &GraphProto, nodes: &[NodeProto]) -> Vec<TensorProto> {
    let read: HashSet<String> = nodes.iter().flat_map(node_reads).collect();
    let own = graph.initializer.iter().filter(|t| read.contains(t.name()));
    own.cloned().collect()
}

/// Drops constants that nothing reads any more.
fn keep_used(graph: &mut GraphProto) {
    let mut read: HashSet<String> = graph.node.iter().flat_map(node_reads).collect();
    read.extend(graph.output.iter().map(|o| o.name().to_owned()));
    graph.initializer.retain(|t| read.contains(t.name()));
}

/// The model without what reads strings; `None` where nothing does. What is left takes
/// token ids of rows and positions.
pub fn without_strings(model: &ModelProto) -> Option<(ModelProto, Ends)> {
    let graph = model.graph.as_ref()?;
    let of_strings = |info: &&ValueInfoProto| onnx::element_type(info) == Some(STRING);
    let strings: HashSet<&str> = graph.input.iter().filter(of_strings).map(|i| i.name()).collect();
    if strings.is_empty() {
        return None;
    }
    let mut known: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    known.retain(|name| !strings.contains(name));
    // What the tokenizer makes, and what that is made into.
    let mut own: HashSet<&str> = strings.clone();
    let (mut front, mut rest) = (Vec::new(), Vec::new());
    for node in &graph.node {
        let reads = node_reads(node);
        let inputs = || reads.iter().map(String::as_str).filter(|i| !i.is_empty());
        let only = inputs().all(|i| own.contains(i) || known.contains(i));
        let behind = inputs().any(|i| own.contains(i));
        if node.op_type() == "Constant" && node.input.is_empty() {
            known.extend(node.output.iter().map(String::as_str));
        }
        let reads_strings = inputs().any(|i| strings.contains(i)) || !KNOWN.contains(&node.domain());
        if only && behind && (reads_strings || shapes_ids(graph, node)) {
            own.extend(node.output.iter().map(String::as_str));
            front.push(node.clone());
        } else {
            rest.push(node.clone());
        }
    }
    // Constants that are nodes are needed at both sides: in front under another name.
    let read: HashSet<String> = front.iter().flat_map(node_reads).collect();
    let copied: Vec<NodeProto> = rest
        .iter()
        .filter(|n| n.op_type() == "Constant" && n.output.iter().any(|o| read.contains(o)))
        .map(|n| NodeProto {
            output: n.output.iter().map(|o| in_front(o)).collect(),
            ..n.clone()
        })
        .collect();
    let moved: HashSet<String> = copied.iter().flat_map(|n| n.output.iter().cloned()).collect();
    // A subgraph that captures one of them would have to be renamed inside.
    let captures = |n: &NodeProto| {
        let inputs: HashSet<&String> = n.input.iter().collect();
        node_reads(n)
            .iter()
            .any(|r| !inputs.contains(r) && moved.contains(&in_front(r)))
    };
    if front.iter().any(captures) {
        return None;
    }
    let read: HashSet<String> = rest.iter().flat_map(node_reads).collect();
    let given: Vec<ValueInfoProto> = front
        .iter()
        .flat_map(|n| &n.output)
        .filter(|o| read.contains(*o))
        .map(|o| token_ids(o))
        .collect();
    if given.is_empty() || graph.output.iter().any(|o| own.contains(o.name())) {
        return None;
    }
    let mut ends = Ends {
        constants: constants_of(graph, &front),
        inputs: Some(graph.input.clone()),
        operators: front.iter().filter(|n| !shapes_ids(graph, n)).map(name).collect(),
        ..Ends::default()
    };
    let mut middle = graph.clone();
    middle.node = rest;
    middle.input.retain(|i| !own.contains(i.name()));
    middle.input.extend(given);
    let given: HashSet<&str> = middle.input.iter().map(|i| i.name()).collect();
    middle
        .value_info
        .retain(|i| !own.contains(i.name()) && !given.contains(i.name()));
    let renamed = |node: &NodeProto| NodeProto {
        input: node
            .input
            .iter()
            .map(|i| match moved.contains(&in_front(i)) {
                true => in_front(i),
                false => i.clone(),
            })
            .collect(),
        ..node.clone()
    };
    let front: Vec<NodeProto> = front.iter().map(renamed).collect();
    ends.nodes = copied.into_iter().chain(front).collect();
    keep_used(&mut middle);
    let model = ModelProto {
        graph: Some(middle),
        ..model.clone()
    };
    Some((model, ends))
}

/// The name of a constant in front of the cut.
fn in_front(name: &str) -> String {
    format!("{name}_in_front")
}

/// An input of token ids.
fn token_ids(name: &str) -> ValueInfoProto {
    let axis = |symbol: &str| Dimension {
        value: Some(dimension::Value::DimParam(symbol.to_owned())),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(Elem::I64.to_onnx()),
        shape: Some(TensorShapeProto {
            dim: vec![axis("batch"), axis("sequence")],
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// Whether a model has operators that are neither standard nor ONNX Runtime's own.
pub fn has_foreign(model: &ModelProto) -> bool {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.into_iter().any(|n| !KNOWN.contains(&n.domain()))
}

/// The model without operators that are neither standard nor ONNX Runtime's own and all
/// that comes after them; `None` where there are none, or nothing is left.
pub fn without_foreign(model: &ModelProto) -> Option<(ModelProto, Ends)> {
    let graph = model.graph.as_ref()?;
    let mut own: HashSet<&str> = HashSet::new();
    let (mut behind, mut rest) = (Vec::new(), Vec::new());
    for node in &graph.node {
        let after = node_reads(node).iter().any(|i| own.contains(i.as_str()));
        if after || !KNOWN.contains(&node.domain()) {
            own.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
            behind.push(node.clone());
        } else {
            rest.push(node.clone());
        }
    }
    if behind.is_empty() {
        return None;
    }
    let made: HashSet<&str> = rest.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let constants: HashSet<&str> = rest
        .iter()
        .filter(|n| n.op_type() == "Constant")
        .flat_map(|n| &n.output)
        .map(String::as_str)
        .collect();
    let mut outputs: Vec<ValueInfoProto> = graph
        .output
        .iter()
        .filter(|o| !own.contains(o.name()))
        .cloned()
        .collect();
    let known: HashSet<String> = outputs.iter().map(|o| o.name().to_owned()).collect();
    let mut wanted: BTreeSet<String> = behind.iter().flat_map(node_reads).collect();
    wanted.retain(|v| made.contains(v.as_str()) && !constants.contains(v.as_str()) && !known.contains(v));
    outputs.extend(wanted.iter().map(|value| {
        let info = graph.value_info.iter().find(|i| i.name() == value);
        info.cloned().unwrap_or_else(|| ValueInfoProto {
            name: Some(value.clone()),
            ..ValueInfoProto::default()
        })
    }));
    if outputs.is_empty() {
        return None;
    }
    let needed: HashSet<String> = behind.iter().flat_map(node_reads).collect();
    let read_constants = rest
        .iter()
        .filter(|n| n.op_type() == "Constant" && n.output.iter().any(|o| needed.contains(o)))
        .cloned();
    let ends = Ends {
        constants: constants_of(graph, &behind),
        outputs: Some(graph.output.clone()),
        operators: behind
            .iter()
            .filter(|n| !KNOWN.contains(&n.domain()))
            .map(name)
            .collect(),
        nodes: read_constants.chain(behind.iter().cloned()).collect(),
        inputs: None,
    };
    let mut middle = graph.clone();
    middle.node = rest;
    middle.output = outputs;
    let named: HashSet<&str> = middle.output.iter().map(|o| o.name()).collect();
    middle
        .value_info
        .retain(|i| !own.contains(i.name()) && !named.contains(i.name()));
    keep_used(&mut middle);
    let model = ModelProto {
        graph: Some(middle),
        ..model.clone()
    };
    Some((model, ends))
}
