//! Both engines compute what they should, or say by name why they do not.
//!
//! Needs the zoo in `../shared/zoo` and an ONNX Runtime library; what is not
//! there is skipped with a message.

mod isolated;
mod node_tests;
mod small;
mod zoo;

use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::onnx::proto::{ModelProto, NodeProto};
use onnx_prune::tensor::{Elem, Feeds, Tensor};
use zoo::{Case, built_in, difference, onnx_runtime, zoo};

/// Unoptimised ONNX Runtime against itself on another processor: the order of
/// sums differs.
const SAME_ENGINE: f64 = 1e-5;
/// Any two ways to compute a float32 model of the zoo.
const FLOAT32: f64 = 1e-5;
/// Any two ways to compute a model that computes in float16.
const FLOAT16: f64 = 5e-3;

fn computes_in_float16(case: &Case) -> bool {
    case.name.ends_with("-fp16")
}

/// Runs both recorded input sets of `case`; the worst difference to the
/// recorded outputs, or why the engine does not run the model.
fn worst_difference(engine: &dyn Engine, case: &Case, optimise: bool) -> Result<f64, String> {
    let options = SessionOptions {
        optimise,
        outputs: None,
    };
    let mut session = engine.session(&case.model, &options).map_err(|e| e.chain())?;
    let mut worst = 0.0f64;
    for (inputs, expected) in &case.io {
        let results = session.run(inputs).map_err(|e| format!("RUN: {}", e.chain()))?;
        assert_eq!(results.len(), session.outputs().len());
        assert_eq!(results.len(), expected.len(), "{}", case.name);
        for (name, result) in session.outputs().iter().zip(&results) {
            // A copy in float32 gives float32.
            let expected = &expected[name];
            let result = match engine.widens() && expected.elem() == Elem::F16 {
                true => Tensor::rounded(
                    result.shape.clone(),
                    &result.to_f32().iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
                    Elem::F16,
                ),
                false => result.clone(),
            };
            worst = worst.max(difference(&result, expected));
        }
    }
    Ok(worst)
}

#[test]
fn onnx_runtime_gives_the_recorded_outputs() {
    let (Some(cases), Some(engine)) = (zoo(), onnx_runtime(None)) else {
        return;
    };
    for case in &cases {
        for optimise in [false, true] {
            // Unoptimised, products of 8-bit integers saturate on processors
            // without VNNI, and the recording was made on one that has it.
            if !optimise && case.name.ends_with("-dynquant") {
                continue;
            }
            let tolerance = match (optimise, computes_in_float16(case)) {
                (false, _) => SAME_ENGINE,
                (true, false) => FLOAT32,
                (true, true) => FLOAT16,
            };
            let worst =
                worst_difference(&*engine, case, optimise).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(worst <= tolerance, "{} ({optimise}): {worst:e}", case.name);
        }
    }
}

/// The cases that tract does not run, with the operator or tensor that it must
/// name.
const REFUSED: [(&str, &str); 15] = [
    ("bert-dyn23-sdpa", "`Attention`"),
    ("bert-ort-extended", "`com.microsoft::FusedMatMul`"),
    ("bert-ort-fused", "`com.microsoft::EmbedLayerNormalization`"),
    ("bert-ort-fused-mha", "`com.microsoft::MultiHeadAttention`"),
    ("bert-qdq", "`DequantizeLinear` with one scale per channel"),
    ("distilbert-ort-fused", "`com.microsoft::EmbedLayerNormalization`"),
    ("gpt2-ort-attention", "`com.microsoft::Attention`"),
    ("gpt2-ort-extended", "`com.microsoft::FusedMatMul`"),
    ("llama-ort-extended", "`com.microsoft::FusedMatMul`"),
    ("llamapos-dyn23-sdpa", "`Attention`"),
    ("minilm-ort-fused", "`com.microsoft::EmbedLayerNormalization`"),
    ("mpnet-dyn18-eager", "`CumSum` of a Cast to int64"),
    ("roberta-dyn20-sdpa", "`CumSum` of a Cast to int64"),
    ("vit-dyn23-sdpa", "`Attention`"),
    ("vit-ort-attention", "`com.microsoft::Attention`"),
];

