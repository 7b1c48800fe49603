//! What a mask costs, and which mask a budget buys.

mod allocate;
mod cost;
mod knapsack;

pub use allocate::{Allocation, Budget, Ranking, allocate};
pub use cost::{Cost, Sizes};
pub use knapsack::{Choice, allocate as knapsack, top_scores};
