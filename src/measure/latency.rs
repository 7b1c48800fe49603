//! What each level of each group costs in time, measured.
//!
//! Per group a small model is cut from the pruned one ([`cut`]): from the values
//! that its sources read to the outputs of its sinks, fed with what the dense
//! model computes there. Its latency is measured in turns with that of the dense
//! cut, so that a machine that slows down for a while slows both. Groups whose
//! cuts are alike (the layers of an encoder) are timed once. What an engine
//! spends on any call, however small, is measured with an empty model and taken
//! off.
//!
//! The parts are additive up to what an engine fuses across their borders; the
//! final model is measured as a whole.

use std::collections::BTreeMap;

use crate::axes::{GroupId, Kind};
use crate::budget::{Measure, Prices};
use crate::engine::{Ctx, Engine, SessionOptions};
use crate::mask::Mask;
use crate::measure::paired::{self, Spread};
use crate::network::Network;
use crate::onnx::proto;
use crate::rewrite::segment::group::{GroupCut, cut};
use crate::sites::PruneTarget;
use crate::tensor::Feeds;
use crate::{Error, Result, ResultExt, rewrite};

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyOptions {
    /// Runs per level.
    pub runs: usize,
    /// Numbers of neurons that are timed are multiples of this.
    pub align: usize,
}

impl Default for LatencyOptions {
    fn default() -> Self {
        LatencyOptions { runs: 15, align: 16 }
    }
}

/// Latency of one group by the number of units.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TimedPart {
    /// Units kept and milliseconds, ascending in both; none is 0 ms.
    pub points: Vec<(usize, f64)>,
}

impl TimedPart {
    /// From measurements: a smaller level is never dearer than a larger one.
    pub fn new(mut points: Vec<(usize, f64)>) -> Self {
        points.sort_by_key(|(units, _)| *units);
        points.dedup_by_key(|(units, _)| *units);
        TimedPart {
            points: isotonic(&points),
        }
    }

    /// Milliseconds with `kept` units; between two levels, in proportion.
    pub fn at(&self, kept: usize) -> f64 {
        let after = self.points.partition_point(|(units, _)| *units < kept);
        match (
            after.checked_sub(1).and_then(|i| self.points.get(i)),
            self.points.get(after),
        ) {
            (_, Some((units, ms))) if *units == kept => *ms,
            (Some((a, low)), Some((b, high))) => {
                low + (high - low) * (kept - a) as f64 / (b - a).max(1) as f64
            }
            (Some((_, ms)), None) | (None, Some((_, ms))) => *ms,
            (None, None) => 0.0,
        }
    }
}

/// Least squares under the condition that nothing falls (pool adjacent
/// violators).
fn isotonic(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (_, ms) in points {
        pools.push((ms.max(0.0), 1));
        while let [.., (a, m), (b, n)] = pools[..]
            && a > b
        {
            pools.truncate(pools.len() - 2);
            pools.push(((a * m as f64 + b * n as f64) / (m + n) as f64, m + n));
        }
    }
    let values = pools.iter().flat_map(|(ms, n)| std::iter::repeat_n(*ms, *n));
    points.iter().map(|(units, _)| *units).zip(values).collect()
}

/// Latencies of a model and of its groups.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LatencyTable {
    /// Milliseconds of the whole dense model.
    pub whole: Spread,
    /// By name of the group.
    pub parts: BTreeMap<String, TimedPart>,
    /// Per block of channels that was asked for: its heads by the number of channels.
    #[serde(default)]
    pub channels: Vec<TimedPart>,
}

/// Channels inside heads whose time is asked for.
pub struct TimedBlocks<'a> {
    /// The network in which they are groups.
    pub network: &'a Network,
    /// The blocks.
    pub blocks: Vec<TimedBlock>,
}

/// The channels of one block of heads.
#[derive(Debug, Clone)]
pub struct TimedBlock {
    /// The heads.
    pub heads: Option<GroupId>,
    /// The channels.
    pub channels: Option<GroupId>,
    /// How many there are.
    pub count: usize,
    /// How many may stay.
    pub levels: Vec<usize>,
}

impl TimedBlocks<'_> {
    /// What tells tables apart.
    pub fn signature(&self) -> String {
        let block = |b: &TimedBlock| format!("{:?}/{:?}:{}:{:?}", b.heads, b.channels, b.count, b.levels);
        let blocks: Vec<String> = self.blocks.iter().map(block).collect();
        blocks.join(",")
    }
}

