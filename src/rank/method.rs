//! How units are ranked.

use crate::numerics::score::DEFAULT_DAMP;
use crate::numerics::score::kcm::KcmOptions;
use crate::words::words;

/// How units are ranked and levels chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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

words!(Method { Obs = "obs", Kcm = "kcm", Wanda = "wanda", Magnitude = "magnitude" });

/// How units are ranked.
#[derive(Debug, Clone)]
pub struct RankOptions {
    /// The method.
    pub method: Method,
    /// Ridge of obs and of re-fitting, as a fraction of the mean diagonal.
    pub damp: f64,
    /// The kernel and the iterations of kcm.
    pub kcm: KcmOptions,
}

impl Default for RankOptions {
    fn default() -> Self {
        RankOptions {
            method: Method::default(),
            damp: DEFAULT_DAMP,
            kcm: KcmOptions::default(),
        }
    }
}
