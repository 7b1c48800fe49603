//! A folder as a loader reads it becomes a smaller one for the same loader, whole or not at all.
//! `tests/python/loaders.py` tries the loaders themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{fixture, text};

fn run(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
    command.args(words).args(["--engine", "tract", "--threads", "1"]);
    command.args(["--no-timing", "--quiet"]);
    command.output().unwrap()
}

/// A folder of the texts model, its configuration, its tokenizer, and something else.
struct LanguageFolder {
    folder: tempfile::TempDir,
}

/// What a result consists of.
const WHOLE: [&str; 5] = [
    "README.md",
    "config.json",
    "onnx/model.onnx",
    "pruning.json",
    "tokenizer.json",
];

const CONFIG: &str = "{\n  \"model_type\": \"bert\",\n  \"vocab_size\": 1024,   \"pad_token_id\": 0\n}\n";

impl LanguageFolder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = Self { folder };
        std::fs::create_dir_all(made.at("in/onnx")).unwrap();
        std::fs::copy(fixture("text-language/model.onnx"), made.at("in/onnx/model.onnx")).unwrap();
        std::fs::copy(
            fixture("text-language/tokenizer.json"),
            made.at("in/tokenizer.json"),
        )
        .unwrap();
        std::fs::write(made.at("in/config.json"), CONFIG).unwrap();
        std::fs::write(made.at("in/README.md"), "words").unwrap();
        made
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn word(&self, path: &str) -> String {
        self.at(path).to_str().unwrap().to_owned()
    }

    /// Prunes `in` into `out`, calibrated on some of its texts.
    fn prune(&self, out: &str, more: &[&str]) -> Output {
        let (input, out) = (self.word("in"), self.word(out));
        let texts = fixture("text-language/calibration.txt");
        let common = ["--data", texts.to_str().unwrap(), "--samples", "96"];
        run(&[&[&*input, &*out], &common[..], more].concat())
    }

    fn reports(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.at(out).join("pruning.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => _ = found.insert(path.clone(), std::fs::read(&path).unwrap()),
        }
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    let within = |path: &PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
    files(folder).keys().map(within).collect()
}

#[test]
fn all_that_a_loader_needs_is_there() {
    let place = LanguageFolder::new();
    let before = files(&place.at("in"));
    let done = place.prune("out", &["--flops", "0.6"]);
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!(files(&place.at("in")), before);
    assert_eq!(names(&place.at("out")), WHOLE);
    assert_eq!(
        std::fs::read_to_string(place.at("out/config.json")).unwrap(),
        CONFIG
    );
    let [report] = &place.reports("out")[..] else {
        panic!("one report was expected")
    };
    assert!(report["budget"]["got"].as_f64().unwrap() <= 0.6);
    assert_eq!(
        report["output"].as_str(),
        place.at("out/onnx/model.onnx").to_str()
    );
    // The same file as by itself, but for the command that it says it was made with.
    let alone = run(&[
        &place.word("in/onnx/model.onnx"),
        &place.word("alone.onnx"),
        "--flops",
        "0.6",
        "--samples",
        "96",
        "--data",
        fixture("text-language/calibration.txt").to_str().unwrap(),
        "--tokenizer",
        &place.word("in/tokenizer.json"),
    ]);
    assert!(alone.status.success(), "{}", text(&alone));
    let model = |path: &str| onnx_prune::onnx::load(&place.at(path)).unwrap().proto.graph;
    assert_eq!(model("alone.onnx"), model("out/onnx/model.onnx"));
}

