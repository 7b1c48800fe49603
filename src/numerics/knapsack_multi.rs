//! One level per site, least total damage, within several budgets at once.
//!
//! Costs stay exact integers, so no budget can be missed by rounding. In order:
//!
//! 1. levels that another one beats in damage and in every cost go;
//! 2. prices per budget (Lagrange multipliers), raised and lowered in turn by
//!    bisection, give a bound on what any solution can reach, and solutions on
//!    the way; those that fit, and the solutions for each budget alone where they
//!    fit the others, are improved by single steps and by trades between two
//!    sites;
//! 3. dynamic programming over the sites keeps the partial solutions that are
//!    not off the prices by more than the gap between the best solution and the
//!    bound, and that no other beats. Only where they are too many are they
//!    thinned; else the result is the best there is.

use super::knapsack::{self, Choice};

/// The most budgets at once.
pub const MOST: usize = 4;

/// One level of a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// What it costs, one number per budget; unused ones are 0.
    pub costs: [u64; MOST],
    /// The damage it does; a level whose damage is not finite is never taken.
    pub value: f64,
}

/// Partial solutions kept per site.
const STATES: usize = 1024;
/// Offers that are compared with each other; of more, those nearest to the prices.
const OFFERS: usize = 4096;

/// Picks one level per site (its index) with the least total damage among those
/// whose total costs are at most `budgets`; a budget that is not wanted is
/// `u64::MAX`. What is left over is spent where that does no harm.
///
/// None when the cheapest levels do not fit, or a site has none. Where the
/// levels of a site cannot be ordered by cost (one is cheaper here, the other
/// there), its cheapest is the one that takes the least share of any budget,
/// and a solution may be missed.
pub fn allocate(sites: &[Vec<Level>], budgets: [u64; MOST]) -> Option<Vec<usize>> {
    let fronts: Vec<Vec<MultiPoint>> = sites.iter().map(|s| front(s)).collect();
    let cheapest: Vec<usize> = fronts
        .iter()
        .map(|f| cheapest(f, budgets))
        .collect::<Option<_>>()?;
    let problem = Problem { fronts, budgets };
    problem.left(&cheapest)?;
    let prices = problem.search_prices();
    let mut best = problem.improved(cheapest);
    let alone = (0..MOST).filter_map(|k| problem.for_one(k));
    for picked in prices.solutions.iter().cloned().chain(alone) {
        if problem.left(&picked).is_some() {
            let picked = problem.improved(picked);
            if problem.value(&picked) < problem.value(&best) {
                best = picked;
            }
        }
    }
    if let Some(found) = problem.search(&prices, problem.value(&best))
        && problem.value(&found) < problem.value(&best)
    {
        best = problem.improved(found);
    }
    let fits = problem.left(&best).is_some();
    fits.then(|| {
        best.iter()
            .zip(&problem.fronts)
            .map(|(p, front)| front[*p].index)
            .collect()
    })
}

/// A level that no other of its site beats.
#[derive(Clone, Copy)]
struct MultiPoint {
    costs: [u64; MOST],
    value: f64,
    index: usize,
}

fn within(costs: &[u64; MOST], other: &[u64; MOST]) -> bool {
    costs.iter().zip(other).all(|(a, b)| a <= b)
}

fn plus(a: &[u64; MOST], b: &[u64; MOST]) -> Option<[u64; MOST]> {
    let mut sum = *a;
    for (s, b) in sum.iter_mut().zip(b) {
        *s = s.checked_add(*b)?;
    }
    Some(sum)
}

fn minus(a: &[u64; MOST], b: &[u64; MOST]) -> Option<[u64; MOST]> {
    let mut rest = *a;
    for (r, b) in rest.iter_mut().zip(b) {
        *r = r.checked_sub(*b)?;
    }
    Some(rest)
}

/// The levels that may be worth taking, by ascending cost and falling damage.
fn front(levels: &[Level]) -> Vec<MultiPoint> {
    let mut all: Vec<MultiPoint> = levels
        .iter()
        .enumerate()
        .filter(|(_, l)| l.value.is_finite())
        .map(|(index, l)| MultiPoint {
            costs: l.costs,
            value: l.value,
            index,
        })
        .collect();
    all.sort_by(|a, b| {
        a.costs
            .cmp(&b.costs)
            .then(a.value.total_cmp(&b.value))
            .then(a.index.cmp(&b.index))
    });
    let ordered = all.windows(2).all(|pair| within(&pair[0].costs, &pair[1].costs));
    let mut points: Vec<MultiPoint> = Vec::new();
    for point in all {
        let beaten = match ordered {
            true => points.last().is_some_and(|last| last.value <= point.value),
            false => points
                .iter()
                .any(|p| p.value <= point.value && within(&p.costs, &point.costs)),
        };
        if !beaten {
            points.push(point);
        }
    }
    points
}

