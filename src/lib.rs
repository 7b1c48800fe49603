//! Prune a trained transformer in an ONNX file: no labels, no gradients, no
//! training framework.
#![deny(unsafe_code)]

pub mod calibrate;
pub mod error;
pub mod onnx;
pub mod progress;
pub mod runtime;
pub mod tensor;

pub use error::{Error, Result, ResultExt};
