//! The few operations on tensors that preparing inputs takes: conversion
//! without loss, slices and concatenation along an axis, constants.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::tensor::{Data, Elem, Tensor};

/// Most elements that one input tensor may have: above it a declared size is
/// taken for a mistake before memory is asked for.
pub(crate) const MAX_ELEMENTS: usize = 1 << 30;

/// Runs `$body` on the vector inside, with the variant's constructor as `$make`.
macro_rules! same_type {
    ($data:expr, $v:ident, $make:ident => $body:expr) => {
        match $data {
            Data::F32($v) => {
                let $make = Data::F32;
                $body
            }
            Data::F64($v) => {
                let $make = Data::F64;
                $body
            }
            Data::F16($v) => {
                let $make = Data::F16;
                $body
            }
            Data::BF16($v) => {
                let $make = Data::BF16;
                $body
            }
            Data::I8($v) => {
                let $make = Data::I8;
                $body
            }
            Data::I16($v) => {
                let $make = Data::I16;
                $body
            }
            Data::I32($v) => {
                let $make = Data::I32;
                $body
            }
            Data::I64($v) => {
                let $make = Data::I64;
                $body
            }
            Data::U8($v) => {
                let $make = Data::U8;
                $body
            }
            Data::U16($v) => {
                let $make = Data::U16;
                $body
            }
            Data::U32($v) => {
                let $make = Data::U32;
                $body
            }
            Data::U64($v) => {
                let $make = Data::U64;
                $body
            }
            Data::Bool($v) => {
                let $make = Data::Bool;
                $body
            }
        }
    };
}

/// The product of `shape`, or an error above [`MAX_ELEMENTS`]. Axes without entries
/// count as one there: the sizes of the others are multiplied elsewhere.
pub(crate) fn elements(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .filter(|&&d| d != 0)
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_ELEMENTS)
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| Error::input(format!("shape {shape:?} has more than {MAX_ELEMENTS} elements")))
}

/// Integers as a tensor of type `elem`; `None` when one does not fit.
pub(crate) fn from_integers(elem: Elem, shape: Vec<usize>, values: &[i64]) -> Option<Tensor> {
    fn narrow<T: TryFrom<i64>>(values: &[i64]) -> Option<Vec<T>> {
        values.iter().map(|&v| T::try_from(v).ok()).collect()
    }
    // Integers of this size are exact in the type.
    fn within(values: &[i64], limit: i64) -> Option<()> {
        values.iter().all(|v| (-limit..=limit).contains(v)).then_some(())
    }
    let data = match elem {
        Elem::I64 => Data::I64(values.to_vec()),
        Elem::I32 => Data::I32(narrow(values)?),
        Elem::I16 => Data::I16(narrow(values)?),
        Elem::I8 => Data::I8(narrow(values)?),
        Elem::U64 => Data::U64(narrow(values)?),
        Elem::U32 => Data::U32(narrow(values)?),
        Elem::U16 => Data::U16(narrow(values)?),
        Elem::U8 => Data::U8(narrow(values)?),
        Elem::Bool => {
            let bits = values.iter().map(|&v| match v {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            });
            Data::Bool(bits.collect::<Option<_>>()?)
        }
        Elem::F64 => {
            within(values, 1 << 53)?;
            Data::F64(values.iter().map(|&v| v as f64).collect())
        }
        Elem::F32 => {
            within(values, 1 << 24)?;
            Data::F32(values.iter().map(|&v| v as f32).collect())
        }
        Elem::F16 => {
            within(values, 1 << 11)?;
            Data::F16(values.iter().map(|&v| f16::from_f32(v as f32)).collect())
        }
        Elem::BF16 => {
            within(values, 1 << 8)?;
            Data::BF16(values.iter().map(|&v| bf16::from_f32(v as f32)).collect())
        }
    };
    Some(Tensor { shape, data })
}

