//! What a model reads, and whether a set of inputs is that.

use std::collections::HashSet;
use std::fmt;

use crate::error::{Error, Result};
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::{GraphProto, TensorProto, ValueInfoProto, type_proto};
use crate::tensor::{Elem, Feeds, Tensor};

/// The inputs of a graph, in order.
pub(super) struct Signature {
    inputs: Vec<SignatureInput>,
}

/// One input of a graph.
pub(super) struct SignatureInput {
    /// Its name.
    pub name: String,
    /// The element type.
    pub elem: Elem,
    /// The axes; `None` when not even their number is declared.
    axes: Option<Vec<SignatureAxis>>,
    /// Whether the file holds a value for it that a feed replaces.
    pub has_default: bool,
}

/// One axis of an input.
enum SignatureAxis {
    /// A fixed size.
    Size(usize),
    /// A size that each run is free to choose, with its name if it has one.
    Free(Option<String>),
}

impl Signature {
    /// Reads the inputs of `graph`; fails for one that is no tensor of a
    /// supported type.
    pub(super) fn of(graph: &GraphProto) -> Result<Self> {
        let constants: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        let mut inputs = Vec::with_capacity(graph.input.len());
        for info in &graph.input {
            let has_default = constants.contains(info.name());
            match SignatureInput::of(info, has_default) {
                // Before IR 4 every initializer is listed as an input; one
                // that cannot be fed keeps its value.
                Err(_) if has_default => {}
                input => inputs.push(input?),
            }
        }
        Ok(Signature { inputs })
    }

    /// The inputs, in the order of the graph.
    #[cfg(feature = "tract")]
    pub(super) fn inputs(&self) -> &[SignatureInput] {
        &self.inputs
    }

    /// Whether `feeds` has each input, nothing else, and all of the declared
    /// types and shapes.
    #[cfg(any(feature = "tract", test))]
    pub(super) fn check(&self, feeds: &Feeds) -> Result<()> {
        self.check_with(feeds, &|_| false)
    }

    /// The same where some inputs are `held` already.
    pub(super) fn check_with(&self, feeds: &Feeds, held: &dyn Fn(&str) -> bool) -> Result<()> {
        self.check_some(feeds)?;
        let given = |i: &SignatureInput| feeds.contains_key(&i.name) || i.has_default || held(&i.name);
        match self.inputs.iter().find(|i| !given(i)) {
            None => Ok(()),
            Some(input) => Err(Error::input(format!(
                "input `{}` is missing; the model reads {self}",
                input.name
            ))),
        }
    }

    /// Whether `feeds` has nothing but inputs, of the declared types and shapes.
    pub(super) fn check_some(&self, feeds: &Feeds) -> Result<()> {
        if let Some(unknown) = feeds
            .keys()
            .find(|name| !self.inputs.iter().any(|i| &i.name == *name))
        {
            return Err(Error::input(format!(
                "`{unknown}` is not an input of the model, which reads {self}"
            )));
        }
        let given = self.inputs.iter().filter_map(|i| Some((i, feeds.get(&i.name)?)));
        given
            .into_iter()
            .try_for_each(|(input, tensor)| input.check(tensor))
    }
}

