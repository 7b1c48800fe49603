//! Pure least squares: kept rows and statistics in, re-fitted weights of one
//! site out.

mod levels;
mod local;
mod regress;
mod rescale;

use faer::Mat;

pub use levels::Levels;
pub use local::{known, local};
pub use regress::{Normal, Regression, RegressionSums};
pub use rescale::rescale;

/// New weights for the rows of one site that are kept.
///
/// Both errors are squared differences from the unpruned layer's output
/// `Y = X W + b`, relative to the output's own energy: `tr(W^T Sigma W)`, the
/// variance part alone, for a site with a bias, and `tr(W^T X^T X W)` for one
/// without. Where that energy is 0 (a constant output) they are 0 or infinite.
#[derive(Clone, Debug)]
pub struct Refit {
    /// W', `|S| x d`, in the order of the kept rows.
    pub weight: Mat<f64>,
    /// `b' - b`, d entries: to be added to the bias. None where there is none.
    pub bias_shift: Option<Vec<f64>>,
    /// The error of dropping the other rows and changing nothing else.
    pub error_before: f64,
    /// The error with the new weights and bias.
    pub error_after: f64,
}

/// `error / energy`, without noise below zero.
fn relative(error: f64, energy: f64) -> f64 {
    let error = error.max(0.0);
    if error == 0.0 {
        0.0
    } else {
        error / energy.max(0.0)
    }
}
