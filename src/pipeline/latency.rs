//! Latency in a run: the tables that price a demand, and results against the dense model.

use std::time::Instant;

use super::ranked::Ranked;
use super::source::Source;
use crate::Result;
use crate::budget::{Demand, Measure, Prices};
use crate::data::{self, ExactBatch, ExactSizes};
use crate::engine::{Engine as _, SessionOptions};
use crate::measure::latency::{self, TimedBlocks};
use crate::measure::paired::{self, Measured};
use crate::measure::{Cache, CacheKey};
use crate::onnx::proto;
use crate::tensor::Feeds;
use crate::verify::Interface;

/// Pairs of runs that a demanded latency is judged by.
const RUNS: usize = 31;
/// Bounds of the pairs of runs for the report, and the seconds they may take.
const FEW: usize = 5;
const MANY: usize = 25;
const SECONDS: f64 = 1.5;

impl Source<'_> {
    /// Inputs of the size that costs are computed for.
    pub(super) fn timed_inputs(&self) -> Result<ExactBatch> {
        data::exact_batch(&self.network().proto, &self.options.data.exact(&self.seen))
    }

    /// The same with fewer tokens, for a model that does not take as many.
    fn shorter_inputs(&self) -> Result<ExactBatch> {
        let wanted = self.options.data.exact(&self.seen);
        let of = |seq: usize| {
            let fewer = ExactSizes {
                seq: Some(seq),
                ..wanted
            };
            data::exact_batch(&self.network().proto, &fewer)
        };
        let half = (self.options.data.seq() / 2).max(1);
        of(half).or_else(|_| of((half / 2).max(1)))
    }
}

/// What units and channels of a network take.
pub(super) struct Times {
    /// By target and number of units.
    pub(super) prices: Prices,
    /// Per block of channels: milliseconds of its heads by the number of channels.
    channels: Vec<latency::TimedPart>,
    /// Channels of each block.
    counts: Vec<usize>,
}

impl Times {
    /// The time that heads take with `kept` channels of a block, as a fraction of that with
    /// all of them.
    pub(super) fn ratio(&self, block: usize, kept: usize) -> f64 {
        let (Some(part), Some(count)) = (self.channels.get(block), self.counts.get(block)) else {
            return 1.0;
        };
        let (few, all) = (part.at(kept), part.at(*count));
        match all > 0.0 {
            true => (few / all).clamp(0.0, 1.0),
            false => 1.0,
        }
    }
}

/// What demands on time are judged by, and what they are priced by where they may bind.
#[derive(Default)]
pub(super) struct Timed {
    /// Per network; empty where nothing is demanded.
    pub(super) inputs: Vec<ExactBatch>,
    /// Per network; none where the dense models meet all demands by themselves.
    pub(super) times: Option<Vec<Times>>,
}

/// Prepares for demands on time.
///
/// # Errors
/// The engine's; an interrupt; a group that cannot be timed by itself.
pub(super) fn prepare(networks: &[&Ranked], demands: &[Demand]) -> Result<Timed> {
    let timed: Vec<&Demand> = demands
        .iter()
        .filter(|d| d.measure() == Measure::Nanoseconds)
        .collect();
    if timed.is_empty() {
        return Ok(Timed::default());
    }
    let inputs = networks.iter().map(|ranked| ranked.source().timed_inputs());
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let dense = networks.iter().zip(&inputs).map(|(ranked, inputs)| {
        let source = ranked.source();
        Ok(
            paired::paired(&source.engine, source.dense(), None, &inputs.feeds, FEW)?
                .a
                .upper,
        )
    });
    let dense: f64 = dense.collect::<Result<Vec<f64>>>()?.iter().sum();
    let full = (dense * 1e6) as u64;
    if timed.iter().all(|d| d.most(0, full) >= full) {
        return Ok(Timed { inputs, times: None });
    }
    let times = networks
        .iter()
        .zip(&inputs)
        .map(|(ranked, inputs)| table(ranked, &inputs.feeds));
    let times = times.collect::<Result<Vec<_>>>()?;
    Ok(Timed {
        inputs,
        times: Some(times),
    })
}

