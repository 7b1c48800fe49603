//! All units ranked, what removing them costs measured, and the channels that may go.

use std::ops::RangeInclusive;

use super::calibrated::Calibrated;
use super::journal::Journal;
use super::source::Source;
use crate::Result;
use crate::axes::Kind;
use crate::budget::Cost;
use crate::channels::{Narrower, Open};
use crate::data::{Samples, split};
use crate::engine::Engine as _;
use crate::mask::Narrowing;
use crate::network::Network;
use crate::numerics::score::Ranking;
use crate::rank::probe::Probe;
use crate::rank::{self, Rankings, damage, removed};
use crate::sites::PruneTarget;

/// Samples that damage is measured on, and the dense passes over all samples that this may
/// cost.
const PROBE_SAMPLES: RangeInclusive<usize> = 8..=128;
const DAMAGE_PASSES: f64 = 0.7;
/// Samples that the bases of queries and keys are made of, and the dense passes over all
/// samples that this may cost: some positions (the first, the last) have keys of their
/// own, and there are as many of these as samples.
const BASIS_SAMPLES: RangeInclusive<usize> = 16..=64;
const BASIS_PASSES: f64 = 0.13;
/// The same for the damage that a loss of channels does.
const CHANNEL_SAMPLES: RangeInclusive<usize> = 6..=21;
const CHANNEL_PASSES: f64 = 0.3;
/// The damage of channels is at least this fraction of what an equal error does when heads
/// go, which more samples have measured.
const LEAST: f64 = 0.3;

/// What is known of all units.
pub struct Ranked<'a> {
    /// What the inputs said.
    pub calibrated: Calibrated<'a>,
    /// What the method says.
    pub rankings: Rankings,
    /// Whether the curves of [`Ranked::rankings`] are damage that was measured.
    pub measured: bool,
    /// Channels that heads may lose.
    pub(super) channels: Option<Channels>,
    pub(super) journal: Journal,
}

/// Channels that heads may lose.
pub(super) struct Channels {
    pub(super) narrower: Narrower,
    /// The simplified network, where there is one.
    simplified: Option<Open>,
}

/// Ranks all units, and measures what removing them costs.
///
/// # Errors
/// Statistics that are missing, an interrupt.
pub fn rank(calibrated: Calibrated) -> Result<Ranked> {
    let source = &calibrated.source;
    let mut journal = Journal::new(source.options.strict);
    if source.options.has_mask() {
        return Ok(Ranked {
            calibrated,
            rankings: Rankings::default(),
            measured: false,
            channels: None,
            journal,
        });
    }
    let measures = source.measures();
    let mut rankings = rank::rank(
        source.network(),
        &source.targets,
        &calibrated.statistics,
        &source.options.rank,
        measures,
    )?;
    journal.lap("ranking");
    let (mut measured, mut channels) = (false, None);
    if measures {
        let errors = |ranking: &Ranking| match ranking {
            Ranking::Curve(curve) => Some(curve.error.clone()),
            _ => None,
        };
        let local: Vec<Option<Vec<f64>>> = match source.narrows() {
            true => rankings.rankings.iter().map(errors).collect(),
            false => Vec::new(),
        };
        let curves = measure_damage(&calibrated, &rankings);
        let curves = journal.attempt(
            curves,
            "damage",
            "the damage that each group does to the outputs could not be measured",
            "the relative error at its own sink stands in, which made the divergence of a six-layer BERT 5 times \
             as large",
        )?;
        rankings.levels.clear();
        if let Some(curves) = curves.filter(|c| !c.is_empty()) {
            measured = true;
            rankings.rankings = curves
                .into_iter()
                .map(|c| c.map_or(Ranking::Whole, Ranking::Curve))
                .collect();
        }
        journal.lap("damage");
        if measured && source.narrows() {
            let found = find_channels(&calibrated, &rankings, &local);
            let found = journal.attempt(
                found,
                "channels",
                "what fewer channels inside heads do could not be measured",
                "heads keep all their channels, which costs about a third of the divergence",
            )?;
            channels = found.flatten();
            journal.lap("channels");
        }
    }
    Ok(Ranked {
        calibrated,
        rankings,
        measured,
        channels,
        journal,
    })
}

impl<'a> Ranked<'a> {
    /// The same with other rankings, one per target: scores of one's own.
    #[must_use]
    pub fn with_rankings(self, rankings: Vec<Ranking>) -> Self {
        Ranked {
            rankings: Rankings {
                rankings,
                ..self.rankings
            },
            measured: false,
            channels: None,
            ..self
        }
    }

