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

pub mod algebra;
mod analyse;
mod facts;
mod find;
mod group;
mod op;
pub mod rules;

pub use algebra::dim::{Dim, FactorId, SymbolId, Term};
pub use algebra::int::{Atom, Int, IntOp, Mono, Poly};
pub use algebra::space::{Freeze, Space};
pub use analyse::{AnalysisOptions, analyse, analyse_open};
pub use facts::{Analysis, AttrUse, Contraction, Facts, IntUse, Link, RunFacts};
pub use group::{BlockPart, FrozenAxis, GroupId, Kind, Place, PruneGroup, Sink};
pub use op::{Op, OwnRule, Rule};
