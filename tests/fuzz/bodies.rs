//! What the fuzz targets do with their bytes. `tests/corpus.rs` calls the same
//! functions with the stored cases, so they need no fuzzer.
//!
//! Errors are what hostile input should give; a panic, a hang, or the failure of
//! one of the assertions here is a finding.

use std::cell::OnceCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use onnx_prune::axes::{self, Analysis};
use onnx_prune::calibrate::{self, DataOptions, npz};
use onnx_prune::mask;
use onnx_prune::onnx::{self, proto};

#[path = "mutate.rs"]
mod mutate;

pub use mutate::mutated;

/// A target: the bytes of one case go in.
pub type Body = fn(&[u8]);

/// The targets by name; the corpus of each is in `tests/corpus/NAME`.
pub const TARGETS: [(&str, Body); 5] = [
    ("model", model),
    ("external", external),
    ("mutated", mutated),
    ("inputs", inputs),
    ("masks", masks),
];

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

/// A folder of this thread, made once.
fn folder() -> PathBuf {
    FOLDER.with(|f| {
        f.get_or_init(|| tempfile::tempdir().expect("a temporary folder"))
            .path()
            .to_owned()
    })
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the temporary folder takes files");
}

/// A protobuf: decoded, checked, inlined, analysed and pruned.
pub fn model(bytes: &[u8]) {
    let Ok(loaded) = onnx::from_bytes(bytes.to_vec().into()) else {
        return;
    };
    // Not as messages: NaN is not equal to itself.
    let written = onnx::encode(&loaded.proto);
    let again = onnx::from_bytes(written.clone().into()).expect("what was read can be written");
    assert!(onnx::encode(&again.proto) == written, "it reads back differently");
    if onnx::validate(&loaded.proto).is_ok() {
        mutate::all_stages(&loaded.proto, bytes.last().copied().unwrap_or(0));
    }
}

/// What lies outside of the model's folder.
const SECRET: &[u8] = b"what lies outside must not be read";

/// References to external data. The case has a line per tensor, of the form
/// `location|offset|length|size`, each part but the last `-` where it is missing.
pub fn external(bytes: &[u8]) {
    let root = folder();
    let inside = root.join("model");
    let path = inside.join("m.onnx");
    if !inside.exists() {
        for folder in [&inside, &inside.join("deeper"), &root.join("outside")] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        write(&root.join("outside/secret"), SECRET);
        write(&root.join("secret"), SECRET);
        write(&inside.join("data"), &[7; 64]);
        write(&inside.join("deeper/data"), &[8; 64]);
        write(&inside.join("empty"), &[]);
        #[cfg(unix)]
        for (to, at) in [
            ("../outside/secret", "link"),
            ("../outside", "linked"),
            ("data", "fine"),
            ("round", "round"),
        ] {
            std::os::unix::fs::symlink(to, inside.join(at)).expect("a link");
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let mut graph = proto::GraphProto::default();
    for (at, line) in text.lines().take(8).enumerate() {
        let parts: Vec<&str> = line.splitn(4, '|').collect();
        let entries = ["location", "offset", "length"]
            .iter()
            .zip(&parts)
            .filter(|(_, value)| **value != "-")
            .map(|(key, value)| proto::StringStringEntryProto {
                key: Some((*key).to_string()),
                value: Some((*value).replace("OUTSIDE", &root.join("outside").to_string_lossy())),
            });
        graph.initializer.push(proto::TensorProto {
            name: Some(format!("t{at}")),
            dims: vec![
                parts
                    .get(3)
                    .and_then(|size| size.trim().parse().ok())
                    .unwrap_or(4),
            ],
            data_type: Some(if at % 2 == 0 { 3 } else { 1 }),
            data_location: Some(1),
            external_data: entries.collect(),
            ..Default::default()
        });
    }
    let model = proto::ModelProto {
        graph: Some(graph),
        ..Default::default()
    };
    write(&path, &onnx::encode(&model));
    let Ok(loaded) = onnx::load(&path) else { return };
    let own = onnx::encode(&model);
    for tensor in loaded.proto.graph.iter().flat_map(|g| &g.initializer) {
        let found = tensor.raw_data.as_deref().unwrap_or_default();
        // The model itself lies in its folder, too.
        let of_model = found.is_empty() || own.windows(found.len()).any(|part| part == found);
        assert!(
            of_model || found.iter().all(|byte| [7, 8].contains(byte)),
            "{} holds other bytes than the files in the folder",
            tensor.name()
        );
        let size = tensor.dims[0] as u128 * if tensor.data_type() == 3 { 1 } else { 4 };
        assert_eq!(found.len() as u128, size, "{}", tensor.name());
    }
    onnx::validate(&loaded.proto).expect("what was mapped has the right size");
}

/// A small model that takes token ids and a mask.
fn tokens() -> &'static proto::ModelProto {
    static MODEL: OnceLock<proto::ModelProto> = OnceLock::new();
    MODEL.get_or_init(|| {
        let bytes: &[u8] = include_bytes!("../../fixtures/text-language/model.onnx");
        onnx::from_bytes(bytes.into()).expect("a fixture").proto
    })
}

/// One without a vocabulary: an image goes in.
fn image() -> &'static proto::ModelProto {
    static MODEL: OnceLock<proto::ModelProto> = OnceLock::new();
    MODEL.get_or_init(|| {
        let bytes: &[u8] = include_bytes!("../../fixtures/digits-vit/model.onnx");
        onnx::from_bytes(bytes.into()).expect("a fixture").proto
    })
}

