//! Models to files: all of it or nothing.
//!
//! Everything is written to temporary files in the target folder, synced, and
//! then renamed: side file first, model last. A rename replaces the directory
//! entry, never the content of the file behind it, so a file that is mapped
//! (the input, when it is also the output) keeps its bytes. It follows that an
//! output path that is a symlink or a hard link is replaced itself; the file it
//! led to, or the other names of it, are not changed.
//!
//! A side file is never written over: if the name is taken by other content, the
//! next free one is used (`model.onnx.data`, `model.onnx.1.data`, ...). So at any
//! moment, also when the process is killed, the old model finds its old data.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

use super::label::quoted;
use super::layout::FileLayout;
use super::load::{Model, decode};
use super::proto::ModelProto;
use super::proto::tensor_proto::DataLocation;
use super::visit::{self, NameRole};
use super::{external, map, write};
use crate::error::{Error, Result};
use crate::io::staged::{Staged, entry, folder_of};

/// The most that a protobuf message may have, by its specification.
const PROTOBUF_LIMIT: u64 = i32::MAX as u64;
/// Names that are tried for a side file.
const MAX_SIDE_FILES: usize = 1000;
/// Whether weights go to a side file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum External {
    /// Only when the model would be above 2 GiB, which protobuf cannot hold.
    #[default]
    Auto,
    /// Always: tensors of 1 KiB and more.
    Always,
}

/// How to save.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Whether weights go to a side file.
    pub external: External,
    /// The files that the model was read from. When the output replaces an older
    /// model, that model's own side file is removed afterwards, unless it is one
    /// of these. If this is empty, nothing is ever removed.
    pub inputs: Vec<PathBuf>,
    /// How the side file is called.
    pub side: SideName,
}

/// How a side file is called after its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SideName {
    /// `model.onnx.data`.
    #[default]
    Dot,
    /// `model.onnx_data`, as Optimum and the loaders that look for it have it.
    Underscore,
}

impl SideName {
    fn of(self, model: &str) -> String {
        match self {
            SideName::Dot => format!("{model}.data"),
            SideName::Underscore => format!("{model}_data"),
        }
    }
}

