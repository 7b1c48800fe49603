//! What lies where in and around a folder, and what may not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::REPORT;
use crate::folder::{MAX_CONFIG, ModelFolder};
use crate::io::staged;
use crate::{Error, Result, onnx, vocabulary};

const TOKENIZER: &str = "tokenizer.json";

/// Refuses folders that lie in each other, and what is written beside them in one of them.
pub(super) fn apart<'b>(
    input: &Path,
    output: &Path,
    beside: impl Iterator<Item = (&'b str, &'b Path)>,
) -> Result<()> {
    let whole = |path: &Path| -> Option<PathBuf> {
        match path.canonicalize() {
            Ok(path) => Some(path),
            Err(_) => staged::entry(path),
        }
    };
    let within = |a: &Path, b: &Path| match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.starts_with(b),
        _ => a.starts_with(b),
    };
    if within(input, output) || within(output, input) {
        return Err(Error::input(format!(
            "the output folder {} and the input folder {}, which is never changed, lie in each other: name another output",
            output.display(),
            input.display()
        )));
    }
    for (what, path) in beside {
        let why = match (within(path, input), within(path, output)) {
            (true, _) => "which is never changed",
            (_, true) => "which appears as a whole and has its reports in pruning.json",
            _ => continue,
        };
        return Err(Error::input(format!(
            "{what} {} lies in a folder, {why}: give a path outside of it",
            path.display()
        )));
    }
    Ok(())
}

/// Whether a folder is what an earlier run made of the same one, and holds nothing else; what
/// speaks against it.
pub(super) fn earlier(old: &Path, found: &ModelFolder) -> std::result::Result<(), String> {
    let is_ours = |report: &serde_json::Value| {
        let tool = report.get("tool").and_then(|tool| tool.as_str());
        tool.is_some_and(|tool| tool.starts_with("onnx-prune"))
    };
    let bytes = staged::read(&old.join(REPORT), MAX_CONFIG).unwrap_or_default();
    let reports: Vec<serde_json::Value> = serde_json::from_slice(&bytes).unwrap_or_default();
    if reports.is_empty() || !reports.iter().all(is_ours) {
        return Err("is no earlier result".into());
    }
    let mut own: BTreeSet<PathBuf> = found.files.iter().cloned().collect();
    own.extend([REPORT, TOKENIZER].map(PathBuf::from));
    for file in found.files.iter().filter(|file| is_model(file)) {
        // Its weights may lie beside it where those of the first one did not.
        let sides = onnx::load(&old.join(file)).map(|made| made.notes.external_files);
        let within = |side: &PathBuf| Some(side.strip_prefix(old).ok()?.to_owned());
        own.extend(sides.unwrap_or_default().iter().filter_map(within));
    }
    match stranger(old, Path::new(""), &own) {
        None => Ok(()),
        Some(path) => Err(format!(
            "holds {}, which is no part of an earlier result",
            path.display()
        )),
    }
}

fn is_model(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "onnx")
}

/// Something in a folder that is none of some files.
fn stranger(root: &Path, within: &Path, own: &BTreeSet<PathBuf>) -> Option<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join(within)) else {
        return Some(within.to_owned());
    };
    for entry in entries {
        let Ok(entry) = entry else {
            return Some(within.to_owned());
        };
        let path = within.join(entry.file_name());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let holds_own = own
            .range(path.clone()..)
            .next()
            .is_some_and(|f| f.starts_with(&path));
        match (is_folder, holds_own) {
            (true, true) => {
                if let Some(found) = stranger(root, &path, own) {
                    return Some(found);
                }
            }
            (false, true) if own.contains(&path) => {}
            _ => return Some(path),
        }
    }
    None
}

/// Where the tokens of a folder are stated, and where those of something else are.
pub(super) struct TokenPlaces {
    /// The tokenizer that loses tokens, inside of the folder.
    pub(super) tokenizer: PathBuf,
    /// Folders whose files state nothing of it.
    others: Vec<PathBuf>,
}

impl TokenPlaces {
    /// `named` is the tokenizer that is used.
    pub(super) fn of(found: &ModelFolder, named: Option<&Path>) -> Self {
        let root = &found.root;
        let named = named.and_then(|path| vocabulary::file_of(path).canonicalize().ok());
        let is_tokenizer = |file: &&PathBuf| file.file_name().is_some_and(|name| name == TOKENIZER);
        let tokenizers = || found.files.iter().filter(is_tokenizer);
        let inside = tokenizers().find(|file| root.join(file).canonicalize().ok() == named);
        let first = || Some(found.tokenizer()?.strip_prefix(root).ok()?.to_owned());
        let used = inside.cloned().or_else(first).unwrap_or_else(|| TOKENIZER.into());
        let bytes = |file: &Path| staged::read(&root.join(file), MAX_CONFIG).ok();
        let own = bytes(&used);
        let others = tokenizers().filter(|file| **file != used && bytes(file) != own);
        let folders = others.filter_map(|file| file.parent()).map(Path::to_owned);
        let folders = folders.filter(|folder| folder != Path::new(""));
        Self {
            others: folders.chain(modules(found)).collect(),
            tokenizer: used,
        }
    }

    /// Whether a file states something of the tokens.
    pub(super) fn concern(&self, file: &Path) -> bool {
        !self.others.iter().any(|folder| file.starts_with(folder))
    }
}

/// The folders of what comes behind a model in sentence-transformers, which knows no tokens.
fn modules(found: &ModelFolder) -> Vec<PathBuf> {
    const OF_TOKENS: [&str; 5] = ["Transformer", "Embedding", "CLIP", "BoW", "Router"];
    let bytes = staged::read(&found.root.join("modules.json"), MAX_CONFIG).unwrap_or_default();
    let modules: Vec<serde_json::Value> = serde_json::from_slice(&bytes).unwrap_or_default();
    let folder = |module: &serde_json::Value| {
        let kind = module.get("type")?.as_str()?.rsplit('.').next()?;
        let path = module.get("path")?.as_str().filter(|path| !path.is_empty())?;
        (!OF_TOKENS.iter().any(|of| kind.contains(of))).then(|| PathBuf::from(path))
    };
    modules.iter().filter_map(folder).collect()
}
