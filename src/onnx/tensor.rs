//! `TensorProto` <-> [`Tensor`].

use half::{bf16, f16};

use super::label::quoted;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{TensorProto, ValueInfoProto, type_proto};
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Data, Elem, Tensor};

/// More axes than this are a mistake or an attack.
pub(super) const MAX_RANK: usize = 64;
/// More elements than any file can hold; their bytes still fit 63 bits.
const MAX_ELEMENTS: u64 = 1 << 59;

/// Decodes a tensor, from `raw_data` or from the field of its type.
///
/// The number of bytes or values must be what `dims` and `data_type` say; both
/// are checked before anything is allocated. Strings, complex and sub-byte types
/// are errors, and so is external data, which [`super::load`] maps.
pub fn tensor(t: &TensorProto) -> Result<Tensor> {
    decode(t).context(|| format!("tensor {}", quoted(t.name())))
}

fn decode(t: &TensorProto) -> Result<Tensor> {
    check(t)?;
    let elem = Elem::from_onnx(t.data_type()).ok_or_else(|| {
        Error::input(format!(
            "values of type {} cannot be read",
            type_name(t.data_type())
        ))
    })?;
    let shape = shape(t)?;
    let data = match &t.raw_data {
        Some(raw) if !raw.is_empty() => from_raw(elem, raw),
        _ => from_fields(elem, t)?,
    };
    Ok(Tensor { shape, data })
}

/// Encodes a tensor into `raw_data`, little endian.
pub fn tensor_proto(name: &str, t: &Tensor) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: t
            .shape
            .iter()
            .map(|&n| i64::try_from(n).unwrap_or(i64::MAX))
            .collect(),
        data_type: Some(t.elem().to_onnx()),
        raw_data: Some(to_raw(&t.data).into()),
        ..TensorProto::default()
    }
}

/// Whether any of the data fields holds something.
pub(super) fn has_data(t: &TensorProto) -> bool {
    t.raw_data.as_ref().is_some_and(|raw| !raw.is_empty()) || has_values(t)
}

/// Whether any of the typed data fields holds something.
fn has_values(t: &TensorProto) -> bool {
    !(t.float_data.is_empty()
        && t.int32_data.is_empty()
        && t.string_data.is_empty()
        && t.int64_data.is_empty()
        && t.double_data.is_empty()
        && t.uint64_data.is_empty())
}

/// Number of elements, overflow-checked.
fn count(t: &TensorProto) -> Result<u64> {
    if t.dims.len() > MAX_RANK {
        return Err(Error::input(format!(
            "it has {} axes, more than {MAX_RANK}",
            t.dims.len()
        )));
    }
    if let Some(dim) = t.dims.iter().find(|dim| **dim < 0) {
        return Err(Error::input(format!(
            "its shape {:?} has the negative size {dim}",
            t.dims
        )));
    }
    if t.dims.contains(&0) {
        return Ok(0);
    }
    product(t)
}

/// [`check`] of a tensor of a model: an empty one may not have other sizes that are
/// too large to be multiplied, which is done in many places.
pub(super) fn sound(t: &TensorProto) -> Result<()> {
    product(t)?;
    check(t)
}

/// The product of the sizes that are not 0.
fn product(t: &TensorProto) -> Result<u64> {
    let sizes = t.dims.iter().filter(|dim| **dim != 0);
    sizes
        .map(|dim| dim.unsigned_abs())
        .try_fold(1u64, u64::checked_mul)
        .filter(|product| *product <= MAX_ELEMENTS)
        .ok_or_else(|| Error::input(format!("its shape {:?} has too many elements", t.dims)))
}

/// Bytes that the values occupy in `raw_data` or in an external file.
pub(super) fn byte_size(t: &TensorProto) -> Result<u64> {
    let bits = bits(t.data_type()).ok_or_else(|| {
        Error::input(format!(
            "values of type {} have no raw form",
            type_name(t.data_type())
        ))
    })?;
    count(t)?
        .checked_mul(bits)
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| Error::input(format!("its shape {:?} has too many elements", t.dims)))
}

