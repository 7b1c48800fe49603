//! Texts into token ids, with the tokenizer that belongs to the model.

use std::path::Path;

use tokenizers::{Encoding, PaddingDirection, PostProcessor as _, Tokenizer as Inner, TruncationParams};

use super::fill::Template;
use super::text::Text;
use crate::error::{Error, Result};
use crate::io::staged;
use crate::io::unwind::caught;

/// Larger files are no tokenizers.
const MAX_FILE: u64 = 1 << 30;

/// A tokenizer that cuts at a length and does not pad.
pub(crate) struct Tokenizer {
    inner: Inner,
    max_length: usize,
    /// The id to pad with, for graphs of fixed length.
    pub(crate) pad_id: u32,
    /// Whether padding goes in front.
    pub(crate) pads_left: bool,
}

/// The ids of one text.
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in the folder `path`.
    pub(crate) fn open(path: &Path, max_length: usize) -> Result<Self> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_owned()
        };
        let bytes = staged::read(&file, MAX_FILE)?;
        let bad = |e: tokenizers::Error| {
            Error::input(format!(
                "{} is not a tokenizer.json of the Hugging Face tokenizers library: {e}",
                file.display()
            ))
        };
        let mut inner = guarded(|| Inner::from_bytes(&bytes))?.map_err(bad)?;
        let (pad_id, pads_left) = match inner.get_padding() {
            Some(padding) => (
                padding.pad_id,
                matches!(padding.direction, PaddingDirection::Left),
            ),
            None => {
                let usual = ["[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>"];
                (
                    usual
                        .iter()
                        .find_map(|token| inner.token_to_id(token))
                        .unwrap_or(0),
                    false,
                )
            }
        };
        inner.with_padding(None);
        // A pair takes the most special tokens.
        let special = guarded(|| inner.get_post_processor().map_or(0, |p| p.added_tokens(true)))?;
        if max_length <= special {
            return Err(Error::input(format!(
                "--max-length {max_length} leaves no room: the tokenizer adds {special} special tokens"
            )));
        }
        let direction = inner.get_truncation().map(|t| t.direction).unwrap_or_default();
        let truncation = TruncationParams {
            direction,
            max_length,
            ..Default::default()
        };
        inner.with_truncation(Some(truncation)).map_err(bad)?;
        Ok(Self {
            inner,
            max_length,
            pad_id,
            pads_left,
        })
    }

    /// The ids of `text`.
    pub(crate) fn encode(&self, text: &Text) -> Result<Tokens> {
        let first = text.first.as_str();
        let encoding = guarded(|| match &text.second {
            Some(second) => self.inner.encode((first, second.as_str()), true),
            None => self.inner.encode(first, true),
        })?;
        let encoding = encoding.map_err(|e| Error::input(format!("the tokenizer fails on a text: {e}")))?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
        })
    }

    /// How many tokens `text` would have if it were not cut.
    pub(crate) fn count(&self, text: &Text) -> Result<usize> {
        let tokens = self.encode(text)?.ids.len();
        // One that fills all there is may have been cut.
        Ok(tokens + usize::from(tokens >= self.max_length))
    }

    /// `text` without what lies so far behind the cut that it cannot matter.
    pub(crate) fn shortened(&self, text: Text) -> Text {
        Text {
            first: self.enough(&text.first).to_owned(),
            second: text.second.map(|second| self.enough(&second).to_owned()),
        }
    }

    fn enough<'a>(&self, text: &'a str) -> &'a str {
        let keeps_end = self
            .inner
            .get_truncation()
            .is_some_and(|t| t.direction == tokenizers::TruncationDirection::Left);
        let limit = self.max_length.saturating_mul(64).max(1 << 16);
        if text.len() <= limit {
            text
        } else if keeps_end {
            text.get(text.ceil_char_boundary(text.len() - limit)..)
                .unwrap_or(text)
        } else {
            text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
        }
    }

    /// Special tokens around a text, and the ids that never stand inside one.
    pub(crate) fn template(&self) -> Template {
        let mut avoid: Vec<u32> = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        avoid.sort_unstable();
        let around = guarded(|| self.inner.encode("a", true)).ok().and_then(|a| a.ok());
        let (prefix, suffix) = around.as_ref().map(around_text).unwrap_or_default();
        let vocabulary = Some(self.inner.get_vocab_size(true)).filter(|n| *n > 0);
        Template {
            prefix,
            suffix,
            avoid,
            vocabulary,
        }
    }
}

/// The library panics on some files that are not what it expects.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T> {
    caught(f).map_err(|message| Error::input(format!("the tokenizers library panicked: {message}")))
}

fn around_text(encoding: &Encoding) -> (Vec<u32>, Vec<u32>) {
    let special = encoding.get_special_tokens_mask();
    let ids = encoding.get_ids();
    let leading = special.iter().take_while(|s| **s == 1).count();
    let trailing = special.iter().rev().take_while(|s| **s == 1).count();
    if leading == ids.len() {
        return (ids.to_vec(), Vec::new());
    }
    let prefix = ids.iter().take(leading).copied().collect();
    let suffix = ids
        .iter()
        .skip(ids.len().saturating_sub(trailing))
        .copied()
        .collect();
    (prefix, suffix)
}
