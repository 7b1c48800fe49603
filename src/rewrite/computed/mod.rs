//! Weights that are computed from constants: pruned and re-fitted as one constant each.
//!
//! ```text
//! int8 -> Cast -> Mul(scale) -> reader            float weight -> reader
//! W, A, B -> Add(W, MatMul(A, B)) -> reader       float weight -> reader
//! ```
//!
//! [`open`] makes the model on the right; [`Computed::close`] writes what changed as it
//! came, where it came as integers with scales, else as the one constant that it is now.
//! What did not change is computed as before.

mod scaled;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use self::scaled::CastMul;
use crate::graph::node_reads;
use crate::graph::sweep::{Swept, sweep};
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto};
use crate::onnx::{self, proto};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// Operators that weights are computed with. Those that make large values of nothing (a
/// mask, a table of angles) are not among them.
const COMPUTES: [&str; 17] = [
    "Add",
    "Cast",
    "Concat",
    "DequantizeLinear",
    "Div",
    "Gemm",
    "Identity",
    "MatMul",
    "Mul",
    "Neg",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
];

/// How much larger than all constants a value that is computed from them may be.
const MOST_GROWTH: usize = 8;

fn elements_of(dims: &[i64]) -> usize {
    let sizes = dims.iter().map(|d| usize::try_from(*d).unwrap_or(usize::MAX));
    sizes.fold(1, usize::saturating_mul)
}

/// The most elements that one of the nodes may make: those of what it reads, but for sums
/// and products, which may be as large as both together make them.
fn largest(nodes: &[NodeProto], constants: &[proto::TensorProto]) -> usize {
    let mut shapes: HashMap<&str, Option<Vec<i64>>> = constants
        .iter()
        .map(|t| (t.name(), Some(t.dims.clone())))
        .collect();
    let mut most = 0;
    for node in nodes {
        let shape = |at: usize| shapes.get(node.input.get(at)?.as_str())?.clone();
        let made = match (node.op_type(), shape(0), shape(1)) {
            ("Add" | "Sub" | "Mul" | "Div", Some(a), Some(b)) => {
                let rank = a.len().max(b.len());
                let at = |dims: &[i64], i: usize| match (i + dims.len()).checked_sub(rank) {
                    Some(own) => dims[own],
                    None => 1,
                };
                Some((0..rank).map(|i| at(&a, i).max(at(&b, i))).collect())
            }
            ("MatMul" | "Gemm", Some(a), Some(b)) => {
                let (rows, columns) = (a.iter().rev().skip(1), b.last());
                Some(rows.chain(columns).copied().collect())
            }
            ("Constant", ..) => {
                let value = node.attribute.iter().find_map(|a| a.t.as_ref());
                value.map(|t| t.dims.clone())
            }
            // The others make nothing that is larger than what they read.
            (_, a, _) => a,
        };
        most = most.max(made.as_deref().map_or(0, elements_of));
        for output in &node.output {
            shapes.insert(output, made.clone());
        }
    }
    most
}

/// A constant that was computed.
struct Folded {
    name: String,
    /// What it was computed to be.
    value: proto::TensorProto,
    /// Where it was made of integers by a cast and a multiplication.
    integers: Option<CastMul>,
}

/// How to get back to a model whose weights are computed.
pub struct Computed {
    folded: Vec<Folded>,
    /// The nodes that computed them and their constants.
    nodes: Vec<NodeProto>,
    constants: Vec<proto::TensorProto>,
}

/// How the weights of a result are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// How many are integers with scales.
    pub integers: usize,
    /// The names of those that are one constant now and were computed before.
    pub constants: Vec<String>,
}

/// Which values of a graph are constants, and which nodes make them.
struct ConstantValues<'g> {
    graph: &'g GraphProto,
    /// By value: whether more than a transposition or a change of type made it.
    known: HashMap<&'g str, bool>,
    /// Element types, where they are known.
    elements: HashMap<&'g str, Elem>,
    nodes: Vec<usize>,
}

/// Whether a node keeps the values that it is given, where weights are looked for through
/// it anyway.
fn is_plain(node: &NodeProto, from: Option<Elem>) -> bool {
    match node.op_type() {
        "Identity" | "Transpose" => true,
        "Cast" => from.is_none_or(Elem::is_float),
        _ => false,
    }
}

