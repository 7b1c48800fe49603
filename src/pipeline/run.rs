//! The stages of a run, from a file to rankings once, and from a budget or a mask
//! to a smaller model as often as wanted.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::clock::Clock;
use super::split::{apart, is_guard, split, spread, with_held_out};
use super::{Loaded, finite, load, sizes};
use crate::axes;
use crate::budget::{self, Allocation, Cost, Ranking};
use crate::calibrate::{self, Samples, Statistics, Timings};
use crate::graph::{self, ValueId};
use crate::importance::{self, Weights};
use crate::mask::{self, Mask};
use crate::onnx::{self, proto};
use crate::options::{Method, Options, Reconstruct};
use crate::probe::{Probe, Subject};
use crate::progress::Progress;
use crate::rank::{self, Ranked};
use crate::rebuild::{self, Fitted};
use crate::runtime::{self, Engine, SessionOptions};
use crate::search::{self, Point};
use crate::sites::{self, Chosen};
use crate::verify::{self, Comparison, Equality};
use crate::{Error, Result, damage, evaluate, rewrite};

/// Samples on which sliced and masked are compared.
const EQUALITY_SAMPLES: usize = 8;
/// Samples that the importance of positions is measured on.
const POSITION_SAMPLES: usize = 24;
/// Halvings of the range of budgets in a search.
const STEPS: usize = 5;
/// Rows per run while calibrating.
const ROWS: usize = 16;
/// The exit code of an interrupt.
const INTERRUPTED: u8 = 130;
/// With fewer samples none are kept apart to choose ridges.
const FEW: usize = 12;

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
        let mut run = Self::open(input, options, progress, cancelled)?;
        run.calibrate()?;
        if options.mask.is_none() {
            run.judge()?;
        }
        Ok(run)
    }

    /// Reads the model and the samples.
    ///
    /// # Errors
    /// Bad input, an engine that is not there, nothing that can be pruned.
    pub fn open(
        input: &Path,
        options: &'a Options,
        progress: &'a dyn Progress,
        cancelled: &'a AtomicBool,
    ) -> Result<Self> {
        options.check()?;
        let mut clock = Clock::start();
        let mut loaded = load(input, options.axes)?;
        finite::check(&loaded)?;
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
        let run = Run {
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
        for name in &options.outputs {
            let known = run
                .loaded
                .graph
                .outputs
                .iter()
                .map(|o| &run.loaded.graph.value(*o).name);
            if !known.clone().any(|n| n == name) {
                let known: Vec<&str> = known.map(String::as_str).collect();
                return Err(Error::input(format!(
                    "--outputs {name}: the model has no such output, it has {}",
                    known.join(", ")
                )));
            }
        }
        Ok(run)
    }

    /// Whether damage is measured.
    fn measures(&self) -> bool {
        self.options.method == Method::Obs && self.options.mask.is_none()
    }

    /// Collects the statistics.
    ///
    /// # Errors
    /// The engine's, values that overflow, an interrupt.
    pub fn calibrate(&mut self) -> Result<()> {
        if !self.needs_data() {
            return Ok(());
        }
        if self.measures() {
            let count = POSITION_SAMPLES.min(self.options.probe) * self.options.effort.samples();
            let few = spread(&self.samples, count);
            let mut probe = Probe::new(self.subject(), &few, &self.outputs(), self.cancelled)?;
            let measured = importance::measure(self.subject(), &mut probe, &self.chosen, self.progress);
            self.weights = self.or_without(
                measured,
                "what the positions of a sequence count",
                "all count alike",
            )?;
            self.clock.lap("positions");
        }
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
        let sequential = self.options.reconstruction() == Reconstruct::Sequential;
        if sequential && self.samples.samples.len() >= FEW {
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
        Ok(())
    }

    /// Ranks all units, and measures what removing them costs.
    ///
    /// # Errors
    /// The engine's, statistics that are missing, an interrupt.
    pub fn judge(&mut self) -> Result<()> {
        self.ranked = rank::rank(
            &self.loaded.model,
            &self.loaded.graph,
            &self.loaded.analysis,
            &self.chosen,
            &self.statistics,
            self.options,
        )?;
        self.clock.lap("ranking");
        if self.measures() {
            let few = spread(&self.samples, self.options.probe * self.options.effort.samples());
            let curves = self
                .ranked
                .rankings
                .iter()
                .cloned()
                .map(Ranking::into_curve)
                .collect();
            let mut probe = Probe::new(self.subject(), &few, &self.outputs(), self.cancelled)?;
            let measured = damage::measure(
                self.subject(),
                &mut probe,
                &self.chosen,
                curves,
                &self.statistics,
                self.options,
                self.progress,
            );
            let measured = self.or_without(
                measured,
                "the damage that each group does to the outputs",
                "the relative error at its own sink stands in, which is worse",
            )?;
            if !measured.is_empty() {
                self.ranked.rankings = measured
                    .into_iter()
                    .map(|c| c.map_or(Ranking::Whole, Ranking::Curve))
                    .collect();
            }
            self.clock.lap("damage");
        }
        Ok(())
    }

    /// What was measured, or nothing and a note where the engine cannot run a part
    /// of the model by itself: a worse result is better than none.
    fn or_without<T: Default>(&mut self, measured: Result<T>, what: &str, instead: &str) -> Result<T> {
        match measured {
            Err(error) if error.exit_code() != INTERRUPTED => {
                self.loaded.notes.push(format!(
                    "{what} could not be measured ({}); {instead}",
                    error.chain()
                ));
                Ok(T::default())
            }
            measured => measured,
        }
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

    /// The outputs that are compared: those asked for that keep their shape.
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
        let asked = |v: &ValueId| {
            self.options.outputs.is_empty() || self.options.outputs.contains(&graph.value(*v).name)
        };
        graph
            .outputs
            .iter()
            .copied()
            .filter(asked)
            .filter(whole)
            .collect()
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

    /// A mask that something else made.
    ///
    /// # Errors
    /// A file that is no mask of this model.
    pub fn import(&mut self, path: &Path) -> Result<Allocation> {
        let open = self.chosen.iter().map(|c| (c.group, c.least)).collect();
        let (mask, notes) = mask::file::read(path, &self.loaded.analysis, &open)?;
        self.loaded.notes.extend(notes);
        let allocation = budget::of_mask(&self.cost(), &self.loaded.analysis, &self.chosen, mask);
        self.clock.lap("allocation");
        Ok(allocation)
    }

    /// The smallest model whose divergence from the dense one on held-out samples
    /// is at most `bound`, by bisection over budgets; or whose number is, where
    /// there is a command that judges a candidate.
    ///
    /// # Errors
    /// [`Error::Unmet`] when not even the dense model is within the bound; those of
    /// building and of the command.
    pub fn search(&mut self, bound: f64) -> Result<(Allocation, Built, Vec<Point>)> {
        let floor = self.allocate(1.0)?.budget.floor;
        let found = search::bisect(floor, 1.0, STEPS, bound, |flops| {
            let allocation = self.allocate(flops)?;
            let built = self.build(&allocation.mask)?;
            let divergence = match &self.options.eval {
                Some(command) => self.evaluate(command, &built.model)?,
                None => {
                    let mut compared = self.held_out(&built.model)?;
                    let asked = &self.options.outputs;
                    compared
                        .outputs
                        .retain(|o| asked.is_empty() || asked.contains(&o.name));
                    verify::divergence(&compared)
                }
            };
            self.clock.lap("search");
            Ok((divergence, (allocation, built)))
        })?;
        let (allocation, built) = found.made;
        Ok((allocation, built, found.tried))
    }

    fn evaluate(&self, command: &str, model: &proto::ModelProto) -> Result<f64> {
        let folder = tempfile::Builder::new()
            .prefix("onnx-prune-")
            .tempdir()
            .map_err(|e| Error::io("cannot create a folder in", &std::env::temp_dir(), e))?;
        let path = folder.path().join("candidate.onnx");
        onnx::save(model, &path, &onnx::SaveOptions::for_model(&self.loaded.file))?;
        evaluate::evaluate(command, &path, None, self.cancelled)
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
        let mut failed = None;
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
            let better = rebuild::sequential(
                self.subject(),
                &self.chosen,
                mask,
                rebuild::Priors {
                    without_guard: local(&self.without_guard)?,
                    all: fits.clone(),
                },
                &self.weights,
                &self.samples,
                is_guard,
                self.options.refit_all,
                self.progress,
                self.cancelled,
            );
            match better {
                Ok(better) => fits = better,
                Err(error) if error.exit_code() == INTERRUPTED => return Err(error),
                Err(error) => failed = Some(error.chain()),
            }
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
        if let Some(reason) = failed {
            self.loaded.notes.push(format!(
                "sequential re-fitting could not run ({reason}); the local fits stay"
            ));
        }
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
