//! Which model is this?

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::load::Model;
use super::write::write_to;
use crate::error::{Error, Result};

/// SHA-256, in hex, of a model file and its side files.
///
/// Without side files it is what `sha256sum` prints for `path`. With side files
/// it is the hash of the concatenated hex hashes: the model's first, then each
/// side file's in the order given (see [`super::LoadNotes::external_files`]).
pub fn sha256(path: &Path, external_files: &[PathBuf]) -> Result<String> {
    let model = file_hash(path)?;
    if external_files.is_empty() {
        return Ok(model);
    }
    let mut all = Sha256::new_with_prefix(model);
    for file in external_files {
        all.update(file_hash(file)?);
    }
    Ok(hex(&all.finalize()))
}

impl Model {
    /// [`sha256`] of the file and its side files, or of the encoded messages
    /// when the model was read from memory.
    pub fn sha256(&self) -> Result<String> {
        match &self.path {
            Some(path) => sha256(path, &self.notes.external_files),
            None => {
                let mut hash = Hasher(Sha256::new());
                write_to(&self.proto, &mut hash)?;
                Ok(hex(&hash.0.finalize()))
            }
        }
    }
}

struct Hasher(Sha256);

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn file_hash(path: &Path) -> Result<String> {
    let fail = |e| Error::io("cannot read", path, e);
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display())));
    }
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer).map_err(fail)?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(hex(&hash.finalize())),
            Some(bytes) => hash.update(bytes),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
