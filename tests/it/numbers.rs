//! Numbers that are none, and data of which there is next to nothing: a sound
//! result or an error that names the place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use onnx_prune::io::npz;
use onnx_prune::onnx::proto::{ModelProto, TensorProto};
use onnx_prune::onnx::{self, SaveOptions};
use onnx_prune::tensor::{Data, Tensor};

use crate::common::{fixture, text};

fn run(model: &Path, out: &Path, extra: &[&str]) -> Output {
    let given = |option: &str| extra.contains(&option);
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
    command
        .args([model, out])
        .args(["--engine", "tract", "--quiet", "--probe", "8"])
        .args(extra);
    if !given("--threads") {
        command.args(["--threads", "1"]);
    }
    command.output().unwrap()
}

/// The digits with one number changed in a constant.
fn damaged(folder: &Path, which: impl Fn(&TensorProto) -> bool, value: f32) -> (PathBuf, String) {
    let mut model = onnx::load(&fixture("digits-vit/model.onnx")).unwrap().proto;
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    let tensor = tensors.iter_mut().find(|t| which(t)).unwrap();
    let mut raw = tensor.raw_data.as_ref().unwrap().to_vec();
    raw[4 * 259..4 * 260].copy_from_slice(&value.to_le_bytes());
    tensor.raw_data = Some(raw.into());
    let name = tensor.name().to_owned();
    let path = folder.join("damaged.onnx");
    onnx::save(&model, &path, &SaveOptions::default()).unwrap();
    (path, name)
}

/// The first weight that makes neurons.
fn up(tensor: &TensorProto) -> bool {
    tensor.dims == [64, 256]
}

#[test]
fn damaged_weights_are_named_whatever_the_method() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let data = fixture("digits-vit/calibration.npz");
    let with_data = ["--data", data.to_str().unwrap(), "--samples", "8"];
    for (value, says) in [
        (f32::NAN, "is NaN at [1, 3]"),
        (f32::INFINITY, "is infinite at [1, 3]"),
        (f32::NEG_INFINITY, "is infinite at [1, 3]"),
    ] {
        let (model, name) = damaged(folder.path(), up, value);
        for extra in [&["--method", "magnitude"][..], &with_data] {
            let result = run(&model, &out, extra);
            assert_eq!(result.status.code(), Some(2), "{}", text(&result));
            for part in [says, &format!("'{name}'"), "node 'node_MatMul"] {
                assert!(text(&result).contains(part), "{part}: {}", text(&result));
            }
            assert!(!out.exists());
        }
    }
}

#[test]
fn numbers_too_large_to_square_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let data = fixture("digits-vit/calibration.npz");
    let (model, _) = damaged(folder.path(), up, 1e30);
    let result = run(
        &model,
        &out,
        &["--data", data.to_str().unwrap(), "--samples", "8"],
    );
    assert_eq!(result.status.code(), Some(2), "{}", text(&result));
    assert!(text(&result).contains("overflow"), "{}", text(&result));
    assert!(!out.exists());
}

