//! Smaller tables inside of a model whose interface stays: ids come in and logits go out as
//! before, so that neither a tokenizer nor anything else changes.
//!
//! ```text
//! ids ──> new id of each ──> smaller table        logits of kept tokens ──> place of each ──> logits
//! ```
//!
//! Tokens that are gone have the row of the longest piece that they begin with and that stays,
//! or else of the unknown one, and logits that no softmax sees.

use std::collections::{BTreeMap, HashMap};

use super::TokenOutput;
use crate::onnx::{self, node_label, proto};
use crate::tensor::{Elem, Tensor, ops};
use crate::{Error, Result};

/// The logit of a token that is gone, and the logarithm of its probability.
const GONE: f64 = -1e4;

/// The axis of logits where a rank is not declared.
const LAST: i64 = -1;

/// Operators between a constant and the table that it is.
const KEEPS_ROWS: [&str; 4] = ["Cast", "Identity", "DequantizeLinear", "Transpose"];

/// The tokens of a model: how many there were, those that stay, what stands for the others.
pub(super) struct KeptTokens<'k> {
    pub(super) size: usize,
    pub(super) kept: &'k [u32],
    /// The tokens that stand for those that are gone, as they are numbered before.
    pub(super) pieces: HashMap<u32, u32>,
    /// What stands for all others, as it is numbered now.
    pub(super) unknown: usize,
}

