//! The weight and the bias of a sink: where they sit in the file, as matrices,
//! and back.

use faer::Mat;

use crate::axes::{Analysis, Sink};
use crate::graph::{Graph, NodeId, ValueId};
use crate::onnx::{self, proto};
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result, ResultExt, rewrite};

/// A constant as one of its readers sees it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The node that reads the constant itself.
    pub node: NodeId,
    /// Its input.
    pub input: usize,
    /// The constant.
    pub value: ValueId,
}

/// The weight of a sink: a matrix of `rows` (the contracted axes) by `columns`.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Where it is read.
    pub place: Place,
    /// Axes of the constant: the contracted ones first, then the others.
    axes: Vec<usize>,
    shape: Vec<usize>,
    /// Number of rows: the size of the pruned axis.
    pub rows: usize,
    /// Number of columns: the width of the sink's output.
    pub columns: usize,
}

/// Finds the weight of a sink behind transpositions and casts; `None` where it
/// is quantised or computed in another way.
pub fn weight(graph: &Graph, sink: &Sink) -> Option<Weight> {
    let mut place = Place {
        node: sink.node,
        input: sink.weight_input,
        value: sink.weight,
    };
    // From the sink's axes to the constant's.
    let mut axes: Option<Vec<usize>> = None;
    let constant = loop {
        if let Some(constant) = &graph.value(place.value).constant {
            break constant;
        }
        let (node, _) = graph.value(place.value).producer?;
        let n = graph.node(node);
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Identity" | "Cast") => {}
            ("", "Transpose") => {
                let perm: Option<Vec<usize>> = n
                    .ints("perm")
                    .map(|p| p.iter().filter_map(|x| usize::try_from(*x).ok()).collect());
                axes = Some(match (axes, perm) {
                    (None, Some(perm)) => perm,
                    (None, None) => vec![1, 0],
                    (Some(axes), Some(perm)) => axes
                        .iter()
                        .map(|a| perm.get(*a).copied())
                        .collect::<Option<_>>()?,
                    (Some(axes), None) => axes
                        .iter()
                        .map(|a| 1usize.checked_sub(*a))
                        .collect::<Option<_>>()?,
                });
            }
            _ => return None,
        }
        place = Place {
            node,
            input: 0,
            value: graph.input(node, 0)?,
        };
    };
    let rank = constant.shape.len();
    let outer = axes.unwrap_or_else(|| (0..rank).collect());
    if outer.len() != rank || !graph.value(place.value).elem.is_some_and(Elem::is_float) {
        return None;
    }
    let mut order = Vec::with_capacity(rank);
    for axis in &sink.weight_axes {
        order.push(*outer.get(*axis)?);
    }
    let rows = order
        .iter()
        .map(|a| constant.shape.get(*a))
        .product::<Option<usize>>()?;
    let rest: Vec<usize> = (0..rank)
        .filter(|a| !sink.weight_axes.contains(a))
        .map(|a| outer[a])
        .collect();
    let columns = rest
        .iter()
        .map(|a| constant.shape.get(*a))
        .product::<Option<usize>>()?;
    order.extend(rest);
    Some(Weight {
        place,
        axes: order,
        shape: constant.shape.clone(),
        rows,
        columns,
    })
}

impl Weight {
    /// The number of axes of the constant.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Strides of the constant along [`Weight::axes`].
    fn strides(&self) -> Vec<(usize, usize)> {
        let stride = |axis: usize| self.shape[axis + 1..].iter().product::<usize>();
        self.axes.iter().map(|a| (self.shape[*a], stride(*a))).collect()
    }

    /// For each element in matrix order, its place in the constant.
    fn places(&self) -> Vec<usize> {
        let mut places = vec![0usize];
        for (size, stride) in self.strides() {
            places = places
                .iter()
                .flat_map(|p| (0..size).map(move |i| p + i * stride))
                .collect();
        }
        places
    }

    /// The matrix, rows by columns.
    ///
    /// # Errors
    /// Data that does not match the shape.
    pub fn read(&self, model: &proto::ModelProto, graph: &Graph) -> Result<Mat<f64>> {
        self.matrix(&constant(model, graph, self.place.value)?)
            .context(|| format!("the weight '{}'", graph.value(self.place.value).name))
    }

    /// The matrix in a constant of this shape.
    ///
    /// # Errors
    /// Data that does not match the shape.
    pub fn matrix(&self, tensor: &Tensor) -> Result<Mat<f64>> {
        let values = tensor.to_f32();
        let places = self.places();
        if values.len() != places.len() {
            return Err(Error::input("its data does not match its shape"));
        }
        Ok(Mat::from_fn(self.rows, self.columns, |r, c| {
            f64::from(values[places[r * self.columns + c]])
        }))
    }

