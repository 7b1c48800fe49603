//! What the fuzz targets do with their bytes. `tests/it/corpus.rs` calls the same
//! functions with the stored cases, so they need no fuzzer.
//!
//! Errors are what hostile input should give; a panic, a hang, or the failure of
//! one of the assertions here is a finding.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use onnx_prune::axes;
use onnx_prune::budget::{self, Align, Demand, Limit, Prices};
use onnx_prune::calibrate::{self, SiteProbe};
use onnx_prune::data::DataOptions;
use onnx_prune::engine::{EngineChoice, EngineOptions};
use onnx_prune::io::npz;
use onnx_prune::measure::latency;
use onnx_prune::network::Network;
use onnx_prune::numerics::Statistics;
use onnx_prune::numerics::score::Curve;
use onnx_prune::onnx::{self, proto};
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::refit::{Reconstruct, RefitOptions};
use onnx_prune::sites::{self, PruneTarget, Selection};
use onnx_prune::{mask, measure, pipeline, rank, refit};
use serde_json::json;

#[path = "mutate.rs"]
mod mutate;
#[path = "within.rs"]
mod within;

pub use mutate::mutated;
pub use within::within;

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
        let path = folder().join("model.onnx");
        write(&path, bytes);
        calibrated(&path);
    }
}

