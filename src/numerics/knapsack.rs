//! The multiple-choice knapsack: one level per site, least total damage, within
//! the budget.
//!
//! Costs stay exact integers all the way, so the budget cannot be missed by
//! rounding. In order:
//!
//! 1. choices that cost more without doing less damage are left out;
//! 2. the linear relaxation (steps along each site's convex hull, steepest
//!    first) gives a solution, a price per unit of cost, and a bound on what any
//!    solution can gain over it;
//! 3. a choice or partial solution that is off the price by more than that gap
//!    cannot be part of a better one; this usually leaves few;
//! 4. dynamic programming over the sites keeps, of all partial solutions, those
//!    that no other beats in both cost and damage. Only where they are too many
//!    are they thinned, to the best one per bin of cost;
//! 5. after thinning, pairs of sites are traded against each other until no pair
//!    improves;
//! 6. what is left is spent on steps that do no harm.

/// One level of a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it costs.
    pub cost: u64,
    /// The damage it does; a choice whose damage is not finite is never taken.
    pub value: f64,
}

/// Partial solutions kept per site.
const STATES: usize = 8192;
/// Choices tried per partial solution.
const CHOICES: usize = 128;

/// Picks one choice per site (its index) with the least total damage among
/// those whose total cost is at most `budget`. Ties go to the cheaper, then the
/// earlier choice, except that what is left over is spent: no single step to a
/// costlier choice that does no more damage fits into what remains.
///
/// None when even the cheapest choices do not fit, or a site has none.
pub fn allocate(sites: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    allocate_with(sites, budget, STATES, CHOICES)
}

fn allocate_with(sites: &[Vec<Choice>], budget: u64, states: usize, choices: usize) -> Option<Vec<usize>> {
    let fronts: Vec<Front> = sites.iter().map(|site| Front::new(site)).collect::<Option<_>>()?;
    let mut left = budget;
    for front in &fronts {
        left = left.checked_sub(front.base)?;
    }
    let relaxation = Relaxation::new(&fronts, left);
    let mut picked = relaxation.solution.clone();
    if relaxation.gap > 0.0 {
        let (found, exact) = search(&fronts, left, &relaxation, states, choices);
        if let Some(found) = found {
            picked = found;
        }
        if !exact {
            trade(&fronts, left, &mut picked);
        }
    }
    let mut solution: Vec<usize> = fronts
        .iter()
        .zip(&picked)
        .map(|(front, &point)| front.points[point].index)
        .collect();
    spend(sites, budget, &mut solution);
    Some(solution)
}

/// A choice that no other of its site beats.
#[derive(Clone, Copy)]
struct HullPoint {
    /// Above the site's cheapest.
    cost: u64,
    value: f64,
    /// Into the site's choices.
    index: usize,
}

/// The choices of a site that may be worth taking: cost ascends, damage descends.
struct Front {
    base: u64,
    points: Vec<HullPoint>,
}

impl Front {
    fn new(choices: &[Choice]) -> Option<Self> {
        let mut all: Vec<(usize, &Choice)> = choices
            .iter()
            .enumerate()
            .filter(|(_, c)| c.value.is_finite())
            .collect();
        all.sort_by(|(i, a), (j, b)| {
            a.cost
                .cmp(&b.cost)
                .then(a.value.total_cmp(&b.value))
                .then(i.cmp(j))
        });
        let base = all.first()?.1.cost;
        let mut points: Vec<HullPoint> = Vec::new();
        for (index, &Choice { cost, value }) in all {
            if points.last().is_none_or(|last| value < last.value) {
                points.push(HullPoint {
                    cost: cost - base,
                    value,
                    index,
                });
            }
        }
        Some(Self { base, points })
    }

    /// The points on the lower convex hull.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for next in 0..self.points.len() {
            while let [.., a, b] = hull[..] {
                if self.slope(a, b) > self.slope(b, next) {
                    break;
                }
                hull.pop();
            }
            hull.push(next);
        }
        hull
    }

    /// Damage saved per cost between two points.
    fn slope(&self, from: usize, to: usize) -> f64 {
        let (from, to) = (&self.points[from], &self.points[to]);
        (from.value - to.value) / (to.cost - from.cost) as f64
    }
}

/// The linear relaxation and a solution rounded from it.
struct Relaxation {
    /// A point per site.
    solution: Vec<usize>,
    /// Damage per cost at which the budget is used up.
    price: f64,
    /// No solution does less damage than this one's less `gap`; 0 when nothing
    /// but rounding is between them.
    gap: f64,
}

