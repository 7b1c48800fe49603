//! Cost model and allocation: rankings and a goal in, a mask out.
//!
//! ```text
//! goal            what the user asks: --flops 0.6, --size 25MB, --speedup 2x
//! cost            what a mask costs, from the axes
//! sizes           the run-time sizes that costs are computed for
//! parts           what the vocabulary, the positions, the blocks take
//! prices          what each level of each item costs; the limit of a demand
//! item            what one decision is about
//! align           to what multiples numbers of neurons are kept
//! tied            items that keep the same number of units
//! scores          units by their scores
//! allocate        from rankings and limits to numbers of units
//! allocation      a mask and what it costs
//! shared          groups of several networks that hold the same weights
//! constant_units  units that are the same on all inputs
//! ```

mod align;
mod allocate;
mod allocation;
pub mod constant_units;
mod cost;
mod goal;
mod item;
mod parts;
mod prices;
mod scores;
pub mod shared;
mod sizes;
mod tied;

pub use align::{Align, Multiples};
pub use allocate::{Got, Picked, allocate, levels};
pub use allocation::{Allocation, Budget, cheapest_step, of_mask};
pub use cost::Cost;
pub use goal::{Demand, Goal, Measure};
pub use item::{Item, damage, flags};
pub use parts::{ModelParts, PartCost};
pub use prices::{Limit, Prices};
pub use sizes::Sizes;
pub use tied::{Tied, check_even};
