//! New weights for what stays: fitted to the dense layer, put into the model.
//!
//! ```text
//! how         what is asked for
//! local       fits on the dense model's statistics
//! recording   what the dense model has after the residual additions
//! sequential  fits on what really arrives at each sink once the ones before it
//!             are pruned: `schedule` says at which layers, `dense` what the dense
//!             model has there, `sums` what is added up (by the engine, `device_sums`,
//!             where that has memory of its own), `ridge` which fit is taken
//! ```
//!
//! `docs/experiments.md` has what each part of it brings, and what was tried in vain.

mod block;
mod dense;
mod device_sums;
mod how;
mod local;
mod recording;
mod ridge;
mod schedule;
mod sequential;
mod sums;

pub use how::{Reconstruct, RefitOptions};
pub use local::Local;
pub use recording::Recording;
pub use schedule::{Layers, wanted};
pub use sequential::{InOrder, Passes, sequential};
