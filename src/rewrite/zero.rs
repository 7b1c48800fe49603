//! A group without units: its sinks compute nothing, so their outputs are
//! constants (zero, or the bias), and these are folded into what reads them.

use super::constants::source;
use super::draft::Draft;
use super::ints::int_attribute;
use crate::axes::PruneGroup;
use crate::graph::{NodeId, ValueId};
use crate::onnx::{self, proto};
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// What a value has become: a vector along the last axis, or zero.
type Constant = Option<Tensor>;

pub(super) fn cut(draft: &mut Draft, group: &PruneGroup) -> Result<()> {
    for sink in &group.sinks {
        let contraction = &draft.analysis.contractions[sink.contraction];
        let bias = match contraction.bias {
            Some(input) => Some(bias(draft, sink.node, input)?),
            None => None,
        };
        let output = draft.graph.node(sink.node).outputs.first().copied().flatten();
        let output = output.ok_or_else(|| refuse(draft, sink.node))?;
        fold(draft, output, bias)?;
    }
    Ok(())
}

fn refuse(draft: &Draft, node: NodeId) -> Error {
    Error::input(format!(
        "a constant cannot be folded into node {}",
        draft.graph.label(node)
    ))
}

fn bias(draft: &Draft, node: NodeId, input: usize) -> Result<Tensor> {
    let value = draft
        .graph
        .input(node, input)
        .ok_or_else(|| refuse(draft, node))?;
    let body = &draft.proto.node[node.0 as usize];
    let beta = body
        .attribute
        .iter()
        .find(|a| a.name() == "beta")
        .map_or(1.0, |a| a.f());
    let fused = body.op_type() != "Gemm" && body.op_type() != "Conv";
    let tensor = vector(draft, value).filter(|_| beta == 1.0 && !fused);
    tensor.ok_or_else(|| refuse(draft, node))
}

/// A float constant with at most its last axis longer than 1, as a vector.
fn vector(draft: &Draft, value: ValueId) -> Option<Tensor> {
    draft.graph.value(value).constant.as_ref()?;
    let mut tensor = onnx::tensor(&source(draft, value).ok()?).ok()?;
    let lead = tensor.shape.len().saturating_sub(1);
    if !tensor.elem().is_float() || tensor.shape[..lead].iter().any(|n| *n != 1) {
        return None;
    }
    tensor.shape = vec![tensor.len()];
    Some(tensor)
}

/// Folds the constant that `value` has become into all its readers.
fn fold(draft: &mut Draft, value: ValueId, constant: Constant) -> Result<()> {
    let graph = draft.graph;
    let v = graph.value(value);
    if v.is_output {
        return Err(Error::input(format!(
            "the graph output '{}' would be constant",
            v.name
        )));
    }
    for &(node, input) in &v.consumers {
        reader(draft, node, input, value, &constant)?;
    }
    Ok(())
}

fn reader(draft: &mut Draft, node: NodeId, input: usize, value: ValueId, constant: &Constant) -> Result<()> {
    let graph = draft.graph;
    let n = graph.node(node);
    let output = n.outputs.first().copied().flatten();
    let next = output.ok_or_else(|| refuse(draft, node));
    match (n.domain.as_str(), n.op.as_str()) {
        ("", "Shape") => Ok(()),
        ("", "Identity" | "Dropout") => fold(draft, next?, constant.clone()),
        ("", "Reshape")
            if input == 0 && keeps_last(draft, value, next.as_ref().copied().unwrap_or(value)) =>
        {
            fold(draft, next?, constant.clone())
        }
        ("", "Cast") => {
            let to = i32::try_from(n.int("to", 0)).unwrap_or(0);
            let cast = match constant {
                None => None,
                Some(t) => Some(cast(t, to).ok_or_else(|| refuse(draft, node))?),
            };
            fold(draft, next?, cast)
        }
        ("", "Mul") => {
            let other = graph.input(node, 1 - input).ok_or_else(|| refuse(draft, node))?;
            let scaled = match (constant, vector(draft, other)) {
                (None, _) if graph.value(other).constant.is_some() => None,
                (Some(t), Some(by)) => {
                    Some(combine(t, &by, |a, b| a * b).ok_or_else(|| refuse(draft, node))?)
                }
                _ => return Err(refuse(draft, node)),
            };
            fold(draft, next?, scaled)
        }
        ("", "Add") => add(draft, node, input, constant),
        ("com.microsoft", "SkipLayerNormalization") if input < 2 => skip(draft, node, input, constant, 4),
        ("com.microsoft", "SkipSimplifiedLayerNormalization") if input < 2 => {
            skip(draft, node, input, constant, 3)
        }
        _ => Err(refuse(draft, node)),
    }
}