/// A feed-forward block in float16 whose neurons come in pairs of equal ones: where
/// one of a pair goes, the other gets twice its weights.
fn twins(folder: &Path, weight: f32) -> (PathBuf, PathBuf) {
    use onnx_prune::onnx::proto;
    use proto::tensor_shape_proto::dimension::Value;
    let sizes = [
        Value::DimParam("batch".into()),
        Value::DimValue(4),
        Value::DimValue(8),
    ];
    let info = |name: &str| crate::models::shaped(name, sizes.clone());
    let node = |op: &str, inputs: &[&str], output: &str, to: Option<i64>| proto::NodeProto {
        name: Some(format!("make_{output}")),
        op_type: Some(op.into()),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        attribute: to
            .map(|to| proto::AttributeProto {
                name: Some("to".into()),
                r#type: Some(proto::attribute_proto::AttributeType::Int as i32),
                i: Some(to),
                ..proto::AttributeProto::default()
            })
            .into_iter()
            .collect(),
        ..proto::NodeProto::default()
    };
    let half = |values: Vec<f32>| Data::F16(values.into_iter().map(half::f16::from_f32).collect());
    // Column 2k and column 2k + 1 read the input alike.
    let up = (0..8 * 16).map(|i| if i / 16 == i % 16 / 2 { 1e-3 } else { 0.0 });
    let up = Tensor::new(vec![8, 16], half(up.collect()));
    let down = (0..16 * 8).map(|i| if i % 8 == i / 8 / 2 { weight } else { 0.0 });
    let down = Tensor::new(vec![16, 8], half(down.collect()));
    let graph = proto::GraphProto {
        node: vec![
            node("Cast", &["x"], "x16", Some(10)),
            node("MatMul", &["x16", "up"], "wide", None),
            node("Relu", &["wide"], "active", None),
            node("MatMul", &["active", "down"], "narrow", None),
            node("Add", &["x16", "narrow"], "sum", None),
            node("Cast", &["sum"], "y", Some(1)),
        ],
        initializer: vec![onnx::tensor_proto("up", &up), onnx::tensor_proto("down", &down)],
        input: vec![info("x")],
        output: vec![info("y")],
        ..proto::GraphProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSetIdProto {
            version: Some(17),
            ..proto::OperatorSetIdProto::default()
        }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    let path = folder.join("twins.onnx");
    onnx::save(&model, &path, &SaveOptions::default()).unwrap();
    let values: Vec<f32> = (0..64 * 4 * 8)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    let data = archive(folder, &[("x", Tensor::f32(vec![64, 4, 8], values))]);
    (path, data)
}

#[test]
fn refitted_weights_that_overflow_float16_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let halve = |weight: f32, reconstruct: &str| {
        let (model, data) = twins(folder.path(), weight);
        let data = data.to_str().unwrap();
        let extra = ["--flops", "0.5", "--reconstruct", reconstruct, "--data", data];
        run(&model, &out, &extra)
    };
    // 40000 fits float16, twice as much does not.
    for reconstruct in ["local", "sequential"] {
        let result = halve(4e4, reconstruct);
        assert_eq!(result.status.code(), Some(2), "{}", text(&result));
        for part in ["'down'", "overflow F16", "--reconstruct none"] {
            assert!(text(&result).contains(part), "{part}: {}", text(&result));
        }
        assert!(!out.exists());
    }
    let result = halve(2e4, "local");
    assert!(result.status.success(), "{}", text(&result));
    let small = onnx::load(&out).unwrap().proto;
    let down = small
        .graph
        .unwrap()
        .initializer
        .into_iter()
        .find(|t| t.name() == "down");
    let down = onnx::tensor(&down.unwrap()).unwrap();
    let most = down.to_f32().into_iter().fold(0.0, f32::max);
    assert!(
        (3.5e4..4.5e4).contains(&most),
        "the twins did not take over: {most}"
    );
    // What is only sliced keeps its values.
    let result = halve(4e4, "none");
    assert!(result.status.success(), "{}", text(&result));
}

/// Arrays in an archive.
fn archive(folder: &Path, arrays: &[(&str, Tensor)]) -> PathBuf {
    let path = folder.join("data.npz");
    npz::write(&path, arrays.iter().map(|(name, array)| (*name, array))).unwrap();
    path
}

#[test]
fn data_that_are_no_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = vec![0.5f32; 4 * 64];
    images[3 * 64] = f32::NAN;
    let data = archive(
        folder.path(),
        &[("pixel_values", Tensor::f32(vec![4, 1, 8, 8], images))],
    );
    let out = folder.path().join("out.onnx");
    let result = run(
        &fixture("digits-vit/model.onnx"),
        &out,
        &["--data", data.to_str().unwrap()],
    );
    assert_eq!(result.status.code(), Some(2), "{}", text(&result));
    for part in ["data.npz", "'pixel_values'", "NaN", "value 192"] {
        assert!(text(&result).contains(part), "{part}: {}", text(&result));
    }
}

/// A run over token ids that gives a model which is loaded and checked.
fn tokens(ids: &[Vec<i64>], mask: impl Fn(usize, usize) -> i64) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (rows, length) = (ids.len(), ids.first().map_or(0, Vec::len));
    let flags = (0..rows).flat_map(|r| (0..length).map(move |t| (r, t)));
    let flags: Vec<i64> = flags.map(|(r, t)| mask(r, t)).collect();
    let data = archive(
        folder.path(),
        &[
            ("input_ids", Tensor::i64(vec![rows, length], ids.concat())),
            ("attention_mask", Tensor::i64(vec![rows, length], flags)),
        ],
    );
    let out = folder.path().join("out.onnx");
    let model = fixture("text-language/model.onnx");
    let result = run(&model, &out, &["--data", data.to_str().unwrap()]);
    match result.status.code() {
        Some(0) => finite(&onnx::load(&out).unwrap().proto),
        _ => assert!(!out.exists()),
    }
    result
}

