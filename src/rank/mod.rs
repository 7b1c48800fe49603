//! Statistics and weights of the targets in, a ranking per group out.

pub mod damage;
mod effort;
mod method;
pub mod positions;
pub mod probe;
mod stream;

pub use effort::Effort;
pub use method::{Method, RankOptions};
pub use stream::{Runner, Stream};

use std::collections::BTreeSet;

use crate::axes::{GroupId, Kind};
use crate::network::Network;
use crate::numerics::score::obs::ObsLevel;
use crate::numerics::score::{self, Ranking, ScoredSite};
use crate::numerics::{SiteStatistics, Statistics, Sums};
use crate::sites::{PruneTarget, each, side_by_side};
use crate::{Error, Result, ResultExt};

/// What a method says about the targets.
#[derive(Default)]
pub struct Rankings {
    /// Per target.
    pub rankings: Vec<Ranking>,
    /// Its weight at the levels that were asked for, where one sink reads it.
    pub levels: Vec<Vec<ObsLevel>>,
    /// Iterations that kcm ran, per group it ranked.
    pub iterations: Vec<(String, usize)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Bytes of weights at levels that are held at once; what is beyond is fitted
/// again where it is needed.
const HELD: usize = 1 << 28;

/// Fractions of a group's units that are removed to measure its damage ([`crate::rank::damage`]).
pub fn levels(kind: Kind) -> &'static [f64] {
    match kind {
        Kind::Neurons => &[0.85],
        _ => &[0.5],
    }
}

/// How many units of a group, of which at least some stay, are gone at its [`levels`],
/// ascending.
pub fn removed(target: &PruneTarget) -> Vec<usize> {
    let units = target.units.len();
    let most = units.saturating_sub(target.least);
    let mut removed: Vec<usize> = levels(target.kind)
        .iter()
        .map(|level| ((level * units as f64).round() as usize).min(most))
        .filter(|removed| *removed > 0)
        .collect();
    removed.dedup();
    removed
}

/// Ranks the units of every target; where its damage is `measured` after that, the
/// weights that are left at the [`levels`] come with it.
///
/// # Errors
/// Statistics that are missing or not finite, a weight that is not a matrix.
pub fn rank(
    network: &Network,
    targets: &[PruneTarget],
    statistics: &Statistics,
    options: &RankOptions,
    measured: bool,
) -> Result<Rankings> {
    let mut ranked = Rankings {
        rankings: Vec::with_capacity(targets.len()),
        levels: Vec::with_capacity(targets.len()),
        iterations: Vec::new(),
        notes: Vec::new(),
    };
    let mut heads_left = false;
    let holding = match measured {
        true => holding(targets),
        false => BTreeSet::new(),
    };
    let found = each(targets, |c| {
        let group = network.group(c.group);
        let held = holding.contains(&c.group);
        rank_one(network, c, statistics, options, held).context(|| format!("group '{}'", group.name))
    });
    for (c, found) in targets.iter().zip(found) {
        let One {
            ranking,
            levels,
            iterations,
        } = found?;
        let group = network.group(c.group);
        if c.is_closed() {
            ranked.notes.push(format!(
                "'{}' stays whole: its weight is quantised in blocks or computed, so its units cannot be ranked (--mask with --reconstruct none can still remove some)",
                group.name
            ));
        } else {
            heads_left |= options.method == Method::Kcm && group.kind != Kind::Neurons;
        }
        let named = iterations.map(|i| (group.name.clone(), i));
        ranked.iterations.extend(named);
        ranked.rankings.push(ranking);
        ranked.levels.push(levels);
    }
    if heads_left {
        ranked
            .notes
            .push("kcm keeps all attention heads, as published: only neurons are pruned".into());
    }
    Ok(ranked)
}

