//! Groups samples of equal shapes into batches.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::layout::Layout;
use super::padding::{self, Padding};
use super::samples::{Sample, Samples};
use super::spec::InputSpec;
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Feeds, Tensor, ops};

/// Inputs of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The inputs by name.
    pub feeds: Feeds,
    /// The sample in each row. Rows from `rows.len()` to `size` repeat the last
    /// one, to fill a batch of fixed size, and count for nothing.
    pub rows: Vec<usize>,
    /// The number of rows.
    pub size: usize,
    /// Token positions per row, where the model takes tokens.
    pub tokens: Option<usize>,
    /// Which of the `size` x `tokens` positions are real, row by row; `None`
    /// when all are. Rows that fill have none.
    pub token_mask: Option<Vec<bool>>,
}

/// The input of models whose outputs are made at some positions only: which ones.
pub const POSITIONS: &str = "onnx-prune/positions";

/// Positions of a sample that such outputs are made at, where there are more.
pub const SAMPLED: usize = 64;

impl Batch {
    /// The batch for a model that takes [`POSITIONS`]: its rows are those of the outputs,
    /// [`SAMPLED`] positions per sample, evenly spread.
    pub fn sampled(&self) -> Self {
        let tokens = self.tokens.unwrap_or(1);
        let count = tokens.min(SAMPLED);
        let positions: Vec<usize> = (0..count).map(|k| (2 * k + 1) * tokens / (2 * count)).collect();
        let at = positions.iter().map(|p| *p as i64).collect::<Vec<_>>();
        let mut feeds = self.feeds.clone();
        feeds.insert(POSITIONS.into(), Tensor::i64([count], at));
        let of_row = |mask: &[bool]| positions.iter().map(|p| mask[*p]).collect::<Vec<_>>();
        Self {
            feeds,
            rows: self.rows.clone(),
            size: self.size,
            tokens: self.tokens.map(|_| count),
            token_mask: (self.token_mask.as_ref())
                .map(|mask| mask.chunks_exact(tokens).flat_map(of_row).collect()),
        }
    }

    /// The number of real token positions, or of rows where there are no tokens.
    pub fn real_tokens(&self) -> u64 {
        self.real_tokens_of(|_| true)
    }

    /// The same of the samples that `counts`.
    pub fn real_tokens_of(&self, counts: impl Fn(usize) -> bool) -> u64 {
        let tokens = self.tokens.unwrap_or(1);
        let of = |row: usize| match &self.token_mask {
            Some(mask) => {
                let own = mask.iter().skip(row.saturating_mul(tokens)).take(tokens);
                own.filter(|real| **real).count()
            }
            None => tokens,
        };
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, sample)| counts(**sample))
            .map(|(row, _)| of(row) as u64)
            .sum()
    }
}

/// The number of real token positions of all samples, or of samples where there are no
/// tokens.
pub fn real_tokens(samples: &Samples, specs: &[InputSpec]) -> u64 {
    let layout = Layout::new(specs);
    let of = |sample: &Sample| match &sample.token_mask {
        Some(mask) => mask.iter().filter(|real| **real).count(),
        None => padding::length(&layout, &sample.feeds).unwrap_or(1),
    };
    samples.samples.iter().map(|s| of(s) as u64).sum()
}

/// Rows per run where a model or a part of it goes over all samples.
pub const ROWS: usize = 16;

/// Tokens per run are no more than this while there are [`LEAST_ROWS`] rows: products are
/// at full speed then, and inner values of all layers are held at once.
const TOKENS: usize = 1024;
const LEAST_ROWS: usize = 4;

/// The batches of some samples, made one at a time.
pub struct Batches<'a> {
    samples: &'a Samples,
    layout: Layout,
    groups: std::vec::IntoIter<Vec<usize>>,
}

/// Groups `samples` so that every batch has samples of equal shapes, or, where
/// padding is [`Padding::Harmless`], of nearly equal lengths.
///
/// Batches of the longest samples have at most `max_rows` rows, fewer where these have many
/// tokens, those of shorter ones as many more as keep the size of their inputs below that
/// (at most eight times as many); a graph with a batch of fixed size gets that. The longest
/// come first; a sample's place in a batch is its place among its equals.
pub fn batches<'a>(samples: &'a Samples, specs: &[InputSpec], max_rows: usize) -> Result<Batches<'a>> {
    let layout = Layout::new(specs);
    let lengths: Vec<usize> = (samples.samples.iter())
        .map(|s| padding::length(&layout, &s.feeds).unwrap_or_default())
        .collect();
    let longest = lengths.iter().max().copied().unwrap_or_default().max(1);
    let max_rows = max_rows.min((TOKENS / longest).max(LEAST_ROWS));
    if let Padding::Harmless(_) = samples.padding {
        let groups = padding::groups(&lengths, max_rows);
        return Ok(Batches {
            samples,
            layout,
            groups: groups.into_iter(),
        });
    }
    let mut groups: BTreeMap<BatchShapes<'_>, Vec<usize>> = BTreeMap::new();
    for (i, sample) in samples.samples.iter().enumerate() {
        let key = BatchShapes::of(&layout, sample).context(|| format!("sample {i}"))?;
        groups.entry(key).or_default().push(i);
    }
    let largest = groups.keys().map(|k| k.elements).max().unwrap_or(1).max(1);
    let max_rows = max_rows.max(1);
    let mut batches = Vec::new();
    for (shapes, members) in groups.iter().rev() {
        let rows = layout.fixed_batch.unwrap_or_else(|| {
            (largest.saturating_mul(max_rows) / shapes.elements.max(1)).clamp(1, max_rows.saturating_mul(8))
        });
        if rows == 0 {
            return Err(Error::input("the graph fixes a batch of size 0"));
        }
        batches.extend(members.chunks(rows).map(<[usize]>::to_vec));
    }
    Ok(Batches {
        samples,
        layout,
        groups: batches.into_iter(),
    })
}

