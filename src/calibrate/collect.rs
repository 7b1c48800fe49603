//! Runs a model over samples and adds up the statistics of its sites.

use std::collections::BTreeMap;
use std::time::Instant;

use rayon::prelude::*;

use super::collector::{Collector, SiteProbe, Timings};
use super::in_graph::InGraph;
use crate::data::{Batch, PositionWeights, Samples, batches, input_specs};
use crate::engine::{Ctx, SessionOptions};
use crate::error::{Error, Result, ResultExt};
use crate::numerics::{SiteStatistics, Statistics};
use crate::onnx::proto;
use crate::progress::Progress;
use crate::tensor::Tensor;

/// The sites that a pass sums.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// Where their inputs can be seen.
    pub probes: &'a [SiteProbe],
    /// By site, how much rows count; all alike where it does not name one.
    pub weights: &'a BTreeMap<String, PositionWeights>,
}

/// Runs `samples` through `model`, in batches of up to `max_rows` rows as
/// [`batches`] makes them, and sums the statistics of the sites that are `watched`.
///
/// Memory is that of the sums, one batch and one block of rows per site: it does
/// not grow with the number of samples. Padding and rows that fill a batch are
/// left out; [`Watched::weights`] says how much the others count. `progress` counts samples.
///
/// Where the engine [reduces](crate::engine::Engine::reduces), nodes of the model make the sums; then
/// the engine's seconds are those of the sums too.
pub fn collect(
    ctx: Ctx,
    model: &proto::ModelProto,
    watched: Watched,
    samples: &Samples,
    max_rows: usize,
) -> Result<(Statistics, Timings)> {
    let all = CollectPass {
        max_rows,
        apart: |_| false,
        values: &[],
        watch: &mut |_| Ok(()),
    };
    collect_watching(ctx, model, watched, samples, all)
}

/// What a pass does besides the sums.
pub struct CollectPass<'a> {
    /// Rows of a batch.
    pub max_rows: usize,
    /// Which samples run but are left out of the sums, by index.
    pub apart: fn(usize) -> bool,
    /// Values that `watch` is shown.
    pub values: &'a [String],
    /// Called after each batch with its `values`.
    pub watch: &'a mut dyn FnMut(&[&Tensor]) -> Result<()>,
}

