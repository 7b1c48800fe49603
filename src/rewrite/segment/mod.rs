//! A model cut at its sinks, so that only a part of it has to run.
//!
//! ```text
//! cut     which nodes lie before a sink, and which values cross from there on
//! piece   a model of the nodes between two cuts
//! group   the part of a model that one group makes up
//! ```
//!
//! The weight and the bias of a sink may become inputs of a piece: then one
//! session serves the dense and any changed weights.

mod cut;
pub mod group;
mod piece;

pub use cut::Cut;
pub(crate) use cut::is_constant;
pub use piece::{Boundary, piece, with_constants};
