//! `kcm`: kernelized convex masking, the R2D2 ranking of Nova, Dai and
//! Schuurmans, "Gradient-Free Structured Pruning with Unlabeled Data", ICML 2023.
//!
//! For the N neurons of one layer, `x_i` the i-th neuron's row of the sink's
//! weight. R2 (representative ranking, weights only): with the Gaussian kernel
//! `K_ij = exp(-|x_i - x_j|^2 / sigma^2)` and `C_ij = 1/N`, repeat
//! `C <- C * sqrt(K / (K C))` elementwise until C changes by less than alpha;
//! `R2_i = C_ii`. D2 (data driven): `D2_i = sqrt(sum h_i^2)`. Both are
//! normalised per layer and multiplied.
//!
//! `C = I` is a fixed point, so the result depends on when it stops: that is the
//! method. The publication leaves the normalisation of D2 and the way of merging
//! open; the normalisation, sigma, alpha and the bound on iterations are options
//! here, with the working definition as the default.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::numerics::linalg;
use crate::words::words;

/// How R2 and D2 of a layer are brought to one scale before they are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalise {
    /// As they are.
    None,
    /// `(s - min) / (max - min)`; all 1 where the scores are constant.
    #[default]
    MinMax,
    /// `s / max`; all 1 where the greatest is 0.
    Max,
    /// `s / sum`: shares of the layer; all 1 where the sum is 0.
    Sum,
}

words!(Normalise { None = "none", MinMax = "minmax", Max = "max", Sum = "sum" });

/// Which parts of the score are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KcmParts {
    /// R2 alone.
    R2,
    /// D2 alone.
    D2,
    /// The product of both.
    #[default]
    Both,
}

/// Options of [`kcm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KcmOptions {
    /// The width of the Gaussian kernel.
    pub sigma: f64,
    /// The relative change of C at which the iteration stops.
    pub alpha: f64,
    /// The iteration stops here at the latest.
    pub max_iterations: usize,
    /// How R2 and D2 are brought to one scale, per layer.
    pub normalise: Normalise,
    /// Which of them are used.
    pub parts: KcmParts,
}

impl Default for KcmOptions {
    fn default() -> Self {
        Self {
            sigma: 1.0,
            alpha: 0.01,
            max_iterations: 100,
            normalise: Normalise::default(),
            parts: KcmParts::default(),
        }
    }
}

/// The scores of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct KcmScores {
    /// The merged score of each neuron, to be ranked over all layers together.
    pub scores: Vec<f64>,
    /// R2 as it came out of the iteration (empty where it is not used).
    pub r2: Vec<f64>,
    /// D2 before normalisation (empty where it is not used).
    pub d2: Vec<f64>,
    /// How many iterations ran.
    pub iterations: usize,
    /// Whether the change fell below alpha before the bound was met.
    pub converged: bool,
}

/// Scores the neurons of one layer. `weight` is `N x d` with neuron i as row i;
/// `squares[i]` is the sum of `h_i^2` over samples and tokens, h the sink's
/// input.
///
/// # Errors
/// Shapes that do not fit, numbers that are NaN or infinite, a kernel width
/// that is not positive, an alpha that is negative or NaN.
pub fn kcm(weight: &Mat<f32>, squares: &[f64], options: &KcmOptions) -> Result<KcmScores> {
    let mut scores = KcmScores {
        scores: vec![1.0; weight.nrows()],
        r2: Vec::new(),
        d2: Vec::new(),
        iterations: 0,
        converged: true,
    };
    if options.parts != KcmParts::D2 {
        if options.alpha.is_nan() || options.alpha < 0.0 {
            return Err(Error::input(format!(
                "the convergence bound alpha is {}: it must be at least 0",
                options.alpha
            )));
        }
        let kernel = gaussian_kernel(weight, options.sigma)?;
        let found = representatives(&kernel, options.alpha, options.max_iterations);
        (scores.r2, scores.iterations, scores.converged) = found;
    }
    if options.parts != KcmParts::R2 {
        scores.d2 = data_driven(weight.nrows(), squares)?;
    }
    for part in [&scores.r2, &scores.d2] {
        // An unused part is empty and leaves the scores alone.
        for (score, x) in scores.scores.iter_mut().zip(normalised(part, options.normalise)) {
            *score *= x;
        }
    }
    Ok(scores)
}

fn data_driven(neurons: usize, squares: &[f64]) -> Result<Vec<f64>> {
    if squares.len() != neurons {
        return Err(Error::input(format!(
            "{} activation norms for {neurons} neurons",
            squares.len()
        )));
    }
    if let Some(i) = squares.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
        return Err(Error::input(format!(
            "the sum of squares of neuron {i} is {}: the model overflows on a calibration input",
            squares[i]
        )));
    }
    Ok(squares.iter().map(|x| x.sqrt()).collect())
}

