//! A smaller vocabulary: tokens that do not occur go, from the tokenizer and from the tables
//! of the model.
//!
//! ```text
//! keep       the tokens of some texts, which stay, besides what any text falls back to
//! scripts    tokens by the scripts that they are written in
//! related    the tokens that are most like these
//! tokenizer  tokenizer.json without the others, its ids renumbered
//! drop_in    the interface as it was, around smaller tables
//! tables     the embedding and the head without their rows
//! ```
//!
//! On a text whose tokens all stay nothing changes: it is cut into the same tokens, which
//! have the same rows, so a model without logits gives the same bits.

mod drop_in;
#[cfg(feature = "text")]
mod keep;
#[cfg(not(feature = "text"))]
#[path = "no_segmenter.rs"]
mod keep;
mod related;
mod scripts;
mod tables;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::Text;
use crate::io::scratch::ScratchFolder;
use crate::io::staged;
use crate::onnx::proto;
use crate::{Error, Result, ResultExt, data};

pub use tables::{TokenOutput, rows};

/// Larger files are no tokenizers.
const MAX_FILE: u64 = 1 << 30;

/// Which tokens stay.
#[derive(Debug, Clone, Default)]
pub struct VocabularyOptions {
    /// Files of texts whose tokens stay, or a `tokenizer.json` that is smaller already.
    pub sources: Vec<PathBuf>,
    /// Scripts whose tokens stay, by their names in Unicode.
    pub scripts: Vec<String>,
    /// How many of the tokens stay that do not occur: those whose embeddings are most like the
    /// embeddings of those that do. A third of their number where none is given.
    pub keep: Option<usize>,
    /// Whether the model takes and gives ids as before, so that its tokenizer stays.
    pub drop_in: bool,
    /// Tokens that stay whether they occur or not: those that a configuration names.
    pub named: Vec<u32>,
    /// The tokens that stay, where another model with the same tokenizer has chosen them;
    /// what that has written is not written again.
    pub chosen: Option<Arc<ChosenTokens>>,
}

/// The tokens that stay in all models with one tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenTokens {
    /// As they are numbered before, in order.
    pub kept: Vec<u32>,
    /// Rows of the tables before: there may be more than tokens.
    pub rows: usize,
    /// Texts that were counted.
    pub texts: usize,
    /// The estimated share of the tokens of other texts of this kind that are gone: that of
    /// the tokens that occur once (Good, "The population frequencies of species", 1953).
    /// Texts that repeat parts of each other make it too small. None without texts.
    pub unseen: Option<f64>,
}

impl VocabularyOptions {
    /// Whether tokens are to go at all.
    pub fn is_asked(&self) -> bool {
        !self.sources.is_empty() || !self.scripts.is_empty()
    }

    /// Whether each model gets a tokenizer of its own beside it.
    pub fn writes_tokenizer(&self) -> bool {
        self.is_asked() && self.chosen.is_none() && !self.drop_in
    }
}

/// A model with a smaller vocabulary.
pub struct TrimmedVocabulary {
    /// The model.
    pub model: proto::ModelProto,
    /// The model as it was.
    pub whole: proto::ModelProto,
    /// What is known of it.
    pub told: VocabularyReport,
    /// The tokenizer that belongs to it.
    pub tokenizer: Vec<u8>,
    /// Where that lies until the run is over.
    folder: ScratchFolder,
    /// The tokens that stay.
    pub tokens: ChosenTokens,
    /// The outputs that have an entry for each token.
    pub outputs: BTreeMap<String, TokenOutput>,
    /// Whether the tokenizer stays.
    pub drop_in: bool,
}

/// What a smaller vocabulary brings.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VocabularyReport {
    /// Tokens before.
    pub before: usize,
    /// Tokens that stay.
    pub after: usize,
    /// Texts that were counted.
    pub texts: usize,
    /// The estimated share of the tokens of other texts of this kind that are gone.
    pub unseen: Option<f64>,
    /// The tables of the model that lost rows or columns.
    pub tables: Vec<String>,
    /// Numbers of these that went.
    pub parameters: u64,
    /// Bytes of these before.
    pub bytes_before: u64,
    /// Bytes of these now.
    pub bytes_after: u64,
    /// Where the tokenizer that belongs to the model was written.
    pub tokenizer: Option<String>,
}

