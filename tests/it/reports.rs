//! The HTML report: everything that it promises is there, it needs nothing else,
//! and names from a model cannot break it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use onnx_prune::budget::Demand;
use onnx_prune::data::DataOptions;
use onnx_prune::engine::{EngineChoice, EngineOptions};
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::rank::Method;
use onnx_prune::report::{Report, html};
use onnx_prune::{onnx, pipeline};

use crate::common::{fixture, text};

fn options(flops: f64) -> Options {
    Options {
        demands: vec![Demand::Flops(flops)],
        probe: Some(16),
        data: DataOptions {
            data: vec![fixture("digits-vit/calibration.npz")],
            samples: Some(48),
            batch: 1,
            ..DataOptions::default()
        },
        engine: EngineOptions {
            engine: EngineChoice::Tract,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    }
}

fn prune(input: &Path, options: &Options) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let report = pipeline::prune(input, &out, &[], options, &Quiet, &AtomicBool::new(false)).unwrap();
    let json = folder.path().join("report.json");
    onnx_prune::report::write_json(&json, &report).unwrap();
    crate::common::conforms(&json);
    report
}

/// The page is one file: nothing in it makes a reader fetch anything, and the one script is
/// its own.
fn stands_alone(page: &str) {
    for tag in ["<link", "<img", "<iframe", "<object", "@import", "url("] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert_eq!(page.matches("<script>").count(), 1);
    assert_eq!(page.matches("<script").count(), 1);
    for request in ["fetch(", "XMLHttpRequest", "import("] {
        assert!(!page.contains(request), "{request}");
    }
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "an address"
    );
    assert!(!page.contains("NaN") && !page.contains("inf%"));
    for tag in ["section", "div", "span", "svg", "table", "details", "p"] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        let opened = page
            .match_indices(&open)
            .filter(|(at, _)| page[at + open.len()..].starts_with(['>', ' ']))
            .count();
        assert_eq!(opened, page.matches(&close).count(), "<{tag}>");
    }
}

#[test]
fn all_parts_are_there() {
    let report = prune(&fixture("digits-vit/model.onnx"), &options(0.35));
    let page = html::page(std::slice::from_ref(&report));
    stands_alone(&page);
    let groups = report.groups.len();
    for (part, times) in [
        ("Before and after", 1),
        ("What is left, layer by layer", 1),
        ("Against the dense model", 1),
        ("What each group could lose, and what it lost", 1),
        ("What re-fitting mends", 1),
        ("What was not pruned, and why", 1),
        ("The same again", 1),
        ("asked: at most 35.0%", 1),
        // Neurons as bars, heads as cells, a curve with its dot for each group.
        ("class=\"bar\"", 4),
        ("class=\"units\"", 4),
        ("<polyline", groups),
        ("class=\"dot\"", groups),
        ("class=\"fit\"", report.fitted.len()),
        ("latency (median)", 1),
        ("same answer", 2),
        ("normalised over", 1),
        (report.input_sha256.as_str(), 1),
        ("prefers-color-scheme: dark", 1),
    ] {
        assert_eq!(page.matches(part).count(), times, "{part}");
    }
    let calibration = report.calibration.unwrap();
    let [data] = &calibration.files[..] else {
        panic!("one file of data");
    };
    let hash = onnx::sha256(&fixture("digits-vit/calibration.npz"), &[]).unwrap();
    assert_eq!(data.sha256, hash);
    assert!(
        page.contains(&hash) && page.contains("--flops 0.35"),
        "how to repeat it"
    );
}

#[test]
fn removed_sublayers_are_seen() {
    let mut report = prune(&fixture("digits-vit/model.onnx"), &options(0.5));
    assert_eq!(
        html::page(std::slice::from_ref(&report))
            .matches("part gone")
            .count(),
        0
    );
    report.groups[2].kept.clear();
    let page = html::page(&[report]);
    assert_eq!(page.matches("part gone").count(), 1);
    assert!(page.contains("One sublayer is gone") && page.contains("removed (4)"));
}

