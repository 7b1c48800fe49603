//! The command line end to end, on the trained models in `fixtures/`, with the
//! built-in engine.

use std::path::Path;
use std::process::{Command, Output};

use onnx_prune::engine::{self, EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::io::npz;
use onnx_prune::onnx;
use onnx_prune::tensor::{Feeds, Tensor};

use crate::common::{fixture, text};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .args(args)
        .output()
        .unwrap()
}

/// Accuracy on the labelled digits, in the built-in engine.
fn accuracy(model: &Path) -> f64 {
    let test = npz::read(&fixture("digits-vit/test.npz")).unwrap();
    let labels = test["labels"].to_i64().unwrap();
    let images = &test["pixel_values"];
    let options = EngineOptions {
        engine: EngineChoice::Tract,
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = engine::choose(&options).unwrap();
    let model = onnx::load(model).unwrap();
    let mut session = engine.session(&model.proto, &SessionOptions::default()).unwrap();
    let feeds: Feeds = [("pixel_values".to_string(), images.clone())].into();
    let logits: Tensor = session.run(&feeds).unwrap().remove(0);
    let values = logits.to_f32();
    let right = labels.iter().zip(values.chunks(10)).filter(|(label, row)| {
        let best = (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        best as i64 == **label
    });
    right.count() as f64 / labels.len() as f64
}

fn prune_digits(out: &Path, extra: &[&str]) -> serde_json::Value {
    let json = out.with_extension("json");
    let model = fixture("digits-vit/model.onnx");
    let data = fixture("digits-vit/calibration.npz");
    let mut args = vec![
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--engine",
        "tract",
        "--threads",
        "1",
        "--quiet",
        "--json",
        json.to_str().unwrap(),
    ];
    args.extend(extra);
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output));
    crate::common::conforms(&json);
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

#[test]
fn a_trained_model_gets_smaller_and_stays_good() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let dense = accuracy(&fixture("digits-vit/model.onnx"));
    let report = prune_digits(&out, &["--flops", "0.6"]);
    let (asked, got) = (
        report["budget"]["asked"].as_f64().unwrap(),
        report["budget"]["got"].as_f64().unwrap(),
    );
    assert!(got <= asked, "asked {asked}, got {got}");
    let step =
        report["budget"]["cheapest_step"].as_f64().unwrap() / report["budget"]["prunable"].as_f64().unwrap();
    assert!(
        asked - got <= step,
        "unspent {} is more than the cheapest step {step}",
        asked - got
    );
    let pruned = accuracy(&out);
    assert!(dense > 0.98, "dense accuracy {dense}");
    assert!(pruned > dense - 0.02, "accuracy fell from {dense} to {pruned}");
    let bytes = |p: &Path| std::fs::metadata(p).unwrap().len();
    assert!(bytes(&out) * 10 < bytes(&fixture("digits-vit/model.onnx")) * 9);
    assert!(report["equality"]["passed"].as_bool().unwrap());
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    prune_digits(&a, &["--flops", "0.5", "--samples", "64"]);
    prune_digits(&b, &["--flops", "0.5", "--samples", "64"]);
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
}

#[test]
fn every_budget_is_met() {
    let folder = tempfile::tempdir().unwrap();
    for (method, flops) in [
        ("magnitude", "0.9"),
        ("magnitude", "0.35"),
        ("kcm", "0.7"),
        ("obs", "0.3"),
    ] {
        let out = folder.path().join("small.onnx");
        let report = prune_digits(&out, &["--method", method, "--flops", flops, "--samples", "64"]);
        let got = report["budget"]["got"].as_f64().unwrap();
        assert!(got <= flops.parse().unwrap(), "{method} at {flops} got {got}");
    }
}

#[test]
fn a_budget_below_the_floor_is_refused_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let model = fixture("digits-vit/model.onnx");
    let args = [
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--method",
        "kcm",
        "--flops",
        "0.1",
        "--engine",
        "tract",
        "--samples",
        "16",
    ];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("the least that kcm can keep"),
        "{}",
        text(&output)
    );
    assert!(!out.exists());
}

#[test]
fn texts_with_a_tokenizer_calibrate() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let (model, data, tokenizer) = (
        fixture("text-language/model.onnx"),
        fixture("text-language/calibration.txt"),
        fixture("text-language/tokenizer.json"),
    );
    let output = run(&[
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--engine",
        "tract",
        "--samples",
        "48",
        "--probe",
        "16",
        "--flops",
        "0.6",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("sliced = masked"), "{}", text(&output));
    assert!(out.exists());
}

#[test]
fn no_data_is_enough_and_says_what_it_costs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let model = fixture("digits-vit/model.onnx");
    let output = run(&[
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--engine",
        "tract",
        "--samples",
        "32",
        "--probe",
        "16",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("note:"), "{}", text(&output));
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let report = prune_digits(&out, &["--dry-run", "--method", "magnitude"]);
    assert!(!out.exists());
    assert!(report["output"].is_null());
}