impl Relaxation {
    fn new(fronts: &[Front], budget: u64) -> Self {
        let mut steps: Vec<(f64, usize, usize, usize)> = Vec::new();
        for (site, front) in fronts.iter().enumerate() {
            for pair in front.hull().windows(2) {
                steps.push((front.slope(pair[0], pair[1]), site, pair[0], pair[1]));
            }
        }
        // Within a site slopes descend; a stable sort keeps equal ones in order.
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut solution = vec![0; fronts.len()];
        let mut left = budget;
        let mut price = None;
        for (slope, site, from, to) in steps {
            let cost = fronts[site].points[to].cost - fronts[site].points[from].cost;
            if solution[site] == from && cost <= left {
                solution[site] = to;
                left -= cost;
            } else if price.is_none() {
                price = Some(slope);
            }
        }
        let price = price.unwrap_or(0.0);
        let value = |site: usize, point: usize| fronts[site].points[point].value;
        let reached: f64 = solution.iter().enumerate().map(|(s, &p)| value(s, p)).sum();
        let bound = fronts.iter().map(|f| f.least_at(price)).sum::<f64>() - price * budget as f64;
        let scale: f64 = fronts
            .iter()
            .flat_map(|f| f.points.first())
            .map(|p| p.value.abs())
            .sum();
        let gap = reached - bound;
        let noise = 1e-12 * (scale + price * budget as f64);
        Self {
            solution,
            price,
            gap: if gap > noise { gap + noise } else { 0.0 },
        }
    }
}

impl Front {
    /// The least of damage plus cost at this price.
    fn least_at(&self, price: f64) -> f64 {
        let priced = |p: &HullPoint| p.value + price * p.cost as f64;
        self.points.iter().map(priced).fold(f64::INFINITY, f64::min)
    }

    /// The points whose price is off the least by no more than `gap`, each with
    /// by how much; at most `limit`, then the best of each stretch of cost.
    fn near(&self, price: f64, gap: f64, limit: usize) -> (Vec<(usize, f64)>, bool) {
        let least = self.least_at(price);
        let near: Vec<(usize, f64)> = (0..)
            .zip(&self.points)
            .map(|(i, p)| (i, p.value + price * p.cost as f64 - least))
            .filter(|&(_, off)| off <= gap)
            .collect();
        if near.len() <= limit {
            return (near, true);
        }
        let stretch = near.len().div_ceil(limit);
        let best = |part: &[(usize, f64)]| part.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        (near.chunks(stretch).filter_map(best).collect(), false)
    }
}

/// A partial solution over the first sites.
#[derive(Clone, Copy)]
struct SearchState {
    cost: u64,
    value: f64,
    /// How far it is off the price so far.
    off: f64,
    before: u32,
    point: u32,
}

/// Dynamic programming; a point per site where a solution is found, and whether
/// nothing was thinned.
fn search(
    fronts: &[Front],
    budget: u64,
    relaxation: &Relaxation,
    states: usize,
    choices: usize,
) -> (Option<Vec<usize>>, bool) {
    let start = SearchState {
        cost: 0,
        value: 0.0,
        off: 0.0,
        before: 0,
        point: 0,
    };
    let mut stages = vec![vec![start]];
    let mut exact = true;
    for front in fronts {
        let (points, all) = front.near(relaxation.price, relaxation.gap, choices);
        exact &= all;
        let last = stages.last().map_or(&[][..], |stage| stage.as_slice());
        let mut next = NextStep::new(last.len() * points.len(), states, budget);
        for &(point, off) in &points {
            let HullPoint { cost, value, .. } = front.points[point];
            for (before, state) in (0..).zip(last) {
                let off = state.off + off;
                // The list ascends in cost.
                let Some(cost) = state.cost.checked_add(cost).filter(|&c| c <= budget) else {
                    break;
                };
                if off <= relaxation.gap {
                    let value = state.value + value;
                    next.offer(SearchState {
                        cost,
                        value,
                        off,
                        before,
                        point: point as u32,
                    });
                }
            }
        }
        let (stage, all) = next.finish();
        exact &= all;
        stages.push(stage);
    }
    // Costs ascend and damage descends: the last is the best.
    let best = stages.last().and_then(|stage| stage.len().checked_sub(1));
    let picked = best.map(|mut index| {
        let mut picked: Vec<usize> = Vec::with_capacity(fronts.len());
        for stage in stages[1..].iter().rev() {
            picked.push(stage[index].point as usize);
            index = stage[index].before as usize;
        }
        picked.reverse();
        picked
    });
    (picked, exact)
}

/// Collects the partial solutions of a stage: all of them where they are few,
/// the best per bin of cost where they are many.
struct NextStep {
    states: Vec<SearchState>,
    bins: Option<Bins>,
    limit: usize,
    budget: u64,
    exact: bool,
}

struct Bins {
    best: Vec<Option<SearchState>>,
    per_cost: f64,
}

