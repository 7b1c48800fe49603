//! Two models on the same inputs, output by output.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::calibrate::{Batch, Samples, batches, input_specs};
use crate::onnx::proto;
use crate::runtime::Session;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Rows per run.
const ROWS: usize = 8;

/// How one output differs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct OutputDifference {
    /// The output.
    pub name: String,
    /// `max |a - b| / max |b|`.
    pub relative_max: f64,
    /// Largest difference.
    pub max: f64,
    /// Mean squared difference.
    pub mean_squared: f64,
    /// Mean squared difference by the variance of b.
    pub relative_squared: f64,
    /// Share of rows with the same largest entry, for class-like outputs.
    pub agreement: Option<f64>,
    /// Mean Kullback-Leibler divergence of a from b in nats, for class-like
    /// outputs.
    pub kl: Option<f64>,
}

/// How all outputs differ.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Comparison {
    /// Per output.
    pub outputs: Vec<OutputDifference>,
    /// Samples compared.
    pub samples: usize,
}

impl Comparison {
    /// The largest relative difference.
    pub fn worst(&self) -> f64 {
        self.outputs.iter().fold(0.0, |w, o| {
            if o.relative_max.is_nan() || o.relative_max > w {
                o.relative_max
            } else {
                w
            }
        })
    }
}

#[derive(Default, Clone)]
struct Sums {
    count: f64,
    max: f64,
    max_b: f64,
    squared: f64,
    sum_b: f64,
    squares_b: f64,
    rows: f64,
    agree: f64,
    kl: f64,
    classes: bool,
    nan: bool,
}

/// Runs both sessions over the samples; both must fetch the same outputs.
///
/// # Errors
/// The engine's, outputs of different shapes, an interrupt.
pub fn compare(
    a: &mut dyn Session,
    b: &mut dyn Session,
    model: &proto::ModelProto,
    samples: &Samples,
    cancelled: &AtomicBool,
) -> Result<Comparison> {
    let specs = input_specs(model)?;
    let mut differences = Differences::new(b.outputs());
    for batch in batches(samples, &specs, ROWS)? {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        let (x, y) = (a.run(&batch.feeds)?, b.run(&batch.feeds)?);
        differences.add(&batch, &x, &y)?;
    }
    Ok(differences.finish())
}

/// Differences of two models' outputs, batch by batch.
pub struct Differences {
    names: Vec<String>,
    sums: Vec<Sums>,
    samples: usize,
}

impl Differences {
    /// Nothing yet, of these outputs.
    pub fn new(names: &[String]) -> Self {
        Self {
            names: names.to_vec(),
            sums: vec![Sums::default(); names.len()],
            samples: 0,
        }
    }

    /// Adds a batch: the outputs `x` of the model that is judged and `y` of the
    /// one it is judged by.
    ///
    /// # Errors
    /// Outputs of different shapes.
    pub fn add(&mut self, batch: &Batch, x: &[Tensor], y: &[Tensor]) -> Result<()> {
        let rows = Rows {
            batch: batch.size,
            real: batch.rows.len(),
            tokens: batch.tokens,
            mask: batch.token_mask.as_deref(),
        };
        for (((name, x), y), sums) in self.names.iter().zip(x).zip(y).zip(&mut self.sums) {
            sums.add(name, x, y, &rows)?;
        }
        self.samples += batch.rows.len();
        Ok(())
    }

    /// All of it.
    pub fn finish(self) -> Comparison {
        Comparison {
            outputs: self
                .names
                .iter()
                .zip(self.sums)
                .map(|(name, s)| s.difference(name))
                .collect(),
            samples: self.samples,
        }
    }
}

/// Which rows of an output count.
struct Rows<'a> {
    batch: usize,
    real: usize,
    tokens: Option<usize>,
    mask: Option<&'a [bool]>,
}

