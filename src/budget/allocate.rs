//! From rankings and limits to numbers of units.

use super::align::Align;
use super::goal::Demand;
use super::item::{Item, damage};
use super::prices::{Limit, Prices};
use super::scores::{best_first, rank};
use super::tied::Tied;
use crate::axes::Kind;
use crate::numerics::knapsack::{self, Choice};
use crate::numerics::knapsack_multi::{self, Level};
use crate::numerics::score::Ranking;
use crate::{Error, Result};

/// Asked and got.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Got {
    /// What was asked.
    pub asked: Demand,
    /// What the mask is predicted to give.
    pub got: Demand,
    /// The least that the method can reach here.
    pub least: Demand,
}

/// What [`allocate`] decides.
#[derive(Debug, Clone)]
pub struct Picked {
    /// Units kept per item.
    pub kept: Vec<usize>,
    /// One per limit.
    pub got: Vec<Got>,
}

/// The numbers of units that a group may keep, ascending: at least `least`, for
/// neurons a multiple of `align`, and always all of them.
pub fn levels(kind: Kind, units: usize, least: usize, align: usize) -> Vec<usize> {
    let align = if kind == Kind::Neurons { align.max(1) } else { 1 };
    (least.min(units)..=units)
        .filter(|kept| kept.is_multiple_of(align) || *kept == units)
        .collect()
}

