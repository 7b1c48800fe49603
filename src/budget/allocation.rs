//! A mask and what it costs.

use super::align::Align;
use super::cost::Cost;
use super::goal::Demand;
use super::prices::Prices;
use crate::axes::Kind;
use crate::mask::{Mask, Narrowing};
use crate::sites::PruneTarget;
use crate::{Error, Result};

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

impl Budget {
    /// What the dense networks and a mask of each cost.
    pub fn of(costs: &[(&Cost, &[PruneTarget], &Mask)]) -> Self {
        let mut budget = Budget {
            asked: 0.0,
            got: 0.0,
            prunable: 0,
            whole_before: 0,
            whole_after: 0,
            floor: 0.0,
            cheapest_step: 0,
        };
        let mut spent = 0u64;
        for (cost, targets, mask) in costs {
            let (after, full) = (cost.macs(mask), cost.dense_macs(&Mask::default()));
            let base = cost.dense_macs(&empty(targets));
            spent = spent.saturating_add(after.saturating_sub(base));
            budget.prunable = budget.prunable.saturating_add(full.saturating_sub(base));
            budget.whole_before = budget.whole_before.saturating_add(full);
            budget.whole_after = budget.whole_after.saturating_add(after);
        }
        budget.got = spent as f64 / budget.prunable.max(1) as f64;
        budget.asked = budget.got;
        budget
    }

    /// # Errors
    /// [`Error::Unmet`] when more was spent than a fraction of the multiply-accumulates
    /// allows.
    pub fn check(&self, demand: Demand) -> Result<()> {
        let Demand::Flops(asked) = demand else {
            return Ok(());
        };
        let removed = self.whole_before.saturating_sub(self.whole_after);
        let spent = self.prunable.saturating_sub(removed);
        if spent > (asked * self.prunable as f64).floor() as u64 {
            return Err(Error::Unmet(format!(
                "the mask found costs {} of the prunable blocks, more than {asked}",
                self.got
            )));
        }
        Ok(())
    }
}

/// All targets without a unit.
fn empty(targets: &[PruneTarget]) -> Mask {
    let mut mask = Mask::default();
    for target in targets {
        mask.kept.insert(target.group, vec![false; target.units.len()]);
    }
    mask
}

/// Multiply-accumulates of the cheapest step from one number of units that may stay to
/// the next; `prices` are those of multiply-accumulates.
pub fn cheapest_step(prices: &Prices, targets: &[PruneTarget], align: Align) -> u64 {
    let steps = targets.iter().zip(&prices.levels).map(|(target, levels)| {
        let units = target.units.len();
        let unit = levels.last().copied().unwrap_or(0) / units.max(1) as u64;
        match target.kind {
            Kind::Neurons => unit.saturating_mul(align.of(units) as u64),
            _ => unit,
        }
    });
    steps.filter(|step| *step > 0).min().unwrap_or(0)
}

/// What a mask that was made elsewhere costs.
pub fn of_mask(cost: &Cost, targets: &[PruneTarget], mask: Mask) -> Allocation {
    Allocation {
        budget: Budget::of(&[(cost, targets, &mask)]),
        damage: vec![0.0; targets.len()],
        mask,
        narrowing: Narrowing::default(),
    }
}
