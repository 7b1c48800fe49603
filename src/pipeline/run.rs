//! The stages of a run, from a file to rankings once, and from a budget or a mask
//! to a smaller model as often as wanted.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::build::Built;
use super::clock::Clock;
use super::narrow::Narrow;
use super::ready::{Ready, probes, ready};
use super::{Cheaper, Loaded, sizes, timing};
use crate::axes::{Analysis, Kind};
use crate::budget::{self, Align, Allocation, Cost, Limit, Prices, Target, UnitPrices, constant_units};
use crate::calibrate::{self, Timings};
use crate::channels::Narrowed;
use crate::data::Samples;
use crate::data::split::{is_guard, split, spread, with_held_out};
use crate::engine::{self, Engine, Metered, SessionOptions};
use crate::graph::ValueId;
use crate::mask::{self, Narrowing};
use crate::measure::command;
use crate::numerics::Statistics;
use crate::numerics::bisect::{self, Point};
use crate::numerics::score::Ranking;
use crate::onnx::{self, proto, provenance};
use crate::options::{Effort, Method, Options, Reconstruct};
use crate::progress::Progress;
use crate::rank::positions::{self, Weights};
use crate::rank::probe::{Probe, Subject};
use crate::rank::{self, Ranked, damage};
use crate::refit::{self, Recording};
use crate::rewrite::dequantise::Closed;
use crate::sites::Chosen;
use crate::verify::{self, Comparison, Interface};
use crate::{Error, Result, data};

/// Samples on which sliced and masked are compared.
pub(super) const EQUALITY_SAMPLES: usize = 8;
/// Samples that the importance of positions is measured on, and the dense passes
/// over all samples that this may cost.
const POSITION_SAMPLES: RangeInclusive<usize> = 4..=24;
const POSITION_PASSES: f64 = 0.08;
/// The same for the damage that groups do.
const PROBE_SAMPLES: RangeInclusive<usize> = 8..=128;
const DAMAGE_PASSES: f64 = 0.7;
/// Tokens per input of the widest layer, and batches, that are enough to re-fit layers in
/// order: with 8 tokens the divergence of a six-layer BERT is 0.0046, with 4 it is
/// 0.0047, with 2 0.0052; of 10 that there are, 5 give 0.0051 and 3 give 0.0050 (means of three
/// draws).
const REFIT_ROWS: usize = 3;
const REFIT_BATCHES: usize = 2;
/// At least one of so many batches serves, however many there are.
const REFIT_STEP: usize = 3;
/// Halvings of the range of budgets in a search.
const STEPS: usize = 5;
/// The exit code of an interrupt.
pub(super) const INTERRUPTED: u8 = 130;
/// With fewer samples none are kept apart to choose ridges.
const FEW: usize = 12;