/// The point that takes the least share of any budget.
fn cheapest(front: &[MultiPoint], budgets: [u64; MOST]) -> Option<usize> {
    let share = |p: &MultiPoint| {
        p.costs
            .iter()
            .zip(&budgets)
            .map(|(c, b)| if *c == 0 { 0.0 } else { *c as f64 / *b as f64 })
            .fold(0.0, f64::max)
    };
    (0..front.len()).min_by(|a, b| share(&front[*a]).total_cmp(&share(&front[*b])))
}

struct Problem {
    fronts: Vec<Vec<MultiPoint>>,
    budgets: [u64; MOST],
}

/// Prices per budget, as damage per whole budget, and what they lead to.
struct DualPrices {
    prices: [f64; MOST],
    /// No solution does less damage.
    bound: f64,
    solutions: Vec<Vec<usize>>,
}

impl Problem {
    fn value(&self, picked: &[usize]) -> f64 {
        self.fronts.iter().zip(picked).map(|(f, p)| f[*p].value).sum()
    }

    /// What remains of the budgets; `None` when one is exceeded.
    fn left(&self, picked: &[usize]) -> Option<[u64; MOST]> {
        self.fronts
            .iter()
            .zip(picked)
            .try_fold(self.budgets, |left, (f, p)| minus(&left, &f[*p].costs))
    }

    /// The cost as a share of the budget.
    fn share(&self, k: usize, cost: u64) -> f64 {
        if cost == 0 {
            0.0
        } else {
            cost as f64 / self.budgets[k] as f64
        }
    }

    fn priced(&self, point: &MultiPoint, prices: &[f64; MOST]) -> f64 {
        let costs: f64 = (0..MOST)
            .filter(|k| prices[*k] > 0.0)
            .map(|k| prices[k] * self.share(k, point.costs[k]))
            .sum();
        point.value + costs
    }

    /// The best level of each site at these prices; the cheaper of equals.
    fn at(&self, prices: &[f64; MOST]) -> Vec<usize> {
        let best = |front: &Vec<MultiPoint>| -> usize {
            let priced = |p: &usize| self.priced(&front[*p], prices);
            (0..front.len())
                .min_by(|a, b| priced(a).total_cmp(&priced(b)))
                .unwrap_or(0)
        };
        self.fronts.iter().map(best).collect()
    }

    fn bound(&self, prices: &[f64; MOST]) -> f64 {
        let least: f64 = self
            .at(prices)
            .iter()
            .zip(&self.fronts)
            .map(|(p, front)| self.priced(&front[*p], prices))
            .sum();
        least - prices.iter().sum::<f64>()
    }

    fn used(&self, k: usize, picked: &[usize]) -> f64 {
        self.fronts
            .iter()
            .zip(picked)
            .map(|(f, p)| self.share(k, f[*p].costs[k]))
            .sum()
    }

    /// Coordinate ascent on the dual: for each budget in turn the least price
    /// at which it is kept.
    fn search_prices(&self) -> DualPrices {
        const ROUNDS: usize = 8;
        const HALVINGS: usize = 50;
        let wanted: Vec<usize> = (0..MOST).filter(|k| self.budgets[*k] != u64::MAX).collect();
        let mut prices = [0.0; MOST];
        let mut best = DualPrices {
            prices,
            bound: self.bound(&prices),
            solutions: vec![self.at(&prices)],
        };
        // A price above which nothing is worth its cost.
        let all: f64 = self
            .fronts
            .iter()
            .flat_map(|f| f.iter().map(|p| p.value.abs()).max_by(f64::total_cmp))
            .sum();
        let ceiling = (1e6 * all).max(f64::MIN_POSITIVE);
        for _ in 0..ROUNDS {
            let before = prices;
            for &k in &wanted {
                let mut set = |price: f64| {
                    prices[k] = price;
                    self.used(k, &self.at(&prices)) <= 1.0
                };
                if set(0.0) {
                    continue;
                }
                let (mut low, mut high) = (0.0, ceiling);
                // The first halvings find the magnitude.
                for step in 0..HALVINGS {
                    let middle = if low == 0.0 && step < HALVINGS / 2 {
                        high / 16.0
                    } else {
                        0.5 * (low + high)
                    };
                    if set(middle) {
                        high = middle;
                    } else {
                        low = middle;
                    }
                }
                prices[k] = high;
                let picked = self.at(&prices);
                if !best.solutions.contains(&picked) {
                    best.solutions.push(picked);
                }
                for price in [low, high] {
                    let mut there = prices;
                    there[k] = price;
                    let bound = self.bound(&there);
                    if bound > best.bound {
                        (best.bound, best.prices) = (bound, there);
                    }
                }
            }
            if before == prices {
                break;
            }
        }
        best
    }