impl Bins {
    fn new(limit: usize, budget: u64) -> Self {
        Self {
            best: vec![None; limit],
            per_cost: limit as f64 / (budget as f64 + 1.0),
        }
    }

    /// Whether nothing had to give way.
    fn offer(&mut self, state: SearchState) -> bool {
        let bin = ((state.cost as f64 * self.per_cost) as usize).min(self.best.len() - 1);
        let held = &mut self.best[bin];
        let alone = held.is_none();
        if held.is_none_or(|held| (state.value, state.cost) < (held.value, held.cost)) {
            *held = Some(state);
        }
        alone
    }
}

impl NextStep {
    fn new(offers: usize, limit: usize, budget: u64) -> Self {
        // Sorting all of them is fast up to here.
        let few = 16 * limit;
        Self {
            states: Vec::with_capacity(offers.min(few)),
            bins: (offers > few).then(|| Bins::new(limit, budget)),
            limit,
            budget,
            exact: true,
        }
    }

    fn offer(&mut self, state: SearchState) {
        match &mut self.bins {
            Some(bins) => self.exact &= bins.offer(state),
            None => self.states.push(state),
        }
    }

    fn finish(mut self) -> (Vec<SearchState>, bool) {
        if let Some(bins) = self.bins {
            self.states = bins.best.into_iter().flatten().collect();
        }
        let mut stage = unbeaten(self.states);
        if stage.len() > self.limit {
            let mut bins = Bins::new(self.limit, self.budget);
            for state in stage {
                self.exact &= bins.offer(state);
            }
            stage = unbeaten(bins.best.into_iter().flatten().collect());
        }
        (stage, self.exact)
    }
}

/// The states that no other beats in both cost and damage: cost ascends, damage
/// descends.
fn unbeaten(mut states: Vec<SearchState>) -> Vec<SearchState> {
    states.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.value.total_cmp(&b.value)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let better = state.value < least;
        least = least.min(state.value);
        better
    });
    states
}

/// Trades between two sites at a time, each pair optimally, until none improves.
fn trade(fronts: &[Front], budget: u64, picked: &mut [usize]) {
    const ROUNDS: usize = 8;
    const WORK: usize = 100_000_000;
    let cost = |picked: &[usize]| -> u64 { fronts.iter().zip(picked).map(|(f, &p)| f.points[p].cost).sum() };
    let mut left = budget.saturating_sub(cost(picked));
    let mut work = 0;
    for _ in 0..ROUNDS {
        let mut improved = false;
        for a in 0..fronts.len() {
            for b in a + 1..fronts.len() {
                let (first, second) = (&fronts[a].points, &fronts[b].points);
                work += first.len() + second.len();
                if work > WORK {
                    return;
                }
                let now = first[picked[a]].value + second[picked[b]].value;
                let spent = first[picked[a]].cost + second[picked[b]].cost;
                let available = left + spent;
                let mut best = (now - 1e-12 * now.abs(), None);
                // As the first takes more, the second can afford less.
                let mut j = second.len();
                for (i, point) in first.iter().enumerate() {
                    let Some(rest) = available.checked_sub(point.cost) else {
                        break;
                    };
                    while j > 0 && second[j - 1].cost > rest {
                        j -= 1;
                    }
                    let Some(other) = j.checked_sub(1) else { break };
                    let value = point.value + second[other].value;
                    if value < best.0 {
                        best = (value, Some((i, other)));
                    }
                }
                if let Some((i, j)) = best.1 {
                    (picked[a], picked[b]) = (i, j);
                    left = available - first[i].cost - second[j].cost;
                    improved = true;
                }
            }
        }
        if !improved {
            return;
        }
    }
}

/// Spends what is left on steps to costlier choices that do no more damage:
/// the one that saves most, among equals the costliest, first.
fn spend(sites: &[Vec<Choice>], budget: u64, solution: &mut [usize]) {
    let spent: u64 = sites.iter().zip(&*solution).map(|(site, &i)| site[i].cost).sum();
    let mut left = budget.saturating_sub(spent);
    loop {
        let mut best: Option<(f64, u64, usize, usize)> = None;
        for (site, (choices, &now)) in sites.iter().zip(&*solution).enumerate() {
            let now = choices[now];
            for (index, choice) in choices.iter().enumerate() {
                let Some(more) = choice.cost.checked_sub(now.cost) else {
                    continue;
                };
                let saved = now.value - choice.value;
                if more == 0 || more > left || saved.is_nan() || saved < 0.0 {
                    continue;
                }
                if best.is_none_or(|(most, cost, ..)| (saved, more) > (most, cost)) {
                    best = Some((saved, more, site, index));
                }
            }
        }
        let Some((_, more, site, index)) = best else {
            return;
        };
        solution[site] = index;
        left -= more;
    }
}

#[cfg(test)]
mod tests;
