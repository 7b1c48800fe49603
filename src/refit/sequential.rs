//! Fits on what really arrives at each sink once the ones before it are pruned.
//!
//! The sinks are walked in order. At each, X comes from the pruned prefix, and the
//! target is what the dense model has after the residual addition (a [`Recording`] of
//! the pass that calibrates) less the pruned model's own residual: so a site also mends
//! what the ones before it have left. The ridge pulls towards the
//! local fit; how strongly is chosen on samples kept apart, with the local fit
//! itself (its intercept moved) as the last resort.
//!
//! Left out, per site: weights that several sinks read, quantised ones, and sinks
//! whose input and output rows do not correspond.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use super::dense::{Dense, Fetch};
use super::local::Local;
use super::recording::Recording;
use super::ridge::fit;
use super::schedule::{Stop, plan};
use super::sums::{sums, wanted};
use crate::data::{Batch, ROWS, Samples, batches, input_specs};
use crate::graph::ValueId;
use crate::progress::Progress;
use crate::rank::positions::Weights;
use crate::rank::probe::Subject;
use crate::rank::{Runner, Stream};
use crate::rewrite::segment::{Boundary, Cut, piece, with_constants};
use crate::sites::layer::Fit;
use crate::tensor::{Feeds, Tensor};
use crate::{Result, ResultExt};

/// Layers that keep all inputs are fitted where these have drifted by more than
/// this fraction of their variance.
const DRIFT: f64 = 0.04;

