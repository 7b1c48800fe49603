//! Folders as loaders read them: which files are models, which of these are one model in
//! several precisions, and what else there is.
//!
//! ```text
//! names          model_quantized.onnx is a variant of model.onnx
//! ids            token ids in configurations, renumbered
//! json           values of a JSON text by their place, the rest as it is
//! configs        the sizes and token ids that config.json and its like state
//! sentencepiece  pieces of a sentencepiece model
//! ```

mod configs;
mod ids;
mod json;
mod names;
mod sentencepiece;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use configs::{CacheSize, ChangedVocabulary, Changes, ConfigEdit, edited, readable, roles};

use crate::io::staged;
use crate::{Error, Result};

/// Folders inside of folders, and files, that a model folder may have.
const DEEPEST: usize = 8;
const MOST_FILES: usize = 10_000;

/// Larger files are no configurations.
pub const MAX_CONFIG: u64 = 64 << 20;

/// A folder with one or more models and what belongs to them.
#[derive(Debug)]
pub struct ModelFolder {
    /// Where it is.
    pub root: PathBuf,
    /// All files, by their paths inside.
    pub files: Vec<PathBuf>,
    /// The models among them.
    pub models: Vec<FolderModel>,
}

/// A model that a folder has, with the other files that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderModel {
    /// Its file.
    pub file: PathBuf,
    /// The same model in other precisions.
    pub variants: Vec<PathBuf>,
    /// Files with the same bytes.
    pub copies: Vec<PathBuf>,
}

impl ModelFolder {
    /// Lists a folder.
    ///
    /// # Errors
    /// A folder that cannot be listed, has no ONNX file, or has links that lead out of it.
    pub fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let inside = Inside::of(root)?;
        list(root, Path::new(""), &inside, 0, &mut files)?;
        files.sort();
        let is_model = |path: &&PathBuf| path.extension().is_some_and(|e| e == "onnx");
        let all: Vec<PathBuf> = files.iter().filter(is_model).cloned().collect();
        if all.is_empty() {
            return Err(Error::input(format!(
                "there is no ONNX file in the folder {}: name the file itself, or export the model",
                root.display()
            )));
        }
        Ok(Self {
            models: grouped(root, all)?,
            root: root.to_owned(),
            files,
        })
    }

    /// The tokenizer that goes with the models, if it is of the kind that is read here.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        let named = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "tokenizer.json");
        // That of the root before those of its parts.
        let found = self.files.iter().filter(named);
        let path = found.min_by_key(|path| path.components().count())?;
        Some(self.root.join(path))
    }

    /// The first of some configurations that states a number: the id of a token, a size.
    pub fn number(&self, files: &[&str], key: &str) -> Option<i64> {
        files.iter().find_map(|file| {
            let bytes = staged::read(&self.root.join(file), MAX_CONFIG).ok()?;
            let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            let found = value.get(key)?;
            found.as_i64().or_else(|| found.as_array()?.first()?.as_i64())
        })
    }
}

/// What may be read through links: the folder itself, and the store of a hub's cache, whose
/// snapshots consist of links into it.
struct Inside {
    root: PathBuf,
    store: Option<PathBuf>,
}

impl Inside {
    fn of(root: &Path) -> Result<Self> {
        let root = root
            .canonicalize()
            .map_err(|e| Error::io("cannot read the folder", root, e))?;
        let snapshots = root
            .parent()
            .filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
        let store = snapshots.and_then(Path::parent).map(|cache| cache.join("blobs"));
        Ok(Self { root, store })
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.root) || self.store.as_ref().is_some_and(|store| path.starts_with(store))
    }
}

fn list(root: &Path, within: &Path, inside: &Inside, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(within);
    let failed = |e| Error::io("cannot list", &folder, e);
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = within.join(entry.file_name());
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            // What version control and downloads keep for themselves.
            if hidden {
                continue;
            }
            if depth == DEEPEST {
                return Err(Error::input(format!(
                    "{} has folders within folders more than {DEEPEST} deep, which no model has",
                    root.display()
                )));
            }
            list(root, &path, inside, depth + 1, files)?;
            continue;
        }
        let whole = root.join(&path);
        if kind.is_symlink() {
            let target = whole
                .canonicalize()
                .map_err(|e| Error::io("cannot follow the link", &whole, e))?;
            if !inside.holds(&target) || !target.is_file() {
                return Err(Error::input(format!(
                    "the link {} leads to {}: links in a model folder may lead to files in it, or in the hub cache that it belongs to",
                    whole.display(),
                    target.display()
                )));
            }
        } else if !kind.is_file() {
            return Err(Error::input(format!("{} is no regular file", whole.display())));
        }
        if files.len() == MOST_FILES {
            return Err(Error::input(format!(
                "{} has more than {MOST_FILES} files: give the folder of one model",
                root.display()
            )));
        }
        files.push(path);
    }
    Ok(())
}

