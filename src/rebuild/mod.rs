//! New weights for what stays: fitted to the dense layer, put into the model.
//!
//! ```text
//! weights     where the weight and the bias of a sink sit in the file
//! part        sinks that read one weight, and a fit of it
//! local       fits on the dense model's statistics
//! sequential  fits on what really arrives at each sink once the ones before it
//!             are pruned
//! ```

mod local;
mod part;
mod sequential;
pub mod weights;

pub use local::local;
pub use part::{Fit, Part, apply, parts};
pub use sequential::{Priors, sequential};

/// What re-fitting did at one site.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Fitted {
    /// The site.
    pub site: String,
    /// Relative squared error of its output with the old weights.
    pub before: f64,
    /// With the new ones.
    pub after: f64,
    /// Ridge of a sequential fit, as a fraction of the mean variance; `None` where
    /// the local fit stayed.
    pub ridge: Option<f64>,
}
