//! The axis algebra: which axes of which tensors must shrink together.
//!
//! Each dimension of each tensor is a product of terms ([`Dim`]); one rule per
//! operator says how the terms of its inputs and outputs relate
//! ([`rules`]); what is left free and has a source and a sink is a
//! [`PruneGroup`]. Nothing here knows a model architecture, reads a file or
//! computes with floats.
//!
//! ```text
//! graph ──rules──> Space (union-find of factors) ──groups──> Vec<PruneGroup>
//! ```

mod align;
mod analysis;
mod dim;
mod elements;
mod groups;
mod int;
mod kind;
mod links;
mod names;
mod op;
pub mod rules;
mod space;

pub use analysis::{
    Analysis, AttrUse, Contraction, Facts, IntUse, Link, Options, Run, analyse, analyse_open,
};
pub use dim::{Dim, FactorId, SymbolId, Term};
pub use groups::{FrozenAxis, GroupId, PruneGroup, Sink};
pub use int::{Atom, Int, Mono, Op as IntOp, Poly};
pub use kind::Kind;
pub use op::Op;
pub use rules::OwnRule;
pub use space::{Freeze, Space};
