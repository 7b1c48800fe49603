//! Two models on the same inputs, output by output.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Interface;
use super::difference::{Comparison, ErrorSums, OutputRows};
use crate::data::{Batch, Samples, batches, input_specs};
use crate::engine::{Ctx, Session, SessionOptions};
use crate::onnx::proto;
use crate::tensor::{Feeds, Tensor};
use crate::{Error, Result};

/// Rows per run of [`compare`]: with the batches of this many rows, a recorded
/// run can be told apart by sample.
pub const ROWS: usize = 8;

/// Runs both sessions over the samples, which are those of `b`; both must fetch the
/// same outputs. `interface` tells what of the inputs and outputs `a` has.
///
/// # Errors
/// The engine's, outputs of different shapes, an interrupt.
pub fn compare(
    a: &mut dyn Session,
    b: &mut dyn Session,
    model: &proto::ModelProto,
    samples: &Samples,
    interface: &Interface,
    cancelled: &AtomicBool,
) -> Result<Comparison> {
    let names = b.outputs().to_vec();
    over(model, samples, (&names, interface), cancelled, |feeds| {
        let y = b.run(feeds)?;
        if interface.is_same() {
            return Ok((a.run(feeds)?, y));
        }
        let x = a.run(&interface.feeds(feeds)?)?;
        Ok((x, interface.outputs(&names, y)?))
    })
}

/// [`compare`] with one session after the other: at no time are both models laid out in
/// memory. `a` and `b` are the models with how they are run.
///
/// # Errors
/// As [`compare`].
pub fn compare_in_turn(
    ctx: Ctx,
    [a, b]: [(&proto::ModelProto, &SessionOptions); 2],
    model: &proto::ModelProto,
    samples: &Samples,
    interface: &Interface,
) -> Result<Comparison> {
    let mut told = {
        let mut b = ctx.engine.session(b.0, b.1)?;
        let mut told = Told {
            names: b.outputs().to_vec(),
            outputs: VecDeque::new(),
        };
        for batch in batches(samples, &input_specs(model)?, ROWS)? {
            ctx.check()?;
            told.outputs.push_back(b.run(&interface.batch(&batch?).feeds)?);
        }
        told
    };
    let mut a = ctx.engine.session(a.0, a.1)?;
    compare(a.as_mut(), &mut told, model, samples, interface, ctx.cancelled)
}

/// A session that ran already and gives what it gave, in the same order.
struct Told {
    names: Vec<String>,
    outputs: VecDeque<Vec<Tensor>>,
}

impl Session for Told {
    fn outputs(&self) -> &[String] {
        &self.names
    }

    fn run(&mut self, _: &Feeds) -> Result<Vec<Tensor>> {
        let next = self.outputs.pop_front();
        next.ok_or_else(|| Error::engine("there are more batches than were run"))
    }
}

/// Runs both of a pair on every batch of the samples.
fn over(
    model: &proto::ModelProto,
    samples: &Samples,
    (names, interface): (&[String], &Interface),
    cancelled: &AtomicBool,
    mut both: impl FnMut(&Feeds) -> Result<(Vec<Tensor>, Vec<Tensor>)>,
) -> Result<Comparison> {
    let specs = input_specs(model)?;
    let mut differences = Differences::new(names);
    for batch in batches(samples, &specs, ROWS)? {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        let batch = interface.batch(&batch);
        let (x, y) = both(&batch.feeds)?;
        differences.add(&batch, &x, &y)?;
    }
    Ok(differences.finish())
}

/// The same for two models with the smaller interface: `samples` are those of
/// `model`, the dense one.
///
/// # Errors
/// As [`compare`].
pub fn compare_alike(
    a: &mut dyn Session,
    b: &mut dyn Session,
    model: &proto::ModelProto,
    samples: &Samples,
    interface: &Interface,
    cancelled: &AtomicBool,
) -> Result<Comparison> {
    let names = b.outputs().to_vec();
    over(model, samples, (&names, interface), cancelled, |feeds| {
        let feeds = interface.feeds(feeds)?;
        Ok((a.run(&feeds)?, b.run(&feeds)?))
    })
}

/// Differences of two models' outputs, batch by batch.
pub struct Differences {
    names: Vec<String>,
    sums: Vec<ErrorSums>,
    samples: usize,
}

impl Differences {
    /// Nothing yet, of these outputs.
    pub fn new(names: &[String]) -> Self {
        Self {
            names: names.to_vec(),
            sums: vec![ErrorSums::default(); names.len()],
            samples: 0,
        }
    }

    /// Adds a batch: the outputs `x` of the model that is judged and `y` of the
    /// one it is judged by.
    ///
    /// # Errors
    /// Outputs of different shapes.
    pub fn add(&mut self, batch: &Batch, x: &[Tensor], y: &[Tensor]) -> Result<()> {
        let rows = OutputRows {
            batch: batch.size,
            real: batch.rows.len(),
            tokens: batch.tokens,
            mask: batch.token_mask.as_deref(),
        };
        for (((name, x), y), sums) in self.names.iter().zip(x).zip(y).zip(&mut self.sums) {
            sums.add(name, x, y, &rows)?;
        }
        self.samples += batch.rows.len();
        Ok(())
    }

    /// All of it.
    pub fn finish(self) -> Comparison {
        Comparison {
            outputs: self
                .names
                .iter()
                .zip(self.sums)
                .map(|(name, s)| s.difference(name))
                .collect(),
            samples: self.samples,
        }
    }
}
