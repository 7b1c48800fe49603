//! Budgets of several measures that must all hold.

use std::path::Path;

use super::build::Built;
use super::run::Run;
use super::save_options;
use super::timing;
use crate::budget::{self, Allocation, Got, Limit, Measure, Prices, Target};
use crate::measure::paired::Measured;
use crate::{Error, Result, onnx};

/// How often a result that exceeds a limit is asked for again, by what the
/// prediction was off.
const TRIES: usize = 5;
/// A latency this much below what is asked for is tried to be spent.
const SLACK: f64 = 0.08;
/// Deviations of a measured latency that are accepted.
const DEVIATIONS: f64 = 2.0;

/// A model within all limits.
pub(super) struct Met {
    pub(super) allocation: Allocation,
    pub(super) built: Built,
    pub(super) got: Vec<Got>,
    /// The latency that was judged, where one was asked for.
    pub(super) measured: Option<Measured>,
}

/// The best model within all limits of the options.
///
/// # Errors
/// [`Error::Unmet`] when the limits cannot be met; those of building.
pub(super) fn meet(run: &mut Run, output: &Path) -> Result<Met> {
    let save = save_options(&run.loaded.file, run.options);
    let timed = run
        .options
        .limits
        .iter()
        .any(|t| t.measure() == Measure::Nanoseconds);
    let batch = timed.then(|| timing::inputs(run)).transpose()?;
    let times = match &batch {
        Some(batch) => Some(timing::prices(run, &batch.feeds)?),
        None => None,
    };
    let mut limits = {
        let (cost, analysis) = (run.cost(), &run.loaded.analysis);
        let mut limits = Vec::new();
        for target in &run.options.limits {
            let prices = match (target.measure(), &times) {
                (Measure::Macs, _) => Prices::macs(&cost, analysis, &run.chosen),
                (Measure::Parameters, _) => Prices::parameters(&cost, analysis, &run.chosen),
                (Measure::Bytes, _) => {
                    let written = onnx::written_size(&run.loaded.model, output, &save)?;
                    Prices::bytes(&cost, analysis, &run.chosen, written)
                }
                (Measure::Nanoseconds, Some(times)) => times.clone(),
                (Measure::Nanoseconds, None) => {
                    return Err(Error::input(format!("{target} was not measured")));
                }
            };
            limits.push(Limit::new(*target, prices));
        }
        limits
    };
    let mut last = String::new();
    let mut best: Option<Met> = None;
    for left in (0..TRIES).rev() {
        let found = budget::within(
            &limits,
            &run.loaded.analysis,
            &run.chosen,
            &run.ranked.rankings,
            run.alignment(),
            run.options.method.name(),
        );
        let found = match found {
            // The table promised it, the result did not keep it.
            Err(Error::Unmet(text)) if !last.is_empty() && best.is_none() => {
                return Err(Error::Unmet(format!(
                    "{last}, and nothing smaller is left: {text}"
                )));
            }
            found => found?,
        };
        let mut allocation = budget::of_mask(&run.cost(), &run.loaded.analysis, &run.chosen, found.mask);
        allocation.damage = found.damage;
        run.fold(&mut allocation);
        run.clock.lap("allocation");
        let built = run.build(&allocation)?;
        let size = onnx::written_size(&built.model, output, &save)?;
        let measured = match &batch {
            Some(batch) => Some(timing::judged(run, &built, batch)?),
            None => None,
        };
        run.clock.lap("timing");
        let mut got = found.got;
        let mut over = false;
        let mut slack = Vec::new();
        for (limit, got) in limits.iter_mut().zip(&mut got) {
            let most = limit.target.most(limit.prices.origin, limit.prices.full);
            let cost = match (limit.target, &measured) {
                (Target::Size(_), _) => {
                    got.got = Target::Size(size);
                    size
                }
                (target, Some(measured)) if target.measure() == Measure::Nanoseconds => {
                    let (value, cost) = latency(target, measured, limit.prices.full);
                    got.got = value;
                    slack.push(1.0 - cost / most.max(1) as f64);
                    let accepted = most as f64 * (1.0 + DEVIATIONS * measured.timing.noise);
                    if cost > accepted {
                        cost as u64
                    } else {
                        most.min(cost as u64)
                    }
                }
                _ => 0,
            };
            if cost > most {
                over = true;
                last = format!(
                    "{} was asked for, the result has {}",
                    limit.target,
                    got.got.amount()
                );
                limit.tighten(cost - most);
            } else if limit.target.measure() == Measure::Nanoseconds {
                limit.relax(most - cost);
            }
        }
        if over && best.is_some() {
            break;
        }
        if over {
            continue;
        }
        let found = Met {
            allocation,
            built,
            got,
            measured,
        };
        let damage = |met: &Met| met.allocation.damage.iter().sum::<f64>();
        if best.as_ref().is_none_or(|b| damage(&found) < damage(b)) {
            best = Some(found);
        }
        // One limit binds; what the others leave cannot be spent.
        let unspent = !slack.is_empty() && slack.len() == limits.len() && slack.iter().all(|s| *s > SLACK);
        if !unspent || left < TRIES - 2 {
            break;
        }
    }
    if let Some(met) = best {
        return Ok(met);
    }
    Err(Error::Unmet(format!(
        "{last}, after {TRIES} tries; ask for a little more"
    )))
}

/// A measured latency in terms of a target, and in nanoseconds of the table, whose
/// dense model takes `full`.
fn latency(target: Target, measured: &Measured, full: u64) -> (Target, f64) {
    let speedup = measured.timing.speedup.map_or(1.0, |s| s.median).max(1e-9);
    match target {
        Target::LatencyFraction(_) => (Target::LatencyFraction(1.0 / speedup), full as f64 / speedup),
        Target::Latency(_) => {
            let ms = measured.timing.a.median;
            (Target::Latency(ms), ms * 1e6)
        }
        _ => (Target::Speedup(speedup), full as f64 / speedup),
    }
}
