//! The lossless rewrites in a run: budgets are paid in what they leave, and the
//! pruned model goes through them last.
//!
//! Statistics are taken of the model as it is: where the last layer runs on one
//! position only, it has too few rows to be fitted.

use crate::Result;
use crate::axes::{self, GroupId, PruneGroup};
use crate::data::ExactBatch;
use crate::engine::Engine;
use crate::measure::paired::{self, Spread};
use crate::network::Network;
use crate::onnx::proto;
use crate::rewrite::lossless::{self, LosslessPass};
use crate::sites::PruneTarget;

/// Pairs of runs that decide between a fused kernel and less work.
const RUNS: usize = 15;

/// The dense network after the lossless rewrites.
pub struct Simplified {
    /// The network.
    pub network: Network,
    /// From the index of a group to that of the same group here.
    pub groups: Vec<GroupId>,
    /// What was done.
    pub passes: Vec<LosslessPass>,
}

impl Simplified {
    /// The rewrites where they help, with what is to be said of that: where they break a
    /// fused attention kernel, the measured latency decides.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn choose(
        engine: &dyn Engine,
        dense: &proto::ModelProto,
        (network, options): (&Network, axes::AnalysisOptions),
        inputs: impl FnOnce() -> Result<ExactBatch>,
    ) -> Result<(Option<Self>, Option<String>)> {
        let Some(found) = Self::find(dense, network, options)? else {
            return Ok((None, None));
        };
        let Some((before, after)) = found.lost_kernels(engine, dense)? else {
            return Ok((Some(found), None));
        };
        let lost = format!("the lossless rewrites leave {after} of {before} fused attention kernels");
        let Ok(batch) = inputs() else {
            let note = format!("{lost}, and no inputs could be made to time it: they are left out");
            return Ok((None, Some(note)));
        };
        let timing = paired::paired(engine, &found.network.proto, Some(dense), &batch.feeds, RUNS)?;
        let speedup = timing.speedup.unwrap_or(Spread::of(&[1.0]));
        let better = speedup.median > 1.0;
        let note = format!(
            "{lost}; with them the dense model is {:.3} times as fast (quartiles {:.3} to {:.3}): they are {}",
            speedup.median,
            speedup.lower,
            speedup.upper,
            if better { "applied" } else { "left out" }
        );
        Ok((better.then_some(found), Some(note)))
    }

    /// The dense model as it was read is rewritten: where activations are quantised by the
    /// range of all positions, float weights must not hide that. `None` where
    /// nothing can be done, or the groups would not be the same.
    fn find(
        dense: &proto::ModelProto,
        known: &Network,
        options: axes::AnalysisOptions,
    ) -> Result<Option<Self>> {
        let (model, passes) = lossless::apply(dense)?;
        if passes.is_empty() {
            return Ok(None);
        }
        let network = Network::of(model, options)?;
        let same = |g: &PruneGroup| network.axes.find_group(&g.name, g.kind, g.units);
        let groups: Option<Vec<GroupId>> = known.axes.groups.iter().map(same).collect();
        Ok(groups.map(|groups| Self {
            network,
            groups,
            passes,
        }))
    }

    /// The targets in this network.
    pub(super) fn targets(&self, targets: &[PruneTarget]) -> Vec<PruneTarget> {
        let here = |target: &PruneTarget| {
            let group = *self.groups.get(target.group.0)?;
            Some(PruneTarget {
                group,
                ..target.clone()
            })
        };
        targets.iter().filter_map(here).collect()
    }

    /// Fewer attention kernels than the engine makes of the dense model, before
    /// and after; `None` where none is lost or the engine cannot tell.
    fn lost_kernels(&self, engine: &dyn Engine, dense: &proto::ModelProto) -> Result<Option<(usize, usize)>> {
        let count = |model: &proto::ModelProto| -> Result<Option<usize>> {
            let found = engine.optimised_operators(model)?;
            Ok(found.map(|ops| {
                let fused = ops.iter().filter(|(op, _)| op.contains("Attention"));
                fused.map(|(_, n)| n).sum()
            }))
        };
        Ok(match (count(dense)?, count(&self.network.proto)?) {
            (Some(before), Some(after)) if after < before => Some((before, after)),
            _ => None,
        })
    }
}
