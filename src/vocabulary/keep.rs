//! Texts into the ids of their tokens, as many as they have.

use tokenizers::Tokenizer;

use crate::io::unwind::caught;
use crate::{Error, Result};

/// Texts that are cut at once.
const AT_ONCE: usize = 1024;

/// A tokenizer that neither cuts at a length nor pads.
pub(super) struct Segmenter(Tokenizer);

impl Segmenter {
    pub(super) fn new(bytes: &[u8]) -> Result<Self> {
        let mut inner = guarded(|| Tokenizer::from_bytes(bytes))?;
        inner.with_padding(None);
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        Ok(Self(inner))
    }

    /// Whether the end of a line is something else than a blank.
    pub(super) fn tells_lines(&self) -> Result<bool> {
        let ids = self.ids(&["a\n\nb".to_owned(), "a  b".to_owned()])?;
        Ok(ids.first() != ids.last())
    }

    /// The ids of each text, those of special tokens around it among them.
    pub(super) fn ids(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let mut ids = Vec::with_capacity(texts.len());
        for some in texts.chunks(AT_ONCE) {
            let inputs: Vec<&str> = some.iter().map(String::as_str).collect();
            let made = guarded(|| self.0.encode_batch(inputs, true))?;
            ids.extend(made.iter().map(|encoding| encoding.get_ids().to_vec()));
        }
        Ok(ids)
    }
}

/// The library panics on some files that are not what it expects.
fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(f) {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(e)) => Err(Error::input(format!("the tokenizer cannot be used: {e}"))),
        Err(message) => Err(Error::input(format!(
            "the tokenizers library panicked: {message}"
        ))),
    }
}
