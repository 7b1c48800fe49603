//! Fits on what really arrives at each sink once the ones before it are pruned.
//!
//! The sinks are walked in order, the dense and the pruned model side by side.
//! At each, X comes from the pruned prefix, and the target is what the dense model
//! has after the residual addition less the pruned model's own residual: so a
//! site also mends what the ones before it have left. The ridge pulls towards the
//! local fit; how strongly is chosen on samples kept apart, with the local fit
//! itself (its intercept moved) as the last resort.
//!
//! Left out, per site: weights that several sinks read, quantised ones, and sinks
//! whose input and output rows do not correspond.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use faer::Mat;

use super::part::Fit;
use super::stops::{Stop, plan};
use super::sums::sums;
use crate::calibrate::{Batch, Samples, batches, input_specs};
use crate::graph::{Graph, ValueId};
use crate::importance::Weights;
use crate::mask::Mask;
use crate::probe::Subject;
use crate::progress::Progress;
use crate::segment::{Boundary, Cut, Runner, Stream};
use crate::sites::Chosen;
use crate::solve::{Normal, Refit};
use crate::tensor::Feeds;
use crate::{Result, ResultExt};

/// Rows per run.
const ROWS: usize = 16;
/// Ridges that are tried, as fractions of the mean variance.
const RIDGES: [f64; 2] = [0.2, 2.0];

/// Layers that keep all inputs are fitted where these have drifted by more than
/// this fraction of their variance.
const DRIFT: f64 = 0.02;

/// Local fits to start from, in the same order.
pub struct Priors {
    /// On all samples.
    pub all: Vec<Fit>,
    /// Without the samples that choose the ridge.
    pub without_guard: Vec<Fit>,
}

