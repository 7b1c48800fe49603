//! The stages of a run, from a file to rankings once, and from a budget or a mask
//! to a smaller model as often as wanted.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::clock::Clock;
use super::split::{apart, is_guard, split, spread, with_held_out};
use super::{Loaded, load, sizes};
use crate::axes;
use crate::budget::{self, Allocation, Cost, Ranking};
use crate::calibrate::{self, Samples, Statistics, Timings};
use crate::graph::{self, ValueId};
use crate::importance::{self, Weights};
use crate::mask::Mask;
use crate::onnx::proto;
use crate::options::{Method, Options, Reconstruct};
use crate::probe::{Probe, Subject};
use crate::progress::Progress;
use crate::rank::{self, Ranked};
use crate::rebuild::{self, Fitted};
use crate::runtime::{self, Engine, SessionOptions};
use crate::sites::{self, Chosen};
use crate::verify::{self, Comparison, Equality};
use crate::{Error, Result, damage, rewrite};

/// Samples on which sliced and masked are compared.
const EQUALITY_SAMPLES: usize = 8;
/// Samples that the importance of positions is measured on.
const POSITION_SAMPLES: usize = 24;
/// Rows per run while calibrating.
const ROWS: usize = 16;

/// A model that is ready to be pruned to any budget.
pub struct Run<'a> {
    /// What was read.
    pub loaded: Loaded,
    /// What was asked.
    pub options: &'a Options,
    /// What runs models.
    pub engine: Box<dyn Engine>,
    /// The groups that may be pruned.
    pub chosen: Vec<Chosen>,
    /// Samples that statistics were taken of.
    pub samples: Samples,
    /// Samples kept apart for measuring.
    pub held_out: Samples,
    /// What the positions of a sequence count, by site.
    pub weights: Weights,
    /// The statistics.
    pub statistics: Statistics,
    /// Those without the samples that choose ridges.
    without_guard: Statistics,
    /// What the method says.
    pub ranked: Ranked,
    /// Time of the calibration runs.
    pub timings: Timings,
    pub(super) clock: Clock,
    progress: &'a dyn Progress,
    cancelled: &'a AtomicBool,
}

/// A smaller model and what is known about it.
pub struct Built {
    /// The model.
    pub model: proto::ModelProto,
    /// What re-fitting did.
    pub fitted: Vec<Fitted>,
    /// Sliced against masked.
    pub equality: Equality,
}

impl<'a> Run<'a> {
    /// Reads the model and the samples and ranks all units.
    ///
    /// # Errors
    /// As [`Error`] lists them.
    pub fn start(
        input: &Path,
        options: &'a Options,
        progress: &'a dyn Progress,
        cancelled: &'a AtomicBool,
    ) -> Result<Self> {
        options.check()?;
        let mut clock = Clock::start();
        let mut loaded = load(input, options.axes)?;
        let mut chosen = sites::choose(&loaded.model, &loaded.graph, &loaded.analysis, options)?;
        if let Some(model) = sites::own_biases(&loaded.model, &loaded.graph, &chosen)? {
            loaded.graph = graph::build(&model)?;
            loaded.analysis = axes::analyse(&loaded.graph, options.axes);
            loaded.model = model;
            chosen = sites::choose(&loaded.model, &loaded.graph, &loaded.analysis, options)?;
        }
        clock.lap("analysis");
        let engine = runtime::choose(&options.engine)?;
        let (samples, held_out) = split(calibrate::read_samples(&loaded.model, &with_held_out(options))?);
        clock.lap("inputs");
        let mut run = Run {
            loaded,
            options,
            engine,
            chosen,
            samples,
            held_out,
            weights: Weights::new(),
            statistics: Statistics::default(),
            without_guard: Statistics::default(),
            ranked: Ranked::default(),
            timings: Timings::default(),
            clock,
            progress,
            cancelled,
        };
        run.rank()?;
        Ok(run)
    }

    fn rank(&mut self) -> Result<()> {
        let measures = self.options.method == Method::Obs;
        let outputs = self.outputs();
        if measures {
            let few = spread(&self.samples, POSITION_SAMPLES.min(self.options.probe));
            let mut probe = Probe::new(self.subject(), &few, &outputs, self.cancelled)?;
            self.weights = importance::measure(self.subject(), &mut probe, &self.chosen, self.progress)?;
            self.clock.lap("positions");
        }
        if self.needs_data() {
            let probes: Vec<_> = self
                .chosen
                .iter()
                .flat_map(|c| &c.sites)
                .filter_map(|s| s.probe.clone())
                .collect();
            let collect = |samples: &Samples| {
                calibrate::collect(
                    self.engine.as_ref(),
                    &self.loaded.model,
                    &probes,
                    &self.weights,
                    samples,
                    ROWS,
                    self.progress,
                    self.cancelled,
                )
            };
            if self.options.reconstruction() == Reconstruct::Sequential && self.samples.samples.len() >= 12 {
                let (fit, guard) = apart(&self.samples);
                let (mut all, timings) = collect(&fit)?;
                let (guard, more) = collect(&guard)?;
                self.without_guard = all.clone();
                all.merge(&guard)?;
                self.statistics = all;
                self.timings = timings + more;
            } else {
                (self.statistics, self.timings) = collect(&self.samples)?;
            }
            self.clock.lap("calibration");
        }
        self.ranked = rank::rank(
            &self.loaded.model,
            &self.loaded.graph,
            &self.loaded.analysis,
            &self.chosen,
            &self.statistics,
            self.options,
        )?;
        self.clock.lap("ranking");
        if measures {
            let few = spread(&self.samples, self.options.probe);
            let curves = std::mem::take(&mut self.ranked.rankings)
                .into_iter()
                .map(Ranking::into_curve)
                .collect();
            let mut probe = Probe::new(self.subject(), &few, &outputs, self.cancelled)?;
            let measured = damage::measure(
                self.subject(),
                &mut probe,
                &self.chosen,
                curves,
                &self.statistics,
                self.options,
                self.progress,
            )?;
            self.ranked.rankings = measured
                .into_iter()
                .map(|c| c.map_or(Ranking::Whole, Ranking::Curve))
                .collect();
            self.clock.lap("damage");
        }
        Ok(())
    }

