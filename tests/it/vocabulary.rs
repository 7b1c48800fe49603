//! A smaller vocabulary on a trained model: the tokenizer that is written goes with the model.

use std::path::Path;
use std::process::Command;

use onnx_prune::onnx;
use serde_json::Value;

use crate::common::{conforms, fixture, text};

fn run(words: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
    command.args(words).args(["--engine", "tract", "--threads", "1"]);
    command.output().unwrap()
}

/// Rows of the largest constant.
fn rows(path: &Path) -> i64 {
    let model = onnx::load(path).unwrap().proto;
    let graph = model.graph.unwrap();
    let largest = graph
        .initializer
        .iter()
        .max_by_key(|t| t.dims.iter().product::<i64>());
    largest.map_or(0, |t| t.dims[0])
}

#[test]
fn tables_lose_the_rows_of_tokens_that_do_not_occur() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, tokenizer) = (
        fixture("text-language/model.onnx"),
        fixture("text-language/tokenizer.json"),
    );
    let texts = fixture("text-language/calibration.txt");
    // A tenth of the texts.
    let few: Vec<String> = std::fs::read_to_string(&texts)
        .unwrap()
        .lines()
        .step_by(10)
        .map(String::from)
        .collect();
    std::fs::write(at("few.txt"), few.join("\n")).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (out, json, few) = (path(&at("out.onnx")), path(&at("r.json")), path(&at("few.txt")));
    let common = |input: &str, tokenizer: &str, out: &str| -> Vec<String> {
        let words = [
            input,
            out,
            "--data",
            &few,
            "--tokenizer",
            tokenizer,
            "--no-timing",
            "--quiet",
            "--flops",
            "0.9",
        ];
        words.map(String::from).into()
    };
    let mut words = common(&path(&model), &path(&tokenizer), &out);
    words.extend(["--vocab", "data", "--vocab-keep", "5", "--json", &json].map(String::from));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = run(&words);
    assert!(result.status.success(), "{}", text(&result));
    conforms(Path::new(&json));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let told = &report["vocabulary"];
    let (before, after) = (told["before"].as_u64().unwrap(), told["after"].as_u64().unwrap());
    assert!(after < before && after > 20, "{told}");
    let vocabulary: Value =
        serde_json::from_str(&std::fs::read_to_string(told["tokenizer"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!(
        vocabulary["model"]["vocab"].as_object().unwrap().len() as u64,
        after
    );
    let names: Vec<&str> = told["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let pruned = onnx::load(Path::new(&out)).unwrap().proto.graph.unwrap();
    let table = pruned.initializer.iter().find(|t| t.name() == names[0]).unwrap();
    assert_eq!(table.dims[0] as u64, after);
    assert!(rows(&model) > after as i64);
    // What was written is used like any other pair.
    let again = path(&at("again.onnx"));
    let own = path(&at("out.tokenizer.json"));
    let words = common(&out, &own, &again);
    let result = run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(result.status.success(), "{}", text(&result));
    // One tokenizer cannot cut texts for both.
    let compared = run(&[
        "compare",
        &out,
        &path(&model),
        "--data",
        &few,
        "--tokenizer",
        &own,
    ]);
    assert_eq!(compared.status.code(), Some(2), "{}", text(&compared));
    assert!(
        text(&compared).contains("tokens have other ids"),
        "{}",
        text(&compared)
    );
    let lone = run(&[&*path(&model), &*again, "--vocab-drop-in"]);
    assert_eq!(lone.status.code(), Some(2), "{}", text(&lone));
    assert!(
        text(&lone).contains("--vocab-drop-in is for --vocab"),
        "{}",
        text(&lone)
    );
    // Ids of the whole vocabulary mean nothing to it.
    let arrays = path(&fixture("digits-vit/calibration.npz"));
    let result = run(&[
        &path(&model),
        &again,
        "--vocab",
        &few,
        "--tokenizer",
        &path(&tokenizer),
        "--data",
        &arrays,
    ]);
    assert_eq!(result.status.code(), Some(2), "{}", text(&result));
    assert!(
        text(&result).contains("ids of the whole vocabulary"),
        "{}",
        text(&result)
    );
}

#[test]
fn with_a_table_of_ids_inside_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let texts = std::fs::read_to_string(fixture("text-language/calibration.txt")).unwrap();
    let few: Vec<&str> = texts.lines().step_by(8).collect();
    std::fs::write(at("few.txt"), few.join("\n")).unwrap();
    let word = |path: &Path| path.to_str().unwrap().to_owned();
    let (few, out, json) = (word(&at("few.txt")), word(&at("out.onnx")), word(&at("r.json")));
    let model = word(&fixture("text-language/model.onnx"));
    let tokenizer = word(&fixture("text-language/tokenizer.json"));
    let common = ["--data", &few, "--tokenizer", &tokenizer, "--no-join"];
    let prune = [
        "--flops",
        "1",
        "--vocab",
        "data",
        "--vocab-keep",
        "0",
        "--vocab-drop-in",
    ];
    let quiet = ["--no-timing", "--quiet", "--json", &json];
    let done = run(&[&[&*model, &*out], &common[..], &prune, &quiet].concat());
    assert!(done.status.success(), "{}", text(&done));
    conforms(Path::new(&json));
    assert!(!at("out.tokenizer.json").exists());
    assert!(rows(Path::new(&out)) < rows(Path::new(&model)));
    // The same tokenizer, the same answers on these texts.
    let compared = run(&[&["compare", &*out, &*model], &common[..], &["--json"]].concat());
    assert!(compared.status.success(), "{}", text(&compared));
    let found: Value = serde_json::from_slice(&compared.stdout).unwrap();
    for output in found["outputs"].as_array().unwrap() {
        assert!(output["relative_max"].as_f64().unwrap() < 1e-5, "{output}");
    }
}

#[test]
fn scripts_choose_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let out = out.to_str().unwrap();
    let model = fixture("text-language/model.onnx");
    let model = model.to_str().unwrap();
    let tokenizer = fixture("text-language/tokenizer.json");
    let common = [
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--no-timing",
        "--quiet",
        "--flops",
        "1",
    ];
    let done = run(&[&[model, out], &common[..], &["--vocab-languages", "latin"]].concat());
    assert!(done.status.success(), "{}", text(&done));
    // It is of English texts: all stays.
    let whole = rows(Path::new(model));
    let kept = rows(Path::new(out));
    assert!(kept > whole * 3 / 4 && kept <= whole, "{kept} of {whole}");
    // Where no text has only tokens that stay nothing can be compared, and nothing is wrong.
    let texts = fixture("text-language/calibration.txt");
    for drop_in in [&[][..], &["--vocab-drop-in"]] {
        let han = ["--vocab-languages", "han", "--data", texts.to_str().unwrap()];
        let done = run(&[&[model, out], &common[..], &han, drop_in].concat());
        assert!(done.status.success(), "{}", text(&done));
    }
    let done = run(&[&[model, out], &common[..], &["--vocab-languages", "latin,elvish"]].concat());
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done).contains("no script 'elvish'"), "{}", text(&done));
}

