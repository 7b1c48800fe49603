//! What a sequential fit sums over the batches.

use faer::{Accum, Mat, MatRef};

use super::stops::Stop;
use crate::calibrate::{Batch, Rows, Strides, floats};
use crate::graph::{Graph, ValueId};
use crate::segment::Stream;
use crate::solve::Regression;
use crate::{Result, linalg};

/// Rows per block of the sums.
const BLOCK: usize = 1024;

/// Sums over all batches, of the samples to fit and those kept apart.
pub(super) struct Sums {
    pub(super) fit: Regression,
    pub(super) guard: Regression,
}

/// `None` where the rows of the sink's input and output do not correspond.
pub(super) fn sums(
    stop: &Stop,
    graph: &Graph,
    batches: &[Batch],
    [dense, pruned]: [&Stream; 2],
    is_guard: fn(usize) -> bool,
) -> Result<Option<Sums>> {
    let (n, d) = (stop.part.matrix.nrows(), stop.part.matrix.ncols());
    let name = |v: ValueId| graph.value(v).name.as_str();
    let mut sums = Sums {
        fit: Regression::new(stop.rows.len(), d),
        guard: Regression::new(stop.rows.len(), d),
    };
    let mut blocks = [Block::default(), Block::default()];
    let old = stop.part.bias();
    let weight = Mat::<f32>::from_fn(n, d, |i, j| stop.part.matrix[(i, j)] as f32);
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
            let guard = is_guard(sample);
            let block = &mut blocks[usize::from(guard)];
            strides.read(&x, row, &mut block.dense);
            strides.pick(&new, row, &stop.rows, &mut block.pruned);
            block.weights.push(stop.weights.of(rows.place(row)));
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
            if block.weights.len() == BLOCK {
                let into = if guard { &mut sums.guard } else { &mut sums.fit };
                block.flush(&weight, into);
            }
        }
    }
    let [fit, guard] = &mut blocks;
    fit.flush(&weight, &mut sums.fit);
    guard.flush(&weight, &mut sums.guard);
    Ok(Some(sums))
}

/// Rows that wait to be summed.
#[derive(Default)]
struct Block {
    /// The dense model's X, all columns.
    dense: Vec<f32>,
    /// The pruned model's, kept columns.
    pruned: Vec<f32>,
    /// The bias and the difference of the residuals; X W comes on top.
    target: Vec<f32>,
    weights: Vec<f32>,
}

impl Block {
    fn flush(&mut self, weight: &Mat<f32>, into: &mut Regression) {
        let (rows, n, d) = (self.weights.len(), weight.nrows(), weight.ncols());
        if rows > 0 {
            let x = MatRef::from_row_major_slice(&self.dense, rows, n);
            let y = faer::MatMut::from_row_major_slice_mut(&mut self.target, rows, d);
            faer::linalg::matmul::matmul(y, Accum::Add, x, weight.as_ref(), 1.0, linalg::par());
            into.add(&self.pruned, &self.target, &self.weights);
        }
        self.dense.clear();
        self.pruned.clear();
        self.target.clear();
        self.weights.clear();
    }
}
