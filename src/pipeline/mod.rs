//! The straight line from a file to a smaller file.

mod build;
mod clock;
mod finite;
mod limits;
mod narrow;
mod paths;
mod ready;
mod run;
mod shards;
mod simplified;
mod timing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use build::Built;
pub use run::Run;
pub use shards::{StatisticsReport, calibrate, merge, partial};
pub use simplified::Cheaper;

use crate::axes::{self, Analysis};
use crate::budget::{Allocation, Cost, Sizes, shared};
use crate::data::DataOptions;
use crate::engine::Engine as _;
use crate::graph::{self, Graph};
use crate::io::staged::Staged;
use crate::mask::{self, Mask};
use crate::measure::paired::Measured;
use crate::numerics::score::Ranking;
use crate::onnx::{self, proto, provenance};
use crate::options::{Options, Reconstruct};
use crate::progress::Progress;
use crate::report::command::{Output, command};
use crate::report::{self, Calibration, DamageCurve, DamageKind, GroupReport, Report, Size};
use crate::sites::Chosen;
use crate::{Error, Result, ResultExt, engine, rewrite, verify};

/// A model that was read and analysed.
pub struct Loaded {
    /// The file.
    pub file: onnx::Model,
    /// With local functions inlined.
    pub model: proto::ModelProto,
    /// Producers and consumers.
    pub graph: Graph,
    /// Which axes shrink together.
    pub analysis: Analysis,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Reads and analyses a model.
///
/// # Errors
/// A file that cannot be read or is no valid model.
pub fn load(path: &Path, axes: axes::Options) -> Result<Loaded> {
    let file = onnx::load(path)?;
    let place = || format!("{}", path.display());
    onnx::validate(&file.proto).context(place)?;
    let model = onnx::inline_functions(&file.proto).context(place)?;
    let graph = graph::build(&model).context(place)?;
    let analysis = axes::analyse(&graph, axes);
    let mut notes = Vec::new();
    if file.notes.unknown_bytes > 0 {
        notes.push(format!(
            "the file has {} bytes in protobuf fields that are not part of ONNX; they are not written",
            file.notes.unknown_bytes
        ));
    }
    Ok(Loaded {
        file,
        model,
        graph,
        analysis,
        notes,
    })
}

/// Sizes that costs are computed for.
pub fn sizes(options: &Options) -> Sizes {
    Sizes {
        batch: options.data.batch,
        seq: options.data.seq,
        named: BTreeMap::new(),
    }
}

/// A file that is made from the report and appears together with the model.
pub struct Beside<'a> {
    /// What it is, for errors.
    pub what: &'a str,
    /// Where it goes.
    pub path: &'a Path,
    /// Its content.
    pub content: &'a dyn Fn(&Report) -> Result<String>,
}

