//! Shapes that are read from tensors which nothing computes any more.
//!
//! Exporters read batch and sequence length from whatever tensor is at hand,
//! also from one inside a sublayer that goes. Such a `Shape` is moved to a live
//! tensor with the same sizes, or its entries are read one by one.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::reads::{candidates, entries, ranks, size, unreadable};
use crate::Result;
use crate::axes::{Dim, Poly};
use crate::graph::{NodeId, ValueId};

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

fn twin(draft: &Draft, wanted: &[Poly], node: NodeId, rank: &[usize]) -> Option<ValueId> {
    candidates(draft, node, rank).into_iter().find(|v| {
        let dims = draft.analysis.facts(*v).dims.as_deref().unwrap_or_default();
        dims.len() == wanted.len() && dims.iter().zip(wanted).all(|(d, w)| size(draft, d) == *w)
    })
}
