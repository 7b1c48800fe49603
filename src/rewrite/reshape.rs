//! Shapes that are read from tensors which nothing computes any more.
//!
//! Exporters read batch and sequence length from whatever tensor is at hand,
//! also from one inside a sublayer that goes. Such a `Shape` is moved to a live
//! tensor with the same sizes, or its entries are read one by one.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::ints::{concat, pick};
use crate::axes::{Dim, Poly};
use crate::graph::{NodeId, Role, ValueId};
use crate::tensor::Tensor;
use crate::{Error, Result};

pub(super) fn shapes_of_the_dead(draft: &mut Draft) -> Result<()> {
    let graph = draft.graph;
    let rank = ranks(draft);
    for &node in &graph.order {
        let n = graph.node(node);
        if !n.is("", "Shape") || !draft.live[node.0 as usize] {
            continue;
        }
        let Some(source) = graph.input(node, 0) else {
            continue;
        };
        if draft.is_live(source) || !needs_the_empty(draft, source) {
            continue;
        }
        let dims = draft.analysis.facts(source).dims.clone();
        let Some(dims) = dims else {
            return Err(unreadable(draft, node));
        };
        let wanted: Vec<Poly> = dims.iter().map(|d| size(draft, d)).collect();
        if let Some(twin) = twin(draft, &wanted, node, &rank) {
            let name = graph.value(twin).name.clone();
            draft.inputs.insert((node, 0), name);
            continue;
        }
        entries(draft, node, &wanted, &rank)?;
    }
    Ok(())
}

/// Whether computing a value runs through a tensor that lost all its units.
fn needs_the_empty(draft: &Draft, value: ValueId) -> bool {
    let graph = draft.graph;
    let space = &draft.analysis.space;
    let mut seen = BTreeSet::new();
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        if draft.is_live(value) || !seen.insert(value) {
            continue;
        }
        let dims = draft.analysis.facts(value).dims.as_deref().unwrap_or_default();
        let empty = |dim: &Dim| {
            draft.kept.touches(space, dim) && space.size_with(dim, &|f| draft.kept.size(space, f)) == Some(0)
        };
        if dims.iter().any(empty) {
            return true;
        }
        if let Some((node, _)) = graph.value(value).producer {
            stack.extend(graph.node(node).inputs.iter().flatten());
            stack.extend(&graph.node(node).captures);
        }
    }
    false
}

fn unreadable(draft: &Draft, node: NodeId) -> Error {
    Error::input(format!(
        "node {} reads the shape of a tensor that goes, and no other has the same sizes",
        draft.graph.label(node)
    ))
}

/// Position of each node in the topological order.
pub(super) fn ranks(draft: &Draft) -> Vec<usize> {
    let mut rank = vec![0; draft.graph.nodes.len()];
    for (at, node) in draft.graph.order.iter().enumerate() {
        rank[node.0 as usize] = at;
    }
    rank
}

fn size(draft: &Draft, dim: &Dim) -> Poly {
    let space = &draft.analysis.space;
    space.eval_dim(dim, &|f| draft.kept.size(space, f))
}

/// Live values that are computed before a node, graph inputs first.
fn candidates(draft: &Draft, node: NodeId, rank: &[usize]) -> Vec<ValueId> {
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

fn twin(draft: &Draft, wanted: &[Poly], node: NodeId, rank: &[usize]) -> Option<ValueId> {
    candidates(draft, node, rank).into_iter().find(|v| {
        let dims = draft.analysis.facts(*v).dims.as_deref().unwrap_or_default();
        dims.len() == wanted.len() && dims.iter().zip(wanted).all(|(d, w)| size(draft, d) == *w)
    })
}

/// Builds the vector that a `Shape` makes from single entries.
fn entries(draft: &mut Draft, node: NodeId, wanted: &[Poly], rank: &[usize]) -> Result<()> {
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

/// A vector of sizes, read from live tensors that are computed before a node;
/// of the entries, only those in `read` matter.
pub(super) fn vector(
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

/// Indices that consumers pick from a vector, when all of them pick by constants.
fn entries_read(draft: &Draft, vector: ValueId) -> Option<Vec<usize>> {
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