impl LatencyTable {
    /// What the levels of the targets cost, in nanoseconds. Where the
    /// parts add up to more than the whole, all are scaled down to it.
    ///
    /// # Errors
    /// A group that was not measured.
    pub fn prices(&self, network: &Network, targets: &[PruneTarget]) -> Result<Prices> {
        let nanoseconds = |ms: f64| (ms * 1e6).round() as u64;
        let mut parts = Vec::with_capacity(targets.len());
        for c in targets {
            let group = network.group(c.group);
            let part = self.parts.get(&group.name).ok_or_else(|| {
                Error::input(format!(
                    "the latency table has nothing for the group '{}': measure it again",
                    group.name
                ))
            })?;
            parts.push((group.units, part));
        }
        let sum: f64 = parts.iter().map(|(units, part)| part.at(*units)).sum();
        let scale = if sum > self.whole.median {
            self.whole.median / sum
        } else {
            1.0
        };
        let levels: Vec<Vec<u64>> = parts
            .iter()
            .map(|(units, part)| {
                (0..=*units)
                    .map(|kept| nanoseconds(scale * part.at(kept)))
                    .collect()
            })
            .collect();
        let full = nanoseconds(self.whole.median);
        let own = levels
            .iter()
            .filter_map(|l| l.last())
            .fold(0, |sum: u64, l| sum.saturating_add(*l));
        Ok(Prices {
            measure: Measure::Nanoseconds,
            base: full.saturating_sub(own),
            full,
            origin: full.saturating_sub(own),
            levels,
        })
    }
}

/// Times the targets of a model.
///
/// # Errors
/// The engine's; an interrupt.
pub fn measure(
    ctx: Ctx,
    network: &Network,
    targets: &[PruneTarget],
    blocks: Option<&TimedBlocks>,
    inputs: &Feeds,
    options: LatencyOptions,
) -> Result<LatencyTable> {
    let Ctx { engine, progress, .. } = ctx;
    let whole = paired::paired(engine, &network.proto, None, inputs, options.runs)?.a;
    let mut cuts = Vec::with_capacity(targets.len());
    let mut names: Vec<String> = Vec::new();
    for c in targets {
        let cut = cut(&network.proto, network, c.group)?;
        names.extend(cut.inputs.iter().filter(|n| !inputs.contains_key(*n)).cloned());
        cuts.push(cut);
    }
    names.sort();
    names.dedup();
    let known = fetch(engine, &network.proto, inputs, names)?;
    let mut timer = Timer { ctx, known, options };
    let mut alike: BTreeMap<String, TimedPart> = BTreeMap::new();
    let mut parts = BTreeMap::new();
    progress.start("latency", targets.len() as u64);
    for (c, dense) in targets.iter().zip(cuts) {
        let group = network.group(c.group);
        let key = dense.signature(&timer.known);
        let part = match alike.get(&key) {
            Some(part) => part.clone(),
            None => {
                let cut_at = |kept: usize| -> Result<GroupCut> {
                    let mut mask = Mask::default();
                    mask.kept
                        .insert(c.group, (0..group.units).map(|u| u < kept).collect());
                    let pruned = rewrite::prune(network, &mask)?;
                    cut(&pruned, network, c.group)
                };
                let levels = levels(group.kind, group.units, options.align);
                let part = timer
                    .part(&dense, group.units, &levels, cut_at)
                    .context(|| format!("timing the group '{}'", group.name))?;
                alike.insert(key, part.clone());
                part
            }
        };
        parts.insert(group.name.clone(), part);
        progress.step(1);
    }
    let channels = match blocks {
        Some(blocks) => timer.blocks(blocks, inputs)?,
        None => Vec::new(),
    };
    progress.finish();
    Ok(LatencyTable {
        whole,
        parts,
        channels,
    })
}

/// What the dense model computes at the borders of the cuts.
fn fetch(
    engine: &dyn Engine,
    model: &proto::ModelProto,
    inputs: &Feeds,
    names: Vec<String>,
) -> Result<Feeds> {
    let mut known = inputs.clone();
    if !names.is_empty() {
        let options = SessionOptions {
            optimise: true,
            outputs: Some(names.clone()),
        };
        let tensors = engine.session(model, &options)?.run(inputs)?;
        known.extend(names.into_iter().zip(tensors));
    }
    Ok(known)
}

/// Levels that are timed, besides all units: every one where they are few, else
/// about eight.
fn levels(kind: Kind, units: usize, align: usize) -> Vec<usize> {
    const FEW: usize = 12;
    const SOME: usize = 8;
    if units <= FEW {
        return (1..units).collect();
    }
    let align = if kind == Kind::Neurons { align.max(1) } else { 1 };
    let mut levels: Vec<usize> = (1..SOME)
        .map(|i| (units * i / SOME).next_multiple_of(align))
        .filter(|kept| (1..units).contains(kept))
        .collect();
    levels.dedup();
    levels
}

