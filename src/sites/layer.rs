//! Sinks that read one weight, and new values for it.

use faer::Mat;

use super::weights::Weight;
use crate::graph::{Graph, ValueId};
use crate::network::{Network, WeightReader};
use crate::numerics::solve::Refit;
use crate::rewrite::segment::Boundary;
use crate::sites::Site;
use crate::tensor::{Feeds, Tensor};
use crate::{Error, Result};

/// The sinks of a group that read one weight; they are fitted together.
#[derive(Debug, Clone)]
pub struct Part {
    /// The sinks.
    pub sites: Vec<Site>,
    /// The weight, `n x d`.
    pub matrix: Mat<f64>,
    /// Where it sits.
    weight: Weight,
    /// The constant that holds it.
    value: ValueId,
    elem: crate::tensor::Elem,
    /// The biases: who reads each, and its old values.
    biases: Vec<(Vec<WeightReader>, Tensor)>,
}

/// The parts of some sinks.
///
/// # Errors
/// A weight that is quantised or computed.
pub fn parts(network: &Network, sites: &[Site]) -> Result<Vec<Part>> {
    let graph = &network.graph;
    let mut out: Vec<Part> = Vec::new();
    for site in sites {
        let weight = site
            .weight
            .as_ref()
            .ok_or_else(|| Error::input("its weight is quantised or computed: use --reconstruct none"))?;
        match out.iter_mut().find(|p| p.value == weight.place.value) {
            Some(part) => part.sites.push(site.clone()),
            None => out.push(Part {
                sites: vec![site.clone()],
                matrix: weight.read(network)?,
                weight: weight.clone(),
                value: weight.place.value,
                elem: graph
                    .value(weight.place.value)
                    .elem
                    .unwrap_or(crate::tensor::Elem::F32),
                biases: Vec::new(),
            }),
        }
    }
    for part in &mut out {
        for place in part.sites.iter().filter_map(|s| s.bias.as_ref()) {
            match part
                .biases
                .iter_mut()
                .find(|(places, _)| places[0].value == place.value)
            {
                Some((places, _)) => places.push(place.clone()),
                None => {
                    let tensor = network.constant(place.value)?;
                    part.biases.push((vec![place.clone()], tensor));
                }
            }
        }
    }
    Ok(out)
}

impl Part {
    /// The same without the matrix: what waits for its turn need not hold it.
    #[must_use]
    pub fn unloaded(self) -> Self {
        Self {
            matrix: Mat::new(),
            ..self
        }
    }

    /// The same with its matrix.
    ///
    /// # Errors
    /// Data that does not match the shape.
    pub fn loaded(&self, network: &Network) -> Result<Self> {
        Ok(Self {
            matrix: self.weight.read(network)?,
            ..self.clone()
        })
    }

    /// Whether every sink has a bias that can take up a shift of the mean.
    pub fn has_bias(&self) -> bool {
        self.sites.iter().all(|s| s.bias.is_some())
    }

    /// Whether nothing but one sink reads the weight and the bias.
    pub fn is_single(&self, graph: &Graph) -> bool {
        let readers = |value: ValueId| graph.value(value).consumers.len();
        self.sites.len() == 1
            && readers(self.value) == 1
            && self
                .biases
                .iter()
                .all(|(places, _)| readers(places[0].value) == 1)
    }

    /// Types and ranks of the values that a fit replaces: the weight and the biases.
    pub fn boundaries(&self) -> Vec<Boundary> {
        let weight = Boundary {
            value: self.value,
            elem: self.elem,
            rank: self.weight.rank(),
        };
        let biases = self.biases.iter().map(|(p, t)| Boundary::of(p[0].value, t));
        std::iter::once(weight).chain(biases).collect()
    }

    /// The bias, d entries; zeros without one.
    pub fn bias(&self) -> Vec<f64> {
        match self.biases.first() {
            Some((_, tensor)) => tensor.to_f32().into_iter().map(f64::from).collect(),
            None => vec![0.0; self.matrix.ncols()],
        }
    }

