//! What operators make of constants.
//!
//! A constant here stands for a whole value that it broadcasts to. Rules that
//! would need more than one row of it (a matrix product with a constant that is
//! not zero) are not worth their lines: such a node runs on the constant.

use super::draft::Draft;
use super::known::{Known, input, output, refuse, sum_type};
use super::reads::int_attribute;
use crate::Result;
use crate::axes::Sink;
use crate::graph::{Node, NodeId, ValueId};
use crate::onnx::proto;
use crate::tensor::{Data, Elem, Tensor};

/// What is to happen to a node that reads constants.
pub(super) enum Outcome {
    /// Its outputs are constants, or it reads them as they are.
    Done,
    /// It runs and needs its inputs in their shapes.
    Runs,
}

/// The output of a sink that sums over nothing: zero, or its bias.
pub(super) fn empty_sum(known: &Known, sink: &Sink) -> Result<Tensor> {
    let draft = &*known.draft;
    let refuse = || refuse(draft, sink.node);
    let n = draft.graph.node(sink.node);
    let plain = matches!(
        (n.domain.as_str(), n.op.as_str()),
        ("", "MatMul" | "Gemm" | "Conv" | "Einsum" | "MatMulInteger")
            | (
                "com.microsoft",
                "FusedMatMul" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "MatMulNBits"
            )
    );
    if !plain {
        return Err(refuse());
    }
    let elem = sum_type(known, sink);
    let zero = scalar(0.0, elem).ok_or_else(refuse)?;
    let bias = draft.analysis.contractions[sink.contraction].bias;
    let Some(bias) = bias.and_then(|input| draft.graph.input(sink.node, input)) else {
        return Ok(zero);
    };
    let bias = known.stored(bias).ok_or_else(refuse)?;
    match n.op.as_str() {
        "Gemm" => {
            let beta = draft.proto.node[sink.node.0 as usize]
                .attribute
                .iter()
                .find(|a| a.name() == "beta")
                .map_or(1.0, proto::AttributeProto::f);
            map(&bias, |x| x * beta).ok_or_else(refuse)
        }
        "Conv" => {
            // One value per channel, the axis after the batch.
            let rank = draft
                .analysis
                .operand(draft.graph, sink.node, 0)
                .map_or(0, Vec::len);
            let spatial = rank.checked_sub(2).ok_or_else(refuse)?;
            let mut shape = vec![bias.len()];
            shape.extend(std::iter::repeat_n(1, spatial));
            Ok(Tensor { shape, ..bias })
        }
        _ => Ok(bias),
    }
}

/// Applies the rule of a node whose inputs `reads` have become constants.
pub(super) fn apply(known: &mut Known, node: NodeId, reads: &[usize]) -> Result<Outcome> {
    let graph = known.draft.graph;
    let n = graph.node(node);
    let first_only = reads == [0];
    match (n.domain.as_str(), n.op.as_str()) {
        ("", "Shape" | "Size") => Ok(Outcome::Done),
        (
            "",
            "Identity" | "Dropout" | "Neg" | "Relu" | "Tanh" | "Sigmoid" | "Sqrt" | "Reciprocal" | "Abs",
        ) => {
            let constant = input(known, node, 0)?;
            let op = n.op.clone();
            let made = map(&constant, |x| unary(&op, x)).filter(finite);
            settle(known, node, made)
        }
        ("", "Cast") => {
            let to = i32::try_from(n.int("to", 0)).ok().and_then(Elem::from_onnx);
            let constant = input(known, node, 0)?;
            let made = to.and_then(|to| convert(&constant, to));
            settle(known, node, made)
        }
        (
            "",
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" | "Slice" | "Split"
            | "Tile",
        ) if first_only => laid_out(known, node),
        ("", "Gather") if first_only => laid_out(known, node),
        ("", "Add" | "Sub" | "Mul" | "Div" | "Pow") => binary(known, node, reads),
        ("", "ReduceMean" | "ReduceMax" | "ReduceMin") if first_only => {
            let constant = input(known, node, 0)?;
            let made = uniform(&constant).and_then(|x| scalar(x, constant.elem()));
            settle(known, node, made)
        }
        ("", "ReduceSum" | "ReduceL2" | "ReduceSumSquare" | "ReduceL1") if first_only => {
            let constant = input(known, node, 0)?;
            let made = is_zero(&constant).then_some(constant);
            settle(known, node, made)
        }
        ("", "MatMul" | "Einsum") | ("com.microsoft", "FusedMatMul") => {
            let constant = input(known, node, reads[0])?;
            let made = is_zero(&constant).then_some(constant);
            settle(known, node, made)
        }
        ("", "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization")
        | ("com.microsoft", "SimplifiedLayerNormalization")
            if first_only =>
        {
            let made = normalised(known, node)?;
            settle(known, node, made)
        }
        ("com.microsoft", "SkipLayerNormalization") if reads.len() == 1 && reads[0] < 2 => {
            skip(known, node, reads[0], 4)
        }
        ("com.microsoft", "SkipSimplifiedLayerNormalization") if reads.len() == 1 && reads[0] < 2 => {
            skip(known, node, reads[0], 3)
        }
        _ => Ok(Outcome::Runs),
    }
}

