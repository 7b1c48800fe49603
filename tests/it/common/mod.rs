//! What tests over the cases of the zoos share; no binary uses all of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::AtomicBool;

use onnx_prune::data::{self, ExactBatch, ExactSizes, SeenSizes};
use onnx_prune::engine::{self, Ctx, Engine, EngineChoice, EngineOptions};
use onnx_prune::io::npz;
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::progress::Quiet;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{axes, onnx};

/// A file of the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// All that a program printed.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The folders with cases that are there.
pub fn zoos() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["fixtures/zoo", "../shared/zoo"] {
        let path = root.join(folder);
        if path.is_dir() {
            found.push(path);
        } else {
            eprintln!("skipped: no {folder}");
        }
    }
    found
}

/// The cases with stored inputs, in order; `CASE` names some of them.
pub fn cases() -> Vec<PathBuf> {
    let entries = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let only = std::env::var("CASE").ok();
    let mut found: Vec<PathBuf> = zoos()
        .into_iter()
        .flat_map(entries)
        .filter(|p| p.join("io.npz").is_file())
        .filter(|p| only.as_ref().is_none_or(|o| name(p).contains(o.as_str())))
        .collect();
    found.sort();
    found
}

/// The name of a case.
pub fn name(case: &Path) -> String {
    case.file_name().unwrap().to_string_lossy().to_string()
}

/// ONNX Runtime with one thread; a message where it is not there.
pub fn engine() -> Option<Box<dyn Engine>> {
    let options = EngineOptions {
        engine: EngineChoice::Ort,
        threads: Some(1),
        ..EngineOptions::default()
    };
    match engine::choose(&options) {
        Ok(engine) => Some(engine),
        Err(error) => {
            eprintln!("skipped: {}", error.chain());
            None
        }
    }
}

/// A stored set of inputs of a case.
pub fn feeds(case: &Path, set: usize) -> Feeds {
    let prefix = format!("in{set}.");
    npz::read(&case.join("io.npz"))
        .unwrap()
        .into_iter()
        .filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_string(), v)))
        .collect()
}

/// The entries of one axis with these indices.
pub fn take(tensor: &Tensor, axis: usize, indices: &[usize]) -> Tensor {
    let values = tensor.to_f32();
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let size = tensor.shape[axis];
    let outer: usize = tensor.shape[..axis].iter().product();
    let mut out = Vec::new();
    for o in 0..outer {
        for i in indices {
            let at = (o * size + i) * inner;
            out.extend_from_slice(&values[at..at + inner]);
        }
    }
    let mut shape = tensor.shape.clone();
    shape[axis] = indices.len();
    Tensor::f32(shape, out)
}

/// An engine for stages, without a word of progress.
pub fn quiet(engine: &dyn Engine) -> Ctx<'_> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Ctx {
        engine,
        progress: &Quiet,
        cancelled: &NEVER,
    }
}

/// A batch of so many rows with so many tokens.
pub fn exact(model: &ModelProto, batch: usize, seq: usize) -> ExactBatch {
    let wanted = ExactSizes {
        batch,
        seq: Some(seq),
        shapes: &[],
        seen: &SeenSizes::default(),
    };
    data::exact_batch(model, &wanted).unwrap()
}

/// A model with functions inlined, as a network.
pub fn network(model: &ModelProto) -> Network {
    let model = onnx::inline_functions(model).unwrap();
    Network::of(model, axes::AnalysisOptions::default()).unwrap()
}

/// Checks a JSON report against `docs/report.schema.json`, where the Python of the tests is
/// there.
pub fn conforms(report: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("ONNX_PRUNE_TEST_PYTHON")
        .map_or_else(|| root.join("target/py/bin/python"), PathBuf::from);
    if !python.exists() {
        eprintln!("skipped: no {} (run .ci/test once)", python.display());
        return;
    }
    let output = std::process::Command::new(python)
        .arg(root.join("tests/python/check_reports.py"))
        .arg(root.join("docs/report.schema.json"))
        .arg(report)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}
