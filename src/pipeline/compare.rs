//! Two files on the same inputs.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::options::Options;
use crate::engine::{self, SessionOptions};
use crate::verify::{self, Comparison, Interface};
use crate::{Error, Result, data, onnx, vocabulary};

/// Compares two files on the same inputs.
///
/// # Errors
/// Files that cannot be read or run, interfaces that differ.
pub fn compare(a: &Path, b: &Path, options: &Options, cancelled: &AtomicBool) -> Result<Comparison> {
    let (first, second) = (onnx::load(a)?, onnx::load(b)?);
    let engine = engine::choose(&options.engine)?;
    if options.data.data.iter().any(|path| data::is_text(path))
        && let [Some(x), Some(y)] = [&first, &second].map(|model| vocabulary::rows(&model.proto))
        && x != y
    {
        return Err(Error::input(format!(
            "{} has {x} tokens and {} has {y}: one tokenizer cannot cut texts for both, since tokens have other ids. \
             Each pruning run with --vocab compares both by itself",
            a.display(),
            b.display()
        )));
    }
    let samples = data::read_samples(&second.proto, &options.data)?;
    let plain = SessionOptions::default();
    let mut a = engine.session(&first.proto, &plain)?;
    let mut b = engine.session(&second.proto, &plain)?;
    let (model, interface) = (&second.proto, Interface::default());
    let compared = verify::compare(a.as_mut(), b.as_mut(), model, &samples, &interface, cancelled);
    compared.map_err(|e| match e {
        Error::Unmet(text) => Error::input(text),
        other => other,
    })
}
