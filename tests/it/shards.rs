//! Calibration apart from pruning: parts add up to the whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use onnx_prune::io::npz;
use onnx_prune::tensor::Tensor;

fn fixture(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path);
    path.to_str().unwrap().to_owned()
}

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .current_dir(folder)
        .args(args)
        .output()
        .unwrap()
}

fn must(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

/// Two halves of the calibration images.
fn halves(folder: &Path) -> [PathBuf; 2] {
    let all = npz::read(Path::new(&fixture("digits-vit/calibration.npz"))).unwrap();
    let images = &all["pixel_values"];
    let (values, row) = (images.to_f32(), images.len() / images.shape[0]);
    let middle = images.shape[0] / 2 - 9;
    let part = |name: &str, values: &[f32]| {
        let mut shape = images.shape.clone();
        shape[0] = values.len() / row;
        let path = folder.join(name);
        let array = Tensor::f32(shape, values.to_vec());
        npz::write(&path, [("pixel_values", &array)]).unwrap();
        path
    };
    let (first, second) = values.split_at(middle * row);
    [part("first.npz", first), part("second.npz", second)]
}

const ENGINE: [&str; 4] = ["--engine", "tract", "--threads", "1"];

fn calibrate(folder: &Path, model: &str, data: &str, output: &str) {
    let args = [
        "calibrate",
        model,
        "--data",
        data,
        "-o",
        output,
        "--keep-samples",
        "0",
    ];
    must(folder, &[&args[..], &ENGINE].concat());
}

/// What stays of each group, and the report.
fn prune(folder: &Path, extra: &[&str]) -> (BTreeMap<String, Vec<u64>>, serde_json::Value) {
    let model = fixture("digits-vit/model.onnx");
    let args = [&model, "small.onnx", "--json", "-", "--quiet", "--probe", "24"];
    let output = run(folder, &[&args[..], &ENGINE, extra].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json = folder.join("report.json");
    std::fs::write(&json, &output.stdout).unwrap();
    crate::common::conforms(&json);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let groups = report["groups"].as_array().unwrap();
    let kept = |g: &serde_json::Value| {
        g["kept"]
            .as_array()
            .unwrap()
            .iter()
            .map(|k| k.as_u64().unwrap())
            .collect()
    };
    let mask = groups
        .iter()
        .map(|g| (g["name"].as_str().unwrap().to_owned(), kept(g)))
        .collect();
    (mask, report)
}

#[test]
fn merged_shards_prune_like_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = fixture("digits-vit/model.onnx");
    let [first, second] = halves(folder);
    calibrate(folder, &model, first.to_str().unwrap(), "a.safetensors");
    calibrate(folder, &model, second.to_str().unwrap(), "b.safetensors");
    calibrate(
        folder,
        &model,
        &fixture("digits-vit/calibration.npz"),
        "whole.safetensors",
    );
    let said = must(
        folder,
        &["merge", "a.safetensors", "b.safetensors", "-o", "sum.safetensors"],
    );
    assert!(said.contains("256 samples"), "{said}");

    // Other budgets need no other calibration.
    let mut masks = Vec::new();
    for flops in ["0.6", "0.3"] {
        let (sum, report) = prune(folder, &["--stats", "sum.safetensors", "--flops", flops]);
        let (whole, _) = prune(folder, &["--stats", "whole.safetensors", "--flops", flops]);
        assert_eq!(sum, whole, "at {flops}");
        assert!(report["budget"]["got"].as_f64().unwrap() <= flops.parse().unwrap());
        assert_eq!(report["calibration"]["samples"], 256);
        let notes = report["notes"].to_string();
        let warning = &report["warnings"][0];
        assert_eq!(warning["name"], "stats-without-data", "{warning}");
        assert!(!notes.contains("calibrated on noise"), "{notes}");
        masks.push(sum);
    }
    assert_ne!(masks[0], masks[1]);
    // One half alone says something else: the test can tell.
    let (half, _) = prune(folder, &["--stats", "a.safetensors", "--flops", "0.6"]);
    assert_ne!(half, masks[0]);

    // With samples beside them, damage is measured and layers are re-fitted in order.
    let data = second.to_str().unwrap();
    let with = ["--flops", "0.6", "--data", data, "--stats"];
    let (sum, report) = prune(folder, &[&with[..], &["sum.safetensors"]].concat());
    let (whole, _) = prune(folder, &[&with[..], &["whole.safetensors"]].concat());
    assert_eq!(sum, whole);
    assert_eq!(report["damage"], "outputs");
    assert!(!report["notes"].to_string().contains("--stats without"));
    let fitted = report["fitted"].as_array().unwrap();
    assert!(fitted.iter().any(|f| !f["ridge"].is_null()), "a sequential fit");
    let names: Vec<&str> = report["calibration"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["path"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["sum.safetensors", data]);
}

#[test]
fn samples_in_the_statistics_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = fixture("digits-vit/model.onnx");
    for (data, output) in halves(folder).iter().zip(["a.safetensors", "b.safetensors"]) {
        let data = data.to_str().unwrap();
        let args = [
            "calibrate",
            &model,
            "--data",
            data,
            "-o",
            output,
            "--keep-samples",
            "48",
        ];
        let said = must(folder, &[&args[..], &ENGINE].concat());
        assert!(said.contains("and 48 of these"), "{said}");
    }
    let said = must(
        folder,
        &["merge", "a.safetensors", "b.safetensors", "-o", "sum.safetensors"],
    );
    assert!(said.contains("and 96 of these"), "{said}");
    let alone = ["--flops", "0.5", "--stats", "sum.safetensors"];
    let (kept, report) = prune(folder, &alone);
    assert_eq!(report["damage"], "outputs");
    assert_eq!(
        report["warnings"].as_array().unwrap().len(),
        0,
        "{}",
        report["warnings"]
    );
    let fitted = report["fitted"].as_array().unwrap();
    assert!(fitted.iter().any(|f| !f["ridge"].is_null()), "a sequential fit");
    assert!(
        report["notes"]
            .to_string()
            .contains("samples that the statistics hold")
    );
    // The same bytes each time, whichever way the file came to be.
    assert_eq!(prune(folder, &alone).0, kept);
}

#[test]
fn statistics_of_another_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let other = fixture("text-language/model.onnx");
    let texts = [
        "calibrate",
        &other,
        "--data",
        &fixture("text-language/calibration.txt"),
        "--tokenizer",
        &fixture("text-language/tokenizer.json"),
        "--samples",
        "24",
        "-o",
        "texts.safetensors",
    ];
    must(folder, &[&texts[..], &ENGINE].concat());
    let model = fixture("digits-vit/model.onnx");
    calibrate(
        folder,
        &model,
        &fixture("digits-vit/calibration.npz"),
        "digits.safetensors",
    );
    let refused = |args: &[&str], why: &str| {
        let output = run(folder, args);
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(
        &[
            &model,
            "small.onnx",
            "--stats",
            "texts.safetensors",
            "--engine",
            "tract",
        ],
        "the statistics are of another model",
    );
    refused(
        &[
            "merge",
            "digits.safetensors",
            "texts.safetensors",
            "-o",
            "sum.safetensors",
        ],
        "statistics of different models cannot be merged",
    );
    refused(
        &[&model, "small.onnx", "--stats", &model, "--engine", "tract"],
        "not a file of statistics",
    );
    assert!(!folder.join("sum.safetensors").exists() && !folder.join("small.onnx").exists());
}
