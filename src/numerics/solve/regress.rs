//! Least squares of one set of rows on another, from sums over blocks.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef};
use rayon::prelude::*;

use crate::numerics::SiteStatistics;
use crate::numerics::linalg::{self, Cholesky};
use crate::{Error, Result};

/// Columns that one task sums.
const PANEL: usize = 128;

/// The sums that a regression of Y (`T x d`) on X (`T x n`) needs.
#[derive(Debug, Clone)]
pub struct Regression {
    x: SiteStatistics,
    /// q: the pilot of Y.
    pilot: Vec<f64>,
    /// Sum of w (y - q).
    shifted_sum: Vec<f64>,
    /// `(X - 1 p^T)^T diag(w) (Y - 1 q^T)`, `n x d`.
    cross: Mat<f64>,
    /// Sum of w (y - q)^2.
    square: Vec<f64>,
}

/// Sums about the pilots of a regression that were made elsewhere, of some rows.
pub struct RegressionSums<'a> {
    /// Rows that count.
    pub tokens: u64,
    /// The sum of their weights.
    pub total: f64,
    /// Sum of w (x - p), `n`.
    pub x: &'a [f32],
    /// `(X - 1 p^T)^T diag(w) (X - 1 p^T)`, `n x n`.
    pub gram: &'a [f32],
    /// Sum of w (y - q), `d`.
    pub y: &'a [f32],
    /// `(X - 1 p^T)^T diag(w) (Y - 1 q^T)`, `n x d`, row-major.
    pub cross: &'a [f32],
    /// Sum of w (y - q)^2, `d`.
    pub square: &'a [f32],
}

/// A regression about its means.
pub struct Normal {
    /// T: the sum of the weights.
    pub total: f64,
    /// Mean of X; zeros where there is no intercept.
    pub mean_x: Vec<f64>,
    /// Mean of Y; zeros where there is no intercept.
    pub mean_y: Vec<f64>,
    /// `X^T X` about the means, `n x n`.
    pub sigma: Mat<f64>,
    /// `X^T Y` about the means, `n x d`.
    pub cross: Mat<f64>,
    /// The sum of the squares of each column of Y about its mean.
    pub energy: Vec<f64>,
}

impl Regression {
    /// Nothing yet.
    pub fn new(n: usize, d: usize) -> Self {
        Self {
            x: SiteStatistics::new(n),
            pilot: vec![0.0; d],
            shifted_sum: vec![0.0; d],
            cross: Mat::zeros(n, d),
            square: vec![0.0; d],
        }
    }

    /// The number of rows.
    pub fn tokens(&self) -> u64 {
        self.x.tokens()
    }

    /// Adds rows of X and Y (row-major) with their weights.
    pub fn add(&mut self, x: &[f32], y: &[f32], weights: &[f32]) {
        let (n, d, rows) = (self.x.width(), self.pilot.len(), weights.len());
        if rows == 0 {
            return;
        }
        if self.x.total() == 0.0 {
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (j, pilot) in self.pilot.iter_mut().enumerate() {
                let column = y.iter().skip(j).step_by(d).zip(weights);
                let sum: f64 = column.map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
                *pilot = f64::from((sum / total.max(f64::MIN_POSITIVE)) as f32);
            }
        }
        self.x.add(x, rows, Some(weights));
        let (p, _) = self.x.parts();
        let p: Vec<f32> = p.iter().map(|p| *p as f32).collect();
        let q: Vec<f32> = self.pilot.iter().map(|q| *q as f32).collect();
        let rows_of = |out: &mut Vec<f32>, from: &[f32], pilot: &[f32], weigh: bool| {
            let width = pilot.len().max(1);
            out.resize(rows * pilot.len(), 0.0);
            let own = out.par_chunks_exact_mut(width).zip(from.par_chunks_exact(width));
            own.zip(weights).for_each(|((out, from), w)| {
                let w = if weigh { *w } else { 1.0 };
                for ((out, from), pilot) in out.iter_mut().zip(from).zip(pilot) {
                    *out = w * (from - pilot);
                }
            });
        };
        let (mut weighted, mut shifted) = (Vec::new(), Vec::new());
        rows_of(&mut weighted, x, &p, true);
        rows_of(&mut shifted, y, &q, false);
        let sums = self.shifted_sum.par_chunks_mut(PANEL);
        sums.zip(self.square.par_chunks_mut(PANEL))
            .enumerate()
            .for_each(|(at, (sums, squares))| {
                for (row, w) in shifted.chunks_exact(d.max(1)).zip(weights) {
                    let (w, own) = (f64::from(*w), row.get(at * PANEL..).unwrap_or_default());
                    for ((sum, square), y) in sums.iter_mut().zip(squares.iter_mut()).zip(own) {
                        *sum += w * f64::from(*y);
                        *square += w * f64::from(*y) * f64::from(*y);
                    }
                }
            });
        let mut product = Mat::<f32>::zeros(n, d);
        matmul(
            product.as_mut(),
            Accum::Replace,
            MatRef::from_row_major_slice(&weighted, rows, n).transpose(),
            MatRef::from_row_major_slice(&shifted, rows, d),
            1.0,
            linalg::par(),
        );
        for (sums, product) in self.cross.col_iter_mut().zip(product.col_iter()) {
            for (sum, p) in sums.iter_mut().zip(product.iter()) {
                *sum += f64::from(*p);
            }
        }
    }