#[test]
fn a_smaller_vocabulary_is_told_to_all_that_state_it() {
    let place = LanguageFolder::new();
    let few = "the model prunes heads\nand neurons of layers\n";
    std::fs::write(place.at("few.txt"), few).unwrap();
    std::fs::write(place.at("in/model.safetensors"), "weights").unwrap();
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(place.at("in/tokenizer.json")).unwrap()).unwrap();
    let tokens = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let config = CONFIG.replace("1024", &tokens.to_string());
    std::fs::write(place.at("in/config.json"), &config).unwrap();
    let few = place.word("few.txt");
    let done = place.prune("out", &["--flops", "0.8", "--vocab", &few, "--vocab-keep", "5"]);
    assert!(done.status.success(), "{}", text(&done));
    let report = &place.reports("out")[0];
    let left = report["vocabulary"]["after"].as_u64().unwrap();
    assert!(left < tokens as u64);
    let of = |when: &str| report["parts"][when]["vocabulary"]["bytes"].as_u64().unwrap();
    let gone = ["bytes_before", "bytes_after"].map(|at| report["vocabulary"][at].as_u64().unwrap());
    assert_eq!(of("before") - of("after"), gone[0] - gone[1]);
    assert_eq!(of("after"), gone[1]);
    let told = std::fs::read_to_string(place.at("out/config.json")).unwrap();
    assert_eq!(told, config.replace(&tokens.to_string(), &left.to_string()));
    let small: Value =
        serde_json::from_slice(&std::fs::read(place.at("out/tokenizer.json")).unwrap()).unwrap();
    assert_eq!(small["model"]["vocab"].as_object().unwrap().len() as u64, left);
    // No second tokenizer beside the model, no weights that contradict it.
    assert_eq!(names(&place.at("out")), WHOLE);
    assert!(
        report["notes"]
            .to_string()
            .contains("model.safetensors is left out")
    );
}

#[test]
fn a_tokenizer_from_elsewhere_comes_with_the_result() {
    let place = LanguageFolder::new();
    std::fs::rename(place.at("in/tokenizer.json"), place.at("tokenizer.json")).unwrap();
    let tokenizer = place.word("tokenizer.json");
    let done = place.prune(
        "out",
        &["--flops", "0.8", "--vocab", "data", "--tokenizer", &tokenizer],
    );
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!(names(&place.at("out")), WHOLE);
    let report = &place.reports("out")[0];
    let told = report["vocabulary"]["tokenizer"].as_str().unwrap();
    assert_eq!(Path::new(told), place.at("out/tokenizer.json"));
    let small: Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    assert_eq!(
        small["model"]["vocab"].as_object().unwrap().len() as u64,
        report["vocabulary"]["after"].as_u64().unwrap()
    );
}

/// Tokens that a configuration names stay, and what is not about tokens is copied.
#[test]
fn configurations_and_parts_of_others_keep_their_meaning() {
    let place = LanguageFolder::new();
    std::fs::write(place.at("few.txt"), "the model prunes heads\n").unwrap();
    let old: Value = serde_json::from_slice(&std::fs::read(place.at("in/tokenizer.json")).unwrap()).unwrap();
    let ids = |file: &Value| -> BTreeMap<String, u64> {
        let all = file["model"]["vocab"].as_object().unwrap().iter();
        all.map(|(token, id)| (token.clone(), id.as_u64().unwrap()))
            .collect()
    };
    let old = ids(&old);
    let (named, id) = old.iter().max_by_key(|(_, id)| **id).unwrap();
    let config = format!("{{\"eos_token_id\": {id}, \"eps\": NaN}}");
    for folder in ["in/2_Dense", "in/other", "in/1_Pooling"] {
        std::fs::create_dir_all(place.at(folder)).unwrap();
    }
    let more = [
        ("in/generation_config.json", &*config),
        ("in/other/tokenizer.json", "{}"),
        ("in/other/config.json", "{\"vocab_size\": 7}"),
        ("in/2_Dense/model.safetensors", "dense"),
        ("in/2_Dense/config.json", "{}"),
        ("in/model.safetensors.index.json", "{}"),
        ("in/openvino_model.xml", "<net/>"),
        (
            "in/modules.json",
            r#"[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#,
        ),
    ];
    for (path, content) in more {
        std::fs::write(place.at(path), content).unwrap();
    }
    let few = place.word("few.txt");
    let quick = ["--flops", "0.8", "--method", "magnitude", "--reconstruct", "none"];
    let done = place.prune(
        "out",
        &[&quick[..], &["--vocab", &few, "--vocab-keep", "0"]].concat(),
    );
    assert!(done.status.success(), "{}", text(&done));
    let now: Value = serde_json::from_slice(&std::fs::read(place.at("out/tokenizer.json")).unwrap()).unwrap();
    let now = ids(&now);
    assert!(now.len() < old.len());
    let read = |path: &str| std::fs::read_to_string(place.at("out").join(path)).unwrap();
    assert_eq!(
        read("generation_config.json"),
        format!("{{\"eos_token_id\": {}, \"eps\": NaN}}", now[named])
    );
    for same in [
        "other/tokenizer.json",
        "other/config.json",
        "2_Dense/model.safetensors",
    ] {
        let before = std::fs::read_to_string(place.at("in").join(same)).unwrap();
        assert_eq!(read(same), before);
    }
    for gone in ["model.safetensors.index.json", "openvino_model.xml"] {
        assert!(!place.at("out").join(gone).exists(), "{gone}");
    }
}

