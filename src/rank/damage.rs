//! What an error at a site does to the outputs.
//!
//! Equal errors at two sites are not equally harmful, so the harm is measured:
//! for each group and some levels the locally re-fitted weights go into the part
//! of the network after the group's sink, a probe set is run, and the change of
//! the outputs is recorded. Forward passes only. Between the levels the damage
//! follows the local error curve of the group.
//!
//! One level is enough where it lies where the group may end, since the local error says
//! the rest. The weights at each level are those that the elimination has left at that
//! point ([`crate::numerics::score::obs::ObsLevel`]). `docs/experiments.md` has what other
//! levels and sample sizes give.

use crate::numerics::score::{Curve, Ranking, ScoredSite};
use crate::numerics::solve::{self, Levels};
use crate::numerics::{SiteStatistics, Statistics};
use crate::rank::probe::Probe;
use crate::rank::{Rankings, levels, pooled, removed};
use crate::sites::{PruneTarget, parts};
use crate::tensor::Feeds;
use crate::verify::Comparison;
use crate::{Error, Result, ResultExt};

/// The curves of `ranked` with measured damage in place of the local errors.
///
/// # Errors
/// The engine's; an interrupt.
pub fn measure(
    probe: &mut Probe,
    targets: &[PruneTarget],
    ranked: &Rankings,
    statistics: &Statistics,
    damp: f64,
) -> Result<Vec<Option<Curve>>> {
    let (network, progress) = (probe.network(), probe.ctx().progress);
    let levels_of = |c: &PruneTarget| levels(c.kind);
    let all: usize = targets.iter().map(|c| levels_of(c).len()).sum();
    progress.start("damage", all as u64);
    let mut curves: Vec<Option<Curve>> = (ranked.rankings.iter().cloned())
        .map(Ranking::into_curve)
        .collect();
    let mut unread = vec![true; targets.len()];
    probe.each(targets, |at, after| {
        unread[at] = false;
        let (c, Some(curve)) = (&targets[at], &mut curves[at]) else {
            progress.step(levels_of(&targets[at]).len() as u64);
            return Ok(());
        };
        let group = network.group(c.group);
        let name = || format!("damage of group '{}'", group.name);
        let fitted = parts(network, &c.sites).context(name)?;
        let statistics = fitted
            .iter()
            .map(|part| pooled(&part.sites, statistics))
            .collect::<Result<Vec<_>>>()?;
        let removed = removed(c);
        // What the elimination has left, or else a factor for each weight.
        let known = ranked.levels.get(at).map(Vec::as_slice).unwrap_or_default();
        let known = if known.len() == removed.len() { known } else { &[] };
        let means: Vec<Vec<f64>> = statistics.iter().map(SiteStatistics::mean).collect();
        let sigmas: Vec<faer::Mat<f64>> = match known {
            [] => statistics.iter().map(SiteStatistics::covariance).collect(),
            _ => Vec::new(),
        };
        let factors = sigmas
            .iter()
            .zip(&means)
            .zip(fitted.iter().zip(&statistics))
            .map(|((sigma, mean), (part, statistics))| {
                let site = ScoredSite {
                    sigma,
                    mean,
                    tokens: statistics.total(),
                    weight: &part.matrix,
                    units: c.units.clone(),
                };
                Levels::new(&site, &curve.order, damp, part.has_bias())
            })
            .collect::<Result<Vec<_>>>()
            .context(name)?;
        let mut points = vec![(0usize, 0.0f64)];
        progress.step((levels_of(c).len() - removed.len()) as u64);
        for (level, &removed) in removed.iter().enumerate() {
            progress.step(1);
            let rows = c.units.kept_rows(&curve.kept(removed));
            let refits = match (&fitted[..], &means[..], known.get(level)) {
                ([part], [mean], Some(level)) => {
                    let weight = level.weight.clone();
                    vec![solve::known(&part.matrix, mean, &rows, weight, part.has_bias())]
                }
                _ => factors.iter().map(|f| f.at(removed)).collect::<Result<_>>()?,
            };
            let mut changed = Feeds::new();
            for (part, refit) in fitted.iter().zip(refits) {
                changed.extend(part.fit(&rows, refit).feeds(&network.graph));
            }
            points.push((removed, damage(&after.with_weights(changed)?)));
        }
        follow(curve, points)
    })?;
    // What no output reads may go for nothing.
    for (curve, _) in curves.iter_mut().zip(&unread).filter(|(_, unread)| **unread) {
        if let Some(curve) = curve {
            curve.error.fill(0.0);
        }
    }
    progress.finish();
    Ok(curves)
}

/// One number for all outputs: the divergence of a typical row for class-like
/// ones, else the mean squared change by the variance.
pub fn damage(comparison: &Comparison) -> f64 {
    comparison
        .outputs
        .iter()
        .map(|o| o.kl_typical.unwrap_or(o.relative_squared))
        .filter(|d| d.is_finite())
        .sum()
}

/// Puts measured points into a curve: in between, damage rises as the local
/// error does; it never falls.
fn follow(curve: &mut Curve, mut points: Vec<(usize, f64)>) -> Result<()> {
    let mut top = 0.0f64;
    for (_, value) in &mut points {
        top = top.max(*value);
        *value = top;
    }
    let error = curve.error.clone();
    for pair in points.windows(2) {
        let ((from, low), (to, high)) = (pair[0], pair[1]);
        let (Some(a), Some(b)) = (error.get(from), error.get(to)) else {
            return Err(Error::input("a damage level lies outside its curve"));
        };
        for (k, slot) in curve.error.iter_mut().enumerate().take(to + 1).skip(from) {
            let share = if b > a {
                (error[k] - a) / (b - a)
            } else {
                (k - from) as f64 / (to - from).max(1) as f64
            };
            *slot = low + (high - low) * share.clamp(0.0, 1.0);
        }
    }
    let (last, value) = points.last().copied().unwrap_or((0, 0.0));
    for k in last + 1..curve.error.len() {
        curve.error[k] = value * error[k] / error[last].max(f64::MIN_POSITIVE);
    }
    Ok(())
}
