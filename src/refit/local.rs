//! Fits on the dense model's statistics.

use super::Reconstruct;
use crate::mask::Mask;
use crate::network::Network;
use crate::numerics::score::ScoredSite;
use crate::numerics::{Sums, solve};
use crate::rank::pooled;
use crate::refit::RefitOptions;
use crate::sites::{Fit, PruneTarget, each, parts};
use crate::{Result, ResultExt};

/// What local fits are made of.
#[derive(Clone, Copy)]
pub struct Local<'a> {
    /// The network.
    pub network: &'a Network,
    /// The groups that may be pruned.
    pub targets: &'a [PruneTarget],
    /// What stays of them.
    pub mask: &'a Mask,
    /// How to fit.
    pub options: RefitOptions,
}

impl Local<'_> {
    /// The fits of every pruned group, per target.
    ///
    /// # Errors
    /// A site whose weight or statistics are missing.
    pub fn fits<'s>(&self, statistics: impl Into<Sums<'s>>) -> Result<Vec<Vec<Fit>>> {
        let statistics = statistics.into();
        let fits = each(self.targets, |c| self.of(c, statistics));
        fits.into_iter().collect()
    }

    /// The fits of one group, by the weights that its sinks read; none where it
    /// is not pruned.
    ///
    /// # Errors
    /// As [`Local::fits`].
    pub fn of(&self, c: &PruneTarget, statistics: Sums) -> Result<Vec<Fit>> {
        let Some(kept) = self.mask.kept.get(&c.group) else {
            return Ok(Vec::new());
        };
        let run = || -> Result<Vec<Fit>> {
            let rows = c.units.kept_rows(kept);
            let units: Vec<usize> = (0..kept.len()).filter(|u| kept[*u]).collect();
            let mut out = Vec::new();
            for part in parts(self.network, &c.sites)? {
                let pooled = pooled(&part.sites, statistics)?;
                let (sigma, mean) = (pooled.covariance(), pooled.mean());
                let site = ScoredSite {
                    sigma: &sigma,
                    mean: &mean,
                    tokens: pooled.total(),
                    weight: &part.matrix,
                    units: c.units.clone(),
                };
                let refit = match self.options.reconstruct {
                    Reconstruct::Rescale => solve::rescale(&site, &units, 0.0)?,
                    _ => solve::local(&site, &rows, self.options.damp, part.has_bias())?,
                };
                out.push(part.fit(&rows, refit));
            }
            Ok(out)
        };
        run().context(|| format!("re-fitting group '{}'", self.network.group(c.group).name))
    }
}
