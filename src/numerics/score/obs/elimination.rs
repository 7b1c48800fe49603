//! The elimination itself: a Cholesky factorization of `Z = H^-1` whose pivots
//! are the removed rows.
//!
//! Removing rows P turns `Z` into `Z - Z_:P Z_PP^-1 Z_P:` and `W` into
//! `W - Z_:P Z_PP^-1 W_P`. With `Z_PP = L L^T`, `V = Z_:P L^-T` and `Y = L^-1 W_P`
//! these are `Z - V V^T` and `W - V Y`, and `|Y_i|^2` is what row i costs given
//! the rows before it. Z is never updated: only its columns P are needed, and
//! only when P goes, so they are made then, from the first Z and all V so far.
//! That is one product of shape `k x removed x live` a step, a third of n^3 in
//! all; W takes `n^2 d` more.
//!
//! Everything is scaled to `H_ii = 1`, which changes no score. Then each pivot
//! is at least 1 in exact arithmetic (`[(H_SS)^-1]_ii >= 1 / H_ii` for any S),
//! a floor that keeps single precision safe.
//!
//! V^T and W^T are stored with one column per row of W, and the live ones come
//! first, so that a step is one pass over chunks of columns that fit the cache. The
//! rows that a step may take are moved behind the other live ones, where they are
//! read in one piece.
//!
//! Loops that are no products run in the widest instructions there are (pulp), as the
//! products do.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::perm::swap_cols_idx;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use crate::error::Result;
use crate::numerics::linalg::{self, Cholesky};
use crate::numerics::score::site::{ScoredSite, check_damp};

/// Entries of W that a task of a step works on: they fit the L2 cache.
const CHUNK: usize = 192 * 1024;

/// Columns per task of a step where W has d columns, as many for any number of
/// threads.
fn chunk(d: usize) -> usize {
    (CHUNK / d.max(1)).next_multiple_of(64).clamp(64, 2048)
}

/// What is kept current for a live row.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// The row of W.
    row: usize,
    /// `Z_ii`.
    z: f32,
    /// `|W_i|^2`.
    w: f32,
}

/// The state between two steps.
#[derive(Clone)]
pub struct Elimination {
    /// Z before the first step, `n x n`, by row of W.
    z: Mat<f32>,
    /// `V^T`, `n x n` by position, below that zeros: the first `removed` rows are
    /// filled.
    v: Mat<f32>,
    /// `W^T` as it stands, `d x n` by position, below that zeros.
    w: Mat<f32>,
    /// `W^T` before the first step, `d x n` by row of W, below that zeros.
    start: Mat<f32>,
    /// d.
    columns: usize,
    /// `1 / H_ii` by row of W: takes a squared change back to the true scale.
    unscale: Vec<f32>,
    /// By position; the live rows come first.
    rows: Vec<Row>,
    /// The position of each row of W.
    position: Vec<usize>,
    live: usize,
    ridge: f64,
    /// `|D|^2` of the removed rows for the change D of W since the start.
    gone: f64,
}

impl Elimination {
    /// Factors and inverts `Sigma + lambda I`, with `lambda = damp` x the mean
    /// diagonal.
    ///
    /// # Errors
    /// When the statistics are no Gram matrix, or `damp` no ridge.
    pub fn new(site: &ScoredSite, damp: f64) -> Result<Self> {
        check_damp(damp)?;
        let n = site.weight.nrows();
        let all: Vec<usize> = (0..n).collect();
        let Cholesky { lower, ridge } = Cholesky::new(site.sigma.as_ref(), &all, site.ridge(damp))?;
        let scale: Vec<f64> = (0..n).map(|i| (site.sigma[(i, i)] + ridge).sqrt()).collect();
        let scaled = Mat::from_fn(n, n, |i, j| {
            if i < j {
                0.0
            } else {
                (lower[(i, j)] / scale[i]) as f32
            }
        });
        drop(lower);
        let z = linalg::inverse_from_factor(scaled.as_ref());
        drop(scaled);
        let d = site.weight.ncols();
        let mut start = Mat::zeros(linalg::padded(d), n);
        for (i, column) in start.as_mut().subrows_mut(0, d).col_iter_mut().enumerate() {
            for (j, entry) in column.iter_mut().enumerate() {
                *entry = (site.weight[(i, j)] * scale[i]) as f32;
            }
        }
        let rows = (0..n)
            .map(|row| Row {
                row,
                z: z[(row, row)].max(1.0),
                w: square(start.col_as_slice(row)),
            })
            .collect();
        Ok(Self {
            z,
            v: Mat::zeros(linalg::padded(n), n),
            w: start.clone(),
            start,
            columns: d,
            unscale: scale.iter().map(|s| (1.0 / (s * s)) as f32).collect(),
            rows,
            position: all,
            live: n,
            ridge,
            gone: 0.0,
        })
    }

    /// How many rows are left.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// lambda.
    pub(super) fn ridge(&self) -> f64 {
        self.ridge
    }

