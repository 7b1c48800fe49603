//! From a folder that a loader reads to a smaller one that the same loader reads.
//!
//! ```text
//! places    what lies where, and may not
//! families  models that hold the same matrices
//! inputs    what they are calibrated on
//! others    what is no model: copied, brought up to date, left out
//!
//! ModelFolder::read -> families -> a run each -> variants -> other files -> NewFolder::commit
//! ```
//!
//! Models that hold the same matrices are pruned with one plan. A model in another precision
//! keeps the same heads and neurons as the one that was measured. The folder appears when
//! all of it is there.

mod families;
mod inputs;
mod others;
mod places;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use families::Family;
use places::TokenPlaces;

use super::joint::JointRun;
use super::loaded::with_vocabulary;
use super::options::Options;
use super::plan::{Planner, alike, search};
use super::recorded::words;
use super::source::Source;
use super::vocabulary::too_few;
use super::write::{Beside, Finished};
use super::{calibrate, paths, rank};
use crate::budget::{Demand, Goal, Measure};
use crate::data;
use crate::folder::{CacheSize, ChangedVocabulary, Changes, MAX_CONFIG, ModelFolder, readable, roles};
use crate::io::new_folder::{NewFolder, folder_within};
use crate::io::staged::{self, Staged};
use crate::mask::Pattern;
use crate::progress::Progress;
use crate::report::command::{Output, command};
use crate::report::{self, Report};
use crate::{Error, Result, ResultExt, Warning};

/// The reports of a folder, in it.
pub const REPORT: &str = "pruning.json";

