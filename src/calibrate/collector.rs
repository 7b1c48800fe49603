//! What is watched at a site, and the sums of one watched value.

use crate::data::{Batch, PositionWeights, Rows, Strides, floats};
use crate::error::{Error, Result};
use crate::numerics::BLOCK;
use crate::numerics::SiteStatistics;
use crate::tensor::Tensor;

/// Where the input of a site can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteProbe {
    /// The site's name.
    pub site: String,
    /// The value that is the sink's input.
    pub value: String,
    /// Its axes that the sink contracts, in the order of the weight's rows.
    pub axes: Vec<usize>,
    /// The product of their sizes.
    pub width: usize,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Timings {
    /// Seconds for preparing the engine's session.
    pub prepare_seconds: f64,
    /// Seconds in the engine's runs.
    pub engine_seconds: f64,
    /// Seconds for the sums.
    pub statistics_seconds: f64,
    /// Runs of the model.
    pub runs: usize,
}

impl std::ops::Add for Timings {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            prepare_seconds: self.prepare_seconds + other.prepare_seconds,
            engine_seconds: self.engine_seconds + other.engine_seconds,
            statistics_seconds: self.statistics_seconds + other.statistics_seconds,
            runs: self.runs + other.runs,
        }
    }
}

/// What is summed for one value; sites with the same input share it.
pub(super) struct Collector<'a> {
    pub(super) site: &'a str,
    pub(super) value: &'a str,
    pub(super) axes: &'a [usize],
    pub(super) weights: PositionWeights,
    pub(super) statistics: SiteStatistics,
    /// Rows that wait for a full block.
    pub(super) rows: Vec<f32>,
    /// How much each of them counts.
    pub(super) counts: Vec<f32>,
}

impl Collector<'_> {
    /// Takes the real rows of `tensor`, but for those of samples that are `apart`.
    pub(super) fn take(&mut self, tensor: &Tensor, batch: &Batch, apart: fn(usize) -> bool) -> Result<()> {
        let width = self.statistics.width();
        let shape = &tensor.shape;
        let strides = Strides::new(shape, self.axes).filter(|s| s.width() == width);
        let Some(strides) = strides else {
            return Err(Error::engine(format!(
                "site '{}': value '{}' is {:?}{shape:?}, {width} entries along the axes {:?} are \
                 expected",
                self.site,
                self.value,
                tensor.elem(),
                self.axes
            )));
        };
        let data = floats(tensor, self.value)?;
        let rows = Rows::new(&strides.leading, batch);
        for row in 0..strides.count {
            let Some(sample) = rows.sample(row).filter(|s| !apart(*s)) else {
                continue;
            };
            let count = self.weights.of(rows.place(row));
            if count <= 0.0 {
                continue;
            }
            let from = self.rows.len();
            strides.read(&data, row, &mut self.rows);
            self.counts.push(count);
            let own = self.rows.get(from..).unwrap_or_default();
            if let Some(at) = own.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!(
                    "site '{}': value '{}' is {} in column {at} of axes {:?} for calibration sample \
                     {sample}; the model overflows on it or is damaged",
                    self.site,
                    self.value,
                    own.get(at).copied().unwrap_or(f32::NAN),
                    self.axes
                )));
            }
            if self.counts.len() == BLOCK {
                self.flush();
            }
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        let width = self.statistics.width();
        let rows = self.rows.len().checked_div(width).unwrap_or(0);
        let even = self.counts.iter().all(|c| *c == 1.0);
        self.statistics
            .add(&self.rows, rows, (!even).then_some(&self.counts));
        self.rows.clear();
        self.counts.clear();
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.statistics.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!(
            "site '{}': the squares of value '{}' overflow float32",
            self.site, self.value
        )))
    }
}