    /// `|W_0 - W|^2`, removed rows included. One pass over both, which takes as long as a
    /// good part of a step.
    pub(super) fn drift(&self) -> f64 {
        let chunk = chunk(self.w.nrows());
        let live: Vec<f64> = self.rows[..self.live]
            .par_chunks(chunk)
            .enumerate()
            .map(|(at, rows)| pulp::Arch::new().dispatch(Drift(self, at * chunk, rows)))
            .collect();
        self.gone + live.iter().sum::<f64>()
    }

    /// The live rows of W as they stand, ascending, in the true scale.
    pub(super) fn fitted(&self) -> Mat<f64> {
        let mut live: Vec<usize> = (0..self.live).collect();
        live.sort_unstable_by_key(|&at| self.rows[at].row);
        let scale: Vec<f64> = live
            .iter()
            .map(|&at| f64::from(self.unscale[self.rows[at].row]).sqrt())
            .collect();
        Mat::from_fn(live.len(), self.columns, |i, j| {
            f64::from(self.w[(j, live[i])]) * scale[i]
        })
    }

    /// The live rows of W with their scores `|W_i|^2 / Z_ii`, in no order.
    pub(super) fn scores(&self) -> impl Iterator<Item = (f32, usize)> {
        self.rows[..self.live].iter().map(|r| (r.w / r.z, r.row))
    }

    /// `Z` before the first step between `rows`.
    pub(super) fn z_at_start(&self, rows: &[usize]) -> Mat<f32> {
        Mat::from_fn(rows.len(), rows.len(), |i, j| self.z[(rows[i], rows[j])])
    }

    /// The rows at the last `k` live positions.
    pub(super) fn last(&self, k: usize) -> impl Iterator<Item = usize> {
        self.rows[self.live - k..self.live].iter().map(|r| r.row)
    }

    /// `Z` as it stands between the rows at the last `k` live positions.
    pub(super) fn z_of_last(&self, k: usize) -> Mat<f32> {
        let rows: Vec<usize> = self.last(k).collect();
        let done = self.rows.len() - self.live;
        let past = self.v.as_ref().submatrix(0, self.live - k, done, k);
        let mut z = Mat::zeros(k, k);
        for (j, column) in z.as_mut().col_iter_mut().enumerate() {
            let own = self.z.col_as_slice(rows[j]);
            column
                .iter_mut()
                .zip(&rows)
                .skip(j)
                .for_each(|(z, row)| *z = own[*row]);
        }
        triangular::matmul(
            z.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            past.transpose(),
            BlockStructure::Rectangular,
            past,
            BlockStructure::Rectangular,
            -1.0,
            linalg::par(),
        );
        linalg::mirror_lower(z.as_mut());
        z
    }

    /// `W^T` as it stands at the last `k` live positions, `d x k`.
    pub(super) fn w_of_last(&self, k: usize) -> MatRef<'_, f32> {
        self.w.as_ref().subcols(self.live - k, k)
    }

    /// The columns of `W^T` as it stands for `rows`, `d x rows`.
    pub(super) fn w_of(&self, rows: &[usize]) -> Mat<f32> {
        linalg::select_columns(self.w.as_ref(), &self.positions(rows))
    }

    /// The last `k` rows of `V^T` (the last step) for `rows`, `k x rows`.
    pub(super) fn last_v_of(&self, k: usize, rows: &[usize]) -> Mat<f32> {
        let removed = self.rows.len() - self.live;
        let last = self.v.as_ref().subrows(removed - k, k);
        linalg::select_columns(last, &self.positions(rows))
    }

    fn positions(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.position[row]).collect()
    }

    /// Removes the rows at the last live positions together, `lower` being the Cholesky
    /// factor of Z between them. Returns what each adds to `tr(D^T H D)`, given those before
    /// it.
    pub(super) fn remove(&mut self, lower: &Mat<f32>) -> Vec<f64> {
        let k = lower.nrows();
        let done = self.rows.len() - self.live;
        let live = self.live - k;
        let inverse = linalg::inverse_of_lower(lower.as_ref());
        let mut y = Mat::<f32>::zeros(self.w.nrows(), k);
        let (w, back) = (self.w.as_ref().subcols(live, k), inverse.as_ref().transpose());
        matmul(y.as_mut(), Accum::Replace, w, back, 1.0, Par::Seq);
        let lost: Vec<f64> = (0..k)
            .map(|i| f64::from(square(contiguous(y.as_ref(), i))))
            .collect();

        self.gone += self
            .last(k)
            .map(|row| f64::from(square(self.start.col_as_slice(row)) * self.unscale[row]))
            .sum::<f64>();
        let pivots: Vec<&[f32]> = self.last(k).map(|row| self.z.col_as_slice(row)).collect();
        let chunk = chunk(self.w.nrows());
        let (v, gone) = self.v.as_mut().split_at_col_mut(live);
        // What was removed lies behind what is live, in order.
        let gone = gone.as_ref();
        let past = gone.submatrix(0, 0, done, k).transpose();
        let (inverse, y) = (inverse.as_ref(), y.as_ref());
        // Shared by chunks: fresh memory for each would have to be cleared and mapped anew.
        let scratch = || Mat::<f32>::zeros(k, chunk.min(live));
        v.par_col_chunks_mut(chunk)
            .zip(self.w.as_mut().subcols_mut(0, live).par_col_chunks_mut(chunk))
            .zip(self.rows[..live].par_chunks_mut(chunk))
            .for_each_init(scratch, |new, ((v, mut w), rows)| {
                let (before, v) = v.split_at_row_mut(done);
                let mut new = new.as_mut().subcols_mut(0, rows.len());
                gather(&pivots, rows, new.as_mut());
                matmul(new.as_mut(), Accum::Add, past, before.as_ref(), -1.0, Par::Seq);
                let mut v = v.subrows_mut(0, k);
                matmul(v.as_mut(), Accum::Replace, inverse, new.as_ref(), 1.0, Par::Seq);
                matmul(w.as_mut(), Accum::Add, y, v.as_ref(), -1.0, Par::Seq);
                pulp::Arch::new().dispatch(Refresh(rows, v.as_ref(), w.as_ref()));
            });
        self.live = live;
        lost
    }

    /// Swaps `rows` to the last live positions, in their order.
    pub(super) fn move_to_end(&mut self, rows: &[usize]) {
        let first = self.live - rows.len();
        for (i, &row) in rows.iter().enumerate().rev() {
            let (from, to) = (self.position[row], first + i);
            if from == to {
                continue;
            }
            let done = self.rows.len() - self.live;
            let past = self.v.as_mut().subrows_mut(0, done);
            swap_cols_idx(past, from, to);
            swap_cols_idx(self.w.as_mut(), from, to);
            self.rows.swap(from, to);
            self.position[self.rows[from].row] = from;
            self.position[row] = to;
        }
    }
}

