//! Samples from texts.

use std::path::PathBuf;

use super::draw::{Purpose, Random, Reservoir};
use super::finish::FinishReading;
use super::layout::{InputAxis, InputRole, LayoutInput, StreamKind};
use super::padding::Padding;
use super::reader::{DataReader, ReadParts, fixed_tokens};
use super::samples::LEAST_TOKENS;
use super::spec::InputDim;
use super::text::{self, Text};
use super::tokenize::{Tokenizer, Tokens};
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Feeds, Tensor, ops};

impl DataReader<'_> {
    pub(super) fn read_texts(
        &self,
        paths: &[PathBuf],
        parts: &mut ReadParts,
    ) -> Result<(Vec<String>, Padding)> {
        let Some(tokenizer) = &self.options.tokenizer else {
            return Err(Error::input(
                "texts need the model's tokenizer: give its tokenizer.json with --tokenizer",
            ));
        };
        if self.options.text_columns.len() > 2 {
            return Err(Error::input(
                "--text-column takes one column, or two for pairs of texts",
            ));
        }
        let ids = self
            .layout
            .inputs
            .iter()
            .find(|i| i.role == InputRole::TokenIds)
            .ok_or_else(|| {
                Error::input(format!(
                    "texts are for models with token ids; the graph wants {}",
                    self.layout.describe()
                ))
            })?;
        let mut notes = Vec::new();
        let fixed = fixed_tokens(&self.layout, ids.stream);
        let length = self.longest(self.options.max_length, fixed);
        if length < self.options.max_length {
            notes.push(format!(
                "texts are cut to {length} tokens, the most that the model takes"
            ));
        }
        let tokenizer = Tokenizer::open(tokenizer, length)?;

        let mut reservoir = Reservoir::new(self.options.most_texts(), self.options.seed);
        for path in paths {
            let note = text::for_each(path, &self.options.text_columns, &mut |text| {
                reservoir.offer(|| tokenizer.shortened(text));
            })?;
            notes.extend(note);
        }
        let seen = reservoir.seen();
        let mut texts = reservoir.into_items();
        self.enough(&mut texts, &tokenizer, length)?;
        if seen > texts.len() as u64 {
            notes.push(format!(
                "{} of {seen} texts were taken at random (seed {})",
                texts.len(),
                self.options.seed
            ));
        }
        if self.options.join {
            let crossed = self.cross(&mut texts, &tokenizer, length)?;
            if crossed > 0 {
                notes.push(format!(
                    "{crossed} more texts were made, of the beginning of one and the end of another (--no-join \
                     leaves all as they are)"
                ));
            }
            let joined = join(&mut texts, &tokenizer, length, self.options.seed)?;
            if joined > 0 {
                notes.push(format!(
                    "{joined} texts were joined with others (--no-join leaves all as they are)"
                ));
            }
        }
        let template = tokenizer.template();
        let mut finish = FinishReading::new(self, self.filler(&template), parts);
        for text in texts {
            let (feeds, token_mask) = self.text_inputs(&tokenizer, &text, fixed)?;
            finish.add(feeds, token_mask)?;
        }
        let mut notes = finish.into_notes(notes);
        if self.layout.ids(StreamKind::Decoder).is_some() && ids.stream != StreamKind::Decoder {
            notes.push("the decoder is fed the same texts as the encoder".to_owned());
        }
        Ok((notes, Padding::for_texts(&self.layout, tokenizer.pad_id)))
    }

    /// Leaves as many of the texts as have enough tokens, evenly spread, where their number
    /// is not given.
    fn enough(&self, texts: &mut Vec<Text>, tokenizer: &Tokenizer, length: usize) -> Result<()> {
        if self.options.samples.is_some() || texts.len() <= self.options.count() {
            return Ok(());
        }
        let mut tokens = 0usize;
        for text in texts.iter() {
            tokens += tokenizer.count(text)?.min(length);
        }
        if self.options.join {
            // Each is joined with one other on average, as far as there is room.
            tokens = tokens.max((2 * tokens).min(texts.len() * length));
        }
        let count = self.options.texts_of(texts.len(), tokens);
        let all = texts.len();
        let mut at = 0;
        texts.retain(|_| {
            let kept = (at + 1) * count / all > at * count / all;
            at += 1;
            kept
        });
        Ok(())
    }

    /// Makes more texts of those that are there, where they have too few tokens and their
    /// number is not given; returns how many.
    fn cross(&self, texts: &mut Vec<Text>, tokenizer: &Tokenizer, length: usize) -> Result<usize> {
        if self.options.samples.is_some() || texts.len() < 2 {
            return Ok(0);
        }
        let mut tokens = 0usize;
        for text in texts.iter() {
            tokens += tokenizer.count(text)?.min(length);
        }
        // Each is joined with one other on average.
        let each = (2 * tokens).div_ceil(texts.len()).min(length).max(1);
        let enough = LEAST_TOKENS.div_ceil(each).min(self.options.most_texts());
        let more = enough.saturating_sub(texts.len()).min(MOST_CROSSED * texts.len());
        let mut random = Random::new(self.options.seed, Purpose::Cross);
        let alone = texts.len();
        for _ in 0..more {
            let mut one = || texts.get(random.below(alone as u64) as usize);
            if let (Some(a), Some(b)) = (one(), one())
                && let Some(made) = crossed(a, b, &mut random)
            {
                texts.push(made);
            }
        }
        Ok(texts.len() - alone)
    }

    /// The inputs that a text gives, padded where the graph fixes the length.
    fn text_inputs(
        &self,
        tokenizer: &Tokenizer,
        text: &Text,
        fixed: Option<usize>,
    ) -> Result<(Feeds, Option<Vec<bool>>)> {
        let Tokens { ids, types } = tokenizer.encode(text)?;
        if ids.is_empty() {
            return Ok((Feeds::new(), None));
        }
        let length = fixed.unwrap_or(ids.len());
        let padding = length.saturating_sub(ids.len());
        let padded = |values: &[u32], pad: u32| -> Vec<i64> {
            let own = values.iter().map(|&v| i64::from(v));
            let pad = std::iter::repeat_n(i64::from(pad), padding);
            if tokenizer.pads_left {
                pad.chain(own).collect()
            } else {
                own.chain(pad).collect()
            }
        };
        let ones = vec![1u32; ids.len()];
        let real = padded(&ones, 0);
        let mut feeds = Feeds::new();
        for input in &self.layout.inputs {
            let values = match input.role {
                InputRole::TokenIds => padded(&ids, tokenizer.pad_id),
                InputRole::TokenTypes => {
                    let most = self.tables.rows(&input.spec.name).unwrap_or(usize::MAX);
                    let most = u32::try_from(most.saturating_sub(1)).unwrap_or(u32::MAX);
                    let types: Vec<u32> = types.iter().map(|&t| t.min(most)).collect();
                    padded(&types, 0)
                }
                InputRole::Mask if input.axes.iter().any(|a| matches!(a, InputAxis::Tokens(_))) => {
                    if input.axes.iter().filter(|a| **a != InputAxis::Batch).count() != 1 {
                        continue;
                    }
                    real.clone()
                }
                _ => continue,
            };
            let tensor = spread(input, &values)
                .context(|| format!("filling graph input '{}' from text", input.spec.name))?;
            feeds.insert(input.spec.name.clone(), tensor);
        }
        let token_mask: Vec<bool> = real.iter().map(|&r| r == 1).collect();
        Ok((feeds, token_mask.contains(&false).then_some(token_mask)))
    }
}