/// Whether a reshape keeps the last axis whole.
fn keeps_last(draft: &Draft, from: ValueId, to: ValueId) -> bool {
    let last = |v: ValueId| {
        let dims = draft.analysis.facts(v).dims.as_ref()?;
        Some(draft.analysis.space.resolve(dims.last()?))
    };
    match (last(from), last(to)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn cast(tensor: &Tensor, to: i32) -> Option<Tensor> {
    let values = tensor.to_f32();
    let data = match to {
        1 => Data::F32(values),
        10 => Data::F16(values.into_iter().map(half::f16::from_f32).collect()),
        16 => Data::BF16(values.into_iter().map(half::bf16::from_f32).collect()),
        _ => return None,
    };
    Some(Tensor::new(tensor.shape.clone(), data))
}

/// Elementwise on two vectors of one type, a single entry is broadcast.
fn combine(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Option<Tensor> {
    if a.elem() != b.elem() {
        return None;
    }
    let (x, y) = (a.to_f32(), b.to_f32());
    let length = x.len().max(y.len());
    if (x.len() != length && x.len() != 1) || (y.len() != length && y.len() != 1) {
        return None;
    }
    let at = |v: &[f32], i: usize| if v.len() == 1 { v[0] } else { v[i] };
    let out = (0..length).map(|i| f(at(&x, i), at(&y, i))).collect();
    cast(&Tensor::f32(vec![length], out), a.elem().to_onnx())
}

fn add(draft: &mut Draft, node: NodeId, input: usize, constant: &Constant) -> Result<()> {
    let graph = draft.graph;
    let n = graph.node(node);
    let other = graph.input(node, 1 - input).ok_or_else(|| refuse(draft, node))?;
    let output = n
        .outputs
        .first()
        .copied()
        .flatten()
        .ok_or_else(|| refuse(draft, node))?;
    if graph.value(other).constant.is_some() {
        let more = vector(draft, other).ok_or_else(|| refuse(draft, node))?;
        let sum = match constant {
            None => more,
            Some(t) => combine(t, &more, |a, b| a + b).ok_or_else(|| refuse(draft, node))?,
        };
        return fold(draft, output, Some(sum));
    }
    // The other operand must have the whole shape by itself.
    let space = &draft.analysis.space;
    let shape = |v: ValueId| {
        let dims = draft.analysis.facts(v).dims.as_ref()?;
        Some(
            dims.iter()
                .map(|d| space.value(&crate::axes::Int::Dim(d.clone())))
                .collect::<Vec<_>>(),
        )
    };
    if shape(other).is_none() || shape(other) != shape(output) {
        return Err(refuse(draft, node));
    }
    match constant {
        None if !graph.value(output).is_output => {
            let (from, to) = (graph.value(output).name.clone(), graph.value(other).name.clone());
            draft.replaced.insert(from, to);
        }
        None => {
            let mut body = draft.body(node);
            body.op_type = Some("Identity".into());
            body.input = vec![draft.reads(node, 1 - input).unwrap_or_default()];
            draft.changed.insert(node, body);
        }
        Some(t) => {
            let name = draft.constant(&graph.value(output).name, t);
            draft.inputs.insert((node, input), name);
        }
    }
    Ok(())
}

/// A fused addition and normalisation: an addition of the constant (if any) and
/// a plain normalisation; for operator sets without one, the constant is
/// expanded to the shape of the other operand.
fn skip(draft: &mut Draft, node: NodeId, input: usize, constant: &Constant, bias_input: usize) -> Result<()> {
    let graph = draft.graph;
    let n = graph.node(node);
    let other = draft.reads(node, 1 - input).ok_or_else(|| refuse(draft, node))?;
    let total = match n.inputs.get(bias_input).copied().flatten() {
        None => constant.clone(),
        Some(bias) => {
            let bias = vector(draft, bias).ok_or_else(|| refuse(draft, node))?;
            match constant {
                None => Some(bias),
                Some(t) => Some(combine(t, &bias, |a, b| a + b).ok_or_else(|| refuse(draft, node))?),
            }
        }
    };
    let used = |k: usize| {
        n.outputs.get(k).copied().flatten().filter(|v| {
            let v = graph.value(*v);
            v.is_output || !v.consumers.is_empty()
        })
    };
    let base = graph
        .value(
            n.outputs
                .first()
                .copied()
                .flatten()
                .ok_or_else(|| refuse(draft, node))?,
        )
        .name
        .clone();
    let plain =
        graph.opset >= 17 && n.op == "SkipLayerNormalization" && used(1).is_none() && used(2).is_none();
    let mut body = draft.body(node);
    if !plain {
        let like = total.as_ref().or(constant.as_ref());
        let zero = match like {
            Some(t) => cast(&Tensor::f32(vec![1], vec![0.0]), t.elem().to_onnx()),
            None => vector(
                draft,
                n.inputs
                    .get(2)
                    .copied()
                    .flatten()
                    .ok_or_else(|| refuse(draft, node))?,
            )
            .and_then(|g| cast(&Tensor::f32(vec![1], vec![0.0]), g.elem().to_onnx())),
        };
        let filler = match constant {
            Some(t) => t.clone(),
            None => zero.ok_or_else(|| refuse(draft, node))?,
        };
        let filler = draft.constant(&base, &filler);
        let shape = draft.node("Shape", &other, &[&other], vec![]);
        let expanded = draft.node("Expand", &base, &[&filler, &shape], vec![]);
        draft.inputs.insert((node, input), expanded);
        return Ok(());
    }
    let sum = match &total {
        None => other,
        Some(t) => {
            let bias = draft.constant(&base, t);
            draft.node("Add", &base, &[&other, &bias], vec![])
        }
    };
    let parameter = |draft: &Draft, k: usize| {
        n.inputs
            .get(k)
            .copied()
            .flatten()
            .and_then(|_| draft.reads(node, k))
    };
    let mut inputs = vec![
        sum.clone(),
        parameter(draft, 2).ok_or_else(|| refuse(draft, node))?,
    ];
    inputs.extend(parameter(draft, 3));
    let epsilon = body
        .attribute
        .iter()
        .find(|a| a.name() == "epsilon")
        .map_or(1e-12, |a| a.f());
    if let Some(output) = used(3) {
        let name = graph.value(output).name.clone();
        if graph.value(output).is_output {
            return Err(refuse(draft, node));
        }
        draft.replaced.insert(name, sum);
    }
    body = proto::NodeProto {
        name: body.name,
        op_type: Some("LayerNormalization".into()),
        input: inputs,
        output: vec![base],
        attribute: vec![
            int_attribute("axis", -1),
            proto::AttributeProto {
                name: Some("epsilon".into()),
                r#type: Some(proto::attribute_proto::AttributeType::Float as i32),
                f: Some(epsilon),
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    draft.changed.insert(node, body);
    Ok(())
}