#[test]
fn a_model_of_images_beside_one_of_texts_is_no_obstacle() {
    let place = LanguageFolder::new();
    std::fs::copy(
        fixture("digits-vit/model.onnx"),
        place.at("in/onnx/vision_model.onnx"),
    )
    .unwrap();
    let done = place.prune("out", &["--flops", "0.8", "--vocab", "data"]);
    assert!(done.status.success(), "{}", text(&done));
    let reports = place.reports("out");
    assert_eq!(reports.len(), 2);
    for report in &reports {
        assert!(report["budget"]["got"].as_f64().unwrap() <= 0.8);
        let is_text = report["output"].as_str().unwrap().ends_with("/model.onnx");
        assert_eq!(report["vocabulary"].is_object(), is_text);
    }
    let warnings = reports[0]["warnings"].to_string();
    assert!(
        warnings.contains("vision_model.onnx reads no tokens"),
        "{warnings}"
    );
}

#[test]
fn variants_keep_the_same_heads_and_neurons_and_copies_stay_copies() {
    let place = LanguageFolder::new();
    let model = place.at("in/onnx/model.onnx");
    // Another form of the same model: other bytes, its weights in a side file.
    let file = onnx_prune::onnx::load(&model).unwrap();
    let mut other = file.proto.clone();
    other.doc_string = Some("optimised".into());
    let save = onnx_prune::onnx::SaveOptions {
        external: onnx_prune::onnx::External::Always,
        ..Default::default()
    };
    onnx_prune::onnx::save(&other, &place.at("in/onnx/model_optimized.onnx"), &save).unwrap();
    std::fs::copy(&model, place.at("in/copy.onnx")).unwrap();
    let done = place.prune("out", &["--flops", "0.5"]);
    assert!(done.status.success(), "{}", text(&done));
    let reports = place.reports("out");
    assert_eq!(reports.len(), 2);
    let variant = reports
        .iter()
        .find(|r| r["output"].as_str().unwrap().contains("optimized"))
        .unwrap();
    assert!(variant["budget"]["got"].as_f64().unwrap() <= 0.5);
    assert!(
        variant["notes"]
            .to_string()
            .contains("keeps the heads and neurons")
    );
    assert!(place.at("out/onnx/model_optimized.onnx.data").is_file());
    let bytes = |path: &str| std::fs::read(place.at(path)).unwrap();
    assert_eq!(bytes("out/copy.onnx"), bytes("out/onnx/model.onnx"));
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let place = LanguageFolder::new();
    let quick = ["--flops", "0.7", "--method", "magnitude", "--reconstruct", "none"];
    let refused = |done: Output, why: &str| {
        assert_eq!(done.status.code(), Some(2), "{}", text(&done));
        assert!(text(&done).contains(why), "{}", text(&done));
    };
    // What is there and is no earlier result stays.
    std::fs::create_dir(place.at("mine")).unwrap();
    std::fs::write(place.at("mine/thesis.txt"), "years").unwrap();
    refused(place.prune("mine", &quick), "is not empty");
    refused(place.prune("in/onnx/out", &quick), "lie in each other");
    refused(place.prune("out.onnx", &quick), "becomes another folder");
    refused(place.prune("nowhere/out", &quick), "there is no folder");
    refused(
        place.prune("out", &["--export-mask", &place.word("m.json")]),
        "--mask and --export-mask",
    );
    // What a smaller vocabulary must be told to is read before the work.
    std::fs::write(place.at("in/generation_config.json"), "no JSON").unwrap();
    refused(
        place.prune("out", &["--vocab", "data"]),
        "generation_config.json is no JSON",
    );
    std::fs::remove_file(place.at("in/generation_config.json")).unwrap();
    // A failure leaves nothing.
    std::fs::write(place.at("in/onnx/other.onnx"), "no model").unwrap();
    let failed = place.prune("out", &quick);
    assert!(!failed.status.success());
    std::fs::remove_file(place.at("in/onnx/other.onnx")).unwrap();
    let there = |place: &LanguageFolder| {
        let entries = std::fs::read_dir(place.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(there(&place), ["in", "mine"]);
    // A dry run writes nothing, an earlier result is replaced as a whole.
    assert!(
        place
            .prune("out", &[&quick[..], &["--dry-run"]].concat())
            .status
            .success()
    );
    assert_eq!(there(&place), ["in", "mine"]);
    assert!(place.prune("out", &quick).status.success());
    let again = place.prune("out", &quick);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(there(&place), ["in", "mine", "out"]);
    assert_eq!(files(&place.at("mine")).len(), 1);
}

/// What is in the output folder and no part of an earlier result stays, and so does all that
/// is in the input folder.
#[test]
fn files_of_others_stay() {
    let place = LanguageFolder::new();
    let quick = ["--flops", "0.7", "--method", "magnitude", "--reconstruct", "none"];
    let refused = |more: &[&str], why: &str| {
        let before = files(place.folder.path());
        let done = place.prune("out", &[&quick[..], more].concat());
        assert_eq!(done.status.code(), Some(2), "{}", text(&done));
        assert!(text(&done).contains(why), "{}", text(&done));
        assert_eq!(files(place.folder.path()), before);
    };
    for (option, file) in [("--json", "in/config.json"), ("--report", "in/onnx/report.html")] {
        refused(&[option, &place.word(file)], "which is never changed");
    }
    refused(&["--json", &place.word("out/report.json")], "appears as a whole");
    refused(
        &["--latency-cache", &place.word("in/latency.json")],
        "which is never changed",
    );
    // Reports and the folder appear together.
    if Path::new("/dev/full").exists() {
        let before = files(place.folder.path());
        let done = place.prune("out", &[&quick[..], &["--json", "/dev/full"]].concat());
        assert_eq!(done.status.code(), Some(5), "{}", text(&done));
        assert_eq!(files(place.folder.path()), before);
    }
    std::fs::create_dir(place.at("out")).unwrap();
    // A file of this name by another program is no earlier result.
    std::fs::write(place.at("out/pruning.json"), "[{\"tool\": \"other\"}]").unwrap();
    refused(&[], "is no earlier result");
    std::fs::remove_dir_all(place.at("out")).unwrap();
    assert!(place.prune("out", &quick).status.success());
    for mine in [
        "thesis.txt",
        "onnx/notes.md",
        ".git/HEAD",
        "data/labels.csv",
        "onnx/model.onnx.data",
    ] {
        let path = place.at("out").join(mine);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "years").unwrap();
        refused(&[], "no part of an earlier result");
        std::fs::remove_file(&path).unwrap();
        let _in_use = std::fs::remove_dir(path.parent().unwrap());
    }
    assert!(place.prune("out", &quick).status.success());
}

#[test]
fn weights_under_a_name_of_their_own_are_not_overwritten() {
    let place = LanguageFolder::new();
    let model = place.at("in/onnx/model.onnx");
    let file = onnx_prune::onnx::load(&model).unwrap();
    let save = onnx_prune::onnx::SaveOptions {
        external: onnx_prune::onnx::External::Always,
        ..Default::default()
    };
    onnx_prune::onnx::save(&file.proto, &model, &save).unwrap();
    // The weights as another exporter calls them, and another file of the name they get.
    std::fs::rename(
        place.at("in/onnx/model.onnx.data"),
        place.at("in/onnx/all.weights.bin"),
    )
    .unwrap();
    let (old, new) = (b"model.onnx.data", b"all.weights.bin");
    let mut bytes = std::fs::read(&model).unwrap();
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + old.len()].copy_from_slice(new);
        }
    }
    std::fs::write(&model, bytes).unwrap();
    std::fs::write(place.at("in/onnx/model.onnx.data"), vec![0u8; 1 << 20]).unwrap();
    let quick = ["--flops", "0.7", "--method", "magnitude", "--reconstruct", "none"];
    let done = place.prune("out", &quick);
    assert!(done.status.success(), "{}", text(&done));
    let alone = run(&[
        &[&*place.word("in/onnx/model.onnx"), &*place.word("alone.onnx")][..],
        &quick,
        &["--samples", "96", "--tokenizer", &place.word("in/tokenizer.json")],
        &[
            "--data",
            fixture("text-language/calibration.txt").to_str().unwrap(),
        ],
    ]
    .concat());
    assert!(alone.status.success(), "{}", text(&alone));
    let weights = |path: &str| {
        let graph = onnx_prune::onnx::load(&place.at(path))
            .unwrap()
            .proto
            .graph
            .unwrap();
        let value = |t| onnx_prune::onnx::tensor(t).unwrap();
        graph.initializer.iter().map(value).collect::<Vec<_>>()
    };
    assert_eq!(weights("out/onnx/model.onnx"), weights("alone.onnx"));
    assert!(
        place.reports("out")[0]["notes"]
            .to_string()
            .contains("model.onnx.data is left out")
    );
    assert!(!place.at("out/onnx/all.weights.bin").exists());
}

