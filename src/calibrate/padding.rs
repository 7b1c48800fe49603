//! Samples of different lengths in one batch.
//!
//! Batches of equal lengths are small where texts are short, and an engine is slow
//! on small ones: runs of 110 tokens take a third more time per token than runs of
//! 600. So shorter texts are filled up, where that changes nothing: the graph takes
//! a padding mask and nothing else that counts positions, and a trial gives the same
//! outputs for a text alone and with padding behind it ([`try_padding`]).

use std::collections::BTreeMap;

use super::arrays;
use super::batch::batches;
use super::layout::{Axis, Input, Layout, Role, Stream};
use super::samples::{Sample, Samples};
use super::spec::input_specs;
use crate::error::{Error, Result};
use crate::onnx::proto;
use crate::runtime::{Engine, SessionOptions};
use crate::tensor::{Feeds, Tensor};

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
    pub(super) fn for_texts(layout: &Layout, token: u32) -> Self {
        let axes = |input: &Input| {
            let mut own = input.axes.iter().filter(|a| **a != Axis::Batch);
            input.axes.first() == Some(&Axis::Batch)
                && own.next() == Some(&Axis::Tokens(Stream::Main))
                && own.next().is_none()
        };
        let known = |i: &Input| matches!(i.role, Role::TokenIds | Role::TokenTypes | Role::Mask);
        let possible = layout.fixed_batch.is_none()
            && layout.padding_mask(Stream::Main).is_some()
            && layout.inputs.iter().all(|i| axes(i) && known(i));
        if possible {
            Self::Untried(i64::from(token))
        } else {
            Self::No
        }
    }
}

/// The tokens of a sample; 0 where it has no such axis.
pub(super) fn length(layout: &Layout, sample: &Sample) -> usize {
    let ids = layout.ids(Stream::Main).and_then(|i| {
        let axis = i.axes.iter().position(|a| *a == Axis::Tokens(Stream::Main))?;
        sample.feeds.get(&i.spec.name)?.shape.get(axis).copied()
    });
    ids.unwrap_or(0)
}

/// `tensor` of `input` filled up to `length` tokens with `token`, where it holds
/// such, else with zeros.
pub(super) fn filled(input: &Input, tensor: &Tensor, length: usize, token: i64) -> Result<Tensor> {
    let axis = input.axes.iter().position(|a| *a == Axis::Tokens(Stream::Main));
    let Some((axis, size)) = axis.and_then(|a| Some((a, tensor.shape.get(a).copied()?))) else {
        return Ok(tensor.clone());
    };
    if size >= length {
        return Ok(tensor.clone());
    }
    let mut shape = tensor.shape.clone();
    shape[axis] = length - size;
    let value = if input.role == Role::TokenIds { token } else { 0 };
    let rest = arrays::filled(tensor.elem(), shape, value)?;
    arrays::concat(&[tensor, &rest], axis)
}

/// Groups of samples that share a batch: the longest first, of about the same
/// size (`rows` of the longest), padding at most an eighth of each.
pub(super) fn groups(layout: &Layout, samples: &Samples, rows: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, usize)> = samples
        .samples
        .iter()
        .enumerate()
        .map(|(at, s)| (length(layout, s), at))
        .collect();
    order.sort_by_key(|(length, at)| (std::cmp::Reverse(*length), *at));
    let most = order.first().map_or(1, |(l, _)| *l).saturating_mul(rows.max(1));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut longest, mut padding) = (0usize, 0usize);
    for (length, at) in order {
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

/// Settles [`Padding::Untried`] by running one sample with padding behind it and
/// without.
///
/// # Errors
/// The engine's.
pub fn try_padding(engine: &dyn Engine, model: &proto::ModelProto, samples: &mut Samples) -> Result<()> {
    /// Of the largest value: float32 sums in another order differ by less.
    const TOLERANCE: f32 = 1e-4;
    let Padding::Untried(token) = samples.padding else {
        return Ok(());
    };
    let layout = Layout::new(&input_specs(model)?);
    samples.padding = Padding::No;
    // A text of middling length: one of two tokens may hide what padding does.
    let mut order: Vec<&Sample> = samples
        .samples
        .iter()
        .filter(|s| s.token_mask.is_none())
        .collect();
    order.sort_by_key(|s| length(&layout, s));
    let Some(sample) = order.get(order.len() / 2).copied() else {
        return Ok(());
    };
    let own = length(&layout, sample);
    let longer = Sample {
        feeds: lengthened(&layout, sample, own + own.div_ceil(3), token)?,
        token_mask: None,
    };
    let one = |sample: &Sample| Samples {
        samples: vec![sample.clone()],
        ..samples.clone()
    };
    let mut session = engine.session(model, &SessionOptions::default())?;
    let mut outputs = |sample: &Sample| -> Result<Vec<Tensor>> {
        let batch = batches(&one(sample), &input_specs(model)?, 1)?.next();
        session.run(
            &batch
                .ok_or_else(|| Error::input("a batch without samples"))??
                .feeds,
        )
    };
    let (alone, padded) = (outputs(sample)?, outputs(&longer)?);
    let same = alone.iter().zip(&padded).all(|(a, b)| {
        let mut b = b.clone();
        for (axis, &size) in a.shape.iter().enumerate() {
            b = arrays::slice(&b, axis, 0..size);
        }
        let (x, y) = (a.to_f32(), b.to_f32());
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let close = |(x, y): (&f32, &f32)| (x - y).abs() <= TOLERANCE * largest;
        a.shape == b.shape && x.iter().zip(&y).all(close)
    });
    if same {
        samples.padding = Padding::Harmless(token);
    }
    Ok(())
}

fn lengthened(layout: &Layout, sample: &Sample, length: usize, token: i64) -> Result<Feeds> {
    let inputs: BTreeMap<&str, &Input> = layout.inputs.iter().map(|i| (i.spec.name.as_str(), i)).collect();
    let filled = sample.feeds.iter().map(|(name, tensor)| {
        let tensor = match inputs.get(name.as_str()) {
            Some(input) => filled(input, tensor, length, token)?,
            None => tensor.clone(),
        };
        Ok((name.clone(), tensor))
    });
    filled.collect()
}
