//! Inputs -> instrumented runs -> statistics per site.
//!
//! [`read_samples`] turns files (or nothing at all) into [`Samples`];
//! [`batches`] groups those of equal shape; [`collect`] runs them and adds up
//! what ranking and re-fitting need of each site: [`Statistics`], which
//! [`mod@file`] keeps. On a device with a memory of its own the sums are made there.

mod arrays;
mod batch;
mod collect;
mod draw;
mod exact;
pub mod file;
mod fill;
mod in_graph;
mod layout;
mod nodes;
pub mod npz;
mod padding;
mod products;
mod resume;
mod rows;
mod samples;
mod sizes;
mod source;
mod spec;
mod statistics;
mod tables;
mod testset;
mod text;
mod tokenize;
mod trial;
mod trim;

pub use batch::{Batch, Batches, ROWS, batches, real_tokens};
pub use collect::{Pass, SiteProbe, Timings, collect, collect_watching};
pub use exact::{ExactBatch, exact_batch};
pub(crate) use nodes::{Nodes, finite};
pub use padding::Padding;
pub use resume::{Collected, Kept, collect_kept};
pub use rows::{Place, PositionWeights};
pub(crate) use rows::{Rows, Strides, floats};
pub use samples::{DataOptions, Origin, Sample, Samples, Take, read_parts, read_samples};
pub use spec::{InputDim, InputSpec, input_specs};
pub use statistics::{SiteStatistics, Statistics};
pub use trial::try_padding;
