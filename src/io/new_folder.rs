//! A folder that appears whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::scratch::{Held, Settling};
use super::staged::{PREFIX, SUFFIX, folder_of, remove_leftovers};
use crate::{Error, Result};

/// A folder that is being filled under a temporary name beside the place where it will be.
/// Dropping it removes it.
#[derive(Debug)]
pub struct NewFolder {
    // Removed before it leaves the list.
    folder: TempDir,
    _held: Held,
    _lock: Option<File>,
    target: PathBuf,
}

impl NewFolder {
    /// An empty one that will be at `target`. `replaces` tells whether a folder that is
    /// there already may go.
    ///
    /// # Errors
    /// A place that cannot be written to, or that has something else.
    pub fn new(target: &Path, replaces: impl Fn(&Path) -> bool) -> Result<Self> {
        let shown = target.display();
        if target.file_name().is_none() {
            return Err(Error::input(format!("{shown} does not name a folder")));
        }
        match target.symlink_metadata() {
            Ok(found) if !found.is_dir() => {
                return Err(Error::input(format!(
                    "cannot write the folder {shown}: there is a file of this name"
                )));
            }
            Ok(_) if !is_empty(target)? && !replaces(target) => {
                return Err(Error::input(format!(
                    "the folder {shown} is not empty, and is no earlier result: name a new one"
                )));
            }
            _ => {}
        }
        let parent = folder_of(target);
        if !parent.is_dir() {
            return Err(Error::input(format!(
                "there is no folder {}: make it first, or name another output",
                parent.display()
            )));
        }
        remove_leftovers(&parent);
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(SUFFIX)
            .tempdir_in(&parent)
            .map_err(|e| Error::io("cannot create a folder in", &parent, e))?;
        let held = Held::new(folder.path());
        // While this process lives nobody takes it for a leftover.
        let lock = File::open(folder.path()).ok();
        let _locked = lock.as_ref().map(File::try_lock);
        Ok(Self {
            folder,
            _held: held,
            _lock: lock,
            target: target.to_owned(),
        })
    }

    /// Where it is while it is filled.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it its name. What had the name before goes.
    ///
    /// # Errors
    /// Names the folder; what was there is there still.
    pub fn commit(self) -> Result<()> {
        let _settling = Settling::begin();
        let target = &self.target;
        let failed = |e| Error::io("cannot write the folder", target, e);
        open_to_all(self.path()).map_err(failed)?;
        if target.is_dir() {
            // The old one has the temporary name now and goes with it.
            exchange(self.path(), target).map_err(failed)?;
            return Ok(());
        }
        std::fs::rename(self.path(), target).map_err(failed)?;
        // There is nothing left to remove.
        let _gone = self.folder.keep();
        Ok(())
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(folder).map_err(|e| Error::io("cannot list", folder, e))?;
    Ok(entries.next().is_none())
}

/// Temporary folders are for their owner alone; this is none any more.
fn open_to_all(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    }
    let _ = folder;
    Ok(())
}

/// Swaps two folders, at once where the system can.
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    let aside = a.with_extension("old");
    std::fs::rename(b, &aside)?;
    if let Err(error) = std::fs::rename(a, b) {
        std::fs::rename(&aside, b)?;
        return Err(error);
    }
    std::fs::rename(&aside, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::ScratchFolder;

    #[test]
    fn it_appears_whole_and_replaces_only_what_it_may() {
        let scratch = ScratchFolder::new().unwrap();
        let target = scratch.path().join("out");
        let made = NewFolder::new(&target, |_| false).unwrap();
        std::fs::write(made.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        made.commit().unwrap();
        assert_eq!(std::fs::read(target.join("a")).unwrap(), b"1");
        let error = NewFolder::new(&target, |_| false).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        let again = NewFolder::new(&target, |_| true).unwrap();
        std::fs::write(again.path().join("b"), "2").unwrap();
        again.commit().unwrap();
        assert!(!target.join("a").exists() && target.join("b").exists());
        drop(NewFolder::new(&target, |_| true).unwrap());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        let error = NewFolder::new(&scratch.path().join("x/y"), |_| false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert!(NewFolder::new(&target.join("b"), |_| true).is_err());
    }
}