    /// p and q, once rows were added.
    pub fn pilots(&self) -> (&[f64], &[f64]) {
        (self.x.parts().0, &self.pilot)
    }

    /// Adds sums about these pilots.
    pub fn add_sums(&mut self, sums: &RegressionSums) {
        self.x.add_sums(sums.tokens, sums.total, sums.x, sums.gram);
        let add = |own: &mut [f64], more: &[f32]| {
            own.iter_mut()
                .zip(more)
                .for_each(|(sum, s)| *sum += f64::from(*s));
        };
        add(&mut self.shifted_sum, sums.y);
        add(&mut self.square, sums.square);
        let d = self.pilot.len();
        for (j, column) in self.cross.col_iter_mut().enumerate() {
            let more = sums.cross.iter().skip(j).step_by(d.max(1));
            column
                .iter_mut()
                .zip(more)
                .for_each(|(sum, s)| *sum += f64::from(*s));
        }
    }

    /// Adds the rows of another one.
    ///
    /// # Errors
    /// Other sizes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.x.total() == 0.0 {
            return Ok(());
        }
        if self.x.total() == 0.0 {
            self.clone_from(other);
            return Ok(());
        }
        if other.pilot.len() != self.pilot.len() {
            return Err(Error::input("regressions of different widths cannot be merged"));
        }
        // x - p = (x - p') + a, y - q = (y - q') + b.
        let (p, _) = self.x.parts();
        let (own, sum) = other.x.parts();
        let a: Vec<f64> = own.iter().zip(p).map(|(o, p)| o - p).collect();
        let b: Vec<f64> = other.pilot.iter().zip(&self.pilot).map(|(o, q)| o - q).collect();
        let t = other.x.total();
        for (j, (b, s)) in b.iter().zip(&other.shifted_sum).enumerate() {
            for (i, a) in a.iter().enumerate() {
                self.cross[(i, j)] += other.cross[(i, j)] + sum[i] * b + a * s + t * a * b;
            }
        }
        for (j, b) in b.iter().enumerate() {
            let s = other.shifted_sum[j];
            self.square[j] += other.square[j] + 2.0 * b * s + t * b * b;
            self.shifted_sum[j] += s + t * b;
        }
        self.x.merge(&other.x)
    }

    /// The regression of `Y W + b` in place of Y: where Y is narrower than that,
    /// summing over its rows costs less.
    pub fn mapped(self, y: &SiteStatistics, weight: &Mat<f64>, bias: &[f64]) -> Self {
        let map = |v: &[f64], j: usize| -> f64 { weight.col(j).iter().zip(v).map(|(w, v)| w * v).sum() };
        let t = y.total();
        // About the mean of Y the sum of (y - mean) vanishes.
        let (mean, columns) = (y.mean(), 0..weight.ncols());
        let product = linalg::product(y.covariance().as_ref(), weight.as_ref());
        let square = |j: usize| map(product.col(j).try_as_col_major().map_or(&[], |c| c.as_slice()), j);
        // The cross sums are about the pilot q: those about the mean are less by
        // the sum of x - p times the mean of y - q.
        let (_, s) = self.x.parts();
        let mut cross = self.cross;
        for (column, u) in cross.col_iter_mut().zip(&self.shifted_sum) {
            let off = if t > 0.0 { u / t } else { 0.0 };
            column.iter_mut().zip(s).for_each(|(c, s)| *c -= s * off);
        }
        Self {
            x: self.x,
            pilot: columns.clone().map(|j| map(&mean, j) + bias[j]).collect(),
            shifted_sum: vec![0.0; weight.ncols()],
            cross: linalg::product(cross.as_ref(), weight.as_ref()),
            square: columns.map(square).collect(),
        }
    }

    /// The normal equations of some columns of Y; without an intercept nothing is
    /// taken off.
    pub fn normal(&self, columns: &[usize], intercept: bool) -> Normal {
        let t = self.x.total().max(f64::MIN_POSITIVE);
        let (p, s) = self.x.parts();
        let mut cross = linalg::select_columns(self.cross.as_ref(), columns);
        let mut energy: Vec<f64> = columns.iter().map(|&j| self.square[j]).collect();
        let own = cross.col_iter_mut().zip(&mut energy).zip(columns);
        for ((cross, energy), &column) in own {
            let (q, u) = (self.pilot[column], self.shifted_sum[column]);
            for (i, cross) in cross.iter_mut().enumerate() {
                *cross += if intercept {
                    -s[i] * u / t
                } else {
                    p[i] * u + s[i] * q + t * p[i] * q
                };
            }
            *energy += if intercept {
                -u * u / t
            } else {
                2.0 * q * u + t * q * q
            };
        }
        let mean_y = |&j: &usize| self.pilot[j] + self.shifted_sum[j] / t;
        Normal {
            total: t,
            mean_x: if intercept {
                self.x.mean()
            } else {
                vec![0.0; p.len()]
            },
            mean_y: columns
                .iter()
                .map(|j| if intercept { mean_y(j) } else { 0.0 })
                .collect(),
            sigma: if intercept {
                self.x.covariance()
            } else {
                self.x.gram()
            },
            cross,
            energy,
        }
    }
}