/// Prunes all models of a folder into another one, which appears whole or not at all; all
/// other files are copied, those that state sizes or token ids are brought up to date.
/// What is `beside` it appears with it.
///
/// # Errors
/// As [`prune`](super::prune); a folder without models, or an output that is something else.
pub fn folder(
    input: &Path,
    output: &Path,
    beside: &[Beside],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Report>> {
    if output.extension().is_some_and(|e| e == "onnx") {
        return Err(Error::input(format!(
            "{} is a folder, which becomes another folder, and not the file {}",
            input.display(),
            output.display()
        )));
    }
    let found = ModelFolder::read(input)?;
    let paths: Vec<(&str, &Path)> = beside.iter().map(|b| (b.what, b.path)).collect();
    let cache = options.latency_cache.iter();
    let cache = cache.map(|path| ("--latency-cache", path.as_path()));
    places::apart(input, output, paths.iter().copied().chain(cache))?;
    let (options, notes) = fitted(&found, options)?;
    if options.vocabulary.is_asked() || options.axes.change_interface {
        for file in &found.files {
            readable(file, || staged::read(&input.join(file), MAX_CONFIG))?;
        }
    }
    let made = NewFolder::new(output, |old| places::earlier(old, &found))?;
    let line = command(&[input], &Output::File(output), &words(&options, &options.goal()));
    let mut run = FolderRun {
        places: TokenPlaces::of(&found, options.data.tokenizer.as_deref()),
        found: &found,
        made: made.path(),
        options,
        beside: &paths,
        line,
        progress,
        cancelled,
        reports: Vec::new(),
        warnings: Vec::new(),
        notes,
        changes: Changes::default(),
        held: BTreeSet::new(),
        caches: [BTreeSet::new(), BTreeSet::new()],
    };
    run.all()?;
    run.others()?;
    let reports = run.told(output)?;
    let text = report::json(&reports)?;
    staged::write(&made.path().join(REPORT), text.as_bytes())?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let mut staged = Staged::default();
    for b in beside {
        staged.bytes(b.path, (b.content)(&reports)?.as_bytes())?;
    }
    // A device can fail still: then there is no folder.
    staged.commit()?;
    if reports.iter().any(|r| r.output.is_some()) {
        made.commit()?;
    }
    Ok(reports)
}

/// An error with the file that it is about, which an engine does not know.
fn of_file(error: Error, file: &Path) -> Error {
    let file = file.display().to_string();
    match error.is_interrupt() || error.chain().contains(&file) {
        true => error,
        false => error.context(file),
    }
}

/// The options that suit a folder, and what there is to say about them.
fn fitted(found: &ModelFolder, options: &Options) -> Result<(Options, Vec<String>)> {
    let mut options = options.clone();
    let mut notes = Vec::new();
    if options.mask.is_some() || options.export_mask.is_some() {
        return Err(Error::input(
            "--mask and --export-mask are for one file: a folder may have several with groups of their own",
        ));
    }
    let texts = options.data.data.iter().any(|path| data::is_text(path));
    // Its special tokens are around made-up ones.
    if options.data.tokenizer.is_none() && options.data.is_empty() {
        options.data.tokenizer = found.tokenizer();
    }
    if options.data.tokenizer.is_none() && (texts || options.vocabulary.is_asked()) {
        options.data.tokenizer = found.tokenizer();
        if options.data.tokenizer.is_none() {
            return Err(Error::input(format!(
                "there is no tokenizer.json in {}: give one with --tokenizer",
                found.root.display()
            )));
        }
    }
    if options.axes.change_interface && !options.axes.uniform_kv {
        // Loaders make one cache size for all layers.
        options.axes.uniform_kv = true;
        notes.push("loaders of folders have one size of cache for all layers: --uniform-kv".into());
    }
    if options.axes.change_interface && !others::states_caches(found) {
        options.axes.change_interface = false;
        notes.push(
            "no configuration here states the heads of the cache apart from those of the queries, so a loader could \
             not be told: caches keep their size"
                .into(),
        );
    }
    Ok((options, notes))
}

/// What a run over a folder knows.
struct FolderRun<'a> {
    found: &'a ModelFolder,
    /// Where the result is until it is whole.
    made: &'a Path,
    options: Options,
    places: TokenPlaces,
    beside: &'a [(&'a str, &'a Path)],
    line: String,
    progress: &'a dyn Progress,
    cancelled: &'a AtomicBool,
    reports: Vec<Report>,
    warnings: Vec<Warning>,
    notes: Vec<String>,
    changes: Changes,
    /// Side files of models.
    held: BTreeSet<PathBuf>,
    /// Sizes of caches before and after.
    caches: [BTreeSet<CacheSize>; 2],
}

impl<'a> FolderRun<'a> {
    fn all(&mut self) -> Result<()> {
        self.less_vocabulary()?;
        let families = self.families()?;
        let runs = families.len();
        let absolute = |d: &Demand| !matches!(d.measure(), Measure::Macs | Measure::Parameters);
        if let Goal::Limits(demands) = self.options.goal()
            && runs > 1
            && let Some(demand) = demands.iter().find(|d| absolute(d))
        {
            return Err(Error::input(format!(
                "{demand} is for one model, and {} holds {runs} that share no weights: give --flops or --params, \
                 or prune them one by one",
                self.found.root.display()
            )));
        }
        for family in families {
            self.family(&family)?;
        }
        if self.reports.is_empty() {
            return Err(Error::NothingPrunable(format!(
                "no model in {} has anything that can be pruned",
                self.found.root.display()
            )));
        }
        Ok(())
    }