/// `values`, one per token, as a tensor for `input`; axes other than the tokens
/// repeat them.
fn spread(input: &LayoutInput, values: &[i64]) -> Result<Tensor> {
    let mut shape = Vec::with_capacity(input.axes.len());
    for (axis, dim) in input.axes.iter().zip(&input.spec.dims) {
        shape.push(match (axis, dim) {
            (InputAxis::Tokens(_) | InputAxis::Total, _) => values.len(),
            (InputAxis::Batch, _) => 1,
            (_, InputDim::Fixed(size)) => *size,
            _ => 1,
        });
    }
    let n = ops::elements(&shape)?;
    let all: Vec<i64> = values.iter().copied().cycle().take(n).collect();
    ops::from_integers(input.spec.elem, shape, &all)
        .ok_or_else(|| Error::input(format!("a value does not fit {:?}", input.spec.elem)))
}

/// The most texts that are made of others, for each of these.
const MOST_CROSSED: usize = 2;

/// The beginning of one text and the end of another, each up to the end of a word; of texts
/// without blanks, up to any character.
fn crossed(a: &Text, b: &Text, random: &mut Random) -> Option<Text> {
    let mut cut = |text: &Text| -> Option<usize> {
        let places = |is: &dyn Fn(char) -> bool| -> Vec<usize> {
            let all = text.first.char_indices().skip(1);
            all.filter(|(_, c)| is(*c)).map(|(at, _)| at).collect()
        };
        let places = match places(&char::is_whitespace) {
            none if none.is_empty() => places(&|_| true),
            blanks => blanks,
        };
        let at = random.below(places.len() as u64) as usize;
        (text.second.is_none()).then(|| places.get(at).copied()).flatten()
    };
    let (end, start) = (cut(a)?, cut(b)?);
    Some(Text {
        first: format!("{}{}", &a.first[..end], &b.first[start..]),
        second: None,
    })
}