#[test]
fn tract_gives_the_recorded_outputs_or_refuses_by_name() {
    let (Some(cases), Some(engine)) = (zoo(), built_in(None)) else {
        return;
    };
    let mut ran = 0;
    for case in &cases {
        let refused = REFUSED.iter().find(|(name, _)| *name == case.name);
        for optimise in [false, true] {
            match (worst_difference(&*engine, case, optimise), refused) {
                (Ok(worst), None) => {
                    let tolerance = if computes_in_float16(case) {
                        FLOAT16
                    } else {
                        FLOAT32
                    };
                    assert!(worst <= tolerance, "{} ({optimise}): {worst:e}", case.name);
                    ran += 1;
                }
                (Err(error), Some((_, what))) => {
                    assert!(error.contains(what), "{}: {error}", case.name);
                    assert!(error.contains("pip install onnxruntime"), "{error}");
                    assert!(!error.starts_with("RUN"), "too late: {error}");
                }
                (Ok(_), Some(_)) => panic!("{} runs: take it off the list", case.name),
                (Err(error), None) => panic!("{}: {error}", case.name),
            }
        }
    }
    println!("tract runs {} of {} cases", ran / 2, cases.len());
}

/// A result in the middle of the model: the first projection of a layer.
fn inner_value(model: &ModelProto) -> String {
    let nodes = &model.graph.as_ref().unwrap().node;
    let products: Vec<&NodeProto> = nodes.iter().filter(|n| n.op_type() == "MatMul").collect();
    products[products.len() / 2].output[0].clone()
}

#[test]
fn inner_values_are_fetched_in_the_order_asked_for() {
    let names = ["bert-ts17-eager", "bert-dyn18-sdpa", "gpt2-ts17-eager"];
    for case in names.iter().filter_map(|name| zoo::case(name)) {
        let inner = inner_value(&case.model);
        let (inputs, expected) = &case.io[1];
        let output = expected.keys().next().unwrap().clone();
        let mut seen: Vec<Tensor> = Vec::new();
        for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
            for optimise in [false, true] {
                let options = SessionOptions {
                    optimise,
                    outputs: Some(vec![inner.clone(), output.clone(), inner.clone()]),
                };
                let mut session = engine.session(&case.model, &options).unwrap();
                assert_eq!(session.outputs(), options.outputs.as_deref().unwrap());
                let results = session.run(inputs).unwrap();
                assert_eq!(results[0], results[2]);
                assert!(difference(&results[1], &expected[&output]) <= FLOAT32);
                assert_eq!(results[0].elem(), Elem::F32);
                for other in &seen {
                    assert!(difference(&results[0], other) <= FLOAT32, "{}", case.name);
                }
                seen.push(results[0].clone());
            }
        }
    }
}