#[cfg(unix)]
#[test]
fn links_do_not_bring_other_files_in() {
    let place = LanguageFolder::new();
    std::fs::write(place.at("secret"), "key").unwrap();
    std::os::unix::fs::symlink(place.at("secret"), place.at("in/special_tokens_map.json")).unwrap();
    let done = place.prune("out", &[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(
        text(&done).contains("special_tokens_map.json leads to"),
        "{}",
        text(&done)
    );
    assert!(!place.at("out").exists());
}

#[cfg(unix)]
#[test]
fn kills_leave_the_old_folder_or_the_new_one() {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let place = LanguageFolder::new();
    let quick = ["--method", "magnitude", "--reconstruct", "none", "--flops"];
    let begun = Instant::now();
    assert!(
        place
            .prune("out", &[&quick[..], &["0.9"]].concat())
            .status
            .success()
    );
    let whole = begun.elapsed();
    let old = files(&place.at("out"));
    let mut killed = 0;
    for step in 0..12u32 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-prune"));
        command.args([place.word("in"), place.word("out")]);
        command
            .args(quick)
            .args(["0.5", "--engine", "tract", "--threads", "1", "--no-timing", "-q"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * step / 10);
        let _ = child.kill();
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        let now = files(&place.at("out"));
        if now != old {
            // The new one, whole.
            assert_eq!(now.len(), old.len());
            assert!(place.reports("out")[0]["budget"]["got"].as_f64().unwrap() <= 0.5);
            break;
        }
    }
    assert!(killed > 0);
    // What the killed ones left goes with a later run, once it is old enough to be nobody's.
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    for entry in std::fs::read_dir(place.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(".onnx-prune-")
        {
            std::fs::File::open(&path).unwrap().set_modified(old).unwrap();
        }
    }
    assert!(
        place
            .prune("out", &[&quick[..], &["0.5"]].concat())
            .status
            .success()
    );
    let left = std::fs::read_dir(place.folder.path()).unwrap().count();
    assert_eq!(left, 2);
}

/// The table of tokens as a model of its own, as exports of models for images and texts have it.
#[test]
fn a_model_with_nothing_but_tokens_loses_them_too() {
    let place = LanguageFolder::new();
    let mut model = onnx_prune::onnx::load(&place.at("in/onnx/model.onnx"))
        .unwrap()
        .proto;
    let graph = model.graph.as_mut().unwrap();
    graph
        .node
        .retain(|n| n.op_type() == "Gather" && n.input[1] == "input_ids");
    let (table, rows) = (graph.node[0].input[0].clone(), graph.node[0].output[0].clone());
    graph.initializer.retain(|t| t.name() == table);
    graph.input.retain(|i| i.name() == "input_ids");
    graph.output.truncate(1);
    graph.output[0].name = Some(rows);
    graph.output[0].r#type.as_mut().unwrap().value = None;
    graph.value_info.clear();
    let embed = place.at("in/onnx/embed_tokens.onnx");
    onnx_prune::onnx::save(&model, &embed, &onnx_prune::onnx::SaveOptions::default()).unwrap();
    let quick = ["--flops", "0.8", "--method", "magnitude", "--reconstruct", "none"];
    let done = place.prune("out", &[&quick[..], &["--vocab", "data"]].concat());
    assert!(done.status.success(), "{}", text(&done));
    let report = &place.reports("out")[0];
    let left = report["vocabulary"]["after"].as_i64().unwrap();
    let small = onnx_prune::onnx::load(&place.at("out/onnx/embed_tokens.onnx")).unwrap();
    assert_eq!(small.proto.graph.unwrap().initializer[0].dims[0], left);
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("embed_tokens.onnx has a smaller vocabulary, and that is all"),
        "{notes}"
    );
}