impl<'g> ConstantValues<'g> {
    fn of(graph: &'g GraphProto) -> Self {
        let given: HashSet<&str> = graph.input.iter().map(|i| i.name()).collect();
        let mut elements: HashMap<&str, Elem> = HashMap::new();
        let mut known: HashMap<&str, bool> = HashMap::new();
        for tensor in graph.initializer.iter().filter(|t| !given.contains(t.name())) {
            known.insert(tensor.name(), false);
            elements.extend(Elem::from_onnx(tensor.data_type()).map(|elem| (tensor.name(), elem)));
        }
        let mut nodes = Vec::new();
        for (at, node) in graph.node.iter().enumerate() {
            let inputs: Vec<&str> = node
                .input
                .iter()
                .map(String::as_str)
                .filter(|i| !i.is_empty())
                .collect();
            let standard = node.domain().is_empty() || node.domain() == "ai.onnx";
            let constant = match node.op_type() {
                "Constant" => node.attribute.iter().any(|a| a.name() == "value"),
                op => {
                    COMPUTES.contains(&op)
                        && !inputs.is_empty()
                        && inputs.iter().all(|i| known.contains_key(i))
                }
            };
            if !standard || !constant {
                continue;
            }
            nodes.push(at);
            let from = inputs.first().and_then(|i| elements.get(i)).copied();
            let computed = match node.op_type() {
                "Constant" => false,
                _ => !is_plain(node, from) || inputs.iter().any(|i| known[i]),
            };
            let to = match node.op_type() {
                "Cast" => {
                    let to = node.attribute.iter().find(|a| a.name() == "to");
                    to.and_then(|a| Elem::from_onnx(i32::try_from(a.i()).ok()?))
                }
                "Constant" => {
                    let value = node.attribute.iter().find_map(|a| a.t.as_ref());
                    value.and_then(|t| Elem::from_onnx(t.data_type()))
                }
                "DequantizeLinear" => inputs.get(1).and_then(|i| elements.get(i)).copied(),
                _ => from,
            };
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                known.insert(output, computed);
                elements.extend(to.map(|elem| (output.as_str(), elem)));
            }
        }
        ConstantValues {
            graph,
            known,
            elements,
            nodes,
        }
    }

    /// Values that are computed and that something else reads, through plain nodes or not:
    /// the last that more than these made.
    fn read(&self) -> Vec<&'g str> {
        let outputs: HashSet<&str> = self.graph.output.iter().map(|o| o.name()).collect();
        let own: HashSet<usize> = self.nodes.iter().copied().collect();
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        let others = self
            .graph
            .node
            .iter()
            .enumerate()
            .filter(|(at, _)| !own.contains(at));
        let mut read: HashSet<String> = others.flat_map(|(_, node)| node_reads(node)).collect();
        // From the last to the first: what a plain node hands on is what it reads.
        for at in self.nodes.iter().rev() {
            let node = &self.graph.node[*at];
            let is_read = node.output.iter().any(|o| read.contains(o.as_str()));
            if !is_read {
                continue;
            }
            let plain = matches!(node.op_type(), "Identity" | "Transpose");
            let handed_on: Vec<&String> = node.output.iter().filter(|o| read.contains(*o)).collect();
            for output in handed_on {
                if !self.known[output.as_str()] {
                    continue;
                }
                match plain {
                    true => read.extend(node.input.first().cloned()),
                    false => _ = wanted.insert(output.as_str()),
                }
            }
        }
        wanted.retain(|value| !outputs.contains(value));
        wanted.into_iter().collect()
    }
}