#[test]
fn inspect_lists_heads_and_neurons() {
    let model = fixture("digits-vit/model.onnx");
    let output = run(&["inspect", model.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |kind: &str, units: u64| {
        let groups = found["groups"].as_array().unwrap();
        groups
            .iter()
            .filter(|g| g["kind"] == kind && g["units"] == units)
            .count()
    };
    assert_eq!(
        (count("heads", 4), count("neurons", 256)),
        (4, 4),
        "{}",
        text(&output)
    );
}

#[test]
fn comparing_a_model_with_itself_finds_no_difference() {
    let model = fixture("digits-vit/model.onnx");
    let data = fixture("digits-vit/calibration.npz");
    let output = run(&[
        "compare",
        model.to_str().unwrap(),
        model.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--engine",
        "tract",
        "--samples",
        "16",
        "--json",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["outputs"][0]["max"], 0.0);
    assert_eq!(found["outputs"][0]["agreement"], 1.0);
}

#[test]
fn exit_codes_have_meaning() {
    let folder = tempfile::tempdir().unwrap();
    let (nothing, out) = (folder.path().join("nothing.onnx"), folder.path().join("out.onnx"));
    let model = fixture("digits-vit/model.onnx");
    let (model, out_text) = (model.to_str().unwrap(), out.to_str().unwrap());
    let code = |args: &[&str]| run(args).status.code();
    assert_eq!(
        code(&[nothing.to_str().unwrap(), out_text]),
        Some(2),
        "a missing file"
    );
    std::fs::write(&nothing, b"this is no model").unwrap();
    assert_eq!(code(&[nothing.to_str().unwrap(), out_text]), Some(2), "no model");
    assert_eq!(
        code(&[model, out_text, "--flops", "1.5"]),
        Some(2),
        "a wrong fraction"
    );
    assert_eq!(
        code(&[model, out_text, "--exclude", "("]),
        Some(2),
        "a wrong expression"
    );
    assert_eq!(
        code(&[model, out_text, "--exclude", "."]),
        Some(3),
        "everything excluded"
    );
    assert_eq!(
        code(&[
            model,
            out_text,
            "--engine",
            "ort",
            "--ort-lib",
            "/no/such/library.so"
        ]),
        Some(4),
        "a missing engine"
    );
    assert_eq!(
        code(&[model, out_text, "--device", "cuda", "--engine", "tract"]),
        Some(4),
        "a missing device"
    );
    assert!(!out.exists());
}

#[test]
fn json_on_standard_output_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("digits-vit/model.onnx"), folder.path().join("small.onnx"));
    let args = [
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--method",
        "magnitude",
        "--engine",
        "tract",
        "--json",
        "-",
        "--progress",
        "json",
    ];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], onnx_prune::report::SCHEMA);
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        said.contains("sliced = masked"),
        "the summary goes elsewhere: {said}"
    );
}

#[test]
fn progress_is_told_to_programs_as_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, out) = (
        fixture("digits-vit/model.onnx"),
        fixture("digits-vit/calibration.npz"),
        folder.path().join("small.onnx"),
    );
    let output = run(&[
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--samples",
        "32",
        "--probe",
        "16",
        "--engine",
        "tract",
        "--quiet",
        "--progress",
        "json",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    let lines: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for stage in ["positions", "calibrating", "damage", "re-fitting"] {
        let of: Vec<_> = lines.iter().filter(|l| l["stage"] == stage).collect();
        let last = of.last().unwrap_or_else(|| panic!("no {stage}"));
        assert_eq!(
            (&of[0]["done"], &last["done"]),
            (&0.into(), &last["total"]),
            "{stage}"
        );
    }
}

#[test]
fn a_summary_fits_a_screen_and_has_no_colours_in_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("digits-vit/model.onnx"), folder.path().join("small.onnx"));
    let args = [
        model.to_str().unwrap(),
        out.to_str().unwrap(),
        "--method",
        "magnitude",
        "--engine",
        "tract",
    ];
    let output = run(&args);
    let plain = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(plain.lines().count() <= 24, "{plain}");
    assert!(!plain.contains('\x1b'), "{plain}");
    assert!(plain.contains("█") && plain.contains("of 256"), "{plain}");
    let output = run(&[&args[..], &["-v"]].concat());
    let more = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(
        more.contains("again: onnx-prune") && more.contains("encoder/layer/3"),
        "{more}"
    );
    assert_eq!(run(&[&args[..], &["-v", "-q"]].concat()).status.code(), Some(2));
}

#[test]
fn completions_and_the_manual_page_are_made() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(
            script.contains("export-mask") && script.contains("calibrate"),
            "{shell}"
        );
    }
    let output = run(&["man"]);
    let page = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(output.status.success() && page.starts_with(".ie"), "{page}");
    for part in [".TH onnx-prune", "\\-\\-max\\-drop", "Exit codes"] {
        assert!(page.contains(part), "{part}");
    }
}
