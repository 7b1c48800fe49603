//! The weight and the bias of a sink: where they sit in the file, as matrices,
//! and back.

use faer::Mat;

use crate::axes::Sink;
use crate::graph::NodeId;
use crate::graph::operators::addition;
use crate::network::{Network, WeightReader};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result, ResultExt};

/// The weight of a sink: a matrix of `rows` (the contracted axes) by `columns`.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Where it is read.
    pub place: WeightReader,
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
pub fn weight(network: &Network, sink: &Sink) -> Option<Weight> {
    let graph = &network.graph;
    let mut place = WeightReader {
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
        place = WeightReader {
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
    pub fn read(&self, network: &Network) -> Result<Mat<f64>> {
        let value = self.place.value;
        self.matrix(&network.constant(value)?)
            .context(|| format!("the weight '{}'", network.graph.value(value).name))
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
        Tensor::rounded(self.shape.clone(), &values, elem)
    }
}

/// The bias that follows a sink: Gemm's own, an addition of a constant vector,
/// the bias of a fused skip normalisation.
pub fn bias(network: &Network, sink: &Sink, columns: usize) -> Option<WeightReader> {
    let graph = &network.graph;
    let vector = |node: NodeId, input: usize| -> Option<WeightReader> {
        let value = graph.input(node, input)?;
        let constant = graph.value(value).constant.as_ref()?;
        let fits = constant.shape.iter().product::<usize>() == columns
            && constant.shape.last() == Some(&columns)
            && graph.value(value).elem.is_some_and(Elem::is_float);
        fits.then_some(WeightReader { node, input, value })
    };
    if let Some(input) = network.axes.contractions.get(sink.contraction)?.bias {
        return vector(sink.node, input);
    }
    let mut value = (*graph.node(sink.node).outputs.first()?)?;
    loop {
        let [(node, input)] = graph.value(value).consumers[..] else {
            return None;
        };
        let n = graph.node(node);
        if let Some(adds) = addition(&n.domain, &n.op) {
            return match (adds.bias, adds.summands) {
                (Some(bias), Some(summands)) if input < summands => vector(node, bias),
                (None, None) if n.inputs.len() == 2 => vector(node, 1 - input),
                _ => None,
            };
        }
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Reshape" | "Identity") if input == 0 => value = (*n.outputs.first()?)?,
            _ => return None,
        }
    }
}
