//! The rules against the operators' own tests: what a rule says about the shape
//! of an output is what the ONNX package says, and no model makes it panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_prune::graph::{self, DeclaredShape};
use onnx_prune::{axes, onnx};

/// The node tests of the ONNX package as files, where Python has it.
fn node_models(folder: &Path) -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("ONNX_PRUNE_TEST_PYTHON")
        .map_or_else(|| root.join("target/py/bin/python"), PathBuf::from);
    let made = Command::new(&python)
        .arg(root.join("tests/python/node_models.py"))
        .arg(folder)
        .output();
    if !made.is_ok_and(|o| o.status.success()) {
        println!("skipped: no onnx package in {}", python.display());
        return Vec::new();
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 1000, "only {} node tests", files.len());
    files
}

#[test]
fn shapes_are_those_of_the_onnx_package() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let mut without: BTreeMap<String, usize> = BTreeMap::new();
    let mut checked = 0;
    for path in node_models(folder.path()) {
        let name = path.file_stem().unwrap().to_string_lossy().to_string();
        let Ok(file) = onnx::load(&path) else { continue };
        let Ok(model) = onnx::inline_functions(&file.proto) else {
            continue;
        };
        let Ok(graph) = graph::build(&model) else { continue };
        for change_interface in [false, true] {
            let options = axes::AnalysisOptions {
                change_interface,
                ..axes::AnalysisOptions::default()
            };
            let analysis = axes::analyse(&graph, options);
            for op in analysis.unsupported.keys() {
                *without.entry(op.clone()).or_default() += 1;
            }
            for id in &graph.outputs {
                let value = graph.value(*id);
                let (Some(dims), Some(declared)) = (&analysis.facts(*id).dims, &value.declared) else {
                    continue;
                };
                checked += 1;
                if dims.len() != declared.len() {
                    wrong.push(format!(
                        "{name}: '{}' has rank {}, not {}",
                        value.name,
                        dims.len(),
                        declared.len()
                    ));
                    continue;
                }
                for (axis, (dim, declared)) in dims.iter().zip(declared).enumerate() {
                    if let (Some(size), DeclaredShape::Size(n)) = (analysis.space.size(dim), declared)
                        && size != *n
                    {
                        wrong.push(format!(
                            "{name}: axis {axis} of '{}' has {size} entries, not {n}",
                            value.name
                        ));
                    }
                }
            }
        }
    }
    println!("{checked} outputs; without a rule: {without:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