impl SignatureInput {
    fn of(info: &ValueInfoProto, has_default: bool) -> Result<Self> {
        let name = info.name().to_owned();
        let kind = info.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(tensor)) = kind else {
            return Err(Error::input(format!("input `{name}` is not a tensor")));
        };
        let elem = Elem::from_onnx(tensor.elem_type()).ok_or_else(|| {
            Error::input(format!(
                "input `{name}` has element type {}, which cannot be fed",
                tensor.elem_type()
            ))
        })?;
        let axes = tensor.shape.as_ref().map(|shape| {
            let axis = |dim: &crate::onnx::proto::tensor_shape_proto::Dimension| match &dim.value {
                Some(dimension::Value::DimValue(size)) => {
                    usize::try_from(*size).map_or(SignatureAxis::Free(None), SignatureAxis::Size)
                }
                Some(dimension::Value::DimParam(symbol)) => {
                    SignatureAxis::Free((!symbol.is_empty()).then(|| symbol.clone()))
                }
                None => SignatureAxis::Free(None),
            };
            shape.dim.iter().map(axis).collect()
        });
        Ok(SignatureInput {
            name,
            elem,
            axes,
            has_default,
        })
    }

    fn check(&self, tensor: &Tensor) -> Result<()> {
        let size = tensor
            .shape
            .iter()
            .try_fold(1usize, |product, &d| product.checked_mul(d));
        if size != Some(tensor.len()) {
            return Err(Error::input(format!(
                "input `{}`: {} values do not fill the shape {:?}",
                self.name,
                tensor.len(),
                tensor.shape
            )));
        }
        let fits = self.elem == tensor.elem()
            && self.axes.as_ref().is_none_or(|axes| {
                axes.len() == tensor.shape.len()
                    && axes.iter().zip(&tensor.shape).all(|(axis, &given)| match axis {
                        SignatureAxis::Size(size) => *size == given,
                        SignatureAxis::Free(_) => true,
                    })
            });
        if !fits {
            return Err(Error::input(format!(
                "input `{}` must be {}{}, not {}{:?}",
                self.name,
                elem_name(self.elem),
                Shown(self.axes.as_deref()),
                elem_name(tensor.elem()),
                tensor.shape,
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inputs.is_empty() {
            return f.write_str("nothing");
        }
        for (i, input) in self.inputs.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let (elem, axes) = (elem_name(input.elem), Shown(input.axes.as_deref()));
            write!(f, "{comma}`{}` {elem}{axes}", input.name)?;
        }
        Ok(())
    }
}

/// A declared shape, as in `[batch, ?, 3]`.
struct Shown<'a>(Option<&'a [SignatureAxis]>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(axes) = self.0 else {
            return f.write_str(" of any shape");
        };
        f.write_str("[")?;
        for (i, axis) in axes.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match axis {
                SignatureAxis::Size(size) => write!(f, "{size}")?,
                SignatureAxis::Free(Some(symbol)) => f.write_str(symbol)?,
                SignatureAxis::Free(None) => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

/// The name of an element type, as NumPy has it.
pub(super) fn elem_name(elem: Elem) -> &'static str {
    match elem {
        Elem::F32 => "float32",
        Elem::F64 => "float64",
        Elem::F16 => "float16",
        Elem::BF16 => "bfloat16",
        Elem::I8 => "int8",
        Elem::I16 => "int16",
        Elem::I32 => "int32",
        Elem::I64 => "int64",
        Elem::U8 => "uint8",
        Elem::U16 => "uint16",
        Elem::U32 => "uint32",
        Elem::U64 => "uint64",
        Elem::Bool => "bool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::tensor_shape_proto::Dimension;
    use crate::onnx::proto::{TensorShapeProto, TypeProto};
    use crate::tensor::Data;

    fn dim(value: dimension::Value) -> Dimension {
        Dimension {
            value: Some(value),
            ..Dimension::default()
        }
    }

    fn graph() -> GraphProto {
        let tensor = type_proto::Tensor {
            elem_type: Some(Elem::I64.to_onnx()),
            shape: Some(TensorShapeProto {
                dim: vec![
                    dim(dimension::Value::DimParam("batch".into())),
                    dim(dimension::Value::DimValue(3)),
                ],
            }),
        };
        GraphProto {
            input: vec![ValueInfoProto {
                name: Some("ids".into()),
                r#type: Some(TypeProto {
                    value: Some(type_proto::Value::TensorType(tensor)),
                    ..TypeProto::default()
                }),
                ..ValueInfoProto::default()
            }],
            ..GraphProto::default()
        }
    }

    fn refusal(feeds: &[(&str, Tensor)]) -> String {
        let feeds = feeds
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()))
            .collect();
        let signature = Signature::of(&graph()).unwrap();
        signature.check(&feeds).err().unwrap().to_string()
    }

    #[test]
    fn what_fits_passes() {
        let feeds = Feeds::from([("ids".to_owned(), Tensor::i64([2, 3], vec![0; 6]))]);
        assert!(Signature::of(&graph()).unwrap().check(&feeds).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_would() {
        assert_eq!(
            refusal(&[]),
            "input `ids` is missing; the model reads `ids` int64[batch, 3]"
        );
        assert_eq!(
            refusal(&[("ids", Tensor::f32([1, 3], vec![0.0; 3]))]),
            "input `ids` must be int64[batch, 3], not float32[1, 3]"
        );
        for wrong in [vec![3], vec![1, 1, 3]] {
            assert!(refusal(&[("ids", Tensor::i64(wrong, vec![0; 3]))]).contains("`ids`"));
        }
        assert!(refusal(&[("ids", Tensor::i64([1, 2], vec![0; 2]))]).contains("[batch, 3]"));
        assert!(refusal(&[("mask", Tensor::i64([1], vec![0]))]).starts_with("`mask` is not"));
    }

    #[test]
    fn a_shape_that_its_values_do_not_fill_is_refused() {
        for shape in [vec![2, 3], vec![usize::MAX, 3]] {
            let data = Data::I64(vec![0; 3]);
            assert!(refusal(&[("ids", Tensor { shape, data })]).contains("do not fill"));
        }
    }

    #[test]
    fn an_input_that_is_no_tensor_is_refused() {
        let graph = GraphProto {
            input: vec![ValueInfoProto::default()],
            ..GraphProto::default()
        };
        assert!(Signature::of(&graph).is_err());
    }
}