impl Normal {
    /// `(Sigma + lambda I)^-1 (X^T Y + lambda prior)`, with lambda = `ridge` x the
    /// mean diagonal.
    ///
    /// # Errors
    /// Sums that are no Gram matrix.
    pub fn solve(&self, prior: &Mat<f64>, ridge: f64) -> Result<Mat<f64>> {
        let n = self.sigma.nrows();
        let mut lambda = ridge * linalg::mean_diagonal(self.sigma.as_ref());
        if lambda <= 0.0 {
            lambda = 1.0;
        }
        let rows: Vec<usize> = (0..n).collect();
        let factor = Cholesky::new(self.sigma.as_ref(), &rows, lambda)?;
        let mut fitted = self.cross.clone();
        fitted += factor.ridge * prior;
        factor.solve_lower(fitted.as_mut());
        linalg::solve_transposed(factor.lower.as_ref(), fitted.as_mut());
        Ok(fitted)
    }

    /// The best intercept of given weights: `mean y - mean x W`.
    pub fn intercept(&self, weight: &Mat<f64>) -> Vec<f64> {
        let dot = |j: usize| -> f64 { weight.col(j).iter().zip(&self.mean_x).map(|(w, m)| w * m).sum() };
        self.mean_y.iter().enumerate().map(|(j, y)| y - dot(j)).collect()
    }