/// Re-fits every pruned site of `local`, sequentially where that is better than the
/// local fit among `priors` (per chosen group and part of it; these are made without the
/// samples that choose the ridge, which `is_guard` tells by index). The model may be
/// sliced already, with masks that keep all units of what was pruned; `dense` is the one
/// that is not pruned, and `recording` has the [`targets`](super::targets) of
/// batches of [`ROWS`] rows, which are those that are run; `others` asks for the layers
/// that keep all their inputs too.
///
/// # Errors
/// The engine's, an interrupt.
#[allow(clippy::too_many_arguments)]
pub fn sequential(
    dense: Subject,
    local: Local,
    priors: Vec<Vec<Fit>>,
    positions: &Weights,
    samples: &Samples,
    recording: &Recording,
    is_guard: fn(usize) -> bool,
    others: bool,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Fit>> {
    let Local {
        model,
        graph,
        analysis,
        chosen,
        mask,
        ..
    } = local;
    let engine = dense.engine;
    let subject = Subject {
        engine,
        model,
        graph,
        analysis,
    };
    let mut fits = Fits {
        local: priors,
        others: Vec::new(),
    };
    let halts = plan(subject, chosen, mask, positions, others)?;
    let mut fed = Feeds::new();
    let all = batches(samples, &input_specs(model)?, ROWS)?;
    let batches: Vec<Batch> = recording.kept(all).collect::<Result<_>>()?;
    let dense = Dense {
        subject: dense,
        pruned: graph,
        batches: &batches,
        recording,
    };
    progress.start("re-fitting", halts.len() as u64);
    let mut pruned = Stream::start(graph, &batches);
    let mut cut = Cut::start(graph);
    for (at, halt) in halts.iter().enumerate() {
        progress.step(1);
        let halt: Vec<Stop> = halt.iter().map(|s| s.loaded(subject)).collect::<Result<_>>()?;
        let own: Vec<ValueId> = halt.iter().flat_map(Stop::reads).collect();
        let next = cut.until(graph, analysis, &own);
        let later: Vec<ValueId> = halts[at + 1..].iter().flatten().flat_map(Stop::reads).collect();
        let keep: BTreeSet<ValueId> = next
            .crossing(graph, analysis, &later)
            .into_iter()
            .chain(own.iter().copied())
            .collect();
        let held = pruned
            .tensors
            .first()
            .map(|t| t.keys().copied().collect::<BTreeSet<_>>());
        let held = held.unwrap_or_default();
        let gives: Vec<ValueId> = keep.difference(&held).copied().collect();
        let reads = pruned.boundary(&cut.crossing(graph, analysis, &gives))?;
        let within: Vec<Boundary> = halts[..at]
            .iter()
            .flatten()
            .filter(|s| next.is_done(s.sink.node) && !cut.is_done(s.sink.node))
            .flat_map(|s| s.part.boundaries())
            .collect();
        if !gives.is_empty() {
            let names = within.iter().map(|b| &graph.value(b.value).name);
            let own = names.filter_map(|n| fed.get_key_value(n));
            let inputs: Vec<Boundary> = reads.iter().chain(&within).copied().collect();
            let part = with_constants(piece(model, graph, &inputs, &gives)?, own)?;
            let mut runner = Runner::of(engine, &part, graph, &reads, &gives)?;
            runner.advance(&mut pruned, &keep, cancelled)?;
        }
        cut = next;
        for done in halts[..at].iter().flatten().filter(|s| cut.is_done(s.sink.node)) {
            for boundary in done.part.boundaries() {
                fed.remove(&graph.value(boundary.value).name);
            }
        }
        let first = &halt[0];
        // Before anything is pruned the local fit is the best there is.
        let mut better = None;
        if at > 0 {
            let mut dense = dense.fetch(&wanted(&halt))?;
            if first.fit.is_some() || drift(first, &mut dense, &pruned)? >= DRIFT {
                better = sums(engine, &halt, graph, &batches, &mut dense, &pruned, is_guard)?;
            }
        }
        let mut new = match better {
            None => Vec::new(),
            Some(sums) => {
                let name = || format!("re-fitting '{}'", first.part.sites[0].name);
                let priors: Vec<_> = halt.iter().map(|stop| fits.now(stop)).collect();
                fit(&halt, sums, &priors).context(name)?
            }
        };
        new.resize(halt.len(), None);
        for (stop, better) in halt.iter().zip(new) {
            match better {
                Some(better) => {
                    fed.extend(better.feeds(graph));
                    fits.replace(stop, better);
                }
                None => fed.extend(fits.now(stop).feeds(graph)),
            }
        }
    }
    progress.finish();
    Ok(fits.local.into_iter().flatten().chain(fits.others).collect())
}

/// The fits so far.
struct Fits {
    /// Per chosen group and part of it.
    local: Vec<Vec<Fit>>,
    /// Of layers that keep all their inputs.
    others: Vec<Fit>,
}

impl Fits {
    /// The fit that stands; the layer itself, where it keeps all its inputs.
    fn now(&self, stop: &Stop) -> Cow<'_, Fit> {
        match stop.fit.and_then(|(at, part)| self.local.get(at)?.get(part)) {
            Some(fit) => Cow::Borrowed(fit),
            None => Cow::Owned(stop.part.unchanged()),
        }
    }

    fn replace(&mut self, stop: &Stop, better: Fit) {
        match stop
            .fit
            .and_then(|(at, part)| self.local.get_mut(at)?.get_mut(part))
        {
            Some(fit) => *fit = better,
            None => self.others.push(better),
        }
    }
}

/// How far the input of a layer is from the dense model's, as a fraction of its
/// variance, on one batch.
fn drift(stop: &Stop, dense: &mut Fetch, pruned: &Stream) -> Result<f64> {
    let activation = stop.sink.activation;
    let (a, b) = (dense.of(0)?, pruned.tensors.first());
    let of = |tensors: &BTreeMap<ValueId, Tensor>| Some(tensors.get(&activation)?.to_f32());
    let (Some(a), Some(b)) = (of(&a), b.and_then(of)) else {
        return Ok(0.0);
    };
    let n = a.len().max(1) as f64;
    let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let spread: f64 = a.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    let change: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    Ok(change / spread.max(f64::MIN_POSITIVE))
}
