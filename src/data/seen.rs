//! The sizes that the samples of a run have, axis by axis.

use std::collections::BTreeMap;

use super::layout::{InputAxis, Layout};
use super::samples::{DataOrigin, Samples};
use super::spec::input_specs;
use crate::error::Result;
use crate::onnx::proto;

/// The usual size of each axis of each input: that of most samples. Nothing is said of
/// axes that count samples, nor of tokens whose number varies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenSizes(BTreeMap<String, Vec<Option<usize>>>);

impl SeenSizes {
    /// Of these inputs of `model`; samples that are made up say nothing.
    ///
    /// # Errors
    /// Graph inputs without a type.
    pub fn of(model: &proto::ModelProto, samples: &Samples) -> Result<Self> {
        if matches!(samples.origin, DataOrigin::Synthetic { .. }) {
            return Ok(Self::default());
        }
        let layout = Layout::new(&input_specs(model)?);
        let mut seen = BTreeMap::new();
        for input in &layout.inputs {
            let name = &input.spec.name;
            let usual = input.axes.iter().enumerate().map(|(at, axis)| {
                let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
                let tensors = samples.samples.iter().filter_map(|s| s.feeds.get(name));
                for size in tensors.filter_map(|t| t.shape.get(at)) {
                    *counts.entry(*size).or_default() += 1;
                }
                match axis {
                    InputAxis::Batch => None,
                    InputAxis::Tokens(_) if counts.len() > 1 => None,
                    _ => counts
                        .into_iter()
                        .max_by_key(|(size, count)| (*count, *size))
                        .map(|(s, _)| s),
                }
            });
            seen.insert(name.clone(), usual.collect());
        }
        Ok(Self(seen))
    }

    /// The usual size of an axis of an input.
    pub(crate) fn size(&self, input: &str, axis: usize) -> Option<usize> {
        *self.0.get(input)?.get(axis)?
    }
}
