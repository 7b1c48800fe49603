//! Samples, where they come from, and what to read.

use std::path::PathBuf;
use std::sync::Arc;

use super::padding::Padding;
use crate::tensor::Feeds;

/// One input of the model, with one row along the batch axis, cut to its own
/// length.
///
/// Padding is cut off where an attention mask shows it (at either end) and the
/// graph leaves the length open; otherwise it stays and `token_mask` tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The inputs by name.
    pub feeds: Feeds,
    /// Which token positions are real; `None` when all are.
    pub token_mask: Option<Vec<bool>>,
}

/// Where samples come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataOrigin {
    /// Made from the graph's inputs.
    Synthetic {
        /// The seed they were made with.
        seed: u64,
    },
    /// Handed over by the program that uses the library.
    Given,
    /// Read.
    Files {
        /// What was given.
        paths: Vec<PathBuf>,
    },
}

/// Samples and what there is to say about them.
#[derive(Debug, Clone)]
pub struct Samples {
    /// The samples, in the order of their source.
    pub samples: Vec<Sample>,
    /// Where they come from.
    pub origin: DataOrigin,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
    /// Whether shorter ones may be filled up, to share a batch.
    pub padding: Padding,
}

impl Samples {
    /// One sample of each set of inputs: every tensor has one row along the
    /// model's batch axis. All token positions count as real.
    pub fn of_feeds(feeds: impl IntoIterator<Item = Feeds>) -> Self {
        let sample = |feeds| Sample {
            feeds,
            token_mask: None,
        };
        Samples {
            samples: feeds.into_iter().map(sample).collect(),
            origin: DataOrigin::Given,
            notes: Vec::new(),
            padding: Padding::No,
        }
    }
}

/// Tokens of a sequence where nothing says how many.
pub(crate) const TOKENS: usize = 128;

/// What to read and how.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Samples that are at hand, in place of all that is read or made.
    pub given: Option<Arc<Samples>>,
    /// Files and folders; none means synthetic samples. All arrays (`.npz`,
    /// folders of them, ONNX test data sets) or all texts (`.txt`, `.jsonl`,
    /// `.tsv`, `.csv`).
    pub data: Vec<PathBuf>,
    /// `tokenizer.json`, or the folder with it: needed for texts.
    pub tokenizer: Option<PathBuf>,
    /// One or two columns with text, by name or number from 0; none: by their
    /// usual names.
    pub text_columns: Vec<String>,
    /// Texts are cut to this many tokens, special ones included.
    pub max_length: usize,
    /// The most samples taken; of more, a random subset. None: 512, and of texts with few
    /// tokens as many more as have 32,768 together, at most 2,048. On a six-layer BERT for
    /// SST-2 (phrases of 13 tokens, 60% of the multiply-accumulates, means of five draws) the
    /// divergence is 0.0035 with these, 0.0042 with 512, 0.0035 with 2,048.
    pub samples: Option<usize>,
    /// Whether an eighth more are read, at most 64, to be kept apart.
    pub apart: bool,
    /// Seed of the subset and of synthetic values.
    pub seed: u64,
    /// Shapes of inputs by name, for axes that the graph leaves open.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a sequence, for which costs are computed, and of the longest synthetic
    /// one. Without it: those of the samples where all have the same number, else 128.
    pub seq: Option<usize>,
    /// Whether a third of the texts is joined with another one and a third with
    /// two, where all together have at most `max_length` tokens. Joined texts have
    /// more tokens and more various ones: on a six-layer BERT for SST-2 (512
    /// phrases of 13 tokens, 60% and 50% of the multiply-accumulates, means of five
    /// draws) the divergence on whole sentences is 0.0064 and 0.0135, where half of
    /// the texts are joined with one other 0.0069 and 0.0148. Without any it is
    /// 0.0084 at 60% (one draw). Up to three others bring no more than up to two.
    ///
    /// Where the number of samples is not given and there are few texts, more are made, of
    /// the beginning of one and the end of another (`docs/experiments.md`).
    pub join: bool,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            given: None,
            data: Vec::new(),
            tokenizer: None,
            text_columns: Vec::new(),
            max_length: 128,
            samples: None,
            apart: false,
            seed: 0,
            shapes: Vec::new(),
            batch: 8,
            seq: None,
            join: false,
        }
    }
}

/// Samples, where their number is not given; tokens that these have at least, where there are
/// so many texts; the most of these.
const SAMPLES: usize = 512;
pub(super) const LEAST_TOKENS: usize = 1 << 15;
const MOST_TEXTS: usize = 4 * SAMPLES;

/// Most samples that are kept apart for measuring.
pub(super) const HELD_OUT: usize = 64;

impl DataOptions {
    /// How many samples are read, those that are kept apart among them.
    pub(crate) fn count(&self) -> usize {
        self.with_apart(self.samples.unwrap_or(SAMPLES))
    }

    /// How many texts are looked at to read some.
    pub(super) fn most_texts(&self) -> usize {
        self.with_apart(self.samples.unwrap_or(MOST_TEXTS))
    }

    /// How many of some texts are read that have `tokens` together.
    pub(super) fn texts_of(&self, texts: usize, tokens: usize) -> usize {
        if self.samples.is_some() {
            return texts;
        }
        let enough = (texts * LEAST_TOKENS).div_ceil(tokens.max(1));
        self.with_apart(enough.clamp(SAMPLES, MOST_TEXTS)).min(texts)
    }

    fn with_apart(&self, count: usize) -> usize {
        match self.apart {
            true => count.saturating_add((count / 8).clamp(1, HELD_OUT)),
            false => count,
        }
    }

    /// Tokens of the longest synthetic sequence.
    pub fn seq(&self) -> usize {
        self.seq.unwrap_or(TOKENS)
    }

    /// Whether there is nothing to read, so that samples are made.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.given.is_none()
    }
}
