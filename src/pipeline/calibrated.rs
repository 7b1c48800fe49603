//! What positions count, the statistics of all sinks, and what the dense model has after
//! its residual additions.

use std::ops::RangeInclusive;
use std::path::Path;

use super::journal::Journal;
use super::source::{Source, probes};
use crate::calibrate::{self, Timings, Watched, file};
use crate::channels::ChannelCalibration;
use crate::data::{self, split};
use crate::numerics::Statistics;
use crate::rank::Effort;
use crate::rank::positions::{self, Weights};
use crate::rank::probe::Probe;
use crate::refit::{self, Reconstruct, Recording};
use crate::rewrite::heads::OutputHead;
use crate::{Error, Result, ResultExt};

/// Samples that the importance of positions is measured on, and the dense passes
/// over all samples that this may cost.
const POSITION_SAMPLES: RangeInclusive<usize> = 4..=24;
const POSITION_PASSES: f64 = 0.08;
/// Tokens per input of the widest layer, and batches, that are enough to re-fit layers in
/// order: with 8 tokens the divergence of a six-layer BERT is 0.0046, with 4 it is
/// 0.0047, with 2 0.0052; of 10 that there are, 5 give 0.0051 and 3 give 0.0050 (means of three
/// draws).
const REFIT_ROWS: usize = 3;
const REFIT_BATCHES: usize = 2;
/// At least one of so many batches serves, however many there are. Of a language model all
/// serve: what the layers before have left is mostly noise to a layer, and with a third of
/// 14,592 tokens no fit in order of 10 layers of 576 is better than the local one (KL 0.171);
/// with all of them 28 of 29 are (0.136).
const REFIT_STEP: usize = 3;
/// With fewer samples none are kept apart to choose ridges.
const FEW: usize = 12;

/// A source with what its inputs say.
pub struct Calibrated<'a> {
    /// The source.
    pub source: Source<'a>,
    /// What the positions of a sequence count, by site.
    pub positions: Weights,
    /// The statistics of all sinks.
    pub statistics: Statistics,
    /// Time of the calibration runs.
    pub timings: Timings,
    /// Whether some samples choose ridges, so that layers can be re-fitted in order;
    /// the statistics are without them, where they are not from a file.
    pub(super) guarded: bool,
    /// What the dense model has after its residual additions, for re-fitting in order.
    pub(crate) recording: Recording,
    pub(super) journal: Journal,
}

/// Collects what ranking and re-fitting need of the samples.
///
/// # Errors
/// The engine's, values that overflow, an interrupt.
pub fn calibrate(source: Source) -> Result<Calibrated> {
    let journal = Journal::new(source.options.strict);
    let mut calibrated = Calibrated {
        source,
        positions: Weights::new(),
        statistics: Statistics::default(),
        timings: Timings::default(),
        guarded: false,
        recording: Recording::new([], 1),
        journal,
    };
    if calibrated.source.needs_data() {
        calibrated.collect()?;
    }
    Ok(calibrated)
}

impl<'a> Calibrated<'a> {
    /// The same with other statistics: those of several networks that share weights.
    #[must_use]
    pub fn with_statistics(self, statistics: Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// As other stages read it.
    pub(super) fn known(&self) -> ChannelCalibration<'_> {
        ChannelCalibration {
            network: self.source.network(),
            targets: &self.source.targets,
            statistics: &self.statistics,
            positions: &self.positions,
        }
    }

    fn collect(&mut self) -> Result<()> {
        let source = &self.source;
        if source.measures() {
            let measured = weigh(source);
            let measured = self.journal.attempt(
                measured,
                "positions",
                "what the positions of a sequence count could not be measured",
                "all count alike, which costs about a tenth of the divergence where one position is read",
            )?;
            self.positions = measured.unwrap_or_default();
            self.journal.lap("positions");
        }
        if !source.options.stats.is_empty() {
            return self.take_statistics();
        }
        let (ctx, network) = (source.ctx(), source.network());
        let probes = probes(&source.targets)?;
        let sequential = source.options.reconstruction() == Reconstruct::Sequential;
        self.guarded = sequential && source.samples.samples.len() >= FEW;
        let mut recording = match self.guarded {
            true => {
                let wanted = refit::wanted(network, &source.targets);
                let names = wanted.into_iter().map(|v| network.graph.value(v).name.clone());
                Recording::new(names, refit_step(source)?)
            }
            false => Recording::new([], 1),
        };
        let values: Vec<String> = recording.values().cloned().collect();
        let pass = calibrate::CollectPass {
            max_rows: data::ROWS,
            apart: if self.guarded {
                split::is_ridge_holdout
            } else {
                |_| false
            },
            values: &values,
            watch: &mut |tensors| recording.push(tensors),
        };
        let watched = Watched {
            probes: &probes,
            weights: &self.positions,
        };
        (self.statistics, self.timings) =
            calibrate::collect_watching(ctx, &network.proto, watched, &source.samples, pass)?;
        self.recording = recording;
        self.journal.lap("calibration");
        Ok(())
    }

