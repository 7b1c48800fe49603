//! Stands in for the tokenizer in a build without the feature `text`.

use std::path::Path;

use super::fill::Template;
use super::text::Text;
use crate::error::{Error, Result};

/// There is none in this build: [`Tokenizer::open`] says so.
pub(crate) struct Tokenizer {
    pub(crate) pad_id: u32,
    pub(crate) pads_left: bool,
}

/// The ids of one text.
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
}

fn absent() -> Error {
    Error::input(
        "this build reads no tokenizer; build it with `--features text`, or give token ids in an .npz",
    )
}

impl Tokenizer {
    pub(crate) fn open(_path: &Path, _max_length: usize) -> Result<Self> {
        Err(absent())
    }

    pub(crate) fn encode(&self, _text: &Text) -> Result<Tokens> {
        Err(absent())
    }

    pub(crate) fn count(&self, _text: &Text) -> Result<usize> {
        Err(absent())
    }

    pub(crate) fn shortened(&self, text: Text) -> Text {
        text
    }

    pub(crate) fn template(&self) -> Template {
        Template::default()
    }
}
