//! A group without units: its sinks compute nothing, so their outputs are
//! constants (zero, or the bias), and these are folded into what reads them.
//!
//! One pass in topological order over what has become constant ([`folding`] has
//! the rules per operator). A node that still runs reads the constant itself
//! where the constant broadcasts to the right shape, else the constant expanded
//! to the shape that the vanished value had.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::folding::{self, Outcome};
use super::known::{Known, Wanted, refuse};
use super::reads;
use crate::Result;
use crate::axes::{Dim, Int, Poly, PruneGroup};
use crate::graph::NodeId;

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
    let rank = reads::ranks(draft);
    for want in wanted {
        if !draft.live[want.node.0 as usize] {
            continue;
        }
        let dims = draft.analysis.facts(want.value).dims.clone();
        let dims = dims.ok_or_else(|| refuse(draft, want.node))?;
        let sizes: Vec<Poly> = dims.iter().map(|d| draft.eval(&Int::Dim(d.clone()))).collect();
        let base = draft.graph.value(want.value).name.clone();
        let shape = reads::vector(draft, &base, &sizes, None, want.node, &rank)?;
        let constant = draft.constant(&base, &want.constant);
        draft.node_named("Expand", &want.name, &[&constant, &shape], vec![]);
    }
    Ok(())
}
