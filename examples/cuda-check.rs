//! Does pruning on CUDA do what pruning on the CPU does, and how fast?
//!
//! ```text
//! cargo run --release --example cuda-check --features cuda
//! cargo run --release --example cuda-check --features cuda -- MODEL.onnx \
//!     --data texts.tsv --tokenizer tokenizer.json --samples 256
//! ```
//!
//! Needs an NVIDIA GPU and onnxruntime-gpu (`pip install onnxruntime-gpu[cuda,cudnn]`
//! into the active environment, or `--ort-lib`). Prints the device, the provider that
//! really runs the nodes, the time of each stage on both, and whether the sums, the
//! masks and the pruned models agree. Exit codes: 0 all agree, 1 they do not, 4 CUDA
//! does not work here, and why.
//!
//! `--device cpu` goes the same way without a GPU: the sums are made by nodes of the
//! model, and the CPU runs them. It says nothing about CUDA.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use onnx_prune::budget::{Goal, Multiples};
use onnx_prune::data::{batches, input_specs};
use onnx_prune::engine::{
    self, Device, Engine, EngineChoice, EngineInfo, EngineOptions, EngineSeconds, Session, SessionOptions,
};
use onnx_prune::mask::Mask;
use onnx_prune::numerics::SiteStatistics;
use onnx_prune::onnx::{self, proto};
use onnx_prune::pipeline::{Planner, Ranked, Source, calibrate, rank, search};
use onnx_prune::tensor::Feeds;
use onnx_prune::{Error, Pruner, Result};

/// Relative differences of sums that are called the same: both devices compute in
/// float32, in other orders.
const SAME: f64 = 1e-3;
/// The fraction of the kept units that both must keep: of units that are worth the
/// same within rounding, one device may keep one and the other another.
const COMMON: f64 = 0.99;

/// Compares pruning on CUDA with pruning on the CPU.
#[derive(Debug, Parser)]
pub struct Args {
    /// The model; a small vision transformer of the repository without it.
    model: Option<PathBuf>,
    /// Calibration inputs, as `onnx-prune --data` takes them.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// tokenizer.json, for texts.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// How many inputs to take.
    #[arg(long, default_value_t = 256)]
    samples: usize,
    /// Fraction of the blocks' work to keep.
    #[arg(long, default_value_t = 0.6)]
    flops: f64,
    /// Neurons are kept in multiples of this, on both devices.
    #[arg(long, default_value_t = 8)]
    align: usize,
    /// `cuda`, or `cpu` to go the same way without a GPU.
    #[arg(long, default_value_t = Device::Cuda)]
    device: Device,
    /// Threads of the CPU; one per core without it.
    #[arg(long)]
    threads: Option<usize>,
    /// The ONNX Runtime library, or a folder that holds it.
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
}

#[allow(dead_code)] // A test takes this file as a module.
fn main() -> ExitCode {
    let mut out = String::new();
    let result = check(&Args::parse(), &mut out);
    print!("{out}");
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes the comparison to `out`.
pub fn check(args: &Args, out: &mut String) -> Result<()> {
    let device = engine(args, args.device).map_err(|error| match args.device {
        Device::Cuda => error.context("CUDA does not work here"),
        _ => error,
    })?;
    let host = engine(args, Device::Cpu)?;
    describe(device.info(), args, out);

    let pruner = pruner(args);
    let on_host = stages(&pruner, host, args.flops)?;
    let on_device = stages(&pruner, Box::new(Summing(device)), args.flops)?;
    place(on_device.ranked.source(), out)?;
    times(&on_host, &on_device, args, out);
    compare(&on_host, &on_device, out)
}

/// ONNX Runtime on a device.
fn engine(args: &Args, device: Device) -> Result<Box<dyn Engine>> {
    engine::choose(&EngineOptions {
        custom_ops: Vec::new(),
        engine: EngineChoice::Ort,
        device,
        threads: args.threads,
        ort_lib: args.ort_lib.clone(),
    })
}

fn pruner(args: &Args) -> Pruner {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits-vit");
    let (model, data) = match &args.model {
        Some(model) => (model.clone(), args.data.clone()),
        None => (
            fixtures.join("model.onnx"),
            vec![fixtures.join("calibration.npz")],
        ),
    };
    let pruner = Pruner::new(model)
        .data(data)
        .sample_count(args.samples)
        .flops(args.flops)
        .no_timing()
        .with(|o| {
            o.align = Some(Multiples {
                neurons: Some(args.align),
                heads: None,
            });
            // The numbers of channels that may go depend on the device.
            o.narrow = false;
            // What each run opens before its engine is replaced.
            o.engine = EngineOptions {
                custom_ops: Vec::new(),
                engine: EngineChoice::Ort,
                device: Device::Cpu,
                threads: args.threads,
                ort_lib: args.ort_lib.clone(),
            };
        });
    match &args.tokenizer {
        Some(path) => pruner.tokenizer(path),
        None => pruner,
    }
}

/// An engine that is told to make the sums, as it does by itself on CUDA.
struct Summing(Box<dyn Engine>);

impl Engine for Summing {
    fn info(&self) -> &EngineInfo {
        self.0.info()
    }

    fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        self.0.session(model, options)
    }

    fn reduces(&self) -> bool {
        true
    }

    fn optimised_operators(&self, model: &proto::ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        self.0.optimised_operators(model)
    }

    fn placement(&self, model: &proto::ModelProto, feeds: &Feeds) -> Result<Option<BTreeMap<String, usize>>> {
        self.0.placement(model, feeds)
    }
}

