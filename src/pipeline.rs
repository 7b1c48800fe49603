//! The straight line from a file to a smaller file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::axes::{self, Analysis};
use crate::budget::{self, Allocation, Cost, Ranking, Sizes};
use crate::calibrate::{self, Samples, Statistics};
use crate::graph::{self, Graph};
use crate::mask::Mask;
use crate::onnx::{self, proto};
use crate::options::{Method, Options, Reconstruct};
use crate::progress::Progress;
use crate::report::{self, Calibration, GroupReport, Report, Size};
use crate::runtime::{self, Engine, SessionOptions};
use crate::sites::{self, Chosen};
use crate::{Error, Result, ResultExt, damage, rank, rebuild, rewrite, verify};

/// Samples on which sliced and masked are compared.
const EQUALITY_SAMPLES: usize = 8;
/// Most samples that are kept apart for measuring.
const HELD_OUT: usize = 64;
/// Rows per run while calibrating.
const ROWS: usize = 16;

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

/// Seconds per stage.
struct Clock {
    last: Instant,
    stages: Vec<(String, f64)>,
}

impl Clock {
    fn lap(&mut self, stage: &str) {
        self.stages
            .push((stage.to_string(), self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
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
    options.check()?;
    let mut clock = Clock {
        last: Instant::now(),
        stages: Vec::new(),
    };
    let mut loaded = load(input, options.axes)?;
    let (model, graph, analysis) = (&loaded.model, &loaded.graph, &loaded.analysis);
    let chosen = sites::choose(model, graph, analysis, options)?;
    let cost = Cost::new(graph, analysis, &sizes(options));
    clock.lap("analysis");

    let engine = runtime::choose(&options.engine)?;
    let (samples, held_out) = split(calibrate::read_samples(model, &with_held_out(options))?);
    clock.lap("inputs");

    let needs_data = options.method != Method::Magnitude || options.reconstruction() != Reconstruct::None;
    let statistics = if needs_data {
        statistics(engine.as_ref(), model, &chosen, &samples, progress, cancelled)?
    } else {
        Statistics::default()
    };
    clock.lap("calibration");

    let mut ranked = rank::rank(model, graph, analysis, &chosen, &statistics, options)?;
    clock.lap("ranking");

    if options.method == Method::Obs && options.reconstruction() != Reconstruct::None {
        let subject = damage::Subject {
            engine: engine.as_ref(),
            model,
            graph,
            analysis,
        };
        let probe = probe(&samples, options.probe);
        let curves = ranked.rankings.into_iter().map(Ranking::into_curve).collect();
        let measured = damage::measure(
            subject,
            &chosen,
            curves,
            &statistics,
            options,
            &probe,
            progress,
            cancelled,
        )?;
        ranked.rankings = measured
            .into_iter()
            .map(|c| c.map_or(Ranking::Whole, Ranking::Curve))
            .collect();
    }
    clock.lap("damage");

    let allocation = budget::allocate(
        &cost,
        analysis,
        &chosen,
        &ranked.rankings,
        options.flops,
        options.method.name(),
    )?;
    clock.lap("allocation");

    let sliced = rewrite::prune(model, graph, analysis, &allocation.mask)?;
    let few = Samples {
        samples: samples.samples.iter().take(EQUALITY_SAMPLES).cloned().collect(),
        ..samples.clone()
    };
    let equality = verify::sliced_equals_masked(
        engine.as_ref(),
        model,
        graph,
        analysis,
        &chosen,
        &allocation.mask,
        &sliced,
        &few,
        cancelled,
    )?;
    equality.require()?;
    clock.lap("equality");

    let mut pruned = sliced;
    let fitted = match options.reconstruction() {
        Reconstruct::None => Vec::new(),
        _ => rebuild::local(
            model,
            graph,
            analysis,
            &chosen,
            &allocation.mask,
            &statistics,
            &mut pruned,
            options,
        )?,
    };
    clock.lap("re-fitting");

    let held = measure(engine.as_ref(), model, &pruned, &held_out, cancelled)?;
    let kernels = verify::kernels(engine.as_ref(), model, &pruned)?;
    clock.lap("measuring");

    let written = if options.dry_run {
        None
    } else {
        Some(write(&loaded.file, &pruned, output, options)?)
    };
    clock.lap("writing");

    loaded.notes.extend(samples.notes.iter().cloned());
    loaded
        .notes
        .extend(rewrite::interface_changes(graph, analysis, &allocation.mask));
    loaded.notes.extend(ranked.notes);
    for (name, iterations) in &ranked.iterations {
        loaded
            .notes
            .push(format!("kcm ran {iterations} iterations on '{name}'"));
    }
    let calibration = needs_data.then(|| Calibration {
        origin: samples.origin.clone(),
        samples: samples.samples.len(),
        held_out: held_out.samples.len(),
        tokens: statistics.tokens,
    });
    Ok(Report {
        schema: report::SCHEMA,
        tool: format!("onnx-prune {}", env!("CARGO_PKG_VERSION")),
        input: input.display().to_string(),
        input_sha256: loaded.file.sha256()?,
        output: written.as_ref().map(|_| output.display().to_string()),
        options: described(options),
        engine: Some(engine.info().clone()),
        calibration,
        budget: allocation.budget,
        size: size(&cost, &allocation.mask, &loaded.file, written),
        groups: groups(analysis, &chosen, &allocation),
        frozen: report::inspect::frozen(analysis),
        unsupported: analysis.unsupported.clone(),
        fitted,
        equality: Some(equality),
        held_out: Some(held),
        kernels,
        seconds: clock.stages,
        notes: loaded.notes,
    })
}

/// Asks for some samples more than wanted, to be kept apart.
fn with_held_out(options: &Options) -> calibrate::DataOptions {
    let mut data = options.data.clone();
    data.samples = data.samples.saturating_add((data.samples / 8).clamp(1, HELD_OUT));
    data
}

/// Keeps every ninth sample apart (at most [`HELD_OUT`]); with one sample alone
/// it serves for both.
fn split(all: Samples) -> (Samples, Samples) {
    let count = all.samples.len();
    let apart = (count / 9).clamp(1, HELD_OUT);
    let step = (count / apart).max(1);
    let mut samples = Samples {
        samples: Vec::new(),
        ..all.clone()
    };
    let mut held = samples.clone();
    for (at, sample) in all.samples.into_iter().enumerate() {
        if (at + 1) % step == 0 && held.samples.len() < apart && count > 1 {
            held.samples.push(sample);
        } else {
            samples.samples.push(sample);
        }
    }
    if held.samples.is_empty() {
        held.samples = samples.samples.clone();
    }
    (samples, held)
}

/// Some of the samples, evenly spread: those that damage is measured on.
fn probe(samples: &Samples, count: usize) -> Samples {
    let step = samples.samples.len().div_ceil(count.max(1)).max(1);
    Samples {
        samples: samples.samples.iter().step_by(step).cloned().collect(),
        ..samples.clone()
    }
}

fn statistics(
    engine: &dyn Engine,
    model: &proto::ModelProto,
    chosen: &[Chosen],
    samples: &Samples,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Statistics> {
    let probes: Vec<_> = chosen
        .iter()
        .flat_map(|c| &c.sites)
        .filter_map(|s| s.probe.clone())
        .collect();
    let (statistics, _) = calibrate::collect(engine, model, &probes, samples, ROWS, progress, cancelled)?;
    Ok(statistics)
}

fn measure(
    engine: &dyn Engine,
    dense: &proto::ModelProto,
    pruned: &proto::ModelProto,
    samples: &Samples,
    cancelled: &AtomicBool,
) -> Result<verify::Comparison> {
    let options = SessionOptions {
        optimise: true,
        outputs: None,
    };
    let mut a = engine.session(pruned, &options)?;
    let mut b = engine.session(dense, &options)?;
    verify::compare(a.as_mut(), b.as_mut(), dense, samples, cancelled)
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
    let comparison = measure(engine.as_ref(), &second.proto, &first.proto, &samples, cancelled);
    comparison.map_err(|e| match e {
        Error::Unmet(text) => Error::input(text),
        other => other,
    })
}
