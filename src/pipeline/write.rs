//! Measured, told and written: a report, and files that appear together or not at all.

use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::options::Options;
use super::plan::Plan;
use super::pruned::{HeldOut, Pruned};
use super::ranked::Ranked;
use super::recorded::{described, words};
use crate::budget::{Budget, Cost, ModelParts};
use crate::channels::ChannelSummary;
use crate::engine::Engine as _;
use crate::io::staged::Staged;
use crate::mask::{self, Mask};
use crate::measure::paired::Measured;
use crate::numerics::score::Ranking;
use crate::onnx::{self, provenance};
use crate::report::{
    self, CalibrationReport, DamageCurve, DamageKind, GroupReport, PartsReport, Report, Size, command,
};
use crate::vocabulary::{self, VocabularyReport};
use crate::{Result, rewrite, verify};

/// Fewer samples say little of how far two models are apart.
const FEW: usize = 4;

/// A file that is made from the reports and appears together with the models.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// What it is, for errors.
    pub what: &'a str,
    /// Where it goes.
    pub path: &'a Path,
    /// Its content.
    pub content: &'a dyn Fn(&[Report]) -> Result<String>,
}

/// One smaller model with all that is known of it.
pub struct Finished<'r> {
    /// What is known of the dense one.
    pub ranked: &'r Ranked<'r>,
    /// What stays.
    pub plan: &'r Plan,
    /// The model.
    pub pruned: Pruned,
    /// Its latency, where it was measured before.
    pub measured: Option<Measured>,
}

impl Finished<'_> {
    /// Measures and writes the model.
    ///
    /// # Errors
    /// A file that cannot be written; an interrupt.
    pub fn write(self, output: &Path) -> Result<Report> {
        let (report, staged) = self.stage(output, String::new())?;
        staged.commit()?;
        Ok(report)
    }

    /// The same up to the point where the files get their names. `command` is the command
    /// line that does the same again; without one it is made.
    pub(super) fn stage(self, output: &Path, command: String) -> Result<(Report, Staged)> {
        let Finished {
            ranked,
            plan,
            pruned,
            measured,
        } = self;
        let (source, calibrated) = (ranked.source(), &ranked.calibrated);
        let options = source.options;
        let mut journal = Journal::new(options.strict);
        let latency = match measured {
            None if options.timing => {
                let timed = ranked.reported((&pruned.model, &pruned.interface));
                journal.attempt(
                    timed,
                    "timing",
                    "the latency could not be measured",
                    "the model is written all the same",
                )?
            }
            measured => measured,
        };
        journal.lap("timing");
        let held = ranked.held_out(&pruned);
        let held = journal.attempt(
            held,
            "comparison",
            "the model could not be compared with the dense one on held-out samples",
            "nothing is known of its quality",
        )?;
        let whole = source
            .simplified
            .as_ref()
            .map_or(source.dense(), |s| &s.network.proto);
        let kernels = verify::kernels(&source.engine, whole, &pruned.model);
        let kernels = journal.attempt(
            kernels,
            "kernels",
            "the operators after the engine's optimisations could not be compared",
            "a fused kernel may be lost without a word",
        )?;
        journal.lap("measuring");
        let mut exported = Vec::new();
        let mut staged = Staged::default();
        let mut written = None;
        let mut tokenizer = None;
        let mask = &plan.allocation.mask;
        if !options.dry_run {
            if let Some(path) = &options.export_mask {
                exported = mask::file::stage(path, &ranked.network().axes, mask, &mut staged)?;
            }
            let save = save_options(&source.loaded.file, options);
            let (model, saved) = onnx::stage(
                &source.loaded.whole(&pruned.model, &pruned.others)?,
                output,
                &save,
            )?;
            staged.append(model);
            if let Some(trimmed) = &source.loaded.vocabulary
                && options.vocabulary.writes_tokenizer()
            {
                let path = vocabulary::beside(output);
                staged.bytes(&path, &trimmed.tokenizer)?;
                tokenizer = Some(path.display().to_string());
            }
            written = Some(saved.files.iter().map(|(_, bytes)| bytes).sum());
        }
        journal.lap("writing");
        let mut all = Journal::together([
            &source.journal,
            &calibrated.journal,
            &ranked.journal,
            &plan.journal,
            &pruned.journal,
            &journal,
        ]);
        all.notes.extend(exported);
        all.notes.extend(source.samples.notes.iter().cloned());
        all.notes
            .extend(rewrite::interface_changes(ranked.network(), mask));
        all.notes.extend(ranked.rankings.notes.iter().cloned());
        let few = source.held_out.samples.len();
        if few < FEW && held.is_some() && !options.data.data.is_empty() {
            let samples = if few == 1 { "sample was" } else { "samples were" };
            all.notes.push(format!(
                "only {few} {samples} kept apart: the comparison with the dense model tells little"
            ));
        }
        if source.engine.widens() {
            all.notes.push(
                "the engine has no kernels for the model's half precision: it was measured and timed on a copy in \
                 float32, and is written in its own types"
                    .to_owned(),
            );
        }
        for (name, iterations) in &ranked.rankings.iterations {
            all.notes
                .push(format!("kcm ran {iterations} iterations on '{name}'"));
        }
        let calibration = calibration(ranked, held.as_ref())?;
        let (file, axes) = (&source.loaded.file, &ranked.network().axes);
        let input = file.path.as_deref().unwrap_or("".as_ref());
        let line = match command.is_empty() {
            true => command::command(
                &[input],
                &command::Output::File(output),
                &words(options, &plan.goal),
            ),
            false => command,
        };
        let vocabulary = source.loaded.vocabulary.as_ref();
        let cost = source.cost();
        let after = ModelParts::of(ranked.network(), &cost, mask);
        let mut before = ModelParts::of(ranked.network(), &cost, &Mask::default());
        let heads = before.heads.flops;
        if let Some(v) = vocabulary {
            let gone = v.told.bytes_before - v.told.bytes_after;
            before = before.with_tokens([v.tokens.rows, v.tokens.kept.len()], gone);
        }
        let more_flops = before.heads.flops - heads;
        let report = Report {
            schema: report::SCHEMA,
            tool: provenance::tool(),
            command: line,
            input: input.display().to_string(),
            input_sha256: source.sha256.clone(),
            output: written.as_ref().map(|_| output.display().to_string()),
            goal: plan.goal.clone(),
            options: described(options, &plan.goal),
            engine: Some(source.engine.info().clone()),
            calibration,
            budget: Budget {
                whole_before: plan.allocation.budget.whole_before + more_flops,
                ..plan.allocation.budget
            },
            size: {
                let own = size(&ranked.cost_of(&plan.allocation.narrowing), mask, file, written);
                let gone = vocabulary.map_or(0, |v| v.told.parameters);
                Size {
                    parameters_before: own.parameters_before + gone,
                    ..own
                }
            },
            parts: PartsReport { before, after },
            groups: groups(ranked, plan),
            damage: match ranked.rankings.rankings.first() {
                _ if ranked.measured => DamageKind::Outputs,
                Some(Ranking::Curve(_)) | None => DamageKind::Sink,
                Some(_) => DamageKind::Score,
            },
            positions: calibrated.positions.clone(),
            frozen: report::inspect::frozen(axes),
            unsupported: axes.unsupported.clone(),
            vocabulary: vocabulary.map(|v| VocabularyReport {
                tokenizer,
                ..v.told.clone()
            }),
            channels: ranked.summaries(plan),
            fitted: pruned.fitted,
            equality: Some(pruned.equality),
            held_out: held.map(|h| h.comparison),
            lossless: pruned.passes,
            latency,
            kernels: kernels.flatten(),
            tried: Vec::new(),
            limits: match plan.goal.as_flops() {
                Some(_) => Vec::new(),
                None => plan.got.clone(),
            },
            seconds: all.seconds,
            engine_seconds: source.engine.seconds(),
            warnings: all.warnings,
            notes: all.notes,
        };
        Ok((report, staged))
    }
}

