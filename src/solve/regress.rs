//! Least squares of one set of rows on another, from sums over blocks.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef};

use crate::calibrate::SiteStatistics;
use crate::linalg::{self, Cholesky};
use crate::{Error, Result};

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
    /// Sum of w |y - q|^2.
    square: f64,
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
    /// The sum of the squares of Y about its mean.
    pub energy: f64,
}

impl Regression {
    /// Nothing yet.
    pub fn new(n: usize, d: usize) -> Self {
        Self {
            x: SiteStatistics::new(n),
            pilot: vec![0.0; d],
            shifted_sum: vec![0.0; d],
            cross: Mat::zeros(n, d),
            square: 0.0,
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
        let (p, ..) = self.x.parts();
        let p: Vec<f32> = p.iter().map(|p| *p as f32).collect();
        let q: Vec<f32> = self.pilot.iter().map(|q| *q as f32).collect();
        let mut weighted = Vec::with_capacity(x.len());
        for (row, w) in x.chunks_exact(n.max(1)).zip(weights) {
            weighted.extend(row.iter().zip(&p).map(|(x, p)| w * (x - p)));
        }
        let mut shifted = Vec::with_capacity(y.len());
        for (row, w) in y.chunks_exact(d.max(1)).zip(weights) {
            let from = shifted.len();
            shifted.extend(row.iter().zip(&q).map(|(y, q)| y - q));
            let w = f64::from(*w);
            for (sum, y) in self.shifted_sum.iter_mut().zip(&shifted[from..]) {
                *sum += w * f64::from(*y);
                self.square += w * f64::from(*y) * f64::from(*y);
            }
        }
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
        let (p, ..) = self.x.parts();
        let (own, sum, _) = other.x.parts();
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
            self.square += 2.0 * b * s + t * b * b;
            self.shifted_sum[j] += s + t * b;
        }
        self.square += other.square;
        self.x.merge(&other.x)
    }

    /// The normal equations; without an intercept nothing is taken off.
    pub fn normal(&self, intercept: bool) -> Normal {
        let t = self.x.total().max(f64::MIN_POSITIVE);
        let (p, s, _) = self.x.parts();
        let mut cross = self.cross.clone();
        let mut energy = self.square;
        if intercept {
            for j in 0..self.pilot.len() {
                for i in 0..p.len() {
                    cross[(i, j)] -= s[i] * self.shifted_sum[j] / t;
                }
            }
            energy -= self.shifted_sum.iter().map(|s| s * s).sum::<f64>() / t;
            let shifted = self.pilot.iter().zip(&self.shifted_sum);
            return Normal {
                total: t,
                mean_x: self.x.mean(),
                mean_y: shifted.map(|(q, s)| q + s / t).collect(),
                sigma: self.x.covariance(),
                cross,
                energy,
            };
        }
        for j in 0..self.pilot.len() {
            let (q, u) = (self.pilot[j], self.shifted_sum[j]);
            for i in 0..p.len() {
                cross[(i, j)] += p[i] * u + s[i] * q + t * p[i] * q;
            }
            energy += 2.0 * q * u + t * q * q;
        }
        Normal {
            total: t,
            mean_x: vec![0.0; p.len()],
            mean_y: vec![0.0; self.pilot.len()],
            sigma: self.x.gram(),
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

    /// `sum w |x W + b - y|^2` over the energy of y.
    pub fn error(&self, weight: &Mat<f64>, intercept: &[f64]) -> f64 {
        let own = self.intercept(weight);
        let off: f64 = own.iter().zip(intercept).map(|(a, b)| (a - b) * (a - b)).sum();
        let product = linalg::product(self.sigma.as_ref(), weight.as_ref());
        let square = linalg::inner(weight.as_ref(), product.as_ref());
        let cross = linalg::inner(weight.as_ref(), self.cross.as_ref());
        let error = (square - 2.0 * cross + self.energy).max(0.0) + self.total * off;
        error / self.energy.max(f64::MIN_POSITIVE)
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
            let normal = regression.normal(true);
            let zero = Mat::zeros(n, d);
            let fitted = normal.solve(&zero, 1e-9).unwrap();
            for i in 0..n {
                for j in 0..d {
                    assert!((fitted[(i, j)] - ((i + 2 * j) % 5) as f64).abs() < 1e-2);
                }
            }
            let intercept = normal.intercept(&fitted);
            assert!((intercept[1] - 8.0).abs() < 0.1, "{intercept:?}");
            assert!(normal.error(&fitted, &intercept) < 1e-4);
            let shifted: Vec<f64> = intercept.iter().map(|b| b + 1.0).collect();
            let off = normal.error(&fitted, &shifted) * normal.energy / normal.total;
            assert!((off - d as f64).abs() < 1e-2, "{off}");
            // Without an intercept the energy is that of y itself.
            let plain = regression.normal(false);
            let direct: f64 = y
                .chunks(d)
                .zip(&w)
                .map(|(y, w)| f64::from(*w) * y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
                .sum();
            assert!((plain.energy - direct).abs() < 1e-4 * direct);
            assert!((plain.error(&zero, &[0.0; 3]) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_large_ridge_gives_the_prior() {
        let (x, y, w) = data(40, 4, 2);
        let mut regression = Regression::new(4, 2);
        regression.add(&x, &y, &w);
        let prior = Mat::from_fn(4, 2, |i, j| (i + j) as f64);
        let fitted = regression.normal(true).solve(&prior, 1e9).unwrap();
        assert!((fitted[(3, 1)] - 4.0).abs() < 1e-4);
    }
}
