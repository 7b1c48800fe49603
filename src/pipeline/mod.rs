//! The straight line from a file to a smaller file.

mod clock;
mod run;
mod split;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub use run::{Built, Run};

use crate::axes::{self, Analysis};
use crate::budget::{Allocation, Cost, Sizes};
use crate::calibrate;
use crate::graph::{self, Graph};
use crate::mask::Mask;
use crate::onnx::{self, proto};
use crate::options::Options;
use crate::progress::Progress;
use crate::report::{self, Calibration, GroupReport, Report, Size};
use crate::sites::Chosen;
use crate::{Error, Result, ResultExt, rewrite, runtime, verify};

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

/// Prunes `input` into `output`.
///
/// # Errors
/// As [`Error`] lists them; on any error there is no output file.
pub fn prune(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Report> {
    let mut run = Run::start(input, options, progress, cancelled)?;
    let allocation = run.allocate(options.flops)?;
    finish(&mut run, output, &allocation)
}

/// Builds the model of an allocation, measures and writes it.
fn finish(run: &mut Run, output: &Path, allocation: &Allocation) -> Result<Report> {
    let options = run.options;
    let built = run.build(&allocation.mask)?;
    let held = run.held_out(&built.model)?;
    let kernels = verify::kernels(run.engine.as_ref(), &run.loaded.model, &built.model)?;
    run.clock.lap("measuring");
    let written = if options.dry_run {
        None
    } else {
        Some(write(&run.loaded.file, &built.model, output, options)?)
    };
    run.clock.lap("writing");

    let mut notes = run.loaded.notes.clone();
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
    let calibration = run.needs_data().then(|| Calibration {
        origin: run.samples.origin.clone(),
        samples: run.samples.samples.len(),
        held_out: run.held_out.samples.len(),
        tokens: run.statistics.tokens,
        dense_seconds: run.timings.engine_seconds,
    });
    let (file, analysis) = (&run.loaded.file, &run.loaded.analysis);
    Ok(Report {
        schema: report::SCHEMA,
        tool: format!("onnx-prune {}", env!("CARGO_PKG_VERSION")),
        input: file.path.as_deref().unwrap_or("".as_ref()).display().to_string(),
        input_sha256: file.sha256()?,
        output: written.as_ref().map(|_| output.display().to_string()),
        options: described(options),
        engine: Some(run.engine.info().clone()),
        calibration,
        budget: allocation.budget,
        size: size(&run.cost(), &allocation.mask, file, written),
        groups: groups(analysis, &run.chosen, allocation),
        positions: run.weights.clone(),
        frozen: report::inspect::frozen(analysis),
        unsupported: analysis.unsupported.clone(),
        fitted: built.fitted,
        equality: Some(built.equality),
        held_out: Some(held),
        kernels,
        seconds: run.clock.stages(),
        notes,
    })
}

fn write(file: &onnx::Model, pruned: &proto::ModelProto, output: &Path, options: &Options) -> Result<u64> {
    let mut save = onnx::SaveOptions::for_model(file);
    if options.external_data {
        save.external = onnx::External::Always;
    }
    let saved = onnx::save(pruned, output, &save)?;
    Ok(saved.files.iter().map(|(_, bytes)| bytes).sum())
}

fn size(cost: &Cost, mask: &Mask, file: &onnx::Model, written: Option<u64>) -> Size {
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let side: u64 = file.notes.external_files.iter().map(|p| bytes(p)).sum();
    Size {
        parameters_before: cost.parameters(&Mask::default()),
        parameters_after: cost.parameters(mask),
        bytes_before: file.path.as_deref().map_or(0, bytes) + side,
        bytes_after: written,
    }
}

fn groups(analysis: &Analysis, chosen: &[Chosen], allocation: &Allocation) -> Vec<GroupReport> {
    chosen
        .iter()
        .zip(&allocation.damage)
        .map(|(c, damage)| {
            let group = &analysis.groups[c.group];
            let kept = match allocation.mask.kept.get(&c.group) {
                Some(flags) => flags
                    .iter()
                    .enumerate()
                    .filter(|(_, k)| **k)
                    .map(|(i, _)| i)
                    .collect(),
                None => (0..group.units).collect(),
            };
            GroupReport {
                name: group.name.clone(),
                kind: group.kind,
                units: group.units,
                kept,
                damage: *damage,
            }
        })
        .collect()
}

fn described(options: &Options) -> BTreeMap<String, serde_json::Value> {
    let mut out = BTreeMap::new();
    let mut put = |name: &str, value: serde_json::Value| {
        out.insert(name.to_string(), value);
    };
    put("method", options.method.name().into());
    put("flops", options.flops.into());
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
    let engine = runtime::choose(&options.engine)?;
    let samples = calibrate::read_samples(&second.proto, &options.data)?;
    let comparison = run::compare(engine.as_ref(), &second.proto, &first.proto, &samples, cancelled);
    comparison.map_err(|e| match e {
        Error::Unmet(text) => Error::input(text),
        other => other,
    })
}
