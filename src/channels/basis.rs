//! The basis in which the channels of a head matter least from the last one on.
//!
//! A head's values V reach the output as `A V W` (A the attention, W the head's rows of
//! the output projection). With C the covariance of `A V`, the best r channels are the
//! leading left singular vectors of `C^1/2 W`, brought back by `C^-1/2`: a low-rank
//! approximation of the head's output in the least squares over the data.
//!
//! Queries and keys meet as `Q K^T`. With `C_q = Q^T Q` and C_k the covariance of K (its
//! mean adds the same to all scores of a query, which the softmax takes out), the best r
//! channels are those of the singular value decomposition
//! `C_q^1/2 C_k^1/2 = U S V^T`, in which Q becomes `Q C_q^-1/2 U S^1/2` and K
//! `K C_k^-1/2 V S^1/2`.

use faer::{Mat, MatRef, Side};

use crate::numerics::linalg::product;
use crate::{Error, Result};

/// Variances below this fraction of the greatest count as this.
const FLOOR: f64 = 1e-6;

/// C^1/2 and C^-1/2 of a symmetric matrix without negative eigenvalues.
fn roots(c: MatRef<'_, f64>) -> Result<(Mat<f64>, Mat<f64>)> {
    let n = c.nrows();
    let (vectors, values) = eigen(c)?;
    let most = values.iter().copied().fold(0.0, f64::max);
    let least = if most > 0.0 { FLOOR * most } else { 1.0 };
    let scaled = |power: f64| {
        let part = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j].max(least).powf(power));
        product(part.as_ref(), vectors.transpose())
    };
    Ok((scaled(0.5), scaled(-0.5)))
}

/// Eigenvectors as columns, and eigenvalues, greatest first.
fn eigen(a: MatRef<'_, f64>) -> Result<(Mat<f64>, Vec<f64>)> {
    let n = a.nrows();
    let found = a
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| Error::engine("the channels of a head have no eigenvectors".to_string()))?;
    let (u, s) = (found.U(), found.S());
    let vectors = Mat::from_fn(n, n, |i, j| u[(i, n - 1 - j)]);
    Ok((vectors, (0..n).map(|j| s[n - 1 - j]).collect()))
}

/// An orthonormal basis of the values of one head, its columns from the one that matters
/// most. `covariance` is that of what the output projection reads, `weights` what it
/// makes of it, each `n` channels, once for each query head that reads these values.
///
/// # Errors
/// Values that are not finite.
pub(super) fn of_values(covariance: &Mat<f64>, weights: &[Mat<f64>]) -> Result<Mat<f64>> {
    let n = covariance.nrows();
    let (root, inverse) = roots(covariance.as_ref())?;
    let mut square = Mat::<f64>::zeros(n, n);
    for weight in weights {
        square += product(weight.as_ref(), weight.transpose());
    }
    let seen = product(product(root.as_ref(), square.as_ref()).as_ref(), root.as_ref());
    let (vectors, _) = eigen(seen.as_ref())?;
    let wanted = product(inverse.as_ref(), vectors.as_ref());
    Ok(wanted.qr().compute_thin_Q())
}

/// The bases of the queries and of the keys of one head.
#[derive(Clone)]
pub(super) struct Pair {
    /// What queries are multiplied by, `n x n`.
    pub(super) queries: Mat<f64>,
    /// What keys are multiplied by.
    pub(super) keys: Mat<f64>,
    /// What is lost of the squared scores with each channel.
    pub(super) lost: Vec<f64>,
    /// `C_q^-1/2 U` and its inverse.
    turn: [Mat<f64>; 2],
}

impl Pair {
    /// The projection of queries on the first `kept` channels.
    pub(super) fn projection(&self, kept: usize) -> Mat<f64> {
        let [to, from] = &self.turn;
        product(to.subcols(0, kept), from.subrows(0, kept))
    }
}

/// The bases of one head from the second moments of its queries and the covariance of
/// its keys.
///
/// # Errors
/// Values that are not finite.
pub(super) fn of_queries(queries: &Mat<f64>, keys: &Mat<f64>) -> Result<Pair> {
    let n = queries.nrows();
    let (q_root, q_inverse) = roots(queries.as_ref())?;
    let (k_root, k_inverse) = roots(keys.as_ref())?;
    let both = product(q_root.as_ref(), k_root.as_ref());
    let found = both
        .svd()
        .map_err(|_| Error::engine("the queries and keys of a head have no singular values".to_string()))?;
    let (u, s, v) = (found.U(), found.S(), found.V());
    let most = (0..n).map(|j| s[j]).fold(0.0, f64::max);
    let scale = |j: usize| s[j].max(FLOOR * most).max(f64::MIN_POSITIVE).sqrt();
    let scaled = |vectors: MatRef<'_, f64>| Mat::from_fn(n, n, |i, j| vectors[(i, j)] * scale(j));
    Ok(Pair {
        queries: product(q_inverse.as_ref(), scaled(u).as_ref()),
        keys: product(k_inverse.as_ref(), scaled(v).as_ref()),
        lost: (0..n).map(|j| s[j] * s[j]).collect(),
        turn: [
            product(q_inverse.as_ref(), u),
            product(u.transpose(), q_root.as_ref()),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::linalg::outer;

    fn made(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut state = seed;
        Mat::from_fn(rows, columns, |_, _| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
        })
    }

    fn distance(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).norm_max()
    }

    #[test]
    fn values_of_low_rank_need_no_more_channels() {
        // Three of eight directions of the values are read, none of them an axis.
        let x = made(200, 8, 1);
        let weight = product(made(8, 3, 2).as_ref(), made(3, 20, 3).as_ref());
        let basis = of_values(&outer(x.transpose()), std::slice::from_ref(&weight)).unwrap();
        let square = product(basis.transpose(), basis.as_ref());
        assert!(distance(&square, &Mat::identity(8, 8)) < 1e-10);
        let turned = product(x.as_ref(), basis.as_ref());
        let target = product(x.as_ref(), weight.as_ref());
        let kept = turned.subcols(0, 3).to_owned();
        let gram = product(kept.transpose(), kept.as_ref());
        let right = product(kept.transpose(), target.as_ref());
        use faer::linalg::solvers::Solve as _;
        let fitted = gram.full_piv_lu().solve(&right);
        assert!(distance(&product(kept.as_ref(), fitted.as_ref()), &target) < 1e-4);
    }

    #[test]
    fn products_stay_and_go_from_the_last_channel_on() {
        let (q, k) = (made(60, 6, 4), made(70, 6, 5));
        let pair = of_queries(&outer(q.transpose()), &outer(k.transpose())).unwrap();
        let turned = [
            product(q.as_ref(), pair.queries.as_ref()),
            product(k.as_ref(), pair.keys.as_ref()),
        ];
        let scores = product(q.as_ref(), k.transpose());
        assert!(distance(&product(turned[0].as_ref(), turned[1].transpose()), &scores) < 1e-9);
        for kept in 0..6 {
            let less = product(turned[0].subcols(0, kept), turned[1].subcols(0, kept).transpose());
            let lost: f64 = pair.lost[kept..].iter().sum();
            assert!(
                ((&scores - &less).squared_norm_l2() / lost - 1.0).abs() < 1e-9,
                "{kept}"
            );
            let projected = product(q.as_ref(), pair.projection(kept).as_ref());
            let same = product(projected.as_ref(), k.transpose());
            assert!(distance(&same, &less) < 1e-9, "{kept}");
        }
    }
}
