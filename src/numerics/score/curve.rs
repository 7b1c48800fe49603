//! The order in which a site's units go, and what its output loses.

use faer::Mat;

use super::site::{ScoredSite, check_damp};
use crate::error::Result;
use crate::numerics::linalg::{self, Cholesky};

/// An order of elimination and the error after each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The units, first removed first.
    pub order: Vec<usize>,
    /// `error[k]`: squared error of the site's output after the first k units
    /// are gone and the others are re-fitted ([`crate::numerics::solve::local`]),
    /// relative to `tr(W^T Sigma W)`, the output's own energy. From 0 for none
    /// removed to 1 for all, never decreasing. All zero where the output is
    /// constant: the bias holds everything.
    pub error: Vec<f64>,
}

impl Curve {
    /// Which units are left after the first `removed` are gone.
    pub fn kept(&self, removed: usize) -> Vec<bool> {
        let mut kept = vec![true; self.order.len()];
        for &unit in self.order.iter().take(removed) {
            if let Some(keep) = kept.get_mut(unit) {
                *keep = false;
            }
        }
        kept
    }

    /// A curve from raw errors: relative to `energy`, from 0 to 1, isotonic.
    pub(super) fn new(order: Vec<usize>, mut error: Vec<f64>, energy: f64) -> Self {
        let mut least = 0.0;
        for value in &mut error {
            *value = if energy > 0.0 {
                (*value / energy).clamp(least, 1.0)
            } else {
                0.0
            };
            least = *value;
        }
        if let Some(first) = error.first_mut() {
            *first = 0.0;
        }
        if let (Some(last), true) = (error.last_mut(), energy > 0.0) {
            *last = 1.0;
        }
        Self { order, error }
    }
}

/// The order that removes the least score first; equal scores go by index.
pub fn order_of_scores(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order
}

/// The error curve of any given order under local re-fit with ridge `damp`:
/// what makes the methods that only rank units comparable.
///
/// All prefixes come out of one factor. Let the rows stand in reverse order of
/// elimination and `H = Sigma + lambda I = L L^T`; then each kept set is a
/// leading block, `H_SS = L_SS L_SS^T`, and with `y = L^T W` the least value of
/// the re-fit's objective, `tr(D^T Sigma D) + lambda |D|^2` for the change D of
/// the weights, is the sum of `|y_i|^2` over the removed rows. The first term is
/// the error that is asked for, and the second is `lambda` times the derivative
/// of the whole by lambda (envelope theorem): a second factor, and a central
/// difference, give it for all prefixes at once.
///
/// # Errors
/// Bad statistics, or an `order` that is no permutation of the units.
pub fn curve_of_order(site: &ScoredSite, order: &[usize], damp: f64) -> Result<Curve> {
    site.check()?;
    check_damp(damp)?;
    site.units.check_order(order)?;
    let units = &site.units.rows;
    let rows: Vec<usize> = order
        .iter()
        .rev()
        .flat_map(|&u| units[u].iter().copied())
        .collect();
    let weight = linalg::select_rows(site.weight.as_ref(), &rows);
    let lambda = site.ridge(damp);
    // The error of the difference is of second order in STEP, that of rounding
    // 1e-16 / STEP: both are far below what a curve is used for.
    const STEP: f64 = 1e-3;
    let (above, below, lambda) = around(lambda, STEP, |lambda| {
        objective(site, order, &rows, &weight, lambda)
    })?;
    let error: Vec<f64> = above
        .iter()
        .zip(&below)
        .map(|(above, below)| 0.5 * (above + below) - (above - below) / (2.0 * STEP))
        .collect();
    let whole = above.last().copied().unwrap_or(0.0);
    let energy = energy(site, lambda * (1.0 + STEP), whole);
    Ok(Curve::new(order.to_vec(), error, energy))
}

/// `tr(W^T Sigma W)` from `tr(W^T H W)`; 0 where nothing but rounding is left.
fn energy(site: &ScoredSite, lambda: f64, with_ridge: f64) -> f64 {
    let size = linalg::inner(site.weight.as_ref(), site.weight.as_ref());
    let energy = with_ridge - lambda * size;
    if energy > 1e-12 * with_ridge { energy } else { 0.0 }
}

/// The values of `f` at `lambda (1 + step)` and `lambda (1 - step)`, and lambda:
/// a larger one where `f` had to raise its own.
fn around(
    mut lambda: f64,
    step: f64,
    f: impl Fn(f64) -> Result<(Vec<f64>, f64)>,
) -> Result<(Vec<f64>, Vec<f64>, f64)> {
    loop {
        let (above, used) = f(lambda * (1.0 + step))?;
        if used == 0.0 {
            return Ok((above.clone(), above, lambda));
        }
        if used == lambda * (1.0 + step) {
            let asked = lambda * (1.0 - step);
            let (below, used) = f(asked)?;
            if used == asked {
                return Ok((above, below, lambda));
            }
        }
        lambda = 2.0 * used;
    }
}

/// The least `tr(D^T Sigma D) + lambda |D|^2` after each removal, and the lambda
/// that was used.
fn objective(
    site: &ScoredSite,
    order: &[usize],
    rows: &[usize],
    weight: &Mat<f64>,
    lambda: f64,
) -> Result<(Vec<f64>, f64)> {
    let factor = Cholesky::new(site.sigma.as_ref(), rows, lambda)?;
    let y = factor.upper_times(weight.as_ref());
    let mut lost = vec![0.0; rows.len()];
    for column in y.col_iter() {
        for (lost, y) in lost.iter_mut().zip(column.iter()) {
            *lost += y * y;
        }
    }
    let mut total = 0.0;
    let mut from_end = lost.iter().rev();
    let mut objective = Vec::with_capacity(order.len() + 1);
    objective.push(0.0);
    for &unit in order {
        for lost in from_end.by_ref().take(site.units.rows[unit].len()) {
            total += lost;
        }
        objective.push(total);
    }
    Ok((objective, factor.ridge))
}
