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
//! # The line
//!
//! Each stage takes the value of the one before it and gives its own; nothing else is
//! shared. [`Pruner::prune`] runs them all, [`pipeline`] has them one by one.
//!
//! ```text
//! in.onnx ─> Source ─> Calibrated ─> Ranked ─> Plan ─> Pruned ─> out.onnx, report
//!            read      calibrate     rank      search  build     write
//! ```
//!
//! `ARCHITECTURE.md` says what each module promises and what it may import.
//!
//! # What is stable
//!
//! The modules that are listed here, the names at the root, the JSON reports (with their
//! `schema` number) and the exit codes. What is hidden from this page is for tests.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod axes;
pub mod budget;
#[doc(hidden)]
pub mod calibrate;
#[doc(hidden)]
pub mod channels;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod data;
pub mod engine;
mod error;
#[doc(hidden)]
pub mod folder;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod io;
#[doc(hidden)]
pub mod mask;
#[doc(hidden)]
pub mod measure;
pub mod network;
#[doc(hidden)]
pub mod numerics;
pub mod onnx;
pub mod pipeline;
pub mod progress;
mod pruner;
#[doc(hidden)]
pub mod rank;
#[doc(hidden)]
pub mod refit;
pub mod report;
#[doc(hidden)]
pub mod rewrite;
#[doc(hidden)]
pub mod sites;
pub mod tensor;
#[doc(hidden)]
pub mod verify;
#[doc(hidden)]
pub mod vocabulary;
mod words;

pub use budget::{Demand, Goal};
pub use error::{Error, Result, ResultExt, Warning};
pub use pruner::{Pruner, Words};
pub use rank::{Effort, Method};
pub use refit::Reconstruct;
pub use sites::UnitKind;