    /// The old values as a fit.
    pub fn unchanged(&self) -> Fit {
        let rows: Vec<usize> = (0..self.matrix.nrows()).collect();
        self.fit(
            &rows,
            Refit {
                weight: self.matrix.clone(),
                bias_shift: None,
                error_before: 0.0,
                error_after: 0.0,
            },
        )
    }

    /// The rows of a fit of this part, as a matrix.
    ///
    /// # Errors
    /// A fit of another weight.
    pub fn fitted(&self, fit: &Fit, rows: &[usize]) -> Result<Mat<f64>> {
        let whole = self.weight.matrix(&fit.weight)?;
        Ok(crate::numerics::linalg::select_rows(whole.as_ref(), rows))
    }

    /// The bias of a fit of this part; the old one where it has none.
    pub fn intercept(&self, fit: &Fit) -> Vec<f64> {
        match fit.biases.first() {
            Some((_, tensor)) => tensor.to_f32().into_iter().map(f64::from).collect(),
            None => self.bias(),
        }
    }

    /// New values from a re-fit of `rows` (ascending); the other rows are zero.
    pub fn fit(&self, rows: &[usize], refit: Refit) -> Fit {
        let mut matrix = Mat::zeros(self.matrix.nrows(), self.matrix.ncols());
        for (i, row) in rows.iter().enumerate() {
            matrix.row_mut(*row).copy_from(refit.weight.row(i));
        }
        let biases = match &refit.bias_shift {
            None => self.biases.clone(),
            Some(shift) => self
                .biases
                .iter()
                .map(|(places, old)| {
                    let sum: Vec<f64> = old
                        .to_f32()
                        .iter()
                        .zip(shift)
                        .map(|(b, s)| f64::from(*b) + s)
                        .collect();
                    (
                        places.clone(),
                        Tensor::rounded(old.shape.clone(), &sum, old.elem()),
                    )
                })
                .collect(),
        };
        Fit {
            weight: self.weight.tensor(&matrix, self.elem),
            places: self
                .sites
                .iter()
                .filter_map(|s| s.weight.as_ref())
                .map(|w| w.place.clone())
                .collect(),
            biases,
            told: Fitted {
                site: self.sites.first().map_or_else(String::new, |s| s.name.clone()),
                before: refit.error_before,
                after: refit.error_after,
                ridge: None,
                tried: Vec::new(),
            },
        }
    }
}

/// New values of one weight and its biases, as large as the old ones: rows of
/// removed units are zero.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The weight.
    pub weight: Tensor,
    places: Vec<WeightReader>,
    biases: Vec<(Vec<WeightReader>, Tensor)>,
    /// For the report.
    pub told: Fitted,
}

impl Fit {
    /// Puts the new values into a network.
    ///
    /// # Errors
    /// Values that overflow.
    pub fn put(&self, network: &mut Network) -> Result<()> {
        network.set_constant(&self.places, &self.weight)?;
        for (places, tensor) in &self.biases {
            network.set_constant(places, tensor)?;
        }
        Ok(())
    }

    /// The new values by name.
    pub fn feeds(&self, graph: &Graph) -> Feeds {
        let weight = self.places.first().map(|p| (p.value, &self.weight));
        let biases = self.biases.iter().map(|(p, t)| (p[0].value, t));
        weight
            .into_iter()
            .chain(biases)
            .map(|(v, t)| (graph.value(v).name.clone(), t.clone()))
            .collect()
    }
}

/// What re-fitting did at one site.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Fitted {
    /// The site.
    pub site: String,
    /// Relative squared error of its output with the old weights.
    pub before: f64,
    /// With the new ones.
    pub after: f64,
    /// Ridge of a sequential fit, as a fraction of the mean variance; `None` where
    /// the local fit stayed.
    pub ridge: Option<f64>,
    /// The fits that it was chosen from, where it was re-fitted in order.
    pub tried: Vec<TriedFit>,
}

/// A fit that was tried: its relative squared error on samples that it was not made of.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct TriedFit {
    /// As [`Fitted::ridge`].
    pub ridge: Option<f64>,
    /// The error.
    pub error: f64,
}
