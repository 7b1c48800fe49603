//! The straight line from a file to a smaller file.
//!
//! ```text
//! Source::read -> calibrate -> rank -> Planner::of -> search -> Finished::write
//!  Source      Calibrated   Ranked    Planner      Candidate     Report
//! ```
//!
//! Each stage takes the value of the one before it and gives its own; none is changed
//! afterwards. What a stage has to say travels with its value.

mod branch;
mod calibrated;
mod check;
mod compare;
mod declared;
mod decoder_inputs;
mod finite;
mod folder;
mod form;
mod joint;
mod journal;
mod latency;
mod loaded;
mod options;
mod paths;
mod plan;
mod pruned;
mod ranked;
mod recorded;
mod shards;
mod simplified;
mod sizes;
mod source;
mod sweep;
mod vocabulary;
mod write;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub use calibrated::{Calibrated, calibrate};
pub use compare::compare;
pub(crate) use declared::declarations;
pub use declared::{DECLARED, Declared, Takes, Topic, Word};
pub use folder::folder;
pub use joint::joint;
pub use loaded::{Loaded, load};
pub use options::{DEFAULT_FLOPS, Options};
pub use plan::{Candidate, Plan, Planner, search};
pub use pruned::Pruned;
pub use ranked::{Ranked, rank};
pub use shards::{StatisticsReport, collect, merge, partial};
pub use sizes::sizes;
pub use source::Source;
pub use sweep::sweep;
pub use write::{Beside, Finished};

use crate::io::staged::Staged;
use crate::progress::Progress;
use crate::report::Report;
use crate::{Error, Result};

/// Prunes `input` into `output` and writes what belongs to it; all files appear or
/// none, and an older output is as it was on any error.
///
/// # Errors
/// As [`Error`] lists them.
pub fn prune(
    input: &Path,
    output: &Path,
    beside: &[Beside],
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Report> {
    let more = beside.iter().map(|b| (b.what, b.path));
    let outputs: Vec<(&str, &Path)> = [("the output", output)].into_iter().chain(more).collect();
    paths::before(&[input], &outputs, options)?;
    let options = &*shards::with_samples(input, options)?;
    let source = Source::read(input, options, progress, cancelled)?;
    paths::side_files(&source.loaded, &outputs, options)?;
    let ranked = rank(calibrate(source)?)?;
    let planner = Planner::of(&ranked)?;
    let found = search(&planner, &options.goal(), &[output])?;
    let (mut report, model) = found.only(&ranked)?.stage(output, String::new())?;
    report.tried = found.tried;
    let mut staged = Staged::default();
    for b in beside {
        let content = (b.content)(std::slice::from_ref(&report))?;
        staged.bytes(b.path, content.as_bytes())?;
    }
    // The model comes last: where it is new, all is.
    staged.append(model);
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    staged.commit()?;
    Ok(report)
}