impl TrimmedVocabulary {
    /// An id of the whole vocabulary, where its token stays.
    pub fn holds(&self, id: i64) -> Option<i64> {
        let stays = |token| self.tokens.kept.binary_search(&token).is_ok();
        u32::try_from(id)
            .ok()
            .filter(|token| stays(*token))
            .map(i64::from)
    }

    /// Where the tokenizer lies until the run is over.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.folder.path().join(TOKENIZER)
    }
}

const TOKENIZER: &str = "tokenizer.json";

/// Where the tokenizer of a model goes that is written to `output`: beside it.
pub fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".onnx").unwrap_or(&name);
    output.with_file_name(format!("{stem}.{TOKENIZER}"))
}

/// The file of a tokenizer, which may be named by its folder.
pub fn file_of(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(TOKENIZER),
        false => path.to_owned(),
    }
}

fn json(path: &Path) -> Result<serde_json::Value> {
    let bytes = staged::read(path, MAX_FILE)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(format!("{} is no tokenizer.json: {e}", path.display())))
}

/// Whether a model has a table with a row for each token that ids index, or a head that gives
/// a number for each, of `rows`.
///
/// # Errors
/// A tokenizer that cannot be read.
pub fn has_tokens(model: &proto::ModelProto, tokenizer: &Path, rows: usize) -> Result<bool> {
    let vocabulary = tokenizer::Vocabulary::of(&json(&file_of(tokenizer))?)?;
    Ok(tables::is_there(model, (vocabulary.size(), Some(rows))))
}

/// The model and its tokenizer with the tokens that `options` keep. `columns` are those of
/// the texts in tables.
///
/// # Errors
/// A tokenizer or texts that cannot be read, a model whose vocabulary leads into operators
/// that need all of it.
pub fn trim(
    model: &proto::ModelProto,
    tokenizer: &Path,
    options: &VocabularyOptions,
    columns: &[String],
) -> Result<TrimmedVocabulary> {
    let path = file_of(tokenizer);
    let old = json(&path)?;
    let vocabulary = tokenizer::Vocabulary::of(&old).context(|| path.display().to_string())?;
    let (kept, made, counted) = match &options.chosen {
        Some(chosen) => {
            let kept: BTreeSet<u32> = chosen.kept.iter().copied().collect();
            let (made, _) = vocabulary.without(&old, &kept)?;
            (
                kept,
                made,
                CountedTexts {
                    texts: chosen.texts,
                    unseen: chosen.unseen,
                },
            )
        }
        None => chosen(model, &path, (&old, &vocabulary), options, columns)?,
    };
    let ids: Vec<u32> = kept.into_iter().collect();
    let rows = options.chosen.as_ref().map(|chosen| chosen.rows);
    let mut trimmed = tables::trim(model, (vocabulary.size(), rows), &ids)?;
    if options.drop_in {
        let unknown = vocabulary.stand_in();
        let tokens = drop_in::KeptTokens {
            size: trimmed.rows,
            kept: &ids,
            pieces: vocabulary.beginnings(&ids.iter().copied().collect()),
            unknown: ids.iter().position(|id| Some(*id) == unknown).unwrap_or(0),
        };
        let (tables, outputs) = (&trimmed.tables, &trimmed.outputs);
        drop_in::keep_interface(model, &mut trimmed.model, tables, outputs, &tokens)?;
    }
    let tokenizer = written(&made)?;
    let folder = ScratchFolder::new()?;
    staged::write(&folder.path().join(TOKENIZER), &tokenizer)?;
    Ok(TrimmedVocabulary {
        model: trimmed.model,
        whole: model.clone(),
        told: VocabularyReport {
            before: vocabulary.size(),
            after: ids.len(),
            texts: counted.texts,
            unseen: counted.unseen,
            tables: trimmed.tables,
            parameters: trimmed.parameters,
            bytes_before: trimmed.bytes[0],
            bytes_after: trimmed.bytes[1],
            tokenizer: None,
        },
        tokenizer,
        folder,
        tokens: ChosenTokens {
            kept: ids,
            rows: trimmed.rows,
            texts: counted.texts,
            unseen: counted.unseen,
        },
        outputs: trimmed.outputs,
        drop_in: options.drop_in,
    })
}

/// Texts whose tokens were counted.
struct CountedTexts {
    texts: usize,
    /// The estimated share of the tokens of others that are gone.
    unseen: Option<f64>,
}