/// What the levels of the targets of a network cost in time.
fn table(ranked: &Ranked, inputs: &Feeds) -> Result<Times> {
    let source = ranked.source();
    let options = latency::LatencyOptions {
        align: source
            .options
            .alignment(&source.engine.info().device)
            .of(usize::MAX),
        ..latency::LatencyOptions::default()
    };
    let (network, targets) = match &source.simplified {
        Some(s) => (&s.network, s.targets(&source.targets)),
        None => (source.network(), source.targets.clone()),
    };
    let blocks = ranked.channels.as_ref().map(|channels| {
        let open = channels.open();
        let blocks = channels.narrower.blocks();
        let of = |(at, block): (usize, &crate::channels::ChannelBlock)| latency::TimedBlock {
            heads: open.groups.get(source.targets[block.at].group.0).copied(),
            channels: open.group_of_block(at),
            count: block.count(),
            levels: block.levels.clone(),
        };
        TimedBlocks {
            network: &open.network,
            blocks: blocks.iter().enumerate().map(of).collect(),
        }
    });
    let changes = source.simplified.as_ref().map_or("", |_| "lossless");
    let changes = match &blocks {
        Some(blocks) => format!("{changes} {}", blocks.signature()),
        None => changes.to_owned(),
    };
    let key = CacheKey::new(&source.sha256, &changes, source.engine.info(), inputs, options);
    let path = source.options.latency_cache.clone().or_else(Cache::usual_path);
    let mut cache = path.as_deref().map(Cache::open);
    let known = cache.as_ref().and_then(|c| c.get(&key)).cloned();
    let complete = |t: &latency::LatencyTable| {
        targets
            .iter()
            .all(|c| t.parts.contains_key(&network.group(c.group).name))
    };
    let table = match known.filter(complete) {
        Some(table) => table,
        None => {
            let table = latency::measure(source.ctx(), network, &targets, blocks.as_ref(), inputs, options)?;
            // A run is not worth less for a cache that cannot be written.
            if let Some(Err(error)) = cache.as_mut().map(|c| c.put(&key, table.clone())) {
                tracing::warn!("the latency table was not kept: {}", error.chain());
            }
            table
        }
    };
    let mut prices = table.prices(network, &targets)?;
    if source.simplified.is_some() {
        let whole = paired::paired(&source.engine, &network.proto, Some(source.dense()), inputs, RUNS)?;
        if let Some(speedup) = whole.speedup {
            prices.full = (speedup.median * table.whole.median * 1e6).round() as u64;
        }
    }
    let counts = blocks.map_or_else(Vec::new, |b| b.blocks.iter().map(|b| b.count).collect());
    Ok(Times {
        prices,
        channels: table.channels,
        counts,
    })
}

/// The latency of some results together.
#[derive(Clone, Copy)]
pub(super) struct Total {
    /// Milliseconds.
    pruned: f64,
    /// How many times as long the dense models take.
    speedup: f64,
    /// Nanoseconds of the dense models.
    pub(super) dense: u64,
    /// Uncertainty, as a fraction.
    pub(super) noise: f64,
}

impl Total {
    /// `None` where one of them was not measured.
    pub(super) fn of(measured: &[Option<Measured>]) -> Option<Self> {
        let all: Vec<&Measured> = measured.iter().map(Option::as_ref).collect::<Option<_>>()?;
        if all.is_empty() {
            return None;
        }
        let pruned: f64 = all.iter().map(|m| m.timing.a.median).sum();
        let dense: f64 = all.iter().filter_map(|m| m.timing.b).map(|b| b.median).sum();
        let speedup = match &all[..] {
            [one] => one.timing.speedup.map_or(1.0, |s| s.median),
            _ => dense / pruned.max(1e-12),
        };
        Some(Self {
            pruned,
            speedup: speedup.max(1e-9),
            dense: (dense * 1e6) as u64,
            noise: all.iter().map(|m| m.timing.noise).fold(0.0, f64::max),
        })
    }

    /// In terms of a demand, and in nanoseconds of a table whose dense model takes `full`.
    pub(super) fn against(self, demand: Demand, full: u64) -> (Demand, f64) {
        let of_full = full as f64 / self.speedup;
        match demand {
            Demand::LatencyFraction(_) => (Demand::LatencyFraction(1.0 / self.speedup), of_full),
            Demand::Latency(_) => (Demand::Latency(self.pruned), self.pruned * 1e6),
            _ => (Demand::Speedup(self.speedup), of_full),
        }
    }
}

impl Ranked<'_> {
    /// Times a result that has to meet a latency.
    pub(super) fn judged(
        &self,
        pruned: (&proto::ModelProto, &Interface),
        batch: &ExactBatch,
    ) -> Result<Measured> {
        self.timed(pruned, batch, |_| RUNS)
    }

    /// Times a result for the report, in about a second.
    pub(super) fn reported(&self, pruned: (&proto::ModelProto, &Interface)) -> Result<Measured> {
        let source = self.source();
        let batch = source.timed_inputs().or_else(|_| source.shorter_inputs())?;
        let runs = |pair: f64| ((SECONDS / pair.max(1e-9)) as usize).clamp(FEW, MANY);
        self.timed(pruned, &batch, runs)
    }

    fn timed(
        &self,
        (pruned, interface): (&proto::ModelProto, &Interface),
        batch: &ExactBatch,
        runs: impl Fn(f64) -> usize,
    ) -> Result<Measured> {
        let engine = &self.source().engine;
        let own = interface.feeds(&batch.feeds)?;
        let open = |model: &proto::ModelProto| engine.session(model, &SessionOptions::default());
        let (mut smaller, mut dense) = (open(pruned)?, open(self.source().dense())?);
        let started = Instant::now();
        smaller.run(&own)?;
        dense.run(&batch.feeds)?;
        let runs = runs(started.elapsed().as_secs_f64());
        let of_dense = Some((dense.as_mut(), &batch.feeds));
        Ok(Measured {
            batch: batch.batch,
            seq: batch.seq,
            timing: paired::sessions_on(smaller.as_mut(), &own, of_dense, runs)?,
        })
    }
}
