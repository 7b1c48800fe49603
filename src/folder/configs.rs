//! Configurations that state sizes and token ids, after a model has others.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

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

/// Sizes of a vocabulary.
const SIZES: [&str; 2] = ["vocab_size", "n_vocab"];
/// Lists of tokens, besides what is called `..._token_id`.
const TOKENS: [&str; 4] = [
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_decoder_ids",
];

/// What becomes of one of the other files of a folder.
///
/// # Errors
/// A configuration that is no JSON.
pub fn edited(path: &Path, bytes: &[u8], changes: &Changes) -> Result<ConfigEdit> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let Some(vocabulary) = &changes.vocabulary else {
        return match (name, changes.caches) {
            ("config.json" | "genai_config.json", Some(caches)) => {
                let mut text = text(path, bytes)?;
                let value = parsed(path, &text)?;
                resized(&mut text, &value, caches);
                Ok(ConfigEdit::Changed(text.into_bytes()))
            }
            _ => Ok(ConfigEdit::Same),
        };
    };
    let new: HashMap<u32, u32> = (vocabulary.kept.iter().zip(0..))
        .map(|(old, new)| (*old, new))
        .collect();
    Ok(match name {
        "tokenizer.json" => ConfigEdit::Changed(vocabulary.tokenizer.clone()),
        "config.json" | "generation_config.json" | "genai_config.json" | "ort_config.json" => {
            let mut text = text(path, bytes)?;
            let value = parsed(path, &text)?;
            renumbered(&mut text, &value, &mut Vec::new(), &Ids { new: &new });
            if let Some(caches) = changes.caches.filter(|_| name != "generation_config.json") {
                resized(&mut text, &value, caches);
            }
            ConfigEdit::Changed(text.into_bytes())
        }
        "tokenizer_config.json" => {
            let mut text = text(path, bytes)?;
            if let Some(Value::Object(added)) = parsed(path, &text)?.get("added_tokens_decoder") {
                let mut moved: Vec<(u32, &Value)> = (added.iter())
                    .filter_map(|(id, token)| Some((*new.get(&id.parse().ok()?)?, token)))
                    .collect();
                moved.sort_by_key(|(id, _)| *id);
                let each = moved.iter().map(|(id, token)| format!("\"{id}\": {token}"));
                let all = format!("{{{}}}", each.collect::<Vec<_>>().join(", "));
                json::replace(&mut text, &["added_tokens_decoder"], &all);
            }
            ConfigEdit::Changed(text.into_bytes())
        }
        "vocab.json" | "added_tokens.json" => {
            let text = text(path, bytes)?;
            let Value::Object(tokens) = parsed(path, &text)? else {
                return Ok(ConfigEdit::LeftOut("it is no list of tokens"));
            };
            let mut kept: Vec<(u32, String)> = (tokens.into_iter())
                .filter_map(|(token, id)| {
                    let id = u32::try_from(id.as_u64()?).ok()?;
                    Some((*new.get(&id)?, token))
                })
                .collect();
            kept.sort();
            let each = kept
                .iter()
                .map(|(id, token)| format!("{}: {id}", Value::from(token.as_str())));
            let all = format!("{{{}}}", each.collect::<Vec<_>>().join(", "));
            ConfigEdit::Changed(all.into_bytes())
        }
        "vocab.txt" => {
            let text = text(path, bytes)?;
            let lines: Vec<&str> = text.lines().collect();
            let kept = (vocabulary.kept.iter()).filter_map(|id| lines.get(*id as usize));
            ConfigEdit::Changed(
                kept.fold(String::new(), |all, line| all + line + "\n")
                    .into_bytes(),
            )
        }
        "merges.txt" => match merges(&vocabulary.tokenizer) {
            Some(merges) => ConfigEdit::Changed(merges.into_bytes()),
            None => ConfigEdit::LeftOut("the tokenizer has no merges"),
        },
        _ if ending == "model" => {
            let kept = tokens(&vocabulary.tokenizer);
            match sentencepiece::without(bytes, |piece| kept.contains(piece)) {
                Some(less) => ConfigEdit::Changed(less),
                None => ConfigEdit::LeftOut("it is of the whole vocabulary"),
            }
        }
        _ if OTHER_WEIGHTS.contains(&ending) => {
            ConfigEdit::LeftOut("it holds the weights of the whole vocabulary for another framework")
        }
        _ => ConfigEdit::Same,
    })
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
        parsed(path, &text(path, &bytes()?)?)?;
    }
    Ok(())
}

