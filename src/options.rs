//! What a run is asked to do, validated.

use std::path::PathBuf;

use crate::budget::Align;
use crate::data::DataOptions;
use crate::engine::EngineOptions;
use crate::{Error, Result};

/// How units are ranked and levels chosen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Second-order elimination on calibration statistics (the default).
    #[default]
    Obs,
    /// Kernelized convex masking (Nova et al., ICML 2023); neurons only.
    Kcm,
    /// Row norms of the weights times norms of the activations (Sun et al., 2023).
    Wanda,
    /// Row norms of the weights; needs no data.
    Magnitude,
}

impl Method {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Obs => "obs",
            Method::Kcm => "kcm",
            Method::Wanda => "wanda",
            Method::Magnitude => "magnitude",
        }
    }
}

/// How the kept weights are re-fitted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Reconstruct {
    /// What the method is known with: `sequential` for obs, `rescale` for kcm,
    /// `none` for wanda and magnitude.
    #[default]
    Auto,
    /// Weights stay as they are.
    None,
    /// Least squares per site on the dense model's statistics.
    Local,
    /// Least squares per site on what arrives there once the sites before it are
    /// pruned, against what the dense model has after the residual addition.
    Sequential,
    /// One scalar per kept unit, as published for kcm.
    Rescale,
}

/// The budget of a run that asks for none.
pub const DEFAULT_FLOPS: f64 = 0.6;

/// Kinds of units that may be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Attention heads or key/value groups.
    Heads,
    /// Feed-forward neurons.
    Neurons,
    /// Query heads, the same ones in every key/value group of a layer, which all
    /// stay: instead of heads.
    Queries,
}

/// How much time measurements may take.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// As many samples as a few passes of the dense model take.
    #[default]
    Normal,
    /// What changes do to the outputs is measured on eight times the samples, and layers
    /// are re-fitted on all.
    High,
}

impl Effort {
    /// By what numbers of samples are multiplied.
    pub fn samples(self) -> usize {
        match self {
            Effort::Normal => 1,
            Effort::High => 8,
        }
    }
}

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ranking method.
    pub method: Method,
    /// Fraction of the prunable blocks' multiply-accumulates to keep, in (0, 1].
    pub flops: f64,
    /// Instead of [`Options::flops`]: limits that must all hold.
    pub limits: Vec<crate::budget::Target>,
    /// Groups of neurons keep a multiple of this many units, or all; none asks for
    /// what suits the device.
    pub align: Option<usize>,
    /// Whether passes that leave what the model computes come first.
    pub lossless: bool,
    /// Whether heads may lose channels ([`crate::channels`]).
    pub narrow: bool,
    /// Whether units go that are constant on all calibration inputs.
    pub fold_constant: bool,
    /// Where tables of measured latencies are kept; none asks for the usual place.
    pub latency_cache: Option<PathBuf>,
    /// Whether the result is timed against the dense model.
    pub timing: bool,
    /// Instead of a budget: the smallest model whose divergence on held-out
    /// samples (or the number of [`Options::eval`]) is at most this.
    pub max_drop: Option<f64>,
    /// A command that prints a number for a candidate file, in place of the
    /// divergence.
    pub eval: Option<String>,
    /// Instead of a ranking: a mask that something else made.
    pub mask: Option<PathBuf>,
    /// Instead of a calibration: statistics of this model in a file
    /// ([`crate::calibrate::file`]).
    pub stats: Option<PathBuf>,
    /// Where the mask of the run goes.
    pub export_mask: Option<PathBuf>,
    /// Graph outputs that count when damage is measured; none means all.
    pub outputs: Vec<String>,
    /// How much time measurements may take.
    pub effort: Effort,
    /// Re-fitting.
    pub reconstruct: Reconstruct,
    /// What may be pruned.
    pub targets: Vec<Target>,
    /// Groups whose name matches stay whole.
    pub exclude: Vec<regex::Regex>,
    /// Least number of units that every group keeps.
    pub min_units: usize,
    /// Which axes may shrink together, and whether the interface may.
    pub axes: crate::axes::Options,
    /// Calibration inputs; `batch` and `seq` also say what costs are computed for.
    pub data: DataOptions,
    /// What runs the model.
    pub engine: EngineOptions,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Always write tensors to a side file.
    pub external_data: bool,
    /// Ridge of obs and of re-fitting, as a fraction of the mean diagonal.
    pub damp: f64,
    /// Samples that damage is measured on; none asks for as many as take a few
    /// dense passes over all samples.
    pub probe: Option<usize>,
    /// Whether sequential re-fitting also fits the layers that keep all inputs.
    pub refit_all: bool,
    /// KCM's kernel width.
    pub kcm_sigma: f64,
    /// KCM's convergence bound.
    pub kcm_alpha: f64,
    /// KCM's bound on iterations.
    pub kcm_iterations: usize,
    /// How KCM's two scores are made comparable before they are multiplied.
    pub kcm_normalise: crate::numerics::score::kcm::Normalise,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            method: Method::Obs,
            flops: DEFAULT_FLOPS,
            limits: Vec::new(),
            align: None,
            lossless: true,
            narrow: true,
            fold_constant: false,
            latency_cache: None,
            timing: true,
            max_drop: None,
            eval: None,
            mask: None,
            stats: None,
            export_mask: None,
            outputs: Vec::new(),
            effort: Effort::Normal,
            reconstruct: Reconstruct::Auto,
            targets: vec![Target::Heads, Target::Neurons],
            exclude: Vec::new(),
            min_units: 0,
            axes: crate::axes::Options::default(),
            data: DataOptions::default(),
            engine: EngineOptions::default(),
            dry_run: false,
            external_data: false,
            damp: crate::numerics::score::DEFAULT_DAMP,
            probe: None,
            refit_all: true,
            kcm_sigma: 1.0,
            kcm_alpha: 0.01,
            kcm_iterations: 100,
            kcm_normalise: crate::numerics::score::kcm::Normalise::default(),
        }
    }
}