/// The entries of some columns of Z for `rows`.
fn gather(pivots: &[&[f32]], rows: &[Row], mut new: MatMut<'_, f32>) {
    // A tile of pivots at a time: their columns stay in the cache while they are read.
    const TILE: usize = 16;
    let n = pivots.first().map_or(0, |pivot| pivot.len());
    let (tiles, rest) = pivots.as_chunks::<TILE>();
    for (at, tile) in tiles.iter().enumerate() {
        // All of one length: one comparison stands for those of all entries of a row.
        let tile = tile.map(|pivot| &pivot[..n]);
        for (j, i) in rows.iter().map(|row| row.row).enumerate() {
            let (parts, _) = contiguous_mut(new.as_mut(), j).as_chunks_mut::<TILE>();
            if let Some(part) = parts.get_mut(at)
                && i < n
            {
                part.iter_mut()
                    .zip(&tile)
                    .for_each(|(new, pivot)| *new = pivot[i]);
            }
        }
    }
    for (j, i) in rows.iter().map(|row| row.row).enumerate() {
        let (_, last) = contiguous_mut(new.as_mut(), j).as_chunks_mut::<TILE>();
        last.iter_mut().zip(rest).for_each(|(new, pivot)| *new = pivot[i]);
    }
}

/// Brings the scores of a chunk up to date after a step: its rows, its part of the new
/// rows of `V^T` and of `W^T`.
struct Refresh<'a>(&'a mut [Row], MatRef<'a, f32>, MatRef<'a, f32>);

impl NullaryFnOnce for Refresh<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self(rows, new, w) = self;
        for (j, row) in rows.iter_mut().enumerate() {
            row.z = (row.z - square(contiguous(new, j))).max(1.0);
            row.w = square(contiguous(w, j));
        }
    }
}

/// The drift of some live rows, the first one's position being the number.
struct Drift<'a>(&'a Elimination, usize, &'a [Row]);

impl NullaryFnOnce for Drift<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self(state, first, rows) = self;
        let of = |(at, row): (usize, &Row)| {
            let (now, start) = (
                state.w.col_as_slice(first + at),
                state.start.col_as_slice(row.row),
            );
            f64::from(sum(now, start, |x, y| (x - y) * (x - y)) * state.unscale[row.row])
        };
        rows.iter().enumerate().map(of).sum()
    }
}

/// A column of a matrix stored by columns (empty for any other).
#[inline(always)]
fn contiguous(m: MatRef<'_, f32>, column: usize) -> &[f32] {
    m.col(column)
        .try_as_col_major()
        .map_or(&[], |column| column.as_slice())
}

#[inline(always)]
fn contiguous_mut(m: MatMut<'_, f32>, column: usize) -> &mut [f32] {
    m.col_mut(column)
        .try_as_col_major_mut()
        .map_or(&mut [], |column| column.as_slice_mut())
}

#[inline(always)]
fn square(x: &[f32]) -> f32 {
    sum(x, x, |x, _| x * x)
}

/// The sum of `term` in a fixed order that the compiler can vectorise.
#[inline(always)]
fn sum(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let (x_body, x_tail) = x.as_chunks::<LANES>();
    let (y_body, y_tail) = y.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for (x, y) in x_body.iter().zip(y_body) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += term(x, y);
        }
    }
    let tail: f32 = x_tail.iter().zip(y_tail).map(|(&x, &y)| term(x, y)).sum();
    lanes.iter().sum::<f32>() + tail
}
