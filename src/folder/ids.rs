//! Token ids that configurations state, with the numbers that tokens have now.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::json;

/// Sizes of a vocabulary.
const SIZES: [&str; 2] = ["vocab_size", "n_vocab"];

/// What a key of a configuration holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdsOf {
    /// The size of the vocabulary.
    Size,
    /// Tokens that have a role: one, several that all do, or names with a token each.
    Role,
    /// Tokens that are named somewhere.
    List,
    /// Sequences of tokens, each of which means something as a whole only.
    Sequences,
    /// Pairs of a position and a token.
    Forced,
    /// Pairs of a sequence and what is added to its score.
    Biases,
}

impl IdsOf {
    /// By the names that transformers and onnxruntime-genai have.
    fn key(key: &str) -> Option<Self> {
        const ROLES: [&str; 3] = ["token_id", "token_ids", "token_index"];
        Some(match key {
            size if SIZES.contains(&size) => Self::Size,
            role if ROLES.iter().any(|end| role.ends_with(end)) => Self::Role,
            // A language or a task that cannot be asked for any more is worth a token.
            "lang_to_id" | "task_to_id" => Self::Role,
            "suppress_tokens" | "begin_suppress_tokens" => Self::List,
            "bad_words_ids" | "force_words_ids" => Self::Sequences,
            "forced_decoder_ids" => Self::Forced,
            "sequence_bias" => Self::Biases,
            _ => return None,
        })
    }
}

/// What the tokens of a vocabulary were and are.
pub(super) struct NewIds {
    /// Of each token that stays.
    pub(super) ids: HashMap<u32, u32>,
    /// How large the vocabulary was: tokens, and rows of the tables.
    pub(super) sizes: [usize; 2],
}

impl NewIds {
    fn is_size(&self, value: &Value) -> bool {
        let size = whole(value).and_then(|size| usize::try_from(size).ok());
        size.is_some_and(|size| self.sizes.contains(&size))
    }

    /// Whether a part of a configuration speaks of another vocabulary.
    fn are_not_of(&self, part: &str, members: &str) -> bool {
        const OTHERS: [&str; 7] = ["vision", "image", "audio", "speech", "video", "codebook", "vq_"];
        if OTHERS.iter().any(|other| part.contains(other)) {
            return true;
        }
        let members: Map<String, Value> = serde_json::from_str(&json::standard(members)).unwrap_or_default();
        let mut sizes = SIZES.iter().filter_map(|key| members.get(*key));
        sizes.any(|size| whole(size).is_some() && !self.is_size(size))
    }
}

/// The text of a configuration with the ids and the size that its tokens have now.
pub(super) fn renumbered(text: &str, tokens: &NewIds) -> String {
    let new = &tokens.ids;
    json::edited(text, &mut |keys, value| {
        let key = keys.last()?;
        if value.starts_with('{') && tokens.are_not_of(key, value) {
            return Some(value.to_owned());
        }
        let kind = IdsOf::key(key)?;
        let value: Value = serde_json::from_str(value).ok()?;
        let made = match kind {
            IdsOf::Size => whole(&value).map(|_| new.len().into()),
            IdsOf::Role | IdsOf::List => within(&value, new),
            IdsOf::Sequences => value
                .as_array()
                .map(|all| all.iter().filter_map(|v| sequence(v, new)).collect()),
            IdsOf::Forced => value.as_array().map(|all| forced(all, new)),
            IdsOf::Biases => value.as_array().map(|all| biases(all, new)),
        };
        made.map(|made| made.to_string())
    })
}

/// The tokens that a configuration gives a role.
pub(super) fn roles(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let _same = json::edited(text, &mut |keys, value| {
        let kind = IdsOf::key(keys.last()?)?;
        let value: Value = serde_json::from_str(value).ok()?;
        match kind {
            IdsOf::Role => numbers(&value, &mut found),
            IdsOf::Forced => {
                let pairs = value.as_array()?;
                pairs
                    .iter()
                    .filter_map(|pair| pair.get(1))
                    .for_each(|token| numbers(token, &mut found));
            }
            _ => {}
        }
        None
    });
    found
}

/// The entries of `added_tokens_decoder`, whose names are ids.
pub(super) fn added_tokens(text: &str, new: &HashMap<u32, u32>) -> String {
    json::edited(text, &mut |keys, value| {
        let [key] = keys else { return None };
        let added: Map<String, Value> = match key.as_str() {
            "added_tokens_decoder" => serde_json::from_str(value).ok()?,
            _ => return None,
        };
        let mut moved: Vec<(u32, &Value)> = (added.iter())
            .filter_map(|(id, token)| Some((*new.get(&id.parse().ok()?)?, token)))
            .collect();
        moved.sort_by_key(|(id, _)| *id);
        let each = moved.iter().map(|(id, token)| format!("\"{id}\": {token}"));
        Some(format!("{{{}}}", each.collect::<Vec<_>>().join(", ")))
    })
}

