//! Instrumented runs over inputs -> statistics per site.
//!
//! `collect()` runs batches and adds up what ranking and re-fitting need of each site:
//! [`Statistics`](crate::numerics::Statistics), which [`mod@file`] keeps. On a device with
//! a memory of its own the sums are made there.

mod collect;
mod collector;
pub mod file;
mod in_graph;
mod nodes;
mod resume;
mod trial;

pub use collect::{CollectPass, Watched, collect, collect_watching};
pub use collector::{SiteProbe, Timings};
pub(crate) use nodes::{Nodes, finite};
pub use resume::{Collected, KeptStatistics, collect_kept};
pub use trial::try_padding;
