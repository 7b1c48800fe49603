//! Small vectors of sizes that nodes read: laid together from numbers and from the shapes
//! of values that are still computed.

use super::draft::Draft;
use crate::axes::{Dim, Poly};
use crate::graph::{NodeId, Role, ValueId};
use crate::onnx::proto;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Makes a use read another value, in a changed body too.
pub(crate) fn rewire(draft: &mut Draft, node: NodeId, input: usize, from: &str, to: &str) {
    if let Some(body) = draft.changed.get_mut(&node) {
        for name in body.input.iter_mut().filter(|n| *n == from) {
            *name = to.to_string();
        }
    }
    draft.inputs.insert((node, input), to.to_string());
}

/// An integer attribute.
pub(crate) fn int_attribute(name: &str, value: i64) -> proto::AttributeProto {
    proto::AttributeProto {
        name: Some(name.into()),
        r#type: Some(proto::attribute_proto::AttributeType::Int as i32),
        i: Some(value),
        ..Default::default()
    }
}

/// A list of integers as an attribute.
pub(crate) fn ints_attribute(name: &str, values: Vec<i64>) -> proto::AttributeProto {
    proto::AttributeProto {
        name: Some(name.to_string()),
        r#type: Some(proto::attribute_proto::AttributeType::Ints as i32),
        ints: values,
        ..Default::default()
    }
}

/// Vectors laid one after another.
pub(crate) fn concat(draft: &mut Draft, base: &str, parts: &[String]) -> String {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    draft.node("Concat", base, &parts, vec![int_attribute("axis", 0)])
}

/// Entry `at` of a vector, as a vector of one.
pub(crate) fn pick(draft: &mut Draft, vector: &str, at: i64) -> String {
    let index = draft.constant(&format!("{vector}_at"), &Tensor::i64(vec![1], vec![at]));
    draft.node(
        "Gather",
        vector,
        &[vector, &index],
        vec![int_attribute("axis", 0)],
    )
}

/// Builds the vector that a `Shape` makes from single entries.
pub(crate) fn entries(draft: &mut Draft, node: NodeId, wanted: &[Poly], rank: &[usize]) -> Result<()> {
    let graph = draft.graph;
    let n = graph.node(node);
    let count = wanted.len() as i64;
    let bound = |v: i64| (if v < 0 { v + count } else { v }).clamp(0, count) as usize;
    let (from, to) = (bound(n.int("start", 0)), bound(n.int("end", count)));
    let Some(Some(output)) = n.outputs.first() else {
        return Ok(());
    };
    let base = graph.value(*output).name.clone();
    // Entries that no one reads may be anything.
    let read = entries_read(draft, *output);
    let wanted = wanted.get(from..to.max(from)).unwrap_or_default();
    let vector = vector(draft, &base, wanted, read.as_deref(), node, rank)?;
    draft.replaced.insert(base, vector);
    Ok(())
}

/// Position of each node in the topological order.
pub(crate) fn ranks(draft: &Draft) -> Vec<usize> {
    let mut rank = vec![0; draft.graph.nodes.len()];
    for (at, node) in draft.graph.order.iter().enumerate() {
        rank[node.0 as usize] = at;
    }
    rank
}

pub(crate) fn size(draft: &Draft, dim: &Dim) -> Poly {
    let space = &draft.analysis.space;
    space.eval_dim(dim, &|f| draft.kept.size(space, f))
}

/// A vector of sizes, read from live tensors that are computed before a node;
/// of the entries, only those in `read` matter.
pub(crate) fn vector(
    draft: &mut Draft,
    base: &str,
    wanted: &[Poly],
    read: Option<&[usize]>,
    node: NodeId,
    rank: &[usize],
) -> Result<String> {
    let usable = candidates(draft, node, rank);
    let mut parts = Vec::new();
    for (at, poly) in wanted.iter().enumerate() {
        if read.is_some_and(|r| !r.contains(&at)) {
            parts.push(draft.constant(base, &Tensor::i64(vec![1], vec![0])));
            continue;
        }
        if let Some(value) = poly.as_const() {
            parts.push(draft.constant(base, &Tensor::i64(vec![1], vec![value])));
            continue;
        }
        let found = usable.iter().find_map(|v| {
            let dims = draft.analysis.facts(*v).dims.as_deref().unwrap_or_default();
            dims.iter()
                .position(|d| size(draft, d) == *poly)
                .map(|axis| (*v, axis))
        });
        let Some((value, axis)) = found else {
            return Err(unreadable(draft, node));
        };
        let name = draft.graph.value(value).name.clone();
        let shape = draft.node("Shape", &name, &[&name], vec![]);
        parts.push(pick(draft, &shape, axis as i64));
    }
    if parts.is_empty() {
        return Ok(draft.constant(base, &Tensor::i64(vec![0], vec![])));
    }
    Ok(concat(draft, base, &parts))
}

/// Live values that are computed before a node, graph inputs first.
pub(crate) fn candidates(draft: &Draft, node: NodeId, rank: &[usize]) -> Vec<ValueId> {
    let graph = draft.graph;
    let before = |v: ValueId| match graph.value(v).producer {
        Some((p, _)) => rank[p.0 as usize] < rank[node.0 as usize],
        None => true,
    };
    let usable = |v: &ValueId| {
        graph.value(*v).role != Role::Constant
            && draft.is_live(*v)
            && before(*v)
            && draft.analysis.facts(*v).dims.is_some()
            && !draft.replaced.contains_key(&graph.value(*v).name)
    };
    let inner = graph
        .order
        .iter()
        .flat_map(|n| graph.node(*n).outputs.iter().flatten().copied());
    graph.inputs.iter().copied().chain(inner).filter(usable).collect()
}

/// Indices that consumers pick from a vector, when all of them pick by constants.
pub(crate) fn entries_read(draft: &Draft, vector: ValueId) -> Option<Vec<usize>> {
    let graph = draft.graph;
    let mut read = Vec::new();
    for &(node, input) in &graph.value(vector).consumers {
        if !draft.live[node.0 as usize] {
            continue;
        }
        let n = graph.node(node);
        if input != 0 || !n.is("", "Gather") {
            return None;
        }
        let picks = graph.input(node, 1)?;
        let length = draft.analysis.facts(vector).ints.as_ref()?.len() as i64;
        for pick in graph.value(picks).constant.as_ref()?.ints.as_ref()? {
            let at = if *pick < 0 { pick + length } else { *pick };
            read.push(usize::try_from(at).ok()?);
        }
    }
    Some(read)
}

pub(crate) fn unreadable(draft: &Draft, node: NodeId) -> Error {
    Error::input(format!(
        "node {} reads the shape of a tensor that goes, and no other has the same sizes",
        draft.graph.label(node)
    ))
}
