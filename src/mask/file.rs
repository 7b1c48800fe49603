//! Masks in files: JSON by group name, NumPy arrays by layer.
//!
//! | Path | Holds |
//! |---|---|
//! | `.json` | [`SCHEMA`], groups by name with the indices of the units that stay; the report of a run reads as one, too |
//! | `.onnx` | a model that this program has pruned: its metadata hold such a JSON ([`crate::onnx::provenance`]) |
//! | `.npz` | `head_mask` (layers x heads), `neuron_mask` (layers x neurons), or one of them |
//! | folder | `head_mask.npy`, `neuron_mask.npy`, or one of them |
//! | `head_mask.npy`, `neuron_mask.npy` | one of them |
//!
//! What the NumPy arrays mean is in `layers`: they are what other tools produce,
//! so they know nothing of this tool's names.

mod layers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Mask;
use crate::axes::{Analysis, GroupId, Kind, PruneGroup};
use crate::io::npz;
use crate::io::staged::{self, Staged};
use crate::onnx::provenance;
use crate::tensor::Tensor;
use crate::{Error, Result, ResultExt};

/// Version of the JSON layout.
pub const SCHEMA: u32 = 1;
/// That of a report, which reads as a mask.
const REPORT: u32 = 2;

/// The arrays, with the kind of unit each is about.
const ARRAYS: [(&str, Kind); 2] = [("head_mask", Kind::Heads), ("neuron_mask", Kind::Neurons)];

/// The largest model's mask is far smaller, and so is a report.
const MAX_FILE: u64 = 1 << 28;

/// A mask as JSON.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Document {
    schema: u32,
    groups: Vec<MaskEntry>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct MaskEntry {
    name: String,
    #[serde(default)]
    kind: Option<String>,
    units: usize,
    kept: Vec<usize>,
}

/// How the mask is stored.
enum Form {
    Json,
    /// A pruned model.
    Onnx,
    Npz,
    /// One array, named by the file.
    Npy(&'static str),
    /// `.npy` files by their usual names.
    Folder,
}

impl Form {
    fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Form::Folder);
        }
        let lower = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().to_lowercase());
        let stem = lower(path.file_stem()).unwrap_or_default();
        match lower(path.extension()).unwrap_or_default().as_str() {
            "json" => Ok(Form::Json),
            "onnx" => Ok(Form::Onnx),
            "npz" => Ok(Form::Npz),
            "npy" => match ARRAYS.iter().find(|(name, _)| *name == stem) {
                Some((name, _)) => Ok(Form::Npy(name)),
                None => Err(Error::input(
                    "a single .npy file is named after what it holds: head_mask.npy or neuron_mask.npy",
                )),
            },
            "pt" | "pth" | "bin" => Err(Error::input(
                "PyTorch files are not read: save the masks with numpy.savez(\"mask.npz\", \
                 head_mask=head_mask.cpu().numpy(), neuron_mask=neuron_mask.cpu().numpy())",
            )),
            _ => Err(Error::input(
                "a mask is a .json, .npz or .npy file, a folder with head_mask.npy and neuron_mask.npy, or a pruned .onnx model",
            )),
        }
    }
}

/// Reads a mask for a model.
///
/// `open` holds the groups that may be pruned (indices in [`Analysis::groups`])
/// with the least number of units that each must keep. What the file prunes
/// elsewhere stays whole, which a note says; groups that the file does not
/// mention stay whole silently. The notes are for the user, a sentence each.
///
/// # Errors
/// A file that cannot be read or does not fit the model: an unknown group, a
/// number of units, layers or heads that is not the model's, an index that is
/// out of range or given twice, a NaN; a group left with fewer units than it
/// must keep.
pub fn read(
    path: &Path,
    analysis: &Analysis,
    open: &BTreeMap<GroupId, usize>,
) -> Result<(Mask, Vec<String>)> {
    let mut notes = Vec::new();
    let place = || format!("the mask {}", path.display());
    let found = match Form::of(path).context(place)? {
        Form::Json => from_json(&text(path)?, analysis),
        Form::Onnx => provenance::of_file(path).and_then(|p| from_json(&p.mask, analysis)),
        Form::Npz => arrays_of(path).and_then(|arrays| layers::from_arrays(analysis, &arrays, &mut notes)),
        Form::Npy(name) => npz::read_npy(path).and_then(|array| {
            layers::from_arrays(analysis, &BTreeMap::from([(name.to_owned(), array)]), &mut notes)
        }),
        Form::Folder => in_folder(path).and_then(|arrays| layers::from_arrays(analysis, &arrays, &mut notes)),
    };
    let mask = found
        .and_then(|found| admitted(found, analysis, open, &mut notes))
        .context(place)?;
    Ok((mask, notes))
}

