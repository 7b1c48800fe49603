//! A folder that appears whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::scratch::{Held, Settling};
use super::staged::{PREFIX, SUFFIX, folder_of, remove_leftovers};
use crate::{Error, Result};

/// Whether a folder that is there already may go; why not where it may not.
type Replaces<'r> = Box<dyn Fn(&Path) -> std::result::Result<(), String> + 'r>;

/// A folder that is being filled under a temporary name beside the place where it will be.
/// Dropping it removes it.
pub struct NewFolder<'r> {
    // Removed before it leaves the list.
    folder: TempDir,
    _held: Held,
    _lock: Option<File>,
    /// Inside of the temporary one, with the permissions that any new folder has.
    inner: PathBuf,
    target: PathBuf,
    replaces: Replaces<'r>,
}

impl<'r> NewFolder<'r> {
    /// An empty one that will be at `target`. `replaces` tells whether a folder that is
    /// there already may go: asked now, and again before it goes.
    ///
    /// # Errors
    /// A place that cannot be written to, or that has something else.
    pub fn new(
        target: &Path,
        replaces: impl Fn(&Path) -> std::result::Result<(), String> + 'r,
    ) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(Error::input(format!(
                "{} does not name a folder",
                target.display()
            )));
        }
        let replaces: Replaces<'r> = Box::new(replaces);
        free(target, &replaces)?;
        let parent = folder_of(target);
        if !parent.is_dir() {
            return Err(Error::input(format!(
                "there is no folder {}: make it first, or name another output",
                parent.display()
            )));
        }
        remove_leftovers(&parent);
        let failed = |e| Error::io("cannot create a folder in", &parent, e);
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(SUFFIX)
            .tempdir_in(&parent)
            .map_err(failed)?;
        let held = Held::new(folder.path());
        // While this process lives nobody takes it for a leftover.
        let lock = File::open(folder.path()).ok();
        let _locked = lock.as_ref().map(File::try_lock);
        let inner = folder.path().join("new");
        std::fs::create_dir(&inner).map_err(failed)?;
        Ok(Self {
            folder,
            _held: held,
            _lock: lock,
            inner,
            target: target.to_owned(),
            replaces,
        })
    }

    /// Where it is while it is filled.
    pub fn path(&self) -> &Path {
        &self.inner
    }

    /// Gives it its name. What had the name before goes.
    ///
    /// # Errors
    /// Names the folder; what was there is there still.
    pub fn commit(self) -> Result<()> {
        let _settling = Settling::begin();
        let target = &self.target;
        let failed = |e| Error::io("cannot write the folder", target, e);
        free(target, &self.replaces)?;
        if let Some(old) = target.metadata().ok().filter(std::fs::Metadata::is_dir) {
            // Who could not read the old one cannot read the new one.
            std::fs::set_permissions(&self.inner, old.permissions()).map_err(failed)?;
            // The old one has the temporary name now and goes with it.
            exchange(&self.inner, target).map_err(failed)?;
        } else {
            std::fs::rename(&self.inner, target).map_err(failed)?;
        }
        drop(self.folder);
        Ok(())
    }
}

/// Makes a folder inside of another one that is there. Where that is gone, as at the end of a
/// process that is stopped, it is not made again.
///
/// # Errors
/// Names the folder.
pub fn folder_within(root: &Path, within: &Path) -> Result<()> {
    let mut at = root.to_owned();
    for part in within.components() {
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|e| Error::io("cannot create", &at, e))?,
        }
    }
    Ok(())
}

/// Whether a folder may get the name.
fn free(target: &Path, replaces: &Replaces) -> Result<()> {
    let shown = target.display();
    match target.symlink_metadata() {
        Ok(found) if !found.is_dir() => Err(Error::input(format!(
            "cannot write the folder {shown}: there is a file or a link of this name"
        ))),
        Ok(_) if !is_empty(target)? => replaces(target).map_err(|why| {
            Error::input(format!(
                "the folder {shown} is not empty, and {why}: name a new one, or remove it yourself"
            ))
        }),
        _ => Ok(()),
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(folder).map_err(|e| Error::io("cannot list", folder, e))?;
    Ok(entries.next().is_none())
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
    let aside = a.with_file_name("old");
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
        let never = |_: &Path| Err("is mine".to_owned());
        let always = |_: &Path| Ok(());
        let scratch = ScratchFolder::new().unwrap();
        let target = scratch.path().join("out");
        let made = NewFolder::new(&target, never).unwrap();
        std::fs::write(made.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        made.commit().unwrap();
        assert_eq!(std::fs::read(target.join("a")).unwrap(), b"1");
        let error = NewFolder::new(&target, never).err().unwrap().to_string();
        assert!(error.contains("not empty, and is mine"), "{error}");
        let again = NewFolder::new(&target, always).unwrap();
        std::fs::write(again.path().join("b"), "2").unwrap();
        again.commit().unwrap();
        assert!(!target.join("a").exists() && target.join("b").exists());
        drop(NewFolder::new(&target, always).unwrap());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        let error = NewFolder::new(&scratch.path().join("x/y"), never)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert!(NewFolder::new(&target.join("b"), always).is_err());
    }

    #[test]
    fn what_appears_in_its_place_meanwhile_stays() {
        let scratch = ScratchFolder::new().unwrap();
        let target = scratch.path().join("out");
        let made = NewFolder::new(&target, |_| Err("is mine".into())).unwrap();
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("thesis"), "years").unwrap();
        assert!(made.commit().is_err());
        assert_eq!(std::fs::read(target.join("thesis")).unwrap(), b"years");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn it_has_the_permissions_of_any_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = ScratchFolder::new().unwrap();
        let (target, plain) = (scratch.path().join("out"), scratch.path().join("plain"));
        NewFolder::new(&target, |_| Ok(())).unwrap().commit().unwrap();
        std::fs::create_dir(&plain).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&target), mode(&plain));
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o700)).unwrap();
        NewFolder::new(&target, |_| Ok(())).unwrap().commit().unwrap();
        assert_eq!(mode(&target) & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_is_gone_is_not_made_again() {
        let scratch = ScratchFolder::new().unwrap();
        let root = scratch.path().join("root");
        assert!(folder_within(&root, Path::new("a/b")).is_err());
        std::fs::create_dir(&root).unwrap();
        folder_within(&root, Path::new("a/b")).unwrap();
        folder_within(&root, Path::new("a/b")).unwrap();
        folder_within(&root, Path::new("")).unwrap();
        assert!(root.join("a/b").is_dir());
    }
}
