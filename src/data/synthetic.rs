//! Samples that are made up.

use super::draw::{Purpose, Random};
use super::fill::{FALLBACK_VOCABULARY, FillSizes, Template};
use super::layout::{InputRole, StreamKind};
use super::reader::{DataReader, ReadParts, fixed_tokens};
use super::samples::Sample;
use super::tokenize::Tokenizer;
use crate::error::Result;
use crate::tensor::Feeds;

/// Values of all synthetic samples together, at most (or those of one sample): a
/// gigabyte of floats.
const MOST_MADE: usize = 1 << 28;

impl DataReader<'_> {
    pub(super) fn synthetic(&self, parts: &mut ReadParts) -> Result<Vec<String>> {
        let options = self.options;
        let tokenizer = match &options.tokenizer {
            Some(path) => Some(Tokenizer::open(path, options.max_length.max(8))?),
            None => None,
        };
        let template = tokenizer.as_ref().map(Tokenizer::template).unwrap_or_default();
        let filler = self.filler(&template);
        let mut random = Random::new(options.seed, Purpose::Values);

        let most = self.longest(options.seq().max(1), None);
        let special = template.prefix.len() + template.suffix.len();
        let least = (most / 4).max(special + 1).min(most);
        // A dozen lengths vary enough, and leave batches of equal length to be made.
        let lengths: Vec<usize> = (0..12).map(|i| least + (most - least) * i / 11).collect();

        let mut notes = self.synthetic_notes(&template, least, most);
        let mut made = 0usize;
        for i in 0..options.count() {
            if made > MOST_MADE {
                notes.push(format!(
                    "{i} of {} samples were made: they have {made} values together, and more would fill \
                     the memory",
                    options.count()
                ));
                break;
            }
            let mut sizes = FillSizes::default();
            for input in &self.layout.inputs {
                if let Some(shape) = self.shapes.get(&input.spec.name) {
                    sizes.learn(input, shape);
                }
            }
            for (stream, step) in [
                (StreamKind::Main, 0),
                (StreamKind::Encoder, 5),
                (StreamKind::Decoder, 7),
            ] {
                let varied = lengths.get((i + step) % lengths.len()).copied().unwrap_or(most);
                let length = fixed_tokens(&self.layout, stream).unwrap_or(varied);
                sizes.tokens.entry(stream).or_insert(length);
            }
            let mut feeds = Feeds::new();
            for input in &self.layout.inputs {
                let tensor = filler.make(input, &sizes, &mut random)?;
                sizes.learn(input, &tensor.shape);
                made = made.saturating_add(tensor.len());
                feeds.insert(input.spec.name.clone(), tensor);
            }
            parts.push(Sample {
                feeds,
                token_mask: None,
            })?;
        }
        Ok(notes)
    }

    fn synthetic_notes(&self, template: &Template, least: usize, most: usize) -> Vec<String> {
        let ids = self.layout.inputs.iter().find(|i| i.role == InputRole::TokenIds);
        let mut notes = Vec::new();
        let Some(ids) = ids else {
            notes.push(
                "no --data: calibrated on noise; give real inputs with --data, they describe the \
                 model's work better"
                    .to_owned(),
            );
            return notes;
        };
        let lengths = match fixed_tokens(&self.layout, ids.stream) {
            Some(length) => format!("{length}"),
            None => format!("{least} to {most}"),
        };
        notes.push(format!(
            "no --data: calibrated on {} random token sequences of length {lengths}. Give texts with --data where you have them: without, a classifier pruned to 60% was 2.7 times as far from the \
             dense model, a model of sentence embeddings three times",
            self.options.count()
        ));
        if template.prefix.is_empty() && template.suffix.is_empty() {
            notes.push(
                "special tokens are not known: give the tokenizer with --tokenizer to have them \
                 around the random tokens"
                    .to_owned(),
            );
        }
        if self.tables.rows(&ids.spec.name).is_none() {
            notes.push(format!(
                "no embedding table was found behind '{}': token ids are drawn below \
                 {FALLBACK_VOCABULARY}",
                ids.spec.name
            ));
        }
        notes
    }
}
