//! What a mask costs, and which mask a budget buys.

mod allocate;
mod cost;
pub mod knapsack;
mod ranking;

pub use allocate::{Allocation, Budget, Item, Picked, Prices, Ranking, allocate, pick};
pub use cost::{Cost, Sizes};
pub use ranking::{Ranked, top_scores};
