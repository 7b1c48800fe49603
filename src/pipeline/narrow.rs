//! Channels inside heads in a run: what they cost, at which price they go.

use std::ops::RangeInclusive;

use super::run::{EQUALITY_SAMPLES, INTERRUPTED, Run};
use crate::axes::Kind;
use crate::budget::{Allocation, Cost};
use crate::channels::{Narrowed, Narrower, Open, Told};
use crate::data::Samples;
use crate::data::split::spread;
use crate::engine::Engine as _;
use crate::mask::{Mask, Narrowing};
use crate::numerics::score::Ranking;
use crate::options::{Method, Reconstruct};
use crate::rank::probe::Probe;
use crate::rank::removed;
use crate::sites::Chosen;
use crate::{Error, Result};

/// Samples that the bases of queries and keys are made of, and the dense passes over all
/// samples that this may cost: some positions (the first, the last) have keys of their
/// own, and there are as many of these as samples.
const MANY: RangeInclusive<usize> = 16..=64;
const BASIS_PASSES: f64 = 0.13;
/// The same for the harm that a loss of channels does.
const FEW: RangeInclusive<usize> = 6..=21;
const HARM_PASSES: f64 = 0.3;
/// The harm of channels is at least this fraction of what an equal error does when heads
/// go, which more samples have measured.
const LEAST: f64 = 0.3;
/// How often the price is asked for again once channels are gone.
const ROUNDS: usize = 3;
/// The change of a budget by which its price is told.
const STEP: f64 = 0.02;

/// What a run may narrow.
pub(super) struct Narrow {
    pub(super) narrower: Narrower,
    /// The lossless passes' model, where there is one.
    cheaper: Option<Open>,
    /// Per turn, multiply-accumulates of one channel.
    costs: Vec<f64>,
}

