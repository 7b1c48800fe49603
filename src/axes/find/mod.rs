//! From free factors to groups of units that can be pruned: what they are made of, what
//! they are, what they are called.

pub mod groups;
pub mod kind;
pub mod names;
mod places;
pub mod tables;