/// What a stage takes: its name, its seconds, those within the engine, and those of
/// preparing its sessions.
type Seconds = (&'static str, f64, f64, f64);

/// A run that went through all stages.
struct Done<'a> {
    ranked: Ranked<'a>,
    mask: Mask,
    pruned: proto::ModelProto,
    stages: Vec<Seconds>,
}

fn stages<'a>(pruner: &'a Pruner, engine: Box<dyn Engine>, flops: f64) -> Result<Done<'a>> {
    let source = pruner.source()?.with_engine(engine);
    let mut clock = Clock::new(source.engine.seconds());
    let calibrated = calibrate(source)?;
    clock.lap("calibration", calibrated.source.engine.seconds());
    let ranked = rank(calibrated)?;
    clock.lap("ranking, damage", ranked.source().engine.seconds());
    let found = search(
        &Planner::of(&ranked)?,
        &Goal::flops(flops),
        &[Path::new("none.onnx")],
    )?;
    clock.lap("re-fitting, slicing", ranked.source().engine.seconds());
    let finished = found.only(&ranked)?;
    let (mask, pruned) = (finished.plan.allocation.mask.clone(), finished.pruned.model);
    Ok(Done {
        ranked,
        mask,
        pruned,
        stages: clock.stages,
    })
}

/// The seconds from stage to stage.
struct Clock {
    before: EngineSeconds,
    started: Instant,
    stages: Vec<Seconds>,
}

impl Clock {
    fn new(before: EngineSeconds) -> Self {
        Clock {
            before,
            started: Instant::now(),
            stages: Vec::new(),
        }
    }

    fn lap(&mut self, name: &'static str, engine: EngineSeconds) {
        self.stages.push((
            name,
            self.started.elapsed().as_secs_f64(),
            engine.running - self.before.running,
            engine.start_up - self.before.start_up,
        ));
        (self.before, self.started) = (engine, Instant::now());
    }
}

/// What runs.
fn describe(info: &EngineInfo, args: &Args, out: &mut String) {
    let name = if info.device == "cuda" {
        graphics_card().unwrap_or_else(|| "a GPU that nvidia-smi does not name".into())
    } else {
        "the CPU, in place of a GPU: this says nothing about CUDA".into()
    };
    let library = info.library.as_deref().map(Path::display);
    let library = library.map(|l| l.to_string()).unwrap_or_default();
    let model = args.model.as_deref().map(Path::display);
    let model = model.map_or_else(|| "fixtures/digits-vit".into(), |m| m.to_string());
    let _ = writeln!(out, "device     {} ({name})", info.device);
    let _ = writeln!(out, "engine     {} {} {library}", info.name, info.version);
    let _ = writeln!(out, "model      {model}");
}

/// Name, driver and memory of the first card.
fn graphics_card() -> Option<String> {
    let fields = "--query-gpu=name,driver_version,memory.total";
    let told = Command::new("nvidia-smi")
        .args([fields, "--format=csv,noheader"])
        .output();
    let text = String::from_utf8(told.ok()?.stdout).ok()?;
    text.lines()
        .next()
        .map(str::to_owned)
        .filter(|line| !line.is_empty())
}

/// Which provider runs how many nodes of the dense model.
fn place(source: &Source, out: &mut String) -> Result<()> {
    let model = source.dense();
    let batch = batches(&source.samples, &input_specs(model)?, 16)?.next();
    let batch = batch.ok_or_else(|| Error::input("there are no samples"))??;
    let placed = source.engine.placement(model, &batch.feeds)?.unwrap_or_default();
    let placed: Vec<String> = placed.iter().map(|(p, n)| format!("{n} on {p}")).collect();
    let _ = writeln!(out, "nodes      {}", placed.join(", "));
    Ok(())
}