/// Whether any output but the first is read.
fn more_is_read(known: &Known, n: &Node) -> bool {
    n.outputs.iter().skip(1).flatten().any(|v| is_read(known, *v))
}

fn is_read(known: &Known, value: ValueId) -> bool {
    let v = known.draft.graph.value(value);
    v.is_output || !v.consumers.is_empty()
}

/// The first output is `made`; without it, the node runs.
fn settle(known: &mut Known, node: NodeId, made: Option<Tensor>) -> Result<Outcome> {
    let n = known.draft.graph.node(node);
    let output = output(known, node)?;
    match made {
        Some(made) if !more_is_read(known, n) && !known.draft.graph.value(output).is_output => {
            known.set(output, made)?;
            Ok(Outcome::Done)
        }
        _ => Ok(Outcome::Runs),
    }
}

/// Operators that move elements: equal elements stay equal, a single row stays
/// along its axis.
fn laid_out(known: &mut Known, node: NodeId) -> Result<Outcome> {
    let graph = known.draft.graph;
    let constant = input(known, node, 0)?;
    let from = graph.input(node, 0).ok_or_else(|| refuse(known.draft, node))?;
    let outputs: Vec<ValueId> = graph.node(node).outputs.iter().flatten().copied().collect();
    let mut made = Vec::with_capacity(outputs.len());
    for to in outputs {
        if graph.value(to).is_output {
            return Ok(Outcome::Runs);
        }
        match moved(known, &constant, from, to) {
            Some(tensor) => made.push((to, tensor)),
            None => return Ok(Outcome::Runs),
        }
    }
    for (to, tensor) in made {
        known.set(to, tensor)?;
    }
    Ok(Outcome::Done)
}

/// A constant of `from` as one of `to`, which has the same elements elsewhere.
fn moved(known: &Known, constant: &Tensor, from: ValueId, to: ValueId) -> Option<Tensor> {
    if let Some(x) = uniform(constant) {
        return scalar(x, constant.elem());
    }
    let (before, after) = (known.dims(from)?, known.dims(to)?);
    let shift = before.len().checked_sub(constant.shape.len())?;
    let mut long = (0..constant.shape.len()).filter(|k| constant.shape[*k] != 1);
    let (axis, None) = (long.next()?, long.next()) else {
        return None;
    };
    let dim = before.get(axis + shift)?;
    let once = |dims: &[crate::axes::Dim]| {
        let mut places = dims.iter().enumerate().filter(|(_, d)| *d == dim).map(|(k, _)| k);
        let place = places.next()?;
        places.next().is_none().then_some(place)
    };
    once(&before)?;
    let place = once(&after)?;
    let mut shape = vec![1; after.len() - place];
    shape[0] = constant.len();
    Some(Tensor {
        shape,
        ..constant.clone()
    })
}

