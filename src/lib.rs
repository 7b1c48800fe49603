//! x
pub mod axes;
pub mod error;
pub mod graph;
pub mod mask;
pub mod onnx;
pub mod rewrite;
pub mod tensor;
pub use error::{Error, Result, ResultExt};