/// The model with one constant in place of each that is computed; `None` where there are
/// none.
///
/// `evaluate` computes values of a graph without inputs.
///
/// # Errors
/// Those of `evaluate`.
pub fn open(
    model: &ModelProto,
    evaluate: impl FnOnce(&ModelProto, &[String]) -> Result<Vec<Tensor>>,
) -> Result<Option<(ModelProto, Computed)>> {
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let constants = ConstantValues::of(graph);
    let names: Vec<String> = constants.read().into_iter().map(str::to_owned).collect();
    if names.is_empty() {
        return Ok(None);
    }
    // Only what the values are computed from goes to the engine.
    let chain: Vec<NodeProto> = constants.nodes.iter().map(|at| graph.node[*at].clone()).collect();
    let Swept { nodes, used, .. } = sweep(chain, names.clone())?;
    let inputs: Vec<proto::TensorProto> = graph
        .initializer
        .iter()
        .filter(|t| used.contains(t.name()))
        .cloned()
        .collect();
    let only = ModelProto {
        graph: Some(GraphProto {
            name: graph.name.clone(),
            node: nodes.clone(),
            initializer: inputs.clone(),
            ..GraphProto::default()
        }),
        functions: Vec::new(),
        ..model.clone()
    };
    let taken: HashSet<&str> = (graph.initializer.iter().map(|t| t.name()))
        .chain(graph.input.iter().map(|i| i.name()))
        .chain(graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
        .collect();
    let held: usize = inputs
        .iter()
        .map(|t| elements_of(&t.dims))
        .fold(0, usize::saturating_add);
    if largest(&nodes, &inputs) > held.saturating_mul(MOST_GROWTH) {
        return Ok(None);
    }
    let values = evaluate(&only, &names)?;
    let mut folded = Vec::new();
    for (name, value) in names.into_iter().zip(values) {
        // An engine without kernels for half precision computes in float32.
        let value = match constants.elements.get(name.as_str()) {
            Some(elem) if elem.is_float() && *elem != value.elem() => {
                let values: Vec<f64> = value.to_f32().into_iter().map(f64::from).collect();
                Tensor::rounded(value.shape.clone(), &values, *elem)
            }
            _ => value,
        };
        if value.elem().is_float() && !value.is_empty() {
            folded.push(Folded {
                integers: CastMul::of(&name, &nodes, &inputs)?.map(|form| form.apart_from(&taken)),
                value: onnx::tensor_proto(&name, &value),
                name,
            });
        }
    }
    if folded.is_empty() {
        return Ok(None);
    }
    let mut opened = graph.clone();
    let made: HashSet<&str> = folded.iter().map(|f| f.name.as_str()).collect();
    // A node may have made others besides.
    for node in &mut opened.node {
        for output in node.output.iter_mut().filter(|o| made.contains(o.as_str())) {
            output.push_str("_computed");
        }
    }
    opened.initializer.extend(folded.iter().map(|f| f.value.clone()));
    let opened = swept(opened)?;
    let opened = ModelProto {
        graph: Some(opened),
        ..model.clone()
    };
    let computed = Computed {
        folded,
        nodes,
        constants: inputs,
    };
    Ok(Some((opened, computed)))
}

/// A graph without nodes and constants that nothing reads.
fn swept(mut graph: GraphProto) -> Result<GraphProto> {
    let outputs = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let Swept { nodes, used, .. } = sweep(std::mem::take(&mut graph.node), outputs)?;
    graph.node = nodes;
    graph.initializer.retain(|t| used.contains(t.name()));
    let known: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph
        .value_info
        .retain(|i| used.contains(i.name()) && !known.contains(i.name()));
    Ok(graph)
}

impl Computed {
    /// The model as it came: what changed as integers where it was some, else as one
    /// constant; what did not change computed again.
    ///
    /// # Errors
    /// ConstantValues whose data does not match their shape.
    pub fn close(&self, model: &ModelProto) -> Result<(ModelProto, Written)> {
        let mut graph = model
            .graph
            .clone()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        let mut written = Written::default();
        let by_name: BTreeMap<&str, &Folded> = self.folded.iter().map(|f| (f.name.as_str(), f)).collect();
        let (mut again, mut same) = (Vec::new(), Vec::new());
        let mut gone: HashSet<String> = HashSet::new();
        for tensor in &graph.initializer {
            let Some(folded) = by_name.get(tensor.name()) else {
                continue;
            };
            let held = onnx::tensor(tensor)?;
            if held == onnx::tensor(&folded.value)? {
                same.push(folded.name.clone());
            } else if let Some(form) = &folded.integers {
                again.push((form, form.again(&held)?));
                written.integers += 1;
            } else {
                written.constants.push(folded.name.clone());
                continue;
            }
            gone.insert(folded.name.clone());
        }
        graph.initializer.retain(|t| !gone.contains(t.name()));
        let mut nodes = Vec::new();
        let mut held: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
        let mut hold = |graph: &mut GraphProto, tensor: proto::TensorProto| {
            if held.insert(tensor.name().to_owned()) {
                graph.initializer.push(tensor);
            }
        };
        for (form, integers) in &again {
            nodes.extend(form.nodes(integers));
            for tensor in form.constants(integers) {
                hold(&mut graph, tensor);
            }
        }
        if !same.is_empty() {
            let Swept {
                nodes: chain, used, ..
            } = sweep(self.nodes.clone(), same.into_iter().collect())?;
            for tensor in self.constants.iter().filter(|t| used.contains(t.name())) {
                hold(&mut graph, tensor.clone());
            }
            nodes.extend(chain);
        }
        // A node that is there already is not computed twice.
        let there: HashSet<&String> = graph.node.iter().flat_map(|n| &n.output).collect();
        nodes.retain(|n| !n.output.iter().any(|o| there.contains(o)));
        nodes.append(&mut graph.node);
        graph.node = nodes;
        let model = ModelProto {
            graph: Some(swept(graph)?),
            ..model.clone()
        };
        Ok((model, written))
    }
}
