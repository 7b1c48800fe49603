//! Bytes <-> `ModelProto`: load, save, external data, local functions.
//!
//! ```text
//! load    file -> map -> scan -> ModelProto, side files mapped into raw_data
//! save    ModelProto -> temp files in the target folder -> fsync -> rename
//! ```
//!
//! A model is never copied as a whole: `raw_data` of every tensor is a slice of
//! the memory map of the file (or side file) that holds it, and is written from
//! there. One thing cannot be caught: when another process *shrinks* a mapped
//! file while it is in use, the operating system ends this process (SIGBUS).
//! Files under 1 MiB are read into memory, so this concerns large files only;
//! a file that is replaced by rename, as [`save`] does it, is not affected.

mod external;
mod hash;
mod inline;
mod label;
mod layout;
mod limits;
mod load;
mod map;
pub mod provenance;
mod rename;
mod save;
mod scan;
mod tensor;
mod validate;
mod visit;
mod write;

pub use hash::sha256;
pub use inline::inline_functions;
pub use label::node_label;
pub use load::{LoadNotes, Model, from_bytes, load};
pub use map::{TensorOrigin, let_go, origin};
pub use save::{External, SaveOptions, Saved, SideName, save, stage, written_size};
pub use tensor::{element_type, tensor, tensor_proto};
pub use validate::validate;
pub(crate) use visit::constant_names;
pub use write::{encode, write_to};

/// The protobuf messages, generated from `proto/onnx-ml.proto` (onnx 1.23, IR 14).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// How deep graphs may nest (the main graph is level 0). The protobuf decoder
/// stops at 100 nested messages, and each graph level takes three of them
/// (graph, node, attribute), so no file can hold more.
const MAX_GRAPH_DEPTH: usize = 33;