/// Every weight is a number.
fn finite(model: &ModelProto) {
    onnx::validate(model).unwrap();
    for tensor in &model.graph.as_ref().unwrap().initializer {
        if tensor.data_type() == 1 {
            let values = onnx::tensor(tensor).unwrap().to_f32();
            assert!(values.iter().all(|v| v.is_finite()), "{}", tensor.name());
        }
    }
}

/// Rows of ids that differ.
fn ids(rows: usize, length: usize) -> Vec<Vec<i64>> {
    let id = |r: usize, t: usize| 5 + ((7 * r + 3 * t) % 50) as i64;
    (0..rows)
        .map(|r| (0..length).map(|t| id(r, t)).collect())
        .collect()
}

#[test]
fn next_to_no_data_gives_a_sound_model() {
    // Fewer rows than units everywhere: all Gram matrices are singular.
    for (what, result) in [
        ("one sample", tokens(&ids(1, 6), |_, _| 1)),
        ("one token each", tokens(&ids(4, 1), |_, _| 1)),
        ("one token in all", tokens(&ids(1, 1), |_, _| 1)),
        ("constant activations", tokens(&vec![vec![7; 6]; 4], |_, _| 1)),
        (
            "a sample of padding",
            tokens(&ids(4, 6), |r, _| i64::from(r != 1)),
        ),
        ("padding in front", tokens(&ids(4, 6), |r, t| i64::from(t >= r))),
    ] {
        assert_eq!(result.status.code(), Some(0), "{what}: {}", text(&result));
    }
}

#[test]
fn no_data_at_all_is_an_error() {
    for (what, result) in [
        ("no samples", tokens(&[], |_, _| 1)),
        ("empty sequences", tokens(&vec![Vec::new(); 4], |_, _| 1)),
        ("padding only", tokens(&ids(4, 6), |_, _| 0)),
    ] {
        assert_eq!(result.status.code(), Some(2), "{what}: {}", text(&result));
        let said = text(&result);
        assert!(
            said.contains("there are no samples") || said.contains("shape"),
            "{what}: {said}"
        );
    }
}

/// What stays, by group.
fn kept(model: &str, data: &str, threads: &str) -> BTreeMap<String, Vec<u64>> {
    let folder = tempfile::tempdir().unwrap();
    let (out, json) = (folder.path().join("out.onnx"), folder.path().join("out.json"));
    let (model, data) = (fixture(model), fixture(data));
    let mut words = vec!["--threads", threads, "--samples", "32", "--flops", "0.5"];
    words.extend(["--reconstruct", "local"]);
    words.extend(["--data", data.to_str().unwrap(), "--json", json.to_str().unwrap()]);
    let tokenizer = fixture("text-language/tokenizer.json");
    if data.extension().is_some_and(|e| e == "txt") {
        words.extend(["--tokenizer", tokenizer.to_str().unwrap()]);
    }
    let result = run(&model, &out, &words);
    assert!(result.status.success(), "{}", text(&result));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let units = |group: &serde_json::Value| {
        let all = group["kept"].as_array().unwrap();
        all.iter().map(|u| u.as_u64().unwrap()).collect()
    };
    let groups = report["groups"].as_array().unwrap();
    groups
        .iter()
        .map(|g| (g["name"].as_str().unwrap().to_owned(), units(g)))
        .collect()
}

/// Sums are taken in another order with other threads; what stays is the same, but
/// for units between which the numbers do not decide.
#[test]
fn the_number_of_threads_does_not_change_the_mask() {
    let digits = ("digits-vit/model.onnx", "digits-vit/calibration.npz");
    let texts = ("text-language/model.onnx", "text-language/calibration.txt");
    for ((model, data), threads) in [(digits, &["2", "3"][..]), (texts, &["2"])] {
        let one = kept(model, data, "1");
        for threads in threads {
            let other = kept(model, data, threads);
            assert!(one == other, "{model} with {threads} threads");
        }
    }
}
