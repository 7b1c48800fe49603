//! The fits of the layers of one halt, with the ridge that samples kept apart choose.

use std::borrow::Cow;
use std::ops::Range;

use faer::Mat;
use rayon::prelude::*;

use super::schedule::FitLayer;
use super::sums::FitSums;
use crate::Result;
use crate::numerics::linalg;
use crate::numerics::solve::{Normal, Refit};
use crate::sites::layer::{Fit, TriedFit};

/// Ridges that are tried, as fractions of the mean variance.
const RIDGES: [f64; 2] = [0.2, 2.0];

/// Columns of a layer's output that the ridge is chosen by.
const JUDGED: usize = 128;

/// Consecutive ranges of these lengths.
fn ranges(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    lengths
        .map(|length| {
            end += length;
            end - length..end
        })
        .collect()
}

/// What was chosen for a layer.
#[derive(Clone, Default)]
pub(super) struct ChosenFit {
    /// A better fit than the prior, where there is one.
    pub(super) better: Option<Fit>,
    /// The errors by which it was chosen.
    pub(super) tried: Vec<TriedFit>,
}

/// Better fits than `priors` of the layers of a halt, where the samples kept apart say
/// so.
pub(super) fn fit(halt: &[FitLayer], sums: FitSums, priors: &[Cow<Fit>]) -> Result<Vec<ChosenFit>> {
    let intercept = halt[0].part.has_bias();
    let biased = |normal: &Normal, weight: &Mat<f64>| {
        if intercept {
            normal.intercept(weight)
        } else {
            vec![0.0; weight.ncols()]
        }
    };
    // The columns of each layer among those of all, and some of them to judge by.
    let all = ranges(halt.iter().map(|s| s.part.matrix.ncols()));
    let some = |range: &Range<usize>| -> Vec<usize> {
        range
            .clone()
            .step_by(range.len().div_ceil(JUDGED).max(1))
            .collect()
    };
    let judged: Vec<Vec<usize>> = all.iter().map(some).collect();
    let ranges = ranges(judged.iter().map(Vec::len));
    let judged: Vec<usize> = judged.into_iter().flatten().collect();

    let own = || halt.iter().zip(priors);
    let whole_prior: Vec<Mat<f64>> = own()
        .map(|(stop, prior)| stop.part.fitted(prior, &stop.rows))
        .collect::<Result<_>>()?;
    let whole_prior = linalg::side_by_side(&whole_prior);
    let biases: Vec<f64> = own()
        .flat_map(|(stop, prior)| stop.part.intercept(prior))
        .collect();
    let guard = sums.guard.normal(&judged, intercept);
    let prior = linalg::select_columns(whole_prior.as_ref(), &judged);
    let biases: Vec<f64> = judged.iter().map(|&j| biases[j]).collect();
    let before = guard.errors(&prior, &biases, &ranges);
    let train = sums.fit.normal(&judged, intercept);
    let moved = guard.errors(&prior, &biased(&train, &prior), &ranges);
    let mut ridged = Vec::new();
    if sums.guard.tokens() > 0 && !halt[0].rows.is_empty() {
        let tried = RIDGES.par_iter().map(|&ridge| {
            let weight = train.solve(&prior, ridge)?;
            Ok((ridge, guard.errors(&weight, &biased(&train, &weight), &ranges)))
        });
        let tried: Vec<Result<_>> = tried.collect();
        ridged = tried.into_iter().collect::<Result<_>>()?;
    }
    drop(train);
    let best: Vec<(f64, Option<f64>)> = (0..halt.len())
        .map(|at| {
            let ridged = ridged.iter().map(|(ridge, errors)| (errors[at], Some(*ridge)));
            let least = |a: (f64, Option<f64>), b: (f64, Option<f64>)| if b.0 < a.0 { b } else { a };
            ridged.fold((moved[at], None), least)
        })
        .collect();

    let tried = |at: usize| {
        let local = TriedFit {
            ridge: None,
            error: before[at],
        };
        let ridged = ridged.iter().map(|(ridge, errors)| TriedFit {
            ridge: Some(*ridge),
            error: errors[at],
        });
        std::iter::once(local).chain(ridged).collect()
    };
    let mut out: Vec<ChosenFit> = (0..halt.len())
        .map(|at| ChosenFit {
            better: None,
            tried: tried(at),
        })
        .collect();
    let better = |at: usize| best[at].0 < before[at];
    if !(0..halt.len()).any(better) {
        return Ok(out);
    }
    let mut whole = sums.fit;
    whole.merge(&sums.guard)?;
    for choice in RIDGES.map(Some).into_iter().chain([None]) {
        let members: Vec<usize> = (0..halt.len())
            .filter(|at| better(*at) && best[*at].1 == choice)
            .collect();
        if members.is_empty() {
            continue;
        }
        let columns: Vec<usize> = members.iter().flat_map(|at| all[*at].clone()).collect();
        let normal = whole.normal(&columns, intercept);
        let prior = linalg::select_columns(whole_prior.as_ref(), &columns);
        let weight = match choice {
            Some(ridge) => normal.solve(&prior, ridge)?,
            None => prior,
        };
        let new = biased(&normal, &weight);
        let mut from = 0;
        for at in members {
            let (stop, d) = (&halt[at], all[at].len());
            let shift = new[from..from + d]
                .iter()
                .zip(stop.part.bias())
                .map(|(n, old)| n - old);
            let mut fit = stop.part.fit(
                &stop.rows,
                Refit {
                    weight: weight.subcols(from, d).to_owned(),
                    bias_shift: intercept.then(|| shift.collect()),
                    error_before: before[at],
                    error_after: best[at].0,
                },
            );
            fit.told.ridge = choice;
            out[at].better = Some(fit);
            from += d;
        }
    }
    Ok(out)
}
