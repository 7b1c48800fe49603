//! Additive statistics of the input of a site.
//!
//! With X the T x n matrix of a site's inputs over T real tokens, ranking and
//! re-fitting need T, the mean mu of its rows, G = X^T X and
//! Sigma = G - T mu mu^T. Activations have means much larger than their
//! deviations, so G and Sigma are kept about a *pilot* p, the mean of the first
//! rows: with Y = X - 1 p^T, S = Y^T Y and s = Y^T 1,
//!
//! ```text
//! mu    = p + s / T
//! Sigma = S - s s^T / T
//! G     = S + p s^T + s p^T + T p p^T
//! ```
//!
//! No large numbers cancel in Sigma, so that S can be summed in float32 over a
//! block of rows, at the speed of a matrix product, and in float64 over blocks.
//!
//! Rows may count more or less than once: with weights w, T is their sum,
//! s = Y^T w and S = Y^T diag(w) Y.

use std::borrow::Cow;
use std::collections::BTreeMap;

use faer::{Mat, MatMut};
use rayon::prelude::*;

use super::products::{Products, triangle};
use crate::error::{Error, Result, ResultExt};
use crate::numerics::linalg::padded;

/// Rows whose products are summed in float32.
pub(crate) const BLOCK: usize = 1024;

/// Columns that one task sums.
const PANEL: usize = 192;

/// Token count, sum and Gram matrix of one site's input X (T x n).
#[derive(Debug, Clone, PartialEq)]
pub struct SiteStatistics {
    width: usize,
    tokens: u64,
    /// T: the sum of the weights of the tokens; their number without weights.
    total: f64,
    /// p: values that float32 holds exactly, so that x - p is rounded once.
    pilot: Vec<f64>,
    /// s, the sum of x - p.
    shifted_sum: Vec<f64>,
    /// S.
    products: Products,
}

impl SiteStatistics {
    /// Nothing yet, of a site with `n` inputs.
    pub fn new(n: usize) -> Self {
        Self::with(n, Products::new(n, false))
    }

    /// The same, but while there are fewer tokens than inputs these are kept instead
    /// of their products: less memory, and more time for each matrix that is asked
    /// for.
    pub fn sparing(n: usize) -> Self {
        Self::with(n, Products::new(n, true))
    }

    fn with(n: usize, products: Products) -> Self {
        Self {
            width: n,
            tokens: 0,
            total: 0.0,
            pilot: vec![0.0; n],
            shifted_sum: vec![0.0; n],
            products,
        }
    }

    /// From stored parts; an error when their sizes do not agree.
    pub(crate) fn from_parts(
        tokens: u64,
        total: f64,
        pilot: Vec<f64>,
        shifted_sum: Vec<f64>,
        shifted_gram: Vec<f64>,
    ) -> Result<Self> {
        let width = pilot.len();
        let size = width
            .checked_add(1)
            .and_then(|m| m.checked_mul(width))
            .map(|m| m / 2);
        if shifted_sum.len() != width || Some(shifted_gram.len()) != size {
            return Err(Error::input("the sizes of the statistics do not agree"));
        }
        let statistics = Self {
            width,
            tokens,
            total,
            pilot,
            shifted_sum,
            products: Products::of(width, shifted_gram),
        };
        if !(statistics.is_finite() && total.is_finite() && total >= 0.0) {
            return Err(Error::input("the statistics hold NaN or infinite values"));
        }
        Ok(statistics)
    }

    /// p and s.
    pub(crate) fn parts(&self) -> (&[f64], &[f64]) {
        (&self.pilot, &self.shifted_sum)
    }

