//! Files of kinds that exporters and toolchains make: weights that are computed, ends that
//! no engine runs, decoders inside of nodes, axes that the graph leaves open.

use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_prune::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use onnx_prune::onnx::{self, proto};
use onnx_prune::tensor::{Data, Tensor};
use serde_json::Value;

use crate::common::{conforms, engine};

/// A small input that is shared between the projects that use it, where it is there.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/cases")
        .join(path);
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
    }
    (engine().is_some() && path.exists()).then_some(path)
}

/// Prunes a model with ONNX Runtime: the report and the result.
fn prune(model: &Path, extra: &[&str]) -> (Value, ModelProto) {
    let folder = tempfile::tempdir().unwrap();
    let (out, json) = (folder.path().join("out.onnx"), folder.path().join("out.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .args([model, &out])
        .args(extra)
        .args(["--threads", "1", "--engine", "ort", "--quiet", "--no-timing"])
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", model.display());
    conforms(&json);
    let report = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    (report, onnx::load(&out).unwrap().proto)
}

fn data(path: &Path) -> [&str; 2] {
    ["--data", path.to_str().unwrap()]
}

/// Units that are gone.
fn removed(report: &Value) -> u64 {
    let groups = report["groups"].as_array().unwrap();
    let gone = |g: &Value| g["units"].as_u64().unwrap() - g["kept"].as_array().unwrap().len() as u64;
    groups.iter().map(gone).sum()
}

fn warnings(report: &Value) -> Vec<&str> {
    let all = report["warnings"].as_array().unwrap();
    all.iter().map(|w| w["name"].as_str().unwrap()).collect()
}

fn macs(report: &Value) -> u64 {
    report["budget"]["whole_before"].as_u64().unwrap()
}

fn graph(model: &ModelProto) -> &GraphProto {
    model.graph.as_ref().unwrap()
}

#[test]
fn costs_have_the_sizes_of_the_data() {
    let Some(folder) = shared("cost-of-open-axes") else {
        return;
    };
    let arrays = folder.join("data.npz");
    // 60 patches of a 48 x 80 image in steps of 8, two products of 32 x 96 and a projection
    // of 192 numbers to 32: 60 x (192 x 32 + 2 x 32 x 96).
    let (report, _) = prune(&folder.join("h48.onnx"), &data(&arrays));
    assert_eq!(macs(&report), 60 * (192 * 32 + 2 * 32 * 96));
}

#[test]
fn open_axes_of_images_follow_from_patches_and_positions() {
    let Some(folder) = shared("vit-free-image-axes") else {
        return;
    };
    let (model, arrays) = (folder.join("vit.onnx"), folder.join("vit.npz"));
    let (seen, _) = prune(&model, &data(&arrays));
    let (implied, _) = prune(&model, &["--samples", "32"]);
    assert_eq!(macs(&seen), macs(&implied));
    assert!(macs(&seen) < 2_000_000);
}

#[test]
fn shapes_of_data_reach_the_timing() {
    let Some(folder) = shared("timing-shape") else {
        return;
    };
    let (report, _) = prune(&folder.join("model.onnx"), &data(&folder.join("data.npz")));
    assert_eq!(warnings(&report), Vec::<&str>::new());
}

#[test]
fn a_cache_without_a_head_size_takes_that_of_the_weights() {
    let Some(folder) = shared("genai-symbolic-head-dim") else {
        return;
    };
    let model = folder.join("model.onnx");
    let (with, _) = prune(&model, &data(&folder.join("calib_zero.npz")));
    let (without, _) = prune(&model, &["--samples", "32"]);
    assert!(removed(&with) > 0 && removed(&without) > 0);
}

#[test]
fn one_image_is_made_for_a_pair_of_towers() {
    let Some(folder) = shared("clip-images-axis") else {
        return;
    };
    let (made, _) = prune(&folder.join("model.onnx"), &["--samples", "32", "--seq", "24"]);
    assert!(macs(&made) < 5_000_000, "{}", macs(&made));
}

#[test]
fn packed_projections_get_narrower() {
    let Some(folder) = shared("packed-qkv-permute") else {
        return;
    };
    let (report, _) = prune(
        &folder.join("permute1.onnx"),
        &["--flops", "0.4", "--samples", "128"],
    );
    let kinds: Vec<&Value> = report["channels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["channels"])
        .collect();
    assert!(kinds.iter().any(|k| *k == "values"), "{kinds:?}");
    assert!(kinds.iter().any(|k| *k == "queries-and-keys"), "{kinds:?}");
    assert_eq!(warnings(&report), Vec::<&str>::new());
}

#[test]
fn scaled_integers_stay_integers() {
    let Some(folder) = shared("cast-mul-weights") else {
        return;
    };
    let (report, model) = prune(&folder.join("cast-mul.onnx"), &[]);
    assert!(removed(&report) > 0);
    let graph = graph(&model);
    let int8 = graph.initializer.iter().filter(|t| t.data_type() == 3).count();
    let casts = graph.node.iter().filter(|n| n.op_type() == "Cast").count();
    assert_eq!((int8, casts), (4, 4), "{:?}", graph.node);
    // Matrices of floats are none of them.
    let floats = graph.initializer.iter().filter(|t| t.data_type() == 1);
    assert!(
        floats
            .clone()
            .all(|t| t.dims.iter().filter(|d| **d > 1).count() <= 1)
    );
    for other in ["dq.onnx", "mul-float.onnx", "transpose.onnx"] {
        let (report, _) = prune(&folder.join(other), &[]);
        assert!(removed(&report) > 0, "{other}");
    }
}

#[test]
fn quantised_weights_are_counted_once() {
    let Some(folder) = shared("t5-int8-sequential") else {
        return;
    };
    let with = ["--samples", "32", "--seq", "16"];
    let count = |file: &str| {
        let (report, _) = prune(&folder.join(file), &with);
        assert!(!warnings(&report).contains(&"refit-local"), "{file}");
        report["size"]["parameters_before"].as_u64().unwrap()
    };
    let (float, int8) = (count("t5-float.onnx"), count("t5enc-gated-ts17-eager-int8.onnx"));
    // Scales and zero points come on top.
    assert!(int8 >= float && int8 < float + float / 50, "{float} {int8}");
}

#[test]
fn both_branches_of_a_merged_decoder_lose_the_same_neurons() {
    let Some(folder) = shared("merged-if") else { return };
    let model = folder.join("decoder_model_merged.onnx");
    for extra in [
        vec!["--samples", "32"],
        data(&folder.join("calib_merged_true.npz")).to_vec(),
    ] {
        let (report, pruned) = prune(&model, &extra);
        assert!(removed(&report) > 0);
        let [node] = &graph(&pruned).node[..] else {
            panic!("the If stays")
        };
        assert_eq!(node.op_type(), "If");
        // Weights lie outside, once, and all inputs are there.
        let inside = node
            .attribute
            .iter()
            .flat_map(|a| &a.g)
            .map(|g| g.initializer.len());
        assert_eq!(inside.sum::<usize>(), 0);
        let dense = onnx::load(&model).unwrap().proto;
        assert_eq!(graph(&dense).input, graph(&pruned).input);
        let bytes = |m: &ModelProto| onnx::encode(m).len();
        assert!(bytes(&pruned) < bytes(&dense));
        onnx::validate(&pruned).unwrap();
    }
}

#[test]
fn what_a_beam_search_runs_is_pruned() {
    let Some(folder) = shared("beam-search") else {
        return;
    };
    let (report, pruned) = prune(
        &folder.join("beam_shared.onnx"),
        &["--samples", "32", "--seq", "16"],
    );
    assert!(removed(&report) > 0);
    assert_eq!(graph(&pruned).node[0].op_type(), "BeamSearch");
    onnx::validate(&pruned).unwrap();
}

#[test]
fn half_precision_without_kernels_is_measured_and_kept() {
    let Some(folder) = shared("bf16-compute") else {
        return;
    };
    let (report, pruned) = prune(&folder.join("model.onnx"), &["--samples", "32", "--seq", "16"]);
    assert!(removed(&report) > 0);
    let notes = report["notes"].to_string();
    assert!(notes.contains("float32"), "{notes}");
    let of = |model: &ModelProto, code: i32| {
        let own = graph(model).initializer.iter().filter(|t| t.data_type() == code);
        own.count()
    };
    let dense = onnx::load(&folder.join("model.onnx")).unwrap().proto;
    assert_eq!(of(&pruned, 16), of(&dense, 16));
    assert_eq!(of(&pruned, 1), of(&dense, 1));
}

#[test]
fn ends_that_no_engine_runs_are_written_again() {
    if let Some(folder) = shared("custom-op-end") {
        let (report, pruned) = prune(&folder.join("model.onnx"), &["--samples", "32"]);
        assert_eq!(warnings(&report), ["operators"]);
        assert_eq!(graph(&pruned).node.last().unwrap().op_type(), "TopLabels");
        assert_eq!(graph(&pruned).output[0].name(), "labels");
    }
    if let Some(folder) = shared("tokenizer-inside") {
        let (report, pruned) = prune(&folder.join("model.onnx"), &["--samples", "32"]);
        assert!(removed(&report) > 0);
        assert_eq!(graph(&pruned).node[0].op_type(), "BertTokenizer");
        assert_eq!(graph(&pruned).input[0].name(), "text");
    }
}

#[test]
fn a_table_is_stored_once() {
    let Some(folder) = shared("tied-transposed-copy") else {
        return;
    };
    let (report, pruned) = prune(&folder.join("model.onnx"), &["--samples", "32"]);
    let passes = report["lossless"].to_string();
    assert!(passes.contains("copies"), "{passes}");
    let tables = graph(&pruned)
        .initializer
        .iter()
        .filter(|t| t.dims.contains(&2500) && t.dims.len() == 2);
    assert_eq!(tables.count(), 1);
}

#[test]
fn the_bound_is_the_number_that_is_told() {
    let Some(folder) = shared("max-drop-units") else {
        return;
    };
    let (report, _) = prune(
        &folder.join("four.onnx"),
        &["--max-drop", "0.05", "--samples", "128"],
    );
    let first = &report["held_out"]["outputs"][0];
    assert_eq!(first["name"], "y1");
    assert_eq!(first["measure"], "1 - cosine");
    assert!(first["divergence"].as_f64().unwrap() <= 0.05);
}

/// A model of the fixtures, its parts, and a place to write another to.
fn bert() -> (ModelProto, tempfile::TempDir) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/text-language/model.onnx");
    (onnx::load(&path).unwrap().proto, tempfile::tempdir().unwrap())
}

fn written(model: &ModelProto, folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, onnx::encode(model)).unwrap();
    path
}

fn node(op: &str, inputs: &[String], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.to_vec(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// A low-rank update that was not merged and one that is scaled by zero change nothing, and
/// the model is pruned as it would be without.
#[test]
fn low_rank_updates_are_part_of_the_weight() {
    if engine().is_none() {
        return;
    }
    let (plain, folder) = bert();
    let mut model = plain.clone();
    let own = model.graph.as_mut().unwrap();
    let read: Vec<String> = own
        .node
        .iter()
        .filter(|n| n.op_type() == "MatMul")
        .map(|n| n.input[1].clone())
        .collect();
    let mut updated = 0;
    for at in 0..own.initializer.len() {
        let weight = own.initializer[at].clone();
        let [rows, columns] = weight.dims[..] else {
            continue;
        };
        if !read.contains(&weight.name().to_owned()) {
            continue;
        }
        let name = weight.name().to_owned();
        let part = |what: &str| format!("{name}.{what}");
        own.initializer[at].name = Some(part("base"));
        let down = Tensor::f32([rows as usize, 2], vec![0.5; rows as usize * 2]);
        let up = Tensor::f32([2, columns as usize], vec![0.0; columns as usize * 2]);
        own.initializer.push(onnx::tensor_proto(&part("down"), &down));
        own.initializer.push(onnx::tensor_proto(&part("up"), &up));
        let product = node("MatMul", &[part("down"), part("up")], &part("update"));
        let sum = node("Add", &[part("base"), part("update")], &name);
        own.node.insert(0, sum);
        own.node.insert(0, product);
        updated += 1;
    }
    assert!(updated > 5, "{updated}");
    let with = ["--samples", "64", "--seq", "16"];
    let (updated, _) = prune(&written(&model, &folder), &with);
    let (plain, _) = prune(
        &written(&plain, &folder),
        &["--no-narrow", "--samples", "64", "--seq", "16"],
    );
    let kept = |report: &Value| {
        let groups = report["groups"].as_array().unwrap();
        groups.iter().map(|g| g["kept"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&updated), kept(&plain));
}

/// Operators behind the model that nobody knows stay, with their constants.
#[test]
fn an_unknown_operator_behind_the_model_stays() {
    if engine().is_none() {
        return;
    }
    let (mut model, folder) = bert();
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("somebody.else".to_owned()),
        version: Some(1),
    });
    let own = model.graph.as_mut().unwrap();
    let first = own.output[0].name().to_owned();
    let table = Tensor::new(vec![2], Data::I64(vec![7, 9]));
    own.initializer.push(onnx::tensor_proto("labels_table", &table));
    // A constant that is a node, which nothing else reads.
    let mut words = node("Constant", &[], "labels_words");
    words.attribute.push(AttributeProto {
        name: Some("value_ints".to_owned()),
        r#type: Some(proto::attribute_proto::AttributeType::Ints as i32),
        ints: vec![1, 2, 3],
        ..AttributeProto::default()
    });
    own.node.insert(0, words);
    let reads = [first, "labels_table".to_owned(), "labels_words".to_owned()];
    let mut last = node("Label", &reads, "labels");
    last.domain = Some("somebody.else".to_owned());
    last.attribute.push(AttributeProto {
        name: Some("words".to_owned()),
        r#type: Some(proto::attribute_proto::AttributeType::Int as i32),
        i: Some(3),
        ..AttributeProto::default()
    });
    own.node.push(last.clone());
    let mut labels = own.output[0].clone();
    labels.name = Some("labels".to_owned());
    own.output = vec![labels];
    let (report, pruned) = prune(&written(&model, &folder), &["--samples", "32", "--seq", "16"]);
    assert_eq!(warnings(&report), ["operators"]);
    let pruned = graph(&pruned);
    assert_eq!(pruned.node.last(), Some(&last));
    assert_eq!(pruned.output.len(), 1);
    assert!(pruned.initializer.iter().any(|t| t.name() == "labels_table"));
    let made = pruned
        .node
        .iter()
        .flat_map(|n| &n.output)
        .filter(|o| *o == "labels_words");
    assert_eq!(made.count(), 1);
}

/// A weight as `MatMulNBits` has it: blocks of 32, the middle of the range as zero or, with
/// `zeros`, a zero point for each.
fn four_bits(weight: &Tensor, zeros: bool) -> Vec<Tensor> {
    let [k, n] = weight.shape[..] else {
        panic!("a matrix")
    };
    let (values, blocks) = (weight.to_f32(), k.div_ceil(32));
    let (mut packed, mut scales) = (vec![0u8; n * blocks * 16], Vec::new());
    let mut points = vec![0u8; n * blocks.div_ceil(2)];
    for column in 0..n {
        for block in 0..blocks {
            let rows = block * 32..((block + 1) * 32).min(k);
            let own: Vec<f32> = rows.map(|row| values[row * n + column]).collect();
            let most = own.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
            // With zero points off the middle, nothing is symmetric.
            let zero = if zeros { 7 } else { 8 };
            points[column * blocks.div_ceil(2) + block / 2] |= zero << (4 * (block % 2));
            scales.push(most / 7.0);
            for (at, value) in own.iter().enumerate() {
                let quantised = (value / (most / 7.0) + f32::from(zero)).round().clamp(0.0, 15.0) as u8;
                packed[(column * blocks + block) * 16 + at / 2] |= quantised << (4 * (at % 2));
            }
        }
    }
    let mut tensors = vec![
        Tensor::new(vec![n, blocks, 16], Data::U8(packed)),
        Tensor::f32([n * blocks], scales),
    ];
    if zeros {
        tensors.push(Tensor::new(vec![points.len()], Data::U8(points)));
    }
    tensors
}

/// Weights of four bits are pruned, re-fitted and stay weights of four bits.
#[test]
fn four_bits_stay_four_bits() {
    if engine().is_none() {
        return;
    }
    let int = |name: &str, i: usize| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(proto::attribute_proto::AttributeType::Int as i32),
        i: Some(i as i64),
        ..AttributeProto::default()
    };
    for zeros in [false, true] {
        let (mut model, folder) = bert();
        model.opset_import.push(OperatorSetIdProto {
            domain: Some("com.microsoft".to_owned()),
            version: Some(1),
        });
        let own = model.graph.as_mut().unwrap();
        let mut quantised = 0;
        for node in own.node.iter_mut().filter(|n| n.op_type() == "MatMul") {
            let name = node.input[1].clone();
            let Some(weight) = own.initializer.iter().find(|t| t.name() == name) else {
                continue;
            };
            let weight = onnx::tensor(weight).unwrap();
            node.op_type = Some("MatMulNBits".to_owned());
            node.domain = Some("com.microsoft".to_owned());
            node.input.truncate(1);
            node.attribute = vec![
                int("K", weight.shape[0]),
                int("N", weight.shape[1]),
                int("bits", 4),
                int("block_size", 32),
            ];
            for (at, tensor) in four_bits(&weight, zeros).into_iter().enumerate() {
                let part = format!("{name}.{at}");
                own.initializer.push(onnx::tensor_proto(&part, &tensor));
                node.input.push(part);
            }
            own.initializer.retain(|t| t.name() != name);
            quantised += 1;
        }
        assert!(quantised > 10);
        let (report, pruned) = prune(&written(&model, &folder), &["--samples", "64", "--seq", "16"]);
        assert!(removed(&report) > 0);
        assert_eq!(warnings(&report), Vec::<&str>::new());
        let of = |op: &str| graph(&pruned).node.iter().filter(|n| n.op_type() == op).count();
        assert!(of("MatMulNBits") > quantised / 2, "{}", of("MatMulNBits"));
        let agreement = report["held_out"]["outputs"][0]["agreement"].as_f64().unwrap();
        assert!(agreement > 0.8, "{agreement}");
    }
}
