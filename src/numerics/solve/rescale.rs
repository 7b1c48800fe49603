//! One scalar per kept unit: the reconstruction of `kcm`.

use faer::Mat;

use super::{Refit, relative};
use crate::error::{Error, Result};
use crate::numerics::linalg::{self, Cholesky};
use crate::numerics::score::{ScoredSite, check_damp};

/// Rescales each kept unit by one scalar, by least squares against the unpruned
/// layer: the least `|X W - sum_u s_u X_u W_u|^2`, with normal equations
/// `A s = t`, `A_uv = tr(W_u^T G_uv W_v)`, `t_u = tr(W_u^T G_u: W)` and
/// `G = X^T X`. The bias stays as it is. `damp` adds a ridge towards `s = 1`, as
/// a fraction of the mean diagonal of A; 0 is the publication's plain fit.
///
/// `keep_units` ascends; the new rows are those of the kept units, ascending.
///
/// # Errors
/// Bad statistics, or units that do not ascend or do not exist.
pub fn rescale(site: &ScoredSite, keep_units: &[usize], damp: f64) -> Result<Refit> {
    site.check()?;
    check_damp(damp)?;
    let units = &site.units.rows;
    let mut kept = vec![false; units.len()];
    for &unit in keep_units {
        match kept.get_mut(unit) {
            Some(kept) if !*kept => *kept = true,
            _ => {
                return Err(Error::input(format!(
                    "the kept units must be different and below {}",
                    units.len()
                )));
            }
        }
    }
    // By pairs of units; energies with and without the mean.
    let (products, energy) = unit_products(site);
    let whole: f64 = products.col_iter().map(|column| column.iter().sum::<f64>()).sum();
    let target: Vec<f64> = keep_units
        .iter()
        .map(|&u| products.col(u).iter().sum::<f64>())
        .collect();
    let normal = Mat::from_fn(keep_units.len(), keep_units.len(), |i, j| {
        products[(keep_units[i], keep_units[j])]
    });
    let scales = solve(&normal, &target, damp)?;

    let quadratic = |s: &dyn Fn(usize) -> f64| {
        let mut error = whole;
        for i in 0..keep_units.len() {
            let row: f64 = (0..keep_units.len()).map(|j| normal[(i, j)] * s(j)).sum();
            error += s(i) * (row - 2.0 * target[i]);
        }
        relative(error, energy)
    };
    let error_before = quadratic(&|_| 1.0);
    let error_after = quadratic(&|i| scales[i]);

    let mut scale_of_row = vec![None; site.weight.nrows()];
    for (&unit, &scale) in keep_units.iter().zip(&scales) {
        for &row in &units[unit] {
            scale_of_row[row] = Some(scale);
        }
    }
    let rows: Vec<(usize, f64)> = (0..)
        .zip(scale_of_row)
        .filter_map(|(r, s)| Some((r, s?)))
        .collect();
    let weight = Mat::from_fn(rows.len(), site.weight.ncols(), |i, j| {
        let (row, scale) = rows[i];
        scale * site.weight[(row, j)]
    });
    Ok(Refit {
        weight,
        bias_shift: None,
        error_before,
        error_after,
    })
}

/// `tr(W_u^T G_uv W_v)` for all pairs of units, and `tr(W^T Sigma W)`.
fn unit_products(site: &ScoredSite) -> (Mat<f64>, f64) {
    let n = site.weight.nrows();
    let units = site.units.len();
    let mut unit_of_row = vec![0; n];
    for (unit, rows) in site.units.rows.iter().enumerate() {
        for &row in rows {
            unit_of_row[row] = unit;
        }
    }
    let outer = linalg::outer(site.weight.as_ref());
    let mut products = Mat::zeros(units, units);
    let mut energy = 0.0;
    for j in 0..n {
        for i in 0..n {
            let centred = site.sigma[(i, j)] * outer[(i, j)];
            let mean = site.tokens * site.mean[i] * site.mean[j] * outer[(i, j)];
            products[(unit_of_row[i], unit_of_row[j])] += centred + mean;
            energy += centred;
        }
    }
    (products, energy)
}

/// `(A + e I) s = t + e 1`, with e = `damp` x the mean diagonal.
fn solve(normal: &Mat<f64>, target: &[f64], damp: f64) -> Result<Vec<f64>> {
    let n = target.len();
    let scale = linalg::mean_diagonal(normal.as_ref());
    if scale <= 0.0 {
        // The kept units contribute nothing: any scalar is as good as another.
        return Ok(vec![1.0; n]);
    }
    let all: Vec<usize> = (0..n).collect();
    let factor = Cholesky::new(normal.as_ref(), &all, damp * scale)?;
    let mut s = Mat::from_fn(n, 1, |i, _| target[i] + factor.ridge);
    factor.solve_lower(s.as_mut());
    linalg::solve_transposed(factor.lower.as_ref(), s.as_mut());
    Ok((0..n).map(|i| s[(i, 0)]).collect())
}