struct Timer<'a> {
    ctx: Ctx<'a>,
    known: Feeds,
    options: LatencyOptions,
}

impl Timer<'_> {
    /// The heads of each block by the number of their channels; blocks that are alike are
    /// timed once.
    fn blocks(&mut self, blocks: &TimedBlocks, inputs: &Feeds) -> Result<Vec<TimedPart>> {
        let network = blocks.network;
        let mut alike: BTreeMap<String, TimedPart> = BTreeMap::new();
        let mut parts = Vec::with_capacity(blocks.blocks.len());
        for block in &blocks.blocks {
            let (Some(heads), Some(channels)) = (block.heads, block.channels) else {
                return Err(Error::input("channels of no block are to be timed"));
            };
            let dense = cut(&network.proto, network, heads)?;
            let unknown = dense.inputs.iter().filter(|n| !self.known.contains_key(*n));
            let unknown: Vec<String> = unknown.cloned().collect();
            let fetched = fetch(self.ctx.engine, &network.proto, inputs, unknown)?;
            self.known.extend(fetched);
            let kind = network.group(channels).kind;
            let key = format!("{kind:?} {}", dense.signature(&self.known));
            if let Some(part) = alike.get(&key) {
                parts.push(part.clone());
                continue;
            }
            let cut_at = |kept: usize| -> Result<GroupCut> {
                let mut mask = Mask::default();
                let flags = (0..block.count).map(|u| u < kept).collect();
                mask.kept.insert(channels, flags);
                let pruned = rewrite::prune(network, &mask)?;
                cut(&pruned, network, heads)
            };
            let part = self
                .part(&dense, block.count, &block.levels, cut_at)
                .context(|| format!("timing the channels of '{}'", network.group(heads).name))?;
            alike.insert(key, part.clone());
            parts.push(part);
        }
        Ok(parts)
    }

    fn part(
        &mut self,
        dense: &GroupCut,
        units: usize,
        levels: &[usize],
        cut_at: impl Fn(usize) -> Result<GroupCut>,
    ) -> Result<TimedPart> {
        let open = |model: &proto::ModelProto| self.ctx.engine.session(model, &SessionOptions::default());
        let feeds = dense.feeds(&self.known)?;
        let mut whole = open(&dense.model(&feeds))?;
        let outputs = whole.run(&feeds)?;
        // What any call takes: inputs are handed over, outputs come back.
        let mut empty = open(&dense.empty_model(&feeds, &outputs))?;
        let runs = self.options.runs;
        let call = paired::sessions(empty.as_mut(), None, &feeds, runs)?.a.median;
        let mut times = Vec::new();
        let mut ratios = Vec::new();
        for &kept in levels {
            self.ctx.check()?;
            let smaller = cut_at(kept)?;
            let own = smaller.feeds(&self.known)?;
            if own.keys().ne(feeds.keys()) {
                return Err(Error::input(format!(
                    "with {kept} units it reads other values than the dense model"
                )));
            }
            let mut session = open(&smaller.model(&own))?;
            let timing = paired::sessions(session.as_mut(), Some(whole.as_mut()), &feeds, runs)?;
            if let (Some(b), Some(speedup)) = (timing.b, timing.speedup) {
                times.push(b.median);
                ratios.push((kept, 1.0 / speedup.median.max(1e-9)));
            }
        }
        if times.is_empty() {
            times.push(paired::sessions(whole.as_mut(), None, &feeds, runs)?.a.median);
        }
        let full = Spread::of(&times).median;
        let mut points = vec![(0, 0.0), (units, (full - call).max(0.0))];
        points.extend(
            ratios
                .into_iter()
                .map(|(kept, ratio)| (kept, (ratio * full - call).max(0.0))),
        );
        Ok(TimedPart::new(points))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_levels_are_never_cheaper() {
        let part = TimedPart::new(vec![(8, 3.0), (0, 0.0), (4, 4.0), (16, 6.0)]);
        assert_eq!(part.points, [(0, 0.0), (4, 3.5), (8, 3.5), (16, 6.0)]);
        assert_eq!(part.at(0), 0.0);
        assert_eq!(part.at(2), 1.75);
        assert_eq!(part.at(12), 4.75);
        assert_eq!(part.at(99), 6.0);
    }

    #[test]
    fn levels_are_few_and_aligned() {
        assert_eq!(levels(Kind::Heads, 4, 16), [1, 2, 3]);
        assert_eq!(
            levels(Kind::Neurons, 1536, 16),
            [192, 384, 576, 768, 960, 1152, 1344]
        );
        assert_eq!(levels(Kind::Neurons, 20, 16), [16]);
    }
}
