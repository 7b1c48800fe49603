//! ONNX's own tests of its operators, in the layout of its test data sets
//! (`NAME/model.onnx`, `NAME/test_data_set_0/input_0.pb`): a folder of them in
//! the variable `ONNX_NODE_TESTS` is run by both engines. The `onnx` package
//! writes one from `onnx.backend.test.case.node.collect_testcases`.

use std::path::Path;

use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::onnx::proto::{ModelProto, TensorProto};
use onnx_prune::tensor::{Data, Elem, Feeds, Tensor};
use prost::Message;

use super::zoo::{built_in, difference, onnx_runtime};

/// One operator in float32, computed in two ways.
const FLOAT32: f64 = 1e-4;
/// One operator in float16, computed in two ways: two steps of its mantissa.
const FLOAT16: f64 = 2e-3;

/// A tensor of a test data set; `None` for anything else.
fn from_proto(bytes: &[u8]) -> Option<(TensorProto, Tensor)> {
    let proto = TensorProto::decode(bytes).ok()?;
    let shape: Vec<usize> = proto.dims.iter().map(|&d| d as usize).collect();
    let raw = proto.raw_data.clone().unwrap_or_default();
    macro_rules! read {
        ($($code:literal => $kind:ident $type:ty),*) => {
            match proto.data_type() {
                $($code => Data::$kind(
                    raw.chunks_exact(size_of::<$type>())
                        .map(|c| <$type>::from_le_bytes(c.try_into().unwrap()))
                        .collect(),
                ),)*
                9 => Data::Bool(raw.iter().map(|&b| b != 0).collect()),
                _ => return None,
            }
        };
    }
    let data = read!(
        1 => F32 f32, 11 => F64 f64, 10 => F16 half::f16, 16 => BF16 half::bf16,
        3 => I8 i8, 5 => I16 i16, 6 => I32 i32, 7 => I64 i64,
        2 => U8 u8, 4 => U16 u16, 12 => U32 u32, 13 => U64 u64
    );
    let size: usize = shape.iter().product();
    let tensor = Tensor { shape, data };
    (tensor.len() == size).then_some((proto, tensor))
}

/// The tensors of one side of a test data set, in order.
fn read(folder: &Path, side: &str) -> Option<Vec<(TensorProto, Tensor)>> {
    (0..)
        .map(|i| folder.join(format!("test_data_set_0/{side}_{i}.pb")))
        .map_while(|path| std::fs::read(path).ok())
        .map(|bytes| from_proto(&bytes))
        .collect()
}

/// A test with all inputs fed, and with all but the first as constants, which
/// is how real files have shapes and axes.
fn variants(model: &ModelProto, inputs: &[(TensorProto, Tensor)]) -> [(ModelProto, Feeds); 2] {
    let feeds = |inputs: &[(TensorProto, Tensor)]| -> Feeds {
        let named = |(proto, tensor): &(TensorProto, Tensor)| (proto.name().to_owned(), tensor.clone());
        inputs.iter().map(named).collect()
    };
    let mut fixed = model.clone();
    let graph = fixed.graph.as_mut().unwrap();
    for (proto, _) in inputs.iter().skip(1) {
        graph.input.retain(|input| input.name() != proto.name());
        graph.initializer.push(proto.clone());
    }
    let first = inputs.get(..1).unwrap_or_default();
    [(model.clone(), feeds(inputs)), (fixed, feeds(first))]
}

#[test]
fn what_tract_runs_of_the_onnx_node_tests_is_right() {
    let Some(folder) = std::env::var_os("ONNX_NODE_TESTS") else {
        println!("skipped: ONNX_NODE_TESTS is not set");
        return;
    };
    let (Some(reference), Some(tract)) = (onnx_runtime(None), built_in(None)) else {
        return;
    };
    let mut folders: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let (mut right, mut refused, mut wrong) = (0, 0, Vec::new());
    for folder in &folders {
        let sides = (read(folder, "input"), read(folder, "output"));
        let (Some(inputs), Some(outputs)) = sides else {
            continue;
        };
        let bytes = std::fs::read(folder.join("model.onnx")).unwrap();
        let model = ModelProto::decode(bytes.as_slice()).unwrap();
        let is_half = |(_, t): &(TensorProto, Tensor)| t.elem() == Elem::F16;
        let half = inputs.iter().chain(&outputs).any(is_half);
        let tolerance = if half { FLOAT16 } else { FLOAT32 };
        for (model, feeds) in variants(&model, &inputs) {
            // `None` where the engine refuses.
            let agrees = |engine: &dyn Engine, optimise| -> Option<bool> {
                let options = SessionOptions {
                    optimise,
                    outputs: None,
                };
                let mut session = engine.session(&model, &options).ok()?;
                let results = session.run(&feeds).ok()?;
                let close = |(result, (_, expected)): (&Tensor, &(_, Tensor))| {
                    difference(result, expected) <= tolerance
                };
                Some(results.iter().zip(&outputs).all(close))
            };
            if agrees(&*reference, false) != Some(true) {
                continue;
            }
            for optimise in [false, true] {
                match agrees(&*tract, optimise) {
                    Some(true) => right += 1,
                    Some(false) => wrong.push(folder.file_name().unwrap().to_owned()),
                    None => refused += 1,
                }
            }
        }
    }
    println!("tract: {right} right, {refused} refused");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(right > 0, "no test was run");
}
