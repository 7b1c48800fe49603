//! Configurations that state sizes and token ids, after a model has others.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::ids::{self, NewIds};
use super::{json, sentencepiece};
use crate::{Error, Result};

/// What a run changed that a folder's other files state.
#[derive(Debug, Default)]
pub struct Changes {
    /// The tokens that are left.
    pub vocabulary: Option<ChangedVocabulary>,
    /// Heads and channels of the caches of keys and values, where they are others now.
    pub caches: Option<CacheSize>,
}

/// The tokens that are left.
#[derive(Debug)]
pub struct ChangedVocabulary {
    /// The tokens that stay, as they were numbered, in their new order.
    pub kept: Vec<u32>,
    /// The new `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// How large the vocabulary was: tokens, and rows of the tables.
    pub sizes: [usize; 2],
}

impl ChangedVocabulary {
    fn new_ids(&self) -> NewIds {
        NewIds {
            ids: self.kept.iter().copied().zip(0..).collect(),
            sizes: self.sizes,
        }
    }

    /// Whether a list that gave some tokens numbers is one of this vocabulary: nearly all that
    /// both know had the same.
    fn is_listed(&self, number: impl Fn(&str) -> Option<u32>) -> bool {
        const NEARLY_ALL: usize = 10;
        let (mut same, mut other) = (0, 0);
        for (token, id) in tokens(&self.tokenizer) {
            match number(&token) {
                Some(stated) if self.kept.get(id as usize) == Some(&stated) => same += 1,
                Some(_) => other += 1,
                None => {}
            }
        }
        same > NEARLY_ALL * other
    }
}

/// What the cache of one layer holds for a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheSize {
    /// Heads of keys and values.
    pub heads: usize,
    /// Channels of each.
    pub channels: usize,
}

/// What becomes of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum ConfigEdit {
    /// It is copied.
    Same,
    /// It has another content.
    Changed(Vec<u8>),
    /// It would contradict the model: why.
    LeftOut(&'static str),
}

/// Weights of the same model for other frameworks.
const OTHER_WEIGHTS: [&str; 8] = ["safetensors", "bin", "h5", "msgpack", "ot", "gguf", "pt", "pth"];

/// Graphs of OpenVINO and Core ML.
const OTHER_GRAPHS: [&str; 2] = ["xml", "mlmodel"];

/// What becomes of one of the other files of a folder.
///
/// # Errors
/// A configuration that is no JSON.
pub fn edited(path: &Path, bytes: &[u8], changes: &Changes) -> Result<ConfigEdit> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some(vocabulary) = &changes.vocabulary else {
        return match (name, changes.caches) {
            ("config.json" | "genai_config.json", Some(caches)) => {
                let text = checked(path, bytes)?;
                Ok(ConfigEdit::Changed(resized(text, caches).into_bytes()))
            }
            _ => Ok(ConfigEdit::Same),
        };
    };
    let made = match name {
        "tokenizer.json" => return Ok(ConfigEdit::Changed(vocabulary.tokenizer.clone())),
        "config.json" | "generation_config.json" | "genai_config.json" | "ort_config.json" => {
            let made = ids::renumbered(checked(path, bytes)?, &vocabulary.new_ids());
            match changes.caches.filter(|_| name != "generation_config.json") {
                Some(caches) => resized(&made, caches),
                None => made,
            }
        }
        "tokenizer_config.json" => ids::added_tokens(checked(path, bytes)?, &vocabulary.new_ids().ids),
        "vocab.json" | "added_tokens.json" => {
            let Value::Object(tokens) = parsed(path, checked(path, bytes)?)? else {
                return Ok(ConfigEdit::LeftOut("it is no list of tokens"));
            };
            let number = |token: &str| u32::try_from(tokens.get(token)?.as_u64()?).ok();
            if name == "vocab.json" && !vocabulary.is_listed(number) {
                return Ok(ConfigEdit::Same);
            }
            ids::token_list(tokens, &vocabulary.new_ids().ids)
        }
        "vocab.txt" => {
            let lines: Vec<&str> = text(path, bytes)?.lines().collect();
            let numbers: HashMap<&str, u32> = lines.iter().copied().zip(0..).collect();
            if !vocabulary.is_listed(|token| numbers.get(token).copied()) {
                return Ok(ConfigEdit::Same);
            }
            let kept = (vocabulary.kept.iter()).filter_map(|id| lines.get(*id as usize));
            kept.fold(String::new(), |all, line| all + line + "\n")
        }
        "merges.txt" => match merges(&vocabulary.tokenizer) {
            Some(merges) => merges,
            None => return Ok(ConfigEdit::LeftOut("the tokenizer has no merges")),
        },
        _ => return Ok(by_ending(path, bytes, vocabulary)),
    };
    Ok(ConfigEdit::Changed(made.into_bytes()))
}

