//! Where a pruned model comes from, told by its own metadata.
//!
//! | Key | Value |
//! |---|---|
//! | `onnx_prune.tool` | name and version |
//! | `onnx_prune.input_sha256` | SHA-256 of the input, side files included |
//! | `onnx_prune.options` | method, re-fitting, seed and so on, as JSON |
//! | `onnx_prune.mask` | what stays of each group, in the layout of `--export-mask mask.json` |
//!
//! No times and no paths of outputs: the same run gives the same bytes. With the
//! last entry, `--mask pruned.onnx` replays the mask on the input it was made for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::onnx::{self, proto};
use crate::{Error, Result, ResultExt};

const TOOL: &str = "onnx_prune.tool";
const INPUT: &str = "onnx_prune.input_sha256";
const OPTIONS: &str = "onnx_prune.options";
const MASK: &str = "onnx_prune.mask";
/// The option that says which heads have fewer channels.
pub const CHANNELS: &str = "channels";

/// The name of this program and its version.
pub fn tool() -> String {
    format!("onnx-prune {}", env!("CARGO_PKG_VERSION"))
}

/// What a pruned model says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Name and version of the program that wrote it.
    pub tool: String,
    /// SHA-256 of the model it was made of.
    pub input_sha256: String,
    /// The options, as JSON.
    pub options: String,
    /// What stays of each group, in the layout of a mask file.
    pub mask: String,
}

/// Writes where `model` comes from into its metadata; entries of an earlier run
/// are replaced, all others stay. `mask` is its JSON.
///
/// # Errors
/// Options or a mask that JSON cannot hold.
pub fn stamp(
    model: &mut proto::ModelProto,
    input_sha256: &str,
    options: &BTreeMap<String, serde_json::Value>,
    mask: &str,
) -> Result<()> {
    let options = serde_json::to_string(options)
        .map_err(|e| Error::input(format!("the options cannot be written as JSON: {e}")))?;
    let entries = [
        (TOOL, tool()),
        (INPUT, input_sha256.to_owned()),
        (OPTIONS, options),
        (MASK, mask.trim_end().to_owned()),
    ];
    let ours = |key: &str| entries.iter().any(|(own, _)| *own == key);
    model.metadata_props.retain(|p| !ours(p.key()));
    for (key, value) in entries {
        model.metadata_props.push(proto::StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
        });
    }
    Ok(())
}

/// What [`stamp`] wrote; `None` for a model that this program has not written.
pub fn read(model: &proto::ModelProto) -> Option<Provenance> {
    let entry = |key: &str| {
        let found = model.metadata_props.iter().find(|p| p.key() == key)?;
        Some(found.value().to_owned())
    };
    Some(Provenance {
        tool: entry(TOOL)?,
        input_sha256: entry(INPUT)?,
        options: entry(OPTIONS)?,
        mask: entry(MASK)?,
    })
}

/// What the file at `path` says about itself.
///
/// # Errors
/// A file that is no model, or that this program has not written.
pub fn of_file(path: &Path) -> Result<Provenance> {
    let model = onnx::load(path)?;
    read(&model.proto).ok_or_else(|| {
        Error::input(
            "the model's metadata hold no mask: it was not written by onnx-prune (there is no entry onnx_prune.mask)",
        )
    })
}

/// What to tell about a mask taken from the pruned model at `path` for a model with
/// this hash: nothing where it was made for that one and says all, or is no model.
///
/// # Errors
/// As [`of_file`].
pub fn of_another(path: &Path, input_sha256: &str) -> Result<Option<String>> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
        return Ok(None);
    }
    let own = of_file(path)?;
    let other = own.input_sha256;
    if other != input_sha256 {
        return Ok(Some(format!(
            "the mask of {} was made for another file of these groups (SHA-256 {other})",
            path.display()
        )));
    }
    let options: serde_json::Value = serde_json::from_str(&own.options).unwrap_or_default();
    let narrowed = options[CHANNELS].as_array().is_some_and(|told| !told.is_empty());
    Ok(narrowed.then(|| {
        format!(
            "heads of {} have fewer channels, of which its mask says nothing: they keep all of them here",
            path.display()
        )
    }))
}

/// A file that was read, so that a run can be repeated on the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DataFile {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: String,
}

/// The files behind `--data` and `--tokenizer`, folders walked in order.
///
/// # Errors
/// A file that cannot be read.
pub fn data_files(paths: &[PathBuf]) -> Result<Vec<DataFile>> {
    /// Folders of data are flat, or hold folders with one test data set each.
    const DEPTH: usize = 2;
    let mut found = Vec::new();
    for path in paths {
        walk(path, DEPTH, &mut found).context(|| "hashing the calibration data".into())?;
    }
    Ok(found)
}

fn walk(path: &Path, depth: usize, found: &mut Vec<DataFile>) -> Result<()> {
    let fail = |e| Error::io("cannot read", path, e);
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if metadata.is_file() {
        found.push(DataFile {
            path: path.to_owned(),
            bytes: metadata.len(),
            sha256: onnx::sha256(path, &[])?,
        });
    } else if metadata.is_dir() && depth > 0 {
        let entries = std::fs::read_dir(path).map_err(fail)?;
        let mut inside: Vec<PathBuf> = entries
            .map(|e| e.map(|e| e.path()))
            .collect::<std::io::Result<_>>()
            .map_err(fail)?;
        inside.sort();
        for entry in inside {
            walk(&entry, depth - 1, found)?;
        }
    }
    Ok(())
}