/// [`collect`], with a look at some values of every batch.
///
/// # Errors
/// As [`collect`]; those of [`CollectPass::watch`].
pub fn collect_watching(
    ctx: Ctx,
    model: &proto::ModelProto,
    watched: Watched,
    samples: &Samples,
    pass: CollectPass,
) -> Result<(Statistics, Timings)> {
    let Ctx { engine, progress, .. } = ctx;
    let Watched { probes, weights } = watched;
    let specs = input_specs(model)?;
    let mut timings = Timings::default();

    // Values in the order they are fetched, and the collectors on each.
    let mut values: Vec<String> = Vec::new();
    let mut collectors: Vec<Collector<'_>> = Vec::new();
    let mut of_probe = Vec::with_capacity(probes.len());
    for probe in probes {
        if !values.contains(&probe.value) {
            values.push(probe.value.clone());
        }
        let own = weights.get(&probe.site).copied().unwrap_or(PositionWeights::EVEN);
        let known = collectors.iter().position(|c| {
            c.value == probe.value
                && c.axes == probe.axes
                && c.weights == own
                && c.statistics.width() == probe.width
        });
        of_probe.push(known.unwrap_or(collectors.len()));
        if known.is_none() {
            collectors.push(Collector {
                site: &probe.site,
                value: &probe.value,
                axes: &probe.axes,
                weights: own,
                statistics: SiteStatistics::sparing(probe.width),
                rows: Vec::new(),
                counts: Vec::new(),
            });
        }
    }

    for name in pass.values {
        if !values.contains(name) {
            values.push(name.clone());
        }
    }
    let started = Instant::now();
    let options = SessionOptions {
        optimise: true,
        outputs: Some(values),
    };
    let mut session = engine.session(model, &options)?;
    timings.prepare_seconds += started.elapsed().as_secs_f64();
    let mut in_graph = engine
        .reduces()
        .then(|| InGraph::new(engine, model, collectors.len(), pass.apart, pass.values));

    progress.start("calibrating", samples.samples.len() as u64);
    let _finish = FinishProgress(progress);
    let mut tokens = 0u64;
    for batch in batches(samples, &specs, pass.max_rows)? {
        ctx.check()?;
        let batch = batch?;
        tokens = tokens.saturating_add(batch.real_tokens_of(|sample| !(pass.apart)(sample)));
        if let Some(nodes) = &mut in_graph
            && nodes.add(&batch, &mut collectors, &mut timings, pass.watch)?
        {
            progress.step(batch.rows.len() as u64);
            continue;
        }
        let started = Instant::now();
        let fetched = session
            .run(&batch.feeds)
            .context(|| format!("running {}", describe(&batch)))?;
        timings.engine_seconds += started.elapsed().as_secs_f64();
        timings.runs += 1;

        let started = Instant::now();
        let fetched: BTreeMap<&str, &Tensor> = session
            .outputs()
            .iter()
            .map(String::as_str)
            .zip(&fetched)
            .collect();
        let taken: Vec<Result<()>> = collectors
            .par_iter_mut()
            .map(|collector| {
                let tensor = fetched.get(collector.value).copied().ok_or_else(|| {
                    Error::engine(format!("the engine did not return value '{}'", collector.value))
                })?;
                collector.take(tensor, &batch, pass.apart)
            })
            .collect();
        taken.into_iter().collect::<Result<()>>()?;
        if let Some(nodes) = &mut in_graph {
            for (at, collector) in collectors.iter_mut().enumerate() {
                // The first rows set the pilot, which the nodes are given.
                collector.flush();
                if let Some(tensor) = fetched.get(collector.value) {
                    nodes.learn(at, &batch, &tensor.shape);
                }
            }
        }
        if !pass.values.is_empty() {
            let watched: Vec<&Tensor> = (pass.values.iter())
                .filter_map(|name| fetched.get(name.as_str()).copied())
                .collect();
            (pass.watch)(&watched)?;
        }
        timings.statistics_seconds += started.elapsed().as_secs_f64();
        progress.step(batch.rows.len() as u64);
    }
    let started = Instant::now();
    for collector in &mut collectors {
        collector.flush();
        collector.check()?;
    }
    timings.statistics_seconds += started.elapsed().as_secs_f64();

    // The last site of a value takes the sums, the ones before copy them.
    let mut sites = BTreeMap::new();
    for (i, (probe, &at)) in probes.iter().zip(&of_probe).enumerate() {
        let Some(collector) = collectors.get_mut(at) else {
            continue;
        };
        let shared = of_probe.iter().skip(i + 1).any(|&later| later == at);
        let own = if shared {
            collector.statistics.clone()
        } else {
            std::mem::replace(&mut collector.statistics, SiteStatistics::new(0))
        };
        if sites.insert(probe.site.clone(), own).is_some() {
            return Err(Error::input(format!("two probes are named '{}'", probe.site)));
        }
    }
    let statistics = Statistics {
        sites,
        samples: (0..samples.samples.len()).filter(|s| !(pass.apart)(*s)).count(),
        tokens,
    };
    Ok((statistics, timings))
}

/// Ends the progress on errors too.
struct FinishProgress<'a>(&'a dyn Progress);

impl Drop for FinishProgress<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn describe(batch: &Batch) -> String {
    let inputs: Vec<String> = batch
        .feeds
        .iter()
        .map(|(name, t)| format!("{name}{:?}", t.shape))
        .collect();
    let first = batch.rows.first().copied().unwrap_or(0);
    format!(
        "a batch of {} from sample {first} on ({})",
        batch.rows.len(),
        inputs.join(", ")
    )
}
