//! From rankings to a mask within a budget.

use super::cost::Cost;
use super::item::Item;
use super::scores::{Ranked, best, top_scores};
use super::tied::Even;
use crate::axes::Analysis;
use crate::mask::{Mask, Narrowing};
use crate::numerics::knapsack::{self, Choice};
use crate::numerics::score::Ranking;
use crate::sites::Chosen;
use crate::{Error, Result};

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
    /// Channels that go inside of heads.
    pub narrowing: Narrowing,
}

/// What a model costs in multiply-accumulates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitPrices {
    /// With every chosen group empty.
    pub base: u64,
    /// Dense.
    pub full: u64,
    /// Of one unit, per chosen group.
    pub per_unit: Vec<u64>,
    /// What lossless passes save outside of the chosen groups: there is as much
    /// more to spend on these.
    pub spare: u64,
}

impl UnitPrices {
    /// Prices of the chosen groups of a model.
    pub fn of(cost: &Cost, analysis: &Analysis, chosen: &[Chosen]) -> Self {
        let empty = |only: Option<usize>| -> Mask {
            let mut mask = Mask::default();
            for c in chosen.iter().filter(|c| only.is_none_or(|o| o == c.group)) {
                mask.kept
                    .insert(c.group, vec![false; analysis.groups[c.group].units]);
            }
            mask
        };
        let whole = cost.macs(&Mask::default());
        let per_unit = chosen
            .iter()
            .map(|c| {
                let units = analysis.groups[c.group].units as u64;
                whole.saturating_sub(cost.macs(&empty(Some(c.group)))) / units.max(1)
            })
            .collect();
        let base = cost.dense_macs(&empty(None));
        UnitPrices {
            base,
            full: cost.dense_macs(&Mask::default()),
            per_unit,
            spare: base.saturating_sub(cost.macs(&empty(None))),
        }
    }

    /// What the prunable blocks cost, dense.
    pub fn prunable(&self) -> u64 {
        self.full.saturating_sub(self.base)
    }

    /// What there is to spend.
    pub fn purse(&self) -> Purse {
        Purse {
            prunable: self.prunable(),
            spare: self.spare,
        }
    }

    /// Asked and got, for a mask that leaves the model at `after`.
    pub(crate) fn budget(&self, asked: f64, after: u64, floor: f64) -> Budget {
        let prunable = self.prunable();
        let spent = after.saturating_sub(self.base);
        Budget {
            asked,
            got: spent as f64 / prunable.max(1) as f64,
            prunable,
            whole_before: self.full,
            whole_after: after,
            floor,
            cheapest_step: self
                .per_unit
                .iter()
                .copied()
                .filter(|p| *p > 0)
                .min()
                .unwrap_or(0),
        }
    }
}

impl Budget {
    /// # Errors
    /// [`Error::Unmet`] when more was spent than asked for.
    pub(crate) fn check(&self) -> Result<()> {
        let removed = self.whole_before.saturating_sub(self.whole_after);
        let spent = self.prunable.saturating_sub(removed);
        if spent > allowance(self.asked, self.prunable) {
            return Err(Error::Unmet(format!(
                "the mask found costs {} of the prunable blocks, more than {}",
                self.got, self.asked
            )));
        }
        Ok(())
    }
}

fn allowance(asked: f64, prunable: u64) -> u64 {
    (asked * prunable as f64).floor() as u64
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
    let prices = UnitPrices::of(cost, analysis, chosen);
    let items: Vec<Item> = chosen
        .iter()
        .zip(&prices.per_unit)
        .map(|(c, price)| Item {
            units: analysis.groups[c.group].units,
            least: c.least,
            price: *price,
        })
        .collect();
    let even = Even::of(analysis, chosen);
    let picked = pick(&items, rankings, &even, prices.purse(), asked, method)?;
    let mut mask = Mask::default();
    for (c, flags) in chosen.iter().zip(picked.kept) {
        if flags.contains(&false) {
            mask.kept.insert(c.group, flags);
        }
    }
    let budget = prices.budget(asked, cost.macs(&mask), picked.floor);
    budget.check()?;
    Ok(Allocation {
        mask,
        damage: picked.damage,
        budget,
        narrowing: Narrowing::default(),
    })
}

/// What a mask that was made elsewhere costs.
pub fn of_mask(cost: &Cost, analysis: &Analysis, chosen: &[Chosen], mask: Mask) -> Allocation {
    let prices = UnitPrices::of(cost, analysis, chosen);
    let after = cost.macs(&mask);
    let got = after.saturating_sub(prices.base) as f64 / prices.prunable().max(1) as f64;
    Allocation {
        budget: prices.budget(got, after, 0.0),
        damage: vec![0.0; chosen.len()],
        mask,
        narrowing: Narrowing::default(),
    }
}

