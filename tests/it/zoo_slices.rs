//! Sliced equals masked: every zoo case, random masks of every group, in
//! ONNX Runtime.

use std::path::{Path, PathBuf};

use onnx_prune::axes::{self, Analysis};
use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{onnx, rewrite};
use rand::{RngExt, SeedableRng};

use crate::common::{engine, feeds, take};

/// Relative difference that float32 models may show.
const CLOSE_F32: f32 = 1e-5;
/// Half precision: ten bits, several layers.
const CLOSE_F16: f32 = 2e-2;

/// The folders with cases; `ZOO` names another one.
fn zoos() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("ZOO") {
        return vec![folder.into()];
    }
    crate::common::zoos()
}

fn run(engine: &dyn Engine, model: &ModelProto, feeds: &Feeds) -> Result<Vec<Tensor>, String> {
    let mut session = engine
        .session(
            model,
            &SessionOptions {
                optimise: true,
                outputs: None,
            },
        )
        .map_err(|e| e.chain())?;
    session.run(feeds).map_err(|e| e.chain())
}

fn difference(a: &[Tensor], b: &[Tensor]) -> f32 {
    let mut worst = 0.0f32;
    for (a, b) in a.iter().zip(b) {
        if a.shape != b.shape {
            return f32::INFINITY;
        }
        let (a, b) = (a.to_f32(), b.to_f32());
        let scale = b
            .iter()
            .fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { m })
            .max(1e-30);
        for (x, y) in a.iter().zip(&b) {
            let d = if x == y { 0.0 } else { (x - y).abs() / scale };
            if d.is_nan() || d > worst {
                worst = if d.is_nan() { f32::INFINITY } else { d };
            }
        }
    }
    worst
}

/// A mask of one flavour over all groups that `inspect` lists as default.
fn mask(analysis: &Analysis, flavour: usize, zero: &[bool], rng: &mut impl RngExt) -> Mask {
    let mut mask = Mask::default();
    for (at, group) in analysis.indexed() {
        if !group.kind.is_default() {
            continue;
        }
        let kept: Vec<bool> = match flavour {
            // All but one.
            0 => {
                let gone = rng.random_range(0..group.units);
                (0..group.units).map(|u| u != gone).collect()
            }
            // About half, at least one.
            1 => {
                let sure = rng.random_range(0..group.units);
                (0..group.units)
                    .map(|u| u == sure || rng.random_bool(0.5))
                    .collect()
            }
            // Every second group that may be empty is.
            _ => {
                let empty = zero[at.0] && at.0.is_multiple_of(2) == flavour.is_multiple_of(2);
                let sure = rng.random_range(0..group.units);
                (0..group.units)
                    .map(|u| !empty && (u == sure || rng.random_bool(0.7)))
                    .collect()
            }
        };
        mask.kept.insert(at, kept);
    }
    mask
}

struct Case {
    name: String,
    path: PathBuf,
    network: Network,
    elem: f32,
}

fn load(path: &Path) -> Option<Case> {
    let name = path.file_name()?.to_string_lossy().to_string();
    let text = std::fs::read_to_string(path.join("meta.json")).ok()?;
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    let file = onnx::load(&path.join("model.onnx")).unwrap();
    let model = onnx::inline_functions(&file.proto).unwrap();
    let cache = meta["prunable"]["cache_in_interface"].as_bool() == Some(true);
    let options = axes::AnalysisOptions {
        change_interface: cache,
        ..Default::default()
    };
    let network = Network::of(model, options).unwrap();
    let elem = if name.contains("fp16") || name.contains("bf16") {
        CLOSE_F16
    } else {
        CLOSE_F32
    };
    Some(Case {
        name,
        path: path.to_path_buf(),
        network,
        elem,
    })
}

/// The inputs that fit the pruned interface: caches lose the heads, too.
fn fitted(case: &Case, mask: &Mask, feeds: &Feeds) -> Feeds {
    let kept = mask.by_factor(&case.network.axes);
    let mut out = feeds.clone();
    for (name, tensor) in &mut out {
        let Some(id) = case.network.graph.find(name) else {
            continue;
        };
        let Some(dims) = &case.network.axes.facts(id).dims else {
            continue;
        };
        for (axis, dim) in dims.iter().enumerate() {
            if kept.touches(&case.network.axes.space, dim) {
                let indices = kept.indices(&case.network.axes.space, dim).unwrap();
                *tensor = take(tensor, axis, &indices);
            }
        }
    }
    out
}

