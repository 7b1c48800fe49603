//! Long runs: memory stays flat, and a calibration that was stopped goes on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use onnx_prune::calibrate::{self, KeptStatistics};
use onnx_prune::data::Samples;
use onnx_prune::engine::{self, Ctx, Engine, EngineChoice, EngineOptions};
use onnx_prune::io::npz;
use onnx_prune::network::Network;
use onnx_prune::numerics::Statistics;
use onnx_prune::progress::{Progress, Quiet};
use onnx_prune::sites::Selection;
use onnx_prune::tensor::Tensor;
use onnx_prune::{Error, Result, axes, onnx, sites};

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

const LENGTH: usize = 8;

/// An archive with samples of eight tokens.
fn tokens(path: &Path, samples: usize) {
    let ids: Vec<i64> = (0..samples * LENGTH).map(|i| 5 + (i * 7 % 53) as i64).collect();
    let ids = Tensor::i64(vec![samples, LENGTH], ids);
    let mask = Tensor::i64(vec![samples, LENGTH], vec![1; samples * LENGTH]);
    npz::write(path, [("input_ids", &ids), ("attention_mask", &mask)]).unwrap();
}

/// The program, with one thread of the built-in engine.
fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
    command
        .args(args)
        .args(["--engine", "tract", "--threads", "1", "--quiet"])
        .stdout(Stdio::null());
    command
}

/// A run over so many samples that prunes.
const PRUNE: [&str; 2] = ["--method", "wanda"];
/// One that only calibrates.
const CALIBRATE: [&str; 1] = ["calibrate"];

/// The most memory that a run over so many samples has, in KiB; `None` where it is
/// not known.
fn peak(args: &[&str], samples: usize) -> Option<u64> {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.npz");
    tokens(&data, samples);
    let mut command = program(args);
    command.arg(fixture("text-language/model.onnx"));
    let out = folder.path().join("out");
    match args {
        ["calibrate"] => command.arg("-o").arg(out),
        _ => command.arg(out),
    };
    let mut child = command
        .arg("--data")
        .arg(&data)
        .args(["--samples", &samples.to_string()])
        .spawn()
        .unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut most = None;
    let ended = loop {
        let found = std::fs::read_to_string(&status).ok().and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("VmHWM:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        most = most.max(found);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    most
}

/// How much each sample adds must be below `most` KiB.
fn flat(args: &[&str], few: usize, many: usize, most: f64) {
    let (Some(before), Some(after)) = (peak(args, few), peak(args, many)) else {
        println!("skipped: the peak of memory is not known here");
        return;
    };
    println!("{few} samples: {before} KiB, {many} samples: {after} KiB");
    let each = after.saturating_sub(before) as f64 / (many - few) as f64;
    assert!(each < most, "{each:.2} KiB more for each sample");
}

/// A run that prunes needs its samples again and again: two tensors of eight numbers
/// with their names each, some hundred bytes. Their activations have 40 KiB each.
const HELD: f64 = 4.0;
/// One that calibrates needs to know which they are, in two numbers each; held, they
/// would take more than a KiB.
const COUNTED: f64 = 0.5;

#[test]
fn memory_stays_flat() {
    flat(&PRUNE, 500, 4_000, HELD);
    flat(&CALIBRATE, 2_000, 8_000, COUNTED);
}

/// Takes a minute or more: `cargo nextest run long:: --run-ignored all`.
#[test]
#[ignore = "takes minutes"]
fn memory_stays_flat_over_fifty_thousand_samples() {
    flat(&PRUNE, 2_000, 50_000, HELD);
    flat(&CALIBRATE, 2_000, 50_000, COUNTED / 4.0);
}

/// The options of [`calibrate`], which reads this file.
fn calibrate_command(data: &Path, output: &Path, samples: usize) -> Command {
    let mut command = program(&CALIBRATE);
    command
        .arg(fixture("text-language/model.onnx"))
        .arg("--data")
        .arg(data)
        .args(["--samples", &samples.to_string(), "-o"])
        .arg(output);
    command
}

#[test]
fn a_calibration_that_was_killed_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.npz");
    let samples = 6_000;
    tokens(&data, samples);
    let at_once = folder.path().join("at-once.safetensors");
    assert!(
        calibrate_command(&data, &at_once, samples)
            .status()
            .unwrap()
            .success()
    );
    assert!(!onnx_prune::pipeline::partial(&at_once).exists());

    let output = folder.path().join("killed.safetensors");
    let partial = onnx_prune::pipeline::partial(&output);
    let mut last = 0;
    let mut kills = 0;
    // Killed as soon as there is something new, three times.
    while kills < 3 {
        let mut child = calibrate_command(&data, &output, samples).spawn().unwrap();
        let new = loop {
            let done = calibrate::file::load(&partial).map_or(0, |found| found.statistics.samples);
            if done > last {
                break done;
            }
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it could be killed for the {kills}th time"
            );
            std::thread::sleep(Duration::from_millis(1));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!output.exists(), "an unfinished calibration has its output");
        assert!(new < samples);
        (last, kills) = (new, kills + 1);
    }
    // Other samples are not mixed with these.
    let other = calibrate_command(&data, &output, samples - 1).output().unwrap();
    let said = String::from_utf8_lossy(&other.stderr).to_string();
    assert_eq!(other.status.code(), Some(2), "{said}");
    assert!(said.contains("of other samples or of other options"), "{said}");

    let mut command = calibrate_command(&data, &output, samples);
    let told = command.arg("--json").stdout(Stdio::piped()).output().unwrap();
    assert!(told.status.success());
    let told = String::from_utf8_lossy(&told.stdout).to_string();
    assert!(told.contains("it resumed an earlier run"), "{told}");
    assert!(!partial.exists(), "what is done is not kept twice");
    // Bit for bit: stopping changes nothing.
    assert!(std::fs::read(&at_once).unwrap() == std::fs::read(&output).unwrap());
}

