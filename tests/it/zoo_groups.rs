//! The groups that the axis algebra finds equal what each export has.

use std::path::PathBuf;

use onnx_prune::axes::{self, Kind};
use onnx_prune::{graph, onnx};

/// The folders with cases; `ZOO` names another one.
fn zoos() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("ZOO") {
        return vec![folder.into()];
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let shared = root.join("../shared/zoo");
    if !shared.is_dir() {
        eprintln!("skipped: no ../shared/zoo beside the project; only fixtures/zoo is checked");
    }
    [root.join("fixtures/zoo"), shared]
        .into_iter()
        .filter(|p| p.is_dir())
        .collect()
}

#[test]
fn groups_equal_the_architecture() {
    let mut failures = Vec::new();
    let mut cases = Vec::new();
    for zoo in zoos() {
        cases.extend(std::fs::read_dir(zoo).unwrap().map(|e| e.unwrap().path()));
    }
    cases.sort();
    let only = std::env::var("CASE").ok();
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().to_string();
        if !case.join("meta.json").exists() || only.as_ref().is_some_and(|o| !name.contains(o)) {
            continue;
        }
        let meta: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(case.join("meta.json")).unwrap()).unwrap();
        let file = onnx::load(&case.join("model.onnx")).unwrap();
        let model = onnx::inline_functions(&file.proto).unwrap();
        let graph = graph::build(&model).unwrap();
        let cache = meta["prunable"]["cache_in_interface"].as_bool() == Some(true);
        let analysis = axes::analyse(
            &graph,
            axes::AnalysisOptions {
                change_interface: cache,
                ..Default::default()
            },
        );
        let of = |kind: Kind| -> Vec<usize> {
            analysis
                .groups
                .iter()
                .filter(|g| g.kind == kind)
                .map(|g| g.units)
                .collect()
        };
        let expected = |key: &str| -> Vec<usize> {
            if let Some(list) = meta["prunable"][key.trim_end_matches("_groups")].as_array() {
                return list.iter().map(|n| n.as_u64().unwrap() as usize).collect();
            }
            let entry = &meta["prunable"][key];
            vec![entry["per_layer"].as_u64().unwrap() as usize; entry["layers"].as_u64().unwrap() as usize]
        };
        let ok = of(Kind::Heads) == expected("head_groups") && of(Kind::Neurons) == expected("ffn_groups");
        if !ok || only.is_some() {
            let mut text = format!(
                "{name}: heads {:?} neurons {:?}, expected {:?} {:?}; unsupported {:?}\n",
                of(Kind::Heads),
                of(Kind::Neurons),
                expected("head_groups"),
                expected("ffn_groups"),
                analysis.unsupported
            );
            for g in &analysis.groups {
                text += &format!("    group {} {:?} {}\n", g.name, g.kind, g.units);
            }
            for f in &analysis.frozen {
                text += &format!("    frozen {} {}: {}\n", f.name, f.units, f.why);
            }
            if !ok {
                failures.push(text);
            } else {
                println!("{text}");
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{}\n{} cases",
        failures.join("\n"),
        failures.len()
    );
}
