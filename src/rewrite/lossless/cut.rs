//! A cut of one position, and the graph that it goes through.

use crate::axes::{Analysis, Dim};
use crate::graph::{Graph, NodeId, ValueId, operators};

/// One entry of one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PositionCut {
    /// The axis, counted from the left.
    pub(super) axis: usize,
    /// The entry; -1 is the last one.
    pub(super) at: i64,
}

impl PositionCut {
    /// Whether the cut of an axis of size 1 is that axis.
    pub(super) fn is_end(self) -> bool {
        matches!(self.at, 0 | -1)
    }

    /// The end of the slice that starts at [`PositionCut::at`].
    pub(super) fn end(self) -> i64 {
        match self.at {
            -1 => i64::MAX,
            at => at.saturating_add(1),
        }
    }
}

/// A graph with its axes.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) graph: &'a Graph,
    pub(super) analysis: &'a Analysis,
}

impl Context<'_> {
    /// The dimensions of what a node reads, in leaves.
    pub(super) fn dims(&self, node: NodeId, input: usize) -> Option<Vec<Dim>> {
        let dims = self.analysis.operand(self.graph, node, input)?;
        Some(dims.iter().map(|d| self.analysis.space.resolve(d)).collect())
    }

    /// The dimensions of a value, in leaves.
    pub(super) fn value_dims(&self, value: ValueId) -> Option<Vec<Dim>> {
        let dims = self.analysis.facts(value).dims.as_ref()?;
        Some(dims.iter().map(|d| self.analysis.space.resolve(d)).collect())
    }

    /// The elements of a small integer tensor that is known.
    pub(super) fn ints(&self, node: NodeId, input: usize) -> Option<Vec<i64>> {
        let value = self.graph.input(node, input)?;
        let ints = self.analysis.facts(value).ints.as_ref()?;
        ints.iter()
            .map(|i| self.analysis.space.value(i).as_const())
            .collect()
    }

    /// Whether the axis of a value has size 1.
    pub(super) fn is_single(&self, value: ValueId, axis: usize) -> bool {
        let one = self
            .value_dims(value)
            .and_then(|dims| Some(dims.get(axis)?.is_one()))
            .unwrap_or(false);
        // The last entry of an axis of unknown size: the analysis does not know
        // that there is one.
        one || self
            .graph
            .value(value)
            .producer
            .and_then(|(node, _)| slice(self, node))
            .is_some_and(|cut| cut.axis == axis)
    }
}

pub(super) fn slice(cx: &Context, node: NodeId) -> Option<PositionCut> {
    if !cx.graph.node(node).is("", "Slice") {
        return None;
    }
    let rank = cx.dims(node, 0)?.len();
    let ([start], [end]) = (&cx.ints(node, 1)?[..], &cx.ints(node, 2)?[..]) else {
        return None;
    };
    let [axis] = cx.ints(node, 3)?[..] else {
        return None;
    };
    if cx.graph.input(node, 4).is_some() && cx.ints(node, 4)? != [1] {
        return None;
    }
    let axis = operators::axis(axis, rank)?;
    let cut = PositionCut { axis, at: *start };
    let one = match *start {
        -1 => *end > i64::from(i32::MAX) - 1,
        0.. => start.checked_add(1) == Some(*end),
        _ => false,
    };
    one.then_some(cut)
}
