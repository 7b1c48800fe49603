//! Files that appear whole or not at all, archives of arrays, and panics of libraries.

pub mod new_folder;
pub mod npz;
pub mod scratch;
pub mod staged;
#[cfg(any(feature = "ort", feature = "text", feature = "tract"))]
pub(crate) mod unwind;