/// Floats as a tensor of type `elem`, which must be a float; `None` when one
/// overflows or `elem` is another type.
pub(crate) fn from_floats(elem: Elem, shape: Vec<usize>, values: &[f64]) -> Option<Tensor> {
    fn rounded<T: Copy>(
        values: &[f64],
        round: impl Fn(f64) -> T,
        finite: impl Fn(T) -> bool,
    ) -> Option<Vec<T>> {
        values
            .iter()
            .map(|&v| {
                let r = round(v);
                (finite(r) || !v.is_finite()).then_some(r)
            })
            .collect()
    }
    let data = match elem {
        Elem::F64 => Data::F64(values.to_vec()),
        Elem::F32 => Data::F32(rounded(values, |v| v as f32, f32::is_finite)?),
        Elem::F16 => Data::F16(rounded(values, f16::from_f64, f16::is_finite)?),
        Elem::BF16 => Data::BF16(rounded(values, bf16::from_f64, bf16::is_finite)?),
        _ => return None,
    };
    Some(Tensor { shape, data })
}

/// `tensor` as `to`, when that loses nothing that matters: integers and
/// booleans in range, floats rounded but not overflowing, integers into floats
/// that hold them exactly. Floats never become integers.
pub(crate) fn cast(tensor: Tensor, to: Elem) -> Result<Tensor> {
    let from = tensor.elem();
    if from == to {
        return Ok(tensor);
    }
    let converted = match tensor.to_i64() {
        Some(_) if from == Elem::U64 && over_i64(&tensor) => None,
        Some(values) => from_integers(to, tensor.shape, &values),
        None if to.is_float() => from_floats(to, tensor.shape.clone(), &to_f64(&tensor)),
        None => None,
    };
    converted.ok_or_else(|| {
        let why = if from.is_float() && !to.is_float() {
            "floats are not turned into integers"
        } else {
            "a value is out of range"
        };
        Error::input(format!(
            "the graph wants {to:?}, the data are {from:?} and cannot be converted safely: {why}"
        ))
    })
}

fn over_i64(tensor: &Tensor) -> bool {
    match &tensor.data {
        Data::U64(v) => v.iter().any(|&x| i64::try_from(x).is_err()),
        _ => false,
    }
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    match &tensor.data {
        Data::F64(v) => v.clone(),
        _ => tensor.to_f32().into_iter().map(f64::from).collect(),
    }
}

/// A tensor with `value` everywhere.
pub(crate) fn filled(elem: Elem, shape: Vec<usize>, value: i64) -> Result<Tensor> {
    let n = elements(&shape)?;
    from_integers(elem, shape, &vec![value; n])
        .ok_or_else(|| Error::input(format!("{value} does not fit {elem:?}")))
}

/// Sizes of what lies before, on, and after `axis`.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    let before = shape.iter().take(axis).product();
    let on = shape.get(axis).copied().unwrap_or(1);
    let after = shape.iter().skip(axis + 1).product();
    (before, on, after)
}

/// `tensor[.., range, ..]` along `axis`; what lies outside is left out.
pub(crate) fn slice(tensor: &Tensor, axis: usize, range: std::ops::Range<usize>) -> Tensor {
    let (_, on, after) = around(&tensor.shape, axis);
    let end = range.end.min(on);
    let start = range.start.min(end);
    let mut shape = tensor.shape.clone();
    if let Some(size) = shape.get_mut(axis) {
        *size = end - start;
    }
    let block = on * after;
    let data = same_type!(&tensor.data, v, make => {
        if block == 0 {
            make(Vec::new())
        } else {
            make(
                v.chunks_exact(block)
                    .flat_map(|chunk| chunk.iter().skip(start * after).take((end - start) * after))
                    .copied()
                    .collect(),
            )
        }
    });
    Tensor { shape, data }
}

