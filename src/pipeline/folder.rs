//! From a folder that a loader reads to a smaller one that the same loader reads.
//!
//! ```text
//! ModelFolder::read -> families -> a run each -> variants -> other files -> NewFolder::commit
//! ```
//!
//! Models that hold the same matrices are pruned with one plan. A model in another precision
//! keeps the same heads and neurons as the one that was measured. The folder appears when
//! all of it is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::decoder_inputs::{self, Writer, WriterEnds, WrittenTexts};
use super::joint::JointRun;
use super::options::Options;
use super::plan::{Planner, alike, search};
use super::recorded::words;
use super::source::Source;
use super::write::Finished;
use super::{calibrate, load, paths, rank};
use crate::budget::{Demand, Goal, Measure};
use crate::data::{self, DataOptions, DataOrigin};
use crate::engine::{self, Ctx};
use crate::folder::{
    CacheSize, ChangedVocabulary, Changes, ConfigEdit, FolderModel, MAX_CONFIG, ModelFolder, edited,
};
use crate::io::new_folder::NewFolder;
use crate::io::staged;
use crate::mask::Pattern;
use crate::onnx::{self, proto};
use crate::progress::Progress;
use crate::report::command::{Output, command};
use crate::report::{self, Report};
use crate::tensor::{Feeds, Tensor};
use crate::vocabulary::VocabularyOptions;
use crate::{Error, Result, ResultExt, Warning};

/// The reports of a folder, in it.
pub const REPORT: &str = "pruning.json";

/// Files that state what a decoder begins and ends with.
const STATED: [&str; 2] = ["generation_config.json", "config.json"];

/// Matrices of more numbers tell models apart.
const TELLING: i64 = 256;