/// A list of tokens with their ids.
pub(super) fn token_list(tokens: Map<String, Value>, new: &HashMap<u32, u32>) -> String {
    let mut kept: Vec<(u32, String)> = (tokens.into_iter())
        .filter_map(|(token, id)| Some((of(&id, new)?, token)))
        .collect();
    kept.sort();
    let each = kept
        .iter()
        .map(|(id, token)| format!("{}: {id}", Value::from(token.as_str())));
    format!("{{{}}}", each.collect::<Vec<_>>().join(", "))
}

fn of(old: &Value, new: &HashMap<u32, u32>) -> Option<u32> {
    new.get(&u32::try_from(whole(old)?).ok()?).copied()
}

/// A whole number, which may be written as `102.0` or `1e2`.
fn whole(value: &Value) -> Option<u64> {
    const MOST: f64 = u32::MAX as f64;
    let float = |v: f64| ((0.0..=MOST).contains(&v) && v.fract() == 0.0).then_some(v as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(float))
}

/// A value with the ids in it renumbered, without the tokens that are gone.
fn within(value: &Value, new: &HashMap<u32, u32>) -> Option<Value> {
    Some(match value {
        Value::Number(_) => of(value, new)?.into(),
        Value::Array(all) => all.iter().filter_map(|v| within(v, new)).collect(),
        Value::Object(all) => (all.iter())
            .filter_map(|(name, v)| Some((name.clone(), within(v, new)?)))
            .collect(),
        other => other.clone(),
    })
}

/// The same, or nothing where one of the tokens is gone.
fn sequence(value: &Value, new: &HashMap<u32, u32>) -> Option<Value> {
    match value {
        Value::Array(all) => all.iter().map(|v| sequence(v, new)).collect(),
        value => of(value, new).map(Value::from),
    }
}

fn forced(pairs: &[Value], new: &HashMap<u32, u32>) -> Value {
    let pair = |pair: &Value| {
        let [at, token] = &pair.as_array()?[..] else {
            return None;
        };
        Some(Value::from(vec![
            at.clone(),
            of(token, new).map_or(Value::Null, Value::from),
        ]))
    };
    pairs.iter().filter_map(pair).collect()
}

fn biases(pairs: &[Value], new: &HashMap<u32, u32>) -> Value {
    let pair = |pair: &Value| {
        let [tokens, bias] = &pair.as_array()?[..] else {
            return None;
        };
        Some(Value::from(vec![sequence(tokens, new)?, bias.clone()]))
    };
    pairs.iter().filter_map(pair).collect()
}

fn numbers(value: &Value, found: &mut Vec<u32>) {
    match value {
        Value::Number(_) => found.extend(whole(value).and_then(|id| u32::try_from(id).ok())),
        Value::Array(all) => all.iter().for_each(|v| numbers(v, found)),
        Value::Object(all) => all.values().for_each(|v| numbers(v, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_with_a_role_are_found_and_renumbered() {
        let text = r#"{"eos_token_ids": [5, 7], "forced_decoder_ids": [[1, 9], [2, null]],
 "suppress_tokens": [3], "bad_words_ids": [[5, 3], [7]], "lang_to_id": {"de": 9, "fr": 3},
 "model": {"pad_token_id": 2, "image_token_index": 11, "type_vocab_size": 2, "eps": NaN}}"#;
        assert_eq!(roles(text), [5, 7, 9, 9, 3, 2, 11]);
        let new = NewIds {
            ids: [(5, 1), (7, 2), (9, 3), (2, 0), (11, 4)].into_iter().collect(),
            sizes: [12, 16],
        };
        assert_eq!(
            renumbered(text, &new),
            r#"{"eos_token_ids": [1,2], "forced_decoder_ids": [[1,3],[2,null]],
 "suppress_tokens": [], "bad_words_ids": [[2]], "lang_to_id": {"de":3},
 "model": {"pad_token_id": 0, "image_token_index": 4, "type_vocab_size": 2, "eps": NaN}}"#
        );
    }

    #[test]
    fn parts_that_speak_of_other_tokens_stay() {
        let new = NewIds {
            ids: [(0, 0), (5, 1), (7, 2)].into_iter().collect(),
            sizes: [10, 16],
        };
        let text = r#"{"vocab_size": 10.0, "eos_token_id": 7e0, "sequence_bias": [[[5, 7], -1.5], [[3], 2.0]],
 "text_config": {"vocab_size": 16, "bos_token_id": 5}, "codebook": {"vocab_size": 10, "bos_token_id": 5},
 "decoder": {"vocab_size": 99, "bos_token_id": 5, "eps": NaN}, "encoder": {"pad_token_id": 7}}"#;
        assert_eq!(
            renumbered(text, &new),
            r#"{"vocab_size": 3, "eos_token_id": 2, "sequence_bias": [[[1,2],-1.5]],
 "text_config": {"vocab_size": 3, "bos_token_id": 1}, "codebook": {"vocab_size": 10, "bos_token_id": 5},
 "decoder": {"vocab_size": 99, "bos_token_id": 5, "eps": NaN}, "encoder": {"pad_token_id": 2}}"#
        );
    }
}