/// `K_ij = exp(-|x_i - x_j|^2 / sigma^2)` for the rows of `weight`.
///
/// # Errors
/// When sigma is not positive or a weight is not finite.
pub fn gaussian_kernel(weight: &Mat<f32>, sigma: f64) -> Result<Mat<f32>> {
    if !(sigma.is_finite() && sigma > 0.0) {
        return Err(Error::input(format!(
            "the kernel width sigma is {sigma}: it must be a positive number"
        )));
    }
    let mut kernel = linalg::outer(weight.as_ref());
    let square: Vec<f32> = (0..kernel.nrows()).map(|i| kernel[(i, i)]).collect();
    if square.iter().any(|x| !x.is_finite()) {
        return Err(Error::input(
            "the weight has an entry that is NaN, infinite or beyond float32",
        ));
    }
    let scale = -1.0 / (sigma * sigma);
    kernel.par_col_iter_mut().enumerate().for_each(|(j, column)| {
        for (k, &of_row) in column.iter_mut().zip(&square) {
            // Rounding makes the distance of near rows negative.
            let distance = f64::from((of_row + square[j] - 2.0 * *k).max(0.0));
            *k = (distance * scale).exp() as f32;
        }
    });
    Ok(kernel)
}

/// The diagonal of C when the iteration stops, how many iterations ran, and
/// whether the change fell below `alpha`.
///
/// Each iteration is one product `K C`. Columns of C do not depend on each
/// other, so it goes panel by panel: C is overwritten in place, and the root
/// runs on a panel that is still in the cache.
pub fn representatives(kernel: &Mat<f32>, alpha: f64, max_iterations: usize) -> (Vec<f64>, usize, bool) {
    const PANEL: usize = 512;
    let n = kernel.nrows();
    let mut c = Mat::<f32>::full(n, n, 1.0 / (n.max(1) as f32));
    let mut product = Mat::<f32>::zeros(n, PANEL.min(n));
    let mut iterations = 0;
    let mut converged = n == 0;
    while !converged && iterations < max_iterations {
        let (mut change, mut total) = (0.0, 0.0);
        for left in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - left);
            let mut product = product.as_mut().subcols_mut(0, width);
            let c = c.as_mut().subcols_mut(left, width);
            matmul(
                product.as_mut(),
                Accum::Replace,
                kernel.as_ref(),
                c.as_ref(),
                1.0,
                linalg::par(),
            );
            let sums: Vec<(f32, f32)> = c
                .par_col_iter_mut()
                .zip(product.as_ref().par_col_iter())
                .zip(kernel.as_ref().subcols(left, width).par_col_iter())
                .map(|((c, product), kernel)| {
                    let slices = (
                        c.try_as_col_major_mut(),
                        product.try_as_col_major(),
                        kernel.try_as_col_major(),
                    );
                    match slices {
                        (Some(c), Some(product), Some(kernel)) => {
                            step(c.as_slice_mut(), product.as_slice(), kernel.as_slice())
                        }
                        _ => (0.0, 0.0),
                    }
                })
                .collect();
            for (column_change, column_total) in sums {
                change += f64::from(column_change);
                total += f64::from(column_total);
            }
        }
        iterations += 1;
        converged = change < alpha * total;
    }
    let diagonal = (0..n).map(|i| f64::from(c[(i, i)])).collect();
    (diagonal, iterations, converged)
}

/// One column of `C <- C * sqrt(K / (K C))`; returns its `sum |C' - C|` and
/// `sum |C|`. Entries at 0 stay 0.
fn step(c: &mut [f32], product: &[f32], kernel: &[f32]) -> (f32, f32) {
    /// Keeps the quotient finite, so that 0 times its root is 0.
    const FLOOR: f32 = 1e-30;
    const LANES: usize = 16;
    let mut change = [0.0_f32; LANES];
    let mut total = [0.0_f32; LANES];
    let one = |c: &mut f32, product: f32, kernel: f32, change: &mut f32, total: &mut f32| {
        let next = *c * (kernel / product.max(FLOOR)).sqrt();
        *change += (next - *c).abs();
        *total += c.abs();
        *c = next;
    };
    let (bodies, tail) = c.as_chunks_mut::<LANES>();
    let (product_bodies, product_tail) = product.as_chunks::<LANES>();
    let (kernel_bodies, kernel_tail) = kernel.as_chunks::<LANES>();
    for ((c, product), kernel) in bodies.iter_mut().zip(product_bodies).zip(kernel_bodies) {
        for lane in 0..LANES {
            one(
                &mut c[lane],
                product[lane],
                kernel[lane],
                &mut change[lane],
                &mut total[lane],
            );
        }
    }
    for ((c, &product), &kernel) in tail.iter_mut().zip(product_tail).zip(kernel_tail) {
        one(c, product, kernel, &mut change[0], &mut total[0]);
    }
    (change.iter().sum(), total.iter().sum())
}

fn normalised(scores: &[f64], how: Normalise) -> Vec<f64> {
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (shift, scale) = match how {
        Normalise::MinMax => (least, greatest - least),
        Normalise::Max => (0.0, greatest),
        Normalise::Sum => (0.0, scores.iter().sum()),
        Normalise::None => return scores.to_vec(),
    };
    let to_unit = |s: &f64| if scale > 0.0 { (s - shift) / scale } else { 1.0 };
    scores.iter().map(to_unit).collect()
}
