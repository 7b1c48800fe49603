//! Prune a trained transformer in an ONNX file: no labels, no gradients, no
//! training framework.
//!
//! Data flows one way, one stage per module; a stage imports only what stands
//! above it.
//!
//! ```text
//! onnx        bytes <-> ModelProto, external data
//! graph       who produces and who consumes each value
//! axes        which axes of which tensors must shrink together
//! runtime     one trait, two engines: ONNX Runtime, tract
//! calibrate   inputs -> instrumented runs -> statistics per site
//! score       statistics + weights -> order of elimination, error curve
//! solve       kept units + statistics -> re-fitted weights of one site
//! damage      what an error at a site does to the outputs
//! lossless    the same outputs for less work
//! budget      cost model + allocation -> mask
//! latency     what each level of each group costs in time, measured
//! rewrite     slice constants, mend shapes, drop dead sublayers
//! rebuild     re-fitted weights go into the pruned model
//! verify      sliced == masked, pruned against dense
//! bench       latency of two models, in turns
//! report      terminal, JSON
//! ```
//!
//! [`pipeline::prune`] reads like this list.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod axes;
pub mod bench;
pub mod budget;
pub mod calibrate;
pub mod cli;
pub mod damage;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod graph;
pub mod importance;
pub mod latency;
pub mod linalg;
pub mod lossless;
pub mod mask;
pub mod onnx;
pub mod options;
pub mod pipeline;
pub mod probe;
pub mod progress;
pub mod rank;
pub mod rebuild;
pub mod report;
pub mod rewrite;
pub mod runtime;
pub mod score;
pub mod search;
pub mod segment;
pub mod several;
pub mod sites;
pub mod solve;
pub mod tensor;
mod unwind;
pub mod verify;

pub use error::{Error, Result, ResultExt};
