//! `tokenizer.json` of the Hugging Face tokenizers library: its tokens, what they are made of,
//! and the file without some of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::scripts::{self, Scripts};
use crate::{Error, Result};

/// How a tokenizer cuts words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutBy {
    /// The longest token that fits, from left to right.
    WordPiece,
    /// Merges of neighbours, in their order.
    Merges,
    /// The tokens with the greatest sum of scores.
    Scores,
}

/// The tokens of a tokenizer.
pub(super) struct Vocabulary {
    cut_by: CutBy,
    /// Tokens of the model by id; added ones are among them or beside them.
    tokens: BTreeMap<u32, String>,
    ids: HashMap<String, u32>,
    added: BTreeSet<u32>,
    /// Ids that other parts of the file name.
    named: BTreeSet<u32>,
    /// The pairs that each token is merged of.
    merges: HashMap<String, Vec<(String, String)>>,
    /// What begins a piece inside of a word, and what ends one at its end.
    inside: String,
    end: String,
    /// Whether the characters of a token stand for bytes.
    of_bytes: bool,
    /// The token of what has none.
    unknown: Option<u32>,
    /// The token with the least score, which sets that of unknown ones.
    least: Option<u32>,
}

fn wrong(what: &str) -> Error {
    Error::input(format!("this tokenizer.json cannot be made smaller: {what}"))
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The two sides of a merge, which is a pair or a text with a space.
fn sides(merge: &Value) -> Option<(String, String)> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(pair) => match &pair[..] {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    }
}

