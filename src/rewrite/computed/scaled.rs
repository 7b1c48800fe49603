//! Integers behind a cast and a multiplication: quantised weights of exporters that write no
//! quantised operators.

use std::collections::HashSet;

use crate::Result;
use crate::onnx;
use crate::onnx::proto::{self, NodeProto};
use crate::rewrite::dequantise::Integers;
use crate::tensor::{Data, Elem, Tensor};

/// `(Cast(integers) - zero) * scale`, as exporters write it that have no quantised operators.
pub(super) struct CastMul {
    cast: NodeProto,
    subtract: Option<NodeProto>,
    multiply: NodeProto,
    integers: Integers,
    /// Shape of the scale, of which one axis at most is not one.
    scale: Vec<usize>,
    /// What the names of new constants and values begin with.
    base: String,
}

impl CastMul {
    /// Of the value of this name.
    pub(super) fn of(name: &str, nodes: &[NodeProto], inputs: &[proto::TensorProto]) -> Result<Option<Self>> {
        let maker = |value: &str| nodes.iter().find(|n| n.output.iter().any(|o| o == value));
        let constant = |value: &str| -> Result<Option<Tensor>> {
            let held = inputs.iter().find(|t| t.name() == value);
            let own = maker(value).filter(|n| n.op_type() == "Constant");
            let inside = own.and_then(|n| n.attribute.iter().find_map(|a| a.t.as_ref()));
            held.or(inside).map(onnx::tensor).transpose()
        };
        let Some(multiply) = maker(name).filter(|n| n.op_type() == "Mul") else {
            return Ok(None);
        };
        let [a, b] = &multiply.input[..] else {
            return Ok(None);
        };
        // Either may be the scale.
        for (values, scale) in [(a, b), (b, a)] {
            let Some(scale) = constant(scale)?.filter(|s| s.elem().is_float()) else {
                continue;
            };
            let mut cast = maker(values);
            let subtract = cast.filter(|n| n.op_type() == "Sub");
            let mut zero = None;
            if let Some(subtract) = subtract {
                let [x, z] = &subtract.input[..] else {
                    return Ok(None);
                };
                let Some(found) = constant(z)? else {
                    return Ok(None);
                };
                zero = Some(found);
                cast = maker(x);
            }
            let Some(cast) = cast.filter(|n| n.op_type() == "Cast") else {
                continue;
            };
            let Some(values) = cast.input.first().map(|v| constant(v)).transpose()?.flatten() else {
                continue;
            };
            let Some(axis) = axis_of(&scale.shape, &values.shape) else {
                continue;
            };
            let flat = |t: &Tensor| Tensor {
                shape: axis.map_or(Vec::new(), |_| vec![t.len()]),
                data: t.data.clone(),
            };
            let zero = match zero {
                Some(zero) if zero.shape == scale.shape => Some(typed(&flat(&zero), values.elem())),
                Some(_) => continue,
                None => None,
            };
            let integers = Integers::new(values, flat(&scale), zero, axis.unwrap_or(0) as i64);
            return Ok(integers.map(|integers| CastMul {
                cast: cast.clone(),
                subtract: subtract.cloned(),
                multiply: multiply.clone(),
                integers,
                scale: scale.shape.clone(),
                base: name.to_owned(),
            }));
        }
        Ok(None)
    }

    /// Other values in this form.
    pub(super) fn again(&self, floats: &Tensor) -> Result<Integers> {
        self.integers.again(floats)
    }

    /// The same with new names that are none of these.
    pub(super) fn apart_from(mut self, taken: &HashSet<&str>) -> Self {
        let ends = ["quantised", "scale", "zero_point", "cast", "centred"];
        let clashes = |base: &str| {
            ends.iter()
                .any(|end| taken.contains(format!("{base}_{end}").as_str()))
        };
        while clashes(&self.base) {
            self.base.push_str("_again");
        }
        self
    }

    fn names(&self) -> [String; 3] {
        ["quantised", "scale", "zero_point"].map(|end| format!("{}_{end}", self.base))
    }

    pub(super) fn constants(&self, integers: &Integers) -> Vec<proto::TensorProto> {
        let [values, scale, zero] = self.names();
        let spread = |t: &Tensor| Tensor {
            shape: self
                .scale
                .iter()
                .map(|n| if *n == 1 { 1 } else { t.len() })
                .collect(),
            data: t.data.clone(),
        };
        let mut out = vec![
            onnx::tensor_proto(&values, &integers.values),
            onnx::tensor_proto(&scale, &spread(&integers.scale)),
        ];
        let elem = integers.scale.elem();
        out.extend((integers.zero.as_ref()).map(|z| onnx::tensor_proto(&zero, &spread(&typed(z, elem)))));
        out
    }

    pub(super) fn nodes(&self, integers: &Integers) -> Vec<NodeProto> {
        let [values, scale, zero] = self.names();
        let output = self.multiply.output.first().cloned().unwrap_or_default();
        let step = |node: &NodeProto, input: Vec<String>, output: String| NodeProto {
            input,
            output: vec![output],
            ..node.clone()
        };
        let mut last = format!("{}_cast", self.base);
        let mut out = vec![step(&self.cast, vec![values], last.clone())];
        if let (Some(subtract), Some(_)) = (&self.subtract, &integers.zero) {
            let centred = format!("{}_centred", self.base);
            out.push(step(subtract, vec![last, zero], centred.clone()));
            last = centred;
        }
        out.push(step(&self.multiply, vec![last, scale], output));
        out
    }
}

/// The axis of `whole` that a scale of this shape belongs to: `Some(None)` for one scale.
fn axis_of(scale: &[usize], whole: &[usize]) -> Option<Option<usize>> {
    let offset = whole.len().checked_sub(scale.len())?;
    let mut own = scale.iter().enumerate().filter(|(_, n)| **n != 1);
    match (own.next(), own.next()) {
        (None, _) => Some(None),
        (Some((at, n)), None) if whole.get(offset + at) == Some(n) => Some(Some(offset + at)),
        _ => None,
    }
}

/// Whole numbers in another type.
fn typed(values: &Tensor, elem: Elem) -> Tensor {
    let floats: Vec<f64> = values.to_f32().into_iter().map(f64::from).collect();
    let shape = values.shape.clone();
    match elem {
        Elem::I8 => Tensor::new(shape, Data::I8(floats.iter().map(|v| *v as i8).collect())),
        Elem::U8 => Tensor::new(shape, Data::U8(floats.iter().map(|v| *v as u8).collect())),
        Elem::I16 => Tensor::new(shape, Data::I16(floats.iter().map(|v| *v as i16).collect())),
        Elem::U16 => Tensor::new(shape, Data::U16(floats.iter().map(|v| *v as u16).collect())),
        Elem::I32 => Tensor::new(shape, Data::I32(floats.iter().map(|v| *v as i32).collect())),
        other => Tensor::rounded(shape, &floats, other),
    }
}
