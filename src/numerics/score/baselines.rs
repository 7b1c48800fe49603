//! The baselines users know: `magnitude` and `wanda`.

use faer::{Mat, RowRef};

use super::site::Units;
use crate::error::{Error, Result};

/// `magnitude`: the norm of each unit's rows of W (`n x d`).
///
/// # Errors
/// When the units do not fit the weight.
pub fn magnitude(weight: &Mat<f64>, units: &Units) -> Result<Vec<f64>> {
    score(weight, units, |row| square(weight.row(row)))
}

/// `wanda`: as [`magnitude`], with each row's norm times the norm of its
/// activation. `squares[i]` is the sum of `h_i^2` over samples and tokens.
///
/// # Errors
/// When units or activations do not fit the weight.
pub fn wanda(weight: &Mat<f64>, squares: &[f64], units: &Units) -> Result<Vec<f64>> {
    if squares.len() != weight.nrows() {
        return Err(Error::input(format!(
            "{} activation norms for a weight of {} rows",
            squares.len(),
            weight.nrows()
        )));
    }
    score(weight, units, |row| square(weight.row(row)) * squares[row])
}

fn score(weight: &Mat<f64>, units: &Units, squared: impl Fn(usize) -> f64) -> Result<Vec<f64>> {
    units.check(weight.nrows())?;
    let norm = |rows: &Vec<usize>| rows.iter().map(|&row| squared(row)).sum::<f64>().sqrt();
    Ok(units.rows.iter().map(norm).collect())
}

fn square(row: RowRef<'_, f64>) -> f64 {
    row.iter().map(|x| x * x).sum()
}