    /// The lower triangle of S by columns: column j holds rows j to n - 1.
    pub(crate) fn packed(&self) -> Cow<'_, [f64]> {
        self.products.packed()
    }

    /// Entries of [`SiteStatistics::packed`].
    pub(crate) fn packed_len(&self) -> usize {
        triangle(self.width)
    }

    /// n, the number of inputs.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of tokens (rows of X) added so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// T: the sum of their weights, which is their number where all count alike.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// Whether all sums are finite.
    pub fn is_finite(&self) -> bool {
        let sums = self.pilot.iter().chain(&self.shifted_sum);
        sums.into_iter().all(|x| x.is_finite()) && self.products.is_finite()
    }

    /// Adds the rows of `x` (`rows` x n, row-major), each as often as `weights`
    /// says, once without it. The first call sets the pilot. Uses all threads of
    /// rayon's pool; the result does not depend on their number.
    pub fn add(&mut self, x: &[f32], rows: usize, weights: Option<&[f32]>) {
        let n = self.width;
        let rows = x.len().checked_div(n).map_or(rows, |there| rows.min(there));
        let weight = |row: usize| weights.map_or(1.0, |w| w.get(row).copied().unwrap_or(0.0));
        self.tokens += (0..rows).filter(|&row| weight(row) > 0.0).count() as u64;
        let total: f64 = (0..rows).map(|row| f64::from(weight(row))).sum();
        let first = self.total == 0.0;
        self.total += total;
        if n == 0 || total == 0.0 {
            return;
        }
        if first {
            self.set_pilot(x, rows, total, weight);
        }
        let rows: Vec<(&[f32], f32)> = (x.chunks_exact(n).take(rows).enumerate())
            .map(|(row, values)| (values, weight(row)))
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        for block in rows.chunks(BLOCK) {
            self.add_block(block);
        }
    }

    fn set_pilot(&mut self, x: &[f32], rows: usize, total: f64, weight: impl Fn(usize) -> f32) {
        let mut sum = vec![0.0f64; self.width];
        for (row, values) in x.chunks_exact(self.width).take(rows).enumerate() {
            let weight = f64::from(weight(row));
            if weight == 0.0 {
                continue;
            }
            for (sum, &x) in sum.iter_mut().zip(values) {
                *sum += weight * f64::from(x);
            }
        }
        let mean = |sum: f64| f64::from((sum / total) as f32);
        self.pilot = sum.into_iter().map(mean).collect();
    }

    /// Adds a block of at most [`BLOCK`] rows.
    fn add_block(&mut self, x: &[(&[f32], f32)]) {
        let n = self.width;
        let mut y = vec![0.0f32; x.len() * padded(n)];
        y.par_chunks_exact_mut(padded(n))
            .zip(x)
            .for_each(|(y, (x, weight))| {
                let root = weight.sqrt();
                for ((y, x), &p) in y.iter_mut().zip(*x).zip(&self.pilot) {
                    *y = root * (x - p as f32);
                }
            });
        // The sum is exact in float64, unlike the differences in y.
        let columns = self.shifted_sum.par_chunks_mut(PANEL);
        columns
            .zip(self.pilot.par_chunks(PANEL))
            .enumerate()
            .for_each(|(at, (sums, pilot))| {
                for (x, weight) in x {
                    let weight = f64::from(*weight);
                    let x = x.get(at * PANEL..).unwrap_or_default();
                    for ((sum, &x), p) in sums.iter_mut().zip(x).zip(pilot) {
                        *sum += weight * (f64::from(x) - p);
                    }
                }
            });
        self.products.add(y);
    }

    /// Adds sums about this pilot that were made elsewhere: of `tokens` rows that
    /// count `total`, s (`n`) and S (`n x n`, symmetric). Nothing where these are of
    /// other sizes.
    pub(crate) fn add_sums(&mut self, tokens: u64, total: f64, s: &[f32], gram: &[f32]) {
        let n = self.width;
        if s.len() != n || gram.len() != n * n {
            return;
        }
        self.tokens += tokens;
        self.total += total;
        for (sum, s) in self.shifted_sum.iter_mut().zip(s) {
            *sum += f64::from(*s);
        }
        let mut columns = self.products.settled();
        for (j, row) in gram.chunks_exact(n.max(1)).enumerate() {
            let (sums, rest) = columns.split_at_mut(n - j);
            sums.iter_mut()
                .zip(&row[j..])
                .for_each(|(sum, g)| *sum += f64::from(*g));
            columns = rest;
        }
    }

    /// Adds the tokens of `other`. The pilot stays this one's, unless there are
    /// no tokens yet.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.width != other.width {
            return Err(Error::input(format!(
                "statistics of {} and of {} inputs cannot be merged",
                self.width, other.width
            )));
        }
        if other.total == 0.0 {
            return Ok(());
        }
        if self.total == 0.0 {
            self.clone_from(other);
            return Ok(());
        }
        // With d = q - p: x - p = (x - q) + d, so
        // S_p = S_q + s_q d^T + d s_q^T + T d d^T and s_p = s_q + T d.
        let t = other.total;
        let d: Vec<f64> = other.pilot.iter().zip(&self.pilot).map(|(q, p)| q - p).collect();
        let s = &other.shifted_sum;
        let theirs = other.products.packed();
        let mut columns = self.products.settled().iter_mut().zip(theirs.iter());
        for j in 0..self.width {
            for ((sum, &g), i) in columns.by_ref().take(self.width - j).zip(j..) {
                *sum += g + s[i] * d[j] + d[i] * s[j] + t * d[i] * d[j];
            }
        }
        for (sum, (s, d)) in self.shifted_sum.iter_mut().zip(s.iter().zip(&d)) {
            *sum += s + t * d;
        }
        // A stored number may be anything.
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.total += other.total;
        Ok(())
    }

    /// The statistics of `X P`, of `columns` inputs; `times` multiplies a matrix of this
    /// one's width by P.
    ///
    /// # Errors
    /// Values that overflow.
    pub(crate) fn mapped(&self, columns: usize, times: &dyn Fn(&Mat<f64>) -> Mat<f64>) -> Result<Self> {
        let n = self.width;
        let vector = |v: &[f64]| {
            let row = times(&Mat::from_fn(1, n, |_, j| v[j]));
            (0..columns).map(|j| row[(0, j)]).collect::<Vec<f64>>()
        };
        let half = times(&self.symmetric(|g, _, _| g));
        let whole = times(&half.transpose().to_owned());
        let packed = (0..columns).flat_map(|j| (j..columns).map(move |i| (i, j)));
        let sums = packed.map(|at| whole[at]).collect();
        Self::from_parts(
            self.tokens,
            self.total,
            vector(&self.pilot),
            vector(&self.shifted_sum),
            sums,
        )
    }

    /// T, or 1 where there are no tokens.
    fn divisor(&self) -> f64 {
        if self.total > 0.0 { self.total } else { 1.0 }
    }

    /// mu, the mean of x; zeros without tokens.
    pub fn mean(&self) -> Vec<f64> {
        let t = self.divisor();
        self.pilot
            .iter()
            .zip(&self.shifted_sum)
            .map(|(p, s)| p + s / t)
            .collect()
    }

    /// The sum of x.
    pub fn sum(&self) -> Vec<f64> {
        let t = self.total;
        self.pilot
            .iter()
            .zip(&self.shifted_sum)
            .map(|(p, s)| t * p + s)
            .collect()
    }

    /// G = X^T X (n x n, symmetric).
    pub fn gram(&self) -> Mat<f64> {
        let (p, s, t) = (&self.pilot, &self.shifted_sum, self.total);
        self.symmetric(|g, i, j| g + p[i] * s[j] + s[i] * p[j] + t * p[i] * p[j])
    }

    /// Sigma = G - T mu mu^T (n x n, symmetric; not divided by T).
    pub fn covariance(&self) -> Mat<f64> {
        let (s, t) = (&self.shifted_sum, self.divisor());
        self.symmetric(|g, i, j| g - s[i] * s[j] / t)
    }

    /// Sigma and mu of a sink with a bias; without one, which could not take up the mean,
    /// G and zeros.
    pub fn moments(&self, with_bias: bool) -> (Mat<f64>, Vec<f64>) {
        match with_bias {
            true => (self.covariance(), self.mean()),
            false => (self.gram(), vec![0.0; self.width]),
        }
    }

    /// The sums of x_i^2: the diagonal of G.
    pub fn squares(&self) -> Vec<f64> {
        let own = self.products.squares();
        let shifts = self.pilot.iter().zip(&self.shifted_sum);
        own.iter()
            .zip(shifts)
            .map(|(g, (p, s))| g + 2.0 * p * s + self.total * p * p)
            .collect()
    }

    /// A symmetric matrix from the entries of S.
    fn symmetric(&self, entry: impl Fn(f64, usize, usize) -> f64) -> Mat<f64> {
        let n = self.width;
        let mut full = Mat::zeros(n, n);
        let packed = self.products.packed();
        let mut packed = packed.iter();
        for j in 0..n {
            for (i, &g) in (j..n).zip(packed.by_ref()) {
                full[(i, j)] = entry(g, i, j);
            }
        }
        mirror(full.as_mut());
        full
    }
}

