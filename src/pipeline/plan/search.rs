//! Candidates that are built and measured until a goal is met.

use std::path::Path;

use super::pricing::Pricing;
use super::{Plan, Planner, import};
use crate::budget::{Demand, Goal, Measure};
use crate::io::scratch::ScratchFolder;
use crate::measure::command;
use crate::measure::paired::Measured;
use crate::numerics::bisect::{self, BisectPoint};
use crate::onnx;
use crate::pipeline::latency;
use crate::pipeline::pruned::Pruned;
use crate::pipeline::ranked::Ranked;
use crate::pipeline::write::{Finished, save_options};
use crate::verify;
use crate::{Error, Result};

/// How often a result that exceeds a limit is asked for again, by what the
/// prediction was off.
const TRIES: usize = 5;
/// A latency this much below what is asked for is tried to be spent.
const SLACK: f64 = 0.08;
/// Deviations of a measured latency that are accepted.
const DEVIATIONS: f64 = 2.0;
/// Halvings of the range of budgets in a search.
const STEPS: usize = 5;

/// Smaller models that meet a goal, one per network.
pub struct Candidate {
    /// What stays.
    pub plans: Vec<Plan>,
    /// The models.
    pub pruned: Vec<Pruned>,
    /// Their latencies, where the goal asked for them.
    pub measured: Vec<Option<Measured>>,
    /// Budgets that were tried.
    pub tried: Vec<BisectPoint>,
}

impl Candidate {
    /// The model of the only network.
    ///
    /// # Errors
    /// A candidate of none.
    pub fn only<'r>(&'r self, ranked: &'r Ranked<'r>) -> Result<Finished<'r>> {
        let missing = || Error::input("there is no network to plan for");
        Ok(Finished {
            ranked,
            plan: self.plans.first().ok_or_else(missing)?,
            pruned: self.pruned.first().cloned().ok_or_else(missing)?,
            measured: self.measured.first().cloned().flatten(),
        })
    }

    fn damage(&self) -> f64 {
        self.plans.iter().flat_map(|p| &p.allocation.damage).sum()
    }
}

/// The best models that meet a goal; `outputs` are where they will be written.
///
/// # Errors
/// [`Error::Unmet`] where it cannot be met; those of building.
pub fn search(planner: &Planner, goal: &Goal, outputs: &[&Path]) -> Result<Candidate> {
    match goal {
        Goal::Mask(_) => {
            let plans = planner.networks().iter().map(|ranked| import(ranked, goal));
            built(planner, plans.collect::<Result<_>>()?)
        }
        Goal::MaxDrop { bound, eval } => within_drop(planner, goal, *bound, eval.as_deref()),
        Goal::Limits(demands) => meet(planner, goal, demands, outputs),
    }
}

fn built(planner: &Planner, plans: Vec<Plan>) -> Result<Candidate> {
    let pruned = planner
        .networks()
        .iter()
        .zip(&plans)
        .map(|(ranked, plan)| ranked.build(plan));
    Ok(Candidate {
        pruned: pruned.collect::<Result<_>>()?,
        measured: plans.iter().map(|_| None).collect(),
        plans,
        tried: Vec::new(),
    })
}

/// The smallest model whose divergence from the dense one on held-out samples
/// is at most `bound`, by bisection over budgets; or whose number is, where
/// there is a command that judges a candidate.
fn within_drop(planner: &Planner, goal: &Goal, bound: f64, eval: Option<&str>) -> Result<Candidate> {
    let pricing = Pricing {
        written: Vec::new(),
        times: None,
        moved: Vec::new(),
    };
    let at = |flops: f64| planner.plan(goal, &[Demand::Flops(flops)], &pricing);
    let floor = at(1.0)?
        .iter()
        .map(|p| p.allocation.budget.floor)
        .fold(0.0, f64::max);
    let found = bisect::bisect(floor, 1.0, STEPS, bound, |flops| {
        let candidate = built(planner, at(flops)?)?;
        let mut worst = 0.0f64;
        for (ranked, pruned) in planner.networks().iter().zip(&candidate.pruned) {
            let divergence = match eval {
                Some(command) => {
                    let folder = ScratchFolder::new()?;
                    let path = folder.path().join("candidate.onnx");
                    let file = &ranked.source().loaded.file;
                    onnx::save(
                        &ranked.source().loaded.whole(&pruned.model, &pruned.others)?,
                        &path,
                        &onnx::SaveOptions::for_model(file),
                    )?;
                    command::evaluate(command, &path, None, ranked.source().cancelled)?
                }
                None => {
                    let mut compared = ranked.held_out(pruned)?.comparison;
                    let asked = &ranked.source().options.outputs;
                    compared
                        .outputs
                        .retain(|o| asked.is_empty() || asked.contains(&o.name));
                    verify::divergence(&compared)
                }
            };
            if divergence.is_nan() || divergence > worst {
                worst = divergence;
            }
        }
        Ok((worst, candidate))
    })?;
    Ok(Candidate {
        tried: found.tried,
        ..found.made
    })
}

