//! The output projection of a block as the numerics see it.

use faer::Mat;

use super::find::HeadBlocks;
use super::rotate::{self, Bases};
use crate::Result;
use crate::network::Network;
use crate::numerics::Statistics;
use crate::numerics::score::{ScoredSite, Units};
use crate::rank::pooled;
use crate::sites::{PruneTarget, parts};

/// The weight of a block's output projection with what its statistics say of its input.
pub(super) struct Projection {
    pub(super) weight: Mat<f64>,
    pub(super) sigma: Mat<f64>,
    mean: Vec<f64>,
    pub(super) tokens: f64,
    pub(super) with_bias: bool,
}

/// Reads it; `None` where several sinks share the weight.
///
/// # Errors
/// A weight that is quantised or computed, statistics that are missing.
pub(super) fn read(
    network: &Network,
    c: &PruneTarget,
    statistics: &Statistics,
) -> Result<Option<Projection>> {
    let parts = parts(network, &c.sites)?;
    let [part] = &parts[..] else { return Ok(None) };
    if !part.is_single(&network.graph) {
        return Ok(None);
    }
    let pooled = pooled(&part.sites, statistics)?;
    let with_bias = part.has_bias();
    let (sigma, mean) = pooled.moments(with_bias);
    Ok(Some(Projection {
        weight: part.matrix.clone(),
        sigma,
        mean,
        tokens: pooled.total(),
        with_bias,
    }))
}

impl Projection {
    /// The same in other bases of the heads.
    pub(super) fn turned(&self, rows: &HeadBlocks, bases: &Bases) -> Self {
        let weight = rotate::columns(&self.weight.transpose().to_owned(), rows, bases);
        let half = rotate::columns(&self.sigma, rows, bases);
        let mean = Mat::from_fn(1, self.mean.len(), |_, j| self.mean[j]);
        let mean = rotate::columns(&mean, rows, bases);
        Self {
            weight: weight.transpose().to_owned(),
            sigma: rotate::columns(&half.transpose().to_owned(), rows, bases),
            mean: mean.row(0).iter().copied().collect(),
            ..*self
        }
    }

    /// As the numerics see it, the channels as its units.
    pub(super) fn site(&self, rows: &HeadBlocks, count: usize) -> ScoredSite<'_> {
        let of = |channel: usize| {
            rows.values()
                .flatten()
                .filter_map(move |run| run.get(channel).copied())
        };
        ScoredSite {
            sigma: &self.sigma,
            mean: &self.mean,
            tokens: self.tokens,
            weight: &self.weight,
            units: Units {
                rows: (0..count).map(|channel| of(channel).collect()).collect(),
            },
        }
    }
}
