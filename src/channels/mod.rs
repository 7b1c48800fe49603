//! Fewer channels inside every head of a block: values, and queries with their keys, in
//! a basis in which the last ones hardly matter.
//!
//! ```text
//! find        which constants make the channels of a block and read them
//! basis       the basis of each head
//! curves      the basis of every block, and its error with fewer channels
//! projection  a block's output projection with its statistics
//! measure     what fewer channels of queries and keys do to the block's output
//! damage      what such an error does to the model's outputs
//! rotate      constants and statistics in another basis
//! apply       the network with fewer channels
//! ```
//!
//! A head cannot lose the same channels as another as they are, since each has its own
//! important ones; in the right basis it is the last ones for all. The change of basis
//! costs nothing: it goes into the weights. What is left is a model with a smaller head
//! size, on which heads and neurons are pruned as ever. The scale of the attention stays
//! what it was.
//!
//! How many channels a block loses follows from the price of a multiply-accumulate where
//! the budget is met: [`worth`]. The error at the output projection is known
//! for every number of them, from the statistics for values and from two passes over a few
//! samples for queries; what it does to the outputs is measured for half of them.
//!
//! Errors of queries do up to four times the harm that equal errors of removed heads do,
//! since no re-fit of the output projection takes them up: so harm is measured. It is never
//! taken to be below three tenths of that of heads. `docs/experiments.md` has the numbers.

mod apply;
mod basis;
mod curves;
mod damage;
mod find;
mod measure;
mod projection;
mod rotate;

use std::collections::BTreeMap;

pub use apply::Narrowed;
pub use find::ChannelKind;

use curves::{queries, values};
use damage::Difference;
use find::{HeadBlocks, HeadChannels, Side, find};
use rayon::prelude::*;
use rotate::Bases;

use crate::Result;
use crate::axes::{self, FactorId, GroupId, Kind, PruneGroup};
use crate::data::Samples;
use crate::engine::Ctx;
use crate::mask::{Mask, Narrowing};
use crate::network::Network;
use crate::numerics::Statistics;
use crate::rank::positions::Weights;
use crate::sites::PruneTarget;

/// Steps from all channels to none.
const STEPS: usize = 8;

/// What a narrowing did to one block.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ChannelSummary {
    /// The group of heads.
    pub group: String,
    /// Which channels.
    pub channels: ChannelKind,
    /// Channels of each head before.
    pub before: usize,
    /// And after.
    pub after: usize,
    /// Relative squared error that this makes at the output projection.
    pub error: f64,
}

impl std::fmt::Display for ChannelSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = self.channels.word();
        write!(f, "{} of {} for {of} in {}", self.after, self.before, self.group)
    }
}

/// The values, or the queries and keys, of the heads of one block, and what a loss of their
/// channels does.
#[derive(Clone)]
pub struct ChannelBlock {
    /// Index of the target: the heads.
    pub at: usize,
    /// Relative squared error at the output projection, by the number of channels that
    /// are gone.
    pub error: Vec<f64>,
    /// Numbers of channels that may stay, fewest first.
    pub levels: Vec<usize>,
    /// Damage to the outputs for an error of 1; infinite until it is measured.
    pub damage_per_error: f64,
    channels: HeadChannels,
    how: How,
    /// Rows of the output projection.
    rows: HeadBlocks,
    /// What half of the channels change, for queries until the damage is measured.
    difference: Option<Difference>,
}

#[derive(Clone)]
enum How {
    Values(Bases),
    Queries(BTreeMap<usize, basis::Pair>),
}

/// A network with what queries and keys are multiplied along left free, and where the
/// groups of the run are in it.
pub struct Open {
    /// The network.
    pub network: Network,
    /// From the index of a group to that of the same group here.
    pub groups: Vec<GroupId>,
    /// The group of each block of channels.
    blocks: Vec<GroupId>,
}

/// All blocks of channels of a network that may go.
pub struct Narrower {
    open: Open,
    blocks: Vec<ChannelBlock>,
    options: ChannelOptions,
}

/// What narrowing is told.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// What the analysis may assume.
    pub axes: axes::AnalysisOptions,
    /// Ridge of re-fitting, as a fraction of the mean diagonal.
    pub damp: f64,
    /// Heads keep a multiple of so many channels, or all.
    pub step: usize,
}

