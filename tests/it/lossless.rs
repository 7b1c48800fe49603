//! The lossless passes change nothing but the cost: every case of the zoo on
//! its stored inputs (the second set has padding), in ONNX Runtime.

use std::collections::BTreeMap;
use std::path::Path;

use onnx_prune::axes::{self, Analysis};
use onnx_prune::budget::{Cost, Sizes};
use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::measure::paired;
use onnx_prune::network::Network;
use onnx_prune::onnx;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::rewrite::{self, lossless};
use onnx_prune::tensor::{Feeds, Tensor};

use crate::common::{cases, engine, exact, feeds, name};

/// Largest difference from the dense model, as a fraction of the largest value
/// of the output.
const CLOSE_F32: f32 = 1e-5;
/// The same in half precision.
const CLOSE_F16: f32 = 2e-2;

/// Exports whose head reads one position, and how many contractions of the last
/// layer that leaves for this position only: query, scores, values, output, two
/// of the feed-forward; less what a fused operator hides.
const ONE_POSITION: [(&str, usize); 30] = [
    ("albert-dyn18-sdpa", 6),
    ("albert-ts17-eager", 6),
    ("bert-dyn18-sdpa", 6),
    ("bert-dyn20-eager", 6),
    ("bert-dyn23-sdpa", 5),
    // The scale of the quantisation is that of all positions: the cut stops
    // behind it, in front of every product.
    ("bert-dynquant", 1),
    ("bert-external-all", 6),
    ("bert-external-some", 6),
    ("bert-fixed-dyn18", 6),
    ("bert-fixed-ts17", 6),
    ("bert-fp16", 6),
    ("bert-ort-extended", 6),
    ("bert-ort-fused", 3),
    ("bert-ort-fused-mha", 5),
    ("bert-qdq", 6),
    ("bert-ts14-eager", 6),
    ("bert-ts17-eager", 6),
    ("bert-ts17-sdpa", 6),
    ("distilbert-dyn18-sdpa", 6),
    ("distilbert-ort-fused", 3),
    ("distilbert-ts14-eager", 6),
    ("electra-ts17-eager", 6),
    ("mpnet-dyn18-eager", 6),
    ("mpnet-ts17-eager", 6),
    ("vit-dyn18-sdpa", 6),
    ("vit-dyn23-sdpa", 5),
    ("vit-fp16", 6),
    ("vit-ort-attention", 3),
    ("vit-ort-fused", 6),
    ("vit-ts17-eager", 6),
];

fn model(path: &Path) -> ModelProto {
    let file = onnx::load(&path.join("model.onnx")).unwrap();
    onnx::inline_functions(&file.proto).unwrap()
}

fn analysed(model: &ModelProto) -> Network {
    Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap()
}

fn run(
    engine: &dyn Engine,
    model: &ModelProto,
    feeds: &Feeds,
    optimise: bool,
) -> Result<Vec<Tensor>, String> {
    let options = SessionOptions {
        optimise,
        outputs: None,
    };
    let mut session = engine.session(model, &options).map_err(|e| e.chain())?;
    session.run(feeds).map_err(|e| e.chain())
}

fn difference(a: &[Tensor], b: &[Tensor]) -> f32 {
    let mut worst = 0.0f32;
    for (a, b) in a.iter().zip(b) {
        if a.shape != b.shape {
            return f32::INFINITY;
        }
        let (a, b) = (a.to_f32(), b.to_f32());
        let scale = b.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        for (x, y) in a.iter().zip(&b) {
            let d = if x == y { 0.0 } else { (x - y).abs() / scale };
            worst = if d.is_nan() { f32::INFINITY } else { worst.max(d) };
        }
    }
    worst
}

fn tolerance(case: &str) -> f32 {
    if case.contains("fp16") || case.contains("bf16") {
        CLOSE_F16
    } else {
        CLOSE_F32
    }
}

