//! From a mask to a smaller model: re-fitted, sliced, checked.

use std::collections::BTreeMap;
use std::time::Instant;

use super::described;
use super::run::{EQUALITY_SAMPLES, INTERRUPTED, Run};
use crate::axes::{self, Analysis};
use crate::budget::Allocation;
use crate::channels::Narrowed;
use crate::data::Samples;
use crate::data::split::{is_guard, spread};
use crate::engine::{Engine, Session, SessionOptions};
use crate::graph::{self, Graph};
use crate::mask::{self, Mask};
use crate::numerics::{SiteStatistics, Statistics};
use crate::onnx::{proto, provenance};
use crate::options::Reconstruct;
use crate::rank::probe::Subject;
use crate::refit::{self, Fitted};
use crate::rewrite;
use crate::rewrite::lossless::{self, Pass};
use crate::sites::{self, Chosen, Fit};
use crate::tensor::{Feeds, Tensor};
use crate::verify::{self, Comparison, Equality, Interface};
use crate::{Error, Result, data};

/// A smaller model and what is known about it.
pub struct Built {
    /// The model.
    pub model: proto::ModelProto,
    /// What re-fitting did.
    pub fitted: Vec<Fitted>,
    /// Sliced against masked.
    pub equality: Equality,
    /// What it has of the dense model's inputs and outputs.
    pub interface: Interface,
    /// Lossless passes that it went through.
    pub passes: Vec<Pass>,
}