impl Ranked<'_> {
    /// What becomes of channels in a plan.
    pub(super) fn summaries(&self, plan: &Plan) -> Vec<ChannelSummary> {
        let channels = self.channels.as_ref();
        channels.map_or_else(Vec::new, |c| {
            let narrowing = &plan.allocation.narrowing;
            c.narrower.told(self.network(), self.targets(), narrowing)
        })
    }
}

fn calibration(ranked: &Ranked, held: Option<&HeldOut>) -> Result<Option<CalibrationReport>> {
    let (source, calibrated) = (ranked.source(), &ranked.calibrated);
    let options = source.options;
    if !source.needs_data() {
        return Ok(None);
    }
    let read: Vec<PathBuf> = (options.stats.iter())
        .chain(&options.data.data)
        .chain(&options.data.tokenizer)
        .cloned()
        .collect();
    Ok(Some(CalibrationReport {
        origin: source.samples.origin.clone(),
        files: provenance::data_files(&read)?,
        samples: match options.stats.is_empty() {
            true => source.samples.samples.len(),
            false => calibrated.statistics.samples,
        },
        held_out: source.held_out.samples.len(),
        tokens: calibrated.tokens()?,
        // Without held-out samples: the pass that calibrates, which fetches inner values too.
        dense_seconds: held.map_or(calibrated.timings.engine_seconds, |h| h.dense_seconds),
    }))
}

/// How a result of `file` is saved.
pub(super) fn save_options(file: &onnx::Model, options: &Options) -> onnx::SaveOptions {
    let mut save = onnx::SaveOptions::for_model(file);
    if options.external_data {
        save.external = onnx::External::Always;
    }
    save
}

fn size(cost: &Cost, mask: &Mask, file: &onnx::Model, written: Option<u64>) -> Size {
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let side: u64 = file.notes.external_files.iter().map(|p| bytes(p)).sum();
    Size {
        parameters_before: cost.dense_parameters(&Mask::default()),
        parameters_after: cost.parameters(mask),
        bytes_before: file.path.as_deref().map_or(0, bytes) + side,
        bytes_after: written,
    }
}

fn groups(ranked: &Ranked, plan: &Plan) -> Vec<GroupReport> {
    let allocation = &plan.allocation;
    let each = ranked.targets().iter().zip(&allocation.damage).enumerate();
    each.map(|(at, (target, damage))| {
        let group = ranked.network().group(target.group);
        let kept: Vec<usize> = match allocation.mask.kept.get(&target.group) {
            Some(flags) => (0..flags.len()).filter(|i| flags[*i]).collect(),
            None => (0..group.units).collect(),
        };
        let curve = match ranked.rankings.rankings.get(at) {
            Some(Ranking::Curve(curve)) => Some(DamageCurve::thinned(&curve.error, group.units - kept.len())),
            _ => None,
        };
        GroupReport {
            name: group.name.clone(),
            kind: group.kind,
            place: group.place,
            units: group.units,
            kept,
            damage: *damage,
            curve,
        }
    })
    .collect()
}