/// The best numbers of units that meet all limits; items of one set of `tied` keep the same
/// number. Limits that every smaller model meets do not take part in the choice, so that
/// one more of them changes nothing.
///
/// # Errors
/// [`Error::Unmet`] when a limit cannot be met, with the least that can be
/// reached; bad arguments.
pub fn allocate(
    limits: &[Limit],
    items: &[Item],
    tied: &Tied,
    align: impl Into<Align>,
    method: &str,
) -> Result<Picked> {
    let align = align.into();
    let allowed: Vec<Vec<usize>> = items
        .iter()
        .map(|item| match item.ranking {
            Ranking::Whole => vec![item.units],
            _ => levels(item.kind, item.units, item.least, align.of(item.units)),
        })
        .collect();
    let rankings: Vec<Ranking> = items.iter().map(|item| item.ranking.clone()).collect();
    let binding: Vec<Limit> = limits.iter().filter(|l| l.binds()).cloned().collect();
    let chosen_by = if binding.is_empty() { limits } else { &binding };
    let joined: Vec<Limit> = chosen_by.iter().map(|l| joined(l, tied)).collect();
    let allowed = tied.allowed(&allowed);
    let kept = tied.spread(&numbers(&joined, &allowed, &tied.rankings(&rankings)?, method)?);
    let least: Vec<usize> = allowed.iter().map(|a| a.first().copied().unwrap_or(0)).collect();
    let least = tied.spread(&least);
    let got = limits
        .iter()
        .map(|limit| {
            let cost = limit.prices.total(&kept);
            if cost > limit.most {
                return Err(Error::Unmet(format!(
                    "the mask found gives {}, which does not meet {}",
                    limit.at(cost),
                    limit.demand
                )));
            }
            Ok(Got {
                asked: limit.demand,
                got: limit.at(cost),
                least: limit.at(limit.prices.total(&least)),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Picked { kept, got })
}

/// A limit on sets of groups.
fn joined(limit: &Limit, tied: &Tied) -> Limit {
    Limit {
        prices: Prices {
            levels: tied.levels(&limit.prices.levels),
            ..limit.prices.clone()
        },
        ..limit.clone()
    }
}

/// The best numbers of units to keep.
fn numbers(
    limits: &[Limit],
    allowed: &[Vec<usize>],
    rankings: &[Ranking],
    method: &str,
) -> Result<Vec<usize>> {
    let budgets = budgets(limits, allowed, method)?;
    let scores = rankings.iter().any(|r| matches!(r, Ranking::Scores(_)));
    let kept = if scores {
        by_scores(limits, &budgets, allowed, rankings)
    } else {
        by_curves(limits, &budgets, allowed, rankings)
    };
    kept.ok_or_else(|| {
        let asked: Vec<String> = limits.iter().map(|l| l.demand.to_string()).collect();
        Error::Unmet(format!(
            "no mask of {method} meets {} together",
            asked.join(" and ")
        ))
    })
}

/// What each limit leaves for the groups.
fn budgets(limits: &[Limit], allowed: &[Vec<usize>], method: &str) -> Result<Vec<u64>> {
    if limits.is_empty() {
        return Err(Error::input("no budget is given: say --flops, --size or another"));
    }
    if limits.len() > knapsack_multi::MOST {
        return Err(Error::input(format!(
            "{} budgets at once; at most {} can stand together",
            limits.len(),
            knapsack_multi::MOST
        )));
    }
    let mut out = Vec::with_capacity(limits.len());
    for limit in limits {
        // Costs need not rise with the units: a level may be slower than a
        // larger one.
        let least: u64 = allowed
            .iter()
            .zip(&limit.prices.levels)
            .map(|(allowed, levels)| {
                let cost = |k: &usize| levels.get(*k).copied().unwrap_or(u64::MAX);
                allowed.iter().map(cost).min().unwrap_or(0)
            })
            .fold(limit.prices.base, u64::saturating_add);
        match limit.budget().filter(|_| least <= limit.most) {
            Some(budget) => out.push(budget),
            None => {
                let floor = limit.at(least);
                let vocabulary = match limit.demand {
                    Demand::Size(_) => ", or let tokens that do not occur go too (--vocab)",
                    _ => "",
                };
                return Err(Error::Unmet(format!(
                    "{} cannot be reached: the least that {method} can keep here is {}; ask for {}{vocabulary}",
                    limit.demand,
                    floor.amount(),
                    floor.eased()
                )));
            }
        }
    }
    Ok(out)
}

fn by_curves(
    limits: &[Limit],
    budgets: &[u64],
    allowed: &[Vec<usize>],
    rankings: &[Ranking],
) -> Option<Vec<usize>> {
    let damage = |site: usize, kept: usize| {
        let units = match &rankings[site] {
            Ranking::Curve(curve) => curve.error.len().saturating_sub(1),
            _ => 0,
        };
        damage(&rankings[site], units, kept)
    };
    let cost = |limit: &Limit, site: usize, kept: usize| -> u64 {
        let levels = limit.prices.levels.get(site);
        levels.and_then(|l| l.get(kept)).copied().unwrap_or(u64::MAX)
    };
    let picked = if let ([limit], [budget]) = (limits, budgets) {
        let sites: Vec<Vec<Choice>> = allowed
            .iter()
            .enumerate()
            .map(|(site, allowed)| {
                let choice = |k: &usize| Choice {
                    cost: cost(limit, site, *k),
                    value: damage(site, *k),
                };
                allowed.iter().map(choice).collect()
            })
            .collect();
        knapsack::allocate(&sites, *budget)?
    } else {
        let mut all = [u64::MAX; knapsack_multi::MOST];
        all.iter_mut().zip(budgets).for_each(|(all, own)| *all = *own);
        let sites: Vec<Vec<Level>> = allowed
            .iter()
            .enumerate()
            .map(|(site, allowed)| {
                let level = |k: &usize| {
                    let mut costs = [0; knapsack_multi::MOST];
                    for (slot, limit) in costs.iter_mut().zip(limits) {
                        *slot = cost(limit, site, *k);
                    }
                    Level {
                        costs,
                        value: damage(site, *k),
                    }
                };
                allowed.iter().map(level).collect()
            })
            .collect();
        knapsack_multi::allocate(&sites, all)?
    };
    Some(
        picked
            .iter()
            .zip(allowed)
            .map(|(p, allowed)| allowed[*p])
            .collect(),
    )
}

/// The units of greatest score over all sites as long as they fit, on top of the
/// least of each site. Units of a site come in steps from one allowed number to
/// the next; a step that does not fit ends its site.
fn by_scores(
    limits: &[Limit],
    budgets: &[u64],
    allowed: &[Vec<usize>],
    rankings: &[Ranking],
) -> Option<Vec<usize>> {
    let mut kept: Vec<usize> = allowed
        .iter()
        .map(|a| a.first().copied())
        .collect::<Option<_>>()?;
    let cost = |limit: &Limit, site: usize, kept: usize| -> Option<u64> {
        limit.prices.levels.get(site)?.get(kept).copied()
    };
    let mut left = Vec::with_capacity(limits.len());
    for (limit, budget) in limits.iter().zip(budgets) {
        let mut rest = *budget;
        for (site, kept) in kept.iter().enumerate() {
            rest = rest.checked_sub(cost(limit, site, *kept)?)?;
        }
        left.push(rest);
    }
    let mut units: Vec<(f64, usize, usize)> = Vec::new();
    for (site, ranking) in rankings.iter().enumerate() {
        if let Ranking::Scores(scores) = ranking {
            let order = best_first(scores);
            units.extend(order.iter().map(|u| (rank(scores[*u]), site, *u)));
        }
    }
    units.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut seen = vec![0usize; allowed.len()];
    let mut open = vec![true; allowed.len()];
    for (_, site, _) in units {
        seen[site] += 1;
        let goal = seen[site];
        if !open[site] || goal <= kept[site] || !allowed[site].contains(&goal) {
            continue;
        }
        let rest: Option<Vec<u64>> = limits
            .iter()
            .zip(&left)
            .map(|(limit, left)| {
                let (from, to) = (cost(limit, site, kept[site])?, cost(limit, site, goal)?);
                left.checked_add(from)?.checked_sub(to)
            })
            .collect();
        match rest {
            Some(rest) => (left, kept[site]) = (rest, goal),
            None => open[site] = false,
        }
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::goal::Measure;

    fn limit(demand: Demand, base: u64, per: &[u64], units: usize) -> Limit {
        let levels: Vec<Vec<u64>> = per
            .iter()
            .map(|p| (0..=units).map(|k| p * k as u64).collect())
            .collect();
        let full = base + levels.iter().filter_map(|l| l.last()).sum::<u64>();
        let prices = Prices {
            measure: Measure::Macs,
            base,
            full,
            origin: base,
            levels,
        };
        Limit::new(demand, prices)
    }

    #[test]
    fn levels_are_multiples_and_the_whole() {
        assert_eq!(levels(Kind::Neurons, 20, 0, 8), [0, 8, 16, 20]);
        assert_eq!(levels(Kind::Neurons, 20, 1, 8), [8, 16, 20]);
        assert_eq!(levels(Kind::Neurons, 5, 1, 8), [5]);
        assert_eq!(levels(Kind::Heads, 4, 1, 8), [1, 2, 3, 4]);
    }

    #[test]
    fn scores_fill_every_budget_in_steps() {
        let rankings = [
            Ranking::Scores(vec![9.0, 1.0, 8.0, 2.0]),
            Ranking::Scores(vec![7.0, 6.0, f64::NAN, 5.0]),
        ];
        let limits = [
            limit(Demand::Flops(0.5), 0, &[1, 1], 4),
            limit(Demand::Flops(0.75), 100, &[3, 1], 4),
        ];
        let every: Vec<usize> = (0..=4).collect();
        let allowed = [every.clone(), every];
        let budgets = budgets(&limits, &allowed, "test").unwrap();
        let kept = by_scores(&limits, &budgets, &allowed, &rankings).unwrap();
        // The four best: 9, 8 | 7, 6.
        assert_eq!(kept, [2, 2]);
        let allowed = [vec![0, 3, 4], vec![1, 4]];
        let kept = by_scores(&limits, &budgets, &allowed, &rankings).unwrap();
        // One is set; three more of the first fit, of the second none.
        assert_eq!(kept, [3, 1]);
        assert_eq!(
            super::super::scores::best(&[9.0, 1.0, 8.0, f64::NAN], 2),
            [true, false, true, false]
        );
    }

    proptest::proptest! {
        #[test]
        fn the_best_units_over_all_items_fill_the_budget(
            sites in proptest::collection::vec(
                (proptest::collection::vec(0.0..1.0, 1..8), 1_u64..20, 0_usize..3), 1..5),
            share in 0.0..1.0,
        ) {
            let items: Vec<Item> = sites.iter().map(|(scores, _, least)| Item {
                kind: Kind::Neurons,
                units: scores.len(),
                least: (*least).min(scores.len()),
                ranking: Ranking::Scores(scores.clone()),
            }).collect();
            let levels: Vec<Vec<u64>> = sites.iter()
                .map(|(scores, cost, _)| (0..=scores.len() as u64).map(|k| k * cost).collect())
                .collect();
            let full = levels.iter().filter_map(|l| l.last()).sum::<u64>();
            let prices = Prices { measure: Measure::Macs, base: 0, full, origin: 0, levels };
            let limit = Limit::new(Demand::Flops(share), prices);
            let tied = Tied::new(items.len(), []);
            let least: u64 = items.iter().zip(&sites).map(|(i, (_, cost, _))| i.least as u64 * cost).sum();
            let Ok(picked) = allocate(std::slice::from_ref(&limit), &items, &tied, 1, "test") else {
                proptest::prop_assert!(least > limit.most);
                return Ok(());
            };
            let spent = limit.prices.total(&picked.kept);
            proptest::prop_assert!(spent <= limit.most);
            for ((item, kept), (_, cost, _)) in items.iter().zip(&picked.kept).zip(&sites) {
                proptest::prop_assert!(*kept >= item.least);
                // What is left of the budget is less than the cheapest unit that goes.
                proptest::prop_assert!(*kept == item.units || *cost > limit.most - spent);
            }
        }
    }

    #[test]
    fn what_cannot_be_reached_is_told() {
        let limits = [limit(Demand::Flops(0.1), 50, &[10, 10], 4)];
        let allowed = [vec![1, 2, 3, 4], vec![0, 4]];
        let error = budgets(&limits, &allowed, "obs").unwrap_err().to_string();
        assert_eq!(
            error,
            "--flops 0.1 cannot be reached: the least that obs can keep here is 0.125; ask for --flops 0.125"
        );
    }
}
