//! Which samples serve for what.

use super::samples::HELD_OUT;
use super::{DataOptions, Sample, Samples};

/// Asks for some samples more than wanted, to be kept apart.
pub(crate) fn with_held_out(options: &DataOptions) -> DataOptions {
    DataOptions {
        apart: true,
        ..options.clone()
    }
}

/// Keeps every ninth sample apart (at most [`HELD_OUT`]); with one sample alone
/// it serves for both.
pub(crate) fn split(all: Samples) -> (Samples, Samples) {
    let count = all.samples.len();
    let apart = (count / 9).clamp(1, HELD_OUT);
    let step = (count / apart).max(1);
    let mut samples = with(&all, Vec::new());
    let mut held = samples.clone();
    for (at, sample) in all.samples.into_iter().enumerate() {
        if (at + 1) % step == 0 && held.samples.len() < apart && count > 1 {
            held.samples.push(sample);
        } else {
            samples.samples.push(sample);
        }
    }
    if held.samples.is_empty() {
        held.samples = samples.samples.clone();
    }
    (samples, held)
}

/// Some of the samples, evenly spread.
pub(crate) fn spread(samples: &Samples, count: usize) -> Samples {
    let step = samples.samples.len().div_ceil(count.max(1)).max(1);
    with(samples, samples.samples.iter().step_by(step).cloned().collect())
}

/// Other samples of the same origin.
fn with(of: &Samples, samples: Vec<Sample>) -> Samples {
    Samples {
        samples,
        origin: of.origin.clone(),
        notes: of.notes.clone(),
        padding: of.padding,
    }
}

/// Every n-th sample chooses ridges.
const GUARD: usize = 6;

/// Whether the sample with this index chooses ridges instead of being fitted.
pub(crate) fn is_ridge_holdout(sample: usize) -> bool {
    sample % GUARD == GUARD - 1
}