#[test]
fn a_value_that_does_not_exist_is_an_error_that_names_it() {
    let Some(case) = zoo::case("bert-ts17-eager") else {
        return;
    };
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        let options = SessionOptions {
            outputs: Some(vec!["nowhere".into()]),
            ..SessionOptions::default()
        };
        let error = engine.session(&case.model, &options).err().unwrap();
        assert!(error.chain().contains("`nowhere`"), "{}", error.chain());
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn bad_feeds_are_errors_that_name_the_input() {
    let Some(case) = zoo::case("bert-ts17-eager") else {
        return;
    };
    let good = &case.io[0].0;
    let with = |name: &str, tensor: Tensor| -> Feeds {
        let mut feeds = good.clone();
        feeds.insert(name.to_owned(), tensor);
        feeds
    };
    let mut missing = good.clone();
    missing.remove("attention_mask");
    let bad = [
        (missing, "`attention_mask` is missing"),
        (
            with("labels", Tensor::i64([1], vec![0])),
            "`labels` is not an input",
        ),
        (
            with("input_ids", Tensor::f32([2, 7], vec![0.0; 14])),
            "`input_ids` must be int64[batch, sequence], not float32[2, 7]",
        ),
        (
            with("input_ids", Tensor::i64([14], vec![0; 14])),
            "`input_ids` must be int64[batch, sequence], not int64[14]",
        ),
    ];
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        let mut session = engine.session(&case.model, &SessionOptions::default()).unwrap();
        for (feeds, expected) in &bad {
            let error = session.run(feeds).err().unwrap();
            assert!(error.chain().contains(expected), "{}", error.chain());
            assert_eq!(error.exit_code(), 2);
        }
        // Shapes that only the computation can object to, and indices outside
        // the table, are errors too; the session goes on after them.
        let uneven = with("attention_mask", Tensor::i64([3, 5], vec![1; 15]));
        let ids = &good["input_ids"];
        let outside = Tensor::i64(ids.shape.clone(), vec![1 << 40; ids.len()]);
        for feeds in [uneven, with("input_ids", outside)] {
            let error = session.run(&feeds).err().unwrap();
            assert_eq!(error.exit_code(), 4, "{}", error.chain());
        }
        assert!(session.run(good).is_ok());
    }
}

#[test]
fn fixed_sizes_are_checked() {
    let Some(case) = zoo::case("vit-ts17-eager") else {
        return;
    };
    let image = Tensor::f32([1, 3, 20, 21], vec![0.0; 3 * 20 * 21]);
    let feeds = Feeds::from([("pixel_values".to_owned(), image)]);
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        let mut session = engine.session(&case.model, &SessionOptions::default()).unwrap();
        let error = session.run(&feeds).err().unwrap().chain();
        assert!(
            error.contains("float32[batch, 3, 20, 20], not float32[1, 3, 20, 21]"),
            "{error}"
        );
    }
}

#[test]
fn equal_inputs_give_equal_bytes() {
    let Some(case) = zoo::case("minilm-dyn18-sdpa") else {
        return;
    };
    for engine in [onnx_runtime(Some(2)), built_in(Some(2))].into_iter().flatten() {
        let run = || {
            let mut session = engine.session(&case.model, &SessionOptions::default()).unwrap();
            // The second run of a session is as the first.
            let first = session.run(&case.io[1].0).unwrap();
            session.run(&case.io[0].0).unwrap();
            assert_eq!(first, session.run(&case.io[1].0).unwrap());
            first
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn many_shapes_are_run_by_one_session() {
    let Some(case) = zoo::case("bert-ts17-eager") else {
        return;
    };
    let Some(engine) = built_in(None) else {
        return;
    };
    let mut session = engine.session(&case.model, &SessionOptions::default()).unwrap();
    // More shapes than plans are kept, each twice.
    for length in (1..=20).chain(1..=20) {
        let feeds: Feeds = case.io[0]
            .0
            .keys()
            .map(|name| (name.clone(), Tensor::i64([2, length], vec![1; 2 * length])))
            .collect();
        assert_eq!(session.run(&feeds).unwrap()[0].shape[0], 2);
    }
}

#[test]
fn operators_after_the_optimisations_are_counted() {
    let (Some(engine), Some(case)) = (onnx_runtime(None), zoo::case("bert-ts17-eager")) else {
        return;
    };
    let counts = engine.optimised_operators(&case.model).unwrap().unwrap();
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    // Two layers: their biases and activations are fused, constants are folded.
    assert_eq!(count("com.microsoft::BiasGelu"), 2, "{counts:?}");
    assert_eq!((count("Erf"), count("Constant")), (0, 0), "{counts:?}");
    if let Some(engine) = built_in(None) {
        assert!(engine.optimised_operators(&case.model).unwrap().is_none());
    }
}
