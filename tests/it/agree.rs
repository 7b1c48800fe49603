//! Both engines compute the same, or the built-in one says that it cannot.

use std::path::{Path, PathBuf};

use onnx_prune::engine::{self, Engine, EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::onnx;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::tensor::{Feeds, Tensor};

use crate::common::{engine, feeds, name};

/// Largest difference of two engines in float32, relative to the largest value: each
/// adds in an order of its own.
const CLOSE_ENGINES_F32: f64 = 1e-5;

fn cases() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/zoo");
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|p| p.join("io.npz").is_file()).collect();
    found.sort();
    found
}

fn run(engine: &dyn Engine, model: &ModelProto, feeds: &Feeds) -> Result<Vec<Tensor>, String> {
    let options = SessionOptions::default();
    let mut session = engine.session(model, &options).map_err(|e| e.chain())?;
    session.run(feeds).map_err(|e| e.chain())
}

/// The largest difference of two sets of outputs, each relative to its largest value.
fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.shape, b.shape);
        let (a, b) = (a.to_f32(), b.to_f32());
        let finite = b.iter().filter(|v| v.is_finite());
        let scale = finite.fold(1e-30f32, |m, v| m.max(v.abs()));
        for (x, y) in a.iter().zip(&b).filter(|(x, y)| x != y) {
            let one = f64::from((x - y).abs() / scale);
            worst = if one.is_nan() {
                f64::INFINITY
            } else {
                worst.max(one)
            };
        }
    }
    worst
}

/// `None` where the built-in engine does not take the model.
fn check(engines: [&dyn Engine; 2], case: &Path) -> Option<f64> {
    let model = onnx::load(&case.join("model.onnx")).unwrap().proto;
    let mut worst = 0.0f64;
    for set in 0..2 {
        let inputs = feeds(case, set);
        let theirs = run(engines[0], &model, &inputs).unwrap();
        match run(engines[1], &model, &inputs) {
            Ok(own) => worst = worst.max(difference(&own, &theirs)),
            Err(reason) => {
                assert!(!reason.is_empty());
                println!("{}: not taken: {reason:.100}", name(case));
                return None;
            }
        }
    }
    println!("{}: {worst:.1e}", name(case));
    Some(worst)
}

#[test]
fn both_engines_agree() {
    let Some(theirs) = engine() else { return };
    let options = EngineOptions {
        engine: EngineChoice::Tract,
        threads: Some(1),
        ..EngineOptions::default()
    };
    let own = engine::choose(&options).unwrap();
    let (mut taken, mut apart) = (0, Vec::new());
    for case in cases() {
        if let Some(worst) = check([theirs.as_ref(), own.as_ref()], &case) {
            taken += 1;
            if worst > CLOSE_ENGINES_F32 {
                apart.push(format!("{}: {worst:.1e}", name(&case)));
            }
        }
    }
    assert!(apart.is_empty(), "{}", apart.join("\n"));
    assert!(taken >= 16, "the built-in engine takes {taken} cases only");
}
