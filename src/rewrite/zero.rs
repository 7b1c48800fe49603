//! A group without units: its sinks compute nothing, so their outputs are
//! constants (zero, or the bias), and these are folded into what reads them.
//!
//! One pass in topological order over what has become constant ([`folding`] has
//! the rules per operator). A node that still runs reads the constant itself
//! where the constant broadcasts to the right shape, else the constant expanded
//! to the shape that the vanished value had.

use std::collections::{BTreeMap, BTreeSet};

use super::constants::source;
use super::draft::Draft;
use super::folding::{self, Outcome};
use super::reshape;
use crate::axes::{Dim, Int, Poly, PruneGroup};
use crate::graph::{NodeId, ValueId};
use crate::onnx;
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// What has become constant while the pass runs. Each constant broadcasts to
/// the value's shape.
pub(super) struct Known<'d, 'm> {
    pub(super) draft: &'d mut Draft<'m>,
    values: BTreeMap<ValueId, Tensor>,
}

/// A use of a vanished value that wants it in its whole shape.
pub(super) struct Wanted {
    node: NodeId,
    value: ValueId,
    constant: Tensor,
    /// The name that the use reads now.
    name: String,
}

/// Folds the outputs of the groups' sinks. The uses that are returned must be
/// filled in with [`expand`] once it is known what is still computed.
pub(super) fn cut(draft: &mut Draft, groups: &[&PruneGroup]) -> Result<Vec<Wanted>> {
    let graph = draft.graph;
    let mut known = Known {
        draft,
        values: BTreeMap::new(),
    };
    let mut sinks: BTreeSet<NodeId> = BTreeSet::new();
    for group in groups {
        for sink in &group.sinks {
            let output = graph.node(sink.node).outputs.first().copied().flatten();
            let output = output.ok_or_else(|| refuse(known.draft, sink.node))?;
            // Another group may still feed this sum.
            let contracted = &known.draft.analysis.contractions[sink.contraction].contracted;
            let width = contracted
                .iter()
                .fold(Dim::one(), |w, (_, _, d)| w.times(d.clone()));
            if known.draft.eval(&Int::Dim(width)).as_const() != Some(0) {
                return Err(refuse(known.draft, sink.node));
            }
            let constant = folding::empty_sum(&known, sink)?;
            sinks.insert(sink.node);
            known.set(output, constant)?;
        }
    }
    let mut wanted = Vec::new();
    for &node in &graph.order {
        if sinks.contains(&node) {
            continue;
        }
        let n = graph.node(node);
        let count = n.inputs.len() + n.captures.len();
        let reads: Vec<usize> = (0..count)
            .filter(|i| {
                graph
                    .input(node, *i)
                    .is_some_and(|v| known.values.contains_key(&v))
            })
            .collect();
        if reads.is_empty() {
            continue;
        }
        if reads.iter().any(|i| *i >= n.inputs.len()) {
            return Err(refuse(known.draft, node));
        }
        match folding::apply(&mut known, node, &reads)? {
            Outcome::Done => {}
            Outcome::Runs => {
                for input in reads {
                    known.feed(node, input, &mut wanted);
                }
            }
        }
    }
    Ok(wanted)
}

/// Makes the constants that nodes want in their whole shape; the liveness
/// without data of shapes must be marked.
pub(super) fn expand(draft: &mut Draft, wanted: Vec<Wanted>) -> Result<()> {
    let rank = reshape::ranks(draft);
    for want in wanted {
        if !draft.live[want.node.0 as usize] {
            continue;
        }
        let dims = draft.analysis.facts(want.value).dims.clone();
        let dims = dims.ok_or_else(|| refuse(draft, want.node))?;
        let sizes: Vec<Poly> = dims.iter().map(|d| draft.eval(&Int::Dim(d.clone()))).collect();
        let base = draft.graph.value(want.value).name.clone();
        let shape = reshape::vector(draft, &base, &sizes, None, want.node, &rank)?;
        let constant = draft.constant(&base, &want.constant);
        draft.node_named("Expand", &want.name, &[&constant, &shape], vec![]);
    }
    Ok(())
}

pub(super) fn refuse(draft: &Draft, node: NodeId) -> Error {
    Error::input(format!(
        "a constant cannot be folded into node {}",
        draft.graph.label(node)
    ))
}

impl Known<'_, '_> {
    /// What an input has become, or the constant that it is in the file.
    pub(super) fn constant(&self, node: NodeId, input: usize) -> Option<Tensor> {
        let value = self.draft.graph.input(node, input)?;
        match self.values.get(&value) {
            Some(tensor) => Some(tensor.clone()),
            None => self.stored(value),
        }
    }

    /// A float constant of the file.
    pub(super) fn stored(&self, value: ValueId) -> Option<Tensor> {
        self.draft.graph.value(value).constant.as_ref()?;
        let tensor = onnx::tensor(&source(self.draft, value).ok()?).ok()?;
        tensor.elem().is_float().then_some(tensor)
    }

    /// Says that a value has become constant.
    pub(super) fn set(&mut self, value: ValueId, constant: Tensor) -> Result<()> {
        let v = self.draft.graph.value(value);
        if v.is_output {
            return Err(Error::input(format!(
                "the graph output '{}' would be constant",
                v.name
            )));
        }
        self.values.insert(value, constant);
        Ok(())
    }

    /// Whether a value has the whole shape of another by itself.
    pub(super) fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |v: ValueId| -> Option<Vec<Poly>> {
            let dims = self.draft.analysis.facts(v).dims.as_ref()?;
            let space = &self.draft.analysis.space;
            Some(dims.iter().map(|d| space.value(&Int::Dim(d.clone()))).collect())
        };
        shape(a).is_some() && shape(a) == shape(b)
    }

    /// The dimensions of a value in terms of leaves.
    pub(super) fn dims(&self, value: ValueId) -> Option<Vec<Dim>> {
        let dims = self.draft.analysis.facts(value).dims.as_ref()?;
        Some(
            dims.iter()
                .map(|d| self.draft.analysis.space.resolve(d))
                .collect(),
        )
    }

    /// Lets a running node read the constant, expanded.
    fn feed(&mut self, node: NodeId, input: usize, wanted: &mut Vec<Wanted>) {
        let Some(value) = self.draft.graph.input(node, input) else {
            return;
        };
        let Some(constant) = self.values.get(&value).cloned() else {
            return;
        };
        let name = self.draft.fresh(&self.draft.graph.value(value).name);
        self.draft.inputs.insert((node, input), name.clone());
        wanted.push(Wanted {
            node,
            value,
            constant,
            name,
        });
    }
}

/// The element type of the sums of a sink.
pub(super) fn sum_type(known: &Known, sink: &crate::axes::Sink) -> Elem {
    match known.draft.graph.node(sink.node).op.as_str() {
        "MatMulInteger" => Elem::I32,
        _ => super::masked::float_type(known.draft.graph, sink),
    }
}