impl Run<'_> {
    /// The model that a mask makes: re-fitted, sliced, and checked against the
    /// masked one.
    ///
    /// # Errors
    /// The engine's; [`Error::Unmet`] when sliced and masked differ.
    pub fn build(&mut self, allocation: &Allocation) -> Result<Built> {
        let mut narrowed = self.applied(&allocation.narrowing)?;
        // What belongs to the narrowed sites stands in for what was collected.
        let own = narrowed.as_mut().map(|n| std::mem::take(&mut n.statistics));
        let mut others = own.unwrap_or_default();
        swap(&mut self.statistics, &mut others);
        let built = self.built(allocation, narrowed);
        swap(&mut self.statistics, &mut others);
        built
    }

    fn built(&mut self, allocation: &Allocation, narrowed: Option<Narrowed>) -> Result<Built> {
        let (own, mut fitted) = match narrowed {
            Some(mut n) => {
                let mask = n.mask(&self.chosen, &allocation.mask);
                let model = std::mem::take(&mut n.model);
                (Some((n, mask)), model)
            }
            None => (None, self.loaded.model.clone()),
        };
        let (graph, analysis, chosen, mask) = match &own {
            Some((n, mask)) => (&n.graph, &n.analysis, &n.chosen, mask),
            None => {
                let l = &self.loaded;
                (&l.graph, &l.analysis, &self.chosen, &allocation.mask)
            }
        };
        let how = self.options.reconstruction();
        let local = refit::Local {
            model: &fitted,
            graph,
            analysis,
            chosen,
            mask,
            options: self.options,
        };
        let mut fits = match how {
            Reconstruct::None => Vec::new(),
            _ => local.fits(&self.statistics)?,
        };
        let sequential = how == Reconstruct::Sequential && self.guarded;
        let subject = Subject {
            engine: &self.engine,
            model: &fitted,
            graph,
            analysis,
        };
        // What is sliced first runs faster.
        let first = sequential && refit::are_recorded(subject, chosen, mask, &self.recording);
        let mut note = None;
        if sequential && !first {
            match self.in_order(subject, local, fits.clone()) {
                Ok(better) => fits = vec![better],
                Err(error) => note = Some(kept_local(error)?),
            }
        }
        self.clock.lap("re-fitting");
        let told = |fits: &[Fit]| -> Vec<Fitted> { fits.iter().map(|f| f.told.clone()).collect() };
        let all: Vec<Fit> = fits.iter().flatten().cloned().collect();
        for fit in &all {
            fit.put(&mut fitted, graph)?;
        }
        let mut wide = self.again(&fitted, analysis)?;
        let mut sliced = rewrite::prune(&fitted, &wide.0, &wide.1, mask)?;
        let mut told = told(&all);
        if first {
            match self.in_order_sliced(&sliced, &wide.1, chosen, mask, &fits) {
                Ok((graph, better)) => {
                    refit::widen(&mut fitted, &wide.0, &wide.1, mask, &better, &graph)?;
                    sliced = sites::apply(&sliced, &graph, &better)?;
                    wide = self.again(&fitted, analysis)?;
                    told = better.into_iter().map(|f| f.told).collect();
                }
                Err(error) => note = Some(kept_local(error)?),
            }
            self.clock.lap("re-fitting");
        }
        let (graph, again) = wide;
        let interface = Interface::new(&graph, &again, mask);
        let few = spread(&self.samples, EQUALITY_SAMPLES);
        let mut equality = verify::sliced_equals_masked(
            &self.engine,
            &fitted,
            &graph,
            &again,
            chosen,
            mask,
            &sliced,
            &few,
            self.cancelled,
        )?;
        equality.require()?;
        let sliced = match &self.closed {
            Some((_, closed)) => closed.close(&sliced)?,
            None => sliced,
        };
        let (mut sliced, passes) = self.last_passes(sliced, &few, &interface, &mut equality)?;
        self.clock.lap("equality");
        self.loaded.notes.extend(note);
        let mut options = described(self.options, self.asked);
        let channels = serde_json::to_value(self.told(allocation)).unwrap_or_default();
        options.insert(provenance::NARROWED.into(), channels);
        provenance::stamp(
            &mut sliced,
            &self.sha256,
            &options,
            &mask::file::json(&self.loaded.analysis, &allocation.mask)?,
        )?;
        Ok(Built {
            model: sliced,
            fitted: told,
            equality,
            interface,
            passes,
        })
    }

    /// Fits in order, of a model that has the mask still before it or behind it.
    fn in_order(&self, dense: Subject, local: refit::Local, priors: Vec<Vec<Fit>>) -> Result<Vec<Fit>> {
        refit::sequential(
            dense,
            local,
            priors,
            &self.weights,
            &self.samples,
            &self.recording,
            is_guard,
            self.options.refit_all,
            self.progress,
            self.cancelled,
        )
    }

    /// The same of a model that is sliced and has the local fits in it; its graph comes
    /// with them. `analysis`, `chosen` and `mask` are those of the model before.
    fn in_order_sliced(
        &self,
        sliced: &proto::ModelProto,
        analysis: &Analysis,
        chosen: &[Chosen],
        mask: &Mask,
        fits: &[Vec<Fit>],
    ) -> Result<(Graph, Vec<Fit>)> {
        let graph = graph::build(sliced)?;
        let own = axes::analyse(&graph, self.options.axes);
        let found = sites::choose(sliced, &graph, &own, self.options)?;
        let (mut here, mut whole, mut priors) = (Vec::new(), Mask::default(), Vec::new());
        for (c, fits) in chosen.iter().zip(fits) {
            let group = &analysis.groups[c.group];
            let units = mask.count(analysis, c.group);
            if units == 0 {
                continue;
            }
            let there = own.find_group(&group.name, group.kind, units);
            let new = found.iter().find(|n| Some(n.group) == there).ok_or_else(|| {
                Error::input(format!(
                    "the group '{}' is another one once it is sliced",
                    group.name
                ))
            })?;
            if mask.kept.contains_key(&c.group) {
                whole.kept.insert(new.group, vec![true; units]);
            }
            let parts = sites::parts(sliced, &graph, &new.sites)?;
            let prior = |(part, fit): (&sites::Part, &Fit)| {
                let mut prior = part.unchanged();
                prior.told.clone_from(&fit.told);
                prior
            };
            priors.push(parts.iter().zip(fits).map(prior).collect());
            here.push(new.clone());
        }
        let local = refit::Local {
            model: sliced,
            graph: &graph,
            analysis: &own,
            chosen: &here,
            mask: &whole,
            options: self.options,
        };
        let fits = self.in_order(self.subject(), local, priors)?;
        Ok((graph, fits))
    }

    /// The graph and the axes of a model with new weights; an error where its groups are
    /// not those of `analysis`.
    fn again(&self, fitted: &proto::ModelProto, analysis: &Analysis) -> Result<(Graph, Analysis)> {
        let graph = graph::build(fitted)?;
        let again = axes::analyse(&graph, self.options.axes);
        if !again.has_groups_of(analysis) {
            return Err(Error::input(
                "the groups of the model changed with its weights; this is a defect: please report the model",
            ));
        }
        Ok((graph, again))
    }

    /// The sliced model after the lossless passes, checked against itself.
    fn last_passes(
        &self,
        sliced: proto::ModelProto,
        samples: &Samples,
        interface: &Interface,
        equality: &mut Equality,
    ) -> Result<(proto::ModelProto, Vec<Pass>)> {
        if self.cheaper.is_none() {
            return Ok((sliced, Vec::new()));
        }
        let (model, passes) = lossless::apply(&sliced)?;
        if passes.is_empty() {
            return Ok((sliced, passes));
        }
        let options = SessionOptions::default();
        let mut a = self.engine.session(&model, &options)?;
        let mut b = self.engine.session(&sliced, &options)?;
        let compared = verify::compare_alike(
            a.as_mut(),
            b.as_mut(),
            &self.loaded.model,
            samples,
            interface,
            self.cancelled,
        )?;
        let worst = compared.worst();
        equality.lossless = Some(worst);
        if worst.is_nan() || worst > equality.tolerance {
            return Err(Error::Unmet(format!(
                "the lossless passes change the outputs by {worst:.2e}, accepted is {:.2e}; use --no-lossless. This is a defect: please report the model",
                equality.tolerance
            )));
        }
        Ok((model, passes))
    }

    /// A smaller model against the dense one on samples kept apart.
    ///
    /// # Errors
    /// The engine's.
    pub fn held_out(&mut self, built: &Built) -> Result<Comparison> {
        let options = SessionOptions::default();
        let mut pruned = self.engine.session(&built.model, &options)?;
        let mut dense = Clocked {
            inner: self.engine.session(self.dense(), &options)?,
            seconds: 0.0,
        };
        let compared = verify::compare(
            pruned.as_mut(),
            &mut dense,
            self.dense(),
            &self.held_out,
            &built.interface,
            self.cancelled,
        );
        let specs = data::input_specs(&self.loaded.model)?;
        let tokens = |samples: &Samples| data::real_tokens(samples, &specs) as f64;
        let share = tokens(&self.samples) / tokens(&self.held_out).max(1.0);
        self.plain = Some(dense.seconds * share);
        self.clock.lap("measuring");
        compared
    }
}

/// What is to be said where fits in order failed: local ones are worse than these, and
/// better than none.
///
/// # Errors
/// An interrupt.
fn kept_local(error: Error) -> Result<String> {
    match error.exit_code() {
        INTERRUPTED => Err(error),
        _ => Ok(format!(
            "sequential re-fitting could not run ({}); the local fits stay",
            error.chain()
        )),
    }
}

/// Puts statistics of some sites in place of those there, and these in place of them.
fn swap(statistics: &mut Statistics, others: &mut BTreeMap<String, SiteStatistics>) {
    for (site, other) in others {
        if let Some(own) = statistics.sites.get_mut(site) {
            std::mem::swap(own, other);
        }
    }
}

/// A session that knows how long it ran.
struct Clocked {
    inner: Box<dyn Session>,
    seconds: f64,
}

impl Session for Clocked {
    fn outputs(&self) -> &[String] {
        self.inner.outputs()
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        let started = Instant::now();
        let given = self.inner.run(feeds);
        self.seconds += started.elapsed().as_secs_f64();
        given
    }
}
