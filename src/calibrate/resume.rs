//! Long calibrations that go on where they were stopped.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::collect::{SiteProbe, Timings, collect};
use super::file::{self, Stored};
use super::rows::PositionWeights;
use super::samples::Samples;
use super::statistics::Statistics;
use crate::error::{Error, Result, ResultExt};
use crate::onnx::proto;
use crate::progress::Progress;
use crate::runtime::Engine;

/// Runs that keep what they have in a file.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// Where the statistics are kept between runs; it appears whole or not at all.
    pub path: &'a Path,
    /// Names the model and the samples with all that chose them, as hashes do:
    /// statistics of anything else are refused.
    pub key: &'a str,
    /// Samples between two times that the file is written.
    pub every: usize,
}

/// As [`collect`], with the statistics so far kept in a file; samples that it has
/// seen are not run again. `samples` must be the same in the same order.
///
/// The result does not depend on where a run was stopped: samples are always run in
/// the same parts, of `every` each.
///
/// # Errors
/// As [`collect`], statistics in the file that are of something else, a file that
/// cannot be written.
#[allow(clippy::too_many_arguments)]
pub fn collect_kept(
    kept: Kept,
    engine: &dyn Engine,
    model: &proto::ModelProto,
    probes: &[SiteProbe],
    weights: &std::collections::BTreeMap<String, PositionWeights>,
    samples: &Samples,
    max_rows: usize,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<(Statistics, Timings)> {
    let all = samples.samples.len();
    let every = kept.every.max(1);
    let mut so_far = read(kept, probes, all, every)?;
    let mut timings = Timings::default();
    let mut done = so_far.as_ref().map_or(0, |s| s.samples);
    while done < all || so_far.is_none() {
        let part = Samples {
            samples: samples.samples.iter().skip(done).take(every).cloned().collect(),
            origin: samples.origin.clone(),
            notes: Vec::new(),
            padding: samples.padding,
        };
        let (found, took) = collect(
            engine, model, probes, weights, &part, max_rows, progress, cancelled,
        )?;
        timings = timings + took;
        match &mut so_far {
            Some(sum) => sum.merge(&found)?,
            none => *none = Some(found),
        }
        done += part.samples.len();
        if let Some(sum) = &so_far {
            file::save(kept.path, kept.key, sum)?;
        }
    }
    Ok((so_far.unwrap_or_default(), timings))
}

/// What an earlier run has left, if it is of the same thing.
fn read(kept: Kept, probes: &[SiteProbe], all: usize, every: usize) -> Result<Option<Statistics>> {
    if !kept.path.exists() {
        return Ok(None);
    }
    let Stored { model, statistics } = file::load(kept.path)?;
    let wrong = |why: &str| {
        Err(Error::input(why.to_owned())).context(|| {
            format!(
                "cannot go on from the statistics in {}: remove the file to begin anew",
                kept.path.display()
            )
        })
    };
    if model != kept.key {
        return wrong("they are of another model, of other samples or of other options");
    }
    let same = statistics.sites.len() == probes.len()
        && probes.iter().all(|p| {
            statistics
                .sites
                .get(&p.site)
                .is_some_and(|s| s.width() == p.width)
        });
    if !same {
        return wrong("they are of other sites");
    }
    // Whole parts, or everything.
    let count = statistics.samples;
    if count > all || (count < all && !count.is_multiple_of(every)) {
        return wrong(&format!(
            "they are of {count} samples, which is no part of {all} by {every}"
        ));
    }
    Ok(Some(statistics))
}