impl SaveOptions {
    /// The options that suit what was made from `model`: a side file if it had
    /// any, and its files are protected.
    pub fn for_model(model: &Model) -> Self {
        let external = match model.notes.external_files.is_empty() {
            true => External::Auto,
            false => External::Always,
        };
        let inputs = model.path.iter().chain(&model.notes.external_files);
        let name = model.path.as_ref().and_then(|path| path.file_name()?.to_str());
        let underscore = name.map(|name| SideName::Underscore.of(name));
        let named = model
            .notes
            .external_files
            .iter()
            .filter_map(|file| file.file_name()?.to_str());
        let side = match named.into_iter().any(|file| Some(file) == underscore.as_deref()) {
            true => SideName::Underscore,
            false => SideName::Dot,
        };
        SaveOptions {
            side,
            external,
            inputs: inputs.cloned().collect(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Files and their sizes in bytes: the model first, then the side file if
    /// there is one.
    pub files: Vec<(PathBuf, u64)>,
}

/// Writes a model to `path`, and its weights to a side file next to it where
/// `options` or the size ask for it.
///
/// Either everything appears or nothing does; on an error no file is left behind
/// and an older file at `path` is as it was. If `path` is a symlink or one of
/// several hard links, only this directory entry is replaced: other names of the
/// same file, an input among them, keep the old content.
pub fn save(proto: &ModelProto, path: &Path, options: &SaveOptions) -> Result<Saved> {
    let (staged, saved) = stage(proto, path, options)?;
    staged.commit()?;
    Ok(saved)
}

/// The same up to the point where the files get their names, so that others can
/// appear together with them.
pub fn stage(proto: &ModelProto, path: &Path, options: &SaveOptions) -> Result<(Staged, Saved)> {
    let target = SaveTarget::new(path, options.side)?;
    let (mut model, layout) = laid_out(proto, options)?;
    let mut staged = Staged::default();
    let mut files = Vec::new();
    if !layout.is_empty() {
        let name = target.side_file(&layout, &mut staged)?;
        layout.name(&mut model, &name)?;
        files.push((target.folder.join(name), layout.length()));
    }
    if too_large(&model) {
        return Err(Error::input(format!(
            "the model needs {} bytes besides what can go to a side file, more than protobuf's 2 GiB",
            model.encoded_len(),
        )));
    }
    for file in target.old_side_files(options) {
        if files.iter().all(|(path, _)| *path != file) {
            staged.remove(file);
        }
    }
    let length = staged.file(path, |file| write::write(&model, file))?;
    files.insert(0, (path.to_owned(), length));
    Ok((staged, Saved { files }))
}

/// The bytes that [`save`] writes to `path`, model and side file together,
/// where the side file gets the first of its names.
///
/// # Errors
/// As [`save`], without its I/O.
pub fn written_size(proto: &ModelProto, path: &Path, options: &SaveOptions) -> Result<u64> {
    let (mut model, layout) = laid_out(proto, options)?;
    if !layout.is_empty() {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        layout.name(&mut model, &options.side.of(&name))?;
    }
    Ok(model.encoded_len() as u64 + layout.length())
}

/// The model without the tensors that go to a side file, and these.
fn laid_out(proto: &ModelProto, options: &SaveOptions) -> Result<(ModelProto, FileLayout)> {
    // Weights are not copied: clones of `raw_data` share the bytes.
    let mut model = proto.clone();
    refuse_external(&mut model)?;
    let mut layout = FileLayout::default();
    if options.external == External::Always || too_large(&model) {
        layout.take(&mut model, NameRole::Initializer)?;
        if too_large(&model) {
            layout.take(&mut model, NameRole::Attribute)?;
        }
    }
    Ok((model, layout))
}

fn too_large(model: &ModelProto) -> bool {
    model.encoded_len() as u64 > PROTOBUF_LIMIT
}

/// A reference into the input's folder would lead nowhere from the output's.
fn refuse_external(model: &mut ModelProto) -> Result<()> {
    visit::tensors(model, |tensor, _| match tensor.data_location() {
        DataLocation::External => Err(Error::input(format!(
            "tensor {} refers to an external file that is not loaded",
            quoted(tensor.name()),
        ))),
        DataLocation::Default => Ok(()),
    })
}

/// Where a model goes.
struct SaveTarget {
    path: PathBuf,
    folder: PathBuf,
    side: SideName,
}

impl SaveTarget {
    /// Refuses what a rename should not replace.
    fn new(path: &Path, side: SideName) -> Result<Self> {
        if path.file_name().is_none() {
            return Err(Error::input(format!("{} does not name a file", path.display())));
        }
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            let what = if path.is_dir() {
                "a folder"
            } else {
                "not a regular file"
            };
            return Err(Error::input(format!(
                "cannot write the model to {}: it is {what}",
                path.display()
            )));
        }
        Ok(SaveTarget {
            path: path.to_owned(),
            folder: folder_of(path),
            side,
        })
    }

    /// Writes the side file, and returns the name it will have: `model.onnx.data`,
    /// or the next one that is free. A file of this name and content is used as it
    /// is.
    fn side_file(&self, layout: &FileLayout, staged: &mut Staged) -> Result<String> {
        let names = self.side_names()?;
        for name in names.take(MAX_SIDE_FILES) {
            let path = self.folder.join(&name);
            let found = match path.symlink_metadata() {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    staged.fresh(&path, |file| layout.write(file))?;
                    return Ok(name);
                }
                Err(e) => return Err(Error::io("cannot write", &path, e)),
            };
            let same = found.is_file()
                && found.len() == layout.length()
                && map::open(&path).is_ok_and(|bytes| layout.equals(&bytes));
            if same {
                return Ok(name);
            }
        }
        Err(Error::input(format!(
            "there are {MAX_SIDE_FILES} side files of {} already: remove those that no model uses",
            self.path.display(),
        )))
    }

    /// The names that side files of this model may have, in order of preference.
    fn side_names(&self) -> Result<impl Iterator<Item = String>> {
        let name = self
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| {
                Error::input(format!(
                    "{}: a model with a side file needs a name in UTF-8",
                    self.path.display()
                ))
            })?;
        let (side, next) = (self.side, name.to_owned());
        let others = (1..).map(move |n: u32| side.of(&format!("{next}.{n}")));
        Ok(std::iter::once(side.of(name)).chain(others))
    }

    /// Side files that the model which is about to be replaced refers to, by a
    /// name that only its own have. None of the inputs, and none at all when the
    /// input itself is replaced.
    fn old_side_files(&self, options: &SaveOptions) -> Vec<PathBuf> {
        let target = entry(&self.path);
        let in_place = options.inputs.iter().any(|input| entry(input) == target);
        if options.inputs.is_empty() || in_place || !self.path.is_file() {
            return Vec::new();
        }
        let Ok(names) = self.side_names() else {
            return Vec::new();
        };
        let own: Vec<String> = names.take(MAX_SIDE_FILES).collect();
        let Ok(mut old) = map::open(&self.path).and_then(decode) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = Vec::new();
        let _ = visit::tensors(&mut old.proto, |tensor, _| {
            if let Some(location) = external::location(tensor)
                && own.iter().any(|name| name == location)
            {
                let file = self.folder.join(location);
                if !files.contains(&file) {
                    files.push(file);
                }
            }
            Ok(())
        });
        let inputs: Vec<_> = options
            .inputs
            .iter()
            .filter_map(|input| input.canonicalize().ok())
            .collect();
        files.retain(|file| match file.canonicalize() {
            Ok(real) => !inputs.contains(&real),
            Err(_) => false,
        });
        files
    }
}