/// Writes a mask in the form that the path asks for (see the module's table; an
/// existing folder gets `.npy` files), and says what a reader should know.
///
/// # Errors
/// A mask that does not fit the model or that the form cannot hold, a file that
/// cannot be written.
pub fn write(path: &Path, analysis: &Analysis, mask: &Mask) -> Result<Vec<String>> {
    let mut staged = Staged::default();
    let notes = stage(path, analysis, mask, &mut staged)?;
    staged.commit()?;
    Ok(notes)
}

/// The same up to the point where the files get their names, so that they appear
/// together with others.
///
/// # Errors
/// As [`write()`].
pub fn stage(path: &Path, analysis: &Analysis, mask: &Mask, staged: &mut Staged) -> Result<Vec<String>> {
    let place = || format!("the mask {}", path.display());
    mask.check(analysis).context(place)?;
    let mut notes = Vec::new();
    match Form::of(path).context(place)? {
        Form::Json => staged.bytes(path, json(analysis, mask)?.as_bytes())?,
        Form::Onnx => {
            return Err(Error::input(
                "a mask is not written as a model: name a .json or .npz file",
            ))
            .context(place);
        }
        Form::Npz => {
            let arrays = to_arrays(analysis, mask, &ARRAYS, &mut notes).context(place)?;
            let arrays = arrays.iter().map(|(name, array)| (*name, array));
            staged.file(path, |file| npz::write_to(file, arrays))?;
        }
        Form::Npy(name) => {
            let only: Vec<_> = ARRAYS.into_iter().filter(|(n, _)| *n == name).collect();
            for (_, array) in to_arrays(analysis, mask, &only, &mut notes).context(place)? {
                staged.file(path, |file| npz::write_npy_to(file, &array))?;
            }
        }
        Form::Folder => {
            for (name, array) in to_arrays(analysis, mask, &ARRAYS, &mut notes).context(place)? {
                staged.file(&path.join(format!("{name}.npy")), |file| {
                    npz::write_npy_to(file, &array)
                })?;
            }
        }
    }
    Ok(notes)
}

/// The files that [`write()`] may write to.
pub fn files(path: &Path) -> Vec<PathBuf> {
    match Form::of(path) {
        Ok(Form::Folder) => ARRAYS
            .iter()
            .map(|(name, _)| path.join(format!("{name}.npy")))
            .collect(),
        _ => vec![path.to_owned()],
    }
}

fn text(path: &Path) -> Result<String> {
    let bytes = staged::read(path, MAX_FILE).context(|| "cannot read the mask".into())?;
    String::from_utf8(bytes).map_err(|_| Error::input(format!("{} is not UTF-8", path.display())))
}

fn arrays_of(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = npz::Archive::open(path)?;
    let (known, other): (Vec<String>, Vec<String>) = archive
        .arrays()
        .map(|(name, _)| name.to_owned())
        .partition(|name| ARRAYS.iter().any(|(known, _)| known == name));
    if known.is_empty() {
        return Err(Error::input(format!(
            "it holds no array head_mask or neuron_mask, only: {}",
            other.join(", ")
        )));
    }
    known
        .into_iter()
        .map(|name| Ok((name.clone(), archive.read(&name)?)))
        .collect()
}

fn in_folder(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut arrays = BTreeMap::new();
    for (name, _) in ARRAYS {
        let file = path.join(format!("{name}.npy"));
        if file.is_file() {
            arrays.insert(name.to_owned(), npz::read_npy(&file)?);
        }
    }
    if arrays.is_empty() {
        return Err(Error::input(
            "the folder holds neither head_mask.npy nor neuron_mask.npy",
        ));
    }
    Ok(arrays)
}

/// Kept units by group, as a file says it.
type FoundMasks = BTreeMap<GroupId, Vec<bool>>;

fn from_json(text: &str, analysis: &Analysis) -> Result<FoundMasks> {
    let document: Document = serde_json::from_str(text).map_err(|e| {
        Error::input(format!(
            "not a mask in JSON ({e}); expected {{\"schema\": {SCHEMA}, \"groups\": [{{\"name\": ..., \
             \"kind\": ..., \"units\": ..., \"kept\": [...]}}]}}"
        ))
    })?;
    if ![SCHEMA, REPORT].contains(&document.schema) {
        return Err(Error::input(format!(
            "it has the layout {}, this version reads {SCHEMA}",
            document.schema
        )));
    }
    let mut found = FoundMasks::new();
    for entry in document.groups {
        let mut groups = analysis.indexed();
        let (at, group) = groups
            .find(|(_, group)| group.name == entry.name)
            .ok_or_else(|| unknown(&entry.name, analysis))?;
        let flags = flags(&entry, group).context(|| format!("group '{}'", entry.name))?;
        if found.insert(at, flags).is_some() {
            return Err(Error::input(format!("group '{}' is there twice", entry.name)));
        }
    }
    Ok(found)
}

