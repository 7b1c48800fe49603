//! From rankings and a goal to what stays: one planner for every goal, for one network or
//! several that share weights.
//!
//! ```text
//! pricing   what units and channels cost in each measure that a goal counts
//! channels  which channels are worth their price
//! search    candidates that are built and measured, where a goal asks for that
//! ```

mod channels;
mod pricing;
mod search;

pub use search::{Candidate, search};

use super::journal::Journal;
use super::ranked::Ranked;
use crate::axes::Kind;
use crate::budget::shared::{self, FileClass, SharedFile};
use crate::budget::{
    self, Align, Allocation, Budget, Demand, Goal, Got, Item, Limit, Tied, cheapest_step, constant_units,
};
use crate::channels::Narrowed;
use crate::data::split;
use crate::engine::Engine as _;
use crate::mask::{self, Mask, Narrowing, Pattern};
use crate::numerics::score::Ranking;
use crate::onnx::provenance;
use crate::{Error, Result};
use channels::ChannelSet;
use pricing::Pricing;

/// What stays of one network.
pub struct Plan {
    /// What was asked for.
    pub goal: Goal,
    /// The mask and what it costs.
    pub allocation: Allocation,
    /// What the limits of the goal ask for, and what the mask is predicted to give.
    pub got: Vec<Got>,
    /// The network without the channels that go.
    pub(super) narrowed: Option<Narrowed>,
    pub(super) journal: Journal,
}

/// Decides what stays.
pub struct Planner<'r> {
    networks: Vec<&'r Ranked<'r>>,
    classes: Vec<FileClass>,
    items: Vec<Item>,
    tied: Tied,
    align: Align,
    sets: Vec<ChannelSet>,
}

/// What stays of all networks, with what is expected of it.
struct FoundPlan {
    masks: Vec<Mask>,
    /// Per network and target.
    damage: Vec<Vec<f64>>,
    narrowings: Vec<Narrowing>,
    got: Vec<Got>,
}

impl FoundPlan {
    fn total(&self) -> f64 {
        self.damage.iter().flatten().sum()
    }

    /// The demands as they were asked for, whatever a search has made of them.
    fn floor(&self, demands: &[Demand]) -> f64 {
        match (demands, &self.got[..]) {
            ([Demand::Flops(_)], [got]) => got.least.value(),
            _ => 0.0,
        }
    }
}

impl<'r> Planner<'r> {
    /// Plans for one network.
    ///
    /// # Errors
    /// Groups that are tied and ranked in different ways.
    pub fn of(ranked: &'r Ranked<'r>) -> Result<Self> {
        let classes = (0..ranked.targets().len()).map(|target| FileClass {
            members: vec![shared::Member { file: 0, target }],
            units: ranked.targets()[target].units.len(),
            least: ranked.targets()[target].least,
        });
        Self::joint(vec![ranked], classes.collect())
    }

    /// Plans for several networks, whose groups in one class keep the same units.
    ///
    /// # Errors
    /// Groups of one class that are ranked in different ways.
    pub fn joint(networks: Vec<&'r Ranked<'r>>, classes: Vec<FileClass>) -> Result<Self> {
        let files: Vec<SharedFile> = networks.iter().map(|r| file(r)).collect();
        let rankings: Vec<&[Ranking]> = networks.iter().map(|r| &r.rankings.rankings[..]).collect();
        let items = match rankings.iter().all(|r| r.is_empty()) {
            true => Vec::new(),
            false => shared::items(&files, &classes, &rankings)?,
        };
        let tied = shared::tied(&files, &classes);
        let first = networks.first().map(|r| r.source());
        let align = first.map_or(Align::exactly(1), |s| {
            s.options.alignment(&s.engine.info().device)
        });
        let sets = channels::sets(&networks, &classes);
        Ok(Self {
            networks,
            classes,
            items,
            tied,
            align,
            sets,
        })
    }

    /// The networks.
    pub fn networks(&self) -> &[&'r Ranked<'r>] {
        &self.networks
    }

