//! One ranking over all layers, cut where the budget ends.

/// The ranked units of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// The score of each unit, comparable between sites.
    pub scores: Vec<f64>,
    /// What each unit costs.
    pub unit_cost: u64,
    /// How many units must stay.
    pub min_units: usize,
}

/// Which units stay: those of greatest score over all sites, as long as they
/// fit, on top of each site's own best `min_units`. What is left of `budget` is
/// less than the cheapest unit that goes. Equal scores go to the earlier site,
/// then the earlier unit; NaN ranks last. `fixed` is spent before any unit.
///
/// None when `fixed` and the least units exceed the budget.
pub fn top_scores(sites: &[Ranked], fixed: u64, budget: u64) -> Option<Vec<Vec<bool>>> {
    let mut left = budget.checked_sub(fixed)?;
    let mut kept: Vec<Vec<bool>> = sites.iter().map(|s| vec![false; s.scores.len()]).collect();
    let mut rest = Vec::new();
    for (index, (site, kept)) in sites.iter().zip(&mut kept).enumerate() {
        let units = best_first(&site.scores);
        let least = site.min_units.min(units.len());
        let cost = u64::try_from(least).ok()?.checked_mul(site.unit_cost)?;
        left = left.checked_sub(cost)?;
        for &unit in &units[..least] {
            kept[unit] = true;
        }
        rest.extend(
            units[least..]
                .iter()
                .map(|&unit| (rank(site.scores[unit]), index, unit)),
        );
    }
    rest.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, site, unit) in rest {
        if let Some(less) = left.checked_sub(sites[site].unit_cost) {
            left = less;
            kept[site][unit] = true;
        }
    }
    Some(kept)
}

/// Units by falling score; the earlier of equals first, NaN last.
pub(super) fn best_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| rank(scores[*b]).total_cmp(&rank(scores[*a])).then(a.cmp(b)));
    order
}

/// The `kept` best units.
pub(super) fn best(scores: &[f64], kept: usize) -> Vec<bool> {
    let mut flags = vec![false; scores.len()];
    for unit in best_first(scores).into_iter().take(kept) {
        flags[unit] = true;
    }
    flags
}

pub(super) fn rank(score: f64) -> f64 {
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}