fn flags(entry: &MaskEntry, group: &PruneGroup) -> Result<Vec<bool>> {
    if let Some(kind) = entry.kind.as_deref().filter(|k| *k != group.kind.noun()) {
        return Err(Error::input(format!(
            "its units are {kind} in the mask and {} in the model: is it another model's mask?",
            group.kind.noun()
        )));
    }
    if entry.units != group.units {
        return Err(Error::input(format!(
            "it has {} units in the mask and {} in the model: is it another model's mask?",
            entry.units, group.units
        )));
    }
    let mut flags = vec![false; group.units];
    for index in &entry.kept {
        match flags.get_mut(*index) {
            Some(true) => return Err(Error::input(format!("unit {index} is there twice"))),
            Some(flag) => *flag = true,
            None => {
                return Err(Error::input(format!(
                    "unit {index} is out of range: there are {}, counted from 0",
                    group.units
                )));
            }
        }
    }
    Ok(flags)
}

/// The error for a name that no group has.
fn unknown(name: &str, analysis: &Analysis) -> Error {
    if let Some(frozen) = analysis.frozen.iter().find(|f| f.name == name) {
        return Error::input(format!("group '{name}' cannot be pruned: {}", frozen.why));
    }
    let names: Vec<&str> = analysis.groups.iter().map(|g| g.name.as_str()).collect();
    Error::input(format!(
        "the model has no group '{name}'; there are {} ('inspect' shows all)",
        list(&names)
    ))
}

/// What of a file's mask may be carried out.
fn admitted(
    found: FoundMasks,
    analysis: &Analysis,
    open: &BTreeMap<GroupId, usize>,
    notes: &mut Vec<String>,
) -> Result<Mask> {
    let mut mask = Mask::default();
    let mut closed = Vec::new();
    for (at, flags) in found {
        let Some(group) = analysis.groups.get(at.0) else {
            continue;
        };
        let kept = flags.iter().filter(|k| **k).count();
        if kept == flags.len() {
            continue;
        }
        match open.get(&at) {
            None => closed.push(group.name.as_str()),
            Some(least) if kept < *least => {
                let why = if *least == 1 {
                    "it cannot be removed as a whole (see --min-units)"
                } else {
                    "--min-units asks for it"
                };
                return Err(Error::input(format!(
                    "it keeps {kept} of the {} {} of '{}', and at least {least} must stay: {why}",
                    group.units,
                    group.kind.noun(),
                    group.name
                )));
            }
            Some(_) => {
                mask.kept.insert(at, flags);
            }
        }
    }
    if !closed.is_empty() {
        notes.push(format!(
            "the mask prunes {} that --targets or --exclude leave alone; they stay whole",
            list(&closed)
        ));
    }
    if mask.kept.is_empty() {
        notes.push("the mask prunes nothing".to_owned());
    }
    Ok(mask)
}

/// Some names for a message.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<String> = names.iter().take(SHOWN).map(|n| format!("'{n}'")).collect();
    if names.len() > SHOWN {
        text.push(format!("{} more", names.len() - SHOWN));
    }
    text.join(", ")
}

/// All groups that are pruned by default or by this mask, with what stays.
///
/// # Errors
/// What JSON cannot hold.
pub fn json(analysis: &Analysis, mask: &Mask) -> Result<String> {
    let groups = analysis
        .indexed()
        .filter(|(at, group)| group.kind.is_default() || mask.kept.contains_key(at))
        .map(|(at, group)| MaskEntry {
            name: group.name.clone(),
            kind: Some(group.kind.noun().to_owned()),
            units: group.units,
            kept: match mask.kept.get(&at) {
                Some(flags) => (0..).zip(flags).filter(|(_, k)| **k).map(|(i, _)| i).collect(),
                None => (0..group.units).collect(),
            },
        })
        .collect();
    let document = Document {
        schema: SCHEMA,
        groups,
    };
    let mut text = serde_json::to_string(&document)
        .map_err(|e| Error::input(format!("the mask cannot be written as JSON: {e}")))?;
    text.push('\n');
    Ok(text)
}

/// The arrays of those `names` that the model has groups for; an error when the
/// mask prunes what they do not hold.
fn to_arrays(
    analysis: &Analysis,
    mask: &Mask,
    names: &[(&'static str, Kind)],
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, Tensor)>> {
    let lost: Vec<&str> = mask
        .kept
        .iter()
        .filter(|(_, flags)| flags.contains(&false))
        .filter_map(|(at, _)| analysis.groups.get(at.0))
        .filter(|group| !names.iter().any(|(_, kind)| *kind == group.kind))
        .map(|group| group.name.as_str())
        .collect();
    if !lost.is_empty() {
        let arrays: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        return Err(Error::input(format!(
            "{} alone cannot hold what is pruned of {}: write a {} file",
            arrays.join(" and "),
            list(&lost),
            if names.len() == ARRAYS.len() {
                ".json"
            } else {
                ".json or .npz"
            }
        )));
    }
    let arrays: Vec<_> = names
        .iter()
        .filter_map(|(name, kind)| Some((*name, layers::array(analysis, mask, *kind, notes)?)))
        .collect();
    if arrays.is_empty() {
        return Err(Error::input("the model has neither heads nor neurons to prune"));
    }
    Ok(arrays)
}