/// What becomes of a file whose name tells its kind by its ending only.
fn by_ending(path: &Path, bytes: &[u8], vocabulary: &ChangedVocabulary) -> ConfigEdit {
    const WEIGHTS: &str = "it holds the weights of the whole vocabulary for another framework";
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    // The list of what several files hold goes with these.
    let name = name.strip_suffix(".index.json").unwrap_or(name);
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("model") => {
            let kept = tokens(&vocabulary.tokenizer);
            match sentencepiece::without(bytes, |piece| kept.contains_key(piece)) {
                Some(less) => ConfigEdit::Changed(less),
                None => ConfigEdit::LeftOut("it is of the whole vocabulary"),
            }
        }
        Some(ending) if OTHER_WEIGHTS.contains(&ending) => ConfigEdit::LeftOut(WEIGHTS),
        Some(ending) if OTHER_GRAPHS.contains(&ending) => {
            ConfigEdit::LeftOut("it is a graph of the whole vocabulary for another framework")
        }
        _ => ConfigEdit::Same,
    }
}

/// The tokens that a configuration gives a role: padding, the beginning and the end of a
/// text, what a decoder starts with. None for what is no such file.
///
/// # Errors
/// Names the file that is no JSON.
pub fn roles(path: &Path, bytes: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u32>> {
    const FILES: [&str; 3] = ["config.json", "generation_config.json", "genai_config.json"];
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match FILES.contains(&name) {
        true => Ok(ids::roles(checked(path, &bytes()?)?)),
        false => Ok(Vec::new()),
    }
}

/// Files that state sizes or ids of tokens as JSON.
const STATES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "ort_config.json",
    "tokenizer_config.json",
    "vocab.json",
    "added_tokens.json",
];

/// Whether what states sizes or ids can be read: told before the work, not after it.
///
/// # Errors
/// Names the file that is no JSON.
pub fn readable(path: &Path, bytes: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if STATES.contains(&name) {
        checked(path, &bytes()?)?;
    }
    Ok(())
}

fn text<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b str> {
    std::str::from_utf8(bytes).map_err(|e| Error::input(format!("{} is no text: {e}", path.display())))
}

/// A text that is JSON.
fn checked<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b str> {
    let text = text(path, bytes)?;
    parsed(path, text)?;
    Ok(text)
}

fn parsed(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(&json::standard(text))
        .map_err(|e| Error::input(format!("{} is no JSON: {e}", path.display())))
}

/// Changes what states the size of a cache.
fn resized(text: &str, caches: CacheSize) -> String {
    const AT: [&[&str]; 3] = [&["model", "decoder"], &["text_config"], &[]];
    json::edited(text, &mut |keys, value| {
        let (key, at) = keys.split_last()?;
        let size = match key.as_str() {
            "num_key_value_heads" => caches.heads,
            "head_dim" | "head_size" => caches.channels,
            _ => return None,
        };
        let is_stated = AT.iter().any(|place| at.iter().eq(place.iter()));
        (is_stated && value.parse::<u64>().is_ok()).then(|| size.to_string())
    })
}

/// The tokens of a `tokenizer.json`, without those that are added, and their numbers.
fn tokens(tokenizer: &[u8]) -> HashMap<String, u32> {
    let file: Value = serde_json::from_slice(tokenizer).unwrap_or_default();
    let number = |id: &Value| u32::try_from(id.as_u64()?).ok();
    match file.get("model").and_then(|m| m.get("vocab")) {
        Some(Value::Object(vocab)) => (vocab.iter())
            .filter_map(|(token, id)| Some((token.clone(), number(id)?)))
            .collect(),
        Some(Value::Array(pieces)) => (pieces.iter().zip(0..))
            .filter_map(|(piece, id)| Some((piece.get(0)?.as_str()?.to_owned(), id)))
            .collect(),
        _ => HashMap::new(),
    }
}

