//! How far apart two outputs are: the measures, and their sums over rows.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::tensor::Tensor;
use crate::{Error, Result};

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
    /// The square of the mean of its square roots: what a typical row loses. A
    /// few rows near a boundary hold most of the mean, so this settles with far
    /// fewer samples.
    pub kl_typical: Option<f64>,
    /// Mean cosine of the rows (along the last axis) of a and b, for embeddings.
    pub cosine: Option<f64>,
    /// What `divergence` is, which `--max-drop` bounds.
    pub measure: &'static str,
    /// How far a is from b by that measure; 0 for equal outputs.
    pub divergence: f64,
}

impl OutputDifference {
    /// One number, 0 for equal outputs: `kl` of class-like outputs, 1 - `cosine`
    /// of embeddings, `relative_squared` of others; NaN where a value is.
    pub fn divergence(&self) -> f64 {
        self.divergence
    }

    /// The same with its name.
    fn measured(&self) -> (&'static str, f64) {
        let (measure, value) = match (self.kl, self.cosine) {
            (Some(kl), _) => ("KL", kl),
            (None, Some(cosine)) => ("1 - cosine", (1.0 - cosine).max(0.0)),
            (None, None) => ("relative squared error", self.relative_squared),
        };
        (measure, if self.max.is_nan() { f64::NAN } else { value })
    }
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

/// How far apart two models are, as one number: the largest
/// [`OutputDifference::divergence`] of the outputs, those that hand on a cache
/// (`present.0.key` and the like) left out where there are others. NaN where a
/// value is, and where nothing was compared.
pub fn divergence(comparison: &Comparison) -> f64 {
    let outputs = &comparison.outputs;
    let answers: Vec<&OutputDifference> = match outputs.iter().all(|o| is_cache(&o.name)) {
        true => outputs.iter().collect(),
        false => outputs.iter().filter(|o| !is_cache(&o.name)).collect(),
    };
    let worse = |worst: f64, x: f64| if x.is_nan() || x > worst { x } else { worst };
    answers
        .iter()
        .map(|o| o.divergence())
        .reduce(|worst, x| if worst.is_nan() { worst } else { worse(worst, x) })
        .unwrap_or(f64::NAN)
}

/// Whether an output is read by the next step of a decoder, not by a user.
fn is_cache(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["present", "past", "cache"].iter().any(|n| name.contains(n))
}

#[derive(Default, Clone)]
pub(super) struct ErrorSums {
    count: f64,
    max: f64,
    max_b: f64,
    squared: f64,
    sum_b: f64,
    squares_b: f64,
    rows: f64,
    agree: f64,
    kl: f64,
    root_kl: f64,
    cosine: f64,
    classes: bool,
    embedding: bool,
    nan: bool,
}

/// Which rows of an output count.
pub(super) struct OutputRows<'a> {
    pub(super) batch: usize,
    pub(super) real: usize,
    pub(super) tokens: Option<usize>,
    pub(super) mask: Option<&'a [bool]>,
}

impl OutputRows<'_> {
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

impl ErrorSums {
    pub(super) fn add(&mut self, name: &str, x: &Tensor, y: &Tensor, rows: &OutputRows) -> Result<()> {
        if x.shape != y.shape {
            return Err(Error::Unmet(format!(
                "the output '{name}' has the shape {:?} in one model and {:?} in the other",
                x.shape, y.shape
            )));
        }
        let (a, b) = (floats(x), floats(y));
        let width = match x.shape[..] {
            [.., width] if x.shape.len() > 1 => width.max(1),
            _ => 1,
        };
        self.classes = x.elem().is_float() && class_like(name, &x.shape);
        self.embedding = x.elem().is_float() && !self.classes && embedding_like(name, &x.shape);
        let (classes, embedding) = (self.classes, self.embedding);
        // By row, and added up in order: the sums do not depend on the number of threads.
        let of_rows: Vec<ErrorSums> = (a.par_chunks(width).zip(b.par_chunks(width)).enumerate())
            .filter(|(row, _)| rows.counts(&x.shape, row * width))
            .map(|(_, (p, q))| ErrorSums::of_row(p, q, classes, embedding))
            .collect();
        of_rows.iter().for_each(|row| self.merge(row));
        Ok(())
    }

