//! Layers are re-fitted in order in every case of the zoos where anything is pruned.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use onnx_prune::data::DataOptions;
use onnx_prune::engine::{EngineChoice, EngineOptions};
use onnx_prune::pipeline::{self, Options};
use onnx_prune::progress::Quiet;

use crate::common::{cases, engine, name};

#[test]
fn no_case_loses_its_refit() {
    if engine().is_none() {
        return;
    }
    let options = Options {
        timing: false,
        dry_run: true,
        data: DataOptions {
            samples: Some(32),
            seq: Some(16),
            ..DataOptions::default()
        },
        engine: EngineOptions {
            engine: EngineChoice::Ort,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    };
    let (mut pruned, mut lost) = (0, Vec::new());
    for case in cases() {
        let (model, output) = (case.join("model.onnx"), Path::new("none.onnx"));
        let made = pipeline::prune(&model, output, &[], &options, &Quiet, &AtomicBool::new(false));
        // What cannot be pruned, or not run, is tested elsewhere.
        let Ok(report) = made else { continue };
        if report.fitted.is_empty() && report.groups.iter().all(|g| g.kept.len() == g.units) {
            continue;
        }
        pruned += 1;
        let warnings = report.warnings.iter().filter(|w| w.name.starts_with("refit"));
        lost.extend(warnings.map(|w| format!("{}: {w}", name(&case))));
    }
    println!("{} of {pruned} cases are re-fitted in order", pruned - lost.len());
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(pruned > 5 || std::env::var_os("CASE").is_some(), "{pruned}");
}
