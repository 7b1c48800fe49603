//! Local re-fits of one site at many levels of one order, from one factor.

use faer::Mat;

use super::local::{WeightChange, covariance};
use super::{Refit, relative};
use crate::error::{Error, Result};
use crate::numerics::linalg::{self, Cholesky};
use crate::numerics::score::{ScoredSite, check_damp};

/// What all levels of an order share: with the rows in reverse order of
/// elimination and `H = L L^T`, each kept set is a leading block of H and L, and
/// its re-fit is `L_SS^-T y_S` with `y = L^T W`. A level then costs one
/// triangular solve instead of a factor and a product.
pub struct Levels<'a> {
    site: ScoredSite<'a>,
    with_bias: bool,
    factor: Cholesky,
    /// `L^T W`.
    y: Mat<f64>,
    /// The rows of W, last removed first.
    rows: Vec<usize>,
    /// How many of them are left after each removal.
    left: Vec<usize>,
    /// `|X_R W_R|^2` after each removal.
    dropped: Vec<f64>,
    energy: f64,
}

impl<'a> Levels<'a> {
    /// Prepares the levels of `order` (units, first removed first); the other
    /// arguments are those of [`local`](super::local()).
    ///
    /// # Errors
    /// Bad statistics, or an `order` that is no permutation of the units.
    pub fn new(site: &ScoredSite<'a>, order: &[usize], damp: f64, with_bias: bool) -> Result<Self> {
        site.check()?;
        check_damp(damp)?;
        site.units.check_order(order)?;
        let units = &site.units.rows;
        let rows: Vec<usize> = order
            .iter()
            .rev()
            .flat_map(|&u| units[u].iter().copied())
            .collect();
        let mut left = vec![rows.len()];
        for &unit in order {
            left.push(left[left.len() - 1] - units[unit].len());
        }
        let sigma = covariance(site, with_bias);
        let lambda = ScoredSite {
            sigma: &sigma,
            ..site.clone()
        }
        .ridge(damp);
        let factor = Cholesky::new(sigma.as_ref().as_ref(), &rows, lambda)?;
        let weight = linalg::select_rows(site.weight.as_ref(), &rows);
        let y = factor.upper_times(weight.as_ref());
        let whole = linalg::inner(y.as_ref(), y.as_ref());
        let size = linalg::inner(weight.as_ref(), weight.as_ref());
        let energy = whole - factor.ridge * size;
        Ok(Self {
            dropped: dropped(site, &rows, &left, &weight),
            energy,
            site: site.clone(),
            with_bias,
            factor,
            y,
            rows,
            left,
        })
    }

    /// The re-fit after the first `removed` units of the order are gone, its
    /// rows ascending.
    ///
    /// # Errors
    /// When there are fewer units than that.
    pub fn at(&self, removed: usize) -> Result<Refit> {
        let (Some(&left), Some(&dropped)) = (self.left.get(removed), self.dropped.get(removed)) else {
            return Err(Error::input(format!(
                "cannot remove {removed} of {} units",
                self.left.len() - 1
            )));
        };
        let mut fitted = self.y.as_ref().subrows(0, left).to_owned();
        let lower = self.factor.lower.as_ref().submatrix(0, 0, left, left);
        linalg::solve_transposed(lower, fitted.as_mut());
        let gone = self.y.as_ref().subrows(left, self.rows.len() - left);
        let change = WeightChange::new(self.site.weight, self.site.mean, &self.rows[..left], &fitted);
        let after = linalg::inner(gone, gone) - self.factor.ridge * change.square;

        let mut ascending: Vec<usize> = (0..left).collect();
        ascending.sort_unstable_by_key(|&i| self.rows[i]);
        Ok(Refit {
            weight: linalg::select_rows(fitted.as_ref(), &ascending),
            bias_shift: self.with_bias.then_some(change.shift),
            error_before: relative(dropped, self.energy),
            error_after: relative(after, self.energy),
        })
    }
}

/// `|X_R W_R|^2` for the removed rows after each removal: the sums of
/// `(X^T X) * (W W^T)`, elementwise, over trailing blocks.
fn dropped(site: &ScoredSite, rows: &[usize], left: &[usize], weight: &Mat<f64>) -> Vec<f64> {
    let products = linalg::outer(weight.as_ref());
    let entry = |i: usize, j: usize| {
        let gram = site.sigma[(rows[i], rows[j])] + site.tokens * site.mean[rows[i]] * site.mean[rows[j]];
        gram * products[(i, j)]
    };
    // What row j adds to the block of the rows after it, from the last on.
    let n = rows.len();
    let mut block = vec![0.0; n + 1];
    for j in (0..n).rev() {
        let below: f64 = (j + 1..n).map(|i| entry(i, j)).sum();
        block[j] = block[j + 1] + entry(j, j) + 2.0 * below;
    }
    left.iter().map(|&left| block[left]).collect()
}
