//! A whole run against the dense model's forward passes over the same samples in the
//! same engine, start-up apart, and the sums of calibration against them.
//!
//! `cargo bench --bench run`; `MODEL`, `DATA`, `TOKENIZER` and `SAMPLES` say of what
//! (a small language model of the repository without them, on which all that does not
//! grow with the model weighs most), `THREADS` how many threads the engine takes.

mod common;

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::say;
use criterion::{Criterion, criterion_group, criterion_main};
use onnx_prune::Pruner;
use onnx_prune::budget::Goal;
use onnx_prune::pipeline::{Planner, calibrate, rank, search};

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from)
}

fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

fn pruner() -> Pruner {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/text-language");
    let given = path("MODEL");
    let small = |name: &str| given.is_none().then(|| own.join(name));
    let data = path("DATA").or_else(|| small("calibration.txt"));
    let tokenizer = path("TOKENIZER").or_else(|| small("tokenizer.json"));
    let mut pruner = Pruner::new(given.clone().unwrap_or_else(|| own.join("model.onnx")))
        .data(data)
        .sample_count(number("SAMPLES").unwrap_or(256))
        .flops(0.6)
        .no_timing();
    if let Some(tokenizer) = tokenizer {
        pruner = pruner.tokenizer(tokenizer);
    }
    if let Some(threads) = number("THREADS") {
        pruner = pruner.threads(threads);
    }
    pruner
}

/// One run: its seconds without preparing sessions, those of the dense passes over all
/// samples, those of the passes that sums were made in, those of the sums.
fn prune(pruner: &Pruner, output: &Path) -> [f64; 4] {
    let started = Instant::now();
    let source = pruner.source().expect("a model");
    let ranked = rank(calibrate(source).expect("sums")).expect("rankings");
    let planner = Planner::of(&ranked).expect("a planner");
    let found = search(&planner, &Goal::flops(0.6), &[output]).expect("a smaller model");
    let finished = found.only(&ranked).expect("one model");
    let report = finished.write(output).expect("a file");
    let seconds = started.elapsed().as_secs_f64() - report.engine_seconds.start_up;
    // The dense passes over all samples, those kept out of the sums among them.
    [
        seconds,
        report.calibration.map_or(0.0, |c| c.dense_seconds),
        ranked.calibrated.timings.engine_seconds,
        ranked.calibrated.timings.statistics_seconds,
    ]
    .map(|s| s.max(f64::MIN_POSITIVE))
}

fn run(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("small.onnx");
    let pruner = pruner();
    let mut found: Vec<[f64; 4]> = (0..3).map(|_| prune(&pruner, &output)).collect();
    found.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [whole, dense, calibrated, sums] = found[0];
    let what = format!("whole run {whole:.2} s, dense passes over all samples {dense:.2} s");
    say(&what, whole / dense, "at most 8.00");
    let what = format!("sums {sums:.3} s, passes over the same samples {calibrated:.3} s");
    say(&what, sums / calibrated, "at most 1.00");
    let mut group = c.benchmark_group("run");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("whole", |b| b.iter(|| prune(&pruner, &output)));
    group.finish();
}

criterion_group!(benches, run);
criterion_main!(benches);
