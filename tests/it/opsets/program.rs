//! Small graphs as text: one statement per node, separated by `;`.
//!
//! ```text
//! a, b = Split{axis=-1}(h, I[4,4])      two outputs, an attribute, a constant
//! y = ms.QuickGelu(x)                   the domain com.microsoft
//! z = If{then_branch=|> p : p = Neg(y)|, ...}(c)    a body: inputs > outputs : statements
//! ```
//!
//! Constants stand where they are read: `W[6,8]` random floats, `S[8]` small
//! positive floats, `F0.5` a float, `I[1,-1]` and `I3` integers of 64 bits, `J[4]`
//! and `J4` of 32, `Q[6,8]`, `Q0`, `U[6,8]`, `U0` bytes with and without sign,
//! `N[8,8]` numbers of four bits, `K1` a truth value; `_` is an input that is not
//! given.

use onnx_prune::onnx;
use onnx_prune::onnx::proto::attribute_proto::AttributeType;
use onnx_prune::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto,
    type_proto,
};
use onnx_prune::tensor::{Data, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Maker {
    rng: ChaCha8Rng,
    count: usize,
}

/// `x` of `[batch, sequence, 6]` in, `out` out.
pub fn model(program: &str, opset: i64) -> ModelProto {
    use onnx_prune::onnx::proto::tensor_shape_proto::dimension::Value;
    let mut maker = Maker {
        rng: ChaCha8Rng::seed_from_u64(opset as u64),
        count: 0,
    };
    let mut graph = maker.graph(program);
    let symbol = |name: &str| Value::DimParam(name.into());
    let dims = [symbol("batch"), symbol("sequence"), Value::DimValue(6)];
    graph.input = vec![crate::models::shaped("x", dims)];
    graph.output = vec![untyped("out")];
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    ModelProto {
        ir_version: Some(if opset < 21 { 8 } else { 10 }),
        opset_import: vec![set("", opset), set("com.microsoft", 1)],
        graph: Some(graph),
        ..Default::default()
    }
}

/// A float value of unknown shape.
fn untyped(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor {
        elem_type: Some(1),
        shape: None,
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Cuts at a separator outside of brackets, bodies and quotes.
fn cut(text: &str, at: char) -> Vec<&str> {
    let (mut depth, mut body, mut start, mut parts) = (0, false, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '|' | '"' => body = !body,
            '(' | '[' | '{' if !body => depth += 1,
            ')' | ']' | '}' if !body => depth -= 1,
            c if c == at && depth == 0 && !body => {
                parts.push(text[start..i].trim());
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|p| !p.is_empty());
    parts
}

fn numbers<T: std::str::FromStr>(text: &str) -> Vec<T> {
    let inner = text.trim_matches(|c| "[]".contains(c));
    let one = |n: &str| n.trim().parse().unwrap_or_else(|_| panic!("no number: {n}"));
    inner.split(',').filter(|n| !n.is_empty()).map(one).collect()
}

impl Maker {
    fn graph(&mut self, program: &str) -> GraphProto {
        let mut graph = GraphProto {
            name: Some(format!("graph{}", self.count)),
            ..Default::default()
        };
        for statement in cut(program, ';') {
            let (left, right) = statement.split_once('=').expect("an assignment");
            let open = right.rfind('(').expect("arguments");
            let arguments = right[open + 1..].trim_end().trim_end_matches(')');
            let (name, attributes) = match right[..open].split_once('{') {
                Some((name, rest)) => (name.trim(), rest.trim().trim_end_matches('}')),
                None => (right[..open].trim(), ""),
            };
            let (domain, op) = match name.strip_prefix("ms.") {
                Some(op) => ("com.microsoft", op),
                None => ("", name),
            };
            let inputs = cut(arguments, ',')
                .into_iter()
                .map(|a| self.argument(&mut graph, a))
                .collect();
            self.count += 1;
            let attribute = cut(attributes, ',')
                .into_iter()
                .map(|a| self.attribute(a))
                .collect();
            let node = NodeProto {
                domain: Some(domain.into()),
                op_type: Some(op.into()),
                name: Some(format!("n{}", self.count)),
                input: inputs,
                output: cut(left, ',').into_iter().map(|o| o.replace('_', "")).collect(),
                attribute,
                ..Default::default()
            };
            graph.node.push(node);
        }
        graph
    }

    fn attribute(&mut self, text: &str) -> AttributeProto {
        let (name, value) = text.split_once('=').expect("an attribute");
        let mut out = AttributeProto {
            name: Some(name.into()),
            ..Default::default()
        };
        let kind = if let Some(body) = value.strip_prefix('|') {
            out.g = Some(self.body(body.trim_end_matches('|')));
            AttributeType::Graph
        } else if let Some(text) = value.strip_prefix('"') {
            out.s = Some(text.trim_end_matches('"').to_string().into());
            AttributeType::String
        } else if value.starts_with('[') {
            out.ints = numbers(value);
            AttributeType::Ints
        } else if value.contains('.') {
            out.f = value.parse().ok();
            AttributeType::Float
        } else {
            out.i = value.parse().ok();
            AttributeType::Int
        };
        out.r#type = Some(kind as i32);
        out
    }

    fn body(&mut self, text: &str) -> GraphProto {
        let (head, program) = text.split_once(':').expect("a body");
        let (inputs, outputs) = head.split_once('>').expect("outputs of a body");
        let mut graph = self.graph(program);
        // Of a loop, the step and the condition are scalars of their own types.
        let value = |name: &str| {
            let mut info = untyped(name);
            let kind = info.r#type.as_mut().and_then(|t| t.value.as_mut());
            if let Some(type_proto::Value::TensorType(tensor)) = kind {
                tensor.elem_type = Some(match name {
                    "step" => 7,
                    "go" | "on" => 9,
                    _ => 1,
                });
                if matches!(name, "step" | "go" | "on") {
                    tensor.shape = Some(Default::default());
                }
            }
            info
        };
        graph.input = inputs.split_whitespace().map(value).collect();
        graph.output = outputs.split_whitespace().map(value).collect();
        graph
    }

    /// The name of a value, or of a constant that is made here.
    fn argument(&mut self, graph: &mut GraphProto, text: &str) -> String {
        let (kind, rest) = text.split_at(1);
        let list = rest.starts_with('[');
        let constant = rest.starts_with(|c: char| c == '[' || c == '-' || c.is_ascii_digit());
        if text == "_" {
            return String::new();
        }
        if !constant || !"WSFIJQUKN".contains(kind) {
            return text.into();
        }
        let shape: Vec<usize> = if list && "WSQUN".contains(kind) {
            numbers(rest)
        } else if list {
            vec![numbers::<i64>(rest).len()]
        } else {
            vec![]
        };
        let count = shape.iter().product();
        let whole = |maker: &mut Self| -> i64 {
            match list {
                true => maker.rng.random_range(-9..10),
                false => numbers(rest)[0],
            }
        };
        let data = match kind {
            "W" => Data::F32((0..count).map(|_| self.rng.random::<f32>() - 0.5).collect()),
            "S" => Data::F32(
                (0..count)
                    .map(|_| 0.01 + 0.02 * self.rng.random::<f32>())
                    .collect(),
            ),
            "F" => Data::F32(numbers(rest)),
            "I" => Data::I64(numbers(rest)),
            "J" => Data::I32(numbers(rest)),
            "K" => Data::Bool(numbers::<u8>(rest).iter().map(|b| *b != 0).collect()),
            "Q" => Data::I8((0..count).map(|_| whole(self) as i8).collect()),
            _ => Data::U8((0..count).map(|_| whole(self).unsigned_abs() as u8).collect()),
        };
        self.count += 1;
        let name = format!("c{}", self.count);
        let mut tensor = onnx::tensor_proto(&name, &Tensor { shape, data });
        if kind == "N" {
            // Two in each byte.
            tensor.data_type = Some(22);
            let bytes = tensor.raw_data.take().unwrap_or_default();
            tensor.raw_data = Some(bytes[..count.div_ceil(2)].to_vec().into());
        }
        graph.initializer.push(tensor);
        name
    }
}
