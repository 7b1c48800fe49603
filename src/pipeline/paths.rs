//! What is read is never written over, and what cannot be written is known before
//! the work begins.

use std::path::{Path, PathBuf};

use super::loaded::Loaded;
use super::options::Options;
use crate::io::staged;
use crate::{Result, mask, vocabulary};

/// The tokenizer that goes with an output.
const TOKENIZER: &str = "the tokenizer of the output";

/// All outputs against the files that are named on the command line.
///
/// # Errors
/// An output that is an input under any name, or another output; one that cannot
/// be written.
pub(super) fn before(inputs: &[&Path], outputs: &[(&str, &Path)], options: &Options) -> Result<()> {
    with_masks(outputs, options, |outputs| {
        let data = options.data.data.iter().map(|path| ("the data", path));
        let of_folder = |path: &PathBuf| vocabulary::file_of(path);
        let tokenizer: Vec<PathBuf> = options.data.tokenizer.iter().map(of_folder).collect();
        let tokenizer = tokenizer.iter().map(|path| ("the tokenizer", path));
        let mask = options.mask.iter().map(|path| ("the mask", path));
        let stats = options.stats.iter().map(|path| ("the statistics", path));
        let more = data.chain(tokenizer).chain(mask).chain(stats);
        let inputs: Vec<(&str, &Path)> = inputs
            .iter()
            .map(|path| ("the input", *path))
            .chain(more.map(|(what, path)| (what, path.as_path())))
            .collect();
        let cache = options.latency_cache.iter();
        let cache = cache.map(|path| ("--latency-cache", path.as_path()));
        staged::apart(&outputs.iter().copied().chain(cache).collect::<Vec<_>>(), &inputs)?;
        for (_, path) in outputs {
            staged::writable(path)?;
        }
        Ok(())
    })
}

/// All outputs against the files that hold the model's weights.
///
/// # Errors
/// An output that is one of them.
pub(super) fn side_files(loaded: &Loaded, outputs: &[(&str, &Path)], options: &Options) -> Result<()> {
    with_masks(outputs, options, |outputs| {
        let files = &loaded.file.notes.external_files;
        let files: Vec<(&str, &Path)> = files
            .iter()
            .map(|path| ("the input's external data", path.as_path()))
            .collect();
        staged::apart(outputs, &files)
    })
}

/// The outputs that are written at all, with those of `--export-mask`.
fn with_masks(
    outputs: &[(&str, &Path)],
    options: &Options,
    check: impl FnOnce(&[(&str, &Path)]) -> Result<()>,
) -> Result<()> {
    let masks = options
        .export_mask
        .as_deref()
        .map(mask::file::files)
        .unwrap_or_default();
    let masks = masks.iter().map(|path| ("--export-mask", path.as_path()));
    let tokenizers: Vec<PathBuf> = match !options.vocabulary.writes_tokenizer() {
        true => Vec::new(),
        false => (outputs.iter())
            .filter(|(what, _)| *what == "the output")
            .map(|(_, path)| vocabulary::beside(path))
            .collect(),
    };
    let tokenizers = tokenizers.iter().map(|path| (TOKENIZER, path.as_path()));
    // Without a model there is no mask either; a report is written all the same.
    let all = outputs.iter().copied().chain(masks).chain(tokenizers);
    let all: Vec<(&str, &Path)> = match options.dry_run {
        true => all
            .filter(|(what, _)| !["the output", "--export-mask", TOKENIZER].contains(what))
            .collect(),
        false => all.collect(),
    };
    check(&all)
}
