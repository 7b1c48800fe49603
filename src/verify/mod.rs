//! Structure, types, numbers: what is checked on every run.

mod compare;
mod difference;
mod interface;

pub use compare::{Differences, ROWS, compare, compare_alike, compare_in_turn};
pub use difference::{Comparison, OutputDifference, divergence};
pub use interface::Interface;

use std::collections::{BTreeMap, BTreeSet};

use crate::axes::GroupId;
use crate::data::Samples;
use crate::engine::{Ctx, Engine, SessionOptions};
use crate::mask::Mask;
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::rewrite::{float_type, masked};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// Largest relative difference of two computations of the same thing in
/// float32.
pub const CLOSE_F32: f64 = 1e-5;
/// The same for float16: ten bits of mantissa, some layers.
pub const CLOSE_F16: f64 = 2e-2;
/// The same for bfloat16.
pub const CLOSE_BF16: f64 = 1e-1;
/// A relative change of weights that float32 hardly holds.
const NUDGE: f32 = 1e-7;
/// Where such a change makes more than this of an output, a comparison of outputs tells
/// nothing.
const CHAOTIC: f64 = 1e-2;
/// How many times the engine's own optimised-against-unoptimised difference is
/// accepted.
pub const ENGINE_MARGIN: f64 = 10.0;

/// Sliced against masked.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Equality {
    /// Whether all differences are within the tolerance.
    pub passed: bool,
    /// The tolerance.
    pub tolerance: f64,
    /// The engine's own difference between optimised and unoptimised runs.
    pub engine: f64,
    /// What a relative change of the weights by 1e-7 makes of the outputs, where that was
    /// needed to judge; the tolerance is ten times as much, value by value.
    pub sensitivity: Option<f64>,
    /// Largest relative difference per sink's output.
    pub sites: BTreeMap<String, f64>,
    /// Largest relative difference per graph output.
    pub outputs: BTreeMap<String, f64>,
    /// How many samples were run.
    pub samples: usize,
    /// Largest relative difference that the lossless passes make to an output,
    /// where there were some.
    pub lossless: Option<f64>,
}

