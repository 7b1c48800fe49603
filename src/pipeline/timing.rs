//! Latency in a run: the table that prices a budget, and the result against the
//! dense model.

use std::time::Instant;

use super::build::Built;
use super::run::Run;
use crate::budget::Prices;
use crate::data::ExactBatch;
use crate::engine::{Engine, SessionOptions};
use crate::measure::paired::{self, Measured};
use crate::measure::{Cache, Key, latency};
use crate::onnx::proto;
use crate::tensor::Feeds;
use crate::{Result, data};

/// Pairs of runs that a demanded latency is judged by.
const RUNS: usize = 31;
/// Bounds of the pairs of runs for the report, and the seconds they may take.
const FEW: usize = 5;
const MANY: usize = 25;
const SECONDS: f64 = 1.5;

/// Inputs of the size that costs are computed for.
pub(super) fn inputs(run: &Run) -> Result<ExactBatch> {
    let data = &run.options.data;
    data::exact_batch(&run.loaded.model, data.batch, data.seq, &data.shapes)
}

/// The same with fewer tokens, for a model that does not take as many.
fn shorter(run: &Run) -> Result<ExactBatch> {
    let data = &run.options.data;
    let of = |seq: usize| data::exact_batch(&run.loaded.model, data.batch, seq, &data.shapes);
    let half = (data.seq / 2).max(1);
    of(half).or_else(|_| of((half / 2).max(1)))
}

/// What the levels of the chosen groups cost in time.
///
/// # Errors
/// The engine's; an interrupt; a group that cannot be timed by itself.
pub(super) fn prices(run: &mut Run, inputs: &Feeds) -> Result<Prices> {
    let options = latency::Options {
        align: run.alignment().of(usize::MAX),
        ..latency::Options::default()
    };
    let changes = run.cheaper.as_ref().map_or("", |_| "lossless");
    let sha256 = run.loaded.file.sha256()?;
    let key = Key::new(&sha256, changes, run.engine.info(), inputs, options);
    let path = run.options.latency_cache.clone().or_else(Cache::usual_path);
    let mut cache = path.as_deref().map(Cache::open);
    let known = cache.as_ref().and_then(|c| c.get(&key)).cloned();
    let chosen = match &run.cheaper {
        Some(cheaper) => cheaper.chosen(&run.chosen),
        None => run.chosen.clone(),
    };
    let (model, graph, analysis) = match &run.cheaper {
        Some(c) => (&c.model, &c.graph, &c.analysis),
        None => (&run.loaded.model, &run.loaded.graph, &run.loaded.analysis),
    };
    let complete = |t: &latency::Table| {
        let name = |c: &crate::sites::Chosen| &analysis.groups[c.group].name;
        chosen.iter().all(|c| t.parts.contains_key(name(c)))
    };
    let mut told = None;
    let table = match known.filter(complete) {
        Some(table) => table,
        None => {
            let table = latency::measure(
                &run.engine,
                model,
                graph,
                analysis,
                &chosen,
                inputs,
                options,
                run.progress,
                run.cancelled,
            )?;
            // A run is not worth less for a cache that cannot be written.
            if let Some(Err(error)) = cache.as_mut().map(|c| c.put(&key, table.clone())) {
                told = Some(format!("the latency table was not kept: {}", error.chain()));
            }
            table
        }
    };
    let mut prices = table.prices(analysis, &chosen)?;
    if run.cheaper.is_some() {
        let whole = paired::paired(&run.engine, model, Some(run.dense()), inputs, RUNS)?;
        if let Some(speedup) = whole.speedup {
            prices.full = (speedup.median * table.whole.median * 1e6).round() as u64;
        }
    }
    run.loaded.notes.extend(told);
    run.clock.lap("latency table");
    Ok(prices)
}

/// Times a result that has to meet a latency.
pub(super) fn judged(run: &Run, built: &Built, batch: &ExactBatch) -> Result<Measured> {
    measured(run, built, batch, |_| RUNS)
}

/// Times a result for the report, in about a second; `None` where the interface
/// changes or inputs of that size cannot be made.
pub(super) fn reported(run: &mut Run, built: &Built) -> Result<Option<Measured>> {
    let Ok(batch) = inputs(run).or_else(|_| shorter(run)) else {
        return Ok(None);
    };
    let runs = |pair: f64| ((SECONDS / pair.max(1e-9)) as usize).clamp(FEW, MANY);
    let found = measured(run, built, &batch, runs);
    run.clock.lap("timing");
    found.map(Some)
}

fn measured(run: &Run, built: &Built, batch: &ExactBatch, runs: impl Fn(f64) -> usize) -> Result<Measured> {
    let engine = &run.engine;
    let own = built.interface.feeds(&batch.feeds)?;
    let open = |model: &proto::ModelProto| engine.session(model, &SessionOptions::default());
    let (mut pruned, mut dense) = (open(&built.model)?, open(run.dense())?);
    let started = Instant::now();
    pruned.run(&own)?;
    dense.run(&batch.feeds)?;
    let runs = runs(started.elapsed().as_secs_f64());
    let timing = paired::sessions_on(pruned.as_mut(), &own, Some((dense.as_mut(), &batch.feeds)), runs)?;
    Ok(Measured {
        batch: batch.batch,
        seq: batch.seq,
        timing,
    })
}
