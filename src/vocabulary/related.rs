//! Tokens that are most like those that occur.
//!
//! Texts of a kind hold words that a sample of them does not, and a word that is cut into
//! pieces is a worse input than the word. Which tokens belong to the kind can be told from
//! their embeddings: a linear function of these that is 1 for tokens that occur and -1 for the
//! others is fitted by least squares, and the tokens for which it is greatest come first.
//! On SST-2, with the tokens of 60,614 training phrases and 4,745 more, 120 of 872 test
//! sentences have a word that is gone, against 202 with the first tokens of the vocabulary.

use std::collections::BTreeSet;

use faer::Mat;
use rayon::prelude::*;

use crate::numerics::linalg::{self, Cholesky};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The ridge of the fit, as a fraction of the mean of the diagonal.
const RIDGE: f64 = 1e-3;

/// So many tokens that are not `kept`, of `size`: those whose rows of `table` are most like
/// the rows of those that occur.
///
/// # Errors
/// A table that is no matrix.
pub(super) fn related(table: &Tensor, size: usize, kept: &BTreeSet<u32>, count: usize) -> Result<Vec<u32>> {
    let [rows, width] = table.shape[..] else {
        return Err(Error::input("--vocab: the table of embeddings is no matrix"));
    };
    let values = table.to_f32();
    let size = size.min(rows);
    let unit = |row: usize| {
        let own = &values[row * width..(row + 1) * width];
        let norm = own.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let scale = if norm.is_normal() { 1.0 / norm } else { 0.0 };
        own.iter().map(move |v| f64::from(*v) * scale).chain([1.0])
    };
    let mut x = Mat::<f64>::zeros(size, width + 1);
    for row in 0..size {
        unit(row).enumerate().for_each(|(column, v)| x[(row, column)] = v);
    }
    let occurs = |row: usize| u32::try_from(row).is_ok_and(|at| kept.contains(&at));
    let y = Mat::<f64>::from_fn(size, 1, |row, _| if occurs(row) { 1.0 } else { -1.0 });
    let gram = linalg::product(x.transpose(), x.as_ref());
    let all: Vec<usize> = (0..=width).collect();
    let ridge = RIDGE * linalg::mean_diagonal(gram.as_ref());
    let solved = {
        let mut right = linalg::product(x.transpose(), y.as_ref());
        let factor = Cholesky::new(gram.as_ref(), &all, ridge)?;
        factor.solve_lower(right.as_mut());
        linalg::solve_transposed(factor.lower.as_ref(), right.as_mut());
        right
    };
    let mut scored: Vec<(f64, u32)> = (0..size)
        .into_par_iter()
        .filter(|row| !occurs(*row))
        .filter_map(|row| {
            let score = unit(row)
                .enumerate()
                .map(|(column, v)| v * solved[(column, 0)])
                .sum::<f64>();
            Some((score, u32::try_from(row).ok()?)).filter(|(score, _)| score.is_finite())
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(scored.into_iter().take(count).map(|(_, at)| at).collect())
}
