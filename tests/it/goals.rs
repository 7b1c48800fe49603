//! What a run can be asked for besides one budget: several budgets, a bound on
//! the divergence, a mask from elsewhere, several files with one mask.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use onnx_prune::onnx;
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .args(args)
        .args(["--engine", "tract", "--threads", "1", "--quiet"])
        .output()
        .unwrap()
}

fn digits(out: &Path, extra: &[&str]) -> (Output, Option<Value>) {
    let json = out.with_extension("report.json");
    let (model, data) = (
        fixture("digits-vit/model.onnx"),
        fixture("digits-vit/calibration.npz"),
    );
    let mut args = vec![model.to_str().unwrap(), out.to_str().unwrap()];
    args.extend(["--data", data.to_str().unwrap()]);
    if !extra.contains(&"--samples") {
        args.extend(["--samples", "96"]);
    }
    args.extend(["--json", json.to_str().unwrap()]);
    args.extend(extra);
    let output = run(&args);
    let report = std::fs::read_to_string(&json).ok();
    if report.is_some() {
        crate::common::conforms(&json);
    }
    (output, report.map(|r| serde_json::from_str(&r).unwrap()))
}

fn parameters(path: &Path) -> usize {
    let model = onnx::load(path).unwrap();
    let graph = model.proto.graph.unwrap();
    graph
        .initializer
        .iter()
        .map(|t| t.dims.iter().product::<i64>() as usize)
        .sum()
}

#[test]
fn a_sweep_gives_a_family_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let (output, reports) = digits(&out, &["--sweep", "0.8,0.5,0.3"]);
    assert!(output.status.success(), "{output:?}");
    let reports = reports.unwrap();
    let sizes: Vec<usize> = ["0.8", "0.5", "0.3"]
        .iter()
        .map(|f| parameters(&folder.path().join(format!("small-{f}.onnx"))))
        .collect();
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    for (report, asked) in reports.as_array().unwrap().iter().zip([0.8, 0.5, 0.3]) {
        let got = report["budget"]["got"].as_f64().unwrap();
        assert!(got <= asked && got > asked - 0.1, "{got} of {asked}");
    }
    assert!(!out.exists());

    // One file cannot hold the masks of all.
    let mask = folder.path().join("mask.json");
    let words = ["--sweep", "0.8,0.5", "--export-mask", mask.to_str().unwrap()];
    let (refused, _) = digits(&out, &words);
    assert!(refused.status.code() == Some(2) && !mask.exists(), "{refused:?}");

    // One budget of the family is what a run for it alone gives.
    let alone = folder.path().join("alone.onnx");
    let (output, _) = digits(&alone, &["--flops", "0.5"]);
    assert!(output.status.success());
    let family = std::fs::read(folder.path().join("small-0.5.onnx")).unwrap();
    assert_eq!(std::fs::read(alone).unwrap(), family);
}

#[test]
fn a_bound_on_the_divergence_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let fast = ["--reconstruct", "local"];
    let (output, report) = digits(&out, &[&["--max-drop", "0.02"], &fast[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let report = report.unwrap();
    let kl = report["held_out"]["outputs"][0]["kl"].as_f64().unwrap();
    assert!(kl <= 0.02, "{kl}");
    let tried = report["tried"].as_array().unwrap();
    assert!(tried.len() > 1, "{tried:?}");
    let got = report["budget"]["got"].as_f64().unwrap();
    for point in tried {
        let (fraction, divergence) = (&point["fraction"], &point["divergence"]);
        if divergence.as_f64().unwrap() <= 0.02 {
            assert!(fraction.as_f64().unwrap() >= got - 1e-9);
        }
    }

    // No divergence is negative: this cannot be met, and there is no file.
    let none = folder.path().join("none.onnx");
    let (output, _) = digits(&none, &[&["--max-drop", "-1"], &fast[..]].concat());
    assert!(!output.status.success() && !none.exists());
}

#[cfg(unix)]
#[test]
fn a_command_may_judge_candidates() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    // The size of the candidate is the number: as small as asked for.
    let whole = std::fs::metadata(fixture("digits-vit/model.onnx")).unwrap().len();
    let least = whole * 7 / 10;
    let command = format!("s=$(wc -c < {{}}); if [ $s -lt {least} ]; then echo 1; else echo 0; fi");
    let extra = ["--max-drop", "0.5", "--eval", &command, "--reconstruct", "local"];
    let (output, _) = digits(&out, &extra);
    assert!(output.status.success(), "{output:?}");
    let size = std::fs::metadata(&out).unwrap().len();
    assert!(size >= least && size < whole, "{least} {size} {whole}");

    let failing = ["--max-drop", "0.5", "--eval", "exit 3", "--reconstruct", "local"];
    let (output, _) = digits(&folder.path().join("no.onnx"), &failing);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("exit 3"));
}

