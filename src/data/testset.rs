//! ONNX test data sets: a folder with `input_0.pb`, `input_1.pb`, ..., each a
//! `TensorProto`.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use prost::Message as _;

use crate::error::{Error, Result, ResultExt};
use crate::io::staged;
use crate::onnx::proto;
use crate::tensor::{Data, Elem, Tensor, ops};

/// The most that a protobuf message may have, by its specification.
const MAX_FILE: u64 = i32::MAX as u64;

/// The data sets in `folder`: itself, or its `test_data_set_*` folders in the
/// order of their numbers. Empty when there are none.
pub(crate) fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.join("input_0.pb").is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let listing = std::fs::read_dir(folder).map_err(|e| Error::io("cannot list", folder, e))?;
    let mut sets = Vec::new();
    for entry in listing {
        let path = entry.map_err(|e| Error::io("cannot list", folder, e))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("test_data_set_"))
            .map(|number| number.parse::<u64>().unwrap_or(u64::MAX));
        if let Some(number) = number
            && path.join("input_0.pb").is_file()
        {
            sets.push((number, path));
        }
    }
    sets.sort();
    Ok(sets.into_iter().map(|(_, path)| path).collect())
}

/// The tensors of one data set in order, with the name each carries (or "").
pub(crate) fn read(folder: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    loop {
        let path = folder.join(format!("input_{}.pb", tensors.len()));
        if !path.is_file() {
            return Ok(tensors);
        }
        let bytes = staged::read(&path, MAX_FILE)?;
        let proto = proto::TensorProto::decode(bytes.as_slice()).map_err(|e| {
            Error::input(format!(
                "{} is not a tensor in protobuf form: {e}",
                path.display()
            ))
        })?;
        let tensor = tensor(&proto).context(|| format!("cannot use {}", path.display()))?;
        tensors.push((proto.name().to_owned(), tensor));
    }
}

fn tensor(proto: &proto::TensorProto) -> Result<Tensor> {
    if !proto.external_data.is_empty() {
        return Err(Error::input("external data are not read in test data sets"));
    }
    let elem = Elem::from_onnx(proto.data_type())
        .ok_or_else(|| Error::input(format!("element type {} is not supported", proto.data_type())))?;
    let shape: Vec<usize> = proto
        .dims
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::input(format!("negative size in shape {:?}", proto.dims)))?;
    let n = ops::elements(&shape)?;
    let data = match &proto.raw_data {
        Some(raw) => from_raw(elem, raw),
        None => from_fields(elem, proto)
            .ok_or_else(|| Error::input(format!("a value is out of range for {elem:?}")))?,
    };
    let tensor = Tensor { shape, data };
    if tensor.len() != n
        || proto
            .raw_data
            .as_ref()
            .is_some_and(|raw| raw.len() != n * elem.size())
    {
        return Err(Error::input(format!(
            "shape {:?} has {n} elements, the file holds {}",
            tensor.shape,
            tensor.len()
        )));
    }
    Ok(tensor)
}

fn from_raw(elem: Elem, raw: &[u8]) -> Data {
    macro_rules! numbers {
        ($variant:ident, $type:ty) => {
            Data::$variant(
                raw.chunks_exact(size_of::<$type>())
                    .filter_map(|b| b.try_into().ok())
                    .map(<$type>::from_le_bytes)
                    .collect(),
            )
        };
    }
    match elem {
        Elem::F32 => numbers!(F32, f32),
        Elem::F64 => numbers!(F64, f64),
        Elem::F16 => numbers!(F16, f16),
        Elem::BF16 => numbers!(BF16, bf16),
        Elem::I8 => numbers!(I8, i8),
        Elem::I16 => numbers!(I16, i16),
        Elem::I32 => numbers!(I32, i32),
        Elem::I64 => numbers!(I64, i64),
        Elem::U8 => numbers!(U8, u8),
        Elem::U16 => numbers!(U16, u16),
        Elem::U32 => numbers!(U32, u32),
        Elem::U64 => numbers!(U64, u64),
        Elem::Bool => Data::Bool(raw.iter().map(|b| *b != 0).collect()),
    }
}

/// Values from the typed fields; narrow types travel in wider ones.
fn from_fields(elem: Elem, proto: &proto::TensorProto) -> Option<Data> {
    fn narrow<T, U: TryFrom<T>>(values: &[T]) -> Option<Vec<U>>
    where
        T: Copy,
    {
        values.iter().map(|&v| U::try_from(v).ok()).collect()
    }
    let words = &proto.int32_data;
    Some(match elem {
        Elem::F32 => Data::F32(proto.float_data.clone()),
        Elem::F64 => Data::F64(proto.double_data.clone()),
        Elem::F16 => Data::F16(
            narrow::<i32, u16>(words)?
                .into_iter()
                .map(f16::from_bits)
                .collect(),
        ),
        Elem::BF16 => Data::BF16(
            narrow::<i32, u16>(words)?
                .into_iter()
                .map(bf16::from_bits)
                .collect(),
        ),
        Elem::I8 => Data::I8(narrow(words)?),
        Elem::I16 => Data::I16(narrow(words)?),
        Elem::I32 => Data::I32(words.clone()),
        Elem::I64 => Data::I64(proto.int64_data.clone()),
        Elem::U8 => Data::U8(narrow(words)?),
        Elem::U16 => Data::U16(narrow(words)?),
        Elem::U32 => Data::U32(narrow(&proto.uint64_data)?),
        Elem::U64 => Data::U64(proto.uint64_data.clone()),
        Elem::Bool => Data::Bool(words.iter().map(|v| *v != 0).collect()),
    })
}