    /// The best for one budget alone.
    fn for_one(&self, k: usize) -> Option<Vec<usize>> {
        if self.budgets[k] == u64::MAX {
            return None;
        }
        let sites: Vec<Vec<Choice>> = self
            .fronts
            .iter()
            .map(|f| {
                f.iter()
                    .map(|p| Choice {
                        cost: p.costs[k],
                        value: p.value,
                    })
                    .collect()
            })
            .collect();
        knapsack::allocate(&sites, self.budgets[k])
    }

    /// Steps of one site and trades between two, as long as they help.
    fn improved(&self, mut picked: Vec<usize>) -> Vec<usize> {
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            let stepped = self.step(&mut picked);
            if !self.trade(&mut picked) && !stepped {
                break;
            }
        }
        picked
    }

    /// The step that saves most, again and again.
    fn step(&self, picked: &mut [usize]) -> bool {
        let Some(mut left) = self.left(picked) else {
            return false;
        };
        let mut any = false;
        loop {
            let mut best: Option<(f64, usize, usize, [u64; MOST])> = None;
            for (site, front) in self.fronts.iter().enumerate() {
                let now = &front[picked[site]];
                let Some(available) = plus(&left, &now.costs) else {
                    continue;
                };
                for (index, point) in front.iter().enumerate() {
                    let saved = now.value - point.value;
                    if saved > best.map_or(0.0, |b| b.0)
                        && let Some(rest) = minus(&available, &point.costs)
                    {
                        best = Some((saved, site, index, rest));
                    }
                }
            }
            let Some((_, site, index, rest)) = best else {
                return any;
            };
            picked[site] = index;
            left = rest;
            any = true;
        }
    }

    /// Each pair of sites once: a level up here, one down there.
    fn trade(&self, picked: &mut [usize]) -> bool {
        /// Levels on either side of the present one.
        const REACH: usize = 48;
        let Some(mut left) = self.left(picked) else {
            return false;
        };
        let mut any = false;
        for a in 0..self.fronts.len() {
            for b in a + 1..self.fronts.len() {
                let (first, second) = (&self.fronts[a], &self.fronts[b]);
                let (p, q) = (picked[a], picked[b]);
                let now = first[p].value + second[q].value;
                let costs = plus(&first[p].costs, &second[q].costs);
                let Some(available) = costs.and_then(|c| plus(&left, &c)) else {
                    continue;
                };
                let near = |at: usize, length: usize| at.saturating_sub(REACH)..(at + REACH + 1).min(length);
                let mut best = (now - 1e-12 * now.abs(), None);
                for i in near(p, first.len()) {
                    let Some(rest) = minus(&available, &first[i].costs) else {
                        continue;
                    };
                    for j in near(q, second.len()) {
                        let value = first[i].value + second[j].value;
                        if value < best.0
                            && let Some(rest) = minus(&rest, &second[j].costs)
                        {
                            best = (value, Some((i, j, rest)));
                        }
                    }
                }
                if let Some((i, j, rest)) = best.1 {
                    (picked[a], picked[b], left) = (i, j, rest);
                    any = true;
                }
            }
        }
        any
    }

    /// Dynamic programming between the bound and the best solution so far.
    fn search(&self, prices: &DualPrices, best: f64) -> Option<Vec<usize>> {
        let noise = 1e-12 * (best.abs() + prices.prices.iter().sum::<f64>());
        let gap = best - prices.bound;
        if gap <= noise {
            return None;
        }
        let gap = gap + noise;
        let mut stages = vec![vec![MultiState {
            costs: [0; MOST],
            value: 0.0,
            off: 0.0,
            before: 0,
            point: 0,
        }]];
        for front in &self.fronts {
            let least = front
                .iter()
                .map(|p| self.priced(p, &prices.prices))
                .fold(f64::INFINITY, f64::min);
            let last = stages.last().map_or(&[][..], |s| s.as_slice());
            let mut offers = Vec::new();
            for (point, p) in (0..).zip(front) {
                let off = self.priced(p, &prices.prices) - least;
                if off > gap {
                    continue;
                }
                for (before, state) in (0..).zip(last) {
                    let off = state.off + off;
                    if off <= gap
                        && let Some(costs) = plus(&state.costs, &p.costs)
                        && within(&costs, &self.budgets)
                    {
                        offers.push(MultiState {
                            costs,
                            value: state.value + p.value,
                            off,
                            before,
                            point,
                        });
                    }
                }
            }
            stages.push(unbeaten(offers));
        }
        let last = stages.last()?;
        let mut index = (0..last.len()).min_by(|a, b| last[*a].value.total_cmp(&last[*b].value))?;
        let mut picked = Vec::with_capacity(self.fronts.len());
        for stage in stages[1..].iter().rev() {
            picked.push(stage[index].point as usize);
            index = stage[index].before as usize;
        }
        picked.reverse();
        Some(picked)
    }
}

