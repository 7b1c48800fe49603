//! Whether a model minds padding, by running it.

use std::collections::BTreeMap;

use crate::data::layout::{Layout, LayoutInput};
use crate::data::{Padding, Sample, Samples, batches, filled, input_specs, length};
use crate::engine::{Engine, SessionOptions};
use crate::error::{Error, Result};
use crate::onnx::proto;
use crate::tensor::{Feeds, Tensor, ops};

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
    order.sort_by_key(|s| length(&layout, &s.feeds));
    let Some(sample) = order.get(order.len() / 2).copied() else {
        return Ok(());
    };
    let own = length(&layout, &sample.feeds).unwrap_or_default();
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
            b = ops::slice(&b, axis, 0..size);
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
    let inputs: BTreeMap<&str, &LayoutInput> =
        layout.inputs.iter().map(|i| (i.spec.name.as_str(), i)).collect();
    let filled = sample.feeds.iter().map(|(name, tensor)| {
        let tensor = match inputs.get(name.as_str()) {
            Some(input) => filled(input, tensor, length, token)?.into_owned(),
            None => tensor.clone(),
        };
        Ok((name.clone(), tensor))
    });
    filled.collect()
}
