//! Calibration apart from pruning: statistics in files, added up, used again.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sha2::{Digest as _, Sha256};

use super::loaded::{Opened, open};
use super::options::Options;
use super::paths;
use super::source::probes;
use crate::calibrate::{self, KeptStatistics, SiteProbe, Watched, file};
use crate::data::{DataOptions, DataOrigin, Padding, Samples, split};
use crate::engine::{self, Ctx, Engine, EngineInfo};
use crate::io::staged;
use crate::onnx::{self, provenance};
use crate::progress::Progress;
use crate::rank::positions::Weights;
use crate::report::SCHEMA;
use crate::{Error, Result, ResultExt, data};

/// What `calibrate` and `merge` tell.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StatisticsReport {
    /// Version of this layout.
    pub schema: u32,
    /// Tool and version.
    pub tool: String,
    /// The file of statistics that was written.
    pub output: PathBuf,
    /// SHA-256 of the model that they are of.
    pub model_sha256: String,
    /// Where the inputs came from; nothing for a sum.
    pub origin: Option<DataOrigin>,
    /// How many inputs were run.
    pub samples: usize,
    /// Their real tokens (or rows).
    pub tokens: u64,
    /// How many of them the file holds.
    pub kept: usize,
    /// How many sinks have statistics.
    pub sites: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl StatisticsReport {
    fn of(output: &Path, stored: &file::Stored) -> Self {
        StatisticsReport {
            schema: SCHEMA,
            tool: provenance::tool(),
            output: output.to_owned(),
            model_sha256: stored.model.clone(),
            origin: None,
            samples: stored.statistics.samples,
            tokens: stored.statistics.tokens,
            kept: stored.samples.len(),
            sites: stored.statistics.sites.len(),
            notes: Vec::new(),
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}: statistics of {} sinks over {} samples ({} tokens or rows), and {} of these, of the model {}\n",
            self.output.display(),
            self.sites,
            self.samples,
            self.tokens,
            self.kept,
            self.model_sha256.get(..12).unwrap_or(&self.model_sha256)
        );
        for note in &self.notes {
            out += &format!("  note: {note}\n");
        }
        out
    }
}

/// Samples that are read, run and kept at once.
const PART: usize = 1024;

/// Where [`collect`] keeps what it has until it is done: beside the output.
pub fn partial(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    output.with_file_name(name)
}

