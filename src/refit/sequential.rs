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

use super::dense::{Dense, Fetch};
use super::recording::Recording;
use super::ridge::{ChosenFit, fit};
use super::schedule::{FitLayer, Layers};
use super::sums::{Runs, sums, values};
use crate::data::{Batch, ROWS, Samples, batches, input_specs};
use crate::engine::Ctx;
use crate::graph::ValueId;
use crate::network::Network;
use crate::rank::positions::Weights;
use crate::rank::{Runner, Stream};
use crate::rewrite::segment::{Boundary, Cut, piece, with_constants};
use crate::sites::{Fit, TriedFit};
use crate::tensor::{Feeds, Tensor};
use crate::{Result, ResultExt};

/// Layers that keep all inputs are fitted where these have drifted by more than
/// this fraction of their variance.
const DRIFT: f64 = 0.04;

/// What sequential fits are made of, besides the network.
#[derive(Clone, Copy)]
pub struct Passes<'a> {
    /// The samples that were recorded.
    pub samples: &'a Samples,
    /// What the dense model has in the [`wanted`](super::wanted) values of batches of [`ROWS`]
    /// rows, which are those that are run.
    pub recording: &'a Recording,
    /// Which samples choose the ridge, by index.
    pub is_ridge_holdout: fn(usize) -> bool,
    /// How much the positions of a sequence count, by site.
    pub positions: &'a Weights,
}

/// Re-fits every pruned site of `layers`, sequentially where that is better than the
/// local fit among `priors` (per target and part of it; these are made without the
/// samples that choose the ridge). `dense` is the network that is not pruned; `others` asks
/// for the layers that keep all their inputs too.
///
/// # Errors
/// The engine's, an interrupt.
pub fn sequential(
    ctx: Ctx,
    dense: &Network,
    layers: &Layers,
    priors: Vec<Vec<Fit>>,
    passes: Passes,
    others: bool,
) -> Result<InOrder> {
    let network = layers.network;
    let (graph, progress) = (&network.graph, ctx.progress);
    let mut fits = Fits {
        local: priors,
        others: Vec::new(),
    };
    let halts = layers.plan(passes.positions, others)?;
    let mut fed = Feeds::new();
    let all = batches(passes.samples, &input_specs(&network.proto)?, ROWS)?;
    let batches: Vec<Batch> = passes.recording.kept(all).collect::<Result<_>>()?;
    let dense = Dense {
        engine: ctx.engine,
        network: dense,
        pruned: graph,
        batches: &batches,
        recording: passes.recording,
    };
    let mut kept_local = Vec::new();
    progress.start("re-fitting", halts.len() as u64);
    let mut pruned = Stream::start(graph, &batches);
    let mut cut = Cut::start(graph);
    for (at, halt) in halts.iter().enumerate() {
        progress.step(1);
        let halt: Vec<FitLayer> = halt.iter().map(|s| s.loaded(network)).collect::<Result<_>>()?;
        let own: Vec<ValueId> = halt.iter().flat_map(FitLayer::reads).collect();
        let next = cut.until(network, &own);
        let later: Vec<ValueId> = halts[at + 1..]
            .iter()
            .flatten()
            .flat_map(FitLayer::reads)
            .collect();
        let keep: BTreeSet<ValueId> = next
            .crossing(network, &later)
            .into_iter()
            .chain(own.iter().copied())
            .collect();
        let held = pruned
            .tensors
            .first()
            .map(|t| t.keys().copied().collect::<BTreeSet<_>>());
        let held = held.unwrap_or_default();
        let gives: Vec<ValueId> = keep.difference(&held).copied().collect();
        let reads = pruned.boundary(&cut.crossing(network, &gives))?;
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
            let part = with_constants(piece(network, &inputs, &gives)?, own)?;
            let mut runner = Runner::of(ctx.engine, &part, graph, &reads, &gives)?;
            runner.advance(&mut pruned, &keep, ctx.cancelled)?;
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
            let mut made = None;
            if let Some(mut dense) = dense.fetch(&values(&halt))?
                && (first.fit.is_some() || drift(first, &mut dense, &pruned)? >= DRIFT)
            {
                let runs = Runs {
                    graph,
                    batches: &batches,
                    pruned: &pruned,
                };
                made = sums(ctx.engine, &halt, runs, &mut dense, passes.is_ridge_holdout)?;
            }
            if made.is_none() && first.fit.is_some() {
                kept_local.extend(halt.iter().flat_map(|s| &s.part.sites).map(|s| s.name.clone()));
            }
            better = made;
        }
        let mut new = match better {
            None => Vec::new(),
            Some(sums) => {
                let name = || format!("re-fitting '{}'", first.part.sites[0].name);
                let priors: Vec<_> = halt.iter().map(|stop| fits.now(stop)).collect();
                fit(&halt, sums, &priors).context(name)?
            }
        };
        new.resize(halt.len(), ChosenFit::default());
        for (stop, chosen) in halt.iter().zip(new) {
            fits.tell(stop, chosen.tried);
            match chosen.better {
                Some(better) => {
                    fed.extend(better.feeds(graph));
                    fits.replace(stop, better);
                }
                None => fed.extend(fits.now(stop).feeds(graph)),
            }
        }
    }
    progress.finish();
    Ok(InOrder {
        fits: fits.local.into_iter().flatten().chain(fits.others).collect(),
        kept_local,
    })
}

/// What re-fitting in order gives.
pub struct InOrder {
    /// The fits of all layers.
    pub fits: Vec<Fit>,
    /// Pruned sites that keep their local fit, because what arrives at them and what they
    /// are to give have no rows in common.
    pub kept_local: Vec<String>,
}

/// The fits so far.
struct Fits {
    /// Per target and part of it.
    local: Vec<Vec<Fit>>,
    /// Of layers that keep all their inputs.
    others: Vec<Fit>,
}

impl Fits {
    /// The fit that stands; the layer itself, where it keeps all its inputs.
    fn now(&self, stop: &FitLayer) -> Cow<'_, Fit> {
        match stop.fit.and_then(|(at, part)| self.local.get(at)?.get(part)) {
            Some(fit) => Cow::Borrowed(fit),
            None => Cow::Owned(stop.part.unchanged()),
        }
    }

    /// Notes by which errors the fit of a pruned layer was chosen.
    fn tell(&mut self, stop: &FitLayer, tried: Vec<TriedFit>) {
        if let Some((at, part)) = stop.fit
            && let Some(fit) = self.local.get_mut(at).and_then(|parts| parts.get_mut(part))
        {
            fit.told.tried = tried;
        }
    }

    fn replace(&mut self, stop: &FitLayer, mut better: Fit) {
        better.told.tried.clone_from(&self.now(stop).told.tried);
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
fn drift(stop: &FitLayer, dense: &mut Fetch, pruned: &Stream) -> Result<f64> {
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