/// Stops a run after so many samples.
struct StopAfter<'a> {
    seen: AtomicUsize,
    most: usize,
    cancelled: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn start(&self, _what: &str, _total: u64) {}

    fn step(&self, n: u64) {
        let seen = self.seen.fetch_add(n as usize, Ordering::Relaxed) + n as usize;
        self.cancelled.store(seen >= self.most, Ordering::Relaxed);
    }

    fn finish(&self) {}
}

struct Fixture {
    engine: Box<dyn Engine>,
    model: onnx::proto::ModelProto,
    probes: Vec<calibrate::SiteProbe>,
    samples: Samples,
}

impl Fixture {
    fn new() -> Self {
        let options = EngineOptions {
            engine: EngineChoice::Tract,
            threads: Some(1),
            ..EngineOptions::default()
        };
        let model = onnx::load(&fixture("text-language/model.onnx")).unwrap().proto;
        let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
        let chosen = sites::choose(&network, &Selection::default()).unwrap();
        let probes = chosen
            .iter()
            .flat_map(|c| &c.sites)
            .filter_map(|s| s.probe.clone());
        let data = onnx_prune::data::DataOptions {
            samples: Some(50),
            seq: Some(8),
            ..onnx_prune::data::DataOptions::default()
        };
        Fixture {
            engine: engine::choose(&options).unwrap(),
            probes: probes.collect(),
            samples: onnx_prune::data::read_samples(&model, &data).unwrap(),
            model,
        }
    }

    fn run(
        &self,
        kept: KeptStatistics,
        progress: &dyn Progress,
        cancelled: &AtomicBool,
    ) -> Result<Statistics> {
        calibrate::collect_kept(
            kept,
            Ctx {
                engine: self.engine.as_ref(),
                progress,
                cancelled,
            },
            &self.model,
            calibrate::Watched {
                probes: &self.probes,
                weights: &Default::default(),
            },
            &onnx_prune::data::DataOptions {
                given: Some(Arc::new(self.samples.clone())),
                ..onnx_prune::data::DataOptions::default()
            },
            4,
        )
        .map(|found| found.statistics)
    }
}

#[test]
fn a_calibration_that_was_stopped_goes_on() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let (at_once, in_parts) = (folder.path().join("a"), folder.path().join("b"));
    let never = AtomicBool::new(false);
    let kept = |path| KeptStatistics {
        path,
        key: "the model and the samples",
        every: 12,
    };
    let whole = fixture.run(kept(&at_once), &Quiet, &never).unwrap();
    assert_eq!(whole.samples, 50);
    // Stopped again and again; each time something more is there.
    let mut stops = 0;
    let parts = loop {
        let cancelled = AtomicBool::new(false);
        let stop = StopAfter {
            seen: AtomicUsize::new(0),
            most: 17,
            cancelled: &cancelled,
        };
        match fixture.run(kept(&in_parts), &stop, &cancelled) {
            Ok(statistics) => break statistics,
            Err(Error::Interrupted) => stops += 1,
            Err(error) => panic!("{}", error.chain()),
        }
        assert!(stops < 10, "it does not go on");
    };
    assert!(stops >= 3, "it was stopped {stops} times");
    // Bit for bit: the same parts in the same order.
    assert!(parts == whole);
    assert!(std::fs::read(&at_once).unwrap() == std::fs::read(&in_parts).unwrap());
    // All is there: nothing is run again.
    let again = fixture
        .run(kept(&at_once), &Quiet, &AtomicBool::new(true))
        .unwrap();
    assert!(again == whole);
}

#[test]
fn statistics_of_something_else_are_not_gone_on_from() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics");
    let never = AtomicBool::new(false);
    let kept = |key, every| KeptStatistics {
        path: &path,
        key,
        every,
    };
    fixture.run(kept("one", 25), &Quiet, &never).unwrap();
    let stored = std::fs::read(&path).unwrap();
    let error = fixture
        .run(kept("other", 25), &Quiet, &never)
        .unwrap_err()
        .chain();
    assert!(error.contains("of another model"), "{error}");
    let fewer = Samples {
        samples: fixture.samples.samples[..30].to_vec(),
        ..fixture.samples.clone()
    };
    let fewer = Fixture {
        samples: fewer,
        ..Fixture::new()
    };
    let error = fewer.run(kept("one", 25), &Quiet, &never).unwrap_err().chain();
    assert!(error.contains("of 50 samples"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), stored);
}
