//! A model cut at its sinks, so that only a part of it has to run.
//!
//! ```text
//! cut     which nodes lie before a sink, and which values cross from there on
//! piece   a model of the nodes between two cuts
//! stream  the values at a cut, for every batch, carried through pieces
//! ```
//!
//! The weight and the bias of a sink may become inputs of a piece: then one
//! session serves the dense and any changed weights.

mod cut;
mod piece;
mod stream;

pub use cut::Cut;
pub(crate) use cut::is_constant;
pub use piece::{Boundary, piece, with_constants};
pub use stream::{Runner, Stream};
