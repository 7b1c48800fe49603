//! Integers with scales and zero points.

use crate::onnx::{self, proto};
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// How far a value may lie from an integer of the old scale to count as one.
const EXACT: f64 = 1e-3;

/// A quantised tensor: `value = (integer - zero) scale`.
#[derive(Debug, Clone)]
pub(in crate::rewrite) struct Integers {
    pub(in crate::rewrite) values: Tensor,
    pub(in crate::rewrite) scale: Tensor,
    pub(in crate::rewrite) zero: Option<Tensor>,
    /// The axis that scales belong to; `None` for one scale.
    axis: Option<usize>,
    /// Whether a scale is not one of the file.
    pub(super) rescaled: bool,
}

/// Names of the constants: integers, scales, zero points.
pub(in crate::rewrite) type QuantisedNames = [String; 3];

impl Integers {
    /// Of a `DequantizeLinear` node that reads constants only.
    pub(super) fn of(
        node: &proto::NodeProto,
        read: &impl Fn(&str) -> Result<Option<Tensor>>,
    ) -> Result<Option<Self>> {
        let int = |name: &str, default: i64| {
            let found = node.attribute.iter().find(|a| a.name() == name);
            found.map_or(default, |a| a.i())
        };
        if int("block_size", 0) != 0 {
            return Ok(None);
        }
        let name = |i: usize| node.input.get(i).map(String::as_str).filter(|n| !n.is_empty());
        let (Some(x), Some(scale)) = (name(0), name(1)) else {
            return Ok(None);
        };
        let (Some(values), Some(scale)) = (read(x)?, read(scale)?) else {
            return Ok(None);
        };
        let zero = match name(2) {
            Some(zero) => match read(zero)? {
                Some(zero) => Some(zero),
                None => return Ok(None),
            },
            None => None,
        };
        Ok(Self::new(values, scale, zero, int("axis", 1)))
    }

    /// `None` where it is of a kind that is not opened.
    pub(in crate::rewrite) fn new(
        values: Tensor,
        scale: Tensor,
        zero: Option<Tensor>,
        axis: i64,
    ) -> Option<Self> {
        let rank = values.shape.len();
        let at = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok();
        let axis = match (scale.len(), at) {
            (1, _) => None,
            (n, Some(at)) if values.shape.get(at) == Some(&n) => Some(at),
            _ => return None,
        };
        let fits = limits(values.elem()).is_some()
            && scale.elem().is_float()
            && zero
                .as_ref()
                .is_none_or(|z| z.len() == scale.len() && z.elem() == values.elem());
        fits.then_some(Integers {
            values,
            scale,
            zero,
            axis,
            rescaled: false,
        })
    }

    /// Which scale each element has.
    fn of_element(&self, shape: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let axis = self.axis;
        let inner: usize = axis.map_or(1, |a| shape[a + 1..].iter().product());
        let size = axis.map_or(1, |a| shape[a]);
        move |i| {
            if axis.is_some() {
                i / inner.max(1) % size.max(1)
            } else {
                0
            }
        }
    }

    fn zeros(&self) -> Result<Vec<i64>> {
        let integers = |t: &Tensor| {
            t.to_i64()
                .ok_or_else(|| Error::input("a zero point is no integer"))
        };
        match &self.zero {
            Some(zero) => integers(zero),
            None => Ok(vec![0; self.scale.len()]),
        }
    }

    /// The values, in the type of the scale.
    pub(in crate::rewrite) fn floats(&self) -> Result<Tensor> {
        let integers = self
            .values
            .to_i64()
            .ok_or_else(|| Error::input("a quantised weight holds no integers"))?;
        let (scale, zeros) = (self.scale.to_f32(), self.zeros()?);
        let of = self.of_element(&self.values.shape);
        let values = integers.iter().enumerate().map(|(i, v)| {
            let at = of(i);
            (v - zeros[at]) as f32 * scale[at]
        });
        let values: Vec<f32> = values.collect();
        Ok(match self.scale.elem() {
            Elem::F16 => Tensor::new(
                self.values.shape.clone(),
                Data::F16(values.iter().map(|v| half::f16::from_f32(*v)).collect()),
            ),
            Elem::BF16 => Tensor::new(
                self.values.shape.clone(),
                Data::BF16(values.iter().map(|v| half::bf16::from_f32(*v)).collect()),
            ),
            _ => Tensor::f32(self.values.shape.clone(), values),
        })
    }