/// Runs the sliced model against the masked one, and compares the outputs and those of
/// the sinks of the `watched` groups.
///
/// # Errors
/// The engine's; a difference is no error here.
pub fn sliced_equals_masked(
    ctx: Ctx,
    network: &Network,
    watched: &[GroupId],
    mask: &Mask,
    sliced: &proto::ModelProto,
    samples: &Samples,
) -> Result<Equality> {
    let (model, graph) = (&network.proto, &network.graph);
    let mask_model = masked(network, mask)?;
    let mut names: Vec<String> = Vec::new();
    let mut kind = Elem::F32;
    for id in watched {
        let group = network.group(*id);
        for sink in &group.sinks {
            match (float_type(graph, sink), kind) {
                (Elem::BF16, _) => kind = Elem::BF16,
                (Elem::F16, Elem::F32) => kind = Elem::F16,
                _ => {}
            }
            let alive = mask.kept.get(id).is_none_or(|k| k.iter().any(|k| *k));
            let output = graph.node(sink.node).outputs.first().copied().flatten();
            if let (true, Some(output)) = (alive, output) {
                let name = &graph.value(output).name;
                let exists = sliced
                    .graph
                    .iter()
                    .flat_map(|g| &g.node)
                    .any(|n| n.output.contains(name));
                if exists && !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
    }
    let finals: Vec<String> = graph
        .outputs
        .iter()
        .map(|o| graph.value(*o).name.clone())
        .collect();
    let all: Vec<String> = names.iter().chain(&finals).cloned().collect();
    let options = |outputs: &[String], optimise: bool| SessionOptions {
        optimise,
        outputs: Some(outputs.to_vec()),
    };
    let in_turn = |pair, interface: &Interface| compare_in_turn(ctx, pair, model, samples, interface);
    let both = [
        (model, &options(&finals, true)),
        (model, &options(&finals, false)),
    ];
    let own = in_turn(both, &Interface::default())?.worst();
    let interface = Interface::new(network, mask);
    let options = options(&all, true);
    let comparison = in_turn([(sliced, &options), (&mask_model, &options)], &interface)?;
    let base = match kind {
        Elem::F16 => CLOSE_F16,
        Elem::BF16 => CLOSE_BF16,
        _ => CLOSE_F32,
    };
    let tolerance = base.max(ENGINE_MARGIN * own);
    let mut equality = Equality {
        passed: true,
        tolerance,
        engine: own,
        sensitivity: None,
        sites: BTreeMap::new(),
        outputs: BTreeMap::new(),
        samples: samples.samples.len(),
        lossless: None,
    };
    // What one rounding makes of the outputs is measured only where it decides.
    let nudges = match comparison.worst() <= tolerance {
        true => None,
        false => {
            let nudged = nudged(network, &mask_model)?;
            let pair = [(&nudged, &options), (&mask_model, &options)];
            Some(compare_in_turn(ctx, pair, model, samples, &Interface::default())?)
        }
    };
    let nudge = |name: &str| {
        let found = nudges.iter().flat_map(|n| &n.outputs).find(|o| o.name == name);
        found.map_or(0.0, |o| o.relative_max)
    };
    equality.sensitivity = nudges
        .as_ref()
        .map(|_| finals.iter().map(|name| nudge(name)).fold(0.0, f64::max));
    for output in comparison.outputs {
        let value = output.relative_max;
        let nudge = nudge(&output.name);
        let own = tolerance.max(ENGINE_MARGIN * nudge);
        let tells_nothing = finals.contains(&output.name) && nudge > CHAOTIC && value.is_finite();
        equality.passed &= tells_nothing || value <= own;
        equality.tolerance = equality.tolerance.max(own);
        if names.contains(&output.name) {
            equality.sites.insert(output.name.clone(), value);
        }
        if finals.contains(&output.name) {
            equality.outputs.insert(output.name, value);
        }
    }
    Ok(equality)
}

/// The model with all larger float32 weights of the network changed by one rounding, up
/// and down in turn.
fn nudged(network: &Network, model: &proto::ModelProto) -> Result<proto::ModelProto> {
    let mut nudged = model.clone();
    let weights: BTreeSet<&str> = (network.graph.values.iter())
        .filter(|v| v.constant.as_ref().is_some_and(|c| c.shape.len() >= 2) && v.elem == Some(Elem::F32))
        .map(|v| v.name.as_str())
        .collect();
    for tensor in nudged.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        if !weights.contains(tensor.name()) {
            continue;
        }
        let old = onnx::tensor(tensor)?;
        let values = old.to_f32();
        let values = values.iter().enumerate().map(|(at, v)| match at % 2 {
            0 => v * (1.0 + NUDGE),
            _ => v * (1.0 - NUDGE),
        });
        let new = Tensor::f32(old.shape.clone(), values.collect::<Vec<_>>());
        *tensor = onnx::tensor_proto(tensor.name(), &new);
    }
    Ok(nudged)
}

impl Equality {
    /// The largest difference.
    pub fn worst(&self) -> f64 {
        self.sites
            .values()
            .chain(self.outputs.values())
            .fold(0.0, |w, v| if v.is_nan() || *v > w { *v } else { w })
    }

    /// The error when it did not pass.
    ///
    /// # Errors
    /// [`Error::Unmet`] with the first value that differs.
    pub fn require(&self) -> Result<()> {
        if self.passed {
            return Ok(());
        }
        let bad = self
            .sites
            .iter()
            .chain(&self.outputs)
            .find(|(_, v)| v.is_nan() || **v > self.tolerance);
        let (name, value) = bad.map_or(("?", f64::NAN), |(n, v)| (n.as_str(), *v));
        Err(Error::Unmet(format!(
            "the pruned model does not compute what the masked model computes: '{name}' differs by {value:.2e}, accepted is {:.2e}; no file is written. This is a defect: please report the model",
            self.tolerance
        )))
    }
}

/// Operators after the engine's optimisations: what one model has and the other
/// has not.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Kernels {
    /// Dense model.
    pub before: BTreeMap<String, usize>,
    /// Pruned model.
    pub after: BTreeMap<String, usize>,
    /// Operators of which there are more after pruning.
    pub more: Vec<String>,
}

/// Compares the operators after optimisation; `None` where the engine cannot
/// tell.
///
/// # Errors
/// The engine refuses a model.
pub fn kernels(
    engine: &dyn Engine,
    dense: &proto::ModelProto,
    pruned: &proto::ModelProto,
) -> Result<Option<Kernels>> {
    let (Some(before), Some(after)) = (
        engine.optimised_operators(dense)?,
        engine.optimised_operators(pruned)?,
    ) else {
        return Ok(None);
    };
    let more = after
        .iter()
        .filter(|(op, n)| **n > before.get(*op).copied().unwrap_or(0))
        .map(|(op, _)| op.clone())
        .collect();
    Ok(Some(Kernels { before, after, more }))
}
