//! Files that appear together or not at all.
//!
//! Everything is written to temporary files in the folders of the targets and
//! synced; [`Staged::commit`] then renames them, in the order in which they were
//! added. A rename replaces the directory entry, never the content of the file
//! behind it: other names of an old file, and maps of it, keep what they have.
//! When one of several renames fails, those before it are taken back. A process
//! that is killed between two renames leaves whole files, the later ones old.
//!
//! Temporary files are locked while their process lives. [`Staged`] removes those
//! that nobody holds a lock on from the folders it writes to: leftovers of
//! processes that were killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::scratch::{Held, Settling};
use crate::error::{Error, Result};

pub(super) const PREFIX: &str = ".onnx-prune-";
pub(super) const SUFFIX: &str = ".tmp";
/// Younger files are never taken for leftovers: there is a moment between
/// creating a file and locking it.
const SETTLED: Duration = Duration::from_secs(10);

/// The folder of a file; `.` for a bare name.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Opens a regular file; opening a named pipe would wait for a writer.
///
/// # Errors
/// Names the path.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::input(format!("there is no file {}", path.display())),
        _ => Error::io("cannot read", path, e),
    };
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display())));
    }
    File::open(path).map_err(failed)
}

/// Reads a file that is expected to be small: a regular one of at most `most` bytes.
///
/// # Errors
/// Names the path.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("cannot read", path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::input(format!(
            "{} has more than {most} bytes, which no such file needs",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Writes one file: it appears whole or not at all. A path that leads to a device
/// or a pipe is written to as it is.
///
/// # Errors
/// Names the path.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut staged = Staged::default();
    staged.bytes(path, content)?;
    staged.commit()
}

/// Whether `path` could be written: tried before a long run, not after it.
///
/// # Errors
/// A folder that is missing or that cannot be written to, a path that is a folder.
pub fn writable(path: &Path) -> Result<()> {
    target(path)?;
    if is_device(path) {
        return Ok(());
    }
    temporary(&folder_of(path), path).map(drop)
}