    /// What the run started from.
    pub fn source(&self) -> &Source<'a> {
        &self.calibrated.source
    }

    /// The network that is pruned.
    pub fn network(&self) -> &Network {
        self.source().network()
    }

    /// The groups that may be pruned.
    pub fn targets(&self) -> &[PruneTarget] {
        &self.source().targets
    }

    /// Costs of what is left once channels are gone.
    pub fn cost_of(&self, narrowing: &Narrowing) -> Cost<'_> {
        let cost = self.source().cost();
        match &self.channels {
            Some(channels) if !narrowing.is_empty() => {
                let open = channels.open();
                cost.narrowed(
                    &open.network,
                    &open.groups,
                    open.mask(narrowing),
                    &self.source().sizes,
                )
            }
            _ => cost,
        }
    }

    /// The same where no channel is gone, by the network in which channels are counted: what
    /// a channel costs is the difference of two such costs.
    pub(super) fn open_cost(&self, narrowing: &Narrowing) -> Option<Cost<'_>> {
        let open = self.channels.as_ref()?.open();
        let cost = self.source().cost();
        Some(cost.narrowed(
            &open.network,
            &open.groups,
            open.mask(narrowing),
            &self.source().sizes,
        ))
    }
}

impl Channels {
    /// Heads keep the channels of this block.
    pub(super) fn drop_block(&mut self, block: usize) {
        self.narrower.drop_block(block);
        if let Some(open) = &mut self.simplified {
            open.drop_block(block);
        }
    }

    /// The network whose channels cost something.
    pub(super) fn open(&self) -> &Open {
        self.simplified.as_ref().unwrap_or(self.narrower.open())
    }
}

fn measure_damage(
    calibrated: &Calibrated,
    rankings: &Rankings,
) -> Result<Vec<Option<crate::numerics::score::Curve>>> {
    let source = &calibrated.source;
    let changes: usize = source.targets.iter().map(|t| rank::levels(t.kind).len()).sum();
    let count = source.probed(source.options.probe, changes, DAMAGE_PASSES, PROBE_SAMPLES);
    let few = split::spread(&source.samples, count);
    let mut probe = Probe::new(source.ctx(), source.network(), &few, &source.outputs())?;
    let damp = source.options.rank.damp;
    damage::measure(
        &mut probe,
        &source.targets,
        rankings,
        &calibrated.statistics,
        damp,
    )
}

/// Finds the channels that may go; `local` are the errors at the sinks of the targets, by
/// which their measured damage is put in relation.
fn find_channels(
    calibrated: &Calibrated,
    rankings: &Rankings,
    local: &[Option<Vec<f64>>],
) -> Result<Option<Channels>> {
    let source = &calibrated.source;
    let heads = source.targets.iter().filter(|t| t.kind == Kind::Heads).count();
    let few = source.probed(None, 2 * heads, CHANNEL_PASSES, CHANNEL_SAMPLES);
    // Half of a pass each.
    let many = source.probed(None, 2, BASIS_PASSES, BASIS_SAMPLES);
    let spread = |count| split::spread(&source.samples, count);
    let (few, many) = (spread(few), spread(many));
    let Some(narrower) = narrower(calibrated, rankings, [&many, &few], local)? else {
        return Ok(None);
    };
    let simplified = match &source.simplified {
        None => None,
        Some(s) => match narrower.elsewhere(&s.network, &s.groups)? {
            Some(open) => Some(open),
            None => return Ok(None),
        },
    };
    Ok(Some(Channels { narrower, simplified }))
}

fn narrower(
    calibrated: &Calibrated,
    rankings: &Rankings,
    [many, few]: [&Samples; 2],
    local: &[Option<Vec<f64>>],
) -> Result<Option<Narrower>> {
    let source = &calibrated.source;
    let options = source.options.channels(&source.engine.info().device);
    let found = Narrower::find(source.ctx(), calibrated.known(), [many, few], options)?;
    let Some(mut narrower) = found else {
        return Ok(None);
    };
    let mut probe = Probe::new(source.ctx(), source.network(), few, &source.outputs())?;
    narrower.measure_damage(&mut probe, &source.targets, &calibrated.statistics)?;
    narrower.bound_damage(|at| LEAST * damage_of_heads(source, rankings, at, local));
    Ok(Some(narrower))
}

/// What an error of 1 at the sink of a target does to the outputs, from the
/// first level of it that was measured; 0 where that is not known.
fn damage_of_heads(source: &Source, rankings: &Rankings, at: usize, local: &[Option<Vec<f64>>]) -> f64 {
    let (Some(target), Some(Some(local))) = (source.targets.get(at), local.get(at)) else {
        return 0.0;
    };
    let Some(Ranking::Curve(measured)) = rankings.rankings.get(at) else {
        return 0.0;
    };
    let level = removed(target);
    let near = |level: &usize| Some((*local.get(*level)?, *measured.error.get(*level)?));
    match level.first().and_then(near) {
        Some((error, damage)) if error > 0.0 && damage > 0.0 => damage / error,
        _ => 0.0,
    }
}
