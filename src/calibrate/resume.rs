//! Long calibrations that go on where they were stopped, in memory that does not
//! grow with the number of samples.

use std::path::Path;

use super::file::{self, Stored};
use super::{SiteProbe, Timings, Watched, collect};
use crate::data::{DataOptions, DataOrigin, Padding, Samples, read_parts};
use crate::engine::Ctx;
use crate::error::{Error, Result};
use crate::numerics::Statistics;
use crate::onnx::proto;

/// Runs that keep what they have in a file.
#[derive(Debug, Clone, Copy)]
pub struct KeptStatistics<'a> {
    /// Where the statistics are kept between runs; it appears whole or not at all.
    pub path: &'a Path,
    /// Names the model and the samples with all that chose them, as hashes do:
    /// statistics of anything else are refused.
    pub key: &'a str,
    /// Samples between two times that the file is written.
    pub every: usize,
}

/// What [`collect_kept`] found.
#[derive(Debug, Clone)]
pub struct Collected {
    /// The statistics.
    pub statistics: Statistics,
    /// Where the time of this run went.
    pub timings: Timings,
    /// Samples that an earlier run had done.
    pub before: usize,
    /// Where the samples come from.
    pub origin: DataOrigin,
    /// What the user should know about them.
    pub notes: Vec<String>,
}

/// As `collect()`, with the samples read `every` at a time and the statistics so far
/// kept in a file; samples that it has seen are not run again.
///
/// The result does not depend on where a run was stopped: samples are always run in
/// the same parts, of `every` each.
///
/// # Errors
/// As `collect()`, samples that cannot be read, statistics in the file that are of
/// something else, a file that cannot be written.
pub fn collect_kept(
    kept: KeptStatistics,
    ctx: Ctx,
    model: &proto::ModelProto,
    watched: Watched,
    data: &DataOptions,
    max_rows: usize,
) -> Result<Collected> {
    let mut so_far = read(kept, watched.probes)?;
    let before = so_far.as_ref().map_or(0, |s| s.samples);
    let mut timings = Timings::default();
    let mut seen = 0;
    let read = read_parts(model, data, kept.every, &mut |samples| {
        let start = seen;
        seen += samples.len();
        if seen <= before {
            return Ok(());
        }
        if start < before {
            return Err(no_part(kept, before));
        }
        let part = Samples {
            samples,
            // Nothing here asks where they come from.
            origin: DataOrigin::Given,
            notes: Vec::new(),
            padding: Padding::No,
        };
        let (found, took) = collect(ctx, model, watched, &part, max_rows)?;
        timings = timings + took;
        match &mut so_far {
            Some(sum) => sum.merge(&found)?,
            none => *none = Some(found),
        }
        match &so_far {
            Some(sum) => file::save(kept.path, kept.key, sum),
            None => Ok(()),
        }
    })?;
    if seen < before {
        return Err(no_part(kept, before));
    }
    Ok(Collected {
        statistics: so_far.unwrap_or_default(),
        timings,
        before,
        origin: read.origin,
        notes: read.notes,
    })
}

fn wrong(kept: KeptStatistics, why: &str) -> Error {
    Error::input(why.to_owned()).context(format!(
        "cannot go on from the statistics in {}: remove the file to begin anew",
        kept.path.display()
    ))
}

fn no_part(kept: KeptStatistics, count: usize) -> Error {
    let why = format!("they are of {count} samples, which are not the first ones of these");
    wrong(kept, &why)
}

/// What an earlier run has left, if it is of the same thing.
fn read(kept: KeptStatistics, probes: &[SiteProbe]) -> Result<Option<Statistics>> {
    if !kept.path.exists() {
        return Ok(None);
    }
    let Stored {
        model, statistics, ..
    } = file::load(kept.path)?;
    if model != kept.key {
        return Err(wrong(
            kept,
            "they are of another model, of other samples or of other options",
        ));
    }
    let same = statistics.sites.len() == probes.len()
        && probes.iter().all(|p| {
            statistics
                .sites
                .get(&p.site)
                .is_some_and(|s| s.width() == p.width)
        });
    if !same {
        return Err(wrong(kept, "they are of other sites"));
    }
    Ok(Some(statistics))
}
