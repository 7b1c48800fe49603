//! What the sequential fits of layers that read the same rows sum over the batches.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef};

use super::on_device::OnDevice;
use super::stops::Stop;
use crate::calibrate::{Batch, Rows, SiteStatistics, Strides, floats};
use crate::graph::{Graph, ValueId};
use crate::runtime::Engine;
use crate::segment::Stream;
use crate::solve::Regression;
use crate::{Result, linalg};

/// Rows per block of the sums.
const BLOCK: usize = 1024;
/// The same where a device makes the sums: as many rows as a layer is wide, so that
/// what comes back is no more than what goes there.
const ON_DEVICE: usize = 4096;
/// Rows whose means are the pilots, where a device makes the sums.
const PILOT: usize = 128;

/// Sums over all batches, of the samples to fit and those kept apart.
pub(super) struct Sums {
    pub(super) fit: Regression,
    pub(super) guard: Regression,
}

/// `None` where the rows of the sink's input and output do not correspond.
pub(super) fn sums(
    engine: &dyn Engine,
    halt: &[Stop],
    graph: &Graph,
    batches: &[Batch],
    [dense, pruned]: [&Stream; 2],
    is_guard: fn(usize) -> bool,
) -> Result<Option<Sums>> {
    let Some(stop) = halt.first() else {
        return Ok(None);
    };
    let n = stop.part.matrix.nrows();
    let matrices: Vec<Mat<f64>> = halt.iter().map(|s| s.part.matrix.clone()).collect();
    let whole = linalg::side_by_side(&matrices);
    let d = whole.ncols();
    let old: Vec<f64> = halt.iter().flat_map(|s| s.part.bias()).collect();
    // Where X is narrower than X W, sums over X do, and W comes on top of them.
    let narrow = stop.residual.is_none() && stop.rows.len() == n && n < d;
    let width = if narrow { n } else { d };
    let of = || Target {
        regression: Regression::new(stop.rows.len(), width),
        dense: SiteStatistics::new(if narrow { n } else { 0 }),
    };
    let mut sums = [of(), of()];
    let mut blocks = [Block::default(), Block::default()];
    let weight = (!narrow).then(|| Mat::<f32>::from_fn(n, d, |i, j| whole[(i, j)] as f32));
    let mut device = (engine.reduces() && !stop.rows.is_empty())
        .then(|| OnDevice::new(engine, [n, stop.rows.len(), width], weight.as_ref()));
    let most = device.as_ref().map_or(BLOCK, |_| ON_DEVICE);
    let name = |v: ValueId| graph.value(v).name.as_str();
    let activation = stop.sink.activation;
    for ((batch, dense), pruned) in batches.iter().zip(&dense.tensors).zip(&pruned.tensors) {
        let (Some(x), Some(new)) = (dense.get(&activation), pruned.get(&activation)) else {
            return Ok(None);
        };
        let Some(strides) = Strides::new(&x.shape, &stop.sink.activation_axes) else {
            return Ok(None);
        };
        if x.shape != new.shape || strides.width() != n {
            return Ok(None);
        }
        let (x, new) = (floats(x, name(activation))?, floats(new, name(activation))?);
        let residual = match stop.residual {
            Some(r) => match (dense.get(&r), pruned.get(&r)) {
                (Some(a), Some(b)) if a.len() == strides.count * d && b.len() == a.len() => {
                    Some((floats(a, name(r))?, floats(b, name(r))?))
                }
                _ => return Ok(None),
            },
            None => None,
        };
        let rows = Rows::new(&strides.leading, batch);
        for row in 0..strides.count {
            let Some(sample) = rows.sample(row) else {
                continue;
            };
            let at = usize::from(is_guard(sample));
            let block = &mut blocks[at];
            strides.read(&x, row, &mut block.dense);
            strides.pick(&new, row, &stop.rows, &mut block.pruned);
            block.weights.push(stop.weights.of(rows.place(row)));
            if !narrow {
                let range = row * d..(row + 1) * d;
                match &residual {
                    Some((a, b)) => {
                        let parts = a[range.clone()].iter().zip(&b[range]).zip(&old);
                        block
                            .target
                            .extend(parts.map(|((a, b), old)| a - b + *old as f32));
                    }
                    None => block.target.extend(old.iter().map(|b| *b as f32)),
                }
            }
            if block.weights.len() == most {
                block.flush(weight.as_ref(), device.as_mut(), &mut sums[at]);
            }
        }
    }
    for (block, sums) in blocks.iter_mut().zip(&mut sums) {
        block.flush(weight.as_ref(), device.as_mut(), sums);
    }
    let [fit, guard] = sums.map(|sums| {
        if narrow {
            sums.regression.mapped(&sums.dense, &whole, &old)
        } else {
            sums.regression
        }
    });
    Ok(Some(Sums { fit, guard }))
}

/// Sums over the rows of some samples.
pub(super) struct Target {
    pub(super) regression: Regression,
    /// Of the dense model's X, where that stands for the target.
    pub(super) dense: SiteStatistics,
}

/// Rows that wait to be summed.
#[derive(Default)]
pub(super) struct Block {
    /// The dense model's X, all columns.
    pub(super) dense: Vec<f32>,
    /// The pruned model's, kept columns.
    pub(super) pruned: Vec<f32>,
    /// The bias and the difference of the residuals; X W comes on top.
    pub(super) target: Vec<f32>,
    pub(super) weights: Vec<f32>,
}

impl Block {
    fn flush(&mut self, weight: Option<&Mat<f32>>, device: Option<&mut OnDevice>, into: &mut Target) {
        if let Some(device) = device {
            // The first rows set the pilots.
            if into.regression.tokens() == 0 {
                let rest = self.split_off(PILOT);
                self.add(weight, into);
                *self = rest;
            }
            if !device.add(self, into) {
                self.add(weight, into);
            }
        } else {
            self.add(weight, into);
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

    fn add(&mut self, weight: Option<&Mat<f32>>, into: &mut Target) {
        let rows = self.weights.len();
        match weight {
            _ if rows == 0 => {}
            Some(weight) => {
                let x = MatRef::from_row_major_slice(&self.dense, rows, weight.nrows());
                let y = MatMut::from_row_major_slice_mut(&mut self.target, rows, weight.ncols());
                matmul(y, Accum::Add, x, weight.as_ref(), 1.0, linalg::par());
                into.regression.add(&self.pruned, &self.target, &self.weights);
            }
            None => {
                into.regression.add(&self.pruned, &self.dense, &self.weights);
                into.dense.add(&self.dense, rows, Some(&self.weights));
            }
        }
    }
}
