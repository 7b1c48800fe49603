//! The lossless passes in a run: budgets are paid in what they leave, and the
//! pruned model goes through them last.
//!
//! Statistics are taken of the model as it is: where the last layer runs on one
//! position only, it has too few rows to be fitted.

use super::Loaded;
use crate::Result;
use crate::axes::{self, Analysis, PruneGroup};
use crate::engine::Engine;
use crate::graph::{self, Graph};
use crate::measure::paired::{self, Spread};
use crate::onnx::proto;
use crate::rewrite::lossless::{self, Pass};
use crate::sites::Chosen;
use crate::tensor::Feeds;

/// Pairs of runs that decide between a fused kernel and less work.
const RUNS: usize = 15;

/// The dense model after the lossless passes.
pub struct Cheaper {
    /// The model.
    pub model: proto::ModelProto,
    /// Its graph.
    pub graph: Graph,
    /// Its axes.
    pub analysis: Analysis,
    /// From the index of a group to that of the same group here.
    pub groups: Vec<usize>,
    /// What was done.
    pub passes: Vec<Pass>,
}

impl Cheaper {
    /// `dense` is the model as it was read: where activations are quantised by the
    /// range of all positions, float weights must not hide that. `None` where
    /// nothing can be done, or the groups would not be the same.
    ///
    /// # Errors
    /// A graph that is not well-formed.
    pub(super) fn find(
        dense: &proto::ModelProto,
        loaded: &Loaded,
        options: axes::Options,
    ) -> Result<Option<Self>> {
        let (model, passes) = lossless::apply(dense)?;
        if passes.is_empty() {
            return Ok(None);
        }
        let graph = graph::build(&model)?;
        let analysis = axes::analyse(&graph, options);
        let same = |g: &PruneGroup| analysis.find_group(&g.name, g.kind, g.units);
        let groups: Option<Vec<usize>> = loaded.analysis.groups.iter().map(same).collect();
        Ok(groups.map(|groups| Self {
            model,
            graph,
            analysis,
            groups,
            passes,
        }))
    }

    /// The chosen groups in this model.
    pub(super) fn chosen(&self, chosen: &[Chosen]) -> Vec<Chosen> {
        let here = |c: &Chosen| {
            let group = *self.groups.get(c.group)?;
            Some(Chosen { group, ..c.clone() })
        };
        chosen.iter().filter_map(here).collect()
    }

    /// Fewer attention kernels than the engine makes of the dense model, before
    /// and after; `None` where none is lost or the engine cannot tell.
    pub(super) fn lost_kernels(
        &self,
        engine: &dyn Engine,
        dense: &proto::ModelProto,
    ) -> Result<Option<(usize, usize)>> {
        let count = |model: &proto::ModelProto| -> Result<Option<usize>> {
            let found = engine.optimised_operators(model)?;
            Ok(found.map(|ops| {
                let fused = ops.iter().filter(|(op, _)| op.contains("Attention"));
                fused.map(|(_, n)| n).sum()
            }))
        };
        Ok(match (count(dense)?, count(&self.model)?) {
            (Some(before), Some(after)) if after < before => Some((before, after)),
            _ => None,
        })
    }

    /// How many times as fast as the dense model it is.
    pub(super) fn speedup(
        &self,
        engine: &dyn Engine,
        dense: &proto::ModelProto,
        inputs: &Feeds,
    ) -> Result<Spread> {
        let timing = paired::paired(engine, &self.model, Some(dense), inputs, RUNS)?;
        Ok(timing.speedup.unwrap_or(Spread::of(&[1.0])))
    }
}
