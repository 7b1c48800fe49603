//! What a loss of channels does to the outputs: half of them go, the network after the
//! block runs.

use std::collections::BTreeMap;

use faer::Mat;

use super::projection::read;
use super::{How, Narrower, rotate};
use crate::Result;
use crate::numerics::solve::{self, Refit};
use crate::numerics::{SiteStatistics, Statistics, linalg};
use crate::options::Options;
use crate::rank::damage::damage;
use crate::rank::probe::{Probe, Subject};
use crate::sites::{Chosen, parts};

/// What fewer channels of queries and keys change about the input of a block's output
/// projection.
pub(super) struct Difference {
    /// The sums over a few samples.
    pub(super) statistics: SiteStatistics,
    /// The change itself, by the first sample of each batch.
    pub(super) batches: BTreeMap<usize, Vec<f32>>,
}

impl Narrower {
    /// Damage for an error of 1 at the output projection, for each turn; infinite where
    /// it cannot be told. `probe` has the samples that queries were watched on.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn measure_harm(
        &mut self,
        subject: Subject,
        probe: &mut Probe,
        chosen: &[Chosen],
        statistics: &Statistics,
        options: &Options,
    ) -> Result<()> {
        let mut own: Vec<usize> = self.turns.iter().map(|t| t.at).collect();
        own.sort_unstable();
        own.dedup();
        let blocks: Vec<Chosen> = own.iter().map(|at| chosen[*at].clone()).collect();
        let turns = &mut self.turns;
        probe.each(&blocks, |at, after| {
            for turn in turns.iter_mut().filter(|t| t.at == own[at]) {
                let half = turn.channels.count / 2;
                let comparison = match (&turn.how, &turn.difference) {
                    (How::Values(bases), _) => {
                        let c = &blocks[at];
                        let parts = parts(subject.model, subject.graph, &c.sites)?;
                        let (Some(part), Some(whole)) = (parts.first(), read(subject, c, statistics)?) else {
                            continue;
                        };
                        let turned = whole.turned(&turn.rows, bases);
                        let site = turned.site(&turn.rows, turn.channels.count);
                        let rows = rotate::kept_of(&turn.rows, half);
                        let fit = solve::local(&site, &rows, options.damp, whole.with_bias)?;
                        let mut weight = Mat::zeros(whole.weight.nrows(), whole.weight.ncols());
                        for (i, row) in rows.iter().enumerate() {
                            weight.row_mut(*row).copy_from(fit.weight.row(i));
                        }
                        let back = bases.iter().map(|(head, b)| (*head, b.transpose().to_owned()));
                        let weight =
                            rotate::columns(&weight.transpose().to_owned(), &turn.rows, &back.collect());
                        let all: Vec<usize> = (0..whole.weight.nrows()).collect();
                        let weight = weight.transpose().to_owned();
                        let fit = part.fit(&all, Refit { weight, ..fit });
                        after.with_weights(fit.feeds(subject.graph))?
                    }
                    (How::Queries(_), Some(difference)) => after.with_activation(&|batch, data, _| {
                        let first = batch.rows.first().copied().unwrap_or_default();
                        if let Some(change) = difference.batches.get(&first) {
                            data.iter_mut().zip(change).for_each(|(x, d)| *x += d);
                        }
                    })?,
                    (How::Queries(_), None) => continue,
                };
                let harm = damage(&comparison) / turn.error[turn.channels.count - half];
                if harm > 0.0 {
                    turn.harm = harm;
                }
            }
            Ok(())
        })?;
        for turn in turns {
            turn.difference = None;
        }
        Ok(())
    }
}

impl Narrower {
    /// Raises the harm of each turn to what `least` says of its group of heads.
    pub fn bound_harm(&mut self, least: impl Fn(usize) -> f64) {
        for turn in &mut self.turns {
            turn.harm = turn.harm.max(least(turn.at));
        }
    }
}

/// `tr(W^T G W)`.
pub(super) fn energy(gram: &Mat<f64>, weight: &Mat<f64>) -> f64 {
    let read = linalg::product(gram.as_ref(), weight.as_ref());
    linalg::inner(weight.as_ref(), read.as_ref())
}