/// A model that is ready to be pruned to any budget.
pub struct Run<'a> {
    /// What was read.
    pub loaded: Loaded,
    /// What was asked.
    pub options: &'a Options,
    /// What runs models.
    pub engine: Metered,
    /// The groups that may be pruned.
    pub chosen: Vec<Chosen>,
    /// What the lossless passes make of the model.
    pub cheaper: Option<Cheaper>,
    /// Samples that statistics were taken of.
    pub samples: Samples,
    /// Samples kept apart for measuring.
    pub held_out: Samples,
    /// What the positions of a sequence count, by site.
    pub weights: Weights,
    /// The statistics.
    pub statistics: Statistics,
    /// Whether some samples choose ridges, so that layers can be re-fitted in order;
    /// the statistics are without them, where they are not from a file.
    pub(super) guarded: bool,
    /// What the dense model has after its residual additions, for re-fitting in order.
    pub(crate) recording: Recording,
    /// What the method says.
    pub ranked: Ranked,
    /// Time of the calibration runs.
    pub timings: Timings,
    /// Seconds that the dense model alone takes for all samples, once that is known.
    pub(super) plain: Option<f64>,
    /// Whether the curves of [`Run::ranked`] are damage that was measured.
    pub measured: bool,
    /// SHA-256 of the input, side files included.
    pub sha256: String,
    pub(super) clock: Clock,
    /// The fraction that was last allocated for.
    pub(super) asked: f64,
    /// The model with quantised weights, and how to get back to it.
    pub(super) closed: Option<(proto::ModelProto, Closed)>,
    /// Channels that heads may lose.
    pub(super) narrow: Option<Narrow>,
    /// The model without some of them, as it was last needed.
    pub(super) last_narrowed: Option<(Narrowing, Narrowed)>,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancelled: &'a AtomicBool,
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
        let Ready {
            loaded,
            closed,
            chosen,
        } = ready(input, options)?;
        let sha256 = loaded.file.sha256()?;
        clock.lap("analysis");
        let engine = Metered::new(engine::choose(&options.engine)?);
        let (mut samples, mut held_out) =
            split(data::read_samples(&loaded.model, &with_held_out(&options.data))?);
        // An engine that cannot run the model tells so where it matters.
        if calibrate::try_padding(&engine, &loaded.model, &mut samples).is_ok() {
            held_out.padding = samples.padding;
        }
        clock.lap("inputs");
        let mut run = Run {
            loaded,
            options,
            engine,
            chosen,
            cheaper: None,
            closed,
            asked: options.flops,
            samples,
            held_out,
            weights: Weights::new(),
            statistics: Statistics::default(),
            guarded: false,
            recording: Recording::new([], 1),
            ranked: Ranked::default(),
            timings: Timings::default(),
            plain: None,
            measured: false,
            sha256,
            narrow: None,
            last_narrowed: None,
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
        if options.lossless {
            run.make_cheaper()?;
        }
        Ok(run)
    }

    /// Applies the lossless passes; where they break a fused attention kernel, the
    /// measured latency decides.
    fn make_cheaper(&mut self) -> Result<()> {
        let Some(cheaper) = Cheaper::find(self.dense(), &self.loaded, self.options.axes)? else {
            return Ok(());
        };
        if let Some((before, after)) = cheaper.lost_kernels(&self.engine, self.dense())? {
            let lost = format!("the lossless passes leave {after} of {before} fused attention kernels");
            let Ok(batch) = timing::inputs(self) else {
                self.loaded.notes.push(format!(
                    "{lost}, and no inputs could be made to time it: they are left out"
                ));
                return Ok(());
            };
            let speedup = cheaper.speedup(&self.engine, self.dense(), &batch.feeds)?;
            let better = speedup.median > 1.0;
            self.loaded.notes.push(format!(
                "{lost}; with them the dense model is {:.3} times as fast (quartiles {:.3} to {:.3}): they are {}",
                speedup.median,
                speedup.lower,
                speedup.upper,
                if better { "applied" } else { "left out" }
            ));
            if !better {
                return Ok(());
            }
        }
        self.cheaper = Some(cheaper);
        self.clock.lap("lossless");
        Ok(())
    }

    /// How many samples a measurement of all groups runs: `asked`, or as many as
    /// make `passes` dense passes over all samples, within bounds. Each of its `changes`
    /// runs half of the network on average.
    pub(super) fn probed(
        &self,
        asked: Option<usize>,
        changes: usize,
        passes: f64,
        bounds: RangeInclusive<usize>,
    ) -> usize {
        asked.unwrap_or_else(|| {
            let per_sample = 0.5 * changes as f64;
            let within = passes * self.samples.samples.len() as f64 / per_sample.max(1.0);
            let count = (within as usize).clamp(*bounds.start(), *bounds.end());
            count * self.options.effort.samples()
        })
    }

    /// The model as it was read, with quantised weights where it has some: what the
    /// result is judged by.
    pub fn dense(&self) -> &proto::ModelProto {
        self.closed
            .as_ref()
            .map_or(&self.loaded.model, |(model, _)| model)
    }

    /// To what multiples neurons are kept.
    pub fn alignment(&self) -> Align {
        self.options.alignment(&self.engine.info().device)
    }

    /// Seconds of the dense model's own passes over all samples, from those over the
    /// samples kept apart, by tokens; before these ran, those of the pass that calibrates,
    /// which fetches inner values too.
    pub fn dense_seconds(&self) -> f64 {
        self.plain.unwrap_or(self.timings.engine_seconds)
    }

    /// The tokens of all samples that are calibrated on, those that choose ridges
    /// among them.
    pub(super) fn tokens(&self) -> Result<u64> {
        if !self.guarded || self.options.stats.is_some() {
            return Ok(self.statistics.tokens);
        }
        let specs = data::input_specs(&self.loaded.model)?;
        Ok(data::real_tokens(&self.samples, &specs))
    }

    /// Each so-manieth batch serves to re-fit layers in order: the second or third where
    /// that is enough.
    fn refit_step(&self) -> Result<usize> {
        let specs = data::input_specs(&self.loaded.model)?;
        let tokens = data::real_tokens(&self.samples, &specs) as usize;
        let batches = data::batches(&self.samples, &specs, data::ROWS)?.len();
        let rows = self.chosen.iter().flat_map(|c| &c.sites);
        let widest = rows.filter_map(|s| Some(s.weight.as_ref()?.rows)).max();
        let enough = tokens / (REFIT_ROWS * widest.unwrap_or(1).max(1));
        Ok(match self.options.effort {
            Effort::Normal => enough.min(batches / REFIT_BATCHES).clamp(1, REFIT_STEP),
            Effort::High => 1,
        })
    }

    /// Whether damage is measured.
    fn measures(&self) -> bool {
        self.options.method == Method::Obs && self.options.mask.is_none() && !self.without_samples()
    }

    /// Whether statistics from a file are all there is.
    pub(super) fn without_samples(&self) -> bool {
        self.options.stats.is_some() && self.options.data.is_empty()
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
            let most = *POSITION_SAMPLES.end();
            let asked = self.options.probe.map(|n| n.min(most));
            let changes = positions::changes(&self.loaded.analysis, &self.chosen);
            let count = self.probed(asked, changes, POSITION_PASSES, POSITION_SAMPLES);
            let few = spread(&self.samples, count);
            let mut probe = Probe::new(self.subject(), &few, &self.outputs(), self.cancelled)?;
            let measured = positions::measure(self.subject(), &mut probe, &self.chosen, self.progress);
            self.weights = self.or_without(
                measured,
                "what the positions of a sequence count",
                "all count alike",
            )?;
            self.clock.lap("positions");
        }
        if let Some(path) = &self.options.stats {
            return self.take_statistics(path);
        }
        let probes = probes(&self.chosen)?;
        let sequential = self.options.reconstruction() == Reconstruct::Sequential;
        self.guarded = sequential && self.samples.samples.len() >= FEW;
        let mut recording = match self.guarded {
            true => {
                let name = |v: ValueId| self.loaded.graph.value(v).name.clone();
                let targets = refit::targets(self.subject(), &self.chosen);
                Recording::new(targets.into_iter().map(name), self.refit_step()?)
            }
            false => Recording::new([], 1),
        };
        let values: Vec<String> = recording.values().cloned().collect();
        let pass = calibrate::Pass {
            max_rows: data::ROWS,
            apart: if self.guarded { is_guard } else { |_| false },
            values: &values,
            watch: &mut |tensors| recording.push(tensors),
        };
        (self.statistics, self.timings) = calibrate::collect_watching(
            &self.engine,
            &self.loaded.model,
            &probes,
            &self.weights,
            &self.samples,
            pass,
            self.progress,
            self.cancelled,
        )?;
        self.recording = recording;
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
            self.measures(),
        )?;
        self.clock.lap("ranking");
        if self.measures() {
            let errors = |ranking: &Ranking| match ranking {
                Ranking::Curve(curve) => Some(curve.error.clone()),
                _ => None,
            };
            let local: Vec<Option<Vec<f64>>> = match self.narrows() {
                true => self.ranked.rankings.iter().map(errors).collect(),
                false => Vec::new(),
            };
            let levels = |c: &Chosen| {
                let kind = self.loaded.analysis.groups[c.group].kind;
                rank::levels(kind).len()
            };
            let changes: usize = self.chosen.iter().map(levels).sum();
            let count = self.probed(self.options.probe, changes, DAMAGE_PASSES, PROBE_SAMPLES);
            let few = spread(&self.samples, count);
            let mut probe = Probe::new(self.subject(), &few, &self.outputs(), self.cancelled)?;
            let measured = damage::measure(
                self.subject(),
                &mut probe,
                &self.chosen,
                &self.ranked,
                &self.statistics,
                self.options,
                self.progress,
            );
            let measured = self.or_without(
                measured,
                "the damage that each group does to the outputs",
                "the relative error at its own sink stands in, which is worse",
            )?;
            self.ranked.levels.clear();
            self.measured = !measured.is_empty();
            if self.measured {
                self.ranked.rankings = measured
                    .into_iter()
                    .map(|c| c.map_or(Ranking::Whole, Ranking::Curve))
                    .collect();
            }
            self.clock.lap("damage");
            if self.measured && self.narrows() {
                self.find_narrow(&local)?;
                self.clock.lap("channels");
            }
        }
        Ok(())
    }

    /// What was measured, or nothing and a note where the engine cannot run a part
    /// of the model by itself: a worse result is better than none.
    pub(super) fn or_without<T: Default>(
        &mut self,
        measured: Result<T>,
        what: &str,
        instead: &str,
    ) -> Result<T> {
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
        let ranked = self.options.mask.is_none() && self.options.method != Method::Magnitude;
        ranked || self.options.reconstruction() != Reconstruct::None
    }

    /// The model with what belongs to it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            engine: &self.engine,
            model: &self.loaded.model,
            graph: &self.loaded.graph,
            analysis: &self.loaded.analysis,
        }
    }

    /// The outputs that are compared: those asked for that keep their shape.
    pub(super) fn outputs(&self) -> Vec<ValueId> {
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
        let sizes = sizes(self.options);
        let cost = Cost::new(&self.loaded.graph, &self.loaded.analysis, &sizes);
        match &self.cheaper {
            Some(c) => cost.after(&c.graph, &c.analysis, &c.groups, &sizes),
            None => cost,
        }
    }

    /// The best mask within a budget: the fraction of the prunable blocks'
    /// multiply-accumulates to keep.
    ///
    /// # Errors
    /// [`Error::Unmet`] when the budget cannot be reached.
    pub fn allocate(&mut self, flops: f64) -> Result<Allocation> {
        self.asked = flops;
        let whole = self.allocated(flops, &Narrowing::default())?;
        let mut allocation = self.narrowed(flops, whole)?;
        if !self.can_narrow(&allocation.narrowing)? {
            allocation = self.allocated(flops, &Narrowing::default())?;
        }
        self.fold(&mut allocation);
        self.clock.lap("allocation");
        Ok(allocation)
    }

    /// The best mask within a budget, with heads of fewer channels.
    pub(super) fn allocated(&self, flops: f64, narrowing: &Narrowing) -> Result<Allocation> {
        let align = self.alignment();
        let (cost, analysis) = (self.cost_of(narrowing), &self.loaded.analysis);
        let (rankings, method) = (&self.ranked.rankings, self.options.method.name());
        Ok(if align.is_none() {
            budget::allocate(&cost, analysis, &self.chosen, rankings, flops, method)?
        } else {
            let prices = Prices::macs(&cost, analysis, &self.chosen);
            let limit = Limit::new(Target::Flops(flops), prices);
            let found = budget::within(&[limit], analysis, &self.chosen, rankings, align, method)?;
            let floor = found.got.first().map_or(0.0, |g| g.least.value());
            let mut allocation = budget::of_mask(&cost, analysis, &self.chosen, found.mask);
            allocation.damage = found.damage;
            allocation.budget.asked = flops;
            allocation.budget.floor = floor;
            allocation.budget.cheapest_step = steps(analysis, &self.chosen, &cost, align);
            allocation
        })
    }

    /// Removes units that are constant on all inputs, where that is asked for.
    pub(super) fn fold(&self, allocation: &mut Allocation) {
        if !self.options.fold_constant {
            return;
        }
        let mut mask = allocation.mask.clone();
        constant_units::constant_units(&self.loaded.analysis, &self.chosen, &self.statistics, &mut mask);
        if mask != allocation.mask {
            let cost = self.cost_of(&allocation.narrowing);
            let priced = budget::of_mask(&cost, &self.loaded.analysis, &self.chosen, mask);
            allocation.mask = priced.mask;
            allocation.budget.got = priced.budget.got;
            allocation.budget.whole_after = priced.budget.whole_after;
        }
    }

    /// A mask that something else made.
    ///
    /// # Errors
    /// A file that is no mask of this model.
    pub fn import(&mut self, path: &Path) -> Result<Allocation> {
        let open = self.chosen.iter().map(|c| (c.group, c.least)).collect();
        let (mask, mut notes) = mask::file::read(path, &self.loaded.analysis, &open)?;
        budget::check_even(&self.loaded.analysis, &mask)?;
        notes.extend(provenance::of_another(path, &self.sha256)?);
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
        let found = bisect::bisect(floor, 1.0, STEPS, bound, |flops| {
            let allocation = self.allocate(flops)?;
            let built = self.build(&allocation)?;
            let divergence = match &self.options.eval {
                Some(command) => self.evaluate(command, &built.model)?,
                None => {
                    let mut compared = self.held_out(&built)?;
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
        command::evaluate(command, &path, None, self.cancelled)
    }
}

/// Multiply-accumulates of the cheapest step from one number of units that may
/// stay to the next.
fn steps(analysis: &Analysis, chosen: &[Chosen], cost: &Cost, align: Align) -> u64 {
    let prices = UnitPrices::of(cost, analysis, chosen);
    let steps = chosen.iter().zip(prices.per_unit).map(|(c, price)| {
        let group = &analysis.groups[c.group];
        match group.kind {
            Kind::Neurons => price * align.of(group.units) as u64,
            _ => price,
        }
    });
    steps.filter(|s| *s > 0).min().unwrap_or(0)
}

/// Runs two models over the same samples.
pub(super) fn compare(
    engine: &dyn Engine,
    dense: &proto::ModelProto,
    pruned: &proto::ModelProto,
    samples: &Samples,
    interface: &Interface,
    cancelled: &AtomicBool,
) -> Result<Comparison> {
    let options = SessionOptions::default();
    let mut a = engine.session(pruned, &options)?;
    let mut b = engine.session(dense, &options)?;
    verify::compare(a.as_mut(), b.as_mut(), dense, samples, interface, cancelled)
}