fn times(host: &Done, device: &Done, args: &Args, out: &mut String) {
    let shown = |d: Device| d.to_string();
    let (samples, device_name) = (host.ranked.source().samples.samples.len(), shown(args.device));
    let _ = writeln!(
        out,
        "\nseconds, {samples} samples (in the engine; preparing its sessions)"
    );
    let _ = writeln!(out, "{:20} {:>26} {device_name:>26}  ratio", "", "cpu");
    for (a, b) in host.stages.iter().zip(&device.stages) {
        let cell = |s: &(&str, f64, f64, f64)| format!("{:.3} ({:.3}; {:.3})", s.1, s.2, s.3);
        let _ = writeln!(
            out,
            "{:20} {:>26} {:>26} {:6.2}",
            a.0,
            cell(a),
            cell(b),
            a.1 / b.1.max(f64::MIN_POSITIVE)
        );
    }
}

/// The greatest difference as a fraction of the greatest value.
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let scale = b.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs() / scale);
    differences.fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

fn of_sums(a: &SiteStatistics, b: &SiteStatistics) -> f64 {
    let covariance = |s: &SiteStatistics| {
        let matrix = s.covariance();
        (0..matrix.ncols())
            .flat_map(|j| matrix.col(j).iter().copied().collect::<Vec<_>>())
            .collect::<Vec<f64>>()
    };
    let means = relative(&a.mean(), &b.mean());
    means.max(relative(&covariance(a), &covariance(b)))
}

/// The greatest difference of the constants of two models.
fn of_weights(a: &proto::ModelProto, b: &proto::ModelProto) -> Result<f64> {
    let constants = |m: &proto::ModelProto| -> Result<BTreeMap<String, Vec<f64>>> {
        let own = m.graph.iter().flat_map(|g| &g.initializer);
        let read = own.map(|t| {
            let values = onnx::tensor(t)?.to_f32();
            Ok((t.name().to_owned(), values.into_iter().map(f64::from).collect()))
        });
        read.collect()
    };
    let (a, b) = (constants(a)?, constants(b)?);
    if !a.keys().eq(b.keys()) {
        return Ok(f64::INFINITY);
    }
    let differences = a.values().zip(b.values()).map(|(a, b)| relative(a, b));
    Ok(differences.fold(0.0, f64::max))
}

/// Whether both came to the same.
fn compare(host: &Done, device: &Done, out: &mut String) -> Result<()> {
    let (a, b) = (&device.ranked.calibrated, &host.ranked.calibrated);
    let positions = a.positions.iter().map(|(site, own)| match b.positions.get(site) {
        Some(other) => f64::from(
            (own.first - other.first)
                .abs()
                .max((own.inner - other.inner).abs())
                .max((own.last - other.last).abs()),
        ),
        None => f64::INFINITY,
    });
    let positions = positions.fold(0.0, f64::max);
    let sites = || a.statistics.sites.iter();
    let known = sites().filter_map(|(name, own)| Some(of_sums(own, b.statistics.sites.get(name)?)));
    let sums = known.fold(0.0, f64::max);
    let same_sites = a.statistics.sites.keys().eq(b.statistics.sites.keys());
    let units = |mask: &Mask| mask.kept.values().flatten().filter(|k| **k).count();
    let flags = |mask: &Mask| -> Vec<bool> { mask.kept.values().flatten().copied().collect() };
    let (x, y) = (flags(&host.mask), flags(&device.mask));
    let both = x.iter().zip(&y).filter(|(a, b)| **a && **b).count();
    let _ = writeln!(out, "\nweights of positions  differ by {positions:.1e} at most");
    let _ = writeln!(
        out,
        "sums of {} sites  differ by {sums:.1e} at most",
        sites().count()
    );
    let equal = host.mask == device.mask;
    let _ = writeln!(
        out,
        "masks  {}: {} units kept on the CPU, {} on the device, {both} on both",
        if equal { "equal" } else { "not equal" },
        units(&host.mask),
        units(&device.mask)
    );
    if equal {
        let weights = of_weights(&device.pruned, &host.pruned)?;
        let _ = writeln!(out, "pruned models  weights differ by {weights:.1e} at most");
    }
    if !same_sites || sums > SAME {
        return Err(Error::Unmet(format!(
            "the sums differ by {sums:.1e}, more than {SAME:.0e}"
        )));
    }
    let common = both as f64 / units(&host.mask).max(units(&device.mask)).max(1) as f64;
    if host.mask.kept.keys().ne(device.mask.kept.keys()) || common < COMMON {
        return Err(Error::Unmet(format!(
            "the masks have {common:.3} of their units in common, less than {COMMON}"
        )));
    }
    Ok(())
}
