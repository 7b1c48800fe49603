//! Each use of a constant gets the slice that its axes ask for.

use std::collections::BTreeMap;

use super::draft::Draft;
use super::reads::{int_attribute, rewire};
use super::slice;
use crate::axes::{Dim, Link, Term};
use crate::graph::{NodeId, ValueId, constant_of};
use crate::onnx::proto;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Axes that shrink, with what stays.
type CutAxes = Vec<(usize, Vec<usize>)>;

/// Slices the constants that live nodes read.
pub(super) fn cut(draft: &mut Draft) -> Result<()> {
    let graph = draft.graph;
    let links: BTreeMap<(NodeId, usize), Vec<&Link>> = {
        let mut map: BTreeMap<_, Vec<&Link>> = BTreeMap::new();
        for link in &draft.analysis.links {
            map.entry((link.node, link.input)).or_default().push(link);
        }
        map
    };
    for (at, value) in graph.values.iter().enumerate() {
        if value.constant.is_none() {
            continue;
        }
        let id = ValueId(at as u32);
        let mut by_cut: Vec<(CutAxes, Vec<(NodeId, usize)>)> = Vec::new();
        for &(node, input) in &value.consumers {
            if !draft.live[node.0 as usize] || reads_other(draft, node, input, &value.name) {
                continue;
            }
            let mut cut = match draft.analysis.operand(graph, node, input) {
                Some(dims) => cut_of(draft, dims, node, &value.name)?,
                None => Vec::new(),
            };
            for link in links.get(&(node, input)).into_iter().flatten() {
                cut.extend(linked(draft, link));
            }
            match by_cut.iter_mut().find(|(c, _)| *c == cut) {
                Some((_, uses)) => uses.push((node, input)),
                None => by_cut.push((cut, vec![(node, input)])),
            }
        }
        place(draft, id, by_cut)?;
    }
    // Tables that are computed: a Gather in front of each reader.
    for ((node, input), links) in links {
        let Some(value) = graph.input(node, input) else {
            continue;
        };
        if !draft.live[node.0 as usize] || graph.value(value).constant.is_some() {
            continue;
        }
        for link in links {
            match linked(draft, link) {
                Some((axis, indices)) => gather(draft, node, input, axis, &indices),
                None => gather_rows(draft, link)?,
            }
        }
    }
    Ok(())
}

/// Whether a rewired or replaced input reads something else by now.
fn reads_other(draft: &Draft, node: NodeId, input: usize, name: &str) -> bool {
    match draft.changed.get(&node) {
        Some(body) => !body.input.iter().any(|i| i == name),
        None => draft.reads(node, input).as_deref() != Some(name),
    }
}

fn cut_of(draft: &Draft, dims: &[Dim], node: NodeId, name: &str) -> Result<CutAxes> {
    let space = &draft.analysis.space;
    let mut cut = CutAxes::new();
    for (axis, dim) in dims.iter().enumerate() {
        if !draft.kept.touches(space, dim) {
            continue;
        }
        let indices = draft.kept.indices(space, dim).unwrap_or_default();
        if indices.is_empty() {
            return Err(Error::input(format!(
                "the tensor '{name}' would lose all of axis {axis}, but node {} still needs it",
                draft.graph.label(node)
            )));
        }
        cut.push((axis, indices));
    }
    Ok(cut)
}

fn linked(draft: &Draft, link: &Link) -> Option<(usize, Vec<usize>)> {
    let space = &draft.analysis.space;
    if !draft.kept.touches(space, &link.other) {
        return None;
    }
    Some((link.axis, draft.kept.indices(space, &link.other)?))
}