    /// Other values, a slice or a re-fit of these, as integers.
    pub(in crate::rewrite) fn again(&self, floats: &Tensor) -> Result<Self> {
        let (low, high) =
            limits(self.values.elem()).ok_or_else(|| Error::input("a quantised weight holds no integers"))?;
        let values: Vec<f64> = floats.to_f32().into_iter().map(f64::from).collect();
        let of = self.of_element(&floats.shape);
        let count = self.axis.map_or(1, |a| floats.shape[a]);
        let (old, zeros) = (self.scale.to_f32(), self.zeros()?);
        let mut groups: Vec<Vec<f64>> = vec![Vec::new(); count];
        for (i, v) in values.iter().enumerate() {
            groups[of(i)].push(*v);
        }
        // Scales of an axis that was sliced went with it: the old one that fits is
        // looked for among those that are left.
        let mut from = 0;
        let mut rescaled = false;
        let mut parameters = Vec::with_capacity(count);
        for group in &groups {
            let holds = |at: &usize| {
                let (scale, zero) = (f64::from(old[*at]), zeros[*at] as f64);
                group.iter().all(|v| {
                    let q = v / scale + zero;
                    (q - q.round()).abs() < EXACT && (low..=high).contains(&(q.round() as i64))
                })
            };
            let exact = match self.axis {
                None => Some(0).filter(holds),
                Some(_) => (from..old.len()).find(holds),
            };
            parameters.push(match exact {
                Some(at) => {
                    from = if self.axis.is_some() { at + 1 } else { 0 };
                    (f64::from(old[at]), zeros[at])
                }
                None => {
                    rescaled = true;
                    fresh(group, &zeros, low, high)
                }
            });
        }
        let scale: Vec<f32> = parameters.iter().map(|(s, _)| *s as f32).collect();
        let integers = values.iter().enumerate().map(|(i, v)| {
            let at = of(i);
            ((v / f64::from(scale[at])).round() as i64)
                .saturating_add(parameters[at].1)
                .clamp(low, high)
        });
        let integers: Vec<i64> = integers.collect();
        let shape = |t: &Tensor| {
            if self.axis.is_some() {
                vec![count]
            } else {
                t.shape.clone()
            }
        };
        let zero = self.zero.as_ref().map(|z| {
            let zeros = parameters.iter().map(|(_, zero)| *zero);
            typed(shape(z), zeros, z.elem())
        });
        let scale = Tensor::f32(shape(&self.scale), scale);
        let scale = match self.scale.elem() {
            Elem::F32 => scale,
            other => Tensor::rounded(
                scale.shape.clone(),
                &scale.to_f32().iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
                other,
            ),
        };
        Ok(Integers {
            values: typed(floats.shape.clone(), integers.into_iter(), self.values.elem()),
            scale,
            zero,
            axis: self.axis,
            rescaled,
        })
    }

    /// Names of the constants of a node, which keeps those it had.
    pub(in crate::rewrite) fn names(&self, node: &proto::NodeProto) -> QuantisedNames {
        let output = node.output.first().cloned().unwrap_or_default();
        // Constants that several nodes share would be overwritten.
        ["_quantised", "_scale", "_zero_point"].map(|suffix| format!("{output}{suffix}"))
    }

    pub(super) fn constants(&self, names: &QuantisedNames) -> Vec<proto::TensorProto> {
        let [values, scale, zero] = names;
        let mut out = vec![
            onnx::tensor_proto(values, &self.values),
            onnx::tensor_proto(scale, &self.scale),
        ];
        out.extend(self.zero.as_ref().map(|z| onnx::tensor_proto(zero, z)));
        out
    }

    /// The `DequantizeLinear` node with these constants.
    pub(super) fn node(&self, old: &proto::NodeProto, names: &QuantisedNames) -> proto::NodeProto {
        let count = if self.zero.is_some() { 3 } else { 2 };
        proto::NodeProto {
            input: names[..count].to_vec(),
            ..old.clone()
        }
    }
}

/// The least and the greatest integer of a type.
fn limits(elem: Elem) -> Option<(i64, i64)> {
    Some(match elem {
        Elem::I8 => (i8::MIN.into(), i8::MAX.into()),
        Elem::U8 => (u8::MIN.into(), u8::MAX.into()),
        Elem::I16 => (i16::MIN.into(), i16::MAX.into()),
        Elem::U16 => (u16::MIN.into(), u16::MAX.into()),
        Elem::I32 => (i32::MIN.into(), i32::MAX.into()),
        _ => return None,
    })
}

