//! Inputs: read from files or made up, cut to their own length, laid together in batches.
//!
//! [`read_samples`] turns files (or nothing at all) into [`Samples`]; [`batches`] groups
//! those of equal shape.

mod batch;
mod draw;
mod exact;
mod fill;
mod finish;
mod from_text;
mod implied;
pub(crate) mod layout;
mod padding;
mod read;
mod reader;
mod rows;
mod samples;
mod seen;
mod sizes;
mod source;
mod spec;
pub mod split;
mod synthetic;
mod tables;
mod testset;
mod text;
#[cfg(feature = "text")]
mod tokenize;
#[cfg(not(feature = "text"))]
#[path = "no_tokenizer.rs"]
mod tokenize;
mod trim;

pub use batch::{Batch, Batches, POSITIONS, ROWS, SAMPLED, batches, real_tokens};
pub use exact::{ExactBatch, ExactSizes, exact_batch};
pub use padding::Padding;
pub(crate) use padding::{filled, length};
pub use read::{completed, read_parts, read_samples, token_inputs};
pub use reader::Take;
pub use rows::{PositionWeights, RowPlace};
pub(crate) use rows::{Rows, Strides, floats};
pub use samples::{DataOptions, DataOrigin, Sample, Samples};
pub use seen::SeenSizes;
pub(crate) use sizes::SampleSizes;
pub use spec::{InputDim, InputSpec, input_specs};
pub(crate) use text::{Text, for_each as each_text, is_text};
