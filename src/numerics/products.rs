//! Sums of products of rows, as a packed triangle, or as the rows themselves while
//! these take less memory.

use std::borrow::Cow;
use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::numerics::linalg::padded;

/// Entries of the lower triangle of an n x n matrix.
pub(super) fn triangle(n: usize) -> usize {
    n * (n + 1) / 2
}

/// Where column `j` of a packed lower triangle of `n` columns starts.
pub(super) fn column_start(n: usize, j: usize) -> usize {
    j * n - j * j.saturating_sub(1) / 2
}

/// Columns of the product of n columns that one task makes: enough tasks for
/// all threads, each large enough for a fast product.
fn panel(n: usize) -> usize {
    (n / 8).next_multiple_of(64).clamp(64, 512)
}

/// `S = Y^T Y` of the rows added so far, n columns.
#[derive(Debug, Clone)]
pub(super) struct Products {
    width: usize,
    /// The lower triangle by columns: column j holds rows j to n - 1. Empty while all
    /// rows wait.
    sums: Vec<f64>,
    /// Whether rows may wait.
    sparing: bool,
    /// Rows that are not summed yet, and how many each block of them has.
    rows: Vec<f32>,
    blocks: Vec<usize>,
}

impl Products {
    /// Nothing yet; with `sparing`, rows are kept while there are fewer than columns.
    pub(super) fn new(width: usize, sparing: bool) -> Self {
        Self {
            width,
            sums: Vec::new(),
            sparing,
            rows: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// From a packed triangle.
    pub(super) fn of(width: usize, sums: Vec<f64>) -> Self {
        Self {
            sums,
            ..Self::new(width, false)
        }
    }

    /// Adds a block of rows of Y, row-major, each [`padded`] entries from the one before
    /// it. Uses all threads of rayon's pool; the result does not depend on their number.
    pub(super) fn add(&mut self, y: Vec<f32>) {
        let rows = y.len() / padded(self.width);
        let small = size_of::<f32>() * (self.rows.len() + y.len()) < size_of::<f64>() * triangle(self.width);
        if self.sparing && self.sums.is_empty() && small {
            self.rows.extend(y);
            self.blocks.push(rows);
            return;
        }
        let width = self.width;
        let sums = self.settled();
        add_block(sums, &y, width);
    }

    /// The packed triangle.
    pub(super) fn packed(&self) -> Cow<'_, [f64]> {
        if self.sums.is_empty() {
            let mut sums = vec![0.0; triangle(self.width)];
            self.sum_into(&mut sums);
            return sums.into();
        }
        self.sums.as_slice().into()
    }

    /// The packed triangle, with all rows in it, to be changed.
    pub(super) fn settled(&mut self) -> &mut [f64] {
        if self.sums.is_empty() {
            let mut sums = vec![0.0; triangle(self.width)];
            self.sum_into(&mut sums);
            self.sums = sums;
            self.rows = Vec::new();
            self.blocks = Vec::new();
        }
        &mut self.sums
    }

    /// The diagonal.
    pub(super) fn squares(&self) -> Vec<f64> {
        let n = self.width;
        if self.sums.is_empty() {
            let mut squares = vec![0.0f64; n];
            for row in self.rows.chunks_exact(padded(n)) {
                let parts = squares.iter_mut().zip(row);
                parts.for_each(|(sum, y)| *sum += f64::from(y * y));
            }
            return squares;
        }
        (0..n).map(|j| self.sums[column_start(n, j)]).collect()
    }

    /// Whether all sums are finite.
    pub(super) fn is_finite(&self) -> bool {
        // The largest entry of S lies on the diagonal.
        let rows = self.squares().iter().all(|s| f64::from(*s as f32).is_finite());
        self.sums.iter().all(|s| s.is_finite()) && (rows || !self.sums.is_empty())
    }

    fn sum_into(&self, sums: &mut [f64]) {
        let mut rest = self.rows.as_slice();
        for &rows in &self.blocks {
            let (block, after) = rest.split_at(rows * padded(self.width));
            add_block(sums, block, self.width);
            rest = after;
        }
    }
}

/// The same sums are equal, whether rows wait or not.
impl PartialEq for Products {
    fn eq(&self, other: &Self) -> bool {
        self.width == other.width && self.packed() == other.packed()
    }
}

/// Adds `Y^T Y` of some rows of n entries to a packed triangle.
fn add_block(sums: &mut [f64], rows: &[f32], n: usize) {
    let stride = padded(n);
    let count = rows.len() / stride;
    if n == 0 || count == 0 {
        return;
    }
    let y = MatRef::from_row_major_slice(rows, count, stride).subcols(0, n);
    let width = panel(n);
    let mut panels = Vec::with_capacity(n.div_ceil(width));
    let mut rest = sums;
    for from in (0..n).step_by(width) {
        let to = (from + width).min(n);
        let (own, after) = rest.split_at_mut(column_start(n, to) - column_start(n, from));
        panels.push((from..to, own));
        rest = after;
    }
    let scratch = Vec::<f32>::new;
    panels
        .into_par_iter()
        .for_each_init(scratch, |scratch, (columns, own)| {
            let height = n - columns.start;
            scratch.resize(scratch.len().max(height * columns.len()), 0.0);
            let product = &mut scratch[..height * columns.len()];
            lower_columns(y, columns, product);
            let mut rest = own;
            for (j, column) in product.chunks_exact(height).enumerate() {
                let (sums, after) = rest.split_at_mut(height - j);
                sums.iter_mut()
                    .zip(&column[j..])
                    .for_each(|(sum, &p)| *sum += f64::from(p));
                rest = after;
            }
        });
}

/// Some columns of the lower triangle of `Y^T Y`, from the first one's diagonal
/// down, by columns; what lies above the diagonal has no meaning.
fn lower_columns(y: MatRef<'_, f32>, columns: Range<usize>, out: &mut [f32]) {
    let (height, width) = (y.ncols() - columns.start, columns.len());
    let out = MatMut::from_column_major_slice_mut(out, height, width);
    let own = y.subcols(columns.start, width);
    let (diagonal, below) = out.split_at_row_mut(width);
    triangular::matmul(
        diagonal,
        BlockStructure::TriangularLower,
        Accum::Replace,
        own.transpose(),
        BlockStructure::Rectangular,
        own,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    matmul(
        below,
        Accum::Replace,
        y.subcols(columns.end, height - width).transpose(),
        own,
        1.0,
        Par::Seq,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_wait_give_the_same_sums() {
        let n = 70;
        let block = |seed: usize, rows: usize| -> Vec<f32> {
            (0..rows * padded(n))
                .map(|i| ((i * 31 + seed * 17) % 97) as f32 / 97.0 - 0.5)
                .collect()
        };
        let (mut now, mut later) = (Products::new(n, false), Products::new(n, true));
        for (seed, rows) in [(1, 20), (2, 31), (3, 40)] {
            now.add(block(seed, rows));
            later.add(block(seed, rows));
            // 70 rows take as much as the triangle.
            assert_eq!(later.sums.is_empty(), seed < 3);
            assert_eq!(now, later);
            let (a, b) = (now.squares(), later.squares());
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5 * a));
        }
        assert!(later.rows.is_empty() && later.is_finite());
        let mut large = Products::new(n, true);
        large.add(vec![3e19; padded(n)]);
        assert!(!large.is_finite(), "its squares overflow float32");
    }
}