/// The merges of a `tokenizer.json`, as `merges.txt` has them.
fn merges(tokenizer: &[u8]) -> Option<String> {
    let file: Value = serde_json::from_slice(tokenizer).ok()?;
    let merges = file.get("model")?.get("merges")?.as_array()?;
    let line = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        pair => Some(format!("{} {}", pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    };
    let lines: Vec<String> = merges.iter().filter_map(line).collect();
    Some(format!("#version: 0.2\n{}\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(kept: &[u32]) -> Changes {
        Changes {
            vocabulary: Some(ChangedVocabulary {
                kept: kept.to_vec(),
                tokenizer:
                    br#"{"model": {"vocab": {"a": 0, "c": 1, "f": 2}, "merges": ["a b", ["ab", "c"]]}}"#
                        .to_vec(),
                sizes: [10, 10],
            }),
            caches: None,
        }
    }

    fn after(name: &str, content: &str, changes: &Changes) -> String {
        match edited(Path::new(name), content.as_bytes(), changes).unwrap() {
            ConfigEdit::Changed(bytes) => String::from_utf8(bytes).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn ids_are_renumbered_and_all_else_stays() {
        let kept = changes(&[0, 2, 5, 9]);
        let config = r#"{ "hidden_size":  64, "vocab_size": 10, "eos_token_id": [5, 9],
  "text_config": {"vocab_size": 10, "pad_token_id": 0, "bos_token_id": null},
  "suppress_tokens": [1, 2], "forced_decoder_ids": [[1, 5], [2, null]], "bad_words_ids": [[2, 9], [3]] }"#;
        assert_eq!(
            after("config.json", config, &kept),
            r#"{ "hidden_size":  64, "vocab_size": 4, "eos_token_id": [2,3],
  "text_config": {"vocab_size": 4, "pad_token_id": 0, "bos_token_id": null},
  "suppress_tokens": [1], "forced_decoder_ids": [[1,2],[2,null]], "bad_words_ids": [[1,3]] }"#
        );
        assert_eq!(
            after(
                "tokenizer_config.json",
                r#"{"added_tokens_decoder": {"9": {"content": "x"}, "0": 1}, "a": 1}"#,
                &kept
            ),
            r#"{"added_tokens_decoder": {"0": 1, "3": {"content":"x"}}, "a": 1}"#
        );
        assert_eq!(
            after("vocab.json", r#"{"a": 0, "b": 5, "\"": 2, "z": 1}"#, &kept),
            r#"{"a": 0, "\"": 1, "b": 2}"#
        );
        assert_eq!(
            after(
                "vocab.txt",
                "a
b
c
d
e
f
",
                &kept
            ),
            "a
c
f
"
        );
        assert_eq!(
            after(
                "merges.txt",
                "#version: 0.2
a b
x y
",
                &kept
            ),
            "#version: 0.2
a b
ab c
"
        );
        // Lists of something else.
        assert_eq!(after("vocab.txt", "c\na\n", &kept), "Same");
        assert_eq!(after("vocab.json", r#"{"a": 0, "c": 1}"#, &kept), "Same");
        assert!(after("model.safetensors", "", &kept).starts_with("LeftOut"));
        assert_eq!(after("README.md", "x", &kept), "Same");
        assert_eq!(after("model.safetensors", "", &Changes::default()), "Same");
    }

    #[test]
    fn caches_are_resized_where_they_are_stated() {
        let changes = Changes {
            vocabulary: None,
            caches: Some(CacheSize {
                heads: 1,
                channels: 24,
            }),
        };
        assert_eq!(
            after(
                "config.json",
                r#"{"num_key_value_heads": 2, "num_attention_heads": 4}"#,
                &changes
            ),
            r#"{"num_key_value_heads": 1, "num_attention_heads": 4}"#
        );
        assert_eq!(
            after(
                "genai_config.json",
                r#"{"model": {"decoder": {"head_size": 32, "num_key_value_heads": 2}}}"#,
                &changes
            ),
            r#"{"model": {"decoder": {"head_size": 24, "num_key_value_heads": 1}}}"#
        );
    }
}