/// The groups whose weights at the levels are held: the first ones, as many as
/// [`HELD`] bytes allow.
fn holding(targets: &[PruneTarget]) -> BTreeSet<GroupId> {
    let mut held = 0.0;
    let mut groups = BTreeSet::new();
    for c in targets {
        let [site] = &c.sites[..] else {
            continue;
        };
        let left: f64 = levels(c.kind).iter().map(|f| 1.0 - f).sum();
        let entries = site.weight.as_ref().map_or(0, |w| w.rows * w.columns);
        held += left * (entries * size_of::<f64>()) as f64;
        if held <= HELD as f64 {
            groups.insert(c.group);
        }
    }
    groups
}

/// What a method says about one group.
struct One {
    ranking: Ranking,
    levels: Vec<ObsLevel>,
    /// Iterations that kcm ran.
    iterations: Option<usize>,
}

fn rank_one(
    network: &Network,
    c: &PruneTarget,
    statistics: &Statistics,
    options: &RankOptions,
    held: bool,
) -> Result<One> {
    let group = network.group(c.group);
    let whole = One {
        ranking: Ranking::Whole,
        levels: Vec::new(),
        iterations: None,
    };
    if c.is_closed() {
        return Ok(whole);
    }
    let weight = side_by_side(network, c, &group.name)?;
    Ok(match options.method {
        Method::Obs => {
            let pooled = pooled(&c.sites, statistics)?;
            let has_bias = c.sites.iter().all(|s| s.bias.is_some());
            let (sigma, mean) = pooled.moments(has_bias);
            let site = ScoredSite {
                sigma: &sigma,
                mean: &mean,
                tokens: pooled.total(),
                weight: &weight,
                units: c.units.clone(),
            };
            let obs = score::obs::ObsOptions {
                damp: options.damp,
                ..Default::default()
            };
            let at = match &c.sites[..] {
                [_] if held => removed(c),
                _ => Vec::new(),
            };
            let (curve, levels) = score::obs::obs_at(&site, &obs, &at)?;
            One {
                ranking: Ranking::Curve(curve),
                levels,
                ..whole
            }
        }
        Method::Kcm if group.kind != Kind::Neurons => whole,
        Method::Kcm => {
            let squares = pooled(&c.sites, statistics)?.squares();
            let weight =
                faer::Mat::<f32>::from_fn(weight.nrows(), weight.ncols(), |i, j| weight[(i, j)] as f32);
            let scores = score::kcm::kcm(&weight, &squares, &options.kcm)?;
            One {
                ranking: Ranking::Scores(scores.scores),
                iterations: Some(scores.iterations),
                ..whole
            }
        }
        Method::Wanda => {
            let squares = pooled(&c.sites, statistics)?.squares();
            One {
                ranking: relative(&score::baselines::wanda(&weight, &squares, &c.units)?),
                ..whole
            }
        }
        Method::Magnitude => One {
            ranking: relative(&score::baselines::magnitude(&weight, &c.units)?),
            ..whole
        },
    })
}

/// Scores by their mean, so that groups of any scale compare.
fn relative(scores: &[f64]) -> Ranking {
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    Ranking::Scores(scores.iter().map(|s| s / mean.max(f64::MIN_POSITIVE)).collect())
}

/// The statistics of some sinks of a group together.
///
/// # Errors
/// A site that was not calibrated.
pub fn pooled<'s>(sites: &[crate::sites::Site], statistics: impl Into<Sums<'s>>) -> Result<SiteStatistics> {
    let statistics = statistics.into();
    let mut total: Option<SiteStatistics> = None;
    for site in sites {
        let own = statistics.get(&site.name).ok_or_else(|| {
            Error::input(format!(
                "there are no statistics of '{}': its weight is quantised or computed; exclude it with --exclude",
                site.name
            ))
        })?;
        match &mut total {
            None => total = Some(own.clone()),
            Some(total) => total.merge(own)?,
        }
    }
    total.ok_or_else(|| Error::input("a group without a sink"))
}