/// The best models within all demands.
fn meet(planner: &Planner, goal: &Goal, demands: &[Demand], outputs: &[&Path]) -> Result<Candidate> {
    let sized = demands.iter().any(|d| d.measure() == Measure::Bytes);
    let written = match sized {
        true => sizes(planner, None, outputs)?,
        false => Vec::new(),
    };
    let timed = latency::prepare(planner.networks(), demands)?;
    let mut pricing = Pricing {
        written,
        times: timed.times,
        moved: vec![0; demands.len()],
    };
    // A demand on time that the dense model meets needs no table, only a judge.
    let priced: Vec<Demand> = (demands.iter())
        .filter(|d| d.measure() != Measure::Nanoseconds || pricing.times.is_some())
        .copied()
        .collect();
    let exact = |d: &Demand| matches!(d.measure(), Measure::Macs | Measure::Parameters);
    if demands.iter().all(exact) {
        return built(planner, planner.plan(goal, demands, &pricing)?);
    }
    let mut last = String::new();
    let mut best: Option<Candidate> = None;
    for left in (0..TRIES).rev() {
        let plans = match priced.is_empty() {
            // Whatever the dense model meets.
            true => planner
                .plan(goal, &[Demand::Flops(1.0)], &pricing)
                .map(|mut plans| {
                    plans.iter_mut().for_each(|plan| plan.got.clear());
                    plans
                }),
            false => planner.plan(goal, &priced, &pricing),
        };
        let plans = match plans {
            // The table promised it, the result did not keep it.
            Err(Error::Unmet(text)) if !last.is_empty() && best.is_none() => {
                return Err(Error::Unmet(format!(
                    "{last}, and nothing smaller is left: {text}"
                )));
            }
            plans => plans?,
        };
        let mut found = built(planner, plans)?;
        let limits = pricing.limits(planner, &priced, &narrowings(&found.plans))?;
        let size = match sized {
            true => sizes(planner, Some(&found.pruned), outputs)?.iter().sum(),
            false => 0,
        };
        if !timed.inputs.is_empty() {
            let judged = planner.networks().iter().zip(&found.pruned).zip(&timed.inputs);
            found.measured = judged
                .map(|((ranked, pruned), inputs)| {
                    ranked
                        .judged((&pruned.model, &pruned.interface), inputs)
                        .map(Some)
                })
                .collect::<Result<_>>()?;
        }
        let time = latency::Total::of(&found.measured);
        let mut over = false;
        let mut slack = Vec::new();
        for (at, limit) in limits.iter().enumerate() {
            let most = limit.demand.most(limit.prices.origin, limit.prices.full);
            let (got, cost, accepted) = match (limit.demand, time) {
                (Demand::Size(_), _) => (Demand::Size(size), size, most as f64),
                (demand, Some(time)) if demand.measure() == Measure::Nanoseconds => {
                    let (got, cost) = time.against(demand, limit.prices.full);
                    slack.push(1.0 - cost / most.max(1) as f64);
                    let accepted = most as f64 * (1.0 + DEVIATIONS * time.noise);
                    (got, cost as u64, accepted)
                }
                _ => continue,
            };
            for plan in &mut found.plans {
                if let Some(own) = plan.got.get_mut(at) {
                    own.got = got;
                }
            }
            if cost as f64 > accepted {
                over = true;
                last = format!("{} was asked for, the result has {}", limit.demand, got.amount());
                pricing.moved[at] -= i128::from(cost.saturating_sub(most));
            } else if limit.demand.measure() == Measure::Nanoseconds {
                pricing.moved[at] += i128::from(most.saturating_sub(cost));
            }
        }
        if let (Some(time), false) = (time, pricing.times.is_some()) {
            check_unpriced(demands, time, &mut found)?;
        }
        if over && best.is_some() {
            break;
        }
        if over {
            continue;
        }
        if best.as_ref().is_none_or(|b| found.damage() < b.damage()) {
            best = Some(found);
        }
        // One limit binds; what the others leave cannot be spent.
        let unspent = !slack.is_empty() && slack.len() == limits.len() && slack.iter().all(|s| *s > SLACK);
        if !unspent || left < TRIES - 2 {
            break;
        }
    }
    best.ok_or_else(|| Error::Unmet(format!("{last}, after {TRIES} tries; ask for a little more")))
}

/// Demands on time that the dense model meets by itself, judged by the result.
fn check_unpriced(demands: &[Demand], time: latency::Total, found: &mut Candidate) -> Result<()> {
    for demand in demands.iter().filter(|d| d.measure() == Measure::Nanoseconds) {
        let (got, cost) = time.against(*demand, time.dense);
        let most = demand.most(0, time.dense);
        if cost > most as f64 * (1.0 + DEVIATIONS * time.noise) {
            return Err(Error::Unmet(format!(
                "{demand} was asked for, the result has {}",
                got.amount()
            )));
        }
        for plan in &mut found.plans {
            plan.got.push(crate::budget::Got {
                asked: *demand,
                got,
                least: got,
            });
        }
    }
    Ok(())
}

fn narrowings(plans: &[Plan]) -> Vec<crate::mask::Narrowing> {
    plans.iter().map(|p| p.allocation.narrowing.clone()).collect()
}

/// Bytes of the written files: of the dense models, or of results.
fn sizes(planner: &Planner, pruned: Option<&[Pruned]>, outputs: &[&Path]) -> Result<Vec<u64>> {
    let size = |(at, ranked): (usize, &&Ranked)| {
        let source = ranked.source();
        let save = save_options(&source.loaded.file, source.options);
        let dense: Vec<onnx::proto::ModelProto>;
        let (model, others) = match pruned.and_then(|p| p.get(at)) {
            Some(pruned) => (&pruned.model, &pruned.others),
            None => {
                let inner = source.loaded.inner.iter().flat_map(|inner| &inner.others);
                dense = inner.map(|(_, model)| model.clone()).collect();
                (&source.network().proto, &dense)
            }
        };
        let path = outputs.get(at).copied().unwrap_or("model.onnx".as_ref());
        onnx::written_size(&source.loaded.whole(model, others)?, path, &save)
    };
    planner.networks().iter().enumerate().map(size).collect()
}
