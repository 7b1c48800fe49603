//! Statistics and weights in, importance out: which unit goes first, and what
//! the site's output loses after each step.
//!
//! [`obs`](obs::obs) is the default, [`kcm`](kcm::kcm) the publication this
//! tool grew from, and [`baselines`] what users know. A method that only ranks
//! units gets its error curve from [`curve_of_order`].

pub mod baselines;
mod curve;
pub mod kcm;
pub mod obs;
mod ranking;
mod site;

pub use curve::{Curve, curve_of_order, order_of_scores};
pub use ranking::Ranking;
pub(crate) use site::check_damp;
pub use site::{DEFAULT_DAMP, ScoredSite, Units};
