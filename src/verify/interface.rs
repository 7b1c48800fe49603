//! Graph inputs and outputs that shrink with a mask: caches of past keys and
//! values hold fewer heads.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::data::Batch;
use crate::graph::ValueId;
use crate::mask::Mask;
use crate::network::Network;
use crate::tensor::{Feeds, Tensor};
use crate::{Result, rewrite};

/// Axes of a tensor and the entries along them that stay.
type Picks = Vec<(usize, Vec<usize>)>;

/// What a mask leaves of the inputs and outputs; empty where the pruned model is
/// a drop-in replacement.
#[derive(Debug, Clone, Default)]
pub struct Interface {
    inputs: BTreeMap<String, Picks>,
    outputs: BTreeMap<String, Picks>,
    /// Whether both models take [`crate::data::POSITIONS`] and give their outputs there.
    sampled: bool,
}

impl Interface {
    /// That of the model which `mask` makes.
    pub fn new(network: &Network, mask: &Mask) -> Self {
        let (graph, analysis) = (&network.graph, &network.axes);
        let (kept, space) = (mask.by_factor(analysis), &analysis.space);
        let picks = |value: &ValueId| {
            let dims = analysis.facts(*value).dims.iter().flatten().enumerate();
            let picks: Picks = dims
                .filter(|(_, dim)| kept.touches(space, dim))
                .filter_map(|(axis, dim)| Some((axis, kept.indices(space, dim)?)))
                .collect();
            (!picks.is_empty()).then(|| (graph.value(*value).name.clone(), picks))
        };
        Self {
            inputs: graph.inputs.iter().filter_map(picks).collect(),
            outputs: graph.outputs.iter().filter_map(picks).collect(),
            sampled: false,
        }
    }

    /// The same of models that give their outputs at the positions that they are given.
    pub fn at_positions(&self) -> Self {
        Self {
            sampled: true,
            ..self.clone()
        }
    }

    /// A batch as the dense model takes it.
    pub(super) fn batch<'b>(&self, batch: &'b Batch) -> Cow<'b, Batch> {
        match self.sampled {
            true => Cow::Owned(batch.sampled()),
            false => Cow::Borrowed(batch),
        }
    }

    /// Whether nothing changes.
    pub fn is_same(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }

    /// What the pruned model is given where the dense one is given `feeds`.
    ///
    /// # Errors
    /// A tensor that is smaller than the graph says.
    pub fn feeds(&self, feeds: &Feeds) -> Result<Feeds> {
        let of = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), narrow(&self.inputs, name, tensor)?));
        feeds.iter().map(of).collect()
    }

    /// What the pruned model's outputs are compared with, of the dense one's.
    ///
    /// # Errors
    /// As [`Interface::feeds`].
    pub fn outputs(&self, names: &[String], dense: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let named = names.iter().zip(dense);
        named
            .map(|(name, tensor)| narrow(&self.outputs, name, &tensor))
            .collect()
    }
}

fn narrow(picks: &BTreeMap<String, Picks>, name: &str, tensor: &Tensor) -> Result<Tensor> {
    match picks.get(name) {
        Some(picks) => rewrite::narrowed(name, tensor, picks),
        None => Ok(tensor.clone()),
    }
}
