//! What a model costs in time, and what a user's own command says of it.
//!
//! ```text
//! paired    the latency of two models, in turns
//! latency   what each level of each group costs in time
//! cache     tables of it in a file
//! command   a number that a command prints for a file
//! ```

mod cache;
pub mod command;
pub mod latency;
pub mod paired;

pub use cache::{Cache, CacheKey};
