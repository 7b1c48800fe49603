//! Prune a trained transformer in an ONNX file: no labels, no gradients, no
//! training framework.
//!
//! From a program, [`Pruner`] has the options of the command line:
//!
//! ```
//! # fn main() -> onnx_prune::Result<()> {
//! use onnx_prune::Pruner;
//!
//! # let folder = std::env::temp_dir().join(format!("onnx-prune-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).map_err(|e| onnx_prune::Error::io("cannot create", &folder, e))?;
//! # let (input, output) = ("fixtures/digits-vit/model.onnx", folder.join("small.onnx"));
//! let report = Pruner::new(input)
//!     .data(["fixtures/digits-vit/calibration.npz"])
//! #   .sample_count(48).no_timing().engine(onnx_prune::engine::EngineChoice::Tract)
//!     .flops(0.5)
//!     .prune(&output)?;
//! assert!(report.budget.got <= 0.5);
//! for group in &report.groups {
//!     println!("{} of {} stay of {}", group.kept.len(), group.units, group.name);
//! }
//! # std::fs::remove_dir_all(&folder).map_err(|e| onnx_prune::Error::io("cannot remove", &folder, e))?;
//! # Ok(())
//! # }
//! ```
//!
//! The programs in `examples/` prune with data that is at hand
//! (`prune_with_custom_data`), teach the analysis an operator (`operator_rule`) and
//! rank units by another score (`custom_scoring`).
//!
//! # How it is built
//!
//! ```text
//!  model.onnx ──> onnx ──> graph ──> axes ── groups that shrink together
//!                                              │
//!     inputs ──> calibrate ── sums of x, x xᵀ ─┤
//!                                              ▼
//!                      score ──> damage ──> budget ── a mask
//!                                              │
//!                                              ▼
//!          narrow ──> rewrite ──> rebuild ──> verify ──> small.onnx
//!        (channels)  (sliced)  (new weights) (= masked)    report
//! ```
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
//! narrow      fewer channels inside heads
//! latency     what each level of each group costs in time, measured
//! rewrite     slice constants, mend shapes, drop dead sublayers
//! rebuild     re-fitted weights go into the pruned model
//! verify      sliced == masked, pruned against dense
//! bench       latency of two models, in turns
//! provenance  where a pruned model comes from, in its metadata
//! report      terminal, JSON, HTML
//! ```
//!
//! [`pipeline::prune`] reads like this list.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod axes;
pub mod budget;
pub mod calibrate;
pub mod channels;
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod graph;
pub mod io;
pub mod mask;
pub mod measure;
pub mod network;
pub mod numerics;
pub mod onnx;
pub mod pipeline;
pub mod progress;
mod pruner;
pub mod rank;
pub mod refit;
pub mod report;
pub mod rewrite;
pub mod sites;
pub mod tensor;
pub mod verify;
mod words;

pub use error::{Error, Result, ResultExt, Warning};
pub use pruner::{Pruner, Words};
