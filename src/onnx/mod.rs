//! Bytes <-> `ModelProto`: load, save, external data.

/// The protobuf messages, generated from `proto/onnx-ml.proto` (onnx 1.23, IR 14).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// placeholder
pub fn tensor(t: &proto::TensorProto) -> crate::Result<crate::tensor::Tensor> {
    use crate::tensor::{Data, Tensor};
    let shape: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
    let raw = t.raw_data.clone().unwrap_or_default();
    let d = match t.data_type() {
        7 => Data::I64(if raw.is_empty() { t.int64_data.clone() } else { raw.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect() }),
        6 => Data::I32(if raw.is_empty() { t.int32_data.clone() } else { raw.chunks(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect() }),
        9 => Data::Bool(if raw.is_empty() { t.int32_data.iter().map(|x| *x!=0).collect() } else { raw.iter().map(|x| *x!=0).collect() }),
        1 => Data::F32(if raw.is_empty() { t.float_data.clone() } else { raw.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect() }),
        3 => Data::I8(raw.iter().map(|x| *x as i8).collect()),
        2 => Data::U8(raw.to_vec()),
        _ => return Err(crate::Error::input("type")),
    };
    Ok(Tensor { shape, data: d })
}
