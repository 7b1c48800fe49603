//! Cost model and allocation: rankings and budgets in, a mask out.
//!
//! ```text
//! target     what the user asks: --flops 0.6, --size 25MB, --speedup 2x
//! cost       what a mask costs, from the axes
//! prices     what each level of each group costs; a target's limit
//! even       groups that keep the same number of units
//! knapsack   one level per group within one budget
//! several    the same within several budgets
//! within     from rankings and limits to a mask
//! ```

mod align;
mod allocate;
mod cost;
mod even;
pub mod knapsack;
mod prices;
mod ranking;
pub mod several;
mod target;
mod within;

pub use align::Align;
pub use allocate::{Allocation, Budget, Item, Picked, Purse, Ranking, UnitPrices, allocate, of_mask, pick};
pub use cost::{Cost, Sizes};
pub use even::{Even, check_even};
pub use prices::{Limit, Prices};
pub use ranking::{Ranked, top_scores};
pub use target::{Measure, Target};
pub use within::{Got, Within, levels, within};
