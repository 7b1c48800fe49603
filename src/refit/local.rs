//! Fits on the dense model's statistics.

use crate::axes::Analysis;
use crate::graph::Graph;
use crate::mask::Mask;
use crate::numerics::score::Site;
use crate::numerics::{Statistics, solve};
use crate::onnx::proto;
use crate::options::{Options, Reconstruct};
use crate::rank::pooled;
use crate::sites::layer::{Fit, parts};
use crate::sites::{Chosen, each};
use crate::{Result, ResultExt};

/// What local fits are made of.
#[derive(Clone, Copy)]
pub struct Local<'a> {
    /// With local functions inlined.
    pub model: &'a proto::ModelProto,
    /// Its graph.
    pub graph: &'a Graph,
    /// Its axes.
    pub analysis: &'a Analysis,
    /// The groups that may be pruned.
    pub chosen: &'a [Chosen],
    /// What stays of them.
    pub mask: &'a Mask,
    /// How to fit.
    pub options: &'a Options,
}

impl Local<'_> {
    /// The fits of every pruned group, per chosen group.
    ///
    /// # Errors
    /// A site whose weight or statistics are missing.
    pub fn fits(&self, statistics: &Statistics) -> Result<Vec<Vec<Fit>>> {
        let fits = each(self.chosen, |c| self.of(c, statistics));
        fits.into_iter().collect()
    }

    /// The fits of one group, by the weights that its sinks read; none where it
    /// is not pruned.
    ///
    /// # Errors
    /// As [`Local::fits`].
    pub fn of(&self, c: &Chosen, statistics: &Statistics) -> Result<Vec<Fit>> {
        let Some(kept) = self.mask.kept.get(&c.group) else {
            return Ok(Vec::new());
        };
        let run = || -> Result<Vec<Fit>> {
            let rows = c.units.kept_rows(kept);
            let units: Vec<usize> = (0..kept.len()).filter(|u| kept[*u]).collect();
            let mut out = Vec::new();
            for part in parts(self.model, self.graph, &c.sites)? {
                let pooled = pooled(&part.sites, statistics)?;
                let (sigma, mean) = (pooled.covariance(), pooled.mean());
                let site = Site {
                    sigma: &sigma,
                    mean: &mean,
                    tokens: pooled.total(),
                    weight: &part.matrix,
                    units: c.units.clone(),
                };
                let refit = match self.options.reconstruction() {
                    Reconstruct::Rescale => solve::rescale(&site, &units, 0.0)?,
                    _ => solve::local(&site, &rows, self.options.damp, part.has_bias())?,
                };
                out.push(part.fit(&rows, refit));
            }
            Ok(out)
        };
        run().context(|| format!("re-fitting group '{}'", self.analysis.groups[c.group].name))
    }
}
