//! SUPPORTED.md says what this test finds: every case of the zoo is analysed,
//! pruned and run. `UPDATE_SUPPORTED=1` writes the file anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_prune::axes::{self, Analysis, GroupId, Kind};
use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{onnx, rewrite, verify};

use crate::common::{engine, feeds, take};

const HEAD: &str = "\
# What is supported

Made by `tests/it/supported.rs` from the cases in `fixtures/zoo` and the shared zoo; never edited by hand
(`UPDATE_SUPPORTED=1 cargo nextest run supported` writes it). All weights are random.

- groups: what is found without any option, or with `--change-interface` where the caches are in the interface
- equal: sliced and masked models have the same outputs, with a third of the units of every group gone
- empty: groups whose units may all go, the sublayer with them
- kernels: ONNX Runtime's optimised graph has no operator more often than the dense model's

| Case | Exporter, opset | Heads | Neurons | Others | Equal | Empty | Kernels |
|---|---|---|---|---|---|---|---|
";

fn cases() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for zoo in ["fixtures/zoo", "../shared/zoo"] {
        let Ok(entries) = std::fs::read_dir(root.join(zoo)) else {
            println!("skipped: no {zoo}");
            continue;
        };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.join("meta.json").exists() {
                let name = path.file_name().unwrap().to_string_lossy().to_string();
                found.entry(name).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

/// `2 x 4 + 3`: counts of equal sizes in order.
fn sizes(analysis: &Analysis, which: impl Fn(Kind) -> bool) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for group in analysis.groups.iter().filter(|g| which(g.kind)) {
        match runs.last_mut() {
            Some((count, units)) if *units == group.units => *count += 1,
            _ => runs.push((1, group.units)),
        }
    }
    if runs.is_empty() {
        return "none".into();
    }
    let parts: Vec<String> = runs.iter().map(|(n, units)| format!("{n} x {units}")).collect();
    parts.join(" + ")
}

/// Every third unit of every default group goes.
fn mask(analysis: &Analysis) -> Mask {
    let mut mask = Mask::default();
    for (at, group) in analysis.indexed() {
        if group.kind.is_default() {
            mask.kept
                .insert(at, (0..group.units).map(|u| u % 3 != 1).collect());
        }
    }
    mask
}

fn row(engine: &dyn Engine, case: &Path) -> String {
    let name = case.file_name().unwrap().to_string_lossy().to_string();
    let meta: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(case.join("meta.json")).unwrap()).unwrap();
    let file = onnx::load(&case.join("model.onnx")).unwrap();
    let model = onnx::inline_functions(&file.proto).unwrap();
    let options = axes::AnalysisOptions {
        change_interface: meta["prunable"]["cache_in_interface"].as_bool() == Some(true),
        ..axes::AnalysisOptions::default()
    };
    let network = Network::of(model, options).unwrap();
    let (graph, analysis) = (&network.graph, &network.axes);
    let mask = mask(analysis);
    let sliced = rewrite::prune(&network, &mask).unwrap();
    let masked = rewrite::masked(&network, &mask).unwrap();
    let kept = mask.by_factor(analysis);
    let cut = |name: &str, tensor: Tensor| -> Tensor {
        let Some(id) = graph.find(name) else { return tensor };
        let mut tensor = tensor;
        for (axis, dim) in analysis.facts(id).dims.iter().flatten().enumerate() {
            if kept.touches(&analysis.space, dim) {
                let indices = kept.indices(&analysis.space, dim).unwrap();
                tensor = take(&tensor, axis, &indices);
            }
        }
        tensor
    };
    let mut worst = 0.0f32;
    for set in 0..2 {
        let inputs = feeds(case, set);
        let fitted = inputs
            .iter()
            .map(|(k, v)| (k.clone(), cut(k, v.clone())))
            .collect();
        let a = run(engine, &sliced, &fitted);
        let b = run(engine, &masked, &inputs);
        for ((x, y), id) in a.iter().zip(b).zip(&graph.outputs) {
            let y = cut(&graph.value(*id).name, y);
            assert_eq!(x.shape, y.shape, "{name}");
            worst = worst.max(difference(&x.to_f32(), &y.to_f32()));
        }
    }
    let has = |marks: &[&str]| marks.iter().any(|m| name.contains(m));
    let equal = match () {
        () if worst <= 1e-5 => "yes",
        () if has(&["fp16", "bf16"]) && worst <= 2e-2 => "to 2e-2",
        () if has(&["qdq", "dynquant"]) && worst <= 5e-2 => "to 5e-2",
        () => "no",
    };
    let default: Vec<GroupId> = (analysis.indexed().filter(|(_, g)| g.kind.is_default()))
        .map(|(id, _)| id)
        .collect();
    let empty = (default.iter())
        .filter(|id| rewrite::can_empty(&network, **id))
        .count();
    let kernels = match verify::kernels(engine, &network.proto, &sliced).unwrap() {
        Some(kernels) if kernels.more.is_empty() => "kept".to_string(),
        Some(kernels) => format!("more {}", kernels.more.join(", ")),
        None => "not checked".into(),
    };
    format!(
        "| {name} | {}, {} | {} | {} | {} | {equal} | {empty} of {} | {kernels} |",
        meta["exporter"].as_str().unwrap(),
        meta["opset"],
        sizes(analysis, |k| k == Kind::Heads),
        sizes(analysis, |k| k == Kind::Neurons),
        sizes(analysis, |k| !k.is_default()),
        default.len()
    )
}

fn run(engine: &dyn Engine, model: &ModelProto, feeds: &Feeds) -> Vec<Tensor> {
    let options = SessionOptions {
        optimise: true,
        outputs: None,
    };
    engine.session(model, &options).unwrap().run(feeds).unwrap()
}

/// Largest difference relative to the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = b
        .iter()
        .fold(1e-30f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { m });
    a.iter().zip(b).filter(|(x, y)| x != y).fold(0.0, |m, (x, y)| {
        let d = (x - y).abs() / scale;
        if d.is_nan() { f32::INFINITY } else { m.max(d) }
    })
}

#[test]
fn the_table_is_what_is_found() {
    let Some(engine) = engine() else {
        return;
    };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("SUPPORTED.md");
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let rows: Vec<String> = cases().iter().map(|case| row(engine.as_ref(), case)).collect();
    if std::env::var_os("UPDATE_SUPPORTED").is_some() {
        std::fs::write(&path, format!("{HEAD}{}\n", rows.join("\n"))).unwrap();
        return;
    }
    assert!(
        stored.starts_with(HEAD),
        "SUPPORTED.md has another head: write it anew"
    );
    for row in &rows {
        assert!(
            stored.lines().any(|line| line == row),
            "SUPPORTED.md is stale (UPDATE_SUPPORTED=1 writes it anew); found\n{row}"
        );
    }
}