/// One case: what it computes, that a second application changes nothing, that
/// the groups are the same and can be pruned.
fn check(engine: &dyn Engine, path: &Path) -> Result<(), String> {
    let case = name(path);
    let dense = model(path);
    let (cheap, passes) = lossless::apply(&dense).map_err(|e| e.chain())?;
    onnx::validate(&cheap).map_err(|e| e.chain())?;
    let contractions: usize = passes.iter().map(|p| p.contractions).sum();
    println!("{case}: {passes:?}");
    let expected = ONE_POSITION
        .iter()
        .find(|(name, _)| *name == case)
        .map_or(0, |(_, n)| *n);
    if contractions != expected {
        return Err(format!("{contractions} contractions moved, {expected} expected"));
    }
    let (again, more) = lossless::apply(&cheap).map_err(|e| e.chain())?;
    if !more.is_empty() || onnx::encode(&again) != onnx::encode(&cheap) {
        return Err(format!("the second application did something: {more:?}"));
    }
    let half = |groups: &Analysis| {
        let mut mask = Mask::default();
        for (at, group) in groups.indexed().filter(|(_, g)| g.kind.is_default()) {
            mask.kept
                .insert(at, (0..group.units).map(|u| u % 2 == 0).collect());
        }
        mask
    };
    let (network, before) = (analysed(&cheap), analysed(&dense));
    let groups = |a: &Analysis| -> Vec<_> {
        let mut all: Vec<_> = a
            .groups
            .iter()
            .map(|g| (g.name.clone(), g.kind, g.units, g.sinks.len()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    if groups(&network.axes) != groups(&before.axes) {
        return Err(format!(
            "the groups differ: {:?} were {:?}",
            groups(&network.axes),
            groups(&before.axes)
        ));
    }
    let macs = |network: &Network| {
        let sizes = Sizes {
            batch: 1,
            seq: 32,
            shapes: BTreeMap::new(),
        };
        Cost::new(network, &sizes).macs(&Mask::default())
    };
    let (before, after) = (macs(&before), macs(&network));
    if (after < before) != (expected > 0) {
        return Err(format!("{before} multiply-accumulates before, {after} after"));
    }
    let mask = half(&network.axes);
    let pruned = rewrite::prune(&network, &mask).map_err(|e| e.chain())?;
    let masked = rewrite::masked(&network, &mask).map_err(|e| e.chain())?;
    for set in 0..2 {
        let inputs = feeds(path, set);
        for optimise in [true, false] {
            let want = run(engine, &dense, &inputs, optimise)?;
            let got = run(engine, &cheap, &inputs, optimise)?;
            let worst = difference(&got, &want);
            if worst > tolerance(&case) {
                return Err(format!(
                    "set {set}, optimised {optimise}: differs from the dense model by {worst:e}"
                ));
            }
        }
        let worst = difference(
            &run(engine, &pruned, &inputs, true)?,
            &run(engine, &masked, &inputs, true)?,
        );
        if worst > tolerance(&case) {
            return Err(format!("set {set}: sliced differs from masked by {worst:e}"));
        }
    }
    Ok(())
}

#[test]
fn the_result_is_the_dense_models() {
    let Some(engine) = engine() else { return };
    let cases = cases();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|path| Some(format!("{}: {}", name(path), check(engine.as_ref(), path).err()?)))
        .collect();
    assert!(
        failures.is_empty(),
        "{}\n{} of {} cases fail",
        failures.join("\n"),
        failures.len(),
        cases.len()
    );
}

/// The model with one position of its first output instead of all, as a decoder
/// that predicts the next token has it.
fn read_at(mut model: ModelProto, position: i64) -> ModelProto {
    use onnx_prune::onnx::proto::attribute_proto::AttributeType;
    use onnx_prune::onnx::proto::{AttributeProto, NodeProto};
    let graph = model.graph.as_mut().unwrap();
    let index = Tensor::i64(vec![], vec![position]);
    graph
        .initializer
        .push(onnx::tensor_proto("position_index", &index));
    let output = graph.output.first_mut().unwrap();
    graph.node.push(NodeProto {
        op_type: Some("Gather".into()),
        input: vec![output.name().to_string(), "position_index".into()],
        output: vec!["at_position".into()],
        attribute: vec![AttributeProto {
            name: Some("axis".into()),
            r#type: Some(AttributeType::Int as i32),
            i: Some(1),
            ..Default::default()
        }],
        ..Default::default()
    });
    output.name = Some("at_position".into());
    let onnx::proto::type_proto::Value::TensorType(tensor) =
        output.r#type.as_mut().unwrap().value.as_mut().unwrap()
    else {
        panic!("the output is no tensor");
    };
    tensor.shape.as_mut().unwrap().dim.remove(1);
    model
}

/// The last token of a causal decoder, and a position in the middle, where
/// lengths are known at run time only.
#[test]
fn any_position_of_a_decoder() {
    let Some(engine) = engine() else { return };
    // Rotary embeddings, grouped keys, a causal mask; the vocabulary's product
    // is one more.
    let decoders = [
        ("llama-ts17-sdpa", 8),
        ("llama-dyn20-sdpa", 8),
        ("llama-ts14-eager", 8),
    ];
    for path in cases() {
        let Some((_, expected)) = decoders.iter().find(|(n, _)| *n == name(&path)) else {
            continue;
        };
        for position in [-1, 0, 3] {
            let dense = read_at(model(&path), position);
            let (cheap, passes) = lossless::apply(&dense).unwrap();
            onnx::validate(&cheap).unwrap();
            let moved: usize = passes.iter().map(|p| p.contractions).sum();
            println!("{}[{position}]: {passes:?}", name(&path));
            assert!(moved >= *expected, "{}[{position}]: {moved} moved", name(&path));
            assert!(lossless::apply(&cheap).unwrap().1.is_empty());
            for set in 0..2 {
                let inputs = feeds(&path, set);
                let want = run(engine.as_ref(), &dense, &inputs, true).unwrap();
                let got = run(engine.as_ref(), &cheap, &inputs, true).unwrap();
                let worst = difference(&got, &want);
                assert!(worst <= CLOSE_F32, "{}[{position}]: {worst:e}", name(&path));
            }
        }
    }
}

/// What the passes save on any model: `MODEL=model.onnx cargo nextest run --test
/// lossless --run-ignored all --no-capture saved_on_a_given_model`. With `KEEP`
/// the result is written there.
#[test]
#[ignore = "prints measurements of the model in $MODEL"]
fn saved_on_a_given_model() {
    let (Some(engine), Ok(path)) = (engine(), std::env::var("MODEL")) else {
        return;
    };
    let file = onnx::load(Path::new(&path)).unwrap();
    let dense = onnx::inline_functions(&file.proto).unwrap();
    let start = std::time::Instant::now();
    let (cheap, passes) = lossless::apply(&dense).unwrap();
    println!("{path}: {passes:#?} in {:?}", start.elapsed());
    if let Ok(keep) = std::env::var("KEEP") {
        std::fs::write(keep, onnx::encode(&cheap)).unwrap();
    }
    for (batch, seq) in [(1, 32), (8, 128)] {
        let macs = |model: &ModelProto| {
            let network = analysed(model);
            let shapes = BTreeMap::new();
            Cost::new(&network, &Sizes { batch, seq, shapes }).macs(&Mask::default())
        };
        let inputs = exact(&dense, batch, seq);
        let timing = paired::paired(engine.as_ref(), &cheap, Some(&dense), &inputs.feeds, 40).unwrap();
        let worst = difference(
            &run(engine.as_ref(), &cheap, &inputs.feeds, true).unwrap(),
            &run(engine.as_ref(), &dense, &inputs.feeds, true).unwrap(),
        );
        println!(
            "{batch} x {seq}: multiply-accumulates {:.4} of dense, {:?}, differs by {worst:e}",
            macs(&cheap) as f64 / macs(&dense) as f64,
            timing
        );
    }
    let operators = |model| engine.optimised_operators(model).unwrap();
    println!("dense {:?}\ncheap {:?}", operators(&dense), operators(&cheap));
}