#[test]
fn a_mask_makes_the_same_round_trip_in_json_and_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |report: &Value| -> Vec<Vec<u64>> {
        let groups = report["groups"].as_array().unwrap();
        let units = |g: &Value| serde_json::from_value(g["kept"].clone()).unwrap();
        groups.iter().map(units).collect()
    };
    for kind in ["json", "npz"] {
        let mask = folder.path().join(format!("mask.{kind}"));
        let (first, second) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
        let (output, made) = digits(
            &first,
            &["--flops", "0.5", "--export-mask", mask.to_str().unwrap()],
        );
        assert!(output.status.success(), "{output:?}");
        for extra in [&["--reconstruct", "none"][..], &["--reconstruct", "local"], &[]] {
            let with_mask = [&["--mask", mask.to_str().unwrap()], extra].concat();
            let (output, used) = digits(&second, &with_mask);
            assert!(output.status.success(), "{output:?}");
            let (made, used) = (made.as_ref().unwrap(), used.unwrap());
            assert_eq!(kept(made), kept(&used));
            assert_eq!(parameters(&first), parameters(&second));
        }
    }
}

#[test]
fn methods_agree_on_what_a_budget_is_and_kcm_refuses_heads() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["obs", "kcm", "wanda", "magnitude"] {
        let out = folder.path().join(format!("{method}.onnx"));
        let (output, report) = digits(&out, &["--method", method, "--flops", "0.7"]);
        assert!(output.status.success(), "{method}: {output:?}");
        let report = report.unwrap();
        assert!(report["budget"]["got"].as_f64().unwrap() <= 0.7);
        let told = report["notes"].to_string().contains("iterations");
        assert_eq!(told, method == "kcm");
    }
    let out = folder.path().join("heads.onnx");
    let (output, _) = digits(&out, &["--method", "kcm", "--targets", "heads"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("neurons only"));
}