    fn of_row(p: &[f32], q: &[f32], classes: bool, embedding: bool) -> Self {
        let mut sums = Self::default();
        for (p, q) in p.iter().zip(q) {
            let (p, q) = (f64::from(*p), f64::from(*q));
            let difference = if p == q { 0.0 } else { (p - q).abs() };
            sums.nan |= difference.is_nan();
            sums.max = sums.max.max(difference);
            if q.is_finite() {
                sums.max_b = sums.max_b.max(q.abs());
                sums.squared += difference * difference;
                sums.sum_b += q;
                sums.squares_b += q * q;
            }
        }
        sums.count = p.len() as f64;
        if classes {
            sums.agree = f64::from(u8::from(largest(p) == largest(q)));
            sums.kl = kullback_leibler(q, p);
            sums.root_kl = sums.kl.sqrt();
        } else if embedding {
            sums.cosine = cosine(p, q);
        }
        sums.rows = f64::from(u8::from(classes || embedding));
        sums
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.max = self.max.max(other.max);
        self.max_b = self.max_b.max(other.max_b);
        self.squared += other.squared;
        self.sum_b += other.sum_b;
        self.squares_b += other.squares_b;
        self.rows += other.rows;
        self.agree += other.agree;
        self.kl += other.kl;
        self.root_kl += other.root_kl;
        self.cosine += other.cosine;
        self.nan |= other.nan;
    }

    pub(super) fn difference(self, name: &str) -> OutputDifference {
        let n = self.count.max(1.0);
        let variance = (self.squares_b / n - (self.sum_b / n).powi(2)).max(0.0);
        let mean_squared = self.squared / n;
        let mut found = OutputDifference {
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
            kl_typical: self.classes.then(|| (self.root_kl / self.rows.max(1.0)).powi(2)),
            cosine: (self.embedding && self.rows > 0.0).then(|| self.cosine / self.rows),
            measure: "",
            divergence: 0.0,
        };
        (found.measure, found.divergence) = found.measured();
        found
    }
}