/// What [`pick`] decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// Per item, which units stay.
    pub kept: Vec<Vec<bool>>,
    /// Per item, the damage that the method expects.
    pub damage: Vec<f64>,
    /// The least fraction that the method can reach.
    pub floor: f64,
}

/// What [`pick`] may spend, in multiply-accumulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purse {
    /// The prunable blocks, dense: fractions are of this.
    pub prunable: u64,
    /// Saved elsewhere.
    pub spare: u64,
}

/// The units that stay, of all items together, for a fraction `asked` of what the
/// prunable blocks cost; items of one set of `even` keep the same number of units.
///
/// # Errors
/// [`Error::Unmet`] when even the least that the method can keep costs more;
/// rankings of different kinds within a set.
pub fn pick(
    items: &[Item],
    rankings: &[Ranking],
    even: &Even,
    purse: Purse,
    asked: f64,
    method: &str,
) -> Result<Picked> {
    let budget = allowance(asked, purse.prunable).saturating_add(purse.spare);
    let (sets, joined) = (even.items(items), even.rankings(rankings)?);
    let least: u64 = sets
        .iter()
        .zip(&joined)
        .map(|(item, r)| {
            let units = match r {
                Ranking::Whole => item.units,
                _ => item.least,
            };
            units as u64 * item.price
        })
        .sum();
    let floor = least.saturating_sub(purse.spare) as f64 / purse.prunable.max(1) as f64;
    if least > budget {
        return Err(Error::Unmet(format!(
            "--flops {asked} cannot be reached: the least that {method} can keep here is {:.4} of the prunable blocks; ask for {:.3} or more",
            floor,
            (floor * 1000.0).ceil() / 1000.0
        )));
    }
    let counts = match joined.iter().any(|r| matches!(r, Ranking::Scores(_))) {
        true => by_scores(&sets, &joined, budget),
        false => by_curves(&sets, &joined, budget),
    };
    let counts = counts.ok_or_else(|| Error::Unmet(format!("no mask meets --flops {asked}")))?;
    let (mut kept, mut damage) = (Vec::new(), Vec::new());
    for ((item, ranking), count) in items.iter().zip(rankings).zip(even.spread(&counts)) {
        let removed = item.units.saturating_sub(count);
        damage.push(match ranking {
            Ranking::Curve(curve) => curve.error.get(removed).copied().unwrap_or(1.0),
            _ => 0.0,
        });
        kept.push(match ranking {
            Ranking::Curve(curve) => curve.kept(removed),
            Ranking::Scores(scores) => best(scores, count),
            Ranking::Whole => vec![true; item.units],
        });
    }
    Ok(Picked { kept, damage, floor })
}

/// How many units of each item stay.
fn by_curves(items: &[Item], rankings: &[Ranking], budget: u64) -> Option<Vec<usize>> {
    let mut levels: Vec<Vec<Choice>> = Vec::with_capacity(items.len());
    for (item, ranking) in items.iter().zip(rankings) {
        let units = item.units;
        levels.push(match ranking {
            Ranking::Curve(curve) => (0..=units - item.least.min(units))
                .map(|removed| Choice {
                    cost: (units - removed) as u64 * item.price,
                    value: curve.error.get(removed).copied().unwrap_or(1.0),
                })
                .collect(),
            _ => vec![Choice {
                cost: units as u64 * item.price,
                value: 0.0,
            }],
        });
    }
    let removed = knapsack::allocate(&levels, budget)?.into_iter();
    Some(removed.zip(items).map(|(r, item)| item.units - r).collect())
}

/// The same by scores.
fn by_scores(items: &[Item], rankings: &[Ranking], budget: u64) -> Option<Vec<usize>> {
    let mut fixed = 0;
    let mut sites = Vec::new();
    for (item, ranking) in items.iter().zip(rankings) {
        match ranking {
            Ranking::Scores(scores) => sites.push(Ranked {
                scores: scores.clone(),
                unit_cost: item.price,
                min_units: item.least,
            }),
            _ => fixed += item.units as u64 * item.price,
        }
    }
    let mut picked = top_scores(&sites, fixed, budget)?.into_iter();
    let counts = rankings.iter().zip(items).map(|(ranking, item)| match ranking {
        Ranking::Scores(_) => picked.next().map_or(0, |k| k.into_iter().filter(|k| *k).count()),
        _ => item.units,
    });
    Some(counts.collect())
}