    fn method(&self) -> &'static str {
        let first = self.networks.first();
        first.map_or("", |r| r.source().options.rank.method.name())
    }

    /// The best plans within some demands, one per network. What a demand on bytes or time
    /// leaves is a prediction: `pricing` says how it was made, and is corrected by what is
    /// measured.
    ///
    /// # Errors
    /// [`Error::Unmet`] where a demand cannot be met.
    pub(super) fn plan(&self, goal: &Goal, demands: &[Demand], pricing: &Pricing) -> Result<Vec<Plan>> {
        let mut journal = self.journal();
        let none = vec![Narrowing::default(); self.networks.len()];
        let whole = self.allocated(&pricing.limits(self, demands, &none)?, &none)?;
        let mut found = match self.sets.is_empty() {
            true => whole,
            false => self.with_channels(demands, pricing, whole)?,
        };
        let mut narrowed = Vec::new();
        if found.narrowings.iter().any(|n| !n.is_empty()) {
            let made: Result<Vec<_>> = (self.networks.iter().zip(&found.narrowings))
                .map(|(ranked, narrowing)| narrow(ranked, narrowing))
                .collect();
            let made = journal.attempt(
                made,
                "channels",
                "the model with fewer channels in its heads could not be made",
                "heads keep all their channels, which costs about a third of the divergence",
            )?;
            match made {
                Some(made) => narrowed = made,
                None => found = self.allocated(&pricing.limits(self, demands, &none)?, &none)?,
            }
        }
        narrowed.resize_with(self.networks.len(), || None);
        self.fold(&mut found.masks);
        let budget = self.budget(&found, demands)?;
        journal.lap("allocation");
        let floor = found.floor(demands);
        let parts =
            (found.masks.into_iter().zip(found.damage)).zip(found.narrowings.into_iter().zip(narrowed));
        let plans = parts.zip(&self.networks).enumerate();
        Ok(plans
            .map(|(at, (((mask, damage), (narrowing, narrowed)), ranked))| {
                let cost = ranked.cost_of(&narrowing);
                let mut own = Budget::of(&[(&cost, ranked.targets(), &mask)]);
                if let [Demand::Flops(asked)] = demands {
                    own.asked = *asked;
                }
                own.floor = floor;
                own.cheapest_step = budget.cheapest_step;
                Plan {
                    goal: goal.clone(),
                    allocation: Allocation {
                        mask,
                        budget: own,
                        damage,
                        narrowing,
                    },
                    got: found.got.clone(),
                    narrowed,
                    // Said once, with the first network.
                    journal: if at == 0 { journal.clone() } else { self.journal() },
                }
            })
            .collect())
    }

    /// What stays of each network where heads keep their channels, for other forms of it
    /// whose heads cannot lose any.
    ///
    /// # Errors
    /// [`Error::Unmet`] where the fraction cannot be met.
    pub(crate) fn patterns(&self, flops: f64) -> Result<Vec<Pattern>> {
        let pricing = Pricing {
            written: Vec::new(),
            times: None,
            moved: vec![0],
        };
        let none = vec![Narrowing::default(); self.networks.len()];
        let limits = pricing.limits(self, &[Demand::Flops(flops)], &none)?;
        let mut found = self.allocated(&limits, &none)?;
        self.fold(&mut found.masks);
        let each = self.networks.iter().zip(&found.masks);
        Ok(each
            .map(|(ranked, mask)| Pattern::of(&ranked.network().axes, mask))
            .collect())
    }

    /// What all plans cost together.
    ///
    /// # Errors
    /// [`Error::Unmet`] where a fraction of the multiply-accumulates was exceeded.
    fn budget(&self, found: &FoundPlan, demands: &[Demand]) -> Result<Budget> {
        let costs: Vec<_> = (self.networks.iter().zip(&found.narrowings))
            .map(|(ranked, narrowing)| ranked.cost_of(narrowing))
            .collect();
        let all: Vec<_> = (costs.iter().zip(&self.networks).zip(&found.masks))
            .map(|((cost, ranked), mask)| (cost, ranked.targets(), mask))
            .collect();
        let mut budget = Budget::of(&all);
        for demand in demands {
            budget.check(*demand)?;
        }
        let steps = self.networks.iter().map(|ranked| {
            let prices = budget::Prices::macs(&ranked.source().cost(), ranked.targets());
            cheapest_step(&prices, ranked.targets(), self.align)
        });
        budget.cheapest_step = steps.filter(|step| *step > 0).min().unwrap_or(0);
        Ok(budget)
    }

    fn journal(&self) -> Journal {
        let first = self.networks.first();
        Journal::new(first.is_some_and(|r| r.source().options.strict))
    }

    /// The best masks within limits, channels left alone.
    fn allocated(&self, limits: &[Limit], narrowings: &[Narrowing]) -> Result<FoundPlan> {
        let picked = budget::allocate(limits, &self.items, &self.tied, self.align, self.method())?;
        let mut masks = vec![Mask::default(); self.networks.len()];
        let mut damage: Vec<Vec<f64>> = (self.networks.iter())
            .map(|ranked| vec![0.0; ranked.targets().len()])
            .collect();
        for ((class, item), kept) in self.classes.iter().zip(&self.items).zip(picked.kept) {
            let flags = item.flags(kept);
            for member in &class.members {
                let ranked = self.networks[member.file];
                let target = &ranked.targets()[member.target];
                if kept < item.units {
                    masks[member.file].kept.insert(target.group, flags.clone());
                }
                if let Some(own) = ranked.rankings.rankings.get(member.target) {
                    damage[member.file][member.target] = budget::damage(own, item.units, kept);
                }
            }
        }
        Ok(FoundPlan {
            masks,
            damage,
            narrowings: narrowings.to_vec(),
            got: picked.got,
        })
    }

    /// Removes units that are constant on all inputs, where that is asked for; in groups of
    /// one class only those that are constant in all of them.
    fn fold(&self, masks: &mut [Mask]) {
        for (ranked, mask) in self.networks.iter().zip(masks.iter_mut()) {
            if ranked.source().options.fold_constant {
                let (axes, statistics) = (&ranked.network().axes, &ranked.calibrated.statistics);
                constant_units::constant_units(axes, ranked.targets(), statistics, mask);
            }
        }
        for class in self.classes.iter().filter(|c| c.is_tied()) {
            let group = |m: &shared::Member| self.networks[m.file].targets()[m.target].group;
            let of = |m: &shared::Member| masks[m.file].kept.get(&group(m)).cloned();
            let Some(all) = class.members.iter().map(of).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let units = 0..class.units;
            let any = |unit| all.iter().any(|flags| flags.get(unit).copied().unwrap_or(true));
            let flags: Vec<bool> = units.map(any).collect();
            for member in &class.members {
                masks[member.file].kept.insert(group(member), flags.clone());
            }
        }
    }
}

