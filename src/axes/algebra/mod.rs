//! Dimensions as products of factors, integers that are computed from them, and how
//! factors that meet become one: no ONNX, no graphs, no numerics.
//!
//! ```text
//! dim       a dimension: factors, symbols, sums of parts
//! int       integers computed from dimensions, as polynomials
//! eval      what they come to once factors have sizes
//! space     the union-find of factors, which can also split
//! align     two products of terms that must be equal
//! elements  the integers of a small tensor, with its shape
//! ```

pub mod align;
pub mod dim;
pub mod elements;
mod eval;
pub mod int;
pub mod space;