/// Two operands, of which one or both have become constants.
fn binary(known: &mut Known, node: NodeId, reads: &[usize]) -> Result<Outcome> {
    let graph = known.draft.graph;
    let n = graph.node(node);
    let (op, result) = (n.op.as_str(), output(known, node)?);
    if let (Some(a), Some(b)) = (known.constant(node, 0), known.constant(node, 1)) {
        let made = combine(&a, &b, |x, y| arithmetic(op, x, y)).filter(finite);
        // A stored operand may be larger than what vanished: then it runs.
        return settle(known, node, made.filter(|m| m.len() <= a.len().max(b.len())));
    }
    // An operator of two operands that is given more is for the engine to refuse.
    let &[read @ (0 | 1)] = reads else {
        return Ok(Outcome::Runs);
    };
    let constant = input(known, node, read)?;
    let zero = is_zero(&constant);
    if zero && (op == "Mul" || op == "Div" && read == 0) {
        return settle(known, node, Some(constant));
    }
    let other = graph
        .input(node, 1 - read)
        .ok_or_else(|| refuse(known.draft, node))?;
    if !known.same_shape(other, result) {
        return Ok(Outcome::Runs);
    }
    let neutral = zero && (op == "Add" || op == "Sub" && read == 1);
    if neutral && !graph.value(result).is_output {
        let (from, to) = (graph.value(result).name.clone(), graph.value(other).name.clone());
        known.draft.replaced.insert(from, to);
    } else if neutral {
        let mut body = known.draft.body(node);
        body.op_type = Some("Identity".into());
        body.input = vec![known.draft.reads(node, 1 - read).unwrap_or_default()];
        known.draft.changed.insert(node, body);
    } else {
        let name = known.draft.constant(&graph.value(result).name, &constant);
        known.draft.inputs.insert((node, read), name);
    }
    Ok(Outcome::Done)
}

/// A row normalised, times gamma, plus beta.
fn normalised(known: &Known, node: NodeId) -> Result<Option<Tensor>> {
    let n = known.draft.graph.node(node);
    let constant = input(known, node, 0)?;
    let Some(x) = uniform(&constant) else {
        return Ok(None);
    };
    let centred = n.op == "LayerNormalization";
    if !centred && x != 0.0 {
        return Ok(None);
    }
    // A constant row has no deviation: only beta is left.
    let beta = known.draft.graph.input(node, 2).filter(|_| centred);
    Ok(match beta {
        Some(beta) => known.stored(beta),
        None => scalar(0.0, constant.elem()),
    })
}

/// A fused addition and normalisation: an addition of the constant (if any) and
/// a plain normalisation; without one in the operator set, it runs.
fn skip(known: &mut Known, node: NodeId, read: usize, bias_input: usize) -> Result<Outcome> {
    let graph = known.draft.graph;
    let n = graph.node(node);
    let refused = |draft: &Draft| refuse(draft, node);
    let constant = input(known, node, read)?;
    let used = |known: &Known, k: usize| n.outputs.get(k).copied().flatten().filter(|v| is_read(known, *v));
    let plain = graph.opset >= 17
        && n.op == "SkipLayerNormalization"
        && used(known, 1).is_none()
        && used(known, 2).is_none()
        && used(known, 3).is_none_or(|v| !graph.value(v).is_output);
    let whole = graph
        .input(node, 1 - read)
        .is_some_and(|other| known.same_shape(other, output(known, node).unwrap_or(other)));
    if !plain || !whole {
        return Ok(Outcome::Runs);
    }
    let bias = n.inputs.get(bias_input).copied().flatten();
    let total = match bias {
        None => Some(constant),
        Some(bias) => known
            .stored(bias)
            .and_then(|bias| combine(&constant, &bias, |a, b| a + b)),
    };
    let Some(total) = total else {
        return Ok(Outcome::Runs);
    };
    let draft = &mut *known.draft;
    let base = graph
        .value(
            n.outputs
                .first()
                .copied()
                .flatten()
                .ok_or_else(|| refused(draft))?,
        )
        .name
        .clone();
    let other = draft.reads(node, 1 - read).ok_or_else(|| refused(draft))?;
    let sum = if is_zero(&total) {
        other
    } else {
        let addend = draft.constant(&base, &total);
        draft.node("Add", &base, &[&other, &addend], vec![])
    };
    let gamma = n
        .inputs
        .get(2)
        .copied()
        .flatten()
        .and_then(|_| draft.reads(node, 2));
    let beta = n
        .inputs
        .get(3)
        .copied()
        .flatten()
        .and_then(|_| draft.reads(node, 3));
    let mut inputs = vec![sum.clone(), gamma.ok_or_else(|| refused(draft))?];
    inputs.extend(beta);
    let body = draft.body(node);
    let epsilon = body
        .attribute
        .iter()
        .find(|a| a.name() == "epsilon")
        .map_or(1e-12, proto::AttributeProto::f);
    if let Some(output) = n.outputs.get(3).copied().flatten() {
        draft.replaced.insert(graph.value(output).name.clone(), sum);
    }
    draft.changed.insert(
        node,
        proto::NodeProto {
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
        },
    );
    Ok(Outcome::Done)
}

