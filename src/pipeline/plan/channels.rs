//! Channels inside heads: which of them are worth their price where a goal is met.

use super::pricing::Pricing;
use super::{FoundPlan, Planner, has_channels};
use crate::budget::shared::FileClass;
use crate::budget::{Demand, Limit};
use crate::channels::{ChannelBlock, ChannelKind, worth};
use crate::mask::Narrowing;
use crate::pipeline::ranked::Ranked;
use crate::{Error, Result};

/// How often the price is asked for again once channels are gone.
const ROUNDS: usize = 3;
/// The change of a budget by which its price is told, as a fraction of what can be pruned.
const STEP: f64 = 0.02;

/// Blocks of channels that keep one number: one block, or those of the networks that share
/// its weights.
pub(super) struct ChannelSet {
    /// Network and index of the block there.
    pub(super) members: Vec<(usize, usize)>,
}

/// The sets of all networks.
pub(super) fn sets(networks: &[&Ranked], classes: &[FileClass]) -> Vec<ChannelSet> {
    let mut sets = Vec::new();
    for class in classes {
        for kind in [ChannelKind::Values, ChannelKind::QueriesAndKeys] {
            let members = class.members.iter().map(|member| {
                let blocks = networks[member.file].channels.as_ref()?.narrower.blocks();
                let own = |b: &ChannelBlock| b.at == member.target && b.kind() == kind;
                let at = blocks.iter().position(own)?;
                Some((member.file, at))
            });
            let Some(members) = members.collect::<Option<Vec<_>>>() else {
                continue;
            };
            sets.push(ChannelSet { members });
        }
    }
    sets
}

impl Planner<'_> {
    /// A block of channels.
    pub(super) fn block(&self, (network, at): (usize, usize)) -> Option<&ChannelBlock> {
        let channels = self.networks.get(network)?.channels.as_ref()?;
        channels.narrower.blocks().get(at)
    }

    /// The best allocation that loses channels too, where that is better than `whole`.
    pub(super) fn with_channels(
        &self,
        demands: &[Demand],
        pricing: &Pricing,
        whole: FoundPlan,
    ) -> Result<FoundPlan> {
        let none = vec![Narrowing::default(); self.networks.len()];
        let Some(mut prices) = self.prices(demands, pricing, &none)? else {
            return Ok(whole);
        };
        let costs = pricing.channel_costs(self, demands)?;
        let mut best = whole;
        for _ in 0..ROUNDS {
            let narrowings = self.at_prices(&prices, &costs);
            if narrowings.iter().all(Narrowing::is_empty) {
                break;
            }
            let limits = pricing.limits(self, demands, &narrowings)?;
            let found = match self.allocated(&limits, &narrowings) {
                Err(Error::Unmet(_)) => break,
                found => self.with_damage(found?),
            };
            let again = self.prices(demands, pricing, &found.narrowings)?;
            if found.total() < best.total() {
                best = found;
            }
            let Some(again) = again else { break };
            // What is bought elsewhere gets cheaper as channels go.
            for (price, again) in prices.iter_mut().zip(again) {
                *price = (*price * again).sqrt();
            }
        }
        Ok(best)
    }

    /// The channels that are worth what they cost; `prices` are those of the demands,
    /// `costs` what a channel of each set costs in terms of each demand.
    fn at_prices(&self, prices: &[f64], costs: &[Vec<f64>]) -> Vec<Narrowing> {
        let priced = self.sets.iter().zip(costs).map(|(set, costs)| {
            let blocks = set.members.iter().filter_map(|m| self.block(*m)).collect();
            let price: f64 = prices.iter().zip(costs).map(|(p, c)| p * c).sum();
            (blocks, price)
        });
        let priced: Vec<(Vec<&ChannelBlock>, f64)> = priced.collect();
        let mut narrowings = vec![Narrowing::default(); self.networks.len()];
        for (set, kept) in self.sets.iter().zip(worth(&priced)) {
            let Some(kept) = kept else { continue };
            for (network, block) in &set.members {
                narrowings[*network].kept.push((*block, kept));
            }
        }
        for narrowing in &mut narrowings {
            narrowing.kept.sort_unstable();
        }
        narrowings
    }

    /// An allocation with what its narrowing does added to the groups of heads.
    fn with_damage(&self, mut found: FoundPlan) -> FoundPlan {
        for (network, narrowing) in found.narrowings.iter().enumerate() {
            let ranked = self.networks[network];
            for (at, kept) in &narrowing.kept {
                let Some(block) = self.block((network, *at)) else {
                    continue;
                };
                let target = &ranked.targets()[block.at];
                let left = found.masks[network].count(&ranked.network().axes, target.group);
                let share = match has_channels(target.kind) {
                    true => left as f64 / target.units.len().max(1) as f64,
                    false => 1.0,
                };
                found.damage[network][block.at] += share * block.damage(*kept);
            }
        }
        found
    }

    /// The damage that one more of what each demand counts would save where all are met;
    /// 0 for one that does not bind, `None` where none does.
    fn prices(
        &self,
        demands: &[Demand],
        pricing: &Pricing,
        narrowings: &[Narrowing],
    ) -> Result<Option<Vec<f64>>> {
        let limits = pricing.limits(self, demands, narrowings)?;
        let prices: Vec<f64> = (0..limits.len())
            .map(|at| self.price(&limits, at, narrowings).unwrap_or(0.0))
            .collect();
        Ok(prices.iter().any(|p| *p > 0.0).then_some(prices))
    }

    fn price(&self, limits: &[Limit], at: usize, narrowings: &[Narrowing]) -> Option<f64> {
        let limit = limits.get(at).filter(|l| l.binds() || limits.len() == 1)?;
        let prices = &limit.prices;
        let step = (STEP * prices.full.saturating_sub(prices.origin) as f64) as u64;
        let damage = |most: u64| {
            let mut limits = limits.to_vec();
            limits.get_mut(at)?.most = most;
            Some(self.allocated(&limits, narrowings).ok()?.total())
        };
        let high = limit.most.saturating_add(step).min(prices.full.max(limit.most));
        let more = damage(high)?;
        let low = limit.most.saturating_sub(step);
        let (less, low) = match damage(low) {
            Some(less) => (less, low),
            None => (damage(limit.most)?, limit.most),
        };
        let price = (less - more) / high.saturating_sub(low) as f64;
        (price.is_finite() && price > 0.0).then_some(price)
    }
}