    /// The constant that holds the matrix.
    pub fn tensor(&self, matrix: &Mat<f64>, elem: Elem) -> Tensor {
        let mut values = vec![0.0f64; self.rows * self.columns];
        for (at, place) in self.places().into_iter().enumerate() {
            values[place] = matrix[(at / self.columns, at % self.columns)];
        }
        rounded(self.shape.clone(), &values, elem)
    }
}

/// Floats rounded once to the type of the file.
pub fn rounded(shape: Vec<usize>, values: &[f64], elem: Elem) -> Tensor {
    let data = match elem {
        Elem::F16 => Data::F16(values.iter().map(|v| half::f16::from_f64(*v)).collect()),
        Elem::BF16 => Data::BF16(values.iter().map(|v| half::bf16::from_f64(*v)).collect()),
        Elem::F64 => Data::F64(values.to_vec()),
        _ => Data::F32(values.iter().map(|v| *v as f32).collect()),
    };
    Tensor::new(shape, data)
}

/// The bias that follows a sink: Gemm's own, an addition of a constant vector,
/// the bias of a fused skip normalisation.
pub fn bias(graph: &Graph, analysis: &Analysis, sink: &Sink, columns: usize) -> Option<Place> {
    let vector = |node: NodeId, input: usize| -> Option<Place> {
        let value = graph.input(node, input)?;
        let constant = graph.value(value).constant.as_ref()?;
        let fits = constant.shape.iter().product::<usize>() == columns
            && constant.shape.last() == Some(&columns)
            && graph.value(value).elem.is_some_and(Elem::is_float);
        fits.then_some(Place { node, input, value })
    };
    if let Some(input) = analysis.contractions.get(sink.contraction)?.bias {
        return vector(sink.node, input);
    }
    let mut value = (*graph.node(sink.node).outputs.first()?)?;
    loop {
        let v = graph.value(value);
        let [(node, input)] = v.consumers[..] else {
            return None;
        };
        let n = graph.node(node);
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Add") => {
                return vector(node, 1 - input);
            }
            ("com.microsoft", "SkipLayerNormalization") if input < 2 => return vector(node, 4),
            ("com.microsoft", "SkipSimplifiedLayerNormalization") if input < 2 => return vector(node, 3),
            ("", "Reshape" | "Identity") if input == 0 => value = (*n.outputs.first()?)?,
            _ => return None,
        }
    }
}

/// The tensor of a constant.
///
/// # Errors
/// A constant of a kind that is not read.
pub fn constant(model: &proto::ModelProto, graph: &Graph, value: ValueId) -> Result<Tensor> {
    let proto = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    onnx::tensor(&rewrite::tensor_of(proto, graph, value)?)
}

/// Puts a tensor where nodes read a constant (all `places` read the same one);
/// other readers keep the old one.
///
/// # Errors
/// A model without a graph, values that are infinite or NaN in the constant's type.
pub fn put(model: &mut proto::ModelProto, graph: &Graph, places: &[Place], tensor: &Tensor) -> Result<()> {
    let proto = model
        .graph
        .as_mut()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    // What fits float32 may not fit float16.
    if let Some(place) = places.first()
        && tensor.elem().is_float()
        && tensor.to_f32().iter().any(|v| !v.is_finite())
    {
        return Err(Error::input(format!(
            "the re-fitted values of '{}' overflow {:?}: give --reconstruct none, a larger --damp or more \
             samples",
            graph.value(place.value).name,
            tensor.elem()
        )));
    }
    let mut names: Vec<(ValueId, String)> = Vec::new();
    for place in places {
        let v = graph.value(place.value);
        let index = v.constant.as_ref().and_then(|c| c.initializer);
        let all = v
            .consumers
            .iter()
            .all(|(n, i)| places.iter().any(|p| p.node == *n && p.input == *i));
        if let (Some(index), true) = (index, all && !v.is_output)
            && let Some(slot) = proto.initializer.get_mut(index)
        {
            *slot = onnx::tensor_proto(&v.name, tensor);
            continue;
        }
        let known = names
            .iter()
            .find(|(value, _)| *value == place.value)
            .map(|(_, n)| n.clone());
        let name = known.unwrap_or_else(|| {
            let mut name = format!("{}_fitted", v.name);
            let mut count = 1;
            while proto.initializer.iter().any(|t| t.name() == name) || graph.find(&name).is_some() {
                count += 1;
                name = format!("{}_fitted{count}", v.name);
            }
            proto.initializer.push(onnx::tensor_proto(&name, tensor));
            names.push((place.value, name.clone()));
            name
        });
        let node = proto.node.get_mut(place.node.0 as usize);
        if let Some(slot) = node.and_then(|n| n.input.get_mut(place.input)) {
            *slot = name;
        }
    }
    Ok(())
}
