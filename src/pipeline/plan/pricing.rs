//! What units and channels cost in each measure that a goal counts.

use super::{Planner, has_channels};
use crate::budget::{Demand, Limit, Measure, Prices};
use crate::channels::ChannelBlock;
use crate::mask::{Mask, Narrowing};
use crate::pipeline::latency::Times;
use crate::pipeline::ranked::Ranked;
use crate::{Error, Result};

/// What was measured before a plan is made, and what results have taught since.
pub struct Pricing {
    /// Per network: bytes of the dense model as it would be written.
    pub(super) written: Vec<u64>,
    /// Per network: what units and channels take, where a demand on time may bind.
    pub(super) times: Option<Vec<Times>>,
    /// Per demand: what a limit is moved by, since results cost other than was predicted.
    pub(super) moved: Vec<i128>,
}

impl Pricing {
    /// The limits of some demands where channels are gone.
    pub(super) fn limits(
        &self,
        planner: &Planner,
        demands: &[Demand],
        narrowings: &[Narrowing],
    ) -> Result<Vec<Limit>> {
        let members: Vec<Vec<(usize, usize)>> = (planner.classes.iter())
            .map(|class| class.members.iter().map(|m| (m.file, m.target)).collect())
            .collect();
        let mut limits = Vec::with_capacity(demands.len());
        for (at, demand) in demands.iter().enumerate() {
            let own = (planner.networks.iter().zip(narrowings).enumerate())
                .map(|(network, (ranked, narrowing))| self.prices(*demand, network, ranked, narrowing))
                .collect::<Result<Vec<_>>>()?;
            let joint = Prices::joint(&own, &members);
            let prices = joint.ok_or_else(|| Error::input("there is no network to plan for"))?;
            let mut limit = Limit::new(*demand, prices);
            let moved = self.moved.get(at).copied().unwrap_or(0);
            limit.most = (i128::from(limit.most) + moved).clamp(0, i128::from(u64::MAX)) as u64;
            limits.push(limit);
        }
        Ok(limits)
    }

    fn prices(
        &self,
        demand: Demand,
        network: usize,
        ranked: &Ranked,
        narrowing: &Narrowing,
    ) -> Result<Prices> {
        let (cost, targets) = (ranked.cost_of(narrowing), ranked.targets());
        Ok(match demand.measure() {
            Measure::Macs => Prices::macs(&cost, targets),
            Measure::Parameters => Prices::parameters(&cost, targets),
            Measure::Bytes => {
                let written = self.written.get(network).copied().unwrap_or(0);
                Prices::bytes(&cost, targets, written)
            }
            Measure::Nanoseconds => {
                let times = self.times.as_ref().and_then(|t| t.get(network));
                let times = times.ok_or_else(|| Error::input(format!("{demand} was not measured")))?;
                let mut prices = times.prices.clone();
                for (block, kept) in &narrowing.kept {
                    let Some(own) = planner_block(ranked, *block) else {
                        continue;
                    };
                    let ratio = times.ratio(*block, *kept);
                    if let Some(levels) = prices.levels.get_mut(own.at) {
                        levels.iter_mut().for_each(|ns| *ns = (*ns as f64 * ratio) as u64);
                    }
                }
                prices
            }
        })
    }

    /// Per set of channels, what one channel costs in terms of each demand while all heads
    /// stay.
    pub(super) fn channel_costs(&self, planner: &Planner, demands: &[Demand]) -> Result<Vec<Vec<f64>>> {
        let of_set = |set: &super::ChannelSet| -> Vec<f64> {
            let of_demand = |demand: &Demand| {
                let members = set.members.iter();
                members
                    .map(|(network, block)| {
                        self.channel_cost(*demand, planner.networks[*network], *network, *block)
                    })
                    .sum()
            };
            demands.iter().map(of_demand).collect()
        };
        Ok(planner.sets.iter().map(of_set).collect())
    }

    fn channel_cost(&self, demand: Demand, ranked: &Ranked, network: usize, block: usize) -> f64 {
        let Some((own, least)) =
            planner_block(ranked, block).and_then(|own| Some((own, *own.levels.first()?)))
        else {
            return 0.0;
        };
        let count = own.count();
        let channels = (count - least).max(1) as f64;
        if demand.measure() == Measure::Nanoseconds {
            let Some(times) = self.times.as_ref().and_then(|t| t.get(network)) else {
                return 0.0;
            };
            let all = times.prices.levels.get(own.at).and_then(|l| l.last());
            let all = all.copied().unwrap_or(0) as f64;
            return all * (1.0 - times.ratio(block, least)).max(0.0) / channels;
        }
        let cost = |kept: usize| {
            let narrowing = Narrowing {
                kept: vec![(block, kept)],
            };
            let cost = ranked.open_cost(&narrowing)?;
            let none = Mask::default();
            Some(match demand.measure() {
                Measure::Macs => cost.macs(&none),
                Measure::Parameters => cost.parameters(&none),
                _ => cost.bytes(&none),
            })
        };
        match (
            cost(count),
            cost(least),
            has_channels(ranked.targets()[own.at].kind),
        ) {
            (Some(all), Some(few), true) => all.saturating_sub(few) as f64 / channels,
            _ => 0.0,
        }
    }
}

fn planner_block<'r>(ranked: &'r Ranked, at: usize) -> Option<&'r ChannelBlock> {
    ranked.channels.as_ref()?.narrower.blocks().get(at)
}
