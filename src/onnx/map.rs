//! Files as bytes: mapped when large, read when small. Mapped bytes know where they
//! come from, so that whoever can read the file need not be given a copy.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Files shorter than this are read into memory: as fast as a map, and nothing
/// another process does to the file can hurt.
const SMALL: u64 = 1 << 20;

/// The content of a regular file, opened read-only. Large files are mapped and
/// stay so until the last slice of the result is dropped.
pub(super) fn open(path: &Path) -> Result<Bytes> {
    let fail = |e| Error::io("cannot read", path, e);
    // Before opening: opening a named pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display())));
    }
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let length = metadata.len();
    if length < SMALL {
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.take(SMALL).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 == SMALL {
            return Err(Error::input(format!("{} grew while it was read", path.display())));
        }
        return Ok(bytes.into());
    }
    // SAFETY: the map is private to this process, read-only and kept alive by
    // the `Bytes`. Its content is only ever read as plain bytes, for which every
    // value is valid. The caller's part of the contract, that nobody modifies
    // the file meanwhile, is documented: changed bytes are changed weights, a
    // shrunk file is a SIGBUS. This crate itself replaces files by rename only.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
    Ok(Bytes::from_owner(Mapped::new(map, path, &metadata)))
}

/// Where mapped bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorOrigin {
    /// The file, links resolved.
    pub path: PathBuf,
    /// The first byte in it.
    pub offset: u64,
}

/// Where `bytes` lie, if they are of a file that is mapped and still the one that was
/// opened under its path.
pub fn origin(bytes: &[u8]) -> Option<TensorOrigin> {
    let at = bytes.as_ptr().addr();
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let map = maps.iter().find(|m| m.holds(at, bytes.len()))?;
    let same = std::fs::metadata(&map.path).is_ok_and(|now| Identity::of(&now) == map.identity);
    (same && map.identity.is_some()).then(|| TensorOrigin {
        path: map.path.clone(),
        offset: (at - map.start()) as u64,
    })
}

/// Gives the memory of all maps back to the system, which reads the files again where
/// they are needed: for when somebody else reads them.
pub fn let_go() {
    #[cfg(unix)]
    for map in MAPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // SAFETY: the map is of a file and read-only, so that no page holds anything that
        // the file does not; a page that is read later is filled from the file again.
        // Where the advice is not taken nothing changes.
        let _ = unsafe { map.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// The maps of this process.
static MAPS: Mutex<Vec<TensorPlace>> = Mutex::new(Vec::new());

/// A map in memory and the file that it shows.
struct TensorPlace {
    map: Arc<memmap2::Mmap>,
    path: PathBuf,
    identity: Option<Identity>,
}

impl TensorPlace {
    fn start(&self) -> usize {
        self.map.as_ptr().addr()
    }

    fn holds(&self, at: usize, length: usize) -> bool {
        at.checked_sub(self.start())
            .and_then(|offset| offset.checked_add(length))
            .is_some_and(|end| end <= self.map.len())
    }
}

/// What tells a file from another one under the same path.
#[derive(PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: std::time::SystemTime,
}

impl Identity {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok()?,
        })
    }

    /// Elsewhere a file has no number that is easy to ask for.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<Self> {
        None
    }
}

/// A map that is known as long as it lives.
struct Mapped(Arc<memmap2::Mmap>);

impl Mapped {
    fn new(map: memmap2::Mmap, path: &Path, metadata: &Metadata) -> Self {
        let map = Arc::new(map);
        if let Ok(path) = path.canonicalize() {
            MAPS.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(TensorPlace {
                    map: Arc::clone(&map),
                    path,
                    identity: Identity::of(metadata),
                });
        }
        Self(map)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|m| !Arc::ptr_eq(&m.map, &self.0));
    }
}
