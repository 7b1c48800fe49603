//! Takes padding off a sample, so that it never enters the statistics.

use super::fill::FillSizes;
use super::layout::{InputAxis, Layout, LayoutInput, StreamKind};
use super::spec::InputDim;
use crate::error::{Error, Result};
use crate::tensor::{Data, Feeds, Tensor, ops};

/// What became of a sample.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// Which of the token positions left are real; `None` when all are.
    pub(crate) token_mask: Option<Vec<bool>>,
    /// Nothing in it is real.
    pub(crate) empty: bool,
    /// How many positions were cut off.
    pub(crate) removed: usize,
}

/// Cuts the positions off `feeds` (one sample) that its masks say are padding,
/// at both ends, where the graph leaves the length open; what padding is left is
/// marked in the token mask.
pub(crate) fn trim(layout: &Layout, feeds: &mut Feeds) -> Result<Trimmed> {
    let mut trimmed = Trimmed::default();
    for stream in StreamKind::ALL {
        let Some(mask_input) = layout.padding_mask(stream) else {
            continue;
        };
        let Some(mask) = feeds.get(&mask_input.spec.name).and_then(bits) else {
            continue;
        };
        let sizes = FillSizes::of(layout, feeds);
        let length = match layout.ids(stream).and_then(|ids| token_count(ids, feeds)) {
            Some(length) => length,
            None => sizes.tokens.get(&stream).copied().unwrap_or(mask.len()),
        };
        let past = mask
            .len()
            .checked_sub(length)
            .filter(|p| *p == 0 || *p == sizes.past);
        let Some(past) = past else {
            return Err(Error::input(format!(
                "'{}' has {} positions where the tokens have {length}",
                mask_input.spec.name,
                mask.len()
            )));
        };
        let own = mask.get(past..).unwrap_or_default();
        let Some(first) = own.iter().position(|real| *real) else {
            trimmed.empty |= stream == StreamKind::Main;
            continue;
        };
        let end = own.iter().rposition(|real| *real).map_or(length, |last| last + 1);
        let mut left = own;
        if (first > 0 || end < length) && past == 0 && can_cut(layout, feeds, stream, length) {
            cut(layout, feeds, stream, first..end);
            left = own.get(first..end).unwrap_or_default();
            trimmed.removed += length - (end - first);
        }
        if stream == StreamKind::Main && left.contains(&false) {
            trimmed.token_mask = Some(left.to_vec());
        }
    }
    Ok(trimmed)
}

/// A mask as booleans; `None` for one that adds numbers other than 0 and 1.
fn bits(mask: &Tensor) -> Option<Vec<bool>> {
    if let Data::Bool(bits) = &mask.data {
        return Some(bits.clone());
    }
    mask.to_f32()
        .into_iter()
        .map(|v| match v {
            0.0 => Some(false),
            1.0 => Some(true),
            _ => None,
        })
        .collect()
}

fn token_axis(input: &LayoutInput, stream: StreamKind) -> Option<usize> {
    input.axes.iter().position(|a| *a == InputAxis::Tokens(stream))
}

fn token_count(input: &LayoutInput, feeds: &Feeds) -> Option<usize> {
    let axis = token_axis(input, input.stream)?;
    feeds.get(&input.spec.name)?.shape.get(axis).copied()
}

fn counts_tokens(axis: InputAxis, stream: StreamKind) -> bool {
    axis == InputAxis::Tokens(stream) || axis == InputAxis::Total && stream == StreamKind::Main
}

/// Whether every axis that has the length of `stream` may be shortened, and is
/// known to be of that stream.
fn can_cut(layout: &Layout, feeds: &Feeds, stream: StreamKind, length: usize) -> bool {
    layout.inputs.iter().all(|input| {
        let Some(tensor) = feeds.get(&input.spec.name) else {
            return true;
        };
        (input.axes.iter().zip(&input.spec.dims).zip(&tensor.shape)).all(|((axis, dim), &size)| {
            if counts_tokens(*axis, stream) {
                !matches!(dim, InputDim::Fixed(_)) && size == length
            } else {
                // An open axis of the same size may count the same tokens.
                *axis != InputAxis::Free || size != length
            }
        })
    })
}

fn cut(layout: &Layout, feeds: &mut Feeds, stream: StreamKind, range: std::ops::Range<usize>) {
    for input in &layout.inputs {
        let Some(tensor) = feeds.get_mut(&input.spec.name) else {
            continue;
        };
        for (axis, meaning) in input.axes.iter().enumerate() {
            if counts_tokens(*meaning, stream) {
                *tensor = ops::slice(tensor, axis, range.clone());
            }
        }
    }
}