fn unary(op: &str, x: f32) -> f32 {
    match op {
        "Neg" => -x,
        "Relu" => x.max(0.0),
        "Tanh" => x.tanh(),
        "Sigmoid" => 1.0 / (1.0 + (-x).exp()),
        "Sqrt" => x.sqrt(),
        "Reciprocal" => 1.0 / x,
        "Abs" => x.abs(),
        _ => x,
    }
}

fn arithmetic(op: &str, x: f32, y: f32) -> f32 {
    match op {
        "Add" => x + y,
        "Sub" => x - y,
        "Mul" => x * y,
        "Div" => x / y,
        _ => x.powf(y),
    }
}

fn finite(tensor: &Tensor) -> bool {
    tensor.to_f32().iter().all(|x| x.is_finite())
}

/// The one value of all elements.
fn uniform(tensor: &Tensor) -> Option<f32> {
    let values = tensor.to_f32();
    let first = *values.first()?;
    values.iter().all(|x| *x == first).then_some(first)
}

fn is_zero(tensor: &Tensor) -> bool {
    uniform(tensor) == Some(0.0)
}

/// A tensor of rank 0.
fn scalar(x: f32, elem: Elem) -> Option<Tensor> {
    convert(&Tensor::f32(vec![], vec![x]), elem)
}

fn convert(tensor: &Tensor, to: Elem) -> Option<Tensor> {
    let values = tensor.to_f32();
    let data = match to {
        Elem::F32 => Data::F32(values),
        Elem::F64 => Data::F64(values.into_iter().map(f64::from).collect()),
        Elem::F16 => Data::F16(values.into_iter().map(half::f16::from_f32).collect()),
        Elem::BF16 => Data::BF16(values.into_iter().map(half::bf16::from_f32).collect()),
        Elem::I32 if values.iter().all(|x| *x == 0.0) => Data::I32(vec![0; values.len()]),
        _ => return None,
    };
    Some(Tensor::new(tensor.shape.clone(), data))
}

fn map(tensor: &Tensor, f: impl Fn(f32) -> f32) -> Option<Tensor> {
    let values = tensor.to_f32().into_iter().map(f).collect();
    convert(&Tensor::f32(tensor.shape.clone(), values), tensor.elem())
}

/// Elementwise on two constants of one type, with broadcasting.
fn combine(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Option<Tensor> {
    if a.elem() != b.elem() {
        return None;
    }
    let rank = a.shape.len().max(b.shape.len());
    let size = |t: &Tensor, k: usize| (k + t.shape.len()).checked_sub(rank).map_or(1, |i| t.shape[i]);
    let mut shape = Vec::with_capacity(rank);
    for k in 0..rank {
        shape.push(match (size(a, k), size(b, k)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return None,
        });
    }
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let (x, y) = (a.to_f32(), b.to_f32());
    // The flat place of an output element in an operand.
    let place = |t: &Tensor, flat: usize| {
        let (mut rest, mut step, mut at) = (flat, 1, 0);
        for k in (0..rank).rev() {
            let (index, own) = (rest % shape[k], size(t, k));
            rest /= shape[k];
            if own != 1 {
                at += index * step;
            }
            step *= own;
        }
        at
    };
    let values: Option<Vec<f32>> = (0..count)
        .map(|i| Some(f(*x.get(place(a, i))?, *y.get(place(b, i))?)))
        .collect();
    convert(&Tensor::f32(shape, values?), a.elem())
}
