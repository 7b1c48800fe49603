//! From rankings to a mask within a budget.

use super::cost::Cost;
use super::knapsack::{self, Choice};
use super::ranking::{Ranked, top_scores};
use crate::axes::Analysis;
use crate::mask::Mask;
use crate::score::Curve;
use crate::sites::Chosen;
use crate::{Error, Result};

/// What a method says about one group.
#[derive(Debug, Clone)]
pub enum Ranking {
    /// An order of elimination and the damage after each step.
    Curve(Curve),
    /// A score per unit, comparable over groups.
    Scores(Vec<f64>),
    /// The method does not touch the group.
    Whole,
}

impl Ranking {
    /// The curve, where it is one.
    pub fn into_curve(self) -> Option<Curve> {
        match self {
            Ranking::Curve(curve) => Some(curve),
            _ => None,
        }
    }
}

/// The budget in multiply-accumulates of the prunable blocks.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Budget {
    /// The fraction asked for.
    pub asked: f64,
    /// The fraction got, at most what was asked.
    pub got: f64,
    /// Multiply-accumulates of the prunable blocks, dense.
    pub prunable: u64,
    /// Multiply-accumulates of the whole model, dense.
    pub whole_before: u64,
    /// Multiply-accumulates of the whole model, pruned.
    pub whole_after: u64,
    /// The least fraction that the method can reach.
    pub floor: f64,
    /// Multiply-accumulates of the cheapest step.
    pub cheapest_step: u64,
}

/// A mask and what it costs.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// The mask.
    pub mask: Mask,
    /// Asked and got.
    pub budget: Budget,
    /// Damage that the method expects per chosen group.
    pub damage: Vec<f64>,
}

/// Costs of the chosen groups' units; all in multiply-accumulates.
struct Prices {
    /// Of the model with every chosen group empty.
    base: u64,
    full: u64,
    per_unit: Vec<u64>,
}

fn prices(cost: &Cost, analysis: &Analysis, chosen: &[Chosen]) -> Prices {
    let empty = |only: Option<usize>| -> Mask {
        let mut mask = Mask::default();
        for c in chosen.iter().filter(|c| only.is_none_or(|o| o == c.group)) {
            mask.kept
                .insert(c.group, vec![false; analysis.groups[c.group].units]);
        }
        mask
    };
    let full = cost.macs(&Mask::default());
    let per_unit = chosen
        .iter()
        .map(|c| {
            let units = analysis.groups[c.group].units as u64;
            (full - cost.macs(&empty(Some(c.group)))) / units.max(1)
        })
        .collect();
    Prices {
        base: cost.macs(&empty(None)),
        full,
        per_unit,
    }
}

/// The best mask that a fraction `asked` of the prunable blocks buys.
///
/// # Errors
/// [`Error::Unmet`] when even the least that the method can keep costs more.
pub fn allocate(
    cost: &Cost,
    analysis: &Analysis,
    chosen: &[Chosen],
    rankings: &[Ranking],
    asked: f64,
    method: &str,
) -> Result<Allocation> {
    let prices = prices(cost, analysis, chosen);
    let prunable = prices.full - prices.base;
    let budget = (asked * prunable as f64).floor() as u64;
    let least: u64 = chosen
        .iter()
        .zip(rankings)
        .zip(&prices.per_unit)
        .map(|((c, r), price)| {
            let units = match r {
                Ranking::Whole => analysis.groups[c.group].units,
                _ => c.least,
            };
            units as u64 * price
        })
        .sum();
    let floor = least as f64 / prunable.max(1) as f64;
    if least > budget {
        return Err(Error::Unmet(format!(
            "--flops {asked} cannot be reached: the least that {method} can keep here is {:.4} of the prunable blocks; ask for {:.3} or more",
            floor,
            (floor * 1000.0).ceil() / 1000.0
        )));
    }
    let kept = match rankings.iter().any(|r| matches!(r, Ranking::Scores(_))) {
        true => by_scores(analysis, chosen, rankings, &prices, budget),
        false => by_curves(analysis, chosen, rankings, &prices, budget),
    };
    let kept = kept.ok_or_else(|| Error::Unmet(format!("no mask meets --flops {asked}")))?;
    let mut mask = Mask::default();
    let mut damage = Vec::with_capacity(chosen.len());
    for ((c, flags), ranking) in chosen.iter().zip(kept).zip(rankings) {
        let removed = flags.iter().filter(|k| !**k).count();
        damage.push(match ranking {
            Ranking::Curve(curve) => curve.error.get(removed).copied().unwrap_or(1.0),
            _ => 0.0,
        });
        if removed > 0 {
            mask.kept.insert(c.group, flags);
        }
    }
    let after = cost.macs(&mask);
    let got = (after.saturating_sub(prices.base)) as f64 / prunable.max(1) as f64;
    if after.saturating_sub(prices.base) > budget {
        return Err(Error::Unmet(format!(
            "the mask found costs {got} of the prunable blocks, more than {asked}"
        )));
    }
    Ok(Allocation {
        mask,
        damage,
        budget: Budget {
            asked,
            got,
            prunable,
            whole_before: prices.full,
            whole_after: after,
            floor,
            cheapest_step: prices
                .per_unit
                .iter()
                .copied()
                .filter(|p| *p > 0)
                .min()
                .unwrap_or(0),
        },
    })
}

fn by_curves(
    analysis: &Analysis,
    chosen: &[Chosen],
    rankings: &[Ranking],
    prices: &Prices,
    budget: u64,
) -> Option<Vec<Vec<bool>>> {
    let mut levels: Vec<Vec<Choice>> = Vec::with_capacity(chosen.len());
    for ((c, ranking), price) in chosen.iter().zip(rankings).zip(&prices.per_unit) {
        let units = analysis.groups[c.group].units;
        levels.push(match ranking {
            Ranking::Curve(curve) => (0..=units - c.least.min(units))
                .map(|removed| Choice {
                    cost: (units - removed) as u64 * price,
                    value: curve.error.get(removed).copied().unwrap_or(1.0),
                })
                .collect(),
            _ => vec![Choice {
                cost: units as u64 * price,
                value: 0.0,
            }],
        });
    }
    let picked = knapsack::allocate(&levels, budget)?;
    let kept = picked
        .into_iter()
        .zip(rankings)
        .zip(chosen)
        .map(|((removed, ranking), c)| match ranking {
            Ranking::Curve(curve) => curve.kept(removed),
            _ => vec![true; analysis.groups[c.group].units],
        });
    Some(kept.collect())
}

fn by_scores(
    analysis: &Analysis,
    chosen: &[Chosen],
    rankings: &[Ranking],
    prices: &Prices,
    budget: u64,
) -> Option<Vec<Vec<bool>>> {
    let mut fixed = 0;
    let mut sites = Vec::new();
    for ((c, ranking), price) in chosen.iter().zip(rankings).zip(&prices.per_unit) {
        match ranking {
            Ranking::Scores(scores) => sites.push(Ranked {
                scores: scores.clone(),
                unit_cost: *price,
                min_units: c.least,
            }),
            _ => fixed += analysis.groups[c.group].units as u64 * price,
        }
    }
    let mut picked = top_scores(&sites, fixed, budget)?.into_iter();
    let kept = rankings.iter().zip(chosen).map(|(ranking, c)| match ranking {
        Ranking::Scores(_) => picked.next().unwrap_or_default(),
        _ => vec![true; analysis.groups[c.group].units],
    });
    Some(kept.collect())
}
