//! What the units of a group are, from the structure around them.

use std::collections::{BTreeMap, BTreeSet};

use crate::axes::algebra::dim::FactorId;
use crate::axes::facts::Analysis;
use crate::axes::group::{Kind, Sink};
use crate::graph::{Graph, NodeId, ValueId};

/// How leaves take part in products of activations.
pub(crate) struct Roles {
    batch: BTreeSet<FactorId>,
    /// Batch leaves beside key/value heads: the query heads of each.
    repeats: BTreeSet<FactorId>,
    inner: BTreeSet<FactorId>,
    /// Of these, those that activations are multiplied along.
    multiplied: BTreeSet<FactorId>,
}

impl Roles {
    pub(crate) fn of(analysis: &Analysis, graph: &Graph) -> Self {
        let mut roles = Roles {
            batch: BTreeSet::new(),
            repeats: BTreeSet::new(),
            inner: BTreeSet::new(),
            multiplied: BTreeSet::new(),
        };
        let space = &analysis.space;
        let projected = projected(analysis);
        for c in &analysis.contractions {
            if c.constant != [false, false] {
                continue;
            }
            let batch: BTreeSet<FactorId> = c.batch.iter().flat_map(|d| space.leaves(d)).collect();
            let carried = c.inputs.map(|input| {
                let dims = analysis.operand(graph, c.node, input);
                let leaves = dims.into_iter().flatten().flat_map(|d| space.leaves(d));
                leaves.collect::<BTreeSet<_>>()
            });
            // A query head that shares its keys: only the queries have the axis,
            // or the keys are copied along it.
            let shared = |l: &FactorId| {
                space.is_repeat(*l) || !c.inner && !carried.iter().all(|side| side.contains(l))
            };
            // With one key/value head for all, the query heads are the heads.
            let grouped = batch.iter().any(|l| !shared(l) && projected.contains(l));
            if grouped {
                roles.repeats.extend(batch.iter().filter(|l| shared(l)));
            }
            roles.batch.extend(batch);
            let free = c.free.iter().flatten();
            roles.inner.extend(free.flat_map(|d| space.leaves(d)));
            let contracted = c.contracted.iter().flat_map(|(_, _, d)| space.leaves(d));
            roles
                .multiplied
                .extend(contracted.filter(|l| !space.is_repeat(*l)));
        }
        roles.inner.extend(&roles.multiplied);
        roles
    }

    /// Whether two activations are multiplied along it.
    pub(crate) fn is_multiplied(&self, leaf: FactorId) -> bool {
        self.multiplied.contains(&leaf)
    }

    pub(crate) fn kind(&self, leaf: FactorId, sinks: &[Sink]) -> Kind {
        if self.batch.contains(&leaf) {
            if self.repeats.contains(&leaf) {
                Kind::Repeats
            } else {
                Kind::Heads
            }
        } else if self.inner.contains(&leaf) {
            if sinks.is_empty() {
                Kind::QueryDims
            } else {
                Kind::ValueDims
            }
        } else if sinks.iter().all(|s| s.residual) {
            Kind::Neurons
        } else {
            Kind::Other
        }
    }
}

/// Leaves that the product with a constant weight makes.
fn projected(analysis: &Analysis) -> BTreeSet<FactorId> {
    let mut leaves = BTreeSet::new();
    for c in &analysis.contractions {
        for side in 0..2 {
            if c.constant[side] && !c.constant[1 - side] {
                leaves.extend(c.free[side].iter().flat_map(|d| analysis.space.leaves(d)));
            }
        }
    }
    leaves
}

/// Whether the sink's output, through operators that keep positions apart,
/// reaches an addition with something the sink itself was computed from.
pub(crate) fn reaches_residual(
    analysis: &Analysis,
    graph: &Graph,
    rank: &BTreeMap<NodeId, usize>,
    sink: &Sink,
) -> bool {
    const FAR: usize = 64;
    let stops: BTreeSet<NodeId> = analysis.contractions.iter().map(|c| c.node).collect();
    let mut stack: Vec<ValueId> = graph.node(sink.node).outputs.iter().flatten().copied().collect();
    let mut seen = BTreeSet::new();
    while let Some(value) = stack.pop() {
        if !seen.insert(value) || seen.len() > FAR {
            continue;
        }
        for (node, input) in &graph.value(value).consumers {
            if stops.contains(node) || stops_walk(&graph.node(*node).op) {
                continue;
            }
            let n = graph.node(*node);
            let adds = match n.op.as_str() {
                "Add" | "Sum" => Some(0..n.inputs.len()),
                "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => Some(0..2),
                _ => None,
            };
            if let Some(operands) = adds
                && operands.contains(input)
            {
                for other in operands
                    .filter(|i| i != input)
                    .filter_map(|i| graph.input(*node, i))
                {
                    if summands(graph, other).into_iter().any(|term| {
                        let term = whole(analysis, graph, term);
                        !analysis.facts(term).constant && depends_on(graph, rank, sink.activation, term)
                    }) {
                        return true;
                    }
                }
            }
            stack.extend(n.outputs.iter().flatten());
        }
    }
    false
}

/// A value and, where it is a sum, what it is the sum of: parallel sublayers are
/// added one by one.
fn summands(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    const MOST: usize = 8;
    let mut terms = vec![value];
    let mut at = 0;
    while at < terms.len() && terms.len() < MOST {
        if let Some((node, _)) = graph.value(terms[at]).producer
            && matches!(graph.node(node).op.as_str(), "Add" | "Sum")
        {
            terms.extend(graph.node(node).inputs.iter().flatten());
        }
        at += 1;
    }
    terms
}

/// What a slice is taken from, or what is scaled by a constant: one position of
/// the residual stream is added to where only that position is needed, and some
/// models weigh the stream.
fn whole(analysis: &Analysis, graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    while let Some((node, _)) = graph.value(value).producer {
        let next = match graph.node(node).op.as_str() {
            "Slice" | "Cast" | "Identity" => graph.input(node, 0),
            "Mul" => {
                let inputs = graph.node(node).inputs.iter().flatten();
                let mut moving = inputs.filter(|v| !analysis.facts(**v).constant);
                moving.next().filter(|_| moving.next().is_none()).copied()
            }
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => break,
        }
    }
    value
}

/// Operators that mix or pick positions end the way to a residual addition.
fn stops_walk(op: &str) -> bool {
    matches!(
        op,
        "Gather" | "Softmax" | "ReduceMean" | "ReduceSum" | "ReduceMax" | "Shape" | "Attention"
    )
}

/// Whether `value` is computed from `from`.
fn depends_on(graph: &Graph, rank: &BTreeMap<NodeId, usize>, value: ValueId, from: ValueId) -> bool {
    let position = |v: ValueId| graph.value(v).producer.and_then(|(n, _)| rank.get(&n).copied());
    let floor = position(from);
    let maker = graph.value(from).producer.map(|(n, _)| n);
    let mut stack = vec![value];
    let mut seen = BTreeSet::new();
    while let Some(value) = stack.pop() {
        if value == from {
            return true;
        }
        if position(value) < floor || !seen.insert(value) {
            continue;
        }
        if let Some((node, _)) = graph.value(value).producer {
            // A fused skip normalisation hands out the sum and what is
            // normalised: one is as good as the other.
            if Some(node) == maker {
                return true;
            }
            stack.extend(graph.node(node).inputs.iter().flatten());
        }
    }
    false
}