/// Runs `input` over all samples of the options and writes the statistics to
/// `output`. Files of the same model add up ([`merge`]), whoever made them.
///
/// Samples are read in parts, so memory does not grow with their number; after each
/// part the sums so far are in the file [`partial`] beside the output. A run with the
/// same model, samples and options resumes from there, with the same result.
///
/// `keep` samples, drawn at random, go into the file too: what a loss does to the outputs is
/// measured on them, and layers are re-fitted in order.
///
/// All positions of a sequence count alike in them: what they count for the
/// outputs depends on the samples, so sums over parts would not be the sum over
/// the whole.
///
/// # Errors
/// As [`super::prune`].
pub fn collect(
    input: &Path,
    output: &Path,
    (options, keep): (&Options, usize),
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<StatisticsReport> {
    options.check()?;
    let partial = partial(output);
    let outputs = [("the output", output), ("the unfinished output", &partial)];
    paths::before(&[input], &outputs, options)?;
    let Opened { loaded, targets, .. } = open(input, options)?;
    paths::side_files(&loaded, &outputs, options)?;
    let engine = engine::choose(&options.engine)?;
    let probes = probes(&targets)?;
    let model = loaded.file.sha256()?;
    let found = calibrate::collect_kept(
        KeptStatistics {
            path: &partial,
            key: &key(&model, &probes, engine.as_ref(), options)?,
            every: PART,
        },
        Ctx {
            engine: engine.as_ref(),
            progress,
            cancelled,
        },
        &loaded.network.proto,
        Watched {
            probes: &probes,
            weights: &Weights::new(),
        },
        &options.data,
        data::ROWS,
    )?;
    let statistics = found.statistics;
    let samples = match keep {
        0 => Vec::new(),
        _ => {
            let few = DataOptions {
                samples: Some(keep),
                ..options.data.clone()
            };
            let read = data::read_samples(&loaded.network.proto, &few)?;
            split::spread(&read, keep).samples
        }
    };
    let stored = file::Stored {
        model,
        statistics,
        samples,
    };
    stored.save(output)?;
    // Saved already; a file too many is not worth an error.
    let _ = std::fs::remove_file(&partial);
    let mut report = StatisticsReport::of(output, &stored);
    report.origin = Some(found.origin);
    report.notes = loaded.notes;
    report.notes.extend(found.notes);
    if found.before > 0 {
        report.notes.push(format!(
            "it resumed an earlier run after {} samples",
            found.before
        ));
    }
    Ok(report)
}

/// Names all that the statistics depend on.
fn key(model: &str, probes: &[SiteProbe], engine: &dyn Engine, options: &Options) -> Result<String> {
    let data = &options.data;
    let read: Vec<PathBuf> = data.data.iter().chain(&data.tokenizer).cloned().collect();
    let files: Vec<String> = provenance::data_files(&read)?
        .into_iter()
        .map(|file| file.sha256)
        .collect();
    let mut hash = Sha256::new();
    hash.update(format!(
        "{} {model} {PART} {} {probes:?} {files:?} {:?} {} {:?} {} {:?} {} {} {}",
        provenance::tool(),
        data::ROWS,
        data.text_columns,
        data.max_length,
        data.samples,
        data.seed,
        data.shapes,
        data.batch,
        data.seq(),
        data.join,
    ));
    if let Some(given) = &data.given {
        given
            .samples
            .iter()
            .for_each(|sample| hash.update(format!("{sample:?}")));
    }
    let EngineInfo {
        name,
        version,
        device,
        threads,
        ..
    } = engine.info();
    hash.update(format!("{name} {version} {device} {threads}"));
    let digits = hash.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds up files of statistics of one model.
///
/// # Errors
/// Files of different models or of different sinks; none at all; an output that is
/// one of them.
pub fn merge(inputs: &[PathBuf], output: &Path) -> Result<StatisticsReport> {
    let [first, others @ ..] = inputs else {
        return Err(Error::input(
            "there is nothing to merge: name the files of statistics",
        ));
    };
    let outputs = [("the output", output)];
    let given: Vec<(&str, &Path)> = inputs.iter().map(|path| ("the input", path.as_path())).collect();
    staged::apart(&outputs, &given)?;
    staged::writable(output)?;
    let mut sum = file::load(first)?;
    for path in others {
        let other = file::load(path)?;
        sum.merge(&other)
            .context(|| format!("adding {} to {}", path.display(), first.display()))?;
    }
    if sum.samples.len() > file::MOST_SAMPLES {
        let all = Samples {
            samples: std::mem::take(&mut sum.samples),
            ..Samples::of_feeds([])
        };
        sum.samples = split::spread(&all, file::MOST_SAMPLES).samples;
    }
    sum.save(output)?;
    Ok(StatisticsReport::of(output, &sum))
}

/// The options with the samples that statistics hold in place of data, where there are none.
///
/// # Errors
/// Files that cannot be read.
pub(super) fn with_samples<'o>(input: &Path, options: &'o Options) -> Result<Cow<'o, Options>> {
    if options.stats.is_empty() || !options.data.is_empty() {
        return Ok(Cow::Borrowed(options));
    }
    let model = onnx::load(input)?.sha256()?;
    for path in &options.stats {
        let stored = file::load(path)?;
        if stored.model != model || stored.samples.is_empty() {
            continue;
        }
        let mut options = options.clone();
        let note = format!(
            "damage is measured and layers are re-fitted on {} samples that the statistics hold",
            stored.samples.len()
        );
        options.data.given = Some(Arc::new(Samples {
            samples: stored.samples,
            origin: DataOrigin::Files {
                paths: vec![path.clone()],
            },
            notes: vec![note],
            padding: Padding::No,
        }));
        return Ok(Cow::Owned(options));
    }
    Ok(Cow::Borrowed(options))
}
