//! How the weights that stay are re-fitted.

use crate::numerics::score::DEFAULT_DAMP;
use crate::words::words;

/// How the kept weights are re-fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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

words!(Reconstruct {
    Auto = "auto",
    None = "none",
    Local = "local",
    Sequential = "sequential",
    Rescale = "rescale",
});

/// How the weights that stay are re-fitted.
#[derive(Debug, Clone, Copy)]
pub struct RefitOptions {
    /// The way; [`Reconstruct::Auto`] is settled by the method.
    pub reconstruct: Reconstruct,
    /// Ridge of local fits, as a fraction of the mean diagonal.
    pub damp: f64,
    /// Whether sequential re-fitting also fits the layers that keep all inputs.
    pub others: bool,
}

impl Default for RefitOptions {
    fn default() -> Self {
        RefitOptions {
            reconstruct: Reconstruct::Auto,
            damp: DEFAULT_DAMP,
            others: true,
        }
    }
}