/// Copies the lower triangle to the upper one, a tile at a time.
fn mirror(mut full: MatMut<'_, f64>) {
    const TILE: usize = 64;
    let n = full.nrows();
    for column in (0..n).step_by(TILE) {
        for row in (column..n).step_by(TILE) {
            for j in column..(column + TILE).min(n) {
                for i in row.max(j + 1)..(row + TILE).min(n) {
                    full[(j, i)] = full[(i, j)];
                }
            }
        }
    }
}

/// Statistics by site, with others in place of some.
#[derive(Clone, Copy)]
pub struct Sums<'a> {
    all: &'a BTreeMap<String, SiteStatistics>,
    instead: Option<&'a BTreeMap<String, SiteStatistics>>,
}

impl<'a> Sums<'a> {
    /// Those of a site.
    pub fn get(self, site: &str) -> Option<&'a SiteStatistics> {
        let instead = self.instead.and_then(|instead| instead.get(site));
        instead.or_else(|| self.all.get(site))
    }
}

impl<'a> From<&'a Statistics> for Sums<'a> {
    fn from(statistics: &'a Statistics) -> Self {
        Sums {
            all: &statistics.sites,
            instead: None,
        }
    }
}

impl<'a> From<(&'a Statistics, &'a BTreeMap<String, SiteStatistics>)> for Sums<'a> {
    fn from((statistics, instead): (&'a Statistics, &'a BTreeMap<String, SiteStatistics>)) -> Self {
        Sums {
            all: &statistics.sites,
            instead: Some(instead),
        }
    }
}

