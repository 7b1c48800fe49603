//! External data: tensors whose bytes lie in side files.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::label::quoted;
use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, TensorProto};
use super::{map, tensor, visit};
use crate::error::{Error, Result, ResultExt};

/// Replaces every external tensor's reference by a slice of its side file.
/// Returns the side files, in the order of first use.
pub(super) fn map_all(model: &mut ModelProto, path: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Option<SideFiles> = None;
    visit::tensors(model, |tensor, _| {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let files = match &mut files {
            Some(files) => files,
            none => none.insert(SideFiles::of(path)?),
        };
        let bytes = slice(tensor, files).context(|| format!("tensor {}", quoted(tensor.name())))?;
        tensor.raw_data = Some(bytes);
        tensor.data_location = None;
        tensor.external_data.clear();
        Ok(())
    })?;
    Ok(files.map(|f| f.order).unwrap_or_default())
}

fn slice(tensor: &TensorProto, files: &mut SideFiles) -> Result<Bytes> {
    if tensor::has_data(tensor) {
        return Err(Error::input(
            "it has data both in the model and in an external file",
        ));
    }
    let size = tensor::byte_size(tensor)?;
    let reference = Reference::parse(tensor)?;
    if let Some(length) = reference.length
        && length != size
    {
        return Err(Error::input(format!(
            "its shape and type need {size} bytes, the external data has {length}"
        )));
    }
    let file = files.open(reference.location)?;
    let end = reference
        .offset
        .checked_add(size)
        .filter(|end| *end <= file.len() as u64);
    let Some(end) = end else {
        return Err(Error::input(format!(
            "{size} bytes at offset {} lie outside {} ({} bytes)",
            reference.offset,
            quoted(reference.location),
            file.len(),
        )));
    };
    // Both fit: they are no larger than the length of a slice in memory.
    Ok(file.slice(reference.offset as usize..end as usize))
}

/// The `external_data` entries of one tensor.
struct Reference<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

impl<'a> Reference<'a> {
    fn parse(tensor: &'a TensorProto) -> Result<Self> {
        Ok(Reference {
            location: entry(tensor, "location")?
                .ok_or_else(|| Error::input("its external data has no location"))?,
            offset: number(tensor, "offset")?.unwrap_or(0),
            length: number(tensor, "length")?,
        })
    }
}

/// The location of an external tensor, if it has exactly one.
pub(super) fn location(tensor: &TensorProto) -> Option<&str> {
    (tensor.data_location() == DataLocation::External).then(|| entry(tensor, "location").ok().flatten())?
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Result<Option<&'a str>> {
    let mut values = tensor.external_data.iter().filter(|e| e.key() == key);
    let value = values.next().map(|e| e.value());
    match values.next() {
        None => Ok(value),
        Some(_) => Err(Error::input(format!("its external data names the {key} twice"))),
    }
}

fn number(tensor: &TensorProto, key: &str) -> Result<Option<u64>> {
    let Some(text) = entry(tensor, key)? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::input(format!(
            "its external data has the {key} {}, not a number",
            quoted(text)
        ))),
    }
}

/// The side files of one model: each is opened once.
struct SideFiles {
    /// The folder that locations are relative to.
    folder: PathBuf,
    /// Where files may really be, symlinks resolved.
    allowed: Vec<PathBuf>,
    by_location: HashMap<String, Bytes>,
    by_path: HashMap<PathBuf, Bytes>,
    order: Vec<PathBuf>,
}

impl SideFiles {
    fn of(model: &Path) -> Result<Self> {
        let resolve = |path: &Path| path.canonicalize().map_err(|e| Error::io("cannot find", path, e));
        let folder = crate::io::staged::folder_of(model);
        let mut allowed = vec![resolve(&folder)?];
        allowed.extend(resolve(model)?.parent().map(Path::to_owned));
        Ok(SideFiles {
            folder,
            allowed,
            by_location: HashMap::new(),
            by_path: HashMap::new(),
            order: Vec::new(),
        })
    }

    fn open(&mut self, location: &str) -> Result<Bytes> {
        if let Some(bytes) = self.by_location.get(location) {
            return Ok(bytes.clone());
        }
        if !stays_inside(location) {
            return Err(Error::input(format!(
                "its external data is in {}, which is not a relative path inside the model's folder",
                quoted(location),
            )));
        }
        let path = self.folder.join(location);
        let real = path
            .canonicalize()
            .map_err(|e| Error::io("cannot open the external data file", &path, e))?;
        if !self.allowed.iter().any(|folder| real.starts_with(folder)) {
            return Err(Error::input(format!(
                "its external data file {} is a link that leads out of the model's folder, to {}",
                quoted(location),
                real.display(),
            )));
        }
        let bytes = match self.by_path.get(&real) {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = map::open(&real)?;
                self.by_path.insert(real.clone(), bytes.clone());
                self.order.push(real);
                bytes
            }
        };
        self.by_location.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

/// Whether a location is a relative path without `..`, on any system: files
/// travel, so backslashes and drive letters count everywhere.
pub(super) fn stays_inside(location: &str) -> bool {
    let windows = location.split(['/', '\\']).any(|part| part == "..")
        || location.starts_with('\\')
        || location.as_bytes().get(1) == Some(&b':');
    let plain = Path::new(location)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    plain && !windows && !location.is_empty() && !location.contains('\0')
}
