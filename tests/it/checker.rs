//! Pruned models pass the ONNX checker with full shape inference, and ONNX
//! Runtime fuses them like the dense ones.

use std::path::PathBuf;
use std::process::Command;

use onnx_prune::axes::{self, GroupId};
use onnx_prune::engine::{self, EngineChoice, EngineOptions};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::{onnx, rewrite, verify};

fn zoos() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    ["fixtures/zoo", "../shared/zoo"]
        .iter()
        .map(|f| root.join(f))
        .filter(|p| p.is_dir())
        .collect()
}

/// Each group loses a third of its units; every second mask empties a group.
fn mask(analysis: &axes::Analysis, empty: Option<GroupId>) -> Mask {
    let mut mask = Mask::default();
    for (at, group) in analysis.indexed().filter(|(_, g)| g.kind.is_default()) {
        mask.kept.insert(
            at,
            (0..group.units)
                .map(|u| empty != Some(at) && u % 3 != 1)
                .collect(),
        );
    }
    mask
}

#[test]
fn pruned_models_are_valid_and_keep_their_kernels() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var("ONNX_PRUNE_TEST_PYTHON")
        .map_or_else(|_| root.join("target/py/bin/python"), PathBuf::from);
    if !python.exists() {
        eprintln!("skipped: no {} (run .ci/test once)", python.display());
        return;
    }
    let options = EngineOptions {
        engine: EngineChoice::Ort,
        ..EngineOptions::default()
    };
    let engine = engine::choose(&options).ok();
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for zoo in zoos() {
        for case in std::fs::read_dir(zoo).unwrap().map(|e| e.unwrap().path()) {
            let name = case.file_name().unwrap().to_string_lossy().to_string();
            let Ok(text) = std::fs::read_to_string(case.join("meta.json")) else {
                continue;
            };
            let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
            if meta["full_check"].as_bool() != Some(true) {
                continue;
            }
            let model = onnx::inline_functions(&onnx::load(&case.join("model.onnx")).unwrap().proto).unwrap();
            let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
            let analysis = &network.axes;
            if analysis.groups.is_empty() {
                continue;
            }
            let mut ids = analysis.indexed().map(|(id, _)| id);
            let empty = ids.find(|id| rewrite::can_empty(&network, *id));
            for (round, empty) in [None, empty].into_iter().enumerate() {
                let pruned = rewrite::prune(&network, &mask(analysis, empty)).unwrap();
                let file = folder.path().join(format!("{name}-{round}.onnx"));
                onnx::save(&pruned, &file, &onnx::SaveOptions::default()).unwrap();
                files.push(file);
                if round == 0
                    && let Some(engine) = &engine
                {
                    let kernels = verify::kernels(engine.as_ref(), &model, &pruned)
                        .unwrap()
                        .unwrap();
                    // A table that layers share is sliced at each of them with a Gather.
                    let shares = !analysis.links.is_empty();
                    let more: Vec<_> = kernels
                        .more
                        .iter()
                        .filter(|op| !(shares && *op == "Gather"))
                        .collect();
                    assert!(more.is_empty(), "{name}: {more:?}");
                }
            }
        }
    }
    let output = Command::new(python)
        .arg(root.join("tests/python/check.py"))
        .args(&files)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let bad: Vec<&str> = text.lines().filter(|l| !l.contains("\"ok\": true")).collect();
    assert!(
        output.status.success() && bad.is_empty(),
        "{}\n{}",
        bad.join("\n"),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{} models checked", files.len());
}