/// Refuses outputs that are one of the inputs, under any name (the same path, a
/// hard link, a symlink), or that are each other. Each comes with what it is.
///
/// # Errors
/// Names both.
pub fn apart(outputs: &[(&str, &Path)], inputs: &[(&str, &Path)]) -> Result<()> {
    for (at, (what, path)) in outputs.iter().enumerate() {
        if let Some((input, other)) = inputs.iter().find(|(_, other)| same(path, other)) {
            return Err(Error::input(format!(
                "{what} {} is the same file as {input} {}, which is never changed: give another path",
                path.display(),
                other.display()
            )));
        }
        let twin = outputs[..at]
            .iter()
            .find(|(_, other)| !is_device(path) && (entry(path) == entry(other) || same(path, other)));
        if let Some((other, _)) = twin {
            return Err(Error::input(format!(
                "{what} and {other} would both be written to {}: give another path",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Whether both lead to one file that is there.
fn same(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
            return a.is_file() && a.dev() == b.dev() && a.ino() == b.ino();
        }
    }
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// The directory entry that a path names, whether there is a file or not.
pub fn entry(path: &Path) -> Option<PathBuf> {
    Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?))
}

/// Something that is there and is neither a regular file nor a folder.
fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Refuses what does not name a file.
fn target(path: &Path) -> Result<()> {
    if path.file_name().is_none() {
        return Err(Error::input(format!("{} does not name a file", path.display())));
    }
    if path.is_dir() {
        return Err(Error::input(format!(
            "cannot write {}: it is a folder",
            path.display()
        )));
    }
    Ok(())
}

/// Files that are written but do not have their names yet. Dropping it removes
/// them.
#[derive(Debug, Default)]
pub struct Staged {
    parts: Vec<StagedPart>,
    /// What goes once everything is in place.
    old: Vec<PathBuf>,
}

#[derive(Debug)]
struct StagedPart {
    content: StagedContent,
    path: PathBuf,
}

#[derive(Debug)]
enum StagedContent {
    /// Replaces what has its name.
    File(Unnamed),
    /// Is an error where something has its name.
    Fresh(Unnamed),
    /// For a device or a pipe, which cannot be replaced.
    Device(Vec<u8>),
}

impl Staged {
    /// Writes the file that will be at `path`.
    ///
    /// # Errors
    /// What `write` fails with, a folder that cannot be written to, a path that is
    /// a folder or a device.
    pub fn file<T>(&mut self, path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> Result<T> {
        target(path)?;
        if is_device(path) {
            return Err(Error::input(format!(
                "cannot write {}: it is not a regular file",
                path.display()
            )));
        }
        let (file, made) = filled(path, write)?;
        self.add(StagedContent::File(file), path);
        Ok(made)
    }

    /// The same, for a path that must still be free when it gets its name.
    ///
    /// # Errors
    /// As [`Staged::file`].
    pub fn fresh<T>(&mut self, path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> Result<T> {
        let (file, made) = filled(path, write)?;
        self.add(StagedContent::Fresh(file), path);
        Ok(made)
    }

    /// Writes the content of a file that will be at `path`, or of the device that
    /// is there.
    ///
    /// # Errors
    /// As [`Staged::file`].
    pub fn bytes(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        if is_device(path) {
            self.add(StagedContent::Device(content.to_vec()), path);
            return Ok(());
        }
        self.file(path, |file| file.write_all(content))
    }

    /// Removes a file once everything is in place.
    pub fn remove(&mut self, path: PathBuf) {
        self.old.push(path);
    }

    /// All of the other's files after those that are here.
    pub fn append(&mut self, other: Staged) {
        self.parts.extend(other.parts);
        self.old.extend(other.old);
    }

    fn add(&mut self, content: StagedContent, path: &Path) {
        self.parts.push(StagedPart {
            content,
            path: path.to_owned(),
        });
    }

    /// Gives all files their names.
    ///
    /// # Errors
    /// Names the path that failed; what was there before is there again.
    pub fn commit(self) -> Result<()> {
        let _settling = Settling::begin();
        let mut undo: Vec<Undo> = Vec::new();
        let mut folders: Vec<PathBuf> = Vec::new();
        let mut placed: Vec<PathBuf> = Vec::new();
        for part in self.parts {
            match place(part.content, &part.path) {
                Ok(one) => undo.extend(one),
                Err(e) => {
                    for one in undo.into_iter().rev() {
                        one.take_back();
                    }
                    return Err(Error::io("cannot write", &part.path, e));
                }
            }
            let folder = folder_of(&part.path);
            if !folders.contains(&folder) {
                folders.push(folder);
            }
            placed.extend(entry(&part.path));
        }
        for folder in &folders {
            sync_folder(folder);
        }
        for file in self.old {
            // Saved already; a file too many is not worth an error.
            if entry(&file).is_some_and(|file| !placed.contains(&file)) {
                let _ = std::fs::remove_file(file);
            }
        }
        Ok(())
    }
}

/// A file that is removed unless it gets its name.
#[derive(Debug)]
struct Unnamed {
    file: NamedTempFile,
    _held: Held,
}

/// How to take back a rename.
enum Undo {
    /// Nothing had this name.
    Remove(PathBuf),
    /// Another name of the file that had it.
    Restore(NamedTempFile<()>, PathBuf),
}

impl Undo {
    fn take_back(self) {
        match self {
            Undo::Remove(path) => drop(std::fs::remove_file(path)),
            Undo::Restore(old, path) => drop(old.persist(path)),
        }
    }
}

fn place(content: StagedContent, path: &Path) -> io::Result<Option<Undo>> {
    match content {
        StagedContent::Device(content) => {
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all(&content)?;
            Ok(None)
        }
        StagedContent::Fresh(file) => {
            file.file.persist_noclobber(path).map_err(|e| e.error)?;
            Ok(Some(Undo::Remove(path.to_owned())))
        }
        StagedContent::File(file) => {
            let undo = match path.symlink_metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Some(Undo::Remove(path.to_owned())),
                // Not every file system has hard links; without one there is no way back.
                _ => builder()
                    .make_in(folder_of(path), |other| std::fs::hard_link(path, other))
                    .ok()
                    .map(|old| Undo::Restore(old, path.to_owned())),
            };
            file.file.persist(path).map_err(|e| e.error)?;
            Ok(undo)
        }
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file; the umask takes away what it should.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}

/// A temporary file for `path`, in its folder.
fn temporary(folder: &Path, path: &Path) -> Result<Unnamed> {
    let shown = path.display();
    if !folder.is_dir() {
        return Err(Error::input(format!(
            "cannot write {shown}: there is no folder {}",
            folder.display()
        )));
    }
    remove_leftovers(folder);
    // The error names the temporary file, which tells nobody anything.
    let made = builder()
        .tempfile_in(folder)
        .map_err(|e| io::Error::from(e.kind()));
    let what = format!("cannot write {shown}: no file can be made in");
    let file = made.map_err(|e| Error::io(&what, folder, e))?;
    // Where a file system has no locks, leftovers stay.
    let _ = file.as_file().try_lock();
    let held = Held::new(file.path());
    Ok(Unnamed { file, _held: held })
}

/// The same, written and synced.
fn filled<T>(path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> Result<(Unnamed, T)> {
    let mut made = temporary(&folder_of(path), path)?;
    let fail = |e| Error::io("cannot write", path, e);
    let told = write(made.file.as_file_mut()).map_err(fail)?;
    made.file.as_file().sync_all().map_err(fail)?;
    Ok((made, told))
}

/// Removes temporary files and folders of processes that are no more.
pub(super) fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for found in entries.flatten() {
        let name = found.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if !ours {
            continue;
        }
        // Of the entry itself: a symlink of this name is not ours.
        let settled = found.metadata().is_ok_and(|m| {
            let age = m.modified().ok().and_then(|at| at.elapsed().ok());
            (m.is_file() || m.is_dir()) && age.is_some_and(|age| age > SETTLED)
        });
        if settled
            && let Ok(file) = File::open(found.path())
            && file.try_lock().is_ok()
        {
            let path = found.path();
            let _ = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
        }
    }
}

/// Makes the renames durable. Not every system can; the content is synced anyway.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