/// `model` is `whole` with smaller `tables`; it gets back its interface. `outputs` end in the
/// tokens.
///
/// # Errors
/// An operator that gives ids by itself.
pub(super) fn keep_interface(
    whole: &proto::ModelProto,
    model: &mut proto::ModelProto,
    tables: &[String],
    outputs: &BTreeMap<String, TokenOutput>,
    tokens: &KeptTokens,
) -> Result<()> {
    let missing = || Error::input("the model has no graph");
    let graph = model.graph.as_mut().ok_or_else(missing)?;
    for (index, node) in graph.node.iter().enumerate() {
        let reads_logits = node.input.first().is_some_and(|i| outputs.contains_key(i));
        if node.op_type() == "ArgMax" && (reads_logits || node.output.iter().any(|o| outputs.contains_key(o)))
        {
            return Err(Error::input(format!(
                "--vocab-drop-in: {} gives ids of tokens, which would be others; nothing was changed",
                node_label(index, node)
            )));
        }
    }
    graph
        .output
        .clone_from(&whole.graph.as_ref().ok_or_else(missing)?.output);
    let made: HashMap<&str, &proto::NodeProto> = (graph.node.iter())
        .flat_map(|n| n.output.iter().map(move |o| (o.as_str(), n)))
        .collect();
    let is_table = |value: &str| {
        let mut value = value;
        for _ in 0..8 {
            if tables.iter().any(|t| t == value) {
                return true;
            }
            let same = |n: &&&proto::NodeProto| KEEPS_ROWS.contains(&n.op_type());
            match made.get(value).filter(same).and_then(|n| n.input.first()) {
                Some(first) => value = first,
                None => return false,
            }
        }
        false
    };
    // The input with the ids of each lookup, and how it takes them.
    let lookups: Vec<(usize, usize, Elem)> = (graph.node.iter().enumerate())
        .filter_map(|(at, node)| {
            let (table, ids, elem) = match node.op_type() {
                "Gather" | "GatherBlockQuantized" => (0, 1, Elem::I64),
                "EmbedLayerNormalization" => (2, 0, Elem::I32),
                _ => return None,
            };
            is_table(node.input.get(table)?).then_some((at, ids, elem))
        })
        .collect();
    let new: HashMap<u32, usize> = (tokens.kept.iter().copied()).zip(0..).collect();
    let place = |token: usize, gone: usize| {
        let own = u32::try_from(token)
            .ok()
            .and_then(|token| new.get(&token).copied());
        own.unwrap_or(gone) as i64
    };
    let integers = |name: &str, elem: Elem, values: Vec<i64>| {
        let tensor = ops::from_integers(elem, vec![values.len()], &values);
        let tensor = tensor.ok_or_else(|| Error::input("--vocab-drop-in: too many tokens"))?;
        Ok::<_, Error>(onnx::tensor_proto(name, &tensor))
    };
    let mut before: HashMap<usize, Vec<proto::NodeProto>> = HashMap::new();
    for (at, input, elem) in lookups {
        let map = format!("onnx-prune/ids_{elem:?}");
        if !graph.initializer.iter().any(|t| t.name() == map) {
            let stand_in = |token: usize| {
                let piece = tokens.pieces.get(&u32::try_from(token).ok()?)?;
                new.get(piece).copied()
            };
            let each = (0..tokens.size)
                .map(|token| place(token, stand_in(token).unwrap_or(tokens.unknown)))
                .collect();
            graph.initializer.push(integers(&map, elem, each)?);
        }
        let Some(slot) = graph.node.get_mut(at).and_then(|n| n.input.get_mut(input)) else {
            continue;
        };
        let mapped = format!("onnx-prune/ids_{at}");
        let ids = std::mem::replace(slot, mapped.clone());
        before.entry(at).or_default().push(gather(&map, &ids, &mapped, 0));
    }
    let mut nodes = Vec::with_capacity(graph.node.len() + 8);
    for (at, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        nodes.extend(before.remove(&at).unwrap_or_default());
        nodes.push(node);
    }
    for (output, kind) in outputs {
        let Some(info) = graph.output.iter().find(|o| o.name() == output) else {
            continue;
        };
        let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(proto::type_proto::Value::TensorType(tensor)) => Some(tensor),
            _ => None,
        };
        let elem = tensor
            .and_then(|t| Elem::from_onnx(t.elem_type()))
            .unwrap_or(Elem::F32);
        let rank = tensor.and_then(|t| t.shape.as_ref()).map(|s| s.dim.len());
        let axis = rank.map_or(LAST, |rank| rank as i64 - 1);
        let name = |what: &str| format!("onnx-prune/{output}_{what}");
        let kept = name("kept");
        // Whatever else reads the logits reads those of the tokens that stay.
        for node in &mut nodes {
            for value in node
                .output
                .iter_mut()
                .chain(&mut node.input)
                .filter(|v| *v == output)
            {
                value.clone_from(&kept);
            }
        }
        let number = |name: &str, value: f64| {
            let tensor = ops::from_floats(elem, Vec::new(), &[value]);
            let tensor = tensor.unwrap_or_else(|| Tensor::f32(Vec::new(), vec![value as f32]));
            onnx::tensor_proto(name, &tensor)
        };
        let gone = match kind {
            TokenOutput::Probabilities => 0.0,
            TokenOutput::Logits | TokenOutput::LogProbabilities => GONE,
        };
        let places = (0..tokens.size)
            .map(|token| place(token, tokens.kept.len()))
            .collect();
        graph.initializer.extend([
            integers(&name("first"), Elem::I64, vec![0])?,
            integers(&name("places"), Elem::I64, places)?,
            number(&name("zero"), 0.0),
            number(&name("gone"), gone),
        ]);
        let both = [name("column"), name("blank"), name("lowest"), name("all")];
        let [column, blank, lowest, all] = &both;
        nodes.extend([
            gather(&kept, &name("first"), column, axis),
            node("Mul", &[column, &name("zero")], blank, None),
            node("Add", &[blank, &name("gone")], lowest, None),
            node("Concat", &[&kept, lowest], all, Some(axis)),
            gather(all, &name("places"), output, axis),
        ]);
    }
    graph.node = nodes;
    Ok(())
}

fn gather(data: &str, at: &str, to: &str, axis: i64) -> proto::NodeProto {
    node("Gather", &[data, at], to, Some(axis))
}

fn node(op: &str, inputs: &[&str], output: &str, axis: Option<i64>) -> proto::NodeProto {
    let axis = axis.map(|axis| proto::AttributeProto {
        name: Some("axis".into()),
        r#type: Some(proto::attribute_proto::AttributeType::Int as i32),
        i: Some(axis),
        ..Default::default()
    });
    proto::NodeProto {
        op_type: Some(op.into()),
        name: Some(output.into()),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        attribute: axis.into_iter().collect(),
        ..Default::default()
    }
}
