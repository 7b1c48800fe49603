//! Fits on the dense model's statistics.

use super::part::{Fit, parts};
use crate::axes::Analysis;
use crate::calibrate::Statistics;
use crate::graph::Graph;
use crate::mask::Mask;
use crate::onnx::proto;
use crate::options::{Options, Reconstruct};
use crate::rank::pooled;
use crate::score::Site;
use crate::sites::Chosen;
use crate::{Result, ResultExt, solve};

/// Fits every pruned site.
///
/// # Errors
/// A site whose weight or statistics are missing.
pub fn local(
    model: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    chosen: &[Chosen],
    mask: &Mask,
    statistics: &Statistics,
    options: &Options,
) -> Result<Vec<Fit>> {
    let mut fits = Vec::new();
    for c in chosen {
        let Some(kept) = mask.kept.get(&c.group) else {
            continue;
        };
        let run = || -> Result<Vec<Fit>> {
            let rows = c.units.kept_rows(kept);
            let units: Vec<usize> = (0..kept.len()).filter(|u| kept[*u]).collect();
            let mut out = Vec::new();
            for part in parts(model, graph, &c.sites)? {
                let pooled = pooled(&part.sites, statistics)?;
                let (sigma, mean) = (pooled.covariance(), pooled.mean());
                let site = Site {
                    sigma: &sigma,
                    mean: &mean,
                    tokens: pooled.total(),
                    weight: &part.matrix,
                    units: c.units.clone(),
                };
                let refit = match options.reconstruction() {
                    Reconstruct::Rescale => solve::rescale(&site, &units, 0.0)?,
                    _ => solve::local(&site, &rows, options.damp, part.has_bias())?,
                };
                out.push(part.fit(&rows, refit));
            }
            Ok(out)
        };
        let name = || format!("re-fitting group '{}'", analysis.groups[c.group].name);
        fits.extend(run().context(name)?);
    }
    Ok(fits)
}
