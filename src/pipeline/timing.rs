//! How much faster the result is.

use super::run::Run;
use crate::onnx::proto;
use crate::report::Latency;
use crate::runtime::SessionOptions;
use crate::{Result, bench, calibrate};

/// Milliseconds that measuring may take, about.
const BUDGET: f64 = 3000.0;
/// Least and most runs of each model.
const RUNS: (f64, f64) = (7.0, 60.0);

/// The latency of `pruned` against the dense model, in turns. Where the model takes
/// fewer tokens than costs are computed for, it gets as many as it takes.
///
/// # Errors
/// The engine's; inputs that cannot be made.
pub(super) fn latency(run: &Run, pruned: &proto::ModelProto) -> Result<Latency> {
    let dense = &run.loaded.model;
    let data = &run.options.data;
    let batch = |seq: usize| calibrate::exact_batch(dense, data.batch, seq.max(1), &data.shapes);
    let inputs = (1..4)
        .map(|halvings| batch(data.seq >> halvings))
        .fold(batch(data.seq), Result::or)?;
    let options = SessionOptions::default();
    let mut a = run.engine.session(pruned, &options)?;
    let mut b = run.engine.session(dense, &options)?;
    let trial = bench::sessions(a.as_mut(), Some(b.as_mut()), &inputs.feeds, 2)?;
    let pair = trial.a.median + trial.b.map_or(0.0, |b| b.median);
    let runs = (BUDGET / pair.max(1e-3)).clamp(RUNS.0, RUNS.1) as usize;
    Ok(Latency {
        batch: inputs.batch,
        seq: inputs.seq,
        timing: bench::sessions(a.as_mut(), Some(b.as_mut()), &inputs.feeds, runs)?,
    })
}
