//! x
pub mod axes;
pub mod calibrate;
pub mod error;
pub mod graph;
pub mod mask;
pub mod onnx;
pub mod progress;
pub mod rewrite;
pub mod runtime;
pub mod tensor;
pub use error::{Error, Result, ResultExt};
