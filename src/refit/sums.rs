//! What the sequential fits of layers that read the same rows sum over the batches.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef};

use super::block::{FitTarget, RefitBlock};
use super::dense::Fetch;
use super::device_sums::{MadeSums, OnDevice};
use super::schedule::{FitLayer, Residual};
use crate::Result;
use crate::data::{Batch, Rows, Strides, floats};
use crate::engine::Engine;
use crate::graph::{Graph, ValueId};
use crate::numerics::solve::Regression;
use crate::numerics::{SiteStatistics, linalg};
use crate::rank::Stream;
use crate::tensor::Tensor;

/// Rows of X for each of its columns that the fit of a layer which keeps all its inputs
/// is made of, where there are as many: it moves weights a little, and its error falls
/// with the number of rows by the number of columns.
const ENOUGH: usize = 16;

/// Rows that are summed at once, at least.
const BLOCK: usize = 1024;
/// The same where a device makes the sums: as many rows as a layer is wide, so that
/// what comes back is no more than what goes there.
const ON_DEVICE: usize = 4096;
/// Rows whose means are the pilots, where a device makes the sums.
const PILOT: usize = 128;

/// Sums over all batches, of the samples to fit and those kept apart.
pub(super) struct FitSums {
    pub(super) fit: Regression,
    pub(super) guard: Regression,
}

/// What the target of a halt is made of, besides the pruned model's residual.
#[derive(Clone, Copy, PartialEq)]
enum From {
    /// What the dense model has after the residual addition.
    Sum(ValueId),
    /// Sums over the dense model's X, and W on top of them: where X is narrower than X W.
    Narrow,
    /// The dense model's X W and its residual.
    Product,
}

impl From {
    fn of(stop: &FitLayer, columns: usize) -> Self {
        let n = stop.part.matrix.nrows();
        match stop.residual {
            Some(Residual { sum: Some(sum), .. }) => From::Sum(sum),
            None if stop.rows.len() == n && n < columns => From::Narrow,
            _ => From::Product,
        }
    }
}

/// The columns of the outputs of a halt.
fn columns(halt: &[FitLayer]) -> usize {
    halt.iter().map(|s| s.part.matrix.ncols()).sum()
}

/// The values of the dense model that the sums of a halt are made of.
pub(super) fn values(halt: &[FitLayer]) -> Vec<ValueId> {
    let stop = &halt[0];
    match From::of(stop, columns(halt)) {
        From::Sum(sum) => vec![sum],
        _ => stop.reads().collect(),
    }
}

/// The pruned network over some batches.
#[derive(Clone, Copy)]
pub(super) struct Runs<'a> {
    pub(super) graph: &'a Graph,
    pub(super) batches: &'a [Batch],
    /// What arrives at the layers, batch by batch.
    pub(super) pruned: &'a Stream,
}