/// A run up to the point where it needs an engine, which it does not get.
fn calibrated(model: &Path) {
    let options = Options {
        engine: EngineOptions {
            engine: EngineChoice::Ort,
            ort_lib: Some(folder().join("no-such-library")),
            ..EngineOptions::default()
        },
        ..Options::default()
    };
    let output = folder().join("statistics");
    let never = AtomicBool::new(false);
    let ended = pipeline::collect(model, &output, (&options, 8), &Quiet, &never);
    assert!(ended.is_err(), "there is no engine");
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
        samples: Some(4),
        seq: Some(8),
        max_length: 16,
        ..DataOptions::default()
    };
    let check = |model: &proto::ModelProto, options: &DataOptions| {
        if let Ok(found) = onnx_prune::data::read_samples(model, options) {
            let sizes = |t: &onnx_prune::tensor::Tensor| t.shape.iter().product::<usize>() == t.len();
            assert!(
                found.samples.iter().all(|s| s.feeds.values().all(sizes)),
                "a tensor has other values than its shape says"
            );
            assert!(found.samples.len() <= 4, "more samples than asked for");
            if let Ok(specs) = onnx_prune::data::input_specs(model) {
                for batch in onnx_prune::data::batches(&found, &specs, 2).into_iter().flatten() {
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

/// The image model with the groups that masks are read for.
struct Analysed {
    network: Network,
    targets: Vec<PruneTarget>,
}

impl Analysed {
    /// Ranked, cut to half and re-fitted, where these statistics allow it.
    fn fitted(
        &self,
        statistics: &Statistics,
        rank: &RankOptions,
        how: Reconstruct,
    ) -> Option<proto::ModelProto> {
        let (network, targets) = (&self.network, &self.targets[..]);
        let ranked = rank::rank(network, targets, statistics, rank, true).ok()?;
        let sizes = budget::Sizes {
            batch: 1,
            seq: 1,
            shapes: Default::default(),
        };
        let cost = budget::Cost::new(network, &sizes);
        let limits = [Limit::new(Demand::Flops(0.5), Prices::macs(&cost, targets))];
        let got = within(&limits, network, targets, &ranked.rankings, Align::exactly(1));
        let (mask, _) = got.ok()?;
        mask.check(&network.axes).expect("a mask that fits the model");
        let local = refit::Local {
            network,
            targets,
            mask: &mask,
            options: RefitOptions {
                reconstruct: how,
                ..Options::default().refitting()
            },
        };
        let fits: Vec<_> = local.fits(statistics).ok()?.into_iter().flatten().collect();
        let mut fitted = network.clone();
        for fit in &fits {
            fit.put(&mut fitted).ok()?;
        }
        Some(fitted.proto)
    }
}

thread_local! {
    static ANALYSED: Analysed = {
        let network = Network::of(image().clone(), axes::AnalysisOptions::default()).expect("a fixture");
        let targets = sites::choose(&network, &Selection::default()).expect("a fixture");
        Analysed { network, targets }
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
        "pruned.onnx",
        "table.json",
        "numbers",
    ][usize::from(kind % 9)];
    let path = root.join(name);
    match name {
        "pruned.onnx" => write(&path, &onnx::encode(&pruned(content))),
        _ => write(&path, content),
    }
    match name {
        "s" => statistics(&path),
        "latency.json" => drop(measure::Cache::open(&path)),
        "table.json" => table(content),
        "numbers" => numbers(content),
        _ => ANALYSED.with(|Analysed { network, .. }| {
            let analysis = &network.axes;
            let open = analysis.indexed().map(|(g, _)| (g, 0)).collect();
            if let Ok((found, _)) = mask::file::read(&path, analysis, &open) {
                found
                    .check(analysis)
                    .expect("a mask that was accepted fits the model");
            }
        }),
    }
}

/// A model whose metadata hold this as their mask.
fn pruned(content: &[u8]) -> proto::ModelProto {
    let entries = ["tool", "input_sha256", "options", "mask"].map(|key| proto::StringStringEntryProto {
        key: Some(format!("onnx_prune.{key}")),
        value: Some(String::from_utf8_lossy(content).into_owned()),
    });
    proto::ModelProto {
        graph: Some(proto::GraphProto::default()),
        metadata_props: entries.to_vec(),
        ..proto::ModelProto::default()
    }
}

/// Statistics: read, written, read again, added up.
fn statistics(path: &Path) {
    let Ok(found) = calibrate::file::load(path) else {
        return;
    };
    let again = folder().join("again");
    found.save(&again).expect("it can be written");
    let back = calibrate::file::load(&again).expect("it can be read again");
    // Not everything is equal to itself.
    assert_eq!(
        format!("{back:?}"),
        format!("{found:?}"),
        "it reads back differently"
    );
    let mut sum = found.clone();
    let _ = sum.merge(&found);
    let _ = pipeline::merge(&[path.to_owned(), again], &folder().join("sum"));
}

/// Latencies, which become prices and a mask.
fn table(content: &[u8]) {
    let Ok(table) = serde_json::from_slice::<latency::LatencyTable>(content) else {
        return;
    };
    ANALYSED.with(|Analysed { network, targets }| {
        let Ok(prices) = table.prices(network, targets) else {
            return;
        };
        let curve = |target: &PruneTarget| {
            let units = target.units.len();
            let error = (0..=units).map(|n| n as f64).collect();
            let order = (0..units).collect();
            onnx_prune::numerics::score::Ranking::Curve(Curve { order, error })
        };
        let rankings: Vec<_> = targets.iter().map(curve).collect();
        for demand in [Demand::Speedup(1.5), Demand::Latency(0.5)] {
            let limits = [Limit::new(demand, prices.clone())];
            if let Ok((mask, _)) = within(&limits, network, targets, &rankings, Align::exactly(1)) {
                mask.check(&network.axes).expect("a mask that fits the model");
            }
        }
    });
}

/// A file of statistics of these sites.
fn stored<'p>(
    probes: impl Iterator<Item = &'p SiteProbe>,
    of_rows: bool,
    next: &mut impl FnMut(usize) -> Vec<f64>,
) -> Vec<u8> {
    let (mut sites, mut tensors) = (serde_json::Map::new(), serde_json::Map::new());
    let mut data: Vec<u8> = Vec::new();
    for probe in probes {
        let width = probe.width;
        let (pilot, sum) = (next(width), next(width));
        let gram = if of_rows {
            let rows = [next(width), next(width), next(width)];
            let entry = |(i, j): (usize, usize)| rows.iter().map(|row| row[i] * row[j]).sum();
            let columns = (0..width).flat_map(|j| (j..width).map(move |i| (i, j)));
            columns.map(entry).collect()
        } else {
            next(width * (width + 1) / 2)
        };
        for (part, values) in [("pilot", pilot), ("sum", sum), ("gram", gram)] {
            let start = data.len();
            data.extend(values.iter().flat_map(|v: &f64| v.to_le_bytes()));
            tensors.insert(
                format!("{}.{part}", probe.site),
                json!({"dtype": "F64", "shape": [values.len()], "data_offsets": [start, data.len()]}),
            );
        }
        sites.insert(probe.site.clone(), json!([9, next(1)[0].abs()]));
    }
    let head = json!({"version": 2, "model": "", "samples": 3, "tokens": 9, "sites": sites});
    tensors.insert(
        "__metadata__".into(),
        json!({"onnx-prune statistics": head.to_string()}),
    );
    let header = serde_json::Value::Object(tensors).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    file
}

/// Statistics of the right sizes with any values: two bytes say which method and
/// re-fitting, and whether the sums of products are those of some rows; each byte
/// after them is a number, the least ones of odd kinds.
fn numbers(content: &[u8]) {
    let [method, reconstruct, values @ ..] = content else {
        return;
    };
    let mut options = RankOptions {
        method: [Method::Obs, Method::Wanda, Method::Kcm][usize::from(method % 3)],
        ..Options::default().rank
    };
    options.kcm.max_iterations = 8;
    let how = [Reconstruct::Local, Reconstruct::Rescale][usize::from(reconstruct % 2)];
    let number = |byte: u8| match byte {
        0 | 1 => 0.0,
        2 => -1e300,
        3 => f64::MAX,
        4 => f64::MIN_POSITIVE,
        5 => -1.0,
        6 => 1e30,
        7 => 1e-30,
        _ => (f64::from(byte) - 64.0) / 32.0,
    };
    let mut cycle = values.iter().cycle().map(|byte| number(*byte));
    let mut next = |count: usize| -> Vec<f64> {
        let found: Vec<f64> = cycle.by_ref().take(count).collect();
        if found.is_empty() { vec![0.0; count] } else { found }
    };
    ANALYSED.with(|it| {
        let path = folder().join("numbers");
        let sites = it.targets.iter().flat_map(|c| &c.sites);
        let probes = sites.filter_map(|s| s.probe.as_ref());
        write(&path, &stored(probes, reconstruct & 2 == 0, &mut next));
        let found = match calibrate::file::load(&path) {
            Ok(stored) => stored.statistics,
            // Products of the largest numbers are none.
            Err(_) => return,
        };
        let Some(fitted) = it.fitted(&found, &options, how) else {
            return;
        };
        for tensor in fitted.graph.iter().flat_map(|g| &g.initializer) {
            let values = onnx::tensor(tensor)
                .expect("what was fitted can be read")
                .to_f32();
            assert!(
                values.iter().all(|v| v.is_finite()),
                "{} has values that are no numbers after re-fitting",
                tensor.name()
            );
        }
    });
}