/// A ranked network as one of several files.
pub(super) fn file<'r>(ranked: &'r Ranked) -> SharedFile<'r> {
    let path = ranked.source().loaded.file.path.as_deref();
    SharedFile {
        name: path.and_then(|p| p.to_str()).unwrap_or("a file"),
        network: ranked.network(),
        targets: ranked.targets(),
    }
}

/// The network without some channels; `None` where all stay.
fn narrow(ranked: &Ranked, narrowing: &Narrowing) -> Result<Option<Narrowed>> {
    let Some(channels) = ranked.channels.as_ref().filter(|_| !narrowing.is_empty()) else {
        return Ok(None);
    };
    let source = ranked.source();
    let few = split::spread(&source.samples, source.equality_samples()?);
    let selection = &source.options.selection;
    let known = ranked.calibrated.known();
    let narrower = &channels.narrower;
    narrower
        .apply(source.ctx(), known, narrowing, &few, selection)
        .map(Some)
}

/// A mask that something else made.
///
/// # Errors
/// A file that is no mask of this model.
pub(super) fn import(ranked: &Ranked, goal: &Goal) -> Result<Plan> {
    let Goal::Mask(path) = goal else {
        return Err(Error::input("no mask is given"));
    };
    let source = ranked.source();
    let mut journal = Journal::new(source.options.strict);
    let axes = &ranked.network().axes;
    let open = ranked.targets().iter().map(|t| (t.group, t.least)).collect();
    let (mask, notes) = mask::file::read(path, axes, &open)?;
    journal.notes.extend(notes);
    journal
        .notes
        .extend(provenance::of_another(path, &source.sha256)?);
    with_mask(ranked, goal, mask, journal)
}

/// The mask of another form of the model, where it has the same groups.
///
/// # Errors
/// A group that is not there or may not lose these units.
pub(crate) fn alike(ranked: &Ranked, goal: &Goal, pattern: &Pattern) -> Result<Plan> {
    let mask = pattern.mask(&ranked.network().axes)?;
    for (group, kept) in &mask.kept {
        let target = ranked.targets().iter().find(|t| t.group == *group);
        let left = kept.iter().filter(|k| **k).count();
        if left < kept.len() && target.is_none_or(|t| left < t.least) {
            return Err(Error::input(format!(
                "'{}' cannot lose units here",
                ranked.network().group(*group).name
            )));
        }
    }
    with_mask(ranked, goal, mask, Journal::new(ranked.source().options.strict))
}

fn with_mask(ranked: &Ranked, goal: &Goal, mask: Mask, mut journal: Journal) -> Result<Plan> {
    budget::check_even(&ranked.network().axes, &mask)?;
    let allocation = budget::of_mask(&ranked.source().cost(), ranked.targets(), mask);
    journal.lap("allocation");
    Ok(Plan {
        goal: goal.clone(),
        allocation,
        got: Vec::new(),
        narrowed: None,
        journal,
    })
}

/// Whether a kind of group has channels inside its units.
fn has_channels(kind: Kind) -> bool {
    kind == Kind::Heads
}
