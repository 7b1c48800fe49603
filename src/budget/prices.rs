//! What each level of each group costs, in one measure.

use super::cost::Cost;
use super::goal::{Measure, Target};
use crate::axes::Analysis;
use crate::mask::Mask;
use crate::sites::Chosen;

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
    pub fn macs(cost: &Cost, analysis: &Analysis, chosen: &[Chosen]) -> Self {
        let dense = Self::linear(Measure::Macs, analysis, chosen, |mask| cost.dense_macs(mask));
        Prices {
            full: dense.full,
            origin: dense.base,
            ..Self::linear(Measure::Macs, analysis, chosen, |mask| cost.macs(mask))
        }
    }

    /// Elements of constants.
    pub fn parameters(cost: &Cost, analysis: &Analysis, chosen: &[Chosen]) -> Self {
        Self::linear(Measure::Parameters, analysis, chosen, |mask| {
            cost.parameters(mask)
        })
    }

    /// Bytes of the written files; `written` is what the dense model takes
    /// ([`crate::onnx::written_size`]). What is not weights (nodes, names, shape
    /// constants) counts as if it stayed, which it does to within a few bytes a
    /// group: the written size of the result tells how many, and
    /// [`Limit::tighten`] takes them off.
    pub fn bytes(cost: &Cost, analysis: &Analysis, chosen: &[Chosen], written: u64) -> Self {
        let mut prices = Self::linear(Measure::Bytes, analysis, chosen, |mask| cost.bytes(mask));
        let other = written.saturating_sub(prices.full);
        prices.base = (prices.base + other).min(written);
        prices.full = written;
        prices.origin = prices.base;
        prices
    }

    /// From a cost of the whole model that is linear in the units of each group.
    fn linear(measure: Measure, analysis: &Analysis, chosen: &[Chosen], of: impl Fn(&Mask) -> u64) -> Self {
        let full = of(&Mask::default());
        let mut base = full;
        let levels = chosen
            .iter()
            .map(|c| {
                let units = analysis.groups[c.group].units;
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

/// A target and what it means for the groups.
#[derive(Debug, Clone)]
pub struct Limit {
    /// What was asked.
    pub target: Target,
    /// What the levels cost.
    pub prices: Prices,
    /// The most that the whole model may cost.
    pub most: u64,
}

impl Limit {
    /// The limit that a target sets. `prices` are those of its measure.
    pub fn new(target: Target, prices: Prices) -> Self {
        let most = target.most(prices.origin, prices.full);
        Limit { target, prices, most }
    }

    /// What is left for the groups.
    pub fn budget(&self) -> Option<u64> {
        self.most.checked_sub(self.prices.base)
    }

    /// Asks for less than the target, by what the result turned out to cost
    /// above its prediction.
    pub fn tighten(&mut self, by: u64) {
        self.most = self.most.saturating_sub(by);
    }

    /// Allows more than the target, by what the result turned out to cost below its
    /// prediction.
    pub fn relax(&mut self, by: u64) {
        self.most = self.most.saturating_add(by);
    }

    /// What a cost of the whole model is in terms of the target.
    pub fn at(&self, cost: u64) -> Target {
        self.target.at(cost, self.prices.origin, self.prices.full)
    }
}
