//! What the graph wants to be fed.

use std::fmt;

use crate::error::{Error, Result};
use crate::onnx::{self, proto};
use crate::tensor::Elem;

/// One input of the graph that has no initializer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub elem: Elem,
    /// Its axes.
    pub dims: Vec<InputDim>,
}

/// The size of one axis of an input, as the graph declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputDim {
    /// A number.
    Fixed(usize),
    /// A name; axes with one name have one size in a run.
    Symbol(String),
    /// Nothing is said.
    Unknown,
}

impl InputDim {
    /// The number, when there is one.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            InputDim::Fixed(size) => Some(*size),
            _ => None,
        }
    }

    /// The name, when there is one.
    pub fn symbol(&self) -> Option<&str> {
        match self {
            InputDim::Symbol(name) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for InputDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputDim::Fixed(size) => write!(f, "{size}"),
            InputDim::Symbol(name) => f.write_str(name),
            InputDim::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for InputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}[", self.name, self.elem)?;
        for (i, dim) in self.dims.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// The inputs of `model` that have no initializer, in the graph's order.
pub fn input_specs(model: &proto::ModelProto) -> Result<Vec<InputSpec>> {
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let constants = onnx::constant_names(graph);
    graph
        .input
        .iter()
        .filter(|value| !constants.contains(value.name()))
        .map(input_spec)
        .collect()
}

fn input_spec(value: &proto::ValueInfoProto) -> Result<InputSpec> {
    use proto::tensor_shape_proto::dimension;
    use proto::type_proto;

    let name = value.name().to_owned();
    let tensor = match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor,
        _ => {
            return Err(Error::input(format!(
                "graph input '{name}' is not a dense tensor: models with sequence, map, optional \
                 or sparse inputs cannot be calibrated"
            )));
        }
    };
    let elem = Elem::from_onnx(tensor.elem_type()).ok_or_else(|| {
        Error::input(format!(
            "graph input '{name}' has element type {}, which cannot be fed (numbers and booleans \
             of whole bytes can)",
            tensor.elem_type()
        ))
    })?;
    let shape = tensor.shape.as_ref().ok_or_else(|| {
        Error::input(format!(
            "graph input '{name}' declares no shape: not even its number of axes is known; export \
             the model with shapes"
        ))
    })?;
    let dims = shape
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(dimension::Value::DimValue(size)) => match usize::try_from(*size) {
                Ok(size) => InputDim::Fixed(size),
                // Some exporters write -1 for an axis that is free.
                Err(_) => InputDim::Unknown,
            },
            Some(dimension::Value::DimParam(symbol)) if !symbol.is_empty() => {
                InputDim::Symbol(symbol.clone())
            }
            _ => InputDim::Unknown,
        })
        .collect();
    Ok(InputSpec { name, elem, dims })
}
