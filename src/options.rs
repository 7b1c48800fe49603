//! What a run is asked to do, validated.

use crate::calibrate::DataOptions;
use crate::runtime::EngineOptions;
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

/// Kinds of units that may be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Attention heads or key/value groups.
    Heads,
    /// Feed-forward neurons.
    Neurons,
}

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ranking method.
    pub method: Method,
    /// Fraction of the prunable blocks' multiply-accumulates to keep, in (0, 1].
    pub flops: f64,
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
    /// Samples that damage is measured on.
    pub probe: usize,
    /// Whether sequential re-fitting also fits the layers that keep all inputs.
    pub refit_all: bool,
    /// KCM's kernel width.
    pub kcm_sigma: f64,
    /// KCM's convergence bound.
    pub kcm_alpha: f64,
    /// KCM's bound on iterations.
    pub kcm_iterations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            method: Method::Obs,
            flops: 0.6,
            reconstruct: Reconstruct::Auto,
            targets: vec![Target::Heads, Target::Neurons],
            exclude: Vec::new(),
            min_units: 0,
            axes: crate::axes::Options::default(),
            data: DataOptions::default(),
            engine: EngineOptions::default(),
            dry_run: false,
            external_data: false,
            damp: crate::score::DEFAULT_DAMP,
            probe: 96,
            refit_all: true,
            kcm_sigma: 1.0,
            kcm_alpha: 0.01,
            kcm_iterations: 100,
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
        if self.method == Method::Kcm && self.targets == [Target::Heads] {
            return Err(Error::input(
                "kcm ranks feed-forward neurons only, as published; for heads use --method obs",
            ));
        }
        if self.data.batch == 0 || self.data.seq == 0 {
            return Err(Error::input("--batch and --seq must be at least 1"));
        }
        Ok(())
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
