//! The few dense operations that the numerics share, on faer matrices.
//!
//! Parallelism is that of the rayon pool the caller runs in: the pipeline
//! installs one pool with the threads that were asked for, and [`par`] hands
//! its size to faer. Same input and same number of threads give the same bytes.

use faer::linalg::cholesky::llt::factor;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve;
use faer::traits::ComplexField;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// The parallelism of the rayon pool that the caller runs in.
pub fn par() -> Par {
    match rayon::current_num_threads() {
        0 | 1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// What `work` makes with a pool of one thread.
pub fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// How far apart the rows (or columns) of a matrix with n entries each are stored: a
/// multiple of a page apart they would fall into the same sets of the cache, which halves
/// the speed of a product.
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(16) + 16
}

/// `A B`.
pub fn product<T: ComplexField>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    faer::linalg::matmul::matmul(out.as_mut(), Accum::Replace, a, b, T::one_impl(), par());
    out
}

/// `A A^T`, both triangles, from half the work of a product.
pub fn outer<T: ComplexField>(a: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), a.nrows());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        a,
        BlockStructure::Rectangular,
        a.transpose(),
        BlockStructure::Rectangular,
        T::one_impl(),
        par(),
    );
    mirror_lower(out.as_mut());
    out
}

/// Copies the lower triangle over the upper one.
pub fn mirror_lower<T: ComplexField>(mut a: MatMut<'_, T>) {
    // In square tiles, so that neither side of the copy leaves the cache.
    const TILE: usize = 64;
    let n = a.nrows();
    for left in (0..n).step_by(TILE) {
        for top in (left..n).step_by(TILE) {
            for j in left..(left + TILE).min(n) {
                for i in top.max(j + 1)..(top + TILE).min(n) {
                    a[(j, i)] = a[(i, j)].clone();
                }
            }
        }
    }
}

/// The rows of `a` named by `rows`, in that order.
pub fn select_rows<T: ComplexField>(a: MatRef<'_, T>, rows: &[usize]) -> Mat<T> {
    Mat::from_fn(rows.len(), a.ncols(), |i, j| a[(rows[i], j)].clone())
}

/// Matrices of as many rows, one beside the other.
pub fn side_by_side(parts: &[Mat<f64>]) -> Mat<f64> {
    let rows = parts.first().map_or(0, Mat::nrows);
    let mut out = Mat::zeros(rows, parts.iter().map(Mat::ncols).sum());
    let mut at = 0;
    for part in parts {
        out.as_mut().subcols_mut(at, part.ncols()).copy_from(part);
        at += part.ncols();
    }
    out
}

/// The columns of `a` named by `columns`, in that order.
pub fn select_columns<T: ComplexField>(a: MatRef<'_, T>, columns: &[usize]) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), columns.len());
    for (j, &column) in columns.iter().enumerate() {
        out.col_mut(j).copy_from(a.col(column));
    }
    out
}

/// Whether no entry is NaN or infinite.
pub fn all_finite(a: MatRef<'_, f64>) -> bool {
    a.par_col_iter()
        .all(|column| column.iter().all(|x| x.is_finite()))
}

/// The sum of the products of equal entries, `tr(A^T B)`.
pub fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    a.col_iter()
        .zip(b.col_iter())
        .map(|(x, y)| x.iter().zip(y.iter()).map(|(x, y)| x * y).sum::<f64>())
        .sum()
}

/// The mean of the diagonal (0 for an empty matrix).
pub fn mean_diagonal(a: MatRef<'_, f64>) -> f64 {
    let n = a.nrows();
    (0..n).map(|i| a[(i, i)]).sum::<f64>() / (n.max(1) as f64)
}

/// The factor of `A_SS + ridge I = L L^T` for some rows S of a symmetric A.
pub struct Cholesky {
    /// L; what lies above the diagonal has no meaning.
    pub lower: Mat<f64>,
    /// The ridge that was really used.
    pub ridge: f64,
}

