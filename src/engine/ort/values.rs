//! Tensors on their way to the library and back.

use std::borrow::Cow;

use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use super::failed;
use crate::error::{Error, Result};
use crate::tensor::{Data, Feeds, Tensor};

/// Views of all inputs for the library.
pub(super) fn inputs(feeds: &Feeds) -> Result<Vec<(Cow<'_, str>, SessionInputValue<'_>)>> {
    let views = feeds.iter().map(|(name, tensor)| {
        let value = to_engine(tensor).map_err(|e| failed(&e))?;
        Ok((Cow::Borrowed(name.as_str()), value))
    });
    views.collect()
}

/// A view of `tensor` for the library.
fn to_engine(tensor: &Tensor) -> ::ort::Result<SessionInputValue<'_>> {
    macro_rules! view {
        ($($kind:ident),*) => {
            match &tensor.data {
                $(Data::$kind(v) => {
                    TensorRef::from_array_view((tensor.shape.clone(), v.as_slice()))?.into()
                })*
            }
        };
    }
    Ok(view!(
        F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool
    ))
}

/// A copy of a value of the library.
pub(super) fn from_engine(value: &DynValue) -> Result<Tensor> {
    use TensorElementType as T;
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(Error::engine(format!("{} is not a tensor", value.dtype())));
    };
    macro_rules! copy {
        ($($theirs:ident => $ours:ident),*) => {
            match ty {
                $(T::$theirs => {
                    let (shape, data) = value.try_extract_tensor().map_err(|e| failed(&e))?;
                    (shape, Data::$ours(data.to_vec()))
                })*
                other => {
                    return Err(Error::engine(format!("element type {other} is not supported")));
                }
            }
        };
    }
    let (shape, data) = copy!(
        Float32 => F32, Float64 => F64, Float16 => F16, Bfloat16 => BF16,
        Int8 => I8, Int16 => I16, Int32 => I32, Int64 => I64,
        Uint8 => U8, Uint16 => U16, Uint32 => U32, Uint64 => U64, Bool => Bool
    );
    let shape = shape
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::engine("a result has a negative size"))?;
    Ok(Tensor { shape, data })
}