/// The tokens that stay, the tokenizer with them only, and what was counted.
fn chosen(
    model: &proto::ModelProto,
    path: &Path,
    (old, vocabulary): (&serde_json::Value, &tokenizer::Vocabulary),
    options: &VocabularyOptions,
    columns: &[String],
) -> Result<(BTreeSet<u32>, serde_json::Value, CountedTexts)> {
    let mut kept = BTreeSet::new();
    let (mut texts, mut whole) = (Vec::new(), Vec::new());
    let bytes = staged::read(path, MAX_FILE)?;
    let cut = keep::Segmenter::new(&bytes).context(|| path.display().to_string())?;
    let has_lines = cut.tells_lines()?;
    for source in &options.sources {
        let found = file_of(source);
        match found.extension().is_some_and(|e| e == "json") {
            true => kept.extend(vocabulary.those_of(&json(&found)?)?),
            false => {
                data::each_text(&found, columns, &mut |text: Text| {
                    texts.push(text.first);
                    texts.extend(text.second);
                })?;
            }
        }
        if has_lines && found.extension().is_some_and(|e| e == "txt") {
            whole.extend(passages(&found)?);
        }
    }
    if let Some(scripts) = scripts::Scripts::named(&options.scripts)? {
        kept.extend(vocabulary.written_in(&scripts));
    }
    if kept.is_empty() && texts.is_empty() {
        return Err(Error::input("--vocab: there are no texts in what was given"));
    }
    let count = texts.len();
    texts.append(&mut whole);
    kept.extend(vocabulary.fallbacks());
    let within = |id: &&u32| usize::try_from(**id).is_ok_and(|id| id < vocabulary.size());
    kept.extend(options.named.iter().filter(within));
    let wanted = cut.ids(&texts)?;
    let unseen = unseen(&wanted[..count.min(wanted.len())], &vocabulary.fallbacks());
    let occurring: BTreeSet<u32> = wanted.iter().flatten().copied().collect();
    kept.extend(&occurring);
    let more = options.keep.unwrap_or((MORE * occurring.len() as f64) as usize);
    if more > 0
        && !occurring.is_empty()
        && let Some(table) = tables::embedding(model, vocabulary.size())?
    {
        kept.extend(related::related(&table, vocabulary.size(), &kept, more)?);
    }
    vocabulary.close(&mut kept);
    // What merges lead to a token is known from texts only: those that are cut in another
    // way get their pieces back.
    let (mut made, mut renumbered) = vocabulary.without(old, &kept)?;
    for _ in 0..ROUNDS {
        let again = keep::Segmenter::new(&written(&made)?)?.ids(&texts)?;
        let mut missing = BTreeSet::new();
        for (was, is) in wanted.iter().zip(&again) {
            let same = was.iter().map(|id| renumbered.get(id)).eq(is.iter().map(Some));
            if !same {
                missing.extend(vocabulary.inside(was));
            }
        }
        if missing.is_empty() {
            break;
        }
        let before = kept.len();
        kept.extend(missing);
        vocabulary.close(&mut kept);
        if kept.len() == before {
            return Err(Error::input(
                "--vocab: with fewer tokens some texts are cut in another way, whatever is kept",
            ));
        }
        (made, renumbered) = vocabulary.without(old, &kept)?;
    }
    let counted = CountedTexts { texts: count, unseen };
    Ok((kept, made, counted))
}

/// The share of the tokens of some texts that occur once, besides those that always stay.
fn unseen(texts: &[Vec<u32>], always: &BTreeSet<u32>) -> Option<f64> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for id in texts.iter().flatten() {
        *counts.entry(*id).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    let once = counts
        .iter()
        .filter(|(id, n)| **n == 1 && !always.contains(id))
        .count();
    (all > 0).then(|| once as f64 / all as f64)
}

/// A file of text in passages of several lines with what is between them: a language model
/// reads it as one text.
fn passages(path: &Path) -> Result<Vec<String>> {
    const BYTES: usize = 8192;
    let bytes = staged::read(path, MAX_FILE)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut found: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        match found.last_mut() {
            Some(last) if last.len() + line.len() <= BYTES => last.push_str(line),
            _ => found.push(line.to_owned()),
        }
    }
    Ok(found)
}

/// Tokens that stay though they do not occur, by those that do.
const MORE: f64 = 0.35;

/// How often tokens are added until all texts are cut as before.
const ROUNDS: usize = 8;

fn written(tokenizer: &serde_json::Value) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(tokenizer)
        .map_err(|e| Error::input(format!("the tokenizer cannot be written: {e}")))
}

#[cfg(all(test, feature = "text"))]
mod tests;