/// Tensors of one type joined along `axis`; they must agree on the other axes.
pub(crate) fn concat(tensors: &[&Tensor], axis: usize) -> Result<Tensor> {
    let first = tensors
        .first()
        .ok_or_else(|| Error::input("no tensors to join"))?;
    let mismatch = || {
        Error::input(format!(
            "tensors of different types or shapes cannot be joined along axis {axis}"
        ))
    };
    if axis >= first.shape.len() {
        return Err(mismatch());
    }
    let mut total = 0usize;
    for tensor in tensors {
        let same_axes = tensor.shape.len() == first.shape.len()
            && (tensor.shape.iter().zip(&first.shape).enumerate()).all(|(i, (a, b))| i == axis || a == b);
        if !same_axes || tensor.elem() != first.elem() {
            return Err(mismatch());
        }
        total += tensor.shape.get(axis).copied().unwrap_or(0);
    }
    let mut shape = first.shape.clone();
    if let Some(size) = shape.get_mut(axis) {
        *size = total;
    }
    let n = elements(&shape)?;
    let (before, _, after) = around(&first.shape, axis);

    macro_rules! join {
        ($($variant:ident),*) => {
            match first.data {
                $(Data::$variant(_) => {
                    let mut joined = Vec::with_capacity(n);
                    for outer in 0..before {
                        for tensor in tensors {
                            if let Data::$variant(v) = &tensor.data {
                                let block = tensor.shape.get(axis).copied().unwrap_or(0) * after;
                                joined.extend(v.iter().skip(outer * block).take(block).copied());
                            }
                        }
                    }
                    Data::$variant(joined)
                })*
            }
        };
    }
    let data = join!(F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool);
    Ok(Tensor { shape, data })
}

/// The tensor with its axes in reverse order (Fortran to C).
pub(crate) fn reversed_axes(tensor: &Tensor) -> Tensor {
    let shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
    // Walks the result in order; `strides` are those of the source.
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1usize;
    for &size in tensor.shape.iter().rev() {
        strides.push(stride);
        stride = stride.saturating_mul(size);
    }
    let n = tensor.len();
    let mut order = Vec::with_capacity(n);
    let mut index = vec![0usize; shape.len()];
    let mut position = 0usize;
    for _ in 0..n {
        order.push(position);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            position += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    let data = same_type!(&tensor.data, v, make => {
        make(order.iter().filter_map(|&i| v.get(i)).copied().collect())
    });
    Tensor { shape, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_joins_are_inverse() {
        let t = Tensor::i64(vec![2, 3, 2], (0..12).collect());
        let left = slice(&t, 1, 0..1);
        let right = slice(&t, 1, 1..3);
        assert_eq!(left.shape, [2, 1, 2]);
        assert_eq!(left.data, Data::I64(vec![0, 1, 6, 7]));
        assert_eq!(concat(&[&left, &right], 1).unwrap(), t);
    }

    #[test]
    fn casts_refuse_loss() {
        let big = Tensor::i64(vec![1], vec![1 << 40]);
        assert!(cast(big.clone(), Elem::I32).is_err());
        assert!(cast(big, Elem::F32).is_err());
        let half = Tensor::f32(vec![1], vec![0.5]);
        assert!(cast(half.clone(), Elem::I64).is_err());
        assert!(cast(half, Elem::F16).is_ok());
        let large = Tensor::f32(vec![1], vec![1e6]);
        assert!(cast(large, Elem::F16).is_err());
        let wrapped = Tensor::new(vec![1], Data::U64(vec![u64::MAX]));
        assert!(cast(wrapped, Elem::I64).is_err());
        let infinite = Tensor::f32(vec![1], vec![f32::NEG_INFINITY]);
        assert!(cast(infinite, Elem::F16).is_ok());
    }

    #[test]
    fn fortran_order() {
        // A 2 x 3 array stored column by column is a 3 x 2 one stored row by row.
        let stored = Tensor::i64(vec![3, 2], vec![0, 3, 1, 4, 2, 5]);
        assert_eq!(reversed_axes(&stored), Tensor::i64(vec![2, 3], (0..6).collect()));
    }
}