/// Statistics of all sites of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// By name of the site.
    pub sites: BTreeMap<String, SiteStatistics>,
    /// The number of samples.
    pub samples: usize,
    /// The number of real token positions of the inputs (of samples, for models
    /// without tokens).
    pub tokens: u64,
}

impl Statistics {
    /// Adds those of other samples of the same model.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if !self.sites.keys().eq(other.sites.keys()) {
            let differ = (self.sites.keys().find(|k| !other.sites.contains_key(*k)))
                .or_else(|| other.sites.keys().find(|k| !self.sites.contains_key(*k)));
            return Err(Error::input(format!(
                "statistics of different sites cannot be merged: only one has '{}'",
                differ.map_or("", String::as_str)
            )));
        }
        let widths = self.sites.values().zip(other.sites.values());
        if let Some((site, _)) = self
            .sites
            .keys()
            .zip(widths)
            .find(|(_, (a, b))| a.width() != b.width())
        {
            return Err(Error::input(format!(
                "statistics of different models cannot be merged: site '{site}' differs in width"
            )));
        }
        for ((site, own), theirs) in self.sites.iter_mut().zip(other.sites.values()) {
            own.merge(theirs).context(|| format!("site '{site}'"))?;
        }
        self.samples = self.samples.saturating_add(other.samples);
        self.tokens = self.tokens.saturating_add(other.tokens);
        Ok(())
    }
}