/// The values of a tensor of any type, copied only where they are not float32.
fn floats(tensor: &Tensor) -> Cow<'_, [f32]> {
    match tensor.as_f32() {
        Some(values) => values.into(),
        None => tensor.to_f32().into(),
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

/// Whether rows along the last axis are vectors that are compared by direction.
fn embedding_like(name: &str, shape: &[usize]) -> bool {
    /// An unnamed output with rows of at least so many entries is an embedding.
    const WIDE: usize = 16;
    let width = shape.last().copied().unwrap_or(0);
    let name = name.to_ascii_lowercase();
    let named = ["embed", "hidden", "pool", "feature", "encod"]
        .iter()
        .any(|n| name.contains(n));
    (2..=3).contains(&shape.len()) && width >= if named { 2 } else { WIDE }
}

/// The cosine of two vectors; 1 where both are zero, 0 where one is.
fn cosine(p: &[f32], q: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    let (pp, qq) = (dot(p, p), dot(q, q));
    if pp == 0.0 || qq == 0.0 {
        return f64::from(u8::from(pp == qq));
    }
    dot(p, q) / (pp.sqrt() * qq.sqrt())
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
fn kullback_leibler(p: &[f32], q: &[f32]) -> f64 {
    if are_probabilities(p) || are_probabilities(q) {
        let (p, q) = (log_softmax(p), log_softmax(q));
        let terms = p.iter().zip(&q).filter(|(p, _)| p.is_finite());
        return terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0);
    }
    // sum of e^p (p - q) / sum of e^p, less the difference of the logarithms of both sums: in
    // one pass and without copies, since a vocabulary has many entries.
    let top = |row: &[f32]| row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
    let (top_p, top_q) = (top(p), top(q));
    let (mut sum_p, mut sum_q, mut difference) = (0.0, 0.0, 0.0);
    for (p, q) in p.iter().zip(q) {
        let (p, q) = (f64::from(*p) - top_p, f64::from(*q) - top_q);
        let share = p.exp();
        sum_p += share;
        sum_q += q.exp();
        if p.is_finite() {
            difference += share * (p - q);
        } else if p.is_nan() {
            difference = f64::NAN;
        }
    }
    let kl = difference / sum_p - sum_p.ln() + sum_q.ln();
    kl.max(0.0)
}

fn are_probabilities(row: &[f32]) -> bool {
    let mut sum = 0.0;
    for value in row {
        if *value < 0.0 {
            return false;
        }
        sum += f64::from(*value);
    }
    (sum - 1.0).abs() < 1e-3
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    if are_probabilities(row) {
        return row.iter().map(|v| f64::from(*v).max(1e-12).ln()).collect();
    }
    let top = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
    let total: f64 = row.iter().map(|v| (f64::from(*v) - top).exp()).sum();
    row.iter().map(|v| f64::from(*v) - top - total.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(name: &str, x: Tensor, y: Tensor) -> OutputDifference {
        let rows = OutputRows {
            batch: x.shape.first().copied().unwrap_or(0),
            real: x.shape.first().copied().unwrap_or(0),
            tokens: None,
            mask: None,
        };
        let mut sums = ErrorSums::default();
        sums.add(name, &x, &y, &rows).expect("equal shapes");
        sums.difference(name)
    }

    fn of(outputs: Vec<OutputDifference>) -> f64 {
        divergence(&Comparison { outputs, samples: 1 })
    }

    #[test]
    fn classes_diverge_by_kl() {
        // One row: p = (1/2, 1/2) dense, q = (1/4, 3/4) pruned.
        let dense = Tensor::f32(vec![1, 2], vec![0.0, 0.0]);
        let pruned = Tensor::f32(vec![1, 2], vec![0.0, 3.0f32.ln()]);
        let d = difference("logits", pruned, dense);
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((d.divergence() - expected).abs() < 1e-6, "{d:?}");
        assert_eq!(d.cosine, None);
    }

    #[test]
    fn embeddings_diverge_by_direction_only() {
        let dense = Tensor::f32(vec![2, 2], vec![1.0, 0.0, 0.0, 2.0]);
        let longer = Tensor::f32(vec![2, 2], vec![3.0, 0.0, 0.0, 5.0]);
        let d = difference("sentence_embedding", longer, dense.clone());
        assert_eq!((d.kl, d.cosine), (None, Some(1.0)));
        assert_eq!(d.divergence(), 0.0);
        // The first row turns by 90 degrees, the second by 180.
        let turned = Tensor::f32(vec![2, 2], vec![0.0, 1.0, 0.0, -1.0]);
        let d = difference("sentence_embedding", turned, dense);
        assert_eq!(d.cosine, Some(-0.5));
        assert_eq!(d.divergence(), 1.5);
    }

    #[test]
    fn padding_and_filling_rows_do_not_count() {
        let dense = Tensor::f32(vec![2, 2, 2], vec![1.0; 8]);
        let mut pruned = dense.clone();
        // The second token of the first row is padding, the second row fills.
        pruned.data = crate::tensor::Data::F32(vec![1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0]);
        let rows = OutputRows {
            batch: 2,
            real: 1,
            tokens: Some(2),
            mask: Some(&[true, false, false, false]),
        };
        let mut sums = ErrorSums::default();
        sums.add("last_hidden_state", &pruned, &dense, &rows)
            .expect("equal shapes");
        assert!((sums.difference("last_hidden_state").cosine.unwrap_or(0.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn other_outputs_diverge_by_relative_squared_error() {
        // The variance of (1, 3) is 1, the mean squared difference 0.25.
        let dense = Tensor::f32(vec![2, 1], vec![1.0, 3.0]);
        let pruned = Tensor::f32(vec![2, 1], vec![1.5, 2.5]);
        let d = difference("value", pruned, dense);
        assert_eq!((d.kl, d.cosine), (None, None));
        assert!((d.divergence() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn the_worst_answer_counts_and_caches_do_not() {
        let one = |name: &str, by: f32| {
            let dense = Tensor::f32(vec![2, 1], vec![1.0, 3.0]);
            let pruned = Tensor::f32(vec![2, 1], vec![1.0 + by, 3.0 - by]);
            difference(name, pruned, dense)
        };
        let close = of(vec![one("a", 0.1), one("b", 0.5), one("present.0.key", 9.0)]);
        assert!((close - 0.25).abs() < 1e-6, "{close}");
        let caches = of(vec![one("present.0.key", 0.5)]);
        assert!((caches - 0.25).abs() < 1e-6, "{caches}");
        assert!(of(vec![]).is_nan());
    }

    #[test]
    fn a_value_that_is_nan_is_no_small_divergence() {
        let dense = Tensor::f32(vec![1, 2], vec![0.0, 1.0]);
        let pruned = Tensor::f32(vec![1, 2], vec![f32::NAN, 1.0]);
        let bad = difference("logits", pruned, dense.clone());
        let good = difference("logits", dense.clone(), dense);
        assert!(of(vec![bad.clone(), good.clone()]).is_nan());
        assert!(of(vec![good.clone(), bad]).is_nan());
        assert_eq!(of(vec![good]), 0.0);
    }
}
