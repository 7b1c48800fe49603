//! Local reconstruction of one site from its own statistics.

use std::borrow::Cow;

use faer::Mat;

use super::{Refit, relative};
use crate::error::{Error, Result};
use crate::numerics::linalg::{self, Cholesky};
use crate::numerics::score::{ScoredSite, check_damp};

/// Re-fits the kept rows S: `W' = (Sigma_SS + lambda I)^-1 (Sigma_S: W + lambda
/// W_S)` and `b' = b + mu W - mu_S W'`, with `lambda = damp` x the mean diagonal
/// of Sigma. `keep_rows` ascends. No rows at all is a fit too: the bias alone.
///
/// Without a bias nothing absorbs the mean, and `G = X^T X` stands for Sigma
/// throughout.
///
/// # Errors
/// Bad statistics, or rows that do not ascend or do not exist.
pub fn local(site: &ScoredSite, keep_rows: &[usize], damp: f64, with_bias: bool) -> Result<Refit> {
    site.check()?;
    check_damp(damp)?;
    let n = site.weight.nrows();
    let ascending = keep_rows.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || keep_rows.last().is_some_and(|&last| last >= n) {
        return Err(Error::input(format!(
            "the kept rows must ascend and be below {n}, the rows of the weight"
        )));
    }
    let sigma = covariance(site, with_bias);
    let lambda = ScoredSite {
        sigma: &sigma,
        ..site.clone()
    }
    .ridge(damp);
    let factor = Cholesky::new(sigma.as_ref().as_ref(), keep_rows, lambda)?;
    let lambda = factor.ridge;

    let full = linalg::product(sigma.as_ref().as_ref(), site.weight.as_ref());
    let mut fitted = linalg::select_rows(full.as_ref(), keep_rows);
    fitted += lambda * linalg::select_rows(site.weight.as_ref(), keep_rows);
    factor.solve_lower(fitted.as_mut());
    let explained = linalg::inner(fitted.as_ref(), fitted.as_ref());
    linalg::solve_transposed(factor.lower.as_ref(), fitted.as_mut());

    let change = WeightChange::new(site.weight, site.mean, keep_rows, &fitted);
    let energy = linalg::inner(site.weight.as_ref(), full.as_ref());
    let size = linalg::inner(site.weight.as_ref(), site.weight.as_ref());
    // The least of tr(D^T Sigma D) + lambda |D|^2, less the second term.
    let after = energy + lambda * size - explained - lambda * change.square;
    Ok(Refit {
        weight: fitted,
        bias_shift: with_bias.then_some(change.shift),
        error_before: relative(dropped(site, keep_rows), energy),
        error_after: relative(after, energy),
    })
}

/// Re-fitted rows of `weight` that are known, with what the bias takes over of the
/// `mean` of the input; their errors are not.
pub fn known(weight: &Mat<f64>, mean: &[f64], rows: &[usize], fitted: Mat<f64>, with_bias: bool) -> Refit {
    let change = WeightChange::new(weight, mean, rows, &fitted);
    Refit {
        weight: fitted,
        bias_shift: with_bias.then_some(change.shift),
        error_before: 0.0,
        error_after: 0.0,
    }
}

/// Sigma for a site with a bias, `X^T X` for one without.
pub(super) fn covariance<'a>(site: &ScoredSite<'a>, with_bias: bool) -> Cow<'a, Mat<f64>> {
    if with_bias {
        Cow::Borrowed(site.sigma)
    } else {
        Cow::Owned(site.uncentred())
    }
}

/// The change `D = W - W'`, with `W' = 0` in the removed rows.
pub(super) struct WeightChange {
    /// `|D|^2`.
    pub(super) square: f64,
    /// `mu D`, what the bias takes over.
    pub(super) shift: Vec<f64>,
}

impl WeightChange {
    pub(super) fn new(weight: &Mat<f64>, mean: &[f64], rows: &[usize], fitted: &Mat<f64>) -> Self {
        let mut change = weight.clone();
        for (i, &row) in rows.iter().enumerate() {
            for j in 0..change.ncols() {
                change[(row, j)] -= fitted[(i, j)];
            }
        }
        let dot = |j: usize| change.col(j).iter().zip(mean).map(|(d, mu)| d * mu).sum();
        Self {
            square: linalg::inner(change.as_ref(), change.as_ref()),
            shift: (0..change.ncols()).map(dot).collect(),
        }
    }
}

/// `|X_R W_R|^2` for the removed rows R: what is lost when nothing is re-fitted.
fn dropped(site: &ScoredSite, keep_rows: &[usize]) -> f64 {
    let mut kept = keep_rows.iter().copied().peekable();
    let removed: Vec<usize> = (0..site.weight.nrows())
        .filter(|&row| kept.next_if_eq(&row).is_none())
        .collect();
    let gram = Mat::from_fn(removed.len(), removed.len(), |i, j| {
        let (i, j) = (removed[i], removed[j]);
        site.sigma[(i, j)] + site.tokens * site.mean[i] * site.mean[j]
    });
    let weight = linalg::select_rows(site.weight.as_ref(), &removed);
    linalg::inner(
        weight.as_ref(),
        linalg::product(gram.as_ref(), weight.as_ref()).as_ref(),
    )
}
