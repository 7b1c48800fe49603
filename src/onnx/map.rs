//! Files as bytes: mapped when large, read when small.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

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
    let length = file.metadata().map_err(fail)?.len();
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
    Ok(Bytes::from_owner(map))
}
