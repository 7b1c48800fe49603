//! Linear algebra, statistics and searches: no graphs, no models.
//!
//! ```text
//! linalg          the dense operations that the rest shares
//! statistics      sums over the rows that a site sees
//! products        the matrix products behind them
//! score           statistics + weights -> order of elimination, error curve
//! solve           kept units + statistics -> new weights of one site
//! knapsack        one level per site within one budget
//! knapsack_multi  the same within several budgets
//! bisect          the smallest budget within a bound
//! disjoint        sets of indices
//! ```

pub mod bisect;
pub(crate) mod disjoint;
pub mod knapsack;
pub mod knapsack_multi;
pub mod linalg;
mod products;
pub mod score;
pub mod solve;
mod statistics;

pub(crate) use statistics::BLOCK;
pub use statistics::{SiteStatistics, Statistics, Sums};