fn place(draft: &mut Draft, id: ValueId, by_cut: Vec<(CutAxes, Vec<(NodeId, usize)>)>) -> Result<()> {
    let value = draft.graph.value(id);
    let several = by_cut.len() > 1 || value.is_output;
    for (cut, uses) in by_cut {
        if cut.is_empty() {
            continue;
        }
        let source = source(draft, id)?;
        let mut sliced = slice::tensor(&source, &cut)?;
        let is_initializer = value.constant.as_ref().is_some_and(|c| c.initializer.is_some());
        if !several && is_initializer {
            draft.tensors.insert(value.name.clone(), sliced);
            continue;
        }
        let name = draft.fresh(&value.name);
        draft.slices.entry(id).or_default().push(name.clone());
        sliced.name = Some(name.clone());
        draft.tensors.insert(name.clone(), sliced);
        for (node, input) in uses {
            rewire(draft, node, input, &value.name, &name);
        }
    }
    Ok(())
}

/// The tensor of a constant of the draft's model.
pub(super) fn source(draft: &Draft, id: ValueId) -> Result<proto::TensorProto> {
    constant_of(draft.proto, draft.graph, id)
}

fn gather(draft: &mut Draft, node: NodeId, input: usize, axis: usize, indices: &[usize]) {
    let Some(reads) = draft.reads(node, input) else {
        return;
    };
    let list: Vec<i64> = indices.iter().map(|i| *i as i64).collect();
    let picks = draft.constant(&format!("{reads}_heads"), &Tensor::i64(vec![list.len()], list));
    let output = draft.node(
        "Gather",
        &reads,
        &[&reads, &picks],
        vec![int_attribute("axis", axis as i64)],
    );
    draft.inputs.insert((node, input), output);
}

/// A table whose axis is `run-time size x units`: the indices are computed, a
/// row of the kept units for each of the run-time size.
fn gather_rows(draft: &mut Draft, link: &Link) -> Result<()> {
    let space = &draft.analysis.space;
    if !draft.kept.touches(space, &link.other) {
        return Ok(());
    }
    let terms = space.resolve(&link.other).0;
    let inner = terms
        .iter()
        .rposition(|t| matches!(t, Term::Symbol(_)))
        .map_or(0, |at| at + 1);
    let outer_moves = draft.kept.touches(space, &Dim(terms[..inner].to_vec()));
    let minor = Dim(terms[inner..].to_vec());
    let (Some(size), Some(kept), false) =
        (space.size(&minor), draft.kept.indices(space, &minor), outer_moves)
    else {
        return Err(Error::input(format!(
            "the table that node {} reads has heads outside a run-time size",
            draft.graph.label(link.node)
        )));
    };
    let Some(reads) = draft.reads(link.node, link.input) else {
        return Ok(());
    };
    let base = format!("{reads}_heads");
    let scalar = |draft: &mut Draft, n: i64| draft.constant(&base, &Tensor::i64(vec![], vec![n]));
    let (axis, size) = (scalar(draft, link.axis as i64), scalar(draft, size as i64));
    let (zero, one) = (scalar(draft, 0), scalar(draft, 1));
    let list: Vec<i64> = kept.iter().map(|i| *i as i64).collect();
    let kept = draft.constant(&base, &Tensor::i64(vec![1, list.len()], list));
    let column = draft.constant(&base, &Tensor::i64(vec![2], vec![-1, 1]));
    let flat = draft.constant(&base, &Tensor::i64(vec![1], vec![-1]));
    let shape = draft.node("Shape", &base, &[&reads], vec![]);
    let total = draft.node("Gather", &base, &[&shape, &axis], vec![int_attribute("axis", 0)]);
    let rows = draft.node("Div", &base, &[&total, &size], vec![]);
    let range = draft.node("Range", &base, &[&zero, &rows, &one], vec![]);
    let starts = draft.node("Mul", &base, &[&range, &size], vec![]);
    let starts = draft.node("Reshape", &base, &[&starts, &column], vec![]);
    let grid = draft.node("Add", &base, &[&starts, &kept], vec![]);
    let picks = draft.node("Reshape", &base, &[&grid, &flat], vec![]);
    let output = draft.node(
        "Gather",
        &reads,
        &[&reads, &picks],
        vec![int_attribute("axis", link.axis as i64)],
    );
    draft.inputs.insert((link.node, link.input), output);
    Ok(())
}