    /// `sum w |x W + b - y|^2` over the energy of y, for some ranges of columns.
    pub fn errors(&self, weight: &Mat<f64>, intercept: &[f64], ranges: &[Range<usize>]) -> Vec<f64> {
        let own = self.intercept(weight);
        let product = linalg::product(self.sigma.as_ref(), weight.as_ref());
        let error = |range: &Range<usize>| {
            let part = |m: &Mat<f64>| m.subcols(range.start, range.len()).to_owned();
            let (weight, product, cross) = (part(weight), part(&product), part(&self.cross));
            let off = range
                .clone()
                .map(|j| (own[j] - intercept[j]).powi(2))
                .sum::<f64>();
            let energy: f64 = self.energy[range.clone()].iter().sum();
            let square = linalg::inner(weight.as_ref(), product.as_ref());
            let cross = linalg::inner(weight.as_ref(), cross.as_ref());
            let error = (square - 2.0 * cross + energy).max(0.0) + self.total * off;
            error / energy.max(f64::MIN_POSITIVE)
        };
        ranges.iter().map(error).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(rows: usize, n: usize, d: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let noise = |i: usize| ((i * 7919 + 13) % 101) as f32 / 101.0 - 0.5;
        let x: Vec<f32> = (0..rows * n).map(|i| noise(i) + 3.0).collect();
        let mut y = Vec::new();
        for r in 0..rows {
            for j in 0..d {
                let dot: f32 = (0..n).map(|i| x[r * n + i] * ((i + 2 * j) % 5) as f32).sum();
                y.push(dot + 7.0 + j as f32);
            }
        }
        let w = (0..rows).map(|i| 0.5 + (i % 3) as f32).collect();
        (x, y, w)
    }

    #[test]
    fn what_is_linear_is_found_and_parts_add_up() {
        let (rows, n, d) = (120, 6, 3);
        let (x, y, w) = data(rows, n, d);
        let mut whole = Regression::new(n, d);
        whole.add(&x, &y, &w);
        let (mut a, mut b) = (Regression::new(n, d), Regression::new(n, d));
        a.add(&x[..50 * n], &y[..50 * d], &w[..50]);
        b.add(&x[50 * n..], &y[50 * d..], &w[50..]);
        a.merge(&b).unwrap();
        for regression in [whole, a] {
            let normal = regression.normal(&[0, 1, 2], true);
            let zero = Mat::zeros(n, d);
            let fitted = normal.solve(&zero, 1e-9).unwrap();
            for i in 0..n {
                for j in 0..d {
                    assert!((fitted[(i, j)] - ((i + 2 * j) % 5) as f64).abs() < 1e-2);
                }
            }
            let intercept = normal.intercept(&fitted);
            assert!((intercept[1] - 8.0).abs() < 0.1, "{intercept:?}");
            let all = [0..3, 1..2];
            assert!(normal.errors(&fitted, &intercept, &all).iter().all(|e| *e < 1e-4));
            let shifted: Vec<f64> = intercept.iter().map(|b| b + 1.0).collect();
            let off = normal.errors(&fitted, &shifted, &all);
            let energy: f64 = normal.energy.iter().sum();
            let (three, one) = (off[0] * energy, off[1] * normal.energy[1]);
            assert!((three / normal.total - d as f64).abs() < 1e-2, "{three}");
            assert!((one / normal.total - 1.0).abs() < 1e-2, "{one}");
            // Some columns alone are fitted as among all.
            let some = regression
                .normal(&[2, 0], true)
                .solve(&Mat::zeros(n, 2), 1e-9)
                .unwrap();
            assert!((some[(1, 0)] - fitted[(1, 2)]).abs() < 1e-9);
            // Without an intercept the energy is that of y itself.
            let plain = regression.normal(&[0, 1, 2], false);
            let direct: f64 = y
                .chunks(d)
                .zip(&w)
                .map(|(y, w)| f64::from(*w) * y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
                .sum();
            assert!((plain.energy.iter().sum::<f64>() - direct).abs() < 1e-4 * direct);
            assert!((plain.errors(&zero, &[0.0; 3], std::slice::from_ref(&(0..3)))[0] - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn sums_over_a_narrow_target_may_be_mapped() {
        let (rows, n, k, d) = (90, 5, 4, 7);
        let (x, narrow, w) = data(rows, n, k);
        let weight = Mat::from_fn(k, d, |i, j| ((3 * i + j) % 7) as f64 / 7.0 - 0.4);
        let bias: Vec<f64> = (0..d).map(|j| j as f64 - 2.0).collect();
        let mut wide = Vec::new();
        for row in narrow.chunks(k) {
            wide.extend((0..d).map(|j| {
                let dot: f64 = (0..k).map(|i| f64::from(row[i]) * weight[(i, j)]).sum();
                (dot + bias[j]) as f32
            }));
        }
        let (mut direct, mut short) = (Regression::new(n, d), Regression::new(n, k));
        let mut y = SiteStatistics::new(k);
        for part in [0..40, 40..rows] {
            let of = |v: &[f32], width: usize| v[part.start * width..part.end * width].to_vec();
            direct.add(&of(&x, n), &of(&wide, d), &w[part.clone()]);
            short.add(&of(&x, n), &of(&narrow, k), &w[part.clone()]);
            y.add(&of(&narrow, k), part.len(), Some(&w[part.clone()]));
        }
        let mapped = short.mapped(&y, &weight, &bias);
        let columns: Vec<usize> = (0..d).collect();
        for intercept in [true, false] {
            let (a, b) = (
                direct.normal(&columns, intercept),
                mapped.normal(&columns, intercept),
            );
            let size = a.cross.norm_max();
            assert!((&a.cross - &b.cross).norm_max() < 1e-5 * size);
            for (x, y) in a
                .energy
                .iter()
                .zip(&b.energy)
                .chain(a.mean_y.iter().zip(&b.mean_y))
            {
                assert!((x - y).abs() < 1e-4 * x.abs().max(1e-3), "{x} {y}");
            }
        }
    }

    #[test]
    fn a_large_ridge_gives_the_prior() {
        let (x, y, w) = data(40, 4, 2);
        let mut regression = Regression::new(4, 2);
        regression.add(&x, &y, &w);
        let prior = Mat::from_fn(4, 2, |i, j| (i + j) as f64);
        let fitted = regression.normal(&[0, 1], true).solve(&prior, 1e9).unwrap();
        assert!((fitted[(3, 1)] - 4.0).abs() < 1e-4);
    }
}
