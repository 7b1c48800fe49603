//! Sums over tokens as nodes of a model.
//!
//! On a device with a memory of its own, activations that come back only to be
//! multiplied by themselves cost more than the run. So nodes that multiply them
//! are put behind the values, and the sums come back instead. With X the rows of a
//! value (`T x n`), p its pilot and w the weights of the rows:
//!
//! ```text
//! R = diag(sqrt w) (X - 1 p^T)     weighted; zero where w is, whatever X holds there
//! S = R^T R                        product
//! s = (sqrt w)^T R                 product
//! ```
//!
//! The operators are among the oldest: opset [`OLDEST`] has them all, in both
//! engines and on the CUDA provider.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::onnx::{self, proto};
use crate::tensor::{Elem, Tensor};
use proto::attribute_proto::AttributeType;
use proto::{AttributeProto, NodeProto, TensorProto, ValueInfoProto};

/// The first opset whose `Where`, `Cast`, `MatMul` and `Reshape` are those used.
const OLDEST: i64 = 9;

/// Nodes, inputs and constants that will be put into a graph, under names of their
/// own.
pub(crate) struct Nodes {
    prefix: String,
    count: usize,
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    constants: Vec<TensorProto>,
    /// A float32 zero, once it is needed.
    zero: Option<String>,
}

impl Nodes {
    /// Nothing yet; no name will be one of `graph`.
    pub(crate) fn beside(graph: &proto::GraphProto) -> Self {
        let inputs = graph.input.iter().map(ValueInfoProto::name);
        let constants = graph.initializer.iter().map(TensorProto::name);
        let results = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
        let taken: HashSet<&str> = inputs.chain(constants).chain(results).collect();
        let mut prefix = "sums".to_owned();
        while taken.iter().any(|name| name.starts_with(&prefix)) {
            prefix.push('_');
        }
        Self {
            prefix,
            count: 0,
            nodes: Vec::new(),
            inputs: Vec::new(),
            constants: Vec::new(),
            zero: None,
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{}.{}.{what}", self.prefix, self.count)
    }

    /// A node with one output; returns its name.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.name(op);
        self.nodes.push(NodeProto {
            name: Some(output.clone()),
            op_type: Some(op.to_owned()),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.clone()],
            attribute: attributes,
            ..NodeProto::default()
        });
        output
    }

    /// A graph input whose sizes each run chooses; returns its name.
    pub(crate) fn input(&mut self, what: &str, elem: Elem, rank: usize) -> String {
        use proto::type_proto::{Tensor, Value};
        let name = self.name(what);
        let shape = proto::TensorShapeProto {
            dim: vec![proto::tensor_shape_proto::Dimension::default(); rank],
        };
        self.inputs.push(ValueInfoProto {
            name: Some(name.clone()),
            r#type: Some(proto::TypeProto {
                value: Some(Value::TensorType(Tensor {
                    elem_type: Some(elem.to_onnx()),
                    shape: Some(shape),
                })),
                ..Default::default()
            }),
            ..ValueInfoProto::default()
        });
        name
    }

    /// A constant; returns its name.
    pub(crate) fn constant(&mut self, what: &str, tensor: &Tensor) -> String {
        let name = self.name(what);
        self.constants.push(onnx::tensor_proto(&name, tensor));
        name
    }

    fn cast(&mut self, value: &str, to: Elem) -> String {
        let to = AttributeProto {
            i: Some(i64::from(to.to_onnx())),
            ..attribute("to", AttributeType::Int)
        };
        self.node("Cast", &[value], vec![to])
    }

    fn transpose(&mut self, value: &str, perm: &[usize]) -> String {
        let perm = AttributeProto {
            ints: perm.iter().map(|&p| p as i64).collect(),
            ..attribute("perm", AttributeType::Ints)
        };
        self.node("Transpose", &[value], vec![perm])
    }

    /// X as float32: the `axes` of a value of `rank` axes are the columns, `width`
    /// of them, in their order; all others the rows, in theirs.
    pub(crate) fn rows(&mut self, value: &str, rank: usize, axes: &[usize], width: usize) -> String {
        // In float16 squares would overflow.
        let mut rows = self.cast(value, Elem::F32);
        let rest = (0..rank).filter(|a| !axes.contains(a));
        let perm: Vec<usize> = rest.chain(axes.iter().copied()).collect();
        if !perm.iter().copied().eq(0..rank) {
            rows = self.transpose(&rows, &perm);
        }
        let width = i64::try_from(width).unwrap_or(i64::MAX);
        let shape = self.constant("shape", &Tensor::i64([2], vec![-1, width]));
        self.node("Reshape", &[&rows, &shape], Vec::new())
    }

    /// R from X, p (`n`) and the roots of the weights (`T x 1`).
    pub(crate) fn weighted(&mut self, rows: &str, pilot: &str, roots: &str) -> String {
        let shifted = self.node("Sub", &[rows, pilot], Vec::new());
        let scaled = self.node("Mul", &[&shifted, roots], Vec::new());
        // What rows that do not count hold may be NaN, which times zero is NaN.
        let counts = self.cast(roots, Elem::Bool);
        let zero = match &self.zero {
            Some(zero) => zero.clone(),
            None => {
                let zero = self.constant("zero", &Tensor::f32(Vec::new(), vec![0.0]));
                self.zero.insert(zero).clone()
            }
        };
        self.node("Where", &[&counts, &scaled, &zero], Vec::new())
    }

    /// `A^T B` of two matrices with the same rows.
    pub(crate) fn product(&mut self, a: &str, b: &str) -> String {
        let turned = self.transpose(a, &[1, 0]);
        self.node("MatMul", &[&turned, b], Vec::new())
    }

    /// The sum of the squares of each column; up to opset 17.
    pub(crate) fn squares(&mut self, rows: &str) -> String {
        let axes = AttributeProto {
            ints: vec![0],
            ..attribute("axes", AttributeType::Ints)
        };
        let keep = AttributeProto {
            i: Some(0),
            ..attribute("keepdims", AttributeType::Int)
        };
        self.node("ReduceSumSquare", &[rows], vec![axes, keep])
    }

    /// Puts all of it behind the nodes of `model`.
    ///
    /// # Errors
    /// A model without a graph, or of an opset that lacks the operators.
    pub(crate) fn put(self, model: &mut proto::ModelProto) -> Result<()> {
        let opset = model
            .opset_import
            .iter()
            .find(|o| matches!(o.domain(), "" | "ai.onnx"));
        if opset.map_or(0, proto::OperatorSetIdProto::version) < OLDEST {
            return Err(Error::input(format!("its opset is older than {OLDEST}")));
        }
        let graph = model
            .graph
            .as_mut()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        graph.node.extend(self.nodes);
        graph.input.extend(self.inputs);
        graph.initializer.extend(self.constants);
        Ok(())
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(kind as i32),
        ..AttributeProto::default()
    }
}

/// The sums of one batch, as nodes gave them: `None` where they are of other sizes or
/// not finite.
pub(crate) fn finite(tensor: &Tensor, len: usize) -> Option<&[f32]> {
    tensor
        .as_f32()
        .filter(|v| v.len() == len && v.iter().all(|x| x.is_finite()))
}