/// A scale and a zero point for some values, of the kind of the old ones.
fn fresh(values: &[f64], zeros: &[i64], low: i64, high: i64) -> (f64, i64) {
    let least = values.iter().fold(0.0f64, |m, v| m.min(*v));
    let most = values.iter().fold(0.0f64, |m, v| m.max(*v));
    // int8 about 0 keeps to -127..127, so that no sum of products saturates.
    let middle = if low < 0 { 0 } else { (high + 1) / 2 };
    if zeros.iter().all(|z| *z == middle) {
        let reach = (high - middle).max(1) as f64;
        let scale = most.max(-least) / reach;
        return (if scale > 0.0 { scale } else { 1.0 }, middle);
    }
    let scale = (most - least) / (high - low) as f64;
    if scale <= 0.0 {
        return (1.0, middle);
    }
    let zero = (low as f64 - least / scale).round() as i64;
    (scale, zero.clamp(low, high))
}

fn typed(shape: Vec<usize>, values: impl Iterator<Item = i64>, elem: Elem) -> Tensor {
    let data = match elem {
        Elem::U8 => Data::U8(values.map(|v| v as u8).collect()),
        Elem::I16 => Data::I16(values.map(|v| v as i16).collect()),
        Elem::U16 => Data::U16(values.map(|v| v as u16).collect()),
        Elem::I32 => Data::I32(values.map(|v| v as i32).collect()),
        _ => Data::I8(values.map(|v| v as i8).collect()),
    };
    Tensor::new(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_column() -> Integers {
        let values = typed(vec![2, 3], [1, -2, 3, 127, 5, -6].into_iter(), Elem::I8);
        let scale = Tensor::f32(vec![3], vec![0.5, 0.25, 2.0]);
        Integers::new(values, scale, None, 1).unwrap()
    }

    #[test]
    fn what_is_only_sliced_keeps_its_values() {
        let all = per_column();
        let floats = all.floats().unwrap();
        assert_eq!(floats.to_f32(), [0.5, -0.5, 6.0, 63.5, 1.25, -12.0]);
        let again = all.again(&floats).unwrap();
        assert_eq!(again.values, all.values);
        assert_eq!(again.scale, all.scale);
        // The second row, the first and the last column.
        let some = all.again(&Tensor::f32(vec![1, 2], vec![63.5, -12.0])).unwrap();
        // -12 is -48 x 0.25 as well as -6 x 2: either scale of the file will do.
        assert_eq!(some.floats().unwrap().to_f32(), [63.5, -12.0]);
        assert!(!some.rescaled && some.scale.to_f32()[0] == 0.5);
    }

    #[test]
    fn what_is_fitted_gets_new_scales_of_the_same_kind() {
        let fitted = Tensor::f32(vec![2, 3], vec![0.37, 0.0, 900.0, -0.11, 0.0, 1.0]);
        let again = per_column().again(&fitted).unwrap();
        assert_eq!(again.scale.shape, [3]);
        let back = again.floats().unwrap().to_f32();
        let close = |i: usize, of: f32| (back[i] - fitted.to_f32()[i]).abs() <= of / 254.0 + 1e-6;
        assert!(close(0, 0.37) && close(3, 0.37) && close(2, 900.0) && close(5, 900.0));
        assert_eq!((back[1], back[4]), (0.0, 0.0));
        // One scale and a zero point that is not in the middle.
        let values = typed(vec![4], [0, 100, 200, 255].into_iter(), Elem::U8);
        let zero = typed(vec![], [10].into_iter(), Elem::U8);
        let one = Integers::new(values, Tensor::f32(vec![], vec![0.1]), Some(zero), 1).unwrap();
        let fitted = Tensor::f32(vec![3], vec![-1.03, 2.0, 3.17]);
        let again = one.again(&fitted).unwrap();
        assert_eq!(again.scale.shape, Vec::<usize>::new());
        let back = again.floats().unwrap().to_f32();
        assert!(
            back.iter()
                .zip(fitted.to_f32())
                .all(|(a, b)| (a - b).abs() < 0.01),
            "{back:?}"
        );
    }
}