impl Vocabulary {
    /// Of a file.
    pub(super) fn of(file: &Value) -> Result<Self> {
        let model = file.get("model").ok_or_else(|| wrong("it has no model"))?;
        let text = |name: &str| {
            model
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut tokens = BTreeMap::new();
        let mut least: Option<(f64, u32)> = None;
        let cut_by = match (model.get("vocab"), model.get("merges")) {
            (Some(Value::Object(vocab)), merges) => {
                for (token, at) in vocab {
                    let at = id(at).ok_or_else(|| wrong("an id is no number"))?;
                    if tokens.insert(at, token.clone()).is_some() {
                        return Err(wrong("two tokens have one id"));
                    }
                }
                match merges {
                    Some(_) => CutBy::Merges,
                    None => CutBy::WordPiece,
                }
            }
            (Some(Value::Array(vocab)), _) => {
                for (at, entry) in vocab.iter().enumerate() {
                    let (Some(token), Some(score), Ok(at)) = (
                        entry.get(0).and_then(Value::as_str),
                        entry.get(1).and_then(Value::as_f64),
                        u32::try_from(at),
                    ) else {
                        return Err(wrong("a token has no score"));
                    };
                    tokens.insert(at, token.to_owned());
                    if least.is_none_or(|(least, _)| score < least) {
                        least = Some((score, at));
                    }
                }
                CutBy::Scores
            }
            _ => return Err(wrong("its vocabulary is of a kind that is not known")),
        };
        let (inside, end) = match cut_by {
            CutBy::WordPiece => (text("continuing_subword_prefix"), String::new()),
            CutBy::Merges => (text("continuing_subword_prefix"), text("end_of_word_suffix")),
            CutBy::Scores => Default::default(),
        };
        let mut merges: HashMap<String, Vec<(String, String)>> = HashMap::new();
        for merge in model
            .get("merges")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let (a, b) = sides(merge).ok_or_else(|| wrong("a merge is no pair"))?;
            let made = format!("{a}{}", b.strip_prefix(&inside).unwrap_or(&b));
            merges.entry(made).or_default().push((a, b));
        }
        let mut added = BTreeSet::new();
        for token in file
            .get("added_tokens")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let at = token
                .get("id")
                .and_then(id)
                .ok_or_else(|| wrong("an added token has no id"))?;
            added.insert(at);
            if let Some(content) = token.get("content").and_then(Value::as_str) {
                tokens.entry(at).or_insert_with(|| content.to_owned());
            }
        }
        let ids: HashMap<String, u32> = tokens.iter().map(|(at, token)| (token.clone(), *at)).collect();
        let mut named = BTreeSet::new();
        let mut copy = file.clone();
        renumber(&mut copy, &mut |at| {
            named.insert(at);
            Some(at)
        });
        let unknown = model
            .get("unk_token")
            .and_then(Value::as_str)
            .and_then(|t| ids.get(t).copied());
        let unknown = unknown.or_else(|| model.get("unk_id").and_then(id));
        named.extend(unknown);
        Ok(Self {
            cut_by,
            unknown,
            of_bytes: ["pre_tokenizer", "decoder"].iter().any(|part| {
                let told = file.get(part).map(Value::to_string);
                told.is_some_and(|text| text.contains("\"ByteLevel\""))
            }),
            ids,
            tokens,
            added,
            named,
            merges,
            inside,
            end,
            least: least.map(|(_, at)| at),
        })
    }

    /// One more than the greatest id.
    pub(super) fn size(&self) -> usize {
        self.tokens
            .keys()
            .next_back()
            .map_or(0, |last| *last as usize + 1)
    }

    /// The tokens of another file that are also here.
    pub(super) fn those_of(&self, other: &Value) -> Result<Vec<u32>> {
        let other = Self::of(other)?;
        Ok(other
            .tokens
            .values()
            .filter_map(|t| self.ids.get(t).copied())
            .collect())
    }

    /// What no text can do without: special and added tokens, what other parts of the file
    /// name, single characters and bytes, and longer pieces with a character that has no piece
    /// of its own.
    pub(super) fn fallbacks(&self) -> BTreeSet<u32> {
        let mut kept: BTreeSet<u32> = self.added.union(&self.named).copied().collect();
        kept.extend(self.least);
        let bare = |token: &str| -> String {
            let token = match self.inside.is_empty() {
                true => token,
                false => token.strip_prefix(&self.inside).unwrap_or(token),
            };
            let token = match self.end.is_empty() {
                true => token,
                false => token.strip_suffix(&self.end).unwrap_or(token),
            };
            token.to_owned()
        };
        let is_byte = |token: &str| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        for (at, token) in &self.tokens {
            if bare(token).chars().count() <= 1 || is_byte(token) {
                kept.insert(*at);
            }
        }
        // Where each piece of a word is looked up as it is, the first has another form.
        let single = |c: char, first: bool| match (self.cut_by, first) {
            (CutBy::WordPiece, false) => self.ids.contains_key(&format!("{}{c}", self.inside)),
            _ => self.ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str),
        };
        if self.cut_by != CutBy::Merges {
            for (at, token) in &self.tokens {
                let begins = self.inside.is_empty() || !token.starts_with(&self.inside);
                let mut chars = bare(token).chars().collect::<Vec<_>>().into_iter().enumerate();
                if chars.any(|(place, c)| !single(c, place == 0 && begins)) {
                    kept.insert(*at);
                }
            }
        }
        kept
    }

    /// What stands for a token that is gone: the unknown one, or the first special one.
    pub(super) fn stand_in(&self) -> Option<u32> {
        self.unknown.or_else(|| self.added.first().copied())
    }

    /// For each token that is gone the longest one that stays and that it begins with; none
    /// for tokens that begin with nothing that stays.
    pub(super) fn beginnings(&self, kept: &BTreeSet<u32>) -> HashMap<u32, u32> {
        let beginning = |token: &str| {
            let marked = match self.inside.is_empty() {
                true => 0,
                false => token.strip_prefix(&self.inside).map_or(0, |_| self.inside.len()),
            };
            let ends = token.char_indices().map(|(at, _)| at).filter(|at| *at > marked);
            let pieces = ends.filter_map(|end| self.ids.get(&token[..end]));
            pieces.rev().find(|at| kept.contains(at)).copied()
        };
        let gone = self.tokens.iter().filter(|(at, _)| !kept.contains(at));
        gone.filter_map(|(at, token)| Some((*at, beginning(token)?)))
            .collect()
    }

    /// The tokens that some scripts write.
    pub(super) fn written_in(&self, scripts: &Scripts) -> BTreeSet<u32> {
        let writes = |token: &str| match self.of_bytes {
            true => scripts::of_bytes(token).is_some_and(|text| scripts.write(&text)),
            false => scripts.write(token),
        };
        let own = self.tokens.iter().filter(|(_, token)| writes(token));
        own.map(|(at, _)| *at).collect()
    }

    /// Adds what the tokens are merged of.
    pub(super) fn close(&self, kept: &mut BTreeSet<u32>) {
        let mut open: Vec<u32> = kept.iter().copied().collect();
        while let Some(at) = open.pop() {
            let made = self.tokens.get(&at).and_then(|token| self.merges.get(token));
            // The first merge that makes a token is the one that is applied.
            let Some((a, b)) = made.and_then(|pairs| pairs.first()) else {
                continue;
            };
            for side in [a, b] {
                if let Some(part) = self.ids.get(side)
                    && kept.insert(*part)
                {
                    open.push(*part);
                }
            }
        }
    }

    /// The tokens that may be met on the way to those of a text: all that lie in them.
    pub(super) fn inside(&self, ids: &[u32]) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for token in ids.iter().filter_map(|at| self.tokens.get(at)) {
            let ends: Vec<usize> = token
                .char_indices()
                .map(|(at, _)| at)
                .chain([token.len()])
                .collect();
            for (n, from) in ends.iter().enumerate() {
                let parts = ends[n + 1..]
                    .iter()
                    .filter_map(|to| self.ids.get(&token[*from..*to]));
                found.extend(parts.copied());
            }
        }
        found
    }

    /// The file with some of the tokens, and their new ids by the old ones.
    pub(super) fn without(&self, file: &Value, kept: &BTreeSet<u32>) -> Result<(Value, HashMap<u32, u32>)> {
        let new: HashMap<u32, u32> = kept.iter().copied().zip(0u32..).collect();
        let mut file = file.clone();
        let model = file.get_mut("model").ok_or_else(|| wrong("it has no model"))?;
        let stays: HashSet<&str> = kept
            .iter()
            .filter_map(|at| self.tokens.get(at).map(String::as_str))
            .collect();
        match model.get_mut("vocab") {
            Some(Value::Object(vocab)) => {
                let mut entries: Vec<(String, u32)> = std::mem::take(vocab)
                    .into_iter()
                    .filter_map(|(token, at)| Some((token, *new.get(&id(&at)?)?)))
                    .collect();
                entries.sort_by_key(|(_, at)| *at);
                vocab.extend(entries.into_iter().map(|(token, at)| (token, at.into())));
            }
            Some(Value::Array(vocab)) => {
                let mut at = 0u32;
                vocab.retain(|_| {
                    at += 1;
                    kept.contains(&(at - 1))
                });
            }
            _ => return Err(wrong("its vocabulary is of a kind that is not known")),
        }
        if let Some(Value::Array(merges)) = model.get_mut("merges") {
            merges.retain(|merge| {
                sides(merge).is_some_and(|(a, b)| {
                    let made = format!("{a}{}", b.strip_prefix(&self.inside).unwrap_or(&b));
                    [&a, &b, &made].iter().all(|token| stays.contains(token.as_str()))
                })
            });
        }
        renumber(&mut file, &mut |at| new.get(&at).copied());
        Ok((file, new))
    }
}