impl Open {
    /// The groups of `network` in its own open analysis; `None` where one is not there.
    fn of(network: &Network, options: axes::AnalysisOptions) -> Result<Option<Self>> {
        let open = Network::open(network.proto.clone(), options)?;
        let here = |g: &PruneGroup| {
            let sink = g.sinks.first()?;
            open.axes.group_of_sink(g.kind, sink.node, sink.activation_input)
        };
        let groups = network.axes.groups.iter().map(here).collect::<Option<_>>();
        Ok(groups.map(|groups| Open {
            groups,
            blocks: Vec::new(),
            network: open,
        }))
    }

    /// Drops a block.
    pub fn drop_block(&mut self, block: usize) {
        if block < self.blocks.len() {
            self.blocks.remove(block);
        }
    }

    /// The group of a block of channels.
    pub fn group_of_block(&self, block: usize) -> Option<GroupId> {
        self.blocks.get(block).copied()
    }

    /// The mask of a narrowing.
    pub fn mask(&self, narrowing: &Narrowing) -> Mask {
        let mut mask = Mask::default();
        for (block, kept) in &narrowing.kept {
            if let Some(group) = self.blocks.get(*block) {
                let units = self.network.group(*group).units;
                mask.kept.insert(*group, (0..units).map(|u| u < *kept).collect());
            }
        }
        mask
    }
}

/// What is known before channels are looked at.
#[derive(Clone, Copy)]
pub struct ChannelCalibration<'a> {
    /// The network.
    pub network: &'a Network,
    /// The groups that may be pruned.
    pub targets: &'a [PruneTarget],
    /// The statistics of their sinks.
    pub statistics: &'a Statistics,
    /// How much the positions of a sequence count, by site.
    pub positions: &'a Weights,
}

/// A block that was found: index of its target, its channels, the factor of its heads.
type FoundChannels = (usize, HeadChannels, FactorId);

impl Narrower {
    /// Finds which channels may go; `None` where there are none. The bases of queries and
    /// keys are those of `many` samples, what fewer channels of them do is measured on a
    /// `few`.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn find(
        ctx: Ctx,
        known: ChannelCalibration,
        [many, few]: [&Samples; 2],
        options: ChannelOptions,
    ) -> Result<Option<Self>> {
        let ChannelCalibration { network, targets, .. } = known;
        let Some(mut open) = Open::of(network, options.axes)? else {
            return Ok(None);
        };
        let mut found: Vec<FoundChannels> = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            let Some(id) = open.groups.get(target.group.0) else {
                continue;
            };
            let heads = open.network.group(*id);
            let whole = matches!(&target.sites[..], [site] if site.weight.is_some());
            if heads.kind != Kind::Heads || !whole {
                continue;
            }
            let own = find(&open.network, heads);
            let wide = own
                .into_iter()
                .filter(|c| !levels(c.count, options.step).is_empty());
            found.extend(wide.map(|c| (at, c, heads.leaf)));
        }
        let of = |kind: ChannelKind| found.iter().filter(move |(_, c, _)| c.what == kind);
        let of_values: Vec<&FoundChannels> = of(ChannelKind::Values).collect();
        let measured: Vec<_> = of_values
            .par_iter()
            .map(|found| values(&open.network, known, found, options.damp))
            .collect();
        let mut blocks = Vec::new();
        for ((at, channels, _), measured) in of_values.into_iter().zip(measured) {
            blocks.extend(measured?.map(|(how, rows, error)| ChannelBlock {
                at: *at,
                error,
                levels: levels(channels.count, options.step),
                channels: channels.clone(),
                how,
                rows,
                damage_per_error: f64::INFINITY,
                difference: None,
            }));
        }
        let of_queries: Vec<&FoundChannels> = of(ChannelKind::QueriesAndKeys).collect();
        let measured = queries(ctx, &open.network, known, [many, few], &of_queries)?;
        for ((at, channels, _), measured) in of_queries.into_iter().zip(measured) {
            if let Some((pairs, error, difference)) = measured {
                blocks.push(ChannelBlock {
                    at: *at,
                    error,
                    levels: levels(channels.count, options.step),
                    channels: channels.clone(),
                    how: How::Queries(pairs),
                    rows: HeadBlocks::new(),
                    damage_per_error: f64::INFINITY,
                    difference: Some(difference),
                });
            }
        }
        open.blocks = blocks.iter().map(|b| b.channels.group).collect();
        Ok((!blocks.is_empty()).then_some(Self {
            open,
            blocks,
            options,
        }))
    }

    /// The open analysis of the network.
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// The same of what lossless passes make of the network, in which group `i` is
    /// `groups[i]`; `None` where its blocks are others.
    ///
    /// # Errors
    /// A graph that is not well-formed.
    pub fn elsewhere(&self, network: &Network, groups: &[GroupId]) -> Result<Option<Open>> {
        let Some(mut open) = Open::of(network, self.options.axes)? else {
            return Ok(None);
        };
        let there = |block: &GroupId| {
            let group = self.open.network.group(*block);
            open.network.axes.find_group(&group.name, group.kind, group.units)
        };
        let blocks: Option<_> = self.open.blocks.iter().map(there).collect();
        let groups: Option<_> = groups.iter().map(|g| open.groups.get(g.0).copied()).collect();
        Ok(match (blocks, groups) {
            (Some(blocks), Some(groups)) => {
                (open.blocks, open.groups) = (blocks, groups);
                Some(open)
            }
            _ => None,
        })
    }

    /// The blocks of channels.
    pub fn blocks(&self) -> &[ChannelBlock] {
        &self.blocks
    }

    /// What a narrowing does, in words.
    pub fn told(
        &self,
        network: &Network,
        targets: &[PruneTarget],
        narrowing: &Narrowing,
    ) -> Vec<ChannelSummary> {
        let told = |(block, kept): &(usize, usize)| {
            let block = self.blocks.get(*block)?;
            Some(ChannelSummary {
                group: network.group(targets.get(block.at)?.group).name.clone(),
                channels: block.channels.what,
                before: block.channels.count,
                after: *kept,
                error: block.error.get(block.channels.count - kept).copied()?,
            })
        };
        narrowing.kept.iter().filter_map(told).collect()
    }
}