#[test]
fn files_with_the_same_weights_get_one_mask() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    let model = fixture("digits-vit/model.onnx");
    std::fs::copy(&model, &a).unwrap();
    std::fs::copy(&model, &b).unwrap();
    let (out, json) = (folder.path().join("out"), folder.path().join("r.json"));
    let data = fixture("digits-vit/calibration.npz");
    let output = run(&[
        a.to_str().unwrap(),
        b.to_str().unwrap(),
        "--out-dir",
        out.to_str().unwrap(),
        "--flops",
        "0.5",
        "--data",
        data.to_str().unwrap(),
        "--samples",
        "64",
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    crate::common::conforms(json.as_ref());
    let reports: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let groups = |at: usize| reports[at]["groups"].as_array().unwrap().clone();
    for (one, other) in groups(0).iter().zip(&groups(1)) {
        assert_eq!(one["kept"], other["kept"]);
    }
    let file = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert_eq!(
        file("a.onnx"),
        file("b.onnx"),
        "shared weights are re-fitted alike"
    );
    assert!(parameters(&out.join("a.onnx")) < parameters(&model));
}

#[test]
fn limits_of_several_measures_all_hold() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let whole = std::fs::metadata(fixture("digits-vit/model.onnx")).unwrap().len();
    let most = whole * 6 / 10;
    let extra = [
        "--size",
        &most.to_string(),
        "--params",
        "0.7",
        "--flops",
        "0.65",
        "--align",
        "8",
    ];
    let (output, report) = digits(&out, &extra);
    assert!(output.status.success(), "{output:?}");
    let size = std::fs::metadata(&out).unwrap().len();
    assert!(size <= most && size > most * 8 / 10, "{size} of {most}");
    let report = report.unwrap();
    assert_eq!(report["limits"].as_array().unwrap().len(), 3);
    assert!(report["budget"]["got"].as_f64().unwrap() <= 0.65);
    for group in report["groups"].as_array().unwrap() {
        let (kept, units) = (
            group["kept"].as_array().unwrap().len(),
            group["units"].as_u64().unwrap(),
        );
        if group["kind"] == "neurons" {
            assert!(kept % 8 == 0 || kept as u64 == units, "{group}");
        }
    }

    let none = folder.path().join("none.onnx");
    let (output, _) = digits(&none, &["--size", "2000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        crate::common::text(&output).contains("--vocab"),
        "{}",
        crate::common::text(&output)
    );
    assert!(!none.exists());
    let (output, _) = digits(&none, &["--size", "25"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        crate::common::text(&output).contains("25MB"),
        "{}",
        crate::common::text(&output)
    );
}

/// A limit that every smaller model meets too does not change the result.
#[test]
fn limits_that_do_not_bind_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let graph = |name: &str, extra: &[&str]| {
        let out = folder.path().join(name);
        let (output, _) = digits(&out, &[&["--flops", "0.5"], extra].concat());
        assert!(output.status.success(), "{}", crate::common::text(&output));
        onnx::load(&out).unwrap().proto.graph
    };
    let plain = graph("plain.onnx", &["--no-timing"]);
    assert!(plain == graph("size.onnx", &["--no-timing", "--size", "1000MB"]));
    assert!(plain == graph("params.onnx", &["--no-timing", "--params", "1"]));
    assert!(plain == graph("latency.onnx", &["--latency", "10s"]));
}

/// The goal in the report and in the metadata of the file that was written.
fn goal(out: &Path, report: &Value) -> String {
    let told = onnx_prune::onnx::provenance::of_file(out).unwrap();
    let options: Value = serde_json::from_str(&told.options).unwrap();
    assert_eq!(options["goal"], report["goal"], "the file and the report agree");
    assert_eq!(report["options"]["goal"], report["goal"]);
    report["goal"].as_str().unwrap().to_owned()
}

#[test]
fn every_kind_of_goal_is_in_the_report_and_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let quick = ["--method", "magnitude", "--no-timing"];
    let mask = folder.path().join("mask.json");
    let mask = mask.to_str().unwrap();
    for (at, (asked, expected)) in [
        (&["--export-mask", mask][..], "--flops 0.6".to_owned()),
        (&["--flops", "0.7"], "--flops 0.7".into()),
        (&["--params", "0.7"], "--params 0.7".into()),
        (&["--size", "0.15MB"], "--size 0.15MB".into()),
        (&["--latency", "10s"], "--latency 10000ms".into()),
        (&["--speedup", "1.01"], "--speedup 1.01x".into()),
        (
            &["--flops", "0.7", "--params", "0.9"],
            "--flops 0.7 --params 0.9".into(),
        ),
        (&["--max-drop", "1"], "--max-drop 1".into()),
        (
            &["--max-drop", "1", "--eval", "echo 0 #{}"],
            "--max-drop 1 --eval echo 0 #{}".into(),
        ),
        (&["--mask", mask], format!("--mask {mask}")),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("{at}.onnx"));
        let timed = asked.iter().any(|w| ["--latency", "--speedup"].contains(w));
        let (output, report) = digits(&out, &[asked, if timed { &quick[..2] } else { &quick }].concat());
        assert!(
            output.status.success(),
            "{asked:?}: {}",
            crate::common::text(&output)
        );
        let report = report.unwrap();
        assert_eq!(goal(&out, &report), expected);
        let command = report["command"].as_str().unwrap();
        let flag = expected.split(' ').next().unwrap();
        assert!(command.contains(flag), "{asked:?}: {command}");
    }
}

#[test]
fn what_costs_quality_can_be_made_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    // Too few to keep some apart: layers are not re-fitted in order.
    let few = ["--samples", "8", "--no-timing"];
    let (output, report) = digits(&out, &few);
    assert!(output.status.success());
    let report = report.unwrap();
    assert_eq!(report["warnings"][0]["name"], "refit-local");
    assert!(
        report["warnings"][0]["text"]
            .as_str()
            .unwrap()
            .contains("divergence")
    );
    let strict = folder.path().join("strict.onnx");
    let (output, _) = digits(&strict, &[&few[..], &["--strict"]].concat());
    assert_eq!(output.status.code(), Some(6), "{}", crate::common::text(&output));
    assert!(!strict.exists());
}