const TOKENIZER: &[u8] = include_bytes!("../../fixtures/text-language/tokenizer.json");

/// Calibration inputs: the first byte says as what the rest is read.
pub fn inputs(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let root = folder();
    let options = |name: &str| DataOptions {
        data: vec![root.join(name)],
        samples: 4,
        seq: 8,
        max_length: 16,
        ..DataOptions::default()
    };
    let check = |model: &proto::ModelProto, options: &DataOptions| {
        if let Ok(found) = calibrate::read_samples(model, options) {
            let sizes = |t: &onnx_prune::tensor::Tensor| t.shape.iter().product::<usize>() == t.len();
            assert!(
                found.samples.iter().all(|s| s.feeds.values().all(sizes)),
                "a tensor has other values than its shape says"
            );
            assert!(found.samples.len() <= 4, "more samples than asked for");
            if let Ok(specs) = calibrate::input_specs(model) {
                for batch in calibrate::batches(&found, &specs, 2).into_iter().flatten() {
                    let _ = batch;
                }
            }
        }
    };
    match kind % 8 {
        0 => {
            write(&root.join("a.npz"), content);
            let _ = npz::read(&root.join("a.npz"));
            check(tokens(), &options("a.npz"));
            check(image(), &options("a.npz"));
        }
        1 => {
            write(&root.join("a.npy"), content);
            let _ = npz::read_npy(&root.join("a.npy"));
        }
        2 => {
            let set = root.join("set");
            std::fs::create_dir_all(&set).expect("a folder");
            write(&set.join("input_0.pb"), content);
            check(tokens(), &options("set"));
            check(image(), &options("set"));
        }
        7 => {
            // The rest is the tokenizer.
            write(&root.join("other.json"), content);
            write(&root.join("few.txt"), "Hello, world!\n\nπ ≈ 3\n".as_bytes());
            let options = DataOptions {
                tokenizer: Some(root.join("other.json")),
                ..options("few.txt")
            };
            check(tokens(), &options);
        }
        text => {
            let name = ["a.txt", "a.jsonl", "a.tsv", "a.csv"][usize::from(text - 3)];
            write(&root.join(name), content);
            if !root.join("tokenizer.json").exists() {
                write(&root.join("tokenizer.json"), TOKENIZER);
            }
            let options = DataOptions {
                tokenizer: Some(root.join("tokenizer.json")),
                ..options(name)
            };
            check(tokens(), &options);
        }
    }
}

thread_local! {
    /// The groups that masks are read for.
    static ANALYSED: Analysis = {
        let graph = onnx_prune::graph::build(image()).expect("a fixture");
        axes::analyse(&graph, axes::Options::default())
    };
}

/// Files that an earlier run or another tool made: masks, statistics, tables of
/// latencies. The first byte says which.
pub fn masks(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let root = folder();
    let name = [
        "m.json",
        "m.npz",
        "head_mask.npy",
        "neuron_mask.npy",
        "s",
        "latency.json",
    ][usize::from(kind % 6)];
    let path = root.join(name);
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(content).expect("the temporary folder takes files");
    drop(file);
    match name {
        "s" => {
            if let Ok(found) = calibrate::file::load(&path) {
                let again = root.join("again");
                calibrate::file::save(&again, &found.model, &found.statistics).expect("it can be written");
                let back = calibrate::file::load(&again).expect("it can be read again");
                // Not everything is equal to itself.
                assert_eq!(
                    format!("{back:?}"),
                    format!("{found:?}"),
                    "it reads back differently"
                );
                let mut sum = found.clone();
                let _ = sum.merge(&found);
            }
        }
        "latency.json" => drop(onnx_prune::latency::Cache::open(&path)),
        _ => ANALYSED.with(|analysis| {
            let open = (0..analysis.groups.len()).map(|g| (g, 0)).collect();
            if let Ok((found, _)) = mask::file::read(&path, analysis, &open) {
                found
                    .check(analysis)
                    .expect("a mask that was accepted fits the model");
            }
        }),
    }
}
