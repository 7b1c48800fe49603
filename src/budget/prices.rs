//! What each level of each group costs, in one measure.

use super::cost::Cost;
use super::goal::{Demand, Measure};
use crate::mask::Mask;
use crate::sites::PruneTarget;

/// Additive costs of the chosen groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    /// What is counted.
    pub measure: Measure,
    /// The whole model with every chosen group empty.
    pub base: u64,
    /// The whole model, dense.
    pub full: u64,
    /// The dense model with every chosen group empty: fractions of the prunable
    /// blocks count from here. More than `base` where lossless passes save
    /// something outside of the groups.
    pub origin: u64,
    /// Per chosen group, by the number of kept units (0 to all): what it adds to
    /// `base`.
    pub levels: Vec<Vec<u64>>,
}

impl Prices {
    /// Multiply-accumulates.
    pub fn macs(cost: &Cost, targets: &[PruneTarget]) -> Self {
        let dense = Self::linear(Measure::Macs, targets, |mask| cost.dense_macs(mask));
        Self::linear(Measure::Macs, targets, |mask| cost.macs(mask)).after(&dense)
    }

    /// Elements of constants.
    pub fn parameters(cost: &Cost, targets: &[PruneTarget]) -> Self {
        let dense = Self::linear(Measure::Parameters, targets, |mask| cost.dense_parameters(mask));
        Self::linear(Measure::Parameters, targets, |mask| cost.parameters(mask)).after(&dense)
    }

    /// Bytes of the written files; `written` is what the dense model takes
    /// ([`crate::onnx::written_size`]). What is not weights (nodes, names, shape
    /// constants) counts as if it stayed, which it does to within a few bytes a
    /// group: the written size of the result tells how many, and
    /// [`Limit::tighten`] takes them off.
    pub fn bytes(cost: &Cost, targets: &[PruneTarget], written: u64) -> Self {
        let mut dense = Self::linear(Measure::Bytes, targets, |mask| cost.dense_bytes(mask));
        let mut prices = Self::linear(Measure::Bytes, targets, |mask| cost.bytes(mask));
        let other = written.saturating_sub(dense.full);
        prices.base = (prices.base + other).min(written);
        dense.base = (dense.base + other).min(written);
        dense.full = written;
        prices.after(&dense)
    }

    /// These prices, with fractions that count in what the dense model costs.
    fn after(self, dense: &Self) -> Self {
        Prices {
            full: dense.full,
            origin: dense.base,
            ..self
        }
    }

    /// The prices of several networks together, one per item: `members` has for each item
    /// its place in each network that has it.
    pub fn joint(networks: &[Prices], members: &[Vec<(usize, usize)>]) -> Option<Self> {
        let measure = networks.first()?.measure;
        let sum = |of: fn(&Prices) -> u64| networks.iter().map(of).fold(0, u64::saturating_add);
        let levels = members.iter().map(|members| {
            let mut own = members
                .iter()
                .filter_map(|(n, at)| networks.get(*n)?.levels.get(*at));
            let mut total = own.next().cloned().unwrap_or_default();
            for levels in own {
                let pairs = total.iter_mut().zip(levels);
                pairs.for_each(|(sum, more)| *sum = sum.saturating_add(*more));
            }
            total
        });
        Some(Prices {
            measure,
            base: sum(|p| p.base),
            full: sum(|p| p.full),
            origin: sum(|p| p.origin),
            levels: levels.collect(),
        })
    }

    /// From a cost of the whole model that is linear in the units of each group.
    fn linear(measure: Measure, targets: &[PruneTarget], of: impl Fn(&Mask) -> u64) -> Self {
        let full = of(&Mask::default());
        let mut base = full;
        let levels = targets
            .iter()
            .map(|c| {
                let units = c.units.len();
                let mut empty = Mask::default();
                empty.kept.insert(c.group, vec![false; units]);
                let all = full.saturating_sub(of(&empty));
                base = base.saturating_sub(all);
                (0..=units)
                    .map(|kept| {
                        let part = u128::from(all) * kept as u128;
                        u64::try_from(part.div_ceil(units.max(1) as u128)).unwrap_or(u64::MAX)
                    })
                    .collect()
            })
            .collect();
        Prices {
            measure,
            base,
            full,
            origin: base,
            levels,
        }
    }

    /// The whole model with these numbers of units kept, in the order of the
    /// chosen groups.
    pub fn total(&self, kept: &[usize]) -> u64 {
        self.levels.iter().zip(kept).fold(self.base, |sum, (levels, k)| {
            sum.saturating_add(levels.get(*k).or(levels.last()).copied().unwrap_or(0))
        })
    }
}

/// A demand and what it means for the groups.
#[derive(Debug, Clone)]
pub struct Limit {
    /// What was asked.
    pub demand: Demand,
    /// What the levels cost.
    pub prices: Prices,
    /// The most that the whole model may cost.
    pub most: u64,
}

impl Limit {
    /// The limit that a demand sets. `prices` are those of its measure.
    pub fn new(demand: Demand, prices: Prices) -> Self {
        let most = demand.most(prices.origin, prices.full);
        Limit { demand, prices, most }
    }

    /// What is left for the groups.
    pub fn budget(&self) -> Option<u64> {
        self.most.checked_sub(self.prices.base)
    }

    /// Whether a model smaller than the dense one may miss it.
    pub fn binds(&self) -> bool {
        self.prices.full > self.most
    }

    /// Asks for less than the demand, by what the result turned out to cost
    /// above its prediction.
    pub fn tighten(&mut self, by: u64) {
        self.most = self.most.saturating_sub(by);
    }

    /// Allows more than the demand, by what the result turned out to cost below its
    /// prediction.
    pub fn relax(&mut self, by: u64) {
        self.most = self.most.saturating_add(by);
    }

    /// What a cost of the whole model is in terms of the demand.
    pub fn at(&self, cost: u64) -> Demand {
        self.demand.at(cost, self.prices.origin, self.prices.full)
    }
}