/// Probabilities are among the tokens that stay, and those of tokens that are gone are zero.
#[test]
fn outputs_may_be_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let word = |name: &str| at(name).to_str().unwrap().to_owned();
    let mut model = onnx::load(&fixture("text-language/model.onnx")).unwrap().proto;
    let graph = model.graph.as_mut().unwrap();
    // A head that is tied to the table of tokens.
    let lookup = graph
        .node
        .iter()
        .find(|n| n.op_type() == "Gather" && n.input[1] == "input_ids");
    let (table, rows) = lookup.map(|n| (n.input[0].clone(), n.output[0].clone())).unwrap();
    let node = |op: &str, inputs: &[&str], output: &str| onnx::proto::NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    graph.node.extend([
        node("Transpose", &[&table], "head"),
        node("MatMul", &[&rows, "head"], "scores"),
        node("Softmax", &["scores"], "probabilities"),
    ]);
    graph.output.push(onnx::proto::ValueInfoProto {
        name: Some("probabilities".into()),
        ..graph.output[0].clone()
    });
    let shape = graph.output[1].r#type.as_mut().and_then(|t| t.value.as_mut());
    if let Some(onnx::proto::type_proto::Value::TensorType(tensor)) = shape {
        let dim = |value| onnx::proto::tensor_shape_proto::Dimension {
            value: Some(value),
            ..Default::default()
        };
        use onnx::proto::tensor_shape_proto::dimension::Value::{DimParam, DimValue};
        let width = graph.initializer.iter().find(|t| t.name() == table).unwrap().dims[0];
        tensor.shape.as_mut().unwrap().dim = vec![
            dim(DimParam("batch".into())),
            dim(DimParam("sequence".into())),
            dim(DimValue(width)),
        ];
    }
    onnx::save(&model, &at("softmax.onnx"), &onnx::SaveOptions::default()).unwrap();
    let texts = std::fs::read_to_string(fixture("text-language/calibration.txt")).unwrap();
    let few: Vec<&str> = texts.lines().step_by(8).collect();
    std::fs::write(at("few.txt"), few.join("\n")).unwrap();
    let tokenizer = fixture("text-language/tokenizer.json");
    let (input, few, json) = (word("softmax.onnx"), word("few.txt"), word("r.json"));
    let common = [
        "--data",
        &few,
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--vocab",
        "data",
        "--vocab-keep",
        "0",
        "--method",
        "magnitude",
        "--reconstruct",
        "none",
        "--no-timing",
        "--quiet",
        "--json",
        &json,
    ];
    for more in [&[][..], &["--vocab-drop-in"]] {
        let out = word("out.onnx");
        let done = run(&[&[&*input, &*out], &common[..], more].concat());
        assert!(done.status.success(), "{more:?}: {}", text(&done));
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
        let told = &report["vocabulary"];
        assert!(told["after"].as_u64() < told["before"].as_u64(), "{told}");
        assert!(
            !report["warnings"].to_string().contains("\"vocabulary\""),
            "{}",
            report["warnings"]
        );
    }
    let pruned = onnx::load(&at("out.onnx")).unwrap().proto.graph.unwrap();
    let gone = pruned
        .initializer
        .iter()
        .find(|t| t.name().ends_with("_gone"))
        .unwrap();
    assert_eq!(onnx::tensor(gone).unwrap().to_f32(), [0.0]);
}
