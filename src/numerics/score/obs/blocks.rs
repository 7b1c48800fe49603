//! Scores of units of several rows.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use super::elimination::Elimination;
use crate::numerics::linalg;
use crate::numerics::score::site::Units;

/// `Z_uu` of each unit that is left, kept current.
pub(super) struct Blocks<'a> {
    units: &'a Units,
    /// None once the unit is removed.
    z: Vec<Option<Mat<f32>>>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(state: &Elimination, units: &'a Units) -> Self {
        let z = units
            .rows
            .iter()
            .map(|rows| Some(state.z_at_start(rows)))
            .collect();
        Self { units, z }
    }

    /// The unit with the least `tr(W_u^T Z_uu^-1 W_u)`.
    pub(super) fn cheapest(&self, state: &Elimination) -> Option<usize> {
        let scores: Vec<Option<f64>> = self
            .units
            .rows
            .par_iter()
            .zip(&self.z)
            .map(|(rows, z)| z.as_ref().map(|z| score(state, rows, z)))
            .collect();
        let live = scores
            .iter()
            .enumerate()
            .filter_map(|(u, score)| Some(((*score)?, u)));
        live.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, unit)| unit)
    }

    /// Follows the removal of `unit`, which had `rows` rows.
    pub(super) fn remove(&mut self, unit: usize, rows: usize, state: &Elimination) {
        self.z[unit] = None;
        self.z
            .par_iter_mut()
            .zip(&self.units.rows)
            .for_each(|(z, of_unit)| {
                if let Some(z) = z {
                    let v = state.last_v_of(rows, of_unit);
                    matmul(
                        z.as_mut(),
                        Accum::Add,
                        v.as_ref().transpose(),
                        v.as_ref(),
                        -1.0,
                        Par::Seq,
                    );
                }
            });
    }
}

fn score(state: &Elimination, rows: &[usize], z: &Mat<f32>) -> f64 {
    let mut lower = z.clone();
    // The floor as in the elimination: no pivot is under 1 but for rounding.
    linalg::factor_in_place(lower.as_mut(), Some(1.0), Par::Seq);
    let mut y = state.w_of(rows).transpose().to_owned();
    linalg::solve_lower_seq(lower.as_ref(), y.as_mut());
    y.col_iter()
        .map(|y| y.iter().map(|&y| f64::from(y * y)).sum::<f64>())
        .sum()
}
