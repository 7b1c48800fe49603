//! Every operator that exports of transformers use, in each form that its versions
//! have, in all operator sets: the groups that are expected are found, or frozen
//! and listed, and sliced equals masked.

mod program;
#[rustfmt::skip]
mod table;


use onnx_prune::axes::{self, Analysis, GroupId, Kind};
use onnx_prune::engine::{self, Engine, EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{onnx, rewrite};

/// What no engine has on this kind of processor, or what it does not do alone.
const NOT_RUN: &[&str] = &[
    "BiasSoftmax",
    // One step of a decoder, which needs its buffers.
    "DecoderMaskedMultiHeadAttention",
    "GemmFastGelu",
    "Inverse",
    "PackedAttention",
    "PackedMultiHeadAttention",
    // Keys and values, or all three, in one input.
    "MultiHeadAttention{num_heads=3}(q, k)",
    "MultiHeadAttention{num_heads=3}(q);",
];

/// Relative difference of float32 results.
const CLOSE: f32 = 1e-5;

fn found(analysis: &Analysis) -> Vec<String> {
    let kind = |k: Kind| k.noun().to_string();
    let groups = analysis
        .groups
        .iter()
        .map(|g| format!("{} {}", kind(g.kind), g.units));
    let frozen = analysis.frozen.iter().map(|f| format!("frozen {}", f.units));
    let without = analysis.unsupported.keys().map(|op| format!("unsupported {op}"));
    // The residual stream itself is not what the table is about.
    let mut all: Vec<String> = groups
        .chain(frozen)
        .chain(without)
        .filter(|f| f != "frozen 6")
        .collect();
    all.sort();
    all
}

fn expected(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .split("; ")
        .filter(|t| !t.is_empty())
        .map(Into::into)
        .collect();
    all.sort();
    all
}

/// ONNX Runtime, where it is there, and the built-in engine.
fn engines() -> Vec<Box<dyn Engine>> {
    let built_in = EngineOptions {
        engine: EngineChoice::Tract,
        threads: Some(1),
        ..EngineOptions::default()
    };
    crate::common::engine()
        .into_iter()
        .chain(engine::choose(&built_in).ok())
        .collect()
}

fn run(engine: &dyn Engine, model: &ModelProto, feeds: &Feeds) -> Result<Tensor, String> {
    let mut session = engine
        .session(model, &SessionOptions::default())
        .map_err(|e| e.chain())?;
    let mut given = session.run(feeds).map_err(|e| e.chain())?;
    Ok(given.remove(0))
}

fn feeds() -> Feeds {
    let values = (0..2 * 5 * 6).map(|i| (i as f32 * 0.7).sin()).collect();
    [("x".to_string(), Tensor::f32(vec![2, 5, 6], values))].into()
}

/// Sliced against masked for a mask of each group, one of all together, and without
/// each group that may lose all units.
fn slices(engine: &dyn Engine, network: &Network, dense: &Tensor) -> Result<(), String> {
    let analysis = &network.axes;
    let of =
        |at: GroupId| -> Vec<bool> { (0..analysis.group(at).units).map(|u| u % 2 == at.0 % 2).collect() };
    let ids = || analysis.indexed().map(|(id, _)| id);
    let mut masks: Vec<Mask> = ids()
        .map(|at| Mask {
            kept: [(at, of(at))].into(),
        })
        .collect();
    let default = ids().filter(|at| analysis.group(*at).kind.is_default());
    masks.push(Mask {
        kept: default.map(|at| (at, of(at))).collect(),
    });
    let empty = ids().filter(|at| rewrite::can_empty(network, *at));
    masks.extend(empty.map(|at| Mask {
        kept: [(at, vec![false; analysis.group(at).units])].into(),
    }));
    for mask in masks.iter().filter(|m| !m.kept.is_empty()) {
        let pruned = rewrite::prune(network, mask).map_err(|e| e.chain())?;
        let masked = rewrite::masked(network, mask).map_err(|e| e.chain())?;
        let a = run(engine, &pruned, &feeds()).map_err(|e| format!("sliced: {e}"))?;
        let b = run(engine, &masked, &feeds()).map_err(|e| format!("masked: {e}"))?;
        let scale = b.to_f32().iter().fold(1e-6f32, |m, x| m.max(x.abs()));
        let difference = |a: &Tensor, b: &Tensor| {
            let both = a.to_f32().into_iter().zip(b.to_f32());
            both.fold(0f32, |m, (x, y)| m.max((x - y).abs()))
        };
        if a.shape != b.shape || difference(&a, &b) > CLOSE * scale {
            return Err(format!(
                "differs by {:e}: {:?}",
                difference(&a, &b) / scale,
                mask.kept
            ));
        }
        if difference(&b, dense) == 0.0 {
            return Err(format!("the mask changes nothing: {:?}", mask.kept));
        }
    }
    Ok(())
}

#[test]
fn operators_are_followed_in_all_operator_sets() {
    let engines = engines();
    let inside = table::INSIDE.iter().map(|(sets, program, width, expected)| {
        let before = "h = MatMul(x, W[6,8]); ";
        let after = format!("; y = MatMul(a, W[{width},6]); out = Add(x, y)");
        (sets.clone(), format!("{before}{program}{after}"), *expected)
    });
    let whole = table::WHOLE.iter();
    let whole = whole.map(|(sets, program, expected)| (sets.clone(), (*program).to_string(), *expected));
    let (mut wrong, mut ran, mut all) = (Vec::new(), 0, 0);
    for (sets, program, wanted) in inside.chain(whole) {
        for opset in sets {
            all += 1;
            let mut problem = |text: String| wrong.push(format!("{opset}: {program}\n    {text}"));
            let model = program::model(&program, opset);
            if let Err(error) = onnx::validate(&model) {
                problem(error.chain());
                continue;
            }
            let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
            let analysis = &network.axes;
            if found(analysis) != expected(wanted) {
                let why: Vec<_> = analysis
                    .frozen
                    .iter()
                    .map(|f| format!("{} {}", f.units, f.why))
                    .collect();
                problem(format!("found {:?}, frozen {why:?}", found(analysis)));
                continue;
            }
            if NOT_RUN.iter().any(|op| program.contains(op)) {
                continue;
            }
            let mut reasons = Vec::new();
            let able = engines.iter().find_map(|engine| {
                let dense = run(engine.as_ref(), &model, &feeds());
                dense
                    .map_err(|e| reasons.push(e))
                    .ok()
                    .map(|dense| (engine, dense))
            });
            match able {
                Some((engine, dense)) => match slices(engine.as_ref(), &network, &dense) {
                    Ok(()) => ran += 1,
                    Err(text) => problem(text),
                },
                None if engines.len() < 2 => {}
                None => problem(format!("no engine runs it: {}", reasons.join(" / "))),
            }
        }
    }
    println!("{all} graphs, {ran} of them run");
    assert!(
        wrong.is_empty(),
        "{}\n{} of {all} are wrong",
        wrong.join("\n"),
        wrong.len()
    );
}