/// `None` where the rows of the sink's input and output do not correspond.
pub(super) fn sums(
    engine: &dyn Engine,
    halt: &[FitLayer],
    runs: Runs,
    dense: &mut Fetch,
    is_ridge_holdout: fn(usize) -> bool,
) -> Result<Option<FitSums>> {
    let Runs {
        graph,
        batches,
        pruned,
    } = runs;
    let Some(stop) = halt.first() else {
        return Ok(None);
    };
    let n = stop.part.matrix.nrows();
    let matrices: Vec<Mat<f64>> = halt.iter().map(|s| s.part.matrix.clone()).collect();
    let whole = linalg::side_by_side(&matrices);
    let d = columns(halt);
    let old: Vec<f64> = halt.iter().flat_map(|s| s.part.bias()).collect();
    let from = From::of(stop, d);
    let narrow = from == From::Narrow;
    let width = if narrow { n } else { d };
    let of = || FitTarget {
        regression: Regression::new(stop.rows.len(), width),
        dense: SiteStatistics::new(if narrow { n } else { 0 }),
    };
    let mut sums = [of(), of()];
    let mut blocks = [RefitBlock::default(), RefitBlock::default()];
    let weight = (from == From::Product).then(|| Mat::<f32>::from_fn(n, d, |i, j| whole[(i, j)] as f32));
    let made = match (from, &weight) {
        (From::Product, Some(weight)) => MadeSums::Product(weight),
        (From::Narrow, _) => MadeSums::Dense,
        _ => MadeSums::Given,
    };
    let mut device = (engine.reduces() && !stop.rows.is_empty())
        .then(|| OnDevice::new(engine, [n, stop.rows.len(), width], made));
    let most = device.as_ref().map_or(BLOCK, |_| ON_DEVICE);
    let name = |v: ValueId| graph.value(v).name.as_str();
    let axis = match graph.node(stop.sink.node).op.as_str() {
        "Conv" => Some(1),
        _ => None,
    };
    let activation = stop.sink.activation;
    // Every n-th batch, where that is enough.
    let tokens: u64 = batches.iter().map(|b| b.real_tokens()).sum();
    let step = match stop.fit {
        None => (tokens as usize / (ENOUGH * n).max(1)).max(1),
        Some(_) => 1,
    };
    let all = batches.iter().zip(&pruned.tensors).enumerate();
    for (at, (batch, pruned)) in all.step_by(step) {
        let dense = dense.of(at)?;
        let Some(new) = pruned.get(&activation) else {
            return Ok(None);
        };
        let Some(strides) = Strides::new(&new.shape, &stop.sink.activation_axes) else {
            return Ok(None);
        };
        if strides.width() != n {
            return Ok(None);
        }
        let x = match (from, dense.get(&activation)) {
            (From::Sum(_), _) => None,
            (_, Some(x)) if x.shape == new.shape => Some(floats(x, name(activation))?),
            _ => return Ok(None),
        };
        let new = floats(new, name(activation))?;
        // What the dense model has and what the pruned one has already.
        let pair = match stop.residual {
            None => None,
            Some(r) => {
                let own = r.sum.unwrap_or(r.other);
                let here = SumLayout {
                    axis,
                    rows: &strides,
                    columns: d,
                };
                let (Some(a), Some(b)) = (
                    here.of(dense.get(&own), name(own))?,
                    here.of(pruned.get(&r.other), name(r.other))?,
                ) else {
                    return Ok(None);
                };
                Some((a, b))
            }
        };
        let rows = Rows::new(&strides.leading, batch);
        let real: Vec<(usize, bool)> = (0..strides.count)
            .filter_map(|row| Some((row, is_ridge_holdout(rows.sample(row)?))))
            .collect();
        // What reads the stream normalises it, so that errors matter by their size against a
        // row's own. A few rows (those of the first token, of punctuation) may be a thousand
        // times as large as all others, and would be all that a fit is for.
        let mut energies: Vec<f32> = pair
            .iter()
            .flat_map(|(a, _)| real.iter().map(|(row, _)| energy(&a[row * d..(row + 1) * d])))
            .collect();
        energies.retain(|e| *e > f32::MIN_POSITIVE);
        let middle = energies.len() / 2;
        let usual = match energies.is_empty() {
            true => f32::INFINITY,
            false => MASSIVE * *energies.select_nth_unstable_by(middle, f32::total_cmp).1,
        };
        for (at, block) in blocks.iter_mut().enumerate() {
            let own: Vec<usize> = real
                .iter()
                .filter(|(_, guard)| usize::from(*guard) == at)
                .map(|(row, _)| *row)
                .collect();
            let RefitBlock {
                dense,
                pruned,
                target,
                weights,
            } = block;
            let inputs = || {
                for &row in &own {
                    if let Some(x) = &x {
                        strides.read(x, row, dense);
                    }
                    strides.pick(&new, row, &stop.rows, pruned);
                }
            };
            let targets = || {
                for &row in &own {
                    let range = row * d..(row + 1) * d;
                    let share = pair
                        .as_ref()
                        .map_or(1.0, |(a, _)| (usual / energy(&a[range.clone()])).min(1.0));
                    weights.push(stop.weights.of(rows.place(row)) * share);
                    match (&pair, from) {
                        (_, From::Narrow) => {}
                        (Some((a, b)), From::Sum(_)) => {
                            let parts = a[range.clone()].iter().zip(&b[range]);
                            target.extend(parts.map(|(a, b)| a - b));
                        }
                        (Some((a, b)), _) => {
                            let parts = a[range.clone()].iter().zip(&b[range]).zip(&old);
                            target.extend(parts.map(|((a, b), old)| a - b + *old as f32));
                        }
                        (None, _) => target.extend(old.iter().map(|b| *b as f32)),
                    }
                }
            };
            rayon::join(inputs, targets);
            if block.weights.len() >= most {
                block.flush(from, weight.as_ref(), device.as_mut(), &mut sums[at]);
            }
        }
    }
    for (block, sums) in blocks.iter_mut().zip(&mut sums) {
        block.flush(from, weight.as_ref(), device.as_mut(), sums);
    }
    let [fit, guard] = sums.map(|sums| {
        if narrow {
            sums.regression.mapped(&sums.dense, &whole, &old)
        } else {
            sums.regression
        }
    });
    Ok(Some(FitSums { fit, guard }))
}