/// Checks that the values are where they should be, as many as the shape says.
/// The tensor's name is not in the error.
pub(super) fn check(t: &TensorProto) -> Result<()> {
    if t.segment.is_some() {
        return Err(Error::input(
            "it is a segment of a tensor, which no ONNX runtime reads",
        ));
    }
    if t.data_location() == DataLocation::External {
        return Err(Error::input(
            "its data lies in an external file that is not loaded",
        ));
    }
    let raw = t.raw_data.as_ref().map_or(0, |raw| raw.len() as u64);
    if raw > 0 {
        if has_values(t) {
            return Err(Error::input("it has both raw_data and typed values"));
        }
        let size = byte_size(t)?;
        if raw != size {
            return Err(Error::input(format!(
                "its shape {:?} and type {} need {size} bytes, raw_data has {raw}",
                t.dims,
                type_name(t.data_type()),
            )));
        }
        return Ok(());
    }
    let (field, have, need) = typed(t, count(t)?)?;
    let all = t.float_data.len()
        + t.int32_data.len()
        + t.string_data.len()
        + t.int64_data.len()
        + t.double_data.len()
        + t.uint64_data.len();
    if have != all {
        return Err(Error::input(format!(
            "its type {} keeps values in {field}, but another field has some",
            type_name(t.data_type()),
        )));
    }
    if Some(have as u64) != need {
        return Err(Error::input(format!(
            "its shape {:?} and type {} need {} values in {field}, there are {have}",
            t.dims,
            type_name(t.data_type()),
            need.map_or_else(|| "too many".to_owned(), |n| n.to_string()),
        )));
    }
    Ok(())
}

/// The typed field of a data type: its name, how many values it has, and how
/// many `count` elements need (`None` on overflow).
fn typed(t: &TensorProto, count: u64) -> Result<(&'static str, usize, Option<u64>)> {
    use DataType as D;
    let code = DataType::try_from(t.data_type()).unwrap_or(D::Undefined);
    Ok(match code {
        D::Float => ("float_data", t.float_data.len(), Some(count)),
        D::Complex64 => ("float_data", t.float_data.len(), count.checked_mul(2)),
        D::Double => ("double_data", t.double_data.len(), Some(count)),
        D::Complex128 => ("double_data", t.double_data.len(), count.checked_mul(2)),
        D::Int64 => ("int64_data", t.int64_data.len(), Some(count)),
        D::Uint32 | D::Uint64 => ("uint64_data", t.uint64_data.len(), Some(count)),
        D::String => ("string_data", t.string_data.len(), Some(count)),
        D::Uint4 | D::Int4 | D::Float4e2m1 => ("int32_data", t.int32_data.len(), Some(count.div_ceil(2))),
        D::Uint2 | D::Int2 => ("int32_data", t.int32_data.len(), Some(count.div_ceil(4))),
        D::Undefined => {
            return Err(Error::input(format!("it has the unknown type {}", t.data_type())));
        }
        _ => ("int32_data", t.int32_data.len(), Some(count)),
    })
}

/// Bits per element in `raw_data`; `None` for strings and unknown types.
fn bits(data_type: i32) -> Option<u64> {
    use DataType as D;
    Some(match DataType::try_from(data_type).ok()? {
        D::Undefined | D::String => return None,
        D::Uint2 | D::Int2 => 2,
        D::Uint4 | D::Int4 | D::Float4e2m1 => 4,
        D::Float6e2m3 | D::Float6e3m2 => 6,
        D::Bool | D::Int8 | D::Uint8 => 8,
        D::Float8e4m3fn | D::Float8e4m3fnuz | D::Float8e5m2 | D::Float8e5m2fnuz | D::Float8e8m0 => 8,
        D::Int16 | D::Uint16 | D::Float16 | D::Bfloat16 => 16,
        D::Int32 | D::Uint32 | D::Float => 32,
        D::Int64 | D::Uint64 | D::Double | D::Complex64 => 64,
        D::Complex128 => 128,
    })
}

pub(super) fn type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => known.as_str_name().to_lowercase(),
        Err(_) => format!("#{data_type}"),
    }
}