impl Narrower {
    /// Takes the basis of a block of another network with the same weights, so that both
    /// stay one model. `false` where the two are not alike.
    pub fn adopt(&mut self, block: usize, of: &ChannelBlock) -> bool {
        let Some(own) = self.blocks.get_mut(block) else {
            return false;
        };
        if own.count() != of.count() || own.levels != of.levels {
            return false;
        }
        match (&mut own.how, &of.how) {
            (How::Values(own), How::Values(of)) if own.keys().eq(of.keys()) => own.clone_from(of),
            (How::Queries(own), How::Queries(of)) if own.keys().eq(of.keys()) => own.clone_from(of),
            _ => return false,
        }
        true
    }

    /// Drops a block: its heads keep these channels.
    pub fn drop_block(&mut self, block: usize) {
        if block < self.blocks.len() {
            self.blocks.remove(block);
            self.open.drop_block(block);
        }
    }
}

impl ChannelBlock {
    /// Channels of each head.
    pub fn count(&self) -> usize {
        self.channels.count
    }

    /// Which channels these are.
    pub fn kind(&self) -> ChannelKind {
        self.channels.what
    }

    /// The damage that the loss of all but `kept` channels does while all heads stay.
    pub fn damage(&self, kept: usize) -> f64 {
        let gone = self.count().saturating_sub(kept);
        self.damage_per_error * self.error.get(gone).copied().unwrap_or(1.0)
    }
}

/// The numbers of channels that are worth their price, by index of the set; each set of
/// blocks keeps one number. `price` is what a channel of the set costs, in damage. Damage and
/// price shrink alike with the number of heads that stay, so this number does not matter.
pub fn worth(sets: &[(Vec<&ChannelBlock>, f64)]) -> Vec<Option<usize>> {
    let best = |(blocks, price): &(Vec<&ChannelBlock>, f64)| {
        let first = blocks.first()?;
        let total = |kept: usize| {
            let damage: f64 = blocks.iter().map(|b| b.damage(kept)).sum();
            damage + price * kept as f64
        };
        let levels = first.levels.iter().copied();
        let best = levels.min_by(|a, b| total(*a).total_cmp(&total(*b)))?;
        (total(best) < total(first.count())).then_some(best)
    };
    sets.iter().map(best).collect()
}

/// Numbers of channels that may stay, fewest first and not all of them: in even steps of a
/// multiple of `least`. None where there are too few channels for that.
fn levels(count: usize, least: usize) -> Vec<usize> {
    let least = least.max(1);
    let step = (count / STEPS).next_multiple_of(least).max(least);
    match count.is_multiple_of(step) {
        true => (step..count).step_by(step).collect(),
        false => Vec::new(),
    }
}

/// Whose channels the makers of a turn make.
fn side_bases(how: &How, side: Side) -> Bases {
    match how {
        How::Values(bases) => bases.clone(),
        How::Queries(pairs) => pairs
            .iter()
            .map(|(head, pair)| {
                let own = match side {
                    Side::Left => &pair.queries,
                    Side::Right => &pair.keys,
                };
                (*head, own.clone())
            })
            .collect(),
    }
}
