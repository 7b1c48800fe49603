//! Changes that make a model cheaper and leave what it computes as it is.
//!
//! ```text
//! dead        nodes and constants that no output needs go
//! positions   what is read at one position of a sequence only is computed
//!             for that position only
//! copies      a table that is stored twice, once transposed, is stored once
//! ```
//!
//! A classifier reads `[CLS]`: so the query projection, the attention rows, the
//! output projection and the feed-forward of the last layer are needed at that
//! position only. [`apply`] moves the pick of the position up through every
//! operator that keeps positions apart (`rules` says which), and puts a
//! `Slice` where it cannot go further. Nodes and values keep their names.

mod copies;
mod cut;
mod dead;
mod positions;
mod rules;

pub use copies::share;

use crate::onnx::proto;
use crate::{Result, axes, graph};

/// What one pass did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LosslessPass {
    /// `"dead"`, `"positions"` or `"copies"`.
    pub name: &'static str,
    /// In words, for the user.
    pub what: String,
    /// Nodes that went, or that run on one position now.
    pub nodes: usize,
    /// Of these, the contractions: matrix products and attention.
    pub contractions: usize,
}

/// The cheaper model and what was done, in order; nothing where nothing could
/// be done. Applying it again changes nothing.
///
/// The model's local functions are inlined. What it computes stays the same on
/// every input, up to the order in which an engine adds.
///
/// # Errors
/// A graph that is not well-formed.
pub fn apply(model: &proto::ModelProto) -> Result<(proto::ModelProto, Vec<LosslessPass>)> {
    /// Values that are read at one position only; a model has one or two.
    const MOST: usize = 64;
    let mut passes = Vec::new();
    let mut model = dead::remove(model, &mut passes)?;
    for _ in 0..MOST {
        let graph = graph::build(&model)?;
        let analysis = axes::analyse(&graph, axes::AnalysisOptions::default());
        let Some((next, pass)) = positions::narrow(&model, &graph, &analysis)? else {
            break;
        };
        model = next;
        passes.push(pass);
    }
    Ok((model, passes))
}