/// Changes the ids that stand outside of the vocabulary: those of added tokens, of what is put
/// around texts, of padding, and of the unknown token.
fn renumber(file: &mut Value, new: &mut dyn FnMut(u32) -> Option<u32>) {
    let mut change = |value: &mut Value| {
        if let Some(at) = id(value).and_then(&mut *new) {
            *value = at.into();
        }
    };
    for token in file
        .get_mut("added_tokens")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        token.get_mut("id").into_iter().for_each(&mut change);
    }
    if let Some(padding) = file.get_mut("padding") {
        padding.get_mut("pad_id").into_iter().for_each(&mut change);
    }
    if let Some(model) = file.get_mut("model") {
        model.get_mut("unk_id").into_iter().for_each(&mut change);
    }
    if let Some(post) = file.get_mut("post_processor") {
        around(post, &mut change);
    }
}

/// Changes the ids of tokens that are put around a text.
fn around(post: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    if let Some(Value::Array(own)) = post.get_mut("processors") {
        own.iter_mut().for_each(|one| around(one, change));
    }
    for name in ["sep", "cls"] {
        post.get_mut(name)
            .and_then(|pair| pair.get_mut(1))
            .into_iter()
            .for_each(&mut *change);
    }
    if let Some(Value::Object(special)) = post.get_mut("special_tokens") {
        for token in special.values_mut() {
            let ids = token.get_mut("ids").and_then(Value::as_array_mut);
            ids.into_iter().flatten().for_each(&mut *change);
        }
    }
}
