//! Slicing tensors.

use bytes::Bytes;

use crate::onnx::{self, proto};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// Takes `indices` along some axes of a tensor.
///
/// # Errors
/// An element type without whole bytes, data that does not match the shape.
pub(super) fn tensor(
    source: &proto::TensorProto,
    axes: &[(usize, Vec<usize>)],
) -> Result<proto::TensorProto> {
    let whole;
    let source = if source.raw_data.is_some() {
        source
    } else {
        whole = onnx::tensor_proto(source.name(), &onnx::tensor(source)?);
        &whole
    };
    let name = source.name();
    let elem = Elem::from_onnx(source.data_type()).ok_or_else(|| {
        Error::input(format!(
            "the tensor '{name}' has an element type that cannot be sliced"
        ))
    })?;
    let mut shape = Vec::with_capacity(source.dims.len());
    for dim in &source.dims {
        shape.push(
            usize::try_from(*dim)
                .map_err(|_| Error::input(format!("the tensor '{name}' has a negative size")))?,
        );
    }
    let mut data: Bytes = source.raw_data.clone().unwrap_or_default();
    let mut expected = shape.iter().try_fold(elem.size(), |n, d| n.checked_mul(*d));
    for (axis, indices) in axes {
        if expected != Some(data.len()) || *axis >= shape.len() {
            return Err(Error::input(format!(
                "the tensor '{name}' does not hold what its shape {shape:?} says"
            )));
        }
        let inner = shape[axis + 1..].iter().product::<usize>() * elem.size();
        let outer = shape[..*axis].iter().product::<usize>();
        let row = shape[*axis] * inner;
        let mut out = Vec::with_capacity(outer * indices.len() * inner);
        for o in 0..outer {
            for run in runs(indices) {
                let from = o * row + run.0 * inner;
                let bytes = data.get(from..from + run.1 * inner);
                out.extend_from_slice(
                    bytes.ok_or_else(|| Error::input(format!("an index leaves the tensor '{name}'")))?,
                );
            }
        }
        shape[*axis] = indices.len();
        expected = Some(out.len());
        data = out.into();
    }
    let mut out = source.clone();
    out.dims = shape.iter().map(|d| *d as i64).collect();
    out.raw_data = Some(data);
    Ok(out)
}

/// The same for the values of a run.
///
/// # Errors
/// As [`tensor`].
pub fn narrowed(name: &str, source: &Tensor, axes: &[(usize, Vec<usize>)]) -> Result<Tensor> {
    onnx::tensor(&tensor(&onnx::tensor_proto(name, source), axes)?)
}

/// Neighbouring indices as (start, length).
fn runs(indices: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &i in indices {
        match runs.last_mut() {
            Some((start, length)) if *start + *length == i => *length += 1,
            _ => runs.push((i, 1)),
        }
    }
    runs
}
