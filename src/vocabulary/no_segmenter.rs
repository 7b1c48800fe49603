//! What stands for a tokenizer in a build without `text`.

use crate::{Error, Result};

/// Nothing that cuts texts.
pub(super) struct Segmenter;

impl Segmenter {
    pub(super) fn new(_: &[u8]) -> Result<Self> {
        Err(Error::input(
            "this program was built without the feature `text`, which reads tokenizers",
        ))
    }

    pub(super) fn tells_lines(&self) -> Result<bool> {
        Ok(false)
    }

    pub(super) fn ids(&self, _: &[String]) -> Result<Vec<Vec<u32>>> {
        Ok(Vec::new())
    }
}
