//! Quantised weights go through a run and come out quantised.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use onnx_prune::budget::Demand;
use onnx_prune::engine::{Engine, EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::refit::{Reconstruct, RefitOptions};
use onnx_prune::rewrite::dequantise;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{onnx, pipeline};

use crate::common::{cases, engine, feeds, name};

fn quantised_cases() -> Vec<PathBuf> {
    let is = |path: &PathBuf| name(path).contains("qdq") || name(path).contains("dynquant");
    let found: Vec<PathBuf> = cases().into_iter().filter(is).collect();
    assert!(found.len() >= 2 || std::env::var("CASE").is_ok());
    found
}

fn run(engine: &dyn Engine, model: &ModelProto, feeds: &Feeds) -> Vec<Tensor> {
    let options = SessionOptions {
        optimise: false,
        outputs: None,
    };
    engine.session(model, &options).unwrap().run(feeds).unwrap()
}

fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.shape, b.shape);
        let (a, b) = (a.to_f32(), b.to_f32());
        let scale = b.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        for (x, y) in a.iter().zip(&b) {
            worst = worst.max(f64::from((x - y).abs() / scale));
        }
    }
    worst
}

/// Bytes of the constants of a type.
fn bytes(model: &ModelProto, float: bool) -> usize {
    let graph = model.graph.as_ref().unwrap();
    let of = |t: &onnx::proto::TensorProto| {
        let tensor = onnx::tensor(t).unwrap();
        (tensor.elem().is_float() == float).then(|| tensor.len() * tensor.elem().size())
    };
    graph.initializer.iter().filter_map(of).sum()
}

#[test]
fn opened_and_closed_is_the_same_model() {
    let Some(engine) = engine() else { return };
    for path in quantised_cases() {
        let file = onnx::load(&path.join("model.onnx")).unwrap();
        let model = onnx::inline_functions(&file.proto).unwrap();
        let (opened, closed) = dequantise::open(&model)
            .unwrap()
            .expect("it has quantised weights");
        assert!(bytes(&opened, true) > 2 * bytes(&model, true), "{}", name(&path));
        let back = closed.close(&opened).unwrap();
        onnx::validate(&back).unwrap();
        for set in 0..2 {
            let inputs = feeds(&path, set);
            let dense = run(engine.as_ref(), &model, &inputs);
            let same = difference(&run(engine.as_ref(), &back, &inputs), &dense);
            assert!(same == 0.0, "{}: {same}", name(&path));
            // The weights are the same numbers; activations that are quantised
            // by their range are floats while the model is open.
            let open = difference(&run(engine.as_ref(), &opened, &inputs), &dense);
            let close = if name(&path).contains("qdq") { 1e-6 } else { 0.1 };
            assert!(open <= close, "{}: {open}", name(&path));
        }
    }
}

fn prune(path: &Path, reconstruct: Reconstruct) -> (onnx_prune::report::Report, ModelProto) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let mut options = Options {
        demands: vec![Demand::Flops(0.6)],
        refit: RefitOptions {
            reconstruct,
            ..Options::default().refit
        },
        lossless: false,
        timing: false,
        engine: EngineOptions {
            engine: EngineChoice::Ort,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    };
    options.data.samples = Some(32);
    let report = pipeline::prune(
        &path.join("model.onnx"),
        &out,
        &[],
        &options,
        &Quiet,
        &AtomicBool::new(false),
    )
    .unwrap_or_else(|e| panic!("{}: {}", name(path), e.chain()));
    (report, onnx::load(&out).unwrap().proto)
}

#[test]
fn a_pruned_model_is_quantised_and_fitted() {
    if engine().is_none() {
        return;
    }
    for path in quantised_cases() {
        let file = onnx::load(&path.join("model.onnx")).unwrap();
        let (fitted, model) = prune(&path, Reconstruct::Auto);
        let (sliced, plain) = prune(&path, Reconstruct::None);
        for (report, pruned) in [(&fitted, &model), (&sliced, &plain)] {
            assert!(report.budget.got <= 0.6 && report.equality.as_ref().unwrap().passed);
            assert!(
                bytes(pruned, false) < bytes(&file.proto, false),
                "{}",
                name(&path)
            );
            // No weight stays a float: biases do, where they were or scales are new.
            assert!(
                bytes(pruned, true) < bytes(&file.proto, true) + 8192,
                "{}: {} bytes of floats, {} before",
                name(&path),
                bytes(pruned, true),
                bytes(&file.proto, true)
            );
        }
        let error = |report: &onnx_prune::report::Report| -> f64 {
            let outputs = &report.held_out.as_ref().unwrap().outputs;
            outputs.iter().map(|o| o.relative_squared).sum()
        };
        let (fitted, sliced) = (error(&fitted), error(&sliced));
        assert!(fitted < 0.5 * sliced, "{}: {fitted} {sliced}", name(&path));
    }
}