/// Files by the model that they hold.
fn grouped(root: &Path, files: Vec<PathBuf>) -> Result<Vec<FolderModel>> {
    let mut models: BTreeMap<(PathBuf, OsString), Vec<PathBuf>> = BTreeMap::new();
    for file in files {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let stem = file.file_stem().unwrap_or_default();
        // What is no text tells no precision.
        let base = stem.to_str().map_or(stem, |stem| names::base(stem).as_ref());
        let base = base.to_owned();
        models.entry((folder, base)).or_default().push(file);
    }
    let mut found: Vec<FolderModel> = Vec::new();
    for ((_, base), mut files) in models {
        let base = base.to_string_lossy();
        files.sort_by_key(|file| {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            (names::rank(&stem, &base), file.clone())
        });
        let mut files = files.into_iter();
        let Some(file) = files.next() else { continue };
        let mut model = FolderModel {
            file,
            variants: files.collect(),
            copies: Vec::new(),
        };
        // Of two files with the same bytes the one that has variants leads.
        let mut twin = None;
        for (at, other) in found.iter().enumerate() {
            let leads = model.variants.is_empty() || other.variants.is_empty();
            if leads && same_bytes(&root.join(&other.file), &root.join(&model.file))? {
                twin = Some(at);
                break;
            }
        }
        let Some(other) = twin.and_then(|at| found.get_mut(at)) else {
            found.push(model);
            continue;
        };
        if !model.variants.is_empty() {
            std::mem::swap(other, &mut model);
        }
        other.copies.push(model.file);
        other.copies.extend(model.copies);
    }
    Ok(found)
}

/// Whether two files hold the same.
fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    use std::io::Read as _;
    let (mut x, mut y) = (staged::open(a)?, staged::open(b)?);
    let size = |file: &std::fs::File| file.metadata().map(|m| m.len()).ok();
    if size(&x) != size(&y) {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    loop {
        let n = x.read(&mut left).map_err(|e| Error::io("cannot read", a, e))?;
        if n == 0 {
            return Ok(true);
        }
        y.read_exact(&mut right[..n])
            .map_err(|e| Error::io("cannot read", b, e))?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::ScratchFolder;

    fn folder(files: &[(&str, &str)]) -> ScratchFolder {
        let folder = ScratchFolder::new().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        all.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn files_of_one_model_are_found() {
        let folder = folder(&[
            ("config.json", "{}"),
            (".git/model.onnx", "x"),
            ("model.onnx", "a"),
            ("onnx/model.onnx", "a"),
            ("onnx/model_O2.onnx", "b"),
            ("onnx/decoder_model_merged_q4f16.onnx", "c"),
            ("onnx/decoder_model_merged.onnx", "d"),
            ("onnx/decoder_model.onnx", "e"),
            ("tokenizer.json", "{}"),
        ]);
        let found = ModelFolder::read(folder.path()).unwrap();
        assert_eq!(found.files.len(), 8, "{:?}", found.files);
        let model = |file: &str, variants: &[&str]| FolderModel {
            file: file.into(),
            variants: paths(variants),
            copies: Vec::new(),
        };
        assert_eq!(
            found.models,
            [
                FolderModel {
                    copies: paths(&["model.onnx"]),
                    ..model("onnx/model.onnx", &["onnx/model_O2.onnx"])
                },
                model("onnx/decoder_model.onnx", &[]),
                model(
                    "onnx/decoder_model_merged.onnx",
                    &["onnx/decoder_model_merged_q4f16.onnx"]
                ),
            ]
        );
        assert_eq!(found.tokenizer(), Some(folder.path().join("tokenizer.json")));
    }

    #[test]
    fn copies_are_one_model() {
        let folder = folder(&[("model.onnx", "same"), ("onnx/model.onnx", "same")]);
        let found = ModelFolder::read(folder.path()).unwrap();
        assert_eq!(found.models.len(), 1);
        assert_eq!(found.models[0].copies, paths(&["onnx/model.onnx"]));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_nowhere_else() {
        let outside = folder(&[("secret", "x"), ("blobs/1", "weights")]);
        let cache = outside.path();
        let snapshot = cache.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::os::unix::fs::symlink("../../blobs/1", snapshot.join("model.onnx")).unwrap();
        assert!(ModelFolder::read(&snapshot).is_ok());
        std::os::unix::fs::symlink(cache.join("secret"), snapshot.join("config.json")).unwrap();
        let error = ModelFolder::read(&snapshot).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && error.contains("leads to"),
            "{error}"
        );
    }
}