/// The most texts that a text is joined with.
const JOINED: u64 = 2;

/// Joins each text with none, one or two others, where all together have at most
/// `longest` tokens; returns how many are joined.
fn join(texts: &mut [Text], tokenizer: &Tokenizer, longest: usize, seed: u64) -> Result<usize> {
    let mut random = Random::new(seed, Purpose::Join);
    let alone: Vec<Text> = texts.to_vec();
    let mut joined = 0;
    for text in texts {
        let mut grown = false;
        for _ in 0..random.below(JOINED + 1) {
            let other = random.below(alone.len() as u64) as usize;
            let Some(other) = alone.get(other).filter(|o| o.second.is_none()) else {
                continue;
            };
            if text.second.is_some() {
                continue;
            }
            let both = Text {
                first: format!("{} {}", text.first.trim_end(), other.first.trim_start()),
                second: None,
            };
            if tokenizer.count(&both)? <= longest {
                *text = both;
                grown = true;
            }
        }
        joined += usize::from(grown);
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(first: &str) -> Text {
        Text {
            first: first.into(),
            second: None,
        }
    }

    #[test]
    fn crossed_texts_begin_as_one_and_end_as_another() {
        let mut random = Random::new(0, Purpose::Cross);
        let (a, b) = (text("one two three"), text("four five six"));
        for _ in 0..50 {
            let made = crossed(&a, &b, &mut random).unwrap().first;
            let (begins, ends) = (["one", "one two"], ["five six", "six"]);
            let whole = |begin: &str| ends.iter().any(|end| made == format!("{begin} {end}"));
            assert!(begins.iter().any(|begin| whole(begin)), "{made}");
        }
        // Without blanks any character may be the last one.
        let made = crossed(&text("猫が好き"), &text("犬も好き"), &mut random).unwrap();
        assert!(made.first.starts_with('猫') && made.first.ends_with('き'));
        let pair = Text {
            second: Some("and a second one".into()),
            ..text("one two")
        };
        assert!(crossed(&pair, &a, &mut random).is_none());
        assert!(crossed(&text("a"), &a, &mut random).is_none());
        assert!(crossed(&text(""), &text(""), &mut random).is_none());
    }
}
