//! Files and buffers to models.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::label::quoted;
use super::proto::ModelProto;
use super::proto::tensor_proto::DataLocation;
use super::{external, map, scan, visit};
use crate::error::{Error, Result, ResultExt};

/// A model as read from a file or from memory.
#[derive(Debug, Clone)]
pub struct Model {
    /// The messages. Every external tensor is mapped already: its `raw_data` is
    /// a slice of the map, `data_location` and `external_data` are cleared.
    pub proto: ModelProto,
    /// The file it came from, if it did.
    pub path: Option<PathBuf>,
    /// What the reader should know.
    pub notes: LoadNotes,
}

/// What loading found besides the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadNotes {
    /// Bytes of protobuf fields that the schema (IR 14) does not know. They are
    /// not in [`Model::proto`] and a saved file will lack them.
    pub unknown_bytes: u64,
    /// The side files that hold external data, in the order of first use, with
    /// symlinks resolved.
    pub external_files: Vec<PathBuf>,
}

/// Reads a model and maps its external data.
///
/// The file is opened read-only and never written to. External data must lie in
/// the folder of the model: `..`, absolute locations, and symlinks that lead
/// out of it are errors. When `path` itself is a symlink, the folder of the file
/// it leads to is allowed as well, because download caches link each file into
/// a common folder.
pub fn load(path: &Path) -> Result<Model> {
    if let Some(error) = no_file(path) {
        return Err(error);
    }
    let bytes = map::open(path)?;
    let mut model = decode(bytes).context(|| format!("cannot load {}", path.display()))?;
    model.notes.external_files = external::map_all(&mut model.proto, path)
        .context(|| format!("cannot load the external data of {}", path.display()))?;
    model.path = Some(path.to_owned());
    Ok(model)
}

/// Reads a model from memory. External data is an error: there is no folder to
/// look in.
pub fn from_bytes(bytes: Bytes) -> Result<Model> {
    let mut model = decode(bytes)?;
    visit::tensors(&mut model.proto, |tensor, _| {
        if tensor.data_location() == DataLocation::External {
            return Err(Error::input(format!(
                "tensor {} lies in an external file, but the model was read from memory",
                quoted(tensor.name()),
            )));
        }
        Ok(())
    })?;
    Ok(model)
}

pub(super) fn decode(bytes: Bytes) -> Result<Model> {
    parse(bytes.clone()).map_err(|error| match other_format(&bytes) {
        Some(other) => Error::input(format!("this is {other}, not an ONNX model")),
        None => error,
    })
}

fn parse(bytes: Bytes) -> Result<Model> {
    let unknown_bytes = scan::scan(&bytes)?;
    let proto =
        ModelProto::decode(bytes).map_err(|e| Error::input(format!("not a valid ONNX model: {e}")))?;
    if proto.graph.is_none() {
        return Err(Error::input("not an ONNX model: there is no graph in it"));
    }
    Ok(Model {
        proto,
        path: None,
        notes: LoadNotes {
            unknown_bytes,
            external_files: Vec::new(),
        },
    })
}

/// What is wrong with a path that leads to no file.
fn no_file(path: &Path) -> Option<Error> {
    let shown = path.display();
    let text = path.to_string_lossy();
    if path.is_dir() {
        let models = models_in(path);
        return Some(Error::input(match models.is_empty() {
            true => format!("{shown} is a folder, and there is no .onnx file in it"),
            false => format!(
                "{shown} is a folder: give one of the models in it ({})",
                models.join(", ")
            ),
        }));
    }
    if path.symlink_metadata().is_ok() {
        return None;
    }
    if text.contains("://") {
        let text = "is an address, and nothing is fetched from there: download the file, and give its path";
        return Some(Error::input(format!("{shown} {text}")));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let of_hub = matches!(parts[..], [owner, name] if !owner.is_empty() && !owner.contains('.') && !name.contains(".onnx"));
    let there = path.parent().is_some_and(|folder| folder.is_dir());
    Some(Error::input(match of_hub && !there {
        true => format!(
            "there is no file {shown}. If it is the name of a model on a hub, export it first: \
             optimum-cli export onnx --model {shown} FOLDER"
        ),
        false => format!("there is no file {shown}"),
    }))
}

/// The models in a folder and its folder `onnx`, as a list of names that is not too long.
fn models_in(folder: &Path) -> Vec<String> {
    const MOST: usize = 5;
    let mut found = Vec::new();
    for place in ["", "onnx"] {
        let Ok(entries) = std::fs::read_dir(folder.join(place)) else {
            continue;
        };
        let names = entries.flatten().map(|e| Path::new(place).join(e.file_name()));
        found.extend(names.filter(|n| n.extension().is_some_and(|e| e == "onnx")));
    }
    found.sort();
    let more = found.len().saturating_sub(MOST);
    let mut told: Vec<String> = found.iter().take(MOST).map(|n| n.display().to_string()).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

/// Recognises files that are often given by mistake.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        Some("an empty file")
    } else if bytes.starts_with(b"version https://git-lfs") {
        Some("a Git LFS pointer (fetch the file itself with `git lfs pull`)")
    } else if bytes.starts_with(b"PK\x03\x04") {
        Some("a ZIP archive (a PyTorch checkpoint?)")
    } else if bytes.get(4..8) == Some(b"ORTM") {
        Some("an ONNX Runtime format (.ort) model (use the .onnx it was made from)")
    } else if bytes.get(8..10) == Some(b"{\"") {
        Some("a safetensors file")
    } else {
        None
    }
}
