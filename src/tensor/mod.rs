//! Dense tensors as they travel between files, engines and statistics.

pub(crate) mod ops;

use half::{bf16, f16};

/// Element type of a tensor, a subset of ONNX's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub enum Elem {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl Elem {
    /// From `TensorProto.DataType`; `None` for strings, complex and sub-byte types.
    pub fn from_onnx(code: i32) -> Option<Self> {
        Some(match code {
            1 => Elem::F32,
            2 => Elem::U8,
            3 => Elem::I8,
            4 => Elem::U16,
            5 => Elem::I16,
            6 => Elem::I32,
            7 => Elem::I64,
            9 => Elem::Bool,
            10 => Elem::F16,
            11 => Elem::F64,
            12 => Elem::U32,
            13 => Elem::U64,
            16 => Elem::BF16,
            _ => return None,
        })
    }

    /// The code in `TensorProto.DataType`.
    pub fn to_onnx(self) -> i32 {
        match self {
            Elem::F32 => 1,
            Elem::U8 => 2,
            Elem::I8 => 3,
            Elem::U16 => 4,
            Elem::I16 => 5,
            Elem::I32 => 6,
            Elem::I64 => 7,
            Elem::Bool => 9,
            Elem::F16 => 10,
            Elem::F64 => 11,
            Elem::U32 => 12,
            Elem::U64 => 13,
            Elem::BF16 => 16,
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Elem::Bool | Elem::I8 | Elem::U8 => 1,
            Elem::F16 | Elem::BF16 | Elem::I16 | Elem::U16 => 2,
            Elem::F32 | Elem::I32 | Elem::U32 => 4,
            Elem::F64 | Elem::I64 | Elem::U64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F64 | Elem::F16 | Elem::BF16)
    }
}

/// The values of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    Bool(Vec<bool>),
}

/// A dense row-major tensor; `data.len()` is the product of `shape`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Data,
}

/// Named inputs of one run.
pub type Feeds = std::collections::BTreeMap<String, Tensor>;

macro_rules! each {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::F32($v) => $body,
            Data::F64($v) => $body,
            Data::F16($v) => $body,
            Data::BF16($v) => $body,
            Data::I8($v) => $body,
            Data::I16($v) => $body,
            Data::I32($v) => $body,
            Data::I64($v) => $body,
            Data::U8($v) => $body,
            Data::U16($v) => $body,
            Data::U32($v) => $body,
            Data::U64($v) => $body,
            Data::Bool($v) => $body,
        }
    };
}

impl Tensor {
    /// Floats rounded once to a float type (float32 for any other).
    pub fn rounded(shape: Vec<usize>, values: &[f64], elem: Elem) -> Self {
        let data = match elem {
            Elem::F16 => Data::F16(values.iter().map(|v| half::f16::from_f64(*v)).collect()),
            Elem::BF16 => Data::BF16(values.iter().map(|v| half::bf16::from_f64(*v)).collect()),
            Elem::F64 => Data::F64(values.to_vec()),
            _ => Data::F32(values.iter().map(|v| *v as f32).collect()),
        };
        Tensor::new(shape, data)
    }

    /// A float32 tensor. Panics in debug builds when the length is wrong.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self::new(shape.into(), Data::F32(data))
    }

    /// An int64 tensor.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Self {
        Self::new(shape.into(), Data::I64(data))
    }

    /// From parts.
    pub fn new(shape: Vec<usize>, data: Data) -> Self {
        let t = Tensor { shape, data };
        debug_assert_eq!(t.shape.iter().product::<usize>(), t.len());
        t
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(&self.data, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        match &self.data {
            Data::F32(_) => Elem::F32,
            Data::F64(_) => Elem::F64,
            Data::F16(_) => Elem::F16,
            Data::BF16(_) => Elem::BF16,
            Data::I8(_) => Elem::I8,
            Data::I16(_) => Elem::I16,
            Data::I32(_) => Elem::I32,
            Data::I64(_) => Elem::I64,
            Data::U8(_) => Elem::U8,
            Data::U16(_) => Elem::U16,
            Data::U32(_) => Elem::U32,
            Data::U64(_) => Elem::U64,
            Data::Bool(_) => Elem::Bool,
        }
    }

    /// The values as float32 (a copy; integers and booleans are converted).
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::I8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::I16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f32).collect(),
            Data::I64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::U8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::U16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f32).collect(),
            Data::U64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::Bool(v) => v.iter().map(|&x| f32::from(u8::from(x))).collect(),
        }
    }

    /// The float32 values without a copy, when that is the type.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The values as int64 (a copy), when the type is an integer or boolean one.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match &self.data {
            Data::I8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::I16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::I32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::I64(v) => v.clone(),
            Data::U8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::U16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::U32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::U64(v) => v.iter().map(|&x| i64::try_from(x).unwrap_or(i64::MAX)).collect(),
            Data::Bool(v) => v.iter().map(|&x| i64::from(x)).collect(),
            _ => return None,
        })
    }
}