/// Prunes `input` into `output`.
///
/// # Errors
/// As [`Error`] lists them; on any error there is no output file, and an older one
/// is as it was.
pub fn prune(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Report> {
    prune_beside(input, output, &[], options, progress, cancelled)
}

/// Prunes `input` into `output` and writes what belongs to it; all files appear or
/// none.
///
/// # Errors
/// As [`prune`].
pub fn prune_beside(
    input: &Path,
    output: &Path,
    beside: &[Beside],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Report> {
    let more = beside.iter().map(|b| (b.what, b.path));
    let outputs: Vec<(&str, &Path)> = [("the output", output)].into_iter().chain(more).collect();
    paths::before(&[input], &outputs, options)?;
    let mut run = Run::start(input, options, progress, cancelled)?;
    paths::side_files(&run.loaded, &outputs, options)?;
    let (report, model) = match (options.max_drop, &options.limits[..]) {
        (Some(bound), _) => {
            let (allocation, built, tried) = run.search(bound)?;
            let (mut report, model) = stage(&mut run, output, &allocation, built, None)?;
            report.tried = tried;
            (report, model)
        }
        (None, []) => {
            let allocation = match &options.mask {
                Some(path) => run.import(path)?,
                None => run.allocate(options.flops)?,
            };
            let built = run.build(&allocation)?;
            stage(&mut run, output, &allocation, built, None)?
        }
        (None, _) => {
            let met = limits::meet(&mut run, output)?;
            let (mut report, model) = stage(&mut run, output, &met.allocation, met.built, met.measured)?;
            report.limits = met.got;
            (report, model)
        }
    };
    let mut staged = Staged::default();
    for b in beside {
        staged.bytes(b.path, (b.content)(&report)?.as_bytes())?;
    }
    // The model comes last: where it is new, all is.
    staged.append(model);
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    staged.commit()?;
    Ok(report)
}

/// Prunes `input` to several budgets from one calibration. The files are named
/// after `output`: `small.onnx` becomes `small-0.6.onnx` and so on. `beside` are files
/// that the caller writes about them, which must be none of the inputs.
///
/// # Errors
/// As [`prune`]; files of budgets before the one that fails stay.
pub fn sweep(
    input: &Path,
    output: &Path,
    budgets: &[f64],
    beside: &[(&str, &Path)],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Report>> {
    let bad = budgets.iter().find(|f| !(**f > 0.0 && **f <= 1.0));
    if let Some(bad) = bad {
        return Err(Error::input(format!(
            "--sweep {bad}: fractions to keep are above 0 and at most 1"
        )));
    }
    if options.export_mask.is_some() {
        return Err(Error::input(
            "--export-mask names one file, a sweep has many masks: each file that it writes holds its own (--mask OUT.onnx reads it)",
        ));
    }
    let names: Vec<PathBuf> = budgets.iter().map(|flops| of_budget(output, *flops)).collect();
    let made = names.iter().map(|name| ("the output", name.as_path()));
    let outputs: Vec<(&str, &Path)> = made.chain(beside.iter().copied()).collect();
    paths::before(&[input], &outputs, options)?;
    let mut run = Run::start(input, options, progress, cancelled)?;
    paths::side_files(&run.loaded, &outputs, options)?;
    budgets
        .iter()
        .map(|flops| {
            let allocation = run.allocate(*flops)?;
            let built = run.build(&allocation)?;
            finish(&mut run, &of_budget(output, *flops), &allocation, built)
        })
        .collect()
}

/// The name of the file of one budget.
fn of_budget(output: &Path, flops: f64) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{stem}-{flops}.onnx"))
}

/// Prunes several models that hold the same weights (an encoder and decoders) with
/// one mask for what they share; each goes to `folder` under its own name.
///
/// The budget is over all of them together. What they share is re-fitted on the
/// statistics of all, locally: so its new weights are the same in all files. `beside`
/// as in [`sweep`].
///
/// # Errors
/// As [`prune`]; two files of one name.
pub fn several(
    inputs: &[PathBuf],
    folder: &Path,
    beside: &[(&str, &Path)],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Report>> {
    let mut outputs: Vec<PathBuf> = Vec::new();
    for input in inputs {
        let name = input
            .file_name()
            .ok_or_else(|| Error::input(format!("{} is no file", input.display())))?;
        let output = folder.join(name);
        if outputs.contains(&output) {
            return Err(Error::input(format!(
                "two of the files are named {}: they would overwrite each other in --out-dir",
                name.to_string_lossy()
            )));
        }
        outputs.push(output);
    }
    let given: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let made = outputs.iter().map(|o| ("the output", o.as_path()));
    let made: Vec<(&str, &Path)> = made.chain(beside.iter().copied()).collect();
    if !options.dry_run {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
    }
    paths::before(&given, &made, options)?;
    let mut local = options.clone();
    if local.reconstruction() == Reconstruct::Sequential {
        local.reconstruct = Reconstruct::Local;
    }
    let mut runs = inputs
        .iter()
        .map(|input| Run::open(input, &local, progress, cancelled))
        .collect::<Result<Vec<_>>>()?;
    for run in &mut runs {
        paths::side_files(&run.loaded, &made, options)?;
        run.calibrate()?;
    }
    let mut statistics: Vec<_> = runs
        .iter_mut()
        .map(|r| std::mem::take(&mut r.statistics))
        .collect();
    let classes = {
        let files = files(&runs, inputs);
        let classes = shared::tie(&files)?;
        shared::pool(&files, &classes, &mut statistics)?;
        classes
    };
    for (run, statistics) in runs.iter_mut().zip(statistics) {
        run.statistics = statistics;
        run.judge()?;
    }
    let joint = {
        let costs: Vec<Cost> = runs.iter().map(Run::cost).collect();
        let rankings: Vec<_> = runs.iter().map(|r| r.ranked.rankings.clone()).collect();
        let files = files(&runs, inputs);
        shared::allocate(
            &files,
            &costs,
            &classes,
            &rankings,
            options.flops,
            options.method.name(),
        )?
    };
    let tied = classes.iter().filter(|c| c.is_tied()).count();
    let mut reports = Vec::new();
    for ((run, allocation), output) in runs.iter_mut().zip(&joint.files).zip(&outputs) {
        let built = run.build(allocation)?;
        let mut report = finish(run, output, allocation, built)?;
        report.notes.push(format!(
            "{} files were pruned together: {tied} groups are shared, and all keep {:.4} of their prunable blocks",
            inputs.len(),
            joint.budget.got
        ));
        let paths: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        report.command = command(&paths, Output::Folder(folder), options, Some(options.flops));
        reports.push(report);
    }
    Ok(reports)
}

fn files<'r>(runs: &'r [Run], inputs: &'r [PathBuf]) -> Vec<shared::File<'r>> {
    runs.iter()
        .zip(inputs)
        .map(|(run, input)| shared::File {
            name: input.to_str().unwrap_or("a file"),
            model: &run.loaded.model,
            graph: &run.loaded.graph,
            analysis: &run.loaded.analysis,
            chosen: &run.chosen,
        })
        .collect()
}

/// Measures and writes a model that [`Run::build`] made for `allocation`.
///
/// # Errors
/// The engine's; a file that cannot be written.
pub fn finish(run: &mut Run, output: &Path, allocation: &Allocation, built: Built) -> Result<Report> {
    let (report, staged) = stage(run, output, allocation, built, None)?;
    staged.commit()?;
    Ok(report)
}

/// The same up to the point where the files get their names; `measured` for a model
/// that was timed before.
fn stage(
    run: &mut Run,
    output: &Path,
    allocation: &Allocation,
    built: Built,
    measured: Option<Measured>,
) -> Result<(Report, Staged)> {
    let options = run.options;
    let latency = match measured {
        None if options.timing => timing::reported(run, &built)?,
        measured => measured,
    };
    let held = run.held_out(&built)?;
    let whole = run.cheaper.as_ref().map_or(run.dense(), |c| &c.model);
    let kernels = verify::kernels(&run.engine, whole, &built.model)?;
    run.clock.lap("measuring");
    let mut exported = Vec::new();
    let mut staged = Staged::default();
    let mut written = None;
    if !options.dry_run {
        if let Some(path) = &options.export_mask {
            exported = mask::file::stage(path, &run.loaded.analysis, &allocation.mask, &mut staged)?;
        }
        let save = save_options(&run.loaded.file, options);
        let (model, saved) = onnx::stage(&built.model, output, &save)?;
        staged.append(model);
        written = Some(saved.files.iter().map(|(_, bytes)| bytes).sum());
    }
    run.clock.lap("writing");

    let mut notes = run.loaded.notes.clone();
    notes.extend(exported);
    notes.extend(run.samples.notes.iter().cloned());
    notes.extend(rewrite::interface_changes(
        &run.loaded.graph,
        &run.loaded.analysis,
        &allocation.mask,
    ));
    notes.extend(run.ranked.notes.iter().cloned());
    for (name, iterations) in &run.ranked.iterations {
        notes.push(format!("kcm ran {iterations} iterations on '{name}'"));
    }
    let tokens = run.tokens()?;
    let calibration = run.needs_data().then(|| Calibration {
        origin: run.samples.origin.clone(),
        files: Vec::new(),
        samples: match options.stats {
            Some(_) => run.statistics.samples,
            None => run.samples.samples.len(),
        },
        held_out: run.held_out.samples.len(),
        tokens,
        dense_seconds: run.dense_seconds(),
    });
    let calibration = calibration.map(|c| hashed(c, options)).transpose()?;
    let (file, analysis) = (&run.loaded.file, &run.loaded.analysis);
    let input = file.path.as_deref().unwrap_or("".as_ref());
    let asked = options.mask.is_none() && options.max_drop.is_none();
    let report = Report {
        schema: report::SCHEMA,
        tool: provenance::tool(),
        command: command(
            &[input],
            Output::File(output),
            options,
            asked.then_some(allocation.budget.asked),
        ),
        input: file.path.as_deref().unwrap_or("".as_ref()).display().to_string(),
        input_sha256: run.sha256.clone(),
        output: written.as_ref().map(|_| output.display().to_string()),
        options: described(options, allocation.budget.asked),
        engine: Some(run.engine.info().clone()),
        calibration,
        budget: allocation.budget,
        size: size(
            &run.cost_of(&allocation.narrowing),
            &allocation.mask,
            file,
            written,
        ),
        groups: groups(analysis, &run.chosen, allocation, &run.ranked.rankings),
        damage: match run.ranked.rankings.first() {
            _ if run.measured => DamageKind::Outputs,
            Some(Ranking::Curve(_)) | None => DamageKind::Sink,
            Some(_) => DamageKind::Score,
        },
        positions: run.weights.clone(),
        frozen: report::inspect::frozen(analysis),
        unsupported: analysis.unsupported.clone(),
        narrowed: run.told(allocation),
        fitted: built.fitted,
        equality: Some(built.equality),
        held_out: Some(held),
        lossless: built.passes,
        latency,
        kernels,
        tried: Vec::new(),
        limits: Vec::new(),
        seconds: run.clock.stages(),
        engine_seconds: run.engine.seconds(),
        notes,
    };
    Ok((report, staged))
}

/// With the hashes of all files that were read.
fn hashed(mut calibration: Calibration, options: &Options) -> Result<Calibration> {
    let data: &DataOptions = &options.data;
    let read: Vec<PathBuf> = (options.stats.iter())
        .chain(&data.data)
        .chain(&data.tokenizer)
        .cloned()
        .collect();
    calibration.files = provenance::data_files(&read)?;
    Ok(calibration)
}

fn save_options(file: &onnx::Model, options: &Options) -> onnx::SaveOptions {
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
        parameters_before: cost.dense_parameters(),
        parameters_after: cost.parameters(mask),
        bytes_before: file.path.as_deref().map_or(0, bytes) + side,
        bytes_after: written,
    }
}

fn groups(
    analysis: &Analysis,
    chosen: &[Chosen],
    allocation: &Allocation,
    rankings: &[Ranking],
) -> Vec<GroupReport> {
    chosen
        .iter()
        .zip(&allocation.damage)
        .enumerate()
        .map(|(at, (c, damage))| {
            let group = &analysis.groups[c.group];
            let kept: Vec<usize> = match allocation.mask.kept.get(&c.group) {
                Some(flags) => flags
                    .iter()
                    .enumerate()
                    .filter(|(_, k)| **k)
                    .map(|(i, _)| i)
                    .collect(),
                None => (0..group.units).collect(),
            };
            let curve = match rankings.get(at) {
                Some(Ranking::Curve(curve)) => {
                    Some(DamageCurve::thinned(&curve.error, group.units - kept.len()))
                }
                _ => None,
            };
            GroupReport {
                name: group.name.clone(),
                kind: group.kind,
                units: group.units,
                kept,
                damage: *damage,
                curve,
            }
        })
        .collect()
}

/// `flops` is the fraction that a file of a family was made for.
fn described(options: &Options, flops: f64) -> BTreeMap<String, serde_json::Value> {
    let mut out = BTreeMap::new();
    let mut put = |name: &str, value: serde_json::Value| {
        out.insert(name.to_string(), value);
    };
    put("method", options.method.name().into());
    put("flops", flops.into());
    put("align", options.align.into());
    put("lossless", options.lossless.into());
    put("narrow", options.narrow.into());
    put("fold_constant", options.fold_constant.into());
    put("max_drop", options.max_drop.into());
    put("eval", options.eval.clone().into());
    put(
        "mask",
        options.mask.as_ref().map(|p| p.display().to_string()).into(),
    );
    put("outputs", options.outputs.clone().into());
    put("effort", format!("{:?}", options.effort).to_lowercase().into());
    put("probe", options.probe.into());
    put("join", options.data.join.into());
    put(
        "reconstruct",
        format!("{:?}", options.reconstruction()).to_lowercase().into(),
    );
    put("seed", options.data.seed.into());
    put("samples", options.data.samples.into());
    put("batch", options.data.batch.into());
    put("seq", options.data.seq.into());
    put("min_units", options.min_units.into());
    put("change_interface", options.axes.change_interface.into());
    put("uniform_kv", options.axes.uniform_kv.into());
    put("damp", options.damp.into());
    let exclude: Vec<String> = options.exclude.iter().map(|r| r.to_string()).collect();
    put("exclude", exclude.into());
    out
}

/// Compares two files on the same inputs.
///
/// # Errors
/// Files that cannot be read or run, interfaces that differ.
pub fn compare(a: &Path, b: &Path, options: &Options, cancelled: &AtomicBool) -> Result<verify::Comparison> {
    let (first, second) = (onnx::load(a)?, onnx::load(b)?);
    let engine = engine::choose(&options.engine)?;
    let samples = crate::data::read_samples(&second.proto, &options.data)?;
    let comparison = run::compare(
        engine.as_ref(),
        &second.proto,
        &first.proto,
        &samples,
        &verify::Interface::default(),
        cancelled,
    );
    comparison.map_err(|e| match e {
        Error::Unmet(text) => Error::input(text),
        other => other,
    })
}
