//! Models with recorded inputs and outputs, and the engines to run them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use onnx_prune::engine::{Device, Engine, EngineChoice, EngineOptions, choose};
use onnx_prune::io::npz;
use onnx_prune::onnx::proto::tensor_proto::DataLocation;
use onnx_prune::onnx::proto::{ModelProto, TensorProto};
use onnx_prune::tensor::{Feeds, Tensor};
use prost::Message;

/// One folder of the zoo.
pub struct Case {
    /// The folder's name.
    pub name: String,
    /// The model, with the data of side files inside.
    pub model: ModelProto,
    /// Two sets of inputs with the outputs of unoptimised ONNX Runtime.
    pub io: Vec<(Feeds, Feeds)>,
}

/// All cases; `None`, with a message, where the zoo is not there.
pub fn zoo() -> Option<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/zoo");
    let Ok(entries) = fs::read_dir(&folder) else {
        println!("skipped: no {}", folder.display());
        return None;
    };
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("io.npz").exists())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "the zoo is empty");
    Some(folders.iter().map(|folder| Case::load(folder)).collect())
}

/// The case called `name`.
pub fn case(name: &str) -> Option<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/zoo")
        .join(name);
    if !folder.exists() {
        println!("skipped: no {}", folder.display());
        return None;
    }
    Some(Case::load(&folder))
}

impl Case {
    fn load(folder: &Path) -> Case {
        let bytes = fs::read(folder.join("model.onnx")).unwrap();
        let mut model = ModelProto::decode(bytes.as_slice()).unwrap();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            inline(tensor, folder);
        }
        Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model,
            io: (0..2).map(|set| recorded(folder, set)).collect(),
        }
    }
}

/// Reads the data of a tensor from its side file.
fn inline(tensor: &mut TensorProto, folder: &Path) {
    if tensor.data_location() != DataLocation::External {
        return;
    }
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key() == key);
    let number = |key: &str| entry(key).map(|e| e.value().parse::<u64>().unwrap());
    let mut file = fs::File::open(folder.join(entry("location").unwrap().value())).unwrap();
    let offset = number("offset").unwrap_or(0);
    let length = number("length").unwrap_or(file.metadata().unwrap().len() - offset);
    file.seek(std::io::SeekFrom::Start(offset)).unwrap();
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data).unwrap();
    tensor.raw_data = Some(data.into());
}

/// Set `set` of a case: its inputs and its outputs.
fn recorded(folder: &Path, set: usize) -> (Feeds, Feeds) {
    let arrays = npz::read(&folder.join("io.npz")).unwrap();
    let (mut inputs, mut outputs) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in arrays {
        for (prefix, side) in [("in", &mut inputs), ("out", &mut outputs)] {
            if let Some(key) = name.strip_prefix(&format!("{prefix}{set}.")) {
                side.insert(key.to_owned(), tensor.clone());
            }
        }
    }
    assert!(!inputs.is_empty() && !outputs.is_empty(), "{}", folder.display());
    (inputs, outputs)
}

/// ONNX Runtime on the CPU; `None`, with a message, where it is not found: by
/// the usual search, or in the Python environment under `target/py`.
pub fn onnx_runtime(threads: Option<usize>) -> Option<Box<dyn Engine>> {
    let mut options = EngineOptions {
        custom_ops: Vec::new(),
        engine: EngineChoice::Ort,
        device: Device::Cpu,
        threads,
        ort_lib: None,
    };
    let found = choose(&options).or_else(|error| {
        let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/py/lib");
        let python = fs::read_dir(lib).into_iter().flatten().flatten().next();
        let Some(python) = python else {
            return Err(error);
        };
        options.ort_lib = Some(python.path().join("site-packages/onnxruntime/capi"));
        choose(&options)
    });
    found.map_err(|error| println!("skipped: {}", error.chain())).ok()
}

/// The built-in engine; `None`, with a message, in a build without it.
pub fn built_in(threads: Option<usize>) -> Option<Box<dyn Engine>> {
    let options = EngineOptions {
        custom_ops: Vec::new(),
        engine: EngineChoice::Tract,
        device: Device::Cpu,
        threads,
        ort_lib: None,
    };
    if cfg!(not(feature = "tract")) {
        println!("skipped: built without tract");
        return None;
    }
    Some(choose(&options).unwrap())
}

/// max|a - b| / max|b| for floats; 0 or infinity for other types and for
/// different shapes.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    if a.shape != b.shape || a.elem() != b.elem() {
        return f64::INFINITY;
    }
    if !b.elem().is_float() {
        return if a == b { 0.0 } else { f64::INFINITY };
    }
    let (a, b) = (a.to_f32(), b.to_f32());
    let finite = |x: &&f32| x.is_finite();
    let scale = b
        .iter()
        .filter(finite)
        .fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
    let worst = a.iter().zip(&b).fold(0.0, |m: f64, (&x, &y)| {
        if x == y || (x.is_nan() && y.is_nan()) {
            return m;
        }
        let d = (f64::from(x) - f64::from(y)).abs();
        if d.is_finite() { m.max(d) } else { f64::INFINITY }
    });
    if worst == 0.0 { 0.0 } else { worst / scale }
}