fn shape(t: &TensorProto) -> Result<Vec<usize>> {
    let size = |dim: &i64| {
        usize::try_from(*dim).map_err(|_| Error::input(format!("its shape {:?} is invalid", t.dims)))
    };
    t.dims.iter().map(size).collect()
}

/// Little-endian bytes to values; the length is checked before.
fn from_raw(elem: Elem, raw: &[u8]) -> Data {
    macro_rules! numbers {
        ($type:ty) => {
            raw.as_chunks()
                .0
                .iter()
                .map(|bytes| <$type>::from_le_bytes(*bytes))
                .collect()
        };
    }
    match elem {
        Elem::F32 => Data::F32(numbers!(f32)),
        Elem::F64 => Data::F64(numbers!(f64)),
        Elem::F16 => Data::F16(numbers!(f16)),
        Elem::BF16 => Data::BF16(numbers!(bf16)),
        Elem::I8 => Data::I8(numbers!(i8)),
        Elem::I16 => Data::I16(numbers!(i16)),
        Elem::I32 => Data::I32(numbers!(i32)),
        Elem::I64 => Data::I64(numbers!(i64)),
        Elem::U8 => Data::U8(raw.to_vec()),
        Elem::U16 => Data::U16(numbers!(u16)),
        Elem::U32 => Data::U32(numbers!(u32)),
        Elem::U64 => Data::U64(numbers!(u64)),
        Elem::Bool => Data::Bool(raw.iter().map(|&byte| byte != 0).collect()),
    }
}

fn to_raw(data: &Data) -> Vec<u8> {
    macro_rules! bytes {
        ($values:expr) => {
            $values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
    }
    match data {
        Data::F32(v) => bytes!(v),
        Data::F64(v) => bytes!(v),
        Data::F16(v) => bytes!(v),
        Data::BF16(v) => bytes!(v),
        Data::I8(v) => bytes!(v),
        Data::I16(v) => bytes!(v),
        Data::I32(v) => bytes!(v),
        Data::I64(v) => bytes!(v),
        Data::U8(v) => v.clone(),
        Data::U16(v) => bytes!(v),
        Data::U32(v) => bytes!(v),
        Data::U64(v) => bytes!(v),
        Data::Bool(v) => v.iter().map(|&value| u8::from(value)).collect(),
    }
}

/// The typed fields to values; the number of values is checked before.
fn from_fields(elem: Elem, t: &TensorProto) -> Result<Data> {
    Ok(match elem {
        Elem::F32 => Data::F32(t.float_data.clone()),
        Elem::F64 => Data::F64(t.double_data.clone()),
        Elem::I64 => Data::I64(t.int64_data.clone()),
        Elem::U64 => Data::U64(t.uint64_data.clone()),
        Elem::U32 => Data::U32(narrow(&t.uint64_data)?),
        Elem::I32 => Data::I32(t.int32_data.clone()),
        Elem::I16 => Data::I16(narrow(&t.int32_data)?),
        Elem::I8 => Data::I8(narrow(&t.int32_data)?),
        Elem::U16 => Data::U16(narrow(&t.int32_data)?),
        Elem::U8 => Data::U8(narrow(&t.int32_data)?),
        Elem::Bool => Data::Bool(t.int32_data.iter().map(|&value| value != 0).collect()),
        Elem::F16 => Data::F16(narrow(&t.int32_data)?.into_iter().map(f16::from_bits).collect()),
        Elem::BF16 => Data::BF16(narrow(&t.int32_data)?.into_iter().map(bf16::from_bits).collect()),
    })
}

fn narrow<From: Copy + std::fmt::Display, To: TryFrom<From>>(values: &[From]) -> Result<Vec<To>> {
    let one = |value: &From| {
        To::try_from(*value).map_err(|_| Error::input(format!("the value {value} does not fit its type")))
    };
    values.iter().map(one).collect()
}
/// The code of the element type that a value is declared to have, where it is a tensor.
pub fn element_type(info: &ValueInfoProto) -> Option<i32> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.elem_type,
        _ => None,
    }
}