/// Replaces local fits by sequential ones where they are better; `priors` are those
/// of [`super::local`] for `mask`. `is_guard` tells by index which samples choose
/// the ridge; `others` asks for the layers that keep all their inputs too.
///
/// # Errors
/// The engine's, an interrupt.
#[allow(clippy::too_many_arguments)]
pub fn sequential(
    subject: Subject,
    chosen: &[Chosen],
    mask: &Mask,
    priors: Priors,
    positions: &Weights,
    samples: &Samples,
    is_guard: fn(usize) -> bool,
    others: bool,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Fit>> {
    let Subject {
        engine,
        model,
        graph,
        analysis,
    } = subject;
    let Priors {
        all: mut fits,
        without_guard,
    } = priors;
    let stops = plan(subject, chosen, mask, &fits, positions, others)?;
    let (mut dense_fed, mut pruned_fed) = (Feeds::new(), Feeds::new());
    let batches: Vec<Batch> = batches(samples, &input_specs(model)?, ROWS)?.collect::<Result<_>>()?;
    progress.start("re-fitting", stops.len() as u64);
    let mut dense = Stream::start(graph, &batches);
    let mut pruned: Option<Stream> = None;
    let mut cut = Cut::start(graph);
    for (at, stop) in stops.iter().enumerate() {
        progress.step(1);
        let stop = &stop.loaded(subject)?;
        let own: Vec<ValueId> = stop.reads().collect();
        let next = cut.until(graph, analysis, &own);
        let later: Vec<ValueId> = stops[at + 1..].iter().flat_map(Stop::reads).collect();
        let keep: BTreeSet<ValueId> = next
            .crossing(graph, analysis, &later)
            .into_iter()
            .chain(own.iter().copied())
            .collect();
        let held = dense
            .tensors
            .first()
            .map(|t| t.keys().copied().collect::<BTreeSet<_>>());
        let held = held.unwrap_or_default();
        let gives: Vec<ValueId> = keep.difference(&held).copied().collect();
        let reads = dense.boundary(&cut.crossing(graph, analysis, &gives))?;
        let within: Vec<Boundary> = stops[..at]
            .iter()
            .filter(|s| next.is_done(s.sink.node) && !cut.is_done(s.sink.node))
            .flat_map(|s| s.part.boundaries())
            .collect();
        let only = |fed: &Feeds| -> Feeds {
            let names = within.iter().map(|b| &graph.value(b.value).name);
            names
                .filter_map(|n| fed.get_key_value(n))
                .map(|(n, t)| (n.clone(), t.clone()))
                .collect()
        };
        if !gives.is_empty() {
            let mut runner = Runner::new(engine, model, graph, &reads, &within, &gives)?;
            runner.feed(only(&dense_fed));
            runner.advance(&mut dense, &keep, cancelled)?;
            if let Some(pruned) = &mut pruned {
                runner.feed(only(&pruned_fed));
                runner.advance(pruned, &keep, cancelled)?;
            }
        }
        cut = next;
        for done in stops[..at].iter().filter(|s| cut.is_done(s.sink.node)) {
            for boundary in done.part.boundaries() {
                let name = &graph.value(boundary.value).name;
                dense_fed.remove(name);
                pruned_fed.remove(name);
            }
        }
        let name = || format!("re-fitting '{}'", stop.part.sites[0].name);
        let (local, without) = match stop.fit {
            Some(fit) => (fits[fit].clone(), without_guard[fit].clone()),
            None => (stop.part.unchanged(), stop.part.unchanged()),
        };
        // Before anything is pruned the local fit is the best there is.
        let better = match &pruned {
            None => None,
            Some(pruned) if stop.fit.is_none() && drift(stop, &dense, pruned) < DRIFT => None,
            Some(pruned) => {
                let streams = [&dense, pruned];
                fit(stop, graph, &batches, streams, [&local, &without], is_guard).context(name)?
            }
        };
        let changed = better.is_some();
        let new = better.unwrap_or(local);
        pruned_fed.extend(new.feeds(graph));
        match stop.fit {
            Some(fit) => fits[fit] = new,
            None if changed => fits.push(new),
            None => {}
        }
        dense_fed.extend(stop.part.constants(graph));
        if pruned.is_none() {
            pruned = Some(dense.clone());
        }
    }
    progress.finish();
    Ok(fits)
}

/// How far the input of a layer is from the dense model's, as a fraction of its
/// variance, on one batch.
fn drift(stop: &Stop, dense: &Stream, pruned: &Stream) -> f64 {
    let activation = stop.sink.activation;
    let of = |stream: &Stream| Some(stream.tensors.first()?.get(&activation)?.to_f32());
    let (Some(a), Some(b)) = (of(dense), of(pruned)) else {
        return 0.0;
    };
    let n = a.len().max(1) as f64;
    let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let spread: f64 = a.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    let change: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    change / spread.max(f64::MIN_POSITIVE)
}

fn fit(
    stop: &Stop,
    graph: &Graph,
    batches: &[Batch],
    streams: [&Stream; 2],
    [local, without]: [&Fit; 2],
    is_guard: fn(usize) -> bool,
) -> Result<Option<Fit>> {
    let Some(sums) = sums(stop, graph, batches, streams, is_guard)? else {
        return Ok(None);
    };
    let intercept = stop.part.has_bias();
    let (train, guard) = (sums.fit.normal(intercept), sums.guard.normal(intercept));
    let biased = |normal: &Normal, weight: &Mat<f64>| {
        if intercept {
            normal.intercept(weight)
        } else {
            vec![0.0; weight.ncols()]
        }
    };
    let prior = stop.part.fitted(without, &stop.rows)?;
    let before = guard.error(&prior, &stop.part.intercept(without));
    let mut best = (guard.error(&prior, &biased(&train, &prior)), None);
    if sums.guard.tokens() > 0 && !stop.rows.is_empty() {
        for ridge in RIDGES {
            let weight = train.solve(&prior, ridge)?;
            let error = guard.error(&weight, &biased(&train, &weight));
            if error < best.0 {
                best = (error, Some(ridge));
            }
        }
    }
    if before <= best.0 {
        return Ok(None);
    }
    let whole = {
        let mut whole = sums.fit;
        whole.merge(&sums.guard)?;
        whole.normal(intercept)
    };
    let prior = stop.part.fitted(local, &stop.rows)?;
    let weight = match best.1 {
        Some(ridge) => whole.solve(&prior, ridge)?,
        None => prior,
    };
    let shift = intercept.then(|| {
        let new = whole.intercept(&weight);
        new.iter().zip(stop.part.bias()).map(|(n, old)| n - old).collect()
    });
    let mut fit = stop.part.fit(
        &stop.rows,
        Refit {
            weight,
            bias_shift: shift,
            error_before: before,
            error_after: best.0,
        },
    );
    fit.told.ridge = best.1;
    Ok(Some(fit))
}
