//! Temporary files and folders that are removed however the process ends.
//!
//! Dropping removes them. A process that exits while another thread still works drops
//! nothing, so what is there is listed, and [`end`] removes what is on the list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::staged::SUFFIX;
use crate::error::{Error, Result};

static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The list, which a panic elsewhere leaves usable.
fn held() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the list, while it lives.
#[derive(Debug)]
pub(super) struct Held(PathBuf);

impl Held {
    pub(super) fn new(path: &Path) -> Self {
        held().insert(path.to_owned());
        Held(path.to_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        held().remove(&self.0);
    }
}

/// A folder among the temporary files.
#[derive(Debug)]
pub struct ScratchFolder {
    // Removed before it leaves the list.
    folder: TempDir,
    _held: Held,
}

impl ScratchFolder {
    /// An empty one.
    ///
    /// # Errors
    /// Where none can be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("onnx-prune-")
            .tempdir()
            .map_err(|e| Error::io("cannot create a folder in", &std::env::temp_dir(), e))?;
        let held = Held::new(folder.path());
        Ok(Self { folder, _held: held })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// While it lives nothing is removed and no process ends by [`end`]: files get their names
/// together.
pub(super) struct Settling {
    _held: MutexGuard<'static, ()>,
}

static NAMING: Mutex<()> = Mutex::new(());

impl Settling {
    pub(super) fn begin() -> Self {
        Self {
            _held: NAMING.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Ends the process with an exit code, once no file is half named, and without what is
/// temporary.
pub fn end(code: u8) -> ! {
    let _settled = Settling::begin();
    remove_all();
    leave(code)
}

/// Ends the process at once. An exit runs what the libraries of an engine have registered for
/// it, under the feet of their threads, which may crash; a process that becomes another one
/// runs nothing.
#[cfg(unix)]
fn leave(code: u8) -> ! {
    use std::os::unix::process::CommandExt as _;
    let _failed = std::process::Command::new("sh")
        .args(["-c", &format!("exit {code}")])
        .exec();
    std::process::exit(i32::from(code))
}

#[cfg(not(unix))]
fn leave(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

/// Removes all files and folders that are there.
fn remove_all() {
    let paths = std::mem::take(&mut *held());
    for path in paths {
        let _ = match path.is_dir() {
            true => remove_folder(&path),
            false => std::fs::remove_file(&path),
        };
    }
}

/// Removes a folder that another thread may still write to: under another name nothing new
/// gets into it.
fn remove_folder(path: &Path) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = match name.strip_suffix(SUFFIX) {
        Some(stem) => path.with_file_name(format!("{stem}-gone{SUFFIX}")),
        None => path.with_file_name(format!("{name}-gone")),
    };
    match std::fs::rename(path, &gone) {
        Ok(()) => std::fs::remove_dir_all(&gone),
        Err(_) => std::fs::remove_dir_all(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_listed_and_what_is_gone_is_not() {
        let folder = ScratchFolder::new().unwrap();
        let path = folder.path().to_owned();
        assert!(path.is_dir() && held().contains(&path));
        drop(folder);
        assert!(!path.exists() && !held().contains(&path));
    }

    #[test]
    fn a_folder_goes_with_what_is_in_it() {
        let folder = ScratchFolder::new().unwrap();
        for name in [".onnx-prune-1.tmp", "plain"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.join("deep")).unwrap();
            std::fs::write(path.join("deep/file"), "x").unwrap();
            remove_folder(&path).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