/// Prunes all models of a folder into another one, which appears whole or not at all; all
/// other files are copied, those that state sizes or token ids are brought up to date.
///
/// # Errors
/// As [`prune`](super::prune); a folder without models, or an output that is something else.
pub fn folder(
    input: &Path,
    output: &Path,
    beside: &[(&str, &Path)],
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
    apart(input, output)?;
    let (options, notes) = fitted(&found, options)?;
    let made = NewFolder::new(output, |old| old.join(REPORT).is_file())?;
    let line = command(&[input], &Output::File(output), &words(&options, &options.goal()));
    let mut run = FolderRun {
        found: &found,
        made: made.path(),
        options,
        beside,
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
    if reports.iter().any(|r| r.output.is_some()) {
        made.commit()?;
    }
    Ok(reports)
}

/// Refuses folders that lie in each other.
fn apart(input: &Path, output: &Path) -> Result<()> {
    let whole = |path: &Path| -> Option<PathBuf> {
        match path.canonicalize() {
            Ok(path) => Some(path),
            Err(_) => staged::entry(path),
        }
    };
    match (whole(input), whole(output)) {
        (Some(a), Some(b)) if a.starts_with(&b) || b.starts_with(&a) => Err(Error::input(format!(
            "the output folder {} and the input folder {}, which is never changed, lie in each other: name another output",
            output.display(),
            input.display()
        ))),
        _ => Ok(()),
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
    if options.axes.change_interface && !states_caches(found) {
        options.axes.change_interface = false;
        notes.push(
            "no configuration here states the heads of the cache apart from those of the queries, so a loader could \
             not be told: caches keep their size"
                .into(),
        );
    }
    Ok((options, notes))
}

/// Whether a configuration has a place for the size of a cache.
fn states_caches(found: &ModelFolder) -> bool {
    let stated = |file: &&PathBuf| {
        let name = file.file_name().and_then(|n| n.to_str());
        matches!(name, Some("config.json" | "genai_config.json"))
    };
    let has = |file: &PathBuf| {
        let bytes = staged::read(&found.root.join(file), MAX_CONFIG).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains("\"num_key_value_heads\"")
    };
    found.files.iter().filter(stated).any(has)
}

/// What a run over a folder knows.
struct FolderRun<'a> {
    found: &'a ModelFolder,
    /// Where the result is until it is whole.
    made: &'a Path,
    options: Options,
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

/// Models that hold the same matrices.
struct Family<'a> {
    models: Vec<&'a FolderModel>,
    matrices: BTreeSet<[u8; 32]>,
    reads_encoder: bool,
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
        let Some(first) = self.found.models.first() else {
            return Ok(());
        };
        let loaded = super::loaded::open(&self.found.root.join(&first.file), &self.options)?.loaded;
        let Some(trimmed) = loaded.vocabulary else {
            return Ok(());
        };
        self.options.vocabulary.chosen = Some(Arc::new(trimmed.kept.clone()));
        if trimmed.drop_in {
            return Ok(());
        }
        self.changes.vocabulary = Some(ChangedVocabulary {
            kept: trimmed.kept.clone(),
            tokenizer: trimmed.tokenizer.clone(),
        });
        Ok(())
    }

    /// Models by the matrices that they share; those that read what another one makes come
    /// last.
    fn families(&mut self) -> Result<Vec<Family<'a>>> {
        let mut families: Vec<Family> = Vec::new();
        for model in &self.found.models {
            let path = self.found.root.join(&model.file);
            let file = onnx::load(&path)?;
            let mut own = Family {
                models: vec![model],
                matrices: matrices(&file.proto),
                reads_encoder: decoder_inputs::reads_encoder(&file.proto),
            };
            let mut rest = Vec::new();
            for family in families {
                match family.matrices.is_disjoint(&own.matrices) {
                    true => rest.push(family),
                    false => {
                        own.models.splice(0..0, family.models);
                        own.matrices.extend(family.matrices);
                        own.reads_encoder |= family.reads_encoder;
                    }
                }
            }
            rest.push(own);
            families = rest;
        }
        families.sort_by_key(|family| family.reads_encoder);
        Ok(families)
    }

    fn family(&mut self, family: &Family) -> Result<()> {
        for model in &family.models {
            for file in std::iter::once(&model.file)
                .chain(&model.variants)
                .chain(&model.copies)
            {
                let path = self.made.join(file);
                let folder = staged::folder_of(&path);
                std::fs::create_dir_all(&folder).map_err(|e| Error::io("cannot create", &folder, e))?;
                self.hold(file)?;
            }
        }
        let options = self.with_data(family)?;
        let before = self.reports.len();
        let patterns = match (&family.models[..], &options[..]) {
            ([model], [options]) => match self.single(&model.file, options, None) {
                Err(Error::NothingPrunable(why)) if self.changes.vocabulary.is_none() => {
                    return self.as_it_is(model, &why);
                }
                made => made?.into_iter().collect(),
            },
            _ => self.together(family, options.clone())?,
        };
        for ((model, pattern), options) in family.models.iter().zip(patterns).zip(&options) {
            let pattern = Arc::new(pattern);
            let got = self.reports.get(before).map_or(1.0, |r| r.budget.got);
            for variant in &model.variants {
                self.variant(variant, (&model.file, &pattern, got), options)?;
            }
        }
        for model in &family.models {
            for copy in &model.copies {
                self.copied(&model.file, copy)?;
            }
        }
        Ok(())
    }

    /// Notes the side files of a model, which are written with it.
    fn hold(&mut self, model: &Path) -> Result<()> {
        let file = onnx::load(&self.found.root.join(model))?;
        let root = &self.found.root;
        let own = file.notes.external_files.iter();
        self.held.extend(own.filter_map(|path| {
            let within = path.strip_prefix(root).ok();
            let within = within.map(Path::to_owned).or_else(|| {
                let path = path.canonicalize().ok()?;
                Some(path.strip_prefix(root.canonicalize().ok()?).ok()?.to_owned())
            });
            within.or_else(|| Some(model.parent()?.join(path.file_name()?)))
        }));
        Ok(())
    }

    /// The options of each model of a family: with what the dense decoder writes to the texts,
    /// where they read that.
    fn with_data(&mut self, family: &Family) -> Result<Vec<Options>> {
        let same = vec![self.options.clone(); family.models.len()];
        let texts = self.options.data.data.iter().any(|path| data::is_text(path));
        if !family.reads_encoder || !texts {
            return Ok(same);
        }
        let written = self.written(family);
        let written = match written {
            Err(error) if error.is_interrupt() => return Err(error),
            Err(error) => {
                self.warn(
                    "decoder-inputs",
                    format!(
                        "the dense model could not be made to write to the texts ({}); its decoder is calibrated on \
                         made-up inputs, which costs about half of the answers that stay the same",
                        error.chain()
                    ),
                )?;
                let mut made_up = same;
                for options in &mut made_up {
                    options.data.data.clear();
                }
                return Ok(made_up);
            }
            Ok(written) => written,
        };
        let mut each = Vec::new();
        for (model, mut options) in family.models.iter().zip(same) {
            let path = self.found.root.join(&model.file);
            let loaded = load(&path, options.axes, &[])?;
            let network = &loaded.network.proto;
            let feeds = match decoder_inputs::reads_cache(network) {
                true => &written.cached,
                false => &written.whole,
            };
            let feeds = feeds.iter().filter_map(|feeds| self.renumbered(feeds));
            let whole = DataOptions {
                data: Vec::new(),
                ..options.data.clone()
            };
            let mut samples = data::completed(network, feeds, &whole)?;
            samples.origin = DataOrigin::Files {
                paths: options.data.data.clone(),
            };
            samples.notes.push(format!(
                "the decoder is calibrated on what the dense model writes to the texts, at most {} tokens each",
                decoder_inputs::WRITTEN
            ));
            options.data.given = Some(Arc::new(samples));
            each.push(options);
        }
        Ok(each)
    }

    fn written(&self, family: &Family) -> Result<WrittenTexts> {
        let path = |model: &FolderModel| self.found.root.join(&model.file);
        let stem = |model: &FolderModel| {
            let name = model.file.file_stem().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let encoder = self
            .found
            .models
            .iter()
            .find(|m| stem(m).contains("encoder") && !stem(m).contains("decoder"));
        let encoder = encoder.ok_or_else(|| Error::input("there is no encoder in the folder"))?;
        // One that needs no cache, or takes none.
        let takes = |model: &&&FolderModel| {
            let inputs = onnx::load(&path(model)).map(|file| {
                let graph = file.proto.graph.unwrap_or_default();
                let switch = graph.input.iter().any(|i| i.name() == "use_cache_branch");
                let past = graph.input.iter().any(|i| i.name().starts_with("past"));
                (past, switch)
            });
            inputs.is_ok_and(|(past, switch)| !past || switch)
        };
        let decoder = family.models.iter().find(takes);
        let decoder =
            decoder.ok_or_else(|| Error::input("no decoder in the folder works without a cache"))?;
        let engine = engine::choose(&self.options.engine)?;
        let start = ["decoder_start_token_id", "bos_token_id"];
        let writer = Writer {
            encoder: &path(encoder),
            decoder: &path(decoder),
            ends: WriterEnds {
                start: start
                    .iter()
                    .find_map(|key| self.found.number(&STATED, key))
                    .unwrap_or(0),
                end: self.found.number(&STATED, "eos_token_id"),
            },
        };
        let ctx = Ctx {
            engine: engine.as_ref(),
            progress: self.progress,
            cancelled: self.cancelled,
        };
        let options = Options {
            vocabulary: VocabularyOptions::default(),
            ..self.options.clone()
        };
        writer.write(ctx, &options)
    }

    /// Feeds with the ids that tokens have now; `None` where one is gone.
    fn renumbered(&self, feeds: &Feeds) -> Option<Feeds> {
        let vocabulary = &self.options.vocabulary;
        let Some(kept) = &vocabulary.chosen else {
            return Some(feeds.clone());
        };
        let mut feeds = feeds.clone();
        for name in decoder_inputs::IDS {
            let Some(ids) = feeds.get(name) else { continue };
            let new = |id: &i64| {
                let at = kept.binary_search(&u32::try_from(*id).ok()?).ok()?;
                match vocabulary.drop_in {
                    true => Some(*id),
                    false => i64::try_from(at).ok(),
                }
            };
            let own = ids.to_i64()?.iter().map(new).collect::<Option<Vec<i64>>>()?;
            feeds.insert(name.into(), Tensor::i64(ids.shape.clone(), own));
        }
        Some(feeds)
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
                (report, staged, planner.patterns(got)?.pop())
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
        (main, pattern, got): (&Path, &Arc<Pattern>, f64),
        options: &Options,
    ) -> Result<()> {
        let mut options = options.clone();
        options.max_drop = None;
        options.eval = None;
        options.demands = vec![Demand::Flops(got)];
        let (shown, main) = (file.display(), main.display());
        let error = match self.single(file, &options, Some(pattern)) {
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

    /// A model with nothing to prune, and its other forms.
    fn as_it_is(&mut self, model: &FolderModel, why: &str) -> Result<()> {
        for file in std::iter::once(&model.file)
            .chain(&model.variants)
            .chain(&model.copies)
        {
            self.saved(&self.found.root.join(file), file)?;
        }
        self.notes
            .push(format!("{} is copied as it is: {why}", model.file.display()));
        Ok(())
    }

    fn copied(&self, model: &Path, copy: &Path) -> Result<()> {
        match self.options.dry_run {
            true => Ok(()),
            false => self.saved(&self.made.join(model), copy),
        }
    }

    fn saved(&self, from: &Path, to: &Path) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let file = onnx::load(from)?;
        onnx::save(
            &file.proto,
            &self.made.join(to),
            &onnx::SaveOptions::for_model(&file),
        )?;
        Ok(())
    }

    fn warn(&mut self, name: &'static str, text: String) -> Result<()> {
        let warning = Warning { name, text };
        if self.options.strict {
            return Err(Error::Strict(warning));
        }
        self.warnings.push(warning);
        Ok(())
    }

    fn note_caches(&mut self, file: &Path) -> Result<()> {
        if self.options.dry_run || !self.options.axes.change_interface {
            return Ok(());
        }
        for (root, sizes) in [self.found.root.as_path(), self.made]
            .into_iter()
            .zip(&mut self.caches)
        {
            sizes.extend(caches(&onnx::load(&root.join(file))?.proto));
        }
        Ok(())
    }

    /// Copies what is no model, brought up to date.
    fn others(&mut self) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let [before, after] = &self.caches;
        if let (true, Some(size)) = (after.len() == 1 && before != after, after.first()) {
            self.changes.caches = Some(*size);
        }
        let models = self.found.models.iter().flat_map(|m| {
            let own = std::iter::once(&m.file);
            own.chain(&m.variants).chain(&m.copies)
        });
        let models: BTreeSet<&PathBuf> = models.collect();
        for file in &self.found.files {
            if models.contains(file) || self.held.contains(file) || file == Path::new(REPORT) {
                continue;
            }
            let (from, to) = (self.found.root.join(file), self.made.join(file));
            let folder = staged::folder_of(&to);
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("cannot create", &folder, e))?;
            let size = from
                .metadata()
                .map_err(|e| Error::io("cannot read", &from, e))?
                .len();
            let edit = match size <= MAX_CONFIG {
                true => edited(file, &staged::read(&from, MAX_CONFIG)?, &self.changes)?,
                false => edited(file, &[], &self.changes)?,
            };
            match edit {
                ConfigEdit::Changed(bytes) => staged::write(&to, &bytes)?,
                ConfigEdit::LeftOut(why) => self.notes.push(format!("{} is left out: {why}", file.display())),
                ConfigEdit::Same => {
                    std::fs::copy(&from, &to).map_err(|e| Error::io("cannot copy", &from, e))?;
                }
            }
        }
        Ok(())
    }

    /// The reports, with the names that files have in the end.
    fn told(self, output: &Path) -> Result<Vec<Report>> {
        let mut reports = self.reports;
        for report in &mut reports {
            if let Some(path) = &report.output {
                let within = Path::new(path).strip_prefix(self.made);
                report.output = Some(output.join(within.unwrap_or(path.as_ref())).display().to_string());
            }
            if let Some(vocabulary) = &mut report.vocabulary
                && self.changes.vocabulary.is_some()
            {
                vocabulary.tokenizer = Some(output.join("tokenizer.json").display().to_string());
            }
        }
        if let Some(first) = reports.first_mut() {
            first.warnings.extend(self.warnings);
            first.notes.extend(self.notes);
        }
        Ok(reports)
    }
}

