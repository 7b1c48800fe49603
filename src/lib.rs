//! Prune a trained transformer in an ONNX file: no labels, no gradients, no
//! training framework.
#![deny(unsafe_code)]

pub mod axes;
pub mod error;
pub mod graph;
pub mod onnx;
pub mod tensor;

pub use error::{Error, Result, ResultExt};
