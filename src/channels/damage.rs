//! What a loss of channels does to the outputs: half of them go, the network after the
//! block runs.

use std::collections::BTreeMap;

use faer::Mat;

use super::projection::read;
use super::{How, Narrower, rotate};
use crate::Result;
use crate::numerics::solve::{self, Refit};
use crate::numerics::{SiteStatistics, Statistics, linalg};
use crate::rank::damage::damage;
use crate::rank::probe::Probe;
use crate::sites::{PruneTarget, parts};

/// What fewer channels of queries and keys change about the input of a block's output
/// projection.
#[derive(Clone)]
pub(super) struct Difference {
    /// The sums over a few samples.
    pub(super) statistics: SiteStatistics,
    /// The change itself, by the first sample of each batch.
    pub(super) batches: BTreeMap<usize, Vec<f32>>,
}

impl Narrower {
    /// Damage for an error of 1 at the output projection, for each block; infinite where
    /// it cannot be told. `probe` has the samples that queries were watched on.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn measure_damage(
        &mut self,
        probe: &mut Probe,
        targets: &[PruneTarget],
        statistics: &Statistics,
    ) -> Result<()> {
        let (network, damp) = (probe.network(), self.options.damp);
        let mut own: Vec<usize> = self.blocks.iter().map(|t| t.at).collect();
        own.sort_unstable();
        own.dedup();
        let heads: Vec<PruneTarget> = own.iter().map(|at| targets[*at].clone()).collect();
        let blocks = &mut self.blocks;
        probe.each(&heads, |at, after| {
            for block in blocks.iter_mut().filter(|t| t.at == own[at]) {
                let half = block.channels.count / 2;
                let comparison = match (&block.how, &block.difference) {
                    (How::Values(bases), _) => {
                        let c = &heads[at];
                        let parts = parts(network, &c.sites)?;
                        let (Some(part), Some(whole)) = (parts.first(), read(network, c, statistics)?) else {
                            continue;
                        };
                        let turned = whole.turned(&block.rows, bases);
                        let site = turned.site(&block.rows, block.channels.count);
                        let rows = rotate::kept_of(&block.rows, half);
                        let fit = solve::local(&site, &rows, damp, whole.with_bias)?;
                        let mut weight = Mat::zeros(whole.weight.nrows(), whole.weight.ncols());
                        for (i, row) in rows.iter().enumerate() {
                            weight.row_mut(*row).copy_from(fit.weight.row(i));
                        }
                        let back = bases.iter().map(|(head, b)| (*head, b.transpose().to_owned()));
                        let weight =
                            rotate::columns(&weight.transpose().to_owned(), &block.rows, &back.collect());
                        let all: Vec<usize> = (0..whole.weight.nrows()).collect();
                        let weight = weight.transpose().to_owned();
                        let fit = part.fit(&all, Refit { weight, ..fit });
                        after.with_weights(fit.feeds(&network.graph))?
                    }
                    (How::Queries(_), Some(difference)) => after.with_activation(&|batch, data, _| {
                        let first = batch.rows.first().copied().unwrap_or_default();
                        if let Some(change) = difference.batches.get(&first) {
                            data.iter_mut().zip(change).for_each(|(x, d)| *x += d);
                        }
                    })?,
                    (How::Queries(_), None) => continue,
                };
                let rate = damage(&comparison) / block.error[block.channels.count - half];
                if rate > 0.0 {
                    block.damage_per_error = rate;
                }
            }
            Ok(())
        })?;
        for block in blocks {
            block.difference = None;
        }
        Ok(())
    }
}

impl Narrower {
    /// Raises the damage per error of each block to what `least` says of its group of heads.
    pub fn bound_damage(&mut self, least: impl Fn(usize) -> f64) {
        for block in &mut self.blocks {
            block.damage_per_error = block.damage_per_error.max(least(block.at));
        }
    }
}

/// `tr(W^T G W)`.
pub(super) fn energy(gram: &Mat<f64>, weight: &Mat<f64>) -> f64 {
    let read = linalg::product(gram.as_ref(), weight.as_ref());
    linalg::inner(weight.as_ref(), read.as_ref())
}