impl Options {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        if !(self.flops > 0.0 && self.flops <= 1.0) {
            return Err(Error::input(format!(
                "--flops is {}: it is the fraction to keep, above 0 and at most 1",
                self.flops
            )));
        }
        if self.targets.is_empty() {
            return Err(Error::input("--targets is empty: give heads, neurons or both"));
        }
        if self.targets.contains(&Target::Heads) && self.targets.contains(&Target::Queries) {
            return Err(Error::input(
                "--targets: heads (whole key/value groups) and queries (query heads within each group) cannot both be pruned in one run; run twice",
            ));
        }
        if self.method == Method::Kcm && !self.targets.contains(&Target::Neurons) {
            return Err(Error::input(
                "kcm ranks feed-forward neurons only, as published; for heads use --method obs",
            ));
        }
        if self.eval.is_some() && self.max_drop.is_none() {
            return Err(Error::input(
                "--eval needs --max-drop: the largest number that the command may print",
            ));
        }
        if self.mask.is_some() && self.max_drop.is_some() {
            return Err(Error::input(
                "--mask says what stays: --max-drop cannot be kept with it",
            ));
        }
        if self.max_drop.is_some() && !self.limits.is_empty() {
            return Err(Error::input("--max-drop finds the budget: it takes no other one"));
        }
        if self.data.batch == 0 || self.data.seq == 0 {
            return Err(Error::input("--batch and --seq must be at least 1"));
        }
        Ok(())
    }

    /// The multiples that suit a device (`cuda` or a CPU) where none is asked for.
    /// Methods that rank all units together keep their own order.
    pub fn alignment(&self, device: &str) -> Align {
        match self.align {
            Some(n) => Align::exactly(n),
            None if self.method != Method::Obs => Align::exactly(1),
            None if device.starts_with("cuda") => Align::up_to(64),
            None => Align::up_to(8),
        }
    }

    /// The re-fitting that is really done.
    pub fn reconstruction(&self) -> Reconstruct {
        match (self.reconstruct, self.method) {
            (Reconstruct::Auto, Method::Obs) => Reconstruct::Sequential,
            (Reconstruct::Auto, Method::Kcm) => Reconstruct::Rescale,
            (Reconstruct::Auto, Method::Wanda | Method::Magnitude) => Reconstruct::None,
            (other, _) => other,
        }
    }
}
