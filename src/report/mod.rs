//! What a run found, did and measured: one value, shown by several exporters.

pub mod command;
pub mod html;
pub mod inspect;
pub mod layers;
pub mod style;
pub mod terminal;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::axes::{Kind, Place};
use crate::budget::{Budget, ModelParts};
use crate::engine::EngineInfo;
use crate::io::staged;
use crate::sites::Fitted;
use crate::verify::{Comparison, Equality, Kernels};
use crate::{Error, Result};

/// Version of the JSON report's layout.
pub const SCHEMA: u32 = 2;

/// Everything about one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Tool and version.
    pub tool: String,
    /// The command line that does the same again.
    pub command: String,
    /// The input file.
    pub input: String,
    /// Its SHA-256, side files included.
    pub input_sha256: String,
    /// The output file, if one was written.
    pub output: Option<String>,
    /// What was asked for, as on the command line.
    pub goal: crate::budget::Goal,
    /// Method, re-fitting, seed and so on.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Engine, device, threads.
    pub engine: Option<EngineInfo>,
    /// Where calibration inputs came from.
    pub calibration: Option<CalibrationReport>,
    /// Asked and got.
    pub budget: Budget,
    /// Parameters, bytes before and after.
    pub size: Size,
    /// What the vocabulary, the positions, the blocks and the rest take.
    pub parts: PartsReport,
    /// What stays of each group.
    pub groups: Vec<GroupReport>,
    /// What the damage of [`Report::groups`] is.
    pub damage: DamageKind,
    /// How much the positions of a sequence count at each sink.
    pub positions: crate::rank::positions::Weights,
    /// What could not be pruned, and why.
    pub frozen: Vec<FrozenReport>,
    /// Operators without a rule.
    pub unsupported: BTreeMap<String, usize>,
    /// Heads that have fewer channels.
    pub channels: Vec<crate::channels::ChannelSummary>,
    /// The vocabulary that is left, where some of it went.
    pub vocabulary: Option<crate::vocabulary::VocabularyReport>,
    /// Re-fitted sites.
    pub fitted: Vec<Fitted>,
    /// Sliced against masked.
    pub equality: Option<Equality>,
    /// Pruned against dense on held-out samples.
    pub held_out: Option<Comparison>,
    /// Passes that left what it computes.
    pub lossless: Vec<crate::rewrite::lossless::LosslessPass>,
    /// The pruned model (`a`) timed in turns with the dense one (`b`).
    pub latency: Option<crate::measure::paired::Measured>,
    /// Operators after the engine's optimisations.
    pub kernels: Option<Kernels>,
    /// Limits of several measures, asked and got.
    pub limits: Vec<crate::budget::Got>,
    /// Budgets that a search tried.
    pub tried: Vec<crate::numerics::bisect::BisectPoint>,
    /// Seconds per stage.
    pub seconds: Vec<(String, f64)>,
    /// Seconds of these in the engine.
    pub engine_seconds: crate::engine::EngineSeconds,
    /// What could not be done, and what that costs.
    pub warnings: Vec<crate::Warning>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Calibration inputs.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrationReport {
    /// Where they come from.
    pub origin: crate::data::DataOrigin,
    /// The files that were read, with their hashes.
    pub files: Vec<crate::onnx::provenance::DataFile>,
    /// Samples that statistics were taken of.
    pub samples: usize,
    /// Samples kept apart for measuring.
    pub held_out: usize,
    /// Real tokens (or rows) in the statistics.
    pub tokens: u64,
    /// Seconds of the dense forward passes over the samples.
    pub dense_seconds: f64,
}

/// Parameters and bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Size {
    /// Parameters, dense.
    pub parameters_before: u64,
    /// Parameters, pruned.
    pub parameters_after: u64,
    /// Bytes of the input file and its side files.
    pub bytes_before: u64,
    /// Bytes written.
    pub bytes_after: Option<u64>,
}

/// What parts of the model take, by bytes of constants and multiply-adds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PartsReport {
    /// Of the dense model.
    pub before: ModelParts,
    /// Of the result, heads with all their channels.
    pub after: ModelParts,
}

/// What stays of one group.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    /// The group.
    pub name: String,
    /// What its units are.
    pub kind: Kind,
    /// Where in the network it is.
    pub place: Option<Place>,
    /// Units before.
    pub units: usize,
    /// Indices of the units that stay.
    pub kept: Vec<usize>,
    /// Damage that the method expects.
    pub damage: f64,
    /// Damage for every number of units that go, where the method has such a curve.
    pub curve: Option<DamageCurve>,
}

/// What the damage of a group is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DamageKind {
    /// Divergence of the outputs, measured with forward passes.
    Outputs,
    /// Relative squared error at the group's own sinks.
    Sink,
    /// Sum of the scores that go, in the method's own units.
    Score,
}

/// Damage of a group by the number of its units that go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DamageCurve {
    /// Numbers of units removed, ascending from 0.
    pub removed: Vec<usize>,
    /// The damage of each.
    pub damage: Vec<f64>,
}

impl DamageCurve {
    /// Most points that a report holds of one curve.
    const POINTS: usize = 48;

    /// Some points of a curve, `chosen` among them.
    pub fn thinned(error: &[f64], chosen: usize) -> Self {
        let step = error.len().div_ceil(Self::POINTS).max(1);
        let last = error.len().saturating_sub(1);
        let picked = |at: &usize| at.is_multiple_of(step) || *at == chosen || *at == last;
        let removed: Vec<usize> = (0..error.len()).filter(picked).collect();
        DamageCurve {
            damage: removed.iter().map(|at| error[*at]).collect(),
            removed,
        }
    }
}

/// An axis that keeps its size.
#[derive(Debug, Clone, Serialize)]
pub struct FrozenReport {
    /// The axis.
    pub name: String,
    /// Its units.
    pub units: usize,
    /// Why.
    pub why: String,
}

/// Any report as JSON.
///
/// # Errors
/// A value that JSON cannot hold.
pub fn json(report: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(report)
        .map_err(|e| Error::input(format!("the report cannot be written as JSON: {e}")))?;
    text.push('\n');
    Ok(text)
}

/// Writes any report as JSON; `-` is standard output. A file appears whole or not
/// at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let text = json(report)?;
    if path.as_os_str() == "-" {
        use std::io::Write;
        return match std::io::stdout().write_all(text.as_bytes()) {
            // A reader that has seen enough is no error.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::io("cannot write", Path::new("standard output"), e))
            }
            _ => Ok(()),
        };
    }
    staged::write(path, text.as_bytes())
}