fn text(path: &Path, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|e| Error::input(format!("{} is no text: {e}", path.display())))?;
    Ok(text.to_owned())
}

fn parsed(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::input(format!("{} is no JSON: {e}", path.display())))
}

/// New ids of tokens.
struct Ids<'n> {
    new: &'n HashMap<u32, u32>,
}

impl Ids<'_> {
    fn of(&self, old: &Value) -> Option<u32> {
        self.new.get(&u32::try_from(old.as_u64()?).ok()?).copied()
    }

    /// A value with the ids in it renumbered; lists lose the tokens that are gone.
    fn within(&self, value: &Value) -> Option<Value> {
        Some(match value {
            Value::Number(_) => self.of(value)?.into(),
            Value::Array(all) => all.iter().filter_map(|v| self.within(v)).collect(),
            other => other.clone(),
        })
    }

    /// Pairs of a position and a token.
    fn forced(&self, value: &Value) -> Value {
        let pair = |pair: &Value| {
            let [at, token] = &pair.as_array()?[..] else {
                return None;
            };
            Some(Value::from(vec![
                at.clone(),
                self.of(token).map_or(Value::Null, Value::from),
            ]))
        };
        value.as_array().into_iter().flatten().filter_map(pair).collect()
    }
}

/// Changes what is the size of a vocabulary or the id of a token, at any depth.
fn renumbered<'v>(text: &mut String, value: &'v Value, keys: &mut Vec<&'v str>, ids: &Ids) {
    let Value::Object(members) = value else { return };
    for (key, value) in members {
        keys.push(key);
        let new = match key.as_str() {
            size if SIZES.contains(&size) && value.is_u64() => Some(ids.new.len().into()),
            "forced_decoder_ids" if value.is_array() => Some(ids.forced(value)),
            token if token.ends_with("token_id") || TOKENS.contains(&token) => ids.within(value),
            _ => None,
        };
        match new {
            Some(new) => _ = json::replace(text, keys, &new.to_string()),
            None => renumbered(text, value, keys, ids),
        }
        keys.pop();
    }
}

/// Changes what states the size of a cache.
fn resized(text: &mut String, value: &Value, caches: CacheSize) {
    for at in [&["model", "decoder"][..], &["text_config"], &[]] {
        let sizes = [
            ("num_key_value_heads", caches.heads),
            ("head_dim", caches.channels),
            ("head_size", caches.channels),
        ];
        for (key, size) in sizes {
            let keys: Vec<&str> = at.iter().copied().chain([key]).collect();
            let stated = keys.iter().try_fold(value, |value, key| value.get(key));
            if stated.is_some_and(Value::is_u64) {
                json::replace(text, &keys, &size.to_string());
            }
        }
    }
}

/// The tokens of a `tokenizer.json`.
fn tokens(tokenizer: &[u8]) -> HashSet<String> {
    let file: Value = serde_json::from_slice(tokenizer).unwrap_or_default();
    let mut found = HashSet::new();
    match file.get("model").and_then(|m| m.get("vocab")) {
        Some(Value::Object(vocab)) => found.extend(vocab.keys().cloned()),
        Some(Value::Array(pieces)) => {
            let text = |piece: &Value| piece.get(0)?.as_str().map(str::to_owned);
            found.extend(pieces.iter().filter_map(text));
        }
        _ => {}
    }
    found
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
                tokenizer: br#"{"model": {"vocab": {"a": 0}, "merges": ["a b", ["ab", "c"]]}}"#.to_vec(),
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
  "suppress_tokens": [1], "forced_decoder_ids": [[1,2],[2,null]], "bad_words_ids": [[1,3],[]] }"#
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
            after("vocab.json", r#"{"b": 5, "\"": 2, "c": 1}"#, &kept),
            r#"{"\"": 1, "b": 2}"#
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
