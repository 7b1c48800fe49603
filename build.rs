//! Generates the protobuf messages and, from the same descriptors, a table of
//! their fields. protox parses the schema in Rust, so no `protoc` is needed
//! and nothing is downloaded.

use std::fmt::Write as _;
use std::path::PathBuf;

use protox::prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx-ml.proto");
    let descriptors = protox::compile(["proto/onnx-ml.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("schema.rs"), schema(descriptors.clone())?)?;
    prost_build::Config::new()
        .bytes(["."])
        // Rare, and inline it would nearly double the size of every attribute.
        .boxed(".onnx.AttributeProto.sparse_tensor")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The table `MESSAGES` that `src/onnx/scan.rs` includes: what each field of
/// each message is on the wire. `ModelProto` comes first.
fn schema(
    descriptors: protox::prost_reflect::prost_types::FileDescriptorSet,
) -> Result<String, Box<dyn std::error::Error>> {
    let pool = DescriptorPool::from_file_descriptor_set(descriptors)?;
    let mut messages: Vec<MessageDescriptor> = pool.all_messages().collect();
    messages.sort_by_key(|m| (m.name() != "ModelProto", m.full_name().to_owned()));
    let position = |name: &str| messages.iter().position(|m| m.full_name() == name);

    let mut text = String::from("static MESSAGES: &[Message] = &[\n");
    for message in &messages {
        let name = message.full_name();
        writeln!(
            text,
            "Message {{ name: {:?}, size: size_of::<proto::{}>(), fields: &[",
            message.name(),
            path(name)
        )?;
        for field in message.fields() {
            let wire = match field.kind() {
                Kind::Message(m) => {
                    let index = position(m.full_name()).ok_or("a message is missing")?;
                    format!("Wire::Message({index})")
                }
                Kind::String => "Wire::String".into(),
                Kind::Bytes => "Wire::Bytes".into(),
                Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => "Wire::Fixed32".into(),
                Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => "Wire::Fixed64".into(),
                _ => "Wire::Varint".into(),
            };
            writeln!(text, "({}, {}, {wire}),", field.number(), field.is_list())?;
        }
        text.push_str("] },\n");
    }
    text.push_str("];\n");
    Ok(text)
}

/// `onnx.TensorProto.Segment` as prost names it: `tensor_proto::Segment`.
fn path(full_name: &str) -> String {
    let mut parts: Vec<&str> = full_name.split('.').skip(1).collect();
    let last = parts.pop().unwrap_or_default();
    let mut path = String::new();
    for part in parts {
        for (i, c) in part.chars().enumerate() {
            if c.is_uppercase() && i > 0 {
                path.push('_');
            }
            path.extend(c.to_lowercase());
        }
        path.push_str("::");
    }
    path + last
}
