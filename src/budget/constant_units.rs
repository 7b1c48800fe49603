//! Units whose activations are the same on all calibration inputs.

use crate::axes::Analysis;
use crate::mask::Mask;
use crate::numerics::Statistics;
use crate::sites::{PruneTarget, Site};

/// Variance, as a fraction of the mean square, below which a unit counts as
/// constant: what is left of a sum of squares in float64 less its mean.
const CONSTANT: f64 = 1e-10;

/// Takes the constant units out of a mask. A group whose sinks have no bias that
/// could take up the constant stays, but for units that are zero.
pub(crate) fn constant_units(
    analysis: &Analysis,
    targets: &[PruneTarget],
    statistics: &Statistics,
    mask: &mut Mask,
) {
    for c in targets {
        // It would no longer have as many units as the others.
        if analysis.even.iter().flatten().any(|g| *g == c.group) {
            continue;
        }
        let moments = |site: &Site| -> Option<Vec<(f64, f64)>> {
            let own = statistics.sites.get(&site.name)?;
            let (mean, sigma, total) = (own.mean(), own.covariance(), own.total());
            let of = |(i, m): (usize, &f64)| (m * m, sigma[(i, i)] / total.max(f64::MIN_POSITIVE));
            Some(mean.iter().enumerate().map(of).collect())
        };
        let known: Option<Vec<_>> = c.sites.iter().map(moments).collect();
        let Some(known) = known.filter(|k| !k.is_empty()) else {
            continue;
        };
        let biased = c.sites.iter().all(|s| s.bias.is_some());
        let units = c.units.len();
        let mut kept = mask.kept.get(&c.group).cloned().unwrap_or(vec![true; units]);
        for unit in 0..units {
            let mut only = vec![false; units];
            if let Some(slot) = only.get_mut(unit) {
                *slot = true;
            }
            let rows = c.units.kept_rows(&only);
            let constant =
                known
                    .iter()
                    .flat_map(|m| rows.iter().map(|row| m[*row]))
                    .all(|(square, variance)| {
                        let zero = square == 0.0 && variance == 0.0;
                        zero || (biased && variance <= CONSTANT * square)
                    });
            let left = kept.iter().filter(|k| **k).count();
            if constant
                && left > c.least
                && let Some(slot) = kept.get_mut(unit)
            {
                *slot = false;
            }
        }
        if kept.contains(&false) {
            mask.kept.insert(c.group, kept);
        }
    }
}
