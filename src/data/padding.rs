//! Samples of different lengths in one batch.
//!
//! Batches of equal lengths are small where texts are short, and an engine is slow
//! on small ones: runs of 110 tokens take a third more time per token than runs of
//! 600. So shorter texts are filled up, where that changes nothing: the graph takes
//! a padding mask and nothing else that counts positions, and a trial gives the same
//! outputs for a text alone and with padding behind it ([`crate::calibrate::try_padding`]).

use std::borrow::Cow;

use super::layout::{InputAxis, InputRole, Layout, LayoutInput, StreamKind};
use crate::error::Result;
use crate::tensor::{Feeds, Tensor, ops};

/// Whether shorter samples may be filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Padding {
    /// Only samples of equal shapes share a batch.
    #[default]
    No,
    /// With this token, if the model turns out not to mind.
    Untried(i64),
    /// With this token.
    Harmless(i64),
}

impl Padding {
    /// [`Padding::Untried`] where the inputs of the graph allow it.
    pub(crate) fn for_texts(layout: &Layout, token: u32) -> Self {
        let axes = |input: &LayoutInput| {
            let mut own = input.axes.iter().filter(|a| **a != InputAxis::Batch);
            input.axes.first() == Some(&InputAxis::Batch)
                && own.next() == Some(&InputAxis::Tokens(StreamKind::Main))
                && own.next().is_none()
        };
        let known = |i: &LayoutInput| {
            matches!(
                i.role,
                InputRole::TokenIds | InputRole::TokenTypes | InputRole::Mask
            )
        };
        let possible = layout.fixed_batch.is_none()
            && layout.padding_mask(StreamKind::Main).is_some()
            && layout.inputs.iter().all(|i| axes(i) && known(i));
        if possible {
            Self::Untried(i64::from(token))
        } else {
            Self::No
        }
    }
}

/// The axis of an input that counts the tokens of the main stream.
fn token_axis(input: &LayoutInput) -> Option<usize> {
    input
        .axes
        .iter()
        .position(|a| *a == InputAxis::Tokens(StreamKind::Main))
}

/// Token positions per row, where the model takes tokens.
pub(crate) fn length(layout: &Layout, feeds: &Feeds) -> Option<usize> {
    layout.inputs.iter().find_map(|input| {
        let tensor = feeds.get(&input.spec.name)?;
        tensor.shape.get(token_axis(input)?).copied()
    })
}

/// `tensor` of `input` filled up to `length` tokens with `token`, where it holds
/// such, else with zeros.
pub(crate) fn filled<'t>(
    input: &LayoutInput,
    tensor: &'t Tensor,
    length: usize,
    token: i64,
) -> Result<Cow<'t, Tensor>> {
    let missing = |axis: usize| Some((axis, length.checked_sub(*tensor.shape.get(axis)?)?));
    let Some((axis, missing)) = token_axis(input).and_then(missing).filter(|m| m.1 > 0) else {
        return Ok(Cow::Borrowed(tensor));
    };
    let mut shape = tensor.shape.clone();
    shape[axis] = missing;
    let value = if input.role == InputRole::TokenIds {
        token
    } else {
        0
    };
    let rest = ops::filled(tensor.elem(), shape, value)?;
    ops::concat(&[tensor, &rest], axis).map(Cow::Owned)
}

/// Groups of samples of these `lengths` that share a batch: the longest first, of
/// about the same size (`rows` of the longest), padding at most an eighth of each.
pub(crate) fn groups(lengths: &[usize], rows: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(lengths[at]));
    let most = order
        .first()
        .map_or(1, |&at| lengths[at])
        .saturating_mul(rows.max(1));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut longest, mut padding) = (0usize, 0usize);
    for at in order {
        let length = lengths[at];
        let size = groups.last().map_or(0, Vec::len) + 1;
        let more = padding + (longest - length.min(longest));
        if let Some(group) = groups.last_mut()
            && longest * size <= most
            && more * 8 <= longest * size
        {
            group.push(at);
            padding = more;
        } else {
            groups.push(vec![at]);
            (longest, padding) = (length, 0);
        }
    }
    groups
}
