//! Bytes <-> `ModelProto`: load, save, external data.

/// The protobuf messages, generated from `proto/onnx-ml.proto` (onnx 1.23, IR 14).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