impl Rows<'_> {
    /// Whether the element at `index` of a tensor of this shape counts.
    fn counts(&self, shape: &[usize], index: usize) -> bool {
        if shape.first() != Some(&self.batch) || self.batch == 0 {
            return true;
        }
        let per_row = shape[1..].iter().product::<usize>().max(1);
        let row = index / per_row;
        if row >= self.real {
            return false;
        }
        match (self.mask, self.tokens) {
            (Some(mask), Some(tokens)) if shape.get(1) == Some(&tokens) => {
                let per_token = shape[2..].iter().product::<usize>().max(1);
                let token = (index % per_row) / per_token;
                mask.get(row * tokens + token).copied().unwrap_or(true)
            }
            _ => true,
        }
    }
}

impl Sums {
    fn add(&mut self, name: &str, x: &Tensor, y: &Tensor, rows: &Rows) -> Result<()> {
        if x.shape != y.shape {
            return Err(Error::Unmet(format!(
                "the output '{name}' has the shape {:?} in one model and {:?} in the other",
                x.shape, y.shape
            )));
        }
        let (a, b) = (x.to_f32(), y.to_f32());
        let classes = x.shape.last().copied().unwrap_or(0);
        self.classes = x.elem().is_float() && class_like(name, &x.shape);
        for (i, (p, q)) in a.iter().zip(&b).enumerate() {
            if !rows.counts(&x.shape, i) {
                continue;
            }
            let (p, q) = (f64::from(*p), f64::from(*q));
            let difference = if p == q { 0.0 } else { (p - q).abs() };
            self.nan |= difference.is_nan();
            self.count += 1.0;
            self.max = self.max.max(difference);
            if q.is_finite() {
                self.max_b = self.max_b.max(q.abs());
                self.squared += difference * difference;
                self.sum_b += q;
                self.squares_b += q * q;
            }
        }
        if self.classes {
            for (row, (p, q)) in a.chunks(classes).zip(b.chunks(classes)).enumerate() {
                if rows.counts(&x.shape, row * classes) {
                    self.rows += 1.0;
                    self.agree += f64::from(u8::from(largest(p) == largest(q)));
                    self.kl += divergence(q, p);
                }
            }
        }
        Ok(())
    }

    fn difference(self, name: &str) -> OutputDifference {
        let n = self.count.max(1.0);
        let variance = (self.squares_b / n - (self.sum_b / n).powi(2)).max(0.0);
        let mean_squared = self.squared / n;
        OutputDifference {
            name: name.to_string(),
            relative_max: match (self.nan, self.max_b > 0.0) {
                (true, _) => f64::NAN,
                (_, true) => self.max / self.max_b,
                (_, false) => self.max,
            },
            max: if self.nan { f64::NAN } else { self.max },
            mean_squared,
            relative_squared: if variance > 0.0 {
                mean_squared / variance
            } else {
                mean_squared
            },
            agreement: self.classes.then(|| self.agree / self.rows.max(1.0)),
            kl: self.classes.then(|| self.kl / self.rows.max(1.0)),
        }
    }
}

/// Whether an output is a distribution over classes.
fn class_like(name: &str, shape: &[usize]) -> bool {
    let classes = shape.last().copied().unwrap_or(0);
    let name = name.to_ascii_lowercase();
    let named = ["logit", "prob", "class", "score", "label", "prediction"]
        .iter()
        .any(|n| name.contains(n));
    classes >= 2
        && shape.len() >= 2
        && (named
            || (shape.len() == 2
                && classes <= 1000
                && !name.contains("embed")
                && !name.contains("hidden")
                && !name.contains("pool")
                && !name.contains("feature")))
}

fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// `KL(p || q)` in nats of two rows of logits, or of probabilities where the
/// rows are that already.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter()
        .zip(&q)
        .filter(|(p, _)| p.is_finite())
        .map(|(p, q)| p.exp() * (p - q))
        .sum::<f64>()
        .max(0.0)
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    if row.iter().all(|v| *v >= 0.0) && (sum - 1.0).abs() < 1e-3 {
        return row.iter().map(|v| f64::from(*v).max(1e-12).ln()).collect();
    }
    let top = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
    let total: f64 = row.iter().map(|v| (f64::from(*v) - top).exp()).sum();
    row.iter().map(|v| f64::from(*v) - top - total.ln()).collect()
}