/// What must be equal for samples to share a batch: ordered by size first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct BatchShapes<'a> {
    elements: usize,
    shapes: Vec<&'a [usize]>,
    /// Positions and values of inputs without a batch axis, which all rows share.
    shared: Vec<Vec<u8>>,
}

impl<'a> BatchShapes<'a> {
    fn of(layout: &Layout, sample: &'a Sample) -> Result<Self> {
        let mut key = BatchShapes {
            elements: 0,
            shapes: Vec::new(),
            shared: Vec::new(),
        };
        for input in &layout.inputs {
            let tensor = sample
                .feeds
                .get(&input.spec.name)
                .ok_or_else(|| Error::input(format!("nothing for graph input '{}'", input.spec.name)))?;
            key.shapes.push(&tensor.shape);
            match input.batch_axis() {
                Some(axis) if tensor.shape.get(axis) == Some(&1) => {
                    key.elements = key.elements.saturating_add(tensor.len());
                }
                Some(axis) => {
                    return Err(Error::input(format!(
                        "graph input '{}' has shape {:?}: one row along axis {axis} is expected",
                        input.spec.name, tensor.shape
                    )));
                }
                None => key.shared.push(fingerprint(tensor)),
            }
        }
        Ok(key)
    }
}

fn fingerprint(tensor: &Tensor) -> Vec<u8> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    // The debug form of a number is unique to it.
    hash.update(format!("{:?}", tensor.data));
    hash.finalize().to_vec()
}

impl Batches<'_> {
    fn batch(&self, rows: Vec<usize>) -> Result<Batch> {
        let members: Vec<&Sample> = rows.iter().filter_map(|&i| self.samples.samples.get(i)).collect();
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            return Err(Error::input("an empty batch"));
        };
        let size = self.layout.fixed_batch.unwrap_or(rows.len()).max(rows.len());
        let pad = match self.samples.padding {
            Padding::Harmless(token) => Some(token),
            _ => None,
        };
        // The tokens of a row, which shorter samples are filled up to.
        let own = |s: &Sample| padding::length(&self.layout, &s.feeds);
        let tokens = members.iter().filter_map(|s| own(s)).max();
        let mut feeds = Feeds::new();
        for input in &self.layout.inputs {
            let name = &input.spec.name;
            let tensor = match input.batch_axis() {
                Some(axis) => {
                    let parts = members
                        .iter()
                        .chain(std::iter::repeat_n(last, size - rows.len()))
                        .filter_map(|s| s.feeds.get(name))
                        .map(|tensor| match (pad, tokens) {
                            (Some(token), Some(tokens)) => padding::filled(input, tensor, tokens, token),
                            _ => Ok(Cow::Borrowed(tensor)),
                        })
                        .collect::<Result<Vec<_>>>()?;
                    let parts: Vec<&Tensor> = parts.iter().map(AsRef::as_ref).collect();
                    ops::concat(&parts, axis).context(|| format!("graph input '{name}'"))?
                }
                None => {
                    let shared = first.feeds.get(name).cloned();
                    shared.ok_or_else(|| Error::input(format!("nothing for graph input '{name}'")))?
                }
            };
            feeds.insert(name.clone(), tensor);
        }
        // Without tokens each row counts as one position.
        let positions = tokens.unwrap_or(1);
        let whole = |s: &&Sample| s.token_mask.is_none() && (pad.is_none() || own(s) == tokens);
        let partial = rows.len() < size || !members.iter().all(whole);
        let token_mask = partial.then(|| {
            let mut mask = Vec::with_capacity(size.saturating_mul(positions));
            for sample in &members {
                let before = mask.len();
                match (&sample.token_mask, pad) {
                    (Some(own), _) if own.len() == positions || pad.is_some() => mask.extend(own),
                    (_, Some(_)) => {
                        let real = own(sample).unwrap_or_default().min(positions);
                        mask.extend(std::iter::repeat_n(true, real));
                    }
                    _ => mask.extend(std::iter::repeat_n(true, positions)),
                }
                mask.resize(before + positions, false);
            }
            mask.resize(size.saturating_mul(positions), false);
            mask
        });
        Ok(Batch {
            feeds,
            rows,
            size,
            tokens,
            token_mask,
        })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.groups.next()?;
        Some(self.batch(rows))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.groups.size_hint()
    }
}

impl ExactSizeIterator for Batches<'_> {}