/// How many times the usual row of a residual stream a row may be before it counts less.
const MASSIVE: f32 = 4.0;

/// The mean square of a row.
fn energy(row: &[f32]) -> f32 {
    let squares: f32 = row.iter().map(|v| v * v).sum();
    (squares / row.len().max(1) as f32).max(f32::MIN_POSITIVE)
}

/// How the residual stream of a batch lies.
struct SumLayout<'r> {
    /// The axis of its columns; the last one without.
    axis: Option<usize>,
    /// The rows of the activation, which are its rows.
    rows: &'r Strides,
    columns: usize,
}

impl SumLayout<'_> {
    /// The stream, one row after the other; `None` where it lies otherwise.
    fn of<'t>(&self, tensor: Option<&'t Tensor>, name: &str) -> Result<Option<Cow<'t, [f32]>>> {
        let Some(tensor) = tensor else {
            return Ok(None);
        };
        let last = tensor.shape.len().saturating_sub(1);
        let axis = self.axis.unwrap_or(last);
        let Some(strides) = Strides::new(&tensor.shape, &[axis]) else {
            return Ok(None);
        };
        if (strides.count, strides.width()) != (self.rows.count, self.columns) {
            return Ok(None);
        }
        let values = floats(tensor, name)?;
        if axis == last {
            return Ok(Some(values));
        }
        let mut ordered = Vec::with_capacity(values.len());
        (0..strides.count).for_each(|row| strides.read(&values, row, &mut ordered));
        Ok(Some(ordered.into()))
    }
}

impl RefitBlock {
    fn flush(
        &mut self,
        from: From,
        weight: Option<&Mat<f32>>,
        device: Option<&mut OnDevice>,
        into: &mut FitTarget,
    ) {
        if let Some(device) = device {
            // The first rows set the pilots.
            if into.regression.tokens() == 0 {
                let rest = self.split_off(PILOT);
                self.add(from, weight, into);
                *self = rest;
            }
            if !device.add(self, into) {
                self.add(from, weight, into);
            }
        } else {
            self.add(from, weight, into);
        }
        self.clear();
    }

    /// The rows from `rows` on.
    fn split_off(&mut self, rows: usize) -> Self {
        let all = self.weights.len().max(1);
        let off = |values: &mut Vec<f32>| values.split_off((values.len() / all * rows).min(values.len()));
        Self {
            dense: off(&mut self.dense),
            pruned: off(&mut self.pruned),
            target: off(&mut self.target),
            weights: off(&mut self.weights),
        }
    }

    fn clear(&mut self) {
        self.dense.clear();
        self.pruned.clear();
        self.target.clear();
        self.weights.clear();
    }

    fn add(&mut self, from: From, weight: Option<&Mat<f32>>, into: &mut FitTarget) {
        let rows = self.weights.len();
        if rows == 0 {
            return;
        }
        if let Some(weight) = weight {
            let x = MatRef::from_row_major_slice(&self.dense, rows, weight.nrows());
            let y = MatMut::from_row_major_slice_mut(&mut self.target, rows, weight.ncols());
            matmul(y, Accum::Add, x, weight.as_ref(), 1.0, linalg::par());
        }
        if from == From::Narrow {
            into.regression.add(&self.pruned, &self.dense, &self.weights);
            into.dense.add(&self.dense, rows, Some(&self.weights));
        } else {
            into.regression.add(&self.pruned, &self.target, &self.weights);
        }
    }
}