#[test]
fn methods_without_curves_have_a_report_too() {
    let mut options = options(0.5);
    options.rank.method = Method::Magnitude;
    let page = html::page(&[prune(&fixture("digits-vit/model.onnx"), &options)]);
    stands_alone(&page);
    assert!(!page.contains("What each group could lose") && page.contains("Ranked by magnitude"));
}

#[test]
fn a_sweep_has_a_front_and_a_part_for_each_budget() {
    let folder = tempfile::tempdir().unwrap();
    let reports = pipeline::sweep(
        &fixture("digits-vit/model.onnx"),
        (&folder.path().join("small.onnx"), &[]),
        &[0.6, 0.3],
        &options(0.6),
        &Quiet,
        &AtomicBool::new(false),
    )
    .unwrap();
    let path = folder.path().join("sweep.html");
    html::write(&path, &reports).unwrap();
    let page = std::fs::read_to_string(&path).unwrap();
    stands_alone(&page);
    assert_eq!(page.matches("<h2>What is kept against what it costs").count(), 1);
    assert_eq!(page.matches("<details").count(), 2);
    assert!(page.contains("small-0.6.onnx") && page.contains("small-0.3.onnx"));
    // Each repeats its own budget.
    assert!(page.contains("--flops 0.6") && page.contains("--flops 0.3"));
}

/// In a browser: no errors, no requests, nothing cut off at two widths, light and dark, tables
/// that can be sorted, the numbers of the JSON.
#[test]
fn a_browser_shows_all_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/py/bin/python");
    if !python.exists() {
        eprintln!("skipped: no {} (run .ci/test once)", python.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut pages = Vec::new();
    let mut run = |name: &str, words: &[&str]| {
        let (html, json) = (at(&format!("{name}.html")), at(&format!("{name}.json")));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
        command
            .args(words)
            .args(["--engine", "tract", "--threads", "1", "--quiet"]);
        let done = command
            .args(["--report", &html, "--json", &json])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done));
        pages.extend([html, json]);
    };
    let file = |path: &str| fixture(path).to_str().unwrap().to_owned();
    let (texts, tokenizer) = (
        file("text-language/calibration.txt"),
        file("text-language/tokenizer.json"),
    );
    run(
        "texts",
        &[
            &file("text-language/model.onnx"),
            &at("small.onnx"),
            "--flops",
            "0.5",
            "--data",
            &texts,
            "--tokenizer",
            &tokenizer,
        ],
    );
    run(
        "sweep",
        &[
            &file("digits-vit/model.onnx"),
            &at("small.onnx"),
            "--sweep",
            "0.7,0.3",
            "--data",
            &file("digits-vit/calibration.npz"),
        ],
    );
    let looked = std::process::Command::new(python)
        .arg(root.join("tests/python/check_page.py"))
        .args(&pages)
        .output()
        .unwrap();
    assert!(looked.status.success(), "{}", text(&looked));
    eprintln!("{}", text(&looked));
}

#[test]
fn odd_names_are_text() {
    let odd = "<script>alert('x')</script>&\"<blink>é\u{202e}";
    let mut model = onnx::load(&fixture("digits-vit/model.onnx")).unwrap().proto;
    let graph = model.graph.as_mut().unwrap();
    // The last node makes the output; its name and the output's are shown.
    let node = graph.node.last_mut().unwrap();
    let old = node.output[0].clone();
    node.output[0] = odd.into();
    for output in graph.output.iter_mut().filter(|o| o.name() == old) {
        output.name = Some(odd.into());
    }
    for node in &mut graph.node {
        node.name = Some(format!("{odd}{}", node.name()));
    }
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("<i>odd.onnx");
    onnx::save(&model, &input, &onnx::SaveOptions::default()).unwrap();
    let page = html::page(&[prune(&input, &options(0.5))]);
    stands_alone(&page);
    assert!(!page.contains("<blink>") && !page.contains("<i>odd"));
    assert!(
        page.contains("&lt;script&gt;alert('x')&lt;/script&gt;&amp;"),
        "escaped"
    );
}
