//! What may be spent and where: the allocation of a budget over all sites.

pub mod knapsack;
mod ranking;

pub use knapsack::{Choice, allocate};
pub use ranking::{Ranked, top_scores};
