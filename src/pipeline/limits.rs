//! Budgets of several measures that must all hold.

use std::path::Path;

use super::run::{Built, Run};
use super::save_options;
use crate::budget::{self, Allocation, Got, Limit, Measure, Prices, Target};
use crate::onnx;
use crate::{Error, Result};

/// How often a size that the written file exceeds is asked for again, by the bytes
/// that the prediction was off.
const TRIES: usize = 4;

/// The best model within all limits of the options.
///
/// # Errors
/// [`Error::Unmet`] when the limits cannot be met; those of building.
pub(super) fn meet(run: &mut Run, output: &Path) -> Result<(Allocation, Built, Vec<Got>)> {
    let save = save_options(&run.loaded.file, run.options);
    let mut limits = {
        let (cost, analysis) = (run.cost(), &run.loaded.analysis);
        let mut limits = Vec::new();
        for target in &run.options.limits {
            let prices = match target.measure() {
                Measure::Macs => Prices::macs(&cost, analysis, &run.chosen),
                Measure::Parameters => Prices::parameters(&cost, analysis, &run.chosen),
                Measure::Bytes => {
                    let written = onnx::written_size(&run.loaded.model, output, &save)?;
                    Prices::bytes(&cost, analysis, &run.chosen, written)
                }
                Measure::Nanoseconds => {
                    return Err(Error::input(format!("{target} cannot be a limit here")));
                }
            };
            limits.push(Limit::new(*target, prices));
        }
        limits
    };
    for _ in 0..TRIES {
        let found = budget::within(
            &limits,
            &run.loaded.analysis,
            &run.chosen,
            &run.ranked.rankings,
            run.options.align,
            run.options.method.name(),
        )?;
        let mut allocation = budget::of_mask(&run.cost(), &run.loaded.analysis, &run.chosen, found.mask);
        allocation.damage = found.damage;
        run.clock.lap("allocation");
        let built = run.build(&allocation.mask)?;
        let size = onnx::written_size(&built.model, output, &save)?;
        let over = limits.iter_mut().find_map(|limit| match limit.target {
            Target::Size(most) if size > most => Some((limit, size - most)),
            _ => None,
        });
        match over {
            Some((limit, by)) => limit.tighten(by),
            None => {
                let got = found.got.into_iter().map(|mut g| {
                    if g.asked.measure() == Measure::Bytes {
                        g.got = Target::Size(size);
                    }
                    g
                });
                return Ok((allocation, built, got.collect()));
            }
        }
    }
    Err(Error::Unmet(
        "the written file stays larger than --size; ask for some bytes more".into(),
    ))
}
