//! The tensors behind constants.

use super::{Graph, ValueId};
use crate::onnx::{self, proto};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The tensor of a constant: an initializer, or what a `Constant` node holds.
///
/// # Errors
/// A constant of a kind that is not read.
pub fn constant_of(proto: &proto::GraphProto, graph: &Graph, id: ValueId) -> Result<proto::TensorProto> {
    let value = graph.value(id);
    let missing = || Error::input(format!("the constant '{}' cannot be read", value.name));
    if let Some(index) = value.constant.as_ref().and_then(|c| c.initializer) {
        return proto.initializer.get(index).cloned().ok_or_else(missing);
    }
    let (node, _) = value.producer.ok_or_else(missing)?;
    let node = proto.node.get(node.0 as usize).ok_or_else(missing)?;
    let found = node.attribute.iter().find_map(|a| match a.name() {
        "value" => a.t.clone(),
        "value_floats" => Some(onnx::tensor_proto(
            "",
            &Tensor::f32(vec![a.floats.len()], a.floats.clone()),
        )),
        "value_ints" => Some(onnx::tensor_proto(
            "",
            &Tensor::i64(vec![a.ints.len()], a.ints.clone()),
        )),
        _ => None,
    });
    found.ok_or_else(missing)
}