    /// Chooses the tokens that stay in all models, by the first of them.
    fn less_vocabulary(&mut self) -> Result<()> {
        if !self.options.vocabulary.is_asked() {
            return Ok(());
        }
        for file in self.found.files.iter().filter(|file| self.places.concern(file)) {
            let path = self.found.root.join(file);
            let tokens = roles(file, || staged::read(&path, MAX_CONFIG))?;
            self.options.vocabulary.named.extend(tokens);
        }
        let mut first = None;
        for model in &self.found.models {
            let loaded = with_vocabulary(&self.found.root.join(&model.file), &self.options);
            match (loaded, &first) {
                (Ok(loaded), _) if loaded.vocabulary.is_some() => {
                    first = Some(Ok(loaded));
                    break;
                }
                (Err(error), None) => first = Some(Err(error)),
                _ => {}
            }
        }
        // A model without a table of tokens goes with the others; none with one is an error.
        let Some(trimmed) = first.transpose()?.and_then(|loaded| loaded.vocabulary) else {
            return Ok(());
        };
        self.options.vocabulary.chosen = Some(Arc::new(trimmed.tokens.clone()));
        if let Some(text) = too_few(&trimmed.tokens) {
            self.warn("few-texts", text)?;
        }
        if trimmed.drop_in {
            return Ok(());
        }
        self.changes.vocabulary = Some(ChangedVocabulary {
            kept: trimmed.tokens.kept.clone(),
            tokenizer: trimmed.tokenizer.clone(),
            sizes: [trimmed.told.before, trimmed.tokens.rows],
        });
        Ok(())
    }

    fn family(&mut self, family: &Family) -> Result<()> {
        for model in &family.models {
            for file in std::iter::once(&model.file)
                .chain(&model.variants)
                .chain(&model.copies)
            {
                folder_within(self.made, file.parent().unwrap_or(Path::new("")))?;
                self.hold(file)?;
            }
        }
        let options = self.with_data(family)?;
        let before = self.reports.len();
        let patterns = match (&family.models[..], &options[..]) {
            ([model], [options]) => match self.single(&model.file, options, None) {
                Err(Error::NothingPrunable(why)) => return self.as_it_is(model, &why),
                made => made
                    .map_err(|error| of_file(error, &model.file))?
                    .into_iter()
                    .collect(),
            },
            _ => self.together(family, options.clone())?,
        };
        let got = self.reports.get(before).map_or(1.0, |r| r.budget.got);
        for (at, (model, options)) in family.models.iter().zip(&options).enumerate() {
            let pattern = patterns.get(at).cloned().map(Arc::new);
            for variant in &model.variants {
                self.variant(variant, (&model.file, pattern.as_ref(), got), options)?;
            }
        }
        for model in &family.models {
            for copy in &model.copies {
                self.copied(&model.file, copy)?;
            }
        }
        Ok(())
    }

    /// Prunes one file; what stays of it where heads keep their channels comes back. With a
    /// pattern it keeps what that says.
    fn single(
        &mut self,
        file: &Path,
        options: &Options,
        like: Option<&Arc<Pattern>>,
    ) -> Result<Option<Pattern>> {
        let (input, output) = (self.found.root.join(file), self.made.join(file));
        let options = &Options {
            like: like.cloned(),
            ..options.clone()
        };
        let outputs = self.outputs(std::slice::from_ref(&output));
        paths::before(&[&input], &outputs, options)?;
        let place = || file.display().to_string();
        let source = Source::read(&input, options, self.progress, self.cancelled)?;
        paths::side_files(&source.loaded, &outputs, options)?;
        let ranked = rank(calibrate(source)?)?;
        let goal = options.goal();
        let (report, staged, pattern) = match like {
            Some(pattern) => {
                let plan = &alike(&ranked, &goal, pattern)?;
                let finished = Finished {
                    ranked: &ranked,
                    plan,
                    pruned: ranked.build(plan)?,
                    measured: None,
                };
                let (report, staged) = finished.stage(&output, self.line.clone())?;
                (report, staged, None)
            }
            None => {
                let planner = Planner::of(&ranked)?;
                let found = search(&planner, &goal, &[&output])?;
                let (mut report, staged) = found
                    .only(&ranked)?
                    .stage(&output, self.line.clone())
                    .context(place)?;
                report.tried = found.tried;
                let got = report.budget.got;
                // Heads alone may not reach what they reach with their channels.
                let pattern = planner.patterns(got).ok().and_then(|mut all| all.pop());
                (report, staged, pattern)
            }
        };
        staged.commit()?;
        self.note_caches(file)?;
        self.reports.push(report);
        Ok(pattern)
    }

