//! From a mask to a smaller model: re-fitted, sliced, checked.

use std::collections::BTreeMap;
use std::time::Instant;

use super::run::{EQUALITY_SAMPLES, INTERRUPTED, Run};
use super::split::{is_guard, spread};
use super::described;
use crate::budget::Allocation;
use crate::calibrate::{self, Samples, SiteStatistics, Statistics};
use crate::lossless::{self, Pass};
use crate::narrow::Narrowed;
use crate::onnx::proto;
use crate::options::Reconstruct;
use crate::rebuild::{self, Fitted};
use crate::runtime::{Engine, Session, SessionOptions};
use crate::tensor::{Feeds, Tensor};
use crate::verify::{self, Comparison, Equality, Interface};
use crate::{Error, Result, axes, graph, provenance, rewrite};

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
        let narrowed = self.applied(&allocation.narrowing)?;
        // What belongs to the narrowed sites stands in for what was collected.
        let mut others = narrowed.as_ref().map_or_else(BTreeMap::new, |n| n.statistics.clone());
        swap(&mut self.statistics, &mut others);
        let built = self.built(allocation, narrowed.as_ref());
        swap(&mut self.statistics, &mut others);
        built
    }

    fn built(&mut self, allocation: &Allocation, narrowed: Option<&Narrowed>) -> Result<Built> {
        let own;
        let (model, graph, analysis, chosen, mask) = match narrowed {
            Some(n) => {
                own = n.mask(&self.chosen, &allocation.mask);
                (&n.model, &n.graph, &n.analysis, &n.chosen, &own)
            }
            None => {
                let l = &self.loaded;
                (&l.model, &l.graph, &l.analysis, &self.chosen, &allocation.mask)
            }
        };
        let how = self.options.reconstruction();
        let mut failed = None;
        let local = rebuild::Local {
            model,
            graph,
            analysis,
            chosen,
            mask,
            options: self.options,
        };
        let mut fits = None;
        if how == Reconstruct::Sequential && self.guarded {
            let better = rebuild::sequential(
                &self.engine,
                local,
                &self.statistics,
                &self.weights,
                &self.samples,
                &self.recording,
                is_guard,
                self.options.refit_all,
                self.progress,
                self.cancelled,
            );
            match better {
                Ok(better) => fits = Some(better),
                Err(error) if error.exit_code() == INTERRUPTED => return Err(error),
                Err(error) => failed = Some(error.chain()),
            }
        }
        let fits = match (fits, how) {
            (Some(fits), _) => fits,
            (None, Reconstruct::None) => Vec::new(),
            (None, _) => local.fits(&self.statistics)?.into_iter().flatten().collect(),
        };
        self.clock.lap("re-fitting");

        let fitted = rebuild::apply(model, graph, &fits)?;
        let graph = graph::build(&fitted)?;
        let again = axes::analyse(&graph, self.options.axes);
        let same = again.groups.len() == analysis.groups.len()
            && again
                .groups
                .iter()
                .zip(&analysis.groups)
                .all(|(a, b)| a.units == b.units && a.name == b.name);
        if !same {
            return Err(Error::input(
                "the groups of the model changed with its weights; this is a defect: please report the model",
            ));
        }
        let sliced = rewrite::prune(&fitted, &graph, &again, mask)?;
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
        if let Some(reason) = failed {
            self.loaded.notes.push(format!(
                "sequential re-fitting could not run ({reason}); the local fits stay"
            ));
        }
        provenance::stamp(
            &mut sliced,
            &self.sha256,
            &described(self.options, self.asked),
            &self.loaded.analysis,
            &allocation.mask,
        )?;
        Ok(Built {
            model: sliced,
            fitted: fits.into_iter().map(|f| f.told).collect(),
            equality,
            interface,
            passes,
        })
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
        let specs = calibrate::input_specs(&self.loaded.model)?;
        let tokens = |samples: &Samples| calibrate::real_tokens(samples, &specs) as f64;
        let share = tokens(&self.samples) / tokens(&self.held_out).max(1.0);
        self.plain = Some(dense.seconds * share);
        self.clock.lap("measuring");
        compared
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