/// Present caches of the masked model cut like the sliced model's.
fn cut_outputs(case: &Case, mask: &Mask, outputs: Vec<Tensor>) -> Vec<Tensor> {
    let kept = mask.by_factor(&case.network.axes);
    let mut cut = Vec::new();
    for (tensor, id) in outputs.into_iter().zip(&case.network.graph.outputs) {
        let mut tensor = tensor;
        for (axis, dim) in case.network.axes.facts(*id).dims.iter().flatten().enumerate() {
            if kept.touches(&case.network.axes.space, dim) {
                let indices = kept.indices(&case.network.axes.space, dim).unwrap();
                tensor = take(&tensor, axis, &indices);
            }
        }
        cut.push(tensor);
    }
    cut
}

#[test]
fn sliced_equals_masked() {
    let Some(engine) = engine() else { return };
    let only = std::env::var("CASE").ok();
    let mut failures = Vec::new();
    let mut checked = 0;
    for zoo in zoos() {
        let mut paths: Vec<_> = std::fs::read_dir(zoo)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let Some(case) = load(&path) else { continue };
            if only.as_ref().is_some_and(|o| !case.name.contains(o)) {
                continue;
            }
            if let Err(text) = check(engine.as_ref(), &case) {
                failures.push(format!("{}: {text}", case.name));
            }
            checked += 1;
        }
    }
    assert!(
        failures.is_empty(),
        "{}\n{} of {checked} cases fail",
        failures.join("\n"),
        failures.len()
    );
    println!("{checked} cases");
}

fn check(engine: &dyn Engine, case: &Case) -> Result<(), String> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let groups = &case.network.axes.groups;
    let zero: Vec<bool> = (case.network.axes.indexed())
        .map(|(g, _)| rewrite::can_empty(&case.network, g))
        .collect();
    let expected: Vec<_> = groups
        .iter()
        .zip(&zero)
        .filter(|(g, z)| g.kind.is_default() && !**z)
        .collect();
    if !expected.is_empty() && std::env::var("CASE").is_ok() {
        println!(
            "{}: cannot be empty: {:?}",
            case.name,
            expected.iter().map(|(g, _)| &g.name).collect::<Vec<_>>()
        );
    }
    let mut problems = Vec::new();
    for flavour in 0..4 {
        let mask = mask(&case.network.axes, flavour, &zero, &mut rng);
        let one = || -> Result<f32, String> {
            let sliced = rewrite::prune(&case.network, &mask).map_err(|e| e.chain())?;
            let masked = rewrite::masked(&case.network, &mask).map_err(|e| e.chain())?;
            if let Ok(folder) = std::env::var("KEEP") {
                std::fs::write(
                    format!("{folder}/{}-{flavour}.onnx", case.name),
                    onnx::encode(&sliced),
                )
                .unwrap();
                std::fs::write(
                    format!("{folder}/{}-{flavour}-masked.onnx", case.name),
                    onnx::encode(&masked),
                )
                .unwrap();
            }
            let mut worst = 0.0f32;
            for set in 0..2 {
                let inputs = feeds(&case.path, set);
                let dense = run(engine, &case.network.proto, &inputs).map_err(|e| format!("dense: {e}"))?;
                let a = run(engine, &sliced, &fitted(case, &mask, &inputs))
                    .map_err(|e| format!("sliced: {e}"))?;
                let b = run(engine, &masked, &inputs).map_err(|e| format!("masked: {e}"))?;
                if difference(&b, &dense) == 0.0 {
                    return Err("the mask changes nothing".into());
                }
                worst = worst.max(difference(&a, &cut_outputs(case, &mask, b)));
            }
            Ok(worst)
        };
        match one() {
            Ok(worst) if worst <= case.elem => {}
            Ok(worst) => problems.push(format!("flavour {flavour} differs by {worst:e}")),
            Err(text) => problems.push(format!("flavour {flavour}: {text}")),
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}