/// A partial solution over the first sites.
#[derive(Clone, Copy)]
struct MultiState {
    costs: [u64; MOST],
    value: f64,
    /// How far it is off the prices so far.
    off: f64,
    before: u32,
    point: u32,
}

/// The states that no other beats, the nearest to the prices where they are too
/// many.
fn unbeaten(mut states: Vec<MultiState>) -> Vec<MultiState> {
    states.sort_by(|a, b| a.off.total_cmp(&b.off).then(a.value.total_cmp(&b.value)));
    states.truncate(OFFERS);
    let mut kept: Vec<MultiState> = Vec::new();
    for state in states {
        let beaten = kept
            .iter()
            .any(|k| k.value <= state.value && within(&k.costs, &state.costs));
        if !beaten {
            kept.push(state);
            if kept.len() == STATES {
                break;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exhaustive(sites: &[Vec<Level>], budgets: [u64; MOST]) -> Option<f64> {
        let Some((first, rest)) = sites.split_first() else {
            return Some(0.0);
        };
        first
            .iter()
            .filter(|l| l.value.is_finite())
            .filter_map(|l| Some(l.value + exhaustive(rest, minus(&budgets, &l.costs)?)?))
            .min_by(f64::total_cmp)
    }

    fn totals(sites: &[Vec<Level>], picked: &[usize]) -> [u64; MOST] {
        sites
            .iter()
            .zip(picked)
            .fold([0; MOST], |sum, (s, p)| plus(&sum, &s[*p].costs).unwrap())
    }

    fn damage(sites: &[Vec<Level>], picked: &[usize]) -> f64 {
        sites.iter().zip(picked).map(|(s, p)| s[*p].value).sum()
    }

    /// Levels whose costs all rise from one to the next, as units do.
    fn sites() -> impl Strategy<Value = Vec<Vec<Level>>> {
        let level = (prop::array::uniform4(0u64..40), -10.0f64..100.0);
        prop::collection::vec(prop::collection::vec(level, 1..6), 1..6).prop_map(|sites| {
            sites
                .into_iter()
                .map(|levels| {
                    let mut sum = [0; MOST];
                    levels
                        .into_iter()
                        .map(|(step, value)| {
                            sum = plus(&sum, &step).unwrap();
                            Level { costs: sum, value }
                        })
                        .collect()
                })
                .collect()
        })
    }

    fn budgets() -> impl Strategy<Value = [u64; MOST]> {
        prop::array::uniform4(prop_oneof![Just(u64::MAX), 0u64..400, 100u64..300])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Never over a budget; a solution where there is one; and the best.
        #[test]
        fn as_good_as_trying_everything(sites in sites(), budgets in budgets()) {
            let best = exhaustive(&sites, budgets);
            let found = allocate(&sites, budgets);
            prop_assert_eq!(found.is_some(), best.is_some());
            if let (Some(picked), Some(best)) = (found, best) {
                prop_assert!(within(&totals(&sites, &picked), &budgets));
                let got = damage(&sites, &picked);
                prop_assert!(got <= best + 1e-9 * (1.0 + best.abs()), "{got}, the best is {best}");
            }
        }
    }

    /// At the size of a real model: within the budgets, and close to the bound.
    #[test]
    fn many_levels_end_near_the_bound() {
        let mut state = 7u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let sites: Vec<Vec<Level>> = (0..24)
            .map(|_| {
                let (scale, power) = (0.01 + random(), 1.0 + 3.0 * random());
                let per: Vec<f64> = (0..3).map(|_| 500.0 + 500.0 * random()).collect();
                (0..=256)
                    .map(|k| {
                        let kept = k as f64;
                        Level {
                            costs: [
                                (per[0] * kept) as u64,
                                (per[1] * kept) as u64,
                                // A staircase, as latency is.
                                (per[2] * (kept / 16.0).ceil() * 16.0) as u64,
                                0,
                            ],
                            value: scale * (1.0 - kept / 256.0).powf(power),
                        }
                    })
                    .collect()
            })
            .collect();
        let full = totals(&sites, &[256; 24]);
        let budgets = [full[0] / 2, full[1] * 11 / 20, full[2] * 9 / 20, u64::MAX];
        let picked = allocate(&sites, budgets).unwrap();
        assert!(within(&totals(&sites, &picked), &budgets));
        let fronts = sites.iter().map(|s| front(s)).collect();
        let bound = Problem { fronts, budgets }.search_prices().bound;
        let got = damage(&sites, &picked);
        assert!(got <= 1.02 * bound + 1e-9, "{got}, no less than {bound}");
    }
}