impl Run<'_> {
    /// Whether channels may go. A mask that is exported says nothing of them, and is to
    /// make the same model again.
    pub(super) fn narrows(&self) -> bool {
        let fits = matches!(
            self.options.reconstruction(),
            Reconstruct::Sequential | Reconstruct::Local
        );
        let told = self.options.export_mask.is_none();
        self.options.narrow && told && fits && self.options.method == Method::Obs && self.closed.is_none()
    }

    /// Finds what can be narrowed; `local` are the errors at the sinks of the chosen
    /// groups, by which their measured damage is put in relation.
    pub(super) fn find_narrow(&mut self, local: &[Option<Vec<f64>>]) -> Result<()> {
        let heads = |c: &&Chosen| self.loaded.analysis.groups[c.group].kind == Kind::Heads;
        let changes = 2 * self.chosen.iter().filter(heads).count();
        let few = spread(&self.samples, self.probed(None, changes, HARM_PASSES, FEW));
        // Half of a pass each.
        let many = spread(&self.samples, self.probed(None, 2, BASIS_PASSES, MANY));
        let found = self.narrower([&many, &few], local);
        let found = self.or_without(
            found,
            "what fewer channels inside heads do",
            "these stay as they are",
        )?;
        let Some(narrower) = found else { return Ok(()) };
        let cheaper = match &self.cheaper {
            None => None,
            Some(c) => match narrower.elsewhere(&c.graph, self.options, &self.loaded.analysis) {
                Some(open) => Some(open),
                None => return Ok(()),
            },
        };
        let mut narrow = Narrow {
            narrower,
            cheaper,
            costs: Vec::new(),
        };
        narrow.costs = (0..narrow.narrower.turns().len())
            .map(|turn| self.channel_cost(&narrow, turn))
            .collect();
        self.narrow = Some(narrow);
        Ok(())
    }

    fn narrower(&self, [many, few]: [&Samples; 2], local: &[Option<Vec<f64>>]) -> Result<Option<Narrower>> {
        let cuda = self.engine.info().device.starts_with("cuda");
        let (subject, statistics, options) = (self.subject(), &self.statistics, self.options);
        let found = Narrower::find(
            subject,
            &self.chosen,
            statistics,
            &self.weights,
            many,
            few,
            options,
            cuda,
            self.cancelled,
        );
        let Some(mut narrower) = found? else {
            return Ok(None);
        };
        let mut probe = Probe::new(subject, few, &self.outputs(), self.cancelled)?;
        narrower.measure_harm(subject, &mut probe, &self.chosen, statistics, options)?;
        narrower.bound_harm(|at| LEAST * self.harm_of_heads(at, local));
        Ok(Some(narrower))
    }

    /// What an error of 1 at the sink of a chosen group does to the outputs, from the
    /// first level of it that was measured; 0 where that is not known.
    fn harm_of_heads(&self, at: usize, local: &[Option<Vec<f64>>]) -> f64 {
        let (Some(c), Some(Some(local))) = (self.chosen.get(at), local.get(at)) else {
            return 0.0;
        };
        let Some(Ranking::Curve(measured)) = self.ranked.rankings.get(at) else {
            return 0.0;
        };
        let group = &self.loaded.analysis.groups[c.group];
        let level = removed(group, c.least);
        let near = |level: &usize| Some((*local.get(*level)?, *measured.error.get(*level)?));
        match level.first().and_then(near) {
            Some((error, damage)) if error > 0.0 && damage > 0.0 => damage / error,
            _ => 0.0,
        }
    }

    /// Multiply-accumulates of one channel of a turn.
    fn channel_cost(&self, narrow: &Narrow, turn: usize) -> f64 {
        let Some(&least) = narrow.narrower.turns().get(turn).and_then(|t| t.levels.first()) else {
            return 0.0;
        };
        let count = narrow.narrower.turns().get(turn).map_or(1, |t| t.error.len() - 1);
        let with = |kept| Narrowing {
            kept: vec![(turn, kept)],
        };
        let cost = |narrowing: &Narrowing| self.cost_narrowed(narrow, narrowing).macs(&Mask::default());
        let saved = cost(&with(count)).saturating_sub(cost(&with(least)));
        saved as f64 / (count - least).max(1) as f64
    }

    /// Costs of the model without the channels that a narrowing removes.
    fn cost_narrowed<'s>(&'s self, narrow: &'s Narrow, narrowing: &Narrowing) -> Cost<'s> {
        let cost = self.cost();
        let (graph, open) = match (&self.cheaper, &narrow.cheaper) {
            (Some(c), Some(open)) => (&c.graph, open),
            _ => (&self.loaded.graph, narrow.narrower.open()),
        };
        let gone = open.mask(narrowing);
        cost.narrowed(
            graph,
            &open.analysis,
            &open.groups,
            gone,
            &super::sizes(self.options),
        )
    }

    /// Costs of what an allocation leaves.
    pub fn cost_of(&self, narrowing: &Narrowing) -> Cost<'_> {
        match &self.narrow {
            Some(narrow) if !narrowing.is_empty() => self.cost_narrowed(narrow, narrowing),
            _ => self.cost(),
        }
    }

    /// Whether a narrowing can be applied; where not, no other one is tried, and a note
    /// says so.
    pub(super) fn can_narrow(&mut self, narrowing: &Narrowing) -> Result<bool> {
        if narrowing.is_empty() {
            return Ok(true);
        }
        match self.apply(narrowing) {
            Ok(narrowed) => {
                self.last_narrowed = Some((narrowing.clone(), narrowed));
                Ok(true)
            }
            Err(error) if error.exit_code() == INTERRUPTED => Err(error),
            Err(error) => {
                self.loaded.notes.push(format!(
                    "heads keep all their channels: the model with fewer could not be made ({})",
                    error.chain()
                ));
                self.narrow = None;
                Ok(false)
            }
        }
    }

    /// The model without some channels; `None` where all stay.
    pub(super) fn applied(&mut self, narrowing: &Narrowing) -> Result<Option<Narrowed>> {
        if narrowing.is_empty() {
            return Ok(None);
        }
        match self.last_narrowed.take() {
            Some((last, narrowed)) if last == *narrowing => Ok(Some(narrowed)),
            _ => self.apply(narrowing).map(Some),
        }
    }

    fn apply(&self, narrowing: &Narrowing) -> Result<Narrowed> {
        let Some(narrow) = &self.narrow else {
            return Err(Error::input("nothing in this model can be narrowed"));
        };
        let few = spread(&self.samples, EQUALITY_SAMPLES);
        narrow.narrower.apply(
            self.subject(),
            &self.chosen,
            &self.statistics,
            narrowing,
            &few,
            self.options,
            self.cancelled,
        )
    }

    /// What the narrowing of an allocation is.
    pub(super) fn told(&self, allocation: &Allocation) -> Vec<Told> {
        let narrow = self.narrow.as_ref();
        narrow.map_or_else(Vec::new, |n| {
            n.narrower
                .told(&self.loaded.analysis, &self.chosen, &allocation.narrowing)
        })
    }

    /// The best allocation that loses channels too, where that is better than `whole`.
    pub(super) fn narrowed(&self, flops: f64, whole: Allocation) -> Result<Allocation> {
        let Some(narrow) = &self.narrow else {
            return Ok(whole);
        };
        let Some(mut price) = self.price(flops, &Narrowing::default()) else {
            return Ok(whole);
        };
        let mut best = whole;
        for _ in 0..ROUNDS {
            let narrowing = narrow.narrower.at_price(&narrow.costs, price);
            if narrowing.is_empty() {
                break;
            }
            let found = match self.allocated(flops, &narrowing) {
                Err(Error::Unmet(_)) => break,
                found => self.with_channels(narrow, found?, narrowing),
            };
            let again = self.price(flops, &found.narrowing);
            let total = |a: &Allocation| a.damage.iter().sum::<f64>();
            if total(&found) < total(&best) {
                best = found;
            }
            let Some(again) = again else { break };
            // What is bought elsewhere gets cheaper as channels go.
            price = (price * again).sqrt();
        }
        Ok(best)
    }

    /// An allocation with what its narrowing does added to the groups of heads.
    fn with_channels(&self, narrow: &Narrow, mut found: Allocation, narrowing: Narrowing) -> Allocation {
        for (turn, kept) in &narrowing.kept {
            let Some(t) = narrow.narrower.turns().get(*turn) else {
                continue;
            };
            let group = self.chosen[t.at].group;
            let units = self.loaded.analysis.groups[group].units;
            let share = found.mask.count(&self.loaded.analysis, group) as f64 / units.max(1) as f64;
            let gone = (t.error.len() - 1).saturating_sub(*kept);
            found.damage[t.at] += share * t.harm * t.error.get(gone).copied().unwrap_or(1.0);
        }
        found.narrowing = narrowing;
        found
    }

    /// The damage that a multiply-accumulate saves where a budget is met.
    fn price(&self, flops: f64, narrowing: &Narrowing) -> Option<f64> {
        let at = |flops: f64| {
            let found = self.allocated(flops.clamp(1e-6, 1.0), narrowing).ok()?;
            Some((found.damage.iter().sum::<f64>(), found.budget))
        };
        let (more, budget) = at(flops + STEP)?;
        let (less, least) = match at(flops - STEP) {
            Some((less, budget)) => (less, budget.asked),
            None => (at(flops)?.0, flops),
        };
        let saved = (budget.asked - least) * budget.prunable as f64;
        let price = (less - more) / saved;
        (price.is_finite() && price > 0.0).then_some(price)
    }
}