    /// Takes the statistics of a file in place of a calibration.
    fn take_statistics(&mut self) -> Result<()> {
        let source = &mut self.source;
        self.statistics = of_model(source)?;
        if source.without_samples() {
            // What they say is about inputs that take part in comparisons only.
            source.samples.notes.clear();
            self.journal.warn(
                "stats-without-data",
                "--stats without --data: the relative error at each group's own sink stands in for the damage to \
                 the outputs, re-fitting is local, and the comparison with the dense model is on synthetic inputs. \
                 On a six-layer BERT at 60% the divergence was 10 times as large: give some inputs with --data",
            )?;
        } else {
            self.guarded = true;
        }
        self.journal.lap("calibration");
        Ok(())
    }

    /// The tokens of all samples that are calibrated on, those that choose ridges
    /// among them.
    pub(super) fn tokens(&self) -> Result<u64> {
        let source = &self.source;
        if !self.guarded || !source.options.stats.is_empty() {
            return Ok(self.statistics.tokens);
        }
        let specs = data::input_specs(&source.network().proto)?;
        Ok(data::real_tokens(&source.samples, &specs))
    }
}

/// What the positions of a sequence count.
fn weigh(source: &Source) -> Result<Weights> {
    let most = *POSITION_SAMPLES.end();
    let asked = source.options.probe.map(|n| n.min(most));
    let changes = positions::changes(&source.targets);
    let count = source.probed(asked, changes, POSITION_PASSES, POSITION_SAMPLES);
    let few = split::spread(&source.samples, count);
    let mut probe = Probe::new(source.ctx(), source.network(), &few, &source.outputs())?;
    positions::measure(&mut probe, &source.targets)
}

/// Every n-th batch serves to re-fit layers in order: the second or third where
/// that is enough.
fn refit_step(source: &Source) -> Result<usize> {
    let specs = data::input_specs(&source.network().proto)?;
    let tokens = data::real_tokens(&source.samples, &specs) as usize;
    let batches = data::batches(&source.samples, &specs, data::ROWS)?.len();
    let rows = source.targets.iter().flat_map(|t| &t.sites);
    let widest = rows.filter_map(|s| Some(s.weight.as_ref()?.rows)).max();
    let enough = tokens / (REFIT_ROWS * widest.unwrap_or(1).max(1));
    let is_language_model = OutputHead::of(source.network(), &source.outputs()).is_some();
    Ok(match source.options.effort {
        Effort::Normal if is_language_model => 1,
        Effort::Normal => enough.min(batches / REFIT_BATCHES).clamp(1, REFIT_STEP),
        Effort::High => 1,
    })
}

/// The statistics of this model in one of the files, if they are of all its sites.
fn of_model(source: &Source) -> Result<Statistics> {
    let model = &source.sha256;
    let mut others: Vec<(&Path, String)> = Vec::new();
    for path in &source.options.stats {
        let stored = file::load(path)?;
        if stored.model != *model {
            others.push((path, stored.model));
            continue;
        }
        let place = || format!("--stats {}", path.display());
        for probe in probes(&source.targets)? {
            let width = stored.statistics.sites.get(&probe.site).map(|s| s.width());
            if width != Some(probe.width) {
                return Err(Error::input(format!(
                    "there are no statistics of '{}': calibrate with the same --change-interface and --uniform-kv, and without --targets or --exclude",
                    probe.site
                )))
                .context(place);
            }
        }
        return Ok(stored.statistics);
    }
    let (path, other) = others
        .pop()
        .ok_or_else(|| Error::input("no file of statistics is given"))?;
    Err(Error::input(format!(
        "the statistics are of another model: its SHA-256 is {other}, this one's is {model}; run `onnx-prune calibrate` on this file"
    )))
    .context(|| format!("--stats {}", path.display()))
}