/// The matrices of a model that are no tables: a hash of each.
fn matrices(model: &proto::ModelProto) -> BTreeSet<[u8; 32]> {
    /// Bytes that tell matrices apart.
    const BYTES: usize = 1 << 16;
    let Some(graph) = &model.graph else {
        return BTreeSet::new();
    };
    let nodes = graph.node.iter().filter(|n| n.op_type() != "Gather");
    let read: BTreeSet<String> = nodes.flat_map(crate::graph::node_reads).collect();
    let held = graph.initializer.iter().filter(|t| {
        let numbers: i64 = t.dims.iter().product();
        t.dims.len() >= 2 && numbers >= TELLING && read.contains(t.name())
    });
    let hashed = held.filter_map(|tensor| {
        let bytes = tensor.raw_data.as_deref()?;
        let bytes = &bytes[..bytes.len().min(BYTES)];
        let first = bytes.first()?;
        // Equal numbers tell nothing.
        if bytes.iter().all(|b| b == first) {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}", tensor.data_type, tensor.dims));
        hash.update(bytes);
        Some(hash.finalize().into())
    });
    hashed.collect()
}

/// The sizes of the caches that a model reads.
fn caches(model: &proto::ModelProto) -> BTreeSet<CacheSize> {
    let specs = data::input_specs(model).unwrap_or_default();
    let size = |spec: &data::InputSpec| match (&spec.dims[..], spec.name.starts_with("past")) {
        ([_, heads, _, channels], true) => Some(CacheSize {
            heads: heads.fixed()?,
            channels: channels.fixed()?,
        }),
        _ => None,
    };
    specs.iter().filter_map(size).collect()
}