impl Cholesky {
    /// Factors `A_SS + ridge I`, reading the lower triangle of A only where
    /// `rows` ascends. Where rounding makes that not positive definite (ridge 0
    /// on a singular matrix) the ridge grows until it is, and
    /// [`Cholesky::ridge`] tells by how much.
    ///
    /// # Errors
    /// When A is too far from positive semi-definite to be a Gram matrix.
    pub fn new(a: MatRef<'_, f64>, rows: &[usize], ridge: f64) -> Result<Self> {
        const FIRST: f64 = 1e-12;
        const LAST: f64 = 1e-3;
        let scale = mean_diagonal(a);
        let mut ridge = ridge;
        loop {
            if let Some(lower) = factor_once(a, rows, ridge) {
                return Ok(Self { lower, ridge });
            }
            let next = (10.0 * ridge).max(FIRST * scale);
            // A NaN fails the comparison and leaves too.
            if next.partial_cmp(&(LAST * scale)) != Some(std::cmp::Ordering::Less) {
                return Err(Error::input(
                    "the statistics of the site are no Gram matrix: the covariance of its input \
                     has negative eigenvalues; collect them again",
                ));
            }
            ridge = next;
        }
    }

    /// `B <- L^-1 B`.
    pub fn solve_lower(&self, b: MatMut<'_, f64>) {
        triangular_solve::solve_lower_triangular_in_place(self.lower.as_ref(), b, par());
    }

    /// `L^T B` (for the whole factor).
    pub fn upper_times(&self, b: MatRef<'_, f64>) -> Mat<f64> {
        let mut out = Mat::zeros(b.nrows(), b.ncols());
        triangular::matmul(
            out.as_mut(),
            BlockStructure::Rectangular,
            Accum::Replace,
            self.lower.as_ref().transpose(),
            BlockStructure::TriangularUpper,
            b,
            BlockStructure::Rectangular,
            1.0,
            par(),
        );
        out
    }
}

/// `B <- L^-T B` for a lower triangle L.
pub fn solve_transposed(lower: MatRef<'_, f64>, b: MatMut<'_, f64>) {
    triangular_solve::solve_upper_triangular_in_place(lower.transpose(), b, par());
}

fn factor_once(a: MatRef<'_, f64>, rows: &[usize], ridge: f64) -> Option<Mat<f64>> {
    let n = rows.len();
    let mut lower = Mat::<f64>::zeros(n, n);
    lower
        .as_mut()
        .par_col_iter_mut()
        .enumerate()
        .for_each(|(j, mut column)| {
            for i in j..n {
                column[i] = a[(rows[i], rows[j])];
            }
            column[j] += ridge;
        });
    factor_in_place(lower.as_mut(), None, par()).then_some(lower)
}

/// Factors the lower triangle of `a` in place; pivots below `floor` are raised
/// to it, where there is one. False when a pivot is not positive and finite.
pub fn factor_in_place<T>(mut a: MatMut<'_, T>, floor: Option<T>, par: Par) -> bool
where
    T: ComplexField<Real = T> + faer::traits::RealField,
{
    use faer::dyn_stack::{MemBuffer, MemStack};
    let n = a.nrows();
    let scratch = factor::cholesky_in_place_scratch::<T>(n, par, Default::default());
    let regularization = match floor {
        Some(floor) => factor::LltRegularization {
            dynamic_regularization_delta: floor.clone(),
            dynamic_regularization_epsilon: floor,
        },
        None => Default::default(),
    };
    let done = factor::cholesky_in_place(
        a.as_mut(),
        regularization,
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    done.is_ok() && (0..n).all(|i| T::is_finite_impl(&a[(i, i)]))
}

/// `B <- L^-1 B`, sequentially; for blocks inside a parallel loop.
pub fn solve_lower_seq(lower: MatRef<'_, f32>, b: MatMut<'_, f32>) {
    triangular_solve::solve_lower_triangular_in_place_with_conj(lower, Conj::No, b, Par::Seq);
}

/// `L^-1` of a small lower triangle, sequentially; above the diagonal it is zero.
pub fn inverse_of_lower(lower: MatRef<'_, f32>) -> Mat<f32> {
    let mut inverse = Mat::zeros(lower.nrows(), lower.nrows());
    invert_lower_triangular(inverse.as_mut(), lower, Par::Seq);
    inverse
}

/// `(L L^T)^-1` in single precision, both triangles. The error is that of
/// inverting L, whose condition is the square root of the matrix's: single
/// precision is enough where it would not be for the matrix itself.
pub fn inverse_from_factor(lower: MatRef<'_, f32>) -> Mat<f32> {
    let n = lower.nrows();
    let mut inverse = Mat::<f32>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), lower, par());
    let mut out = Mat::<f32>::zeros(n, n);
    triangular::matmul(
        out.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        inverse.as_ref().transpose(),
        BlockStructure::TriangularUpper,
        inverse.as_ref(),
        BlockStructure::TriangularLower,
        1.0,
        par(),
    );
    mirror_lower(out.as_mut());
    out
}
