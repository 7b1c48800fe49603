//! Several budgets from one calibration.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::calibrated::calibrate;
use super::options::Options;
use super::paths;
use super::plan::{Planner, search};
use super::ranked::rank;
use super::shards;
use super::source::Source;
use super::write::Finished;
use crate::budget::Goal;
use crate::progress::Progress;
use crate::report::Report;
use crate::{Error, Result};

/// Prunes `input` to several budgets from one calibration. The files are named
/// after `output`: `small.onnx` becomes `small-0.6.onnx` and so on. `beside` are files
/// that the caller writes about them, which must be none of the inputs.
///
/// # Errors
/// As [`prune`](super::prune); files of budgets before the one that fails stay.
pub fn sweep(
    input: &Path,
    outputs: (&Path, &[(&str, &Path)]),
    budgets: &[f64],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Report>> {
    let (output, beside) = outputs;
    let bad = budgets.iter().find(|f| !(**f > 0.0 && **f <= 1.0));
    if let Some(bad) = bad {
        return Err(Error::input(format!(
            "--sweep {bad}: fractions to keep are above 0 and at most 1"
        )));
    }
    if options.export_mask.is_some() {
        return Err(Error::input(
            "--export-mask names one file, a sweep has many masks: each file that it writes holds its own (--mask OUT.onnx reads it)",
        ));
    }
    let names: Vec<PathBuf> = budgets.iter().map(|flops| of_budget(output, *flops)).collect();
    let made = names.iter().map(|name| ("the output", name.as_path()));
    let all: Vec<(&str, &Path)> = made.chain(beside.iter().copied()).collect();
    paths::before(&[input], &all, options)?;
    let options = &*shards::with_samples(input, options)?;
    let source = Source::read(input, options, progress, cancelled)?;
    paths::side_files(&source.loaded, &all, options)?;
    let ranked = rank(calibrate(source)?)?;
    let planner = Planner::of(&ranked)?;
    let mut reports = Vec::with_capacity(budgets.len());
    for (flops, name) in budgets.iter().zip(&names) {
        let found = search(&planner, &Goal::flops(*flops), &[name])?;
        for (plan, pruned) in found.plans.iter().zip(found.pruned) {
            let finished = Finished {
                ranked: &ranked,
                plan,
                pruned,
                measured: None,
            };
            reports.push(finished.write(name)?);
        }
    }
    Ok(reports)
}

/// The name of the file of one budget.
fn of_budget(output: &Path, flops: f64) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{stem}-{flops}.onnx"))
}