    fn together(&mut self, family: &Family, options: Vec<Options>) -> Result<Vec<Pattern>> {
        let all =
            |root: &Path| -> Vec<PathBuf> { family.models.iter().map(|m| root.join(&m.file)).collect() };
        let (inputs, outputs) = (all(&self.found.root), all(self.made));
        let given: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let made = self.outputs(&outputs);
        paths::before(&given, &made, &self.options)?;
        let run = JointRun {
            outputs: &outputs,
            options,
            made: &made,
            line: &self.line,
            variants: family.models.iter().any(|m| !m.variants.is_empty()),
        };
        let (reports, patterns) = run.run(&inputs, self.progress, self.cancelled)?;
        self.reports.extend(reports);
        for model in &family.models {
            self.note_caches(&model.file)?;
        }
        Ok(patterns)
    }

    fn outputs<'o>(&self, outputs: &'o [PathBuf]) -> Vec<(&'o str, &'o Path)>
    where
        'a: 'o,
    {
        let own = outputs.iter().map(|o| ("the output", o.as_path()));
        own.chain(self.beside.iter().copied()).collect()
    }

    /// A model in another precision: with the heads and neurons of the one that was
    /// measured, or by a plan of its own where it has others.
    fn variant(
        &mut self,
        file: &Path,
        (main, pattern, got): (&Path, Option<&Arc<Pattern>>, f64),
        options: &Options,
    ) -> Result<()> {
        let mut options = options.clone();
        options.max_drop = None;
        options.eval = None;
        options.demands = vec![Demand::Flops(got)];
        let (shown, main) = (file.display(), main.display());
        let followed = match pattern {
            Some(pattern) => self.single(file, &options, Some(pattern)),
            None => Err(Error::input("without narrower heads this budget has no plan")),
        };
        let error = match followed {
            Ok(_) => {
                if let Some(report) = self.reports.last_mut() {
                    report
                        .notes
                        .push(format!("it keeps the heads and neurons of {main}"));
                }
                return Ok(());
            }
            Err(error) if error.is_interrupt() => return Err(error),
            Err(error) => error,
        };
        match self.single(file, &options, None) {
            Ok(_) => self.warn(
                "variant",
                format!(
                    "{shown} could not keep the heads and neurons of {main} ({}): it was pruned by a plan of its own",
                    error.chain()
                ),
            ),
            Err(error) if error.is_interrupt() => Err(error),
            Err(error) => {
                let _ = std::fs::remove_file(self.made.join(file));
                self.warn(
                    "variant",
                    format!("{shown} could not be pruned ({}): it is left out", error.chain()),
                )
            }
        }
    }

    fn warn(&mut self, name: &'static str, text: String) -> Result<()> {
        let warning = Warning { name, text };
        if self.options.strict {
            return Err(Error::Strict(warning));
        }
        self.warnings.push(warning);
        Ok(())
    }

    /// The reports, with the names that files have in the end.
    fn told(self, output: &Path) -> Result<Vec<Report>> {
        let tokenizer = self.places.tokenizer;
        let mut reports = self.reports;
        for report in &mut reports {
            if let Some(path) = &report.output {
                let within = Path::new(path).strip_prefix(self.made);
                report.output = Some(output.join(within.unwrap_or(path.as_ref())).display().to_string());
            }
            if let Some(vocabulary) = &mut report.vocabulary
                && self.changes.vocabulary.is_some()
            {
                vocabulary.tokenizer = Some(output.join(&tokenizer).display().to_string());
            }
        }
        if let Some(first) = reports.first_mut() {
            first.warnings.extend(self.warnings);
            first.notes.extend(self.notes);
        }
        Ok(reports)
    }
}
