//! Cost model and allocation: rankings and a goal in, a mask out.
//!
//! ```text
//! goal            what the user asks: --flops 0.6, --size 25MB, --speedup 2x
//! cost            what a mask costs, from the axes
//! prices          what each level of each group costs; a goal's limit
//! align           to what multiples numbers of neurons are kept
//! tied            groups that keep the same number of units
//! scores          one ranking over all layers, cut where the budget ends
//! allocate        from rankings and one fraction to a mask
//! within          from rankings and limits to a mask
//! shared          the same for several files that hold the same weights
//! constant_units  units that are the same on all inputs
//! ```

mod align;
mod allocate;
pub mod constant_units;
mod cost;
mod goal;
mod item;
mod prices;
mod scores;
pub mod shared;
mod tied;
mod within;

pub use align::Align;
pub use allocate::{Allocation, Budget, Picked, Purse, UnitPrices, allocate, of_mask, pick};
pub use cost::{Cost, Sizes};
pub use goal::{Measure, Target};
pub use item::Item;
pub use prices::{Limit, Prices};
pub use scores::{Ranked, top_scores};
pub use tied::{Even, check_even};
pub use within::{Got, Within, levels, within};