    /// Whether anything is calibrated at all.
    pub fn needs_data(&self) -> bool {
        self.options.method != Method::Magnitude || self.options.reconstruction() != Reconstruct::None
    }

    /// The model with what belongs to it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            engine: self.engine.as_ref(),
            model: &self.loaded.model,
            graph: &self.loaded.graph,
            analysis: &self.loaded.analysis,
        }
    }

    /// The outputs that are compared: those that keep their shape.
    fn outputs(&self) -> Vec<ValueId> {
        let Loaded { graph, analysis, .. } = &self.loaded;
        let leaves: Vec<_> = self
            .chosen
            .iter()
            .map(|c| analysis.groups[c.group].leaf)
            .collect();
        let whole = |v: &ValueId| {
            let dims = analysis.facts(*v).dims.iter().flatten();
            !dims
                .flat_map(|d| analysis.space.leaves(d))
                .any(|l| leaves.contains(&l))
        };
        graph.outputs.iter().copied().filter(whole).collect()
    }

    /// Costs of the model.
    pub fn cost(&self) -> Cost<'_> {
        Cost::new(&self.loaded.graph, &self.loaded.analysis, &sizes(self.options))
    }

    /// The best mask within a budget: the fraction of the prunable blocks'
    /// multiply-accumulates to keep.
    ///
    /// # Errors
    /// [`Error::Unmet`] when the budget cannot be reached.
    pub fn allocate(&mut self, flops: f64) -> Result<Allocation> {
        let allocation = budget::allocate(
            &self.cost(),
            &self.loaded.analysis,
            &self.chosen,
            &self.ranked.rankings,
            flops,
            self.options.method.name(),
        );
        self.clock.lap("allocation");
        allocation
    }

    /// The model that a mask makes: re-fitted, sliced, and checked against the
    /// masked one.
    ///
    /// # Errors
    /// The engine's; [`Error::Unmet`] when sliced and masked differ.
    pub fn build(&mut self, mask: &Mask) -> Result<Built> {
        let Loaded {
            model,
            graph,
            analysis,
            ..
        } = &self.loaded;
        let how = self.options.reconstruction();
        let local = |statistics: &Statistics| {
            rebuild::local(
                model,
                graph,
                analysis,
                &self.chosen,
                mask,
                statistics,
                self.options,
            )
        };
        let mut fits = match how {
            Reconstruct::None => Vec::new(),
            _ => local(&self.statistics)?,
        };
        if how == Reconstruct::Sequential && !self.without_guard.sites.is_empty() {
            fits = rebuild::sequential(
                self.subject(),
                &self.chosen,
                mask,
                rebuild::Priors {
                    without_guard: local(&self.without_guard)?,
                    all: fits,
                },
                &self.weights,
                &self.samples,
                is_guard,
                self.options.refit_all,
                self.progress,
                self.cancelled,
            )?;
        }
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
        let few = spread(&self.samples, EQUALITY_SAMPLES);
        let equality = verify::sliced_equals_masked(
            self.engine.as_ref(),
            &fitted,
            &graph,
            &again,
            &self.chosen,
            mask,
            &sliced,
            &few,
            self.cancelled,
        )?;
        equality.require()?;
        self.clock.lap("equality");
        Ok(Built {
            model: sliced,
            fitted: fits.into_iter().map(|f| f.told).collect(),
            equality,
        })
    }

    /// A smaller model against the dense one on samples kept apart.
    ///
    /// # Errors
    /// The engine's.
    pub fn held_out(&mut self, pruned: &proto::ModelProto) -> Result<Comparison> {
        let compared = compare(
            self.engine.as_ref(),
            &self.loaded.model,
            pruned,
            &self.held_out,
            self.cancelled,
        );
        self.clock.lap("measuring");
        compared
    }
}

/// Runs two models over the same samples.
pub(super) fn compare(
    engine: &dyn Engine,
    dense: &proto::ModelProto,
    pruned: &proto::ModelProto,
    samples: &Samples,
    cancelled: &AtomicBool,
) -> Result<Comparison> {
    let options = SessionOptions::default();
    let mut a = engine.session(pruned, &options)?;
    let mut b = engine.session(dense, &options)?;
    verify::compare(a.as_mut(), b.as_mut(), dense, samples, cancelled)
}
