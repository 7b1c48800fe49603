//! The graph as the axis algebra reads it: who produces and who consumes each
//! value, constants that are known, attributes. No protobuf, no engine.

mod build;
mod constants;
pub mod operators;
mod order;
pub mod sweep;

pub use build::{build, node_reads};
pub use constants::constant_of;
pub use order::ancestors;

use std::collections::BTreeMap;

use crate::tensor::Elem;

/// Index of a [`Value`] in its [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

/// Index of a [`Node`] in its [`Graph`]; nodes keep the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A graph input without a default.
    Input,
    /// A constant: an initializer (index in the file) or a `Constant` node.
    Constant,
    /// The output of a node.
    Inner,
}

/// One declared dimension of a graph input, output or `value_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeclaredShape {
    /// A fixed size.
    Size(usize),
    /// A named symbol, as in `batch`.
    Symbol(String),
    /// Nothing is said.
    Unknown,
}

/// A constant tensor, as far as the analysis reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant {
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The values of an integer or boolean tensor of at most
    /// [`Constant::MAX_INTS`] elements.
    pub ints: Option<Vec<i64>>,
    /// Whether all elements are equal. Such a tensor has no unit identity: two
    /// uses of it say nothing about each other.
    pub uniform: bool,
    /// Index among the file's initializers, or `None` for a `Constant` node.
    pub initializer: Option<usize>,
}

impl Constant {
    /// Integer tensors up to this length are read.
    pub const MAX_INTS: usize = 1024;
}

/// A tensor that flows through the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// The name in the file.
    pub name: String,
    /// Where it comes from.
    pub role: Role,
    /// The node and the index of its output.
    pub producer: Option<(NodeId, usize)>,
    /// The nodes and the index of their input; subgraph captures are numbered
    /// after the node's own inputs.
    pub consumers: Vec<(NodeId, usize)>,
    /// Whether it is a graph output.
    pub is_output: bool,
    /// Element type, where the file says it.
    pub elem: Option<Elem>,
    /// Declared shape, where the file says it.
    pub declared: Option<Vec<DeclaredShape>>,
    /// For constants.
    pub constant: Option<Constant>,
}

/// An attribute of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// Integers.
    Ints(Vec<i64>),
    /// A float.
    Float(f32),
    /// A string (lossy UTF-8).
    Text(String),
    /// A small integer tensor.
    Tensor(Vec<i64>),
    /// A subgraph; what it captures is among its inputs, after the formal ones.
    Graph(Box<Graph>),
    /// Anything else: large tensors, lists of floats.
    Other,
}

/// One operator call.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The name in the file, possibly empty.
    pub name: String,
    /// Operator type.
    pub op: String,
    /// Operator domain; empty for `ai.onnx`.
    pub domain: String,
    /// Inputs; `None` where an optional one is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` where an optional one is left out.
    pub outputs: Vec<Option<ValueId>>,
    /// Values of this graph that subgraphs of the node read.
    pub captures: Vec<ValueId>,
    /// Attributes by name.
    pub attrs: BTreeMap<String, Attr>,
    /// The module path that the exporter recorded, where it did.
    pub scope: Option<String>,
}

impl Node {
    /// An integer attribute or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.attrs.get(name) {
            Some(Attr::Int(v)) => *v,
            _ => default,
        }
    }

    /// An integer-list attribute.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attrs.get(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A string attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attrs.get(name) {
            Some(Attr::Text(v)) => Some(v),
            _ => None,
        }
    }

    /// Whether it is the operator `domain::op`.
    pub fn is(&self, domain: &str, op: &str) -> bool {
        self.op == op && self.domain == domain
    }
}

/// A main graph with all local functions inlined.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    /// All values.
    pub values: Vec<Value>,
    /// All nodes, in the order of the file.
    pub nodes: Vec<Node>,
    /// The nodes in a topological order.
    pub order: Vec<NodeId>,
    /// Graph inputs without a default.
    pub inputs: Vec<ValueId>,
    /// Graph outputs, in order.
    pub outputs: Vec<ValueId>,
    /// Version of the standard operator set.
    pub opset: i64,
}

impl Graph {
    /// The value with this index.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The node with this index.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The value on an input of a node.
    pub fn input(&self, node: NodeId, index: usize) -> Option<ValueId> {
        let node = self.node(node);
        match node.inputs.get(index) {
            Some(value) => *value,
            None => node.captures.get(index.checked_sub(node.inputs.len())?).copied(),
        }
    }

    /// Finds a value by name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        let at = self.values.iter().position(|v| v.name == name)?;
        Some(ValueId(at as u32))
    }

    /// How messages name a node: name, operator and index.
    pub fn label(&self, id: NodeId) -> String {
        let node = self.node(id);
        let op = if node.domain.is_empty() {
            node.op.clone()
        } else {
            format!("{}::{}", node.domain, node.op)
        };
        if node.name.is_empty() {
            let output = node.outputs.iter().flatten().next();
            let output = output.map_or("", |v| &self.value(*v).name);
            format!("{op} #{} (makes '{output}')", id.0)
        } else {
            format!("'{}' ({op} #{})", node.name, id.0)
        }
    }
}
