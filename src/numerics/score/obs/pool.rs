//! Choosing the rows of one step from a pool of the cheapest.

use faer::{Mat, Par};
use pulp::NullaryFnOnce;

use crate::numerics::linalg;

use super::elimination::Elimination;

/// Chooses up to `count` live rows, one after the other, among the `candidates`
/// cheapest: each is the cheapest of the pool once those before it are gone.
/// Returns them with the Cholesky factor of Z between them (lower triangle), and leaves
/// them at the last live positions.
///
/// Removing p adds `-v v^T` to Z, with `v = Z_:p / sqrt(Z_pp)`, and `-v y^T` to
/// W, with `y = W_p / sqrt(Z_pp)`. The scores need only the diagonals of Z and
/// `B = W W^T`; of both, the columns are made when their row is chosen.
pub(super) fn choose(state: &mut Elimination, count: usize, candidates: usize) -> (Vec<usize>, Mat<f32>) {
    let mut cheapest: Vec<(f32, usize)> = state.scores().collect();
    let by_score = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let size = candidates.min(cheapest.len());
    if size < cheapest.len() {
        cheapest.select_nth_unstable_by(size, by_score);
        cheapest.truncate(size);
    }
    match candidates <= count {
        true => cheapest.sort_unstable_by(by_score),
        // Columns of Z are read fastest from top to bottom.
        false => cheapest.sort_unstable_by_key(|(_, row)| *row),
    }
    let rows: Vec<usize> = cheapest.into_iter().map(|(_, row)| row).collect();
    state.move_to_end(&rows);
    let mut z = state.z_of_last(size);
    if candidates <= count {
        factor(&mut z);
        return (rows, z);
    }
    let (chosen, lower) = Pool::new(state, &z, count).choose(count);
    let chosen: Vec<usize> = chosen.into_iter().map(|i| rows[i]).collect();
    state.move_to_end(&chosen);
    (chosen, lower)
}

/// The Cholesky factor of Z between some rows, in place. No pivot of it is below 1 but
/// for rounding; were one to overflow, the scores would be NaN and the curve flat, not
/// the process gone.
pub(super) fn factor(z: &mut Mat<f32>) {
    linalg::factor_in_place(z.as_mut(), Some(1.0), Par::Seq);
}

struct Pool<'a> {
    z: &'a Mat<f32>,
    b: Mat<f32>,
    z_diagonal: Vec<f32>,
    b_diagonal: Vec<f32>,
    gone: Vec<bool>,
    /// `v` and `c = W y - |y|^2 v / 2` of each choice, by columns: Z and B have lost
    /// `v v^T` and `v c^T + c v^T`.
    v: Vec<f32>,
    c: Vec<f32>,
}

impl<'a> Pool<'a> {
    fn new(state: &Elimination, z: &'a Mat<f32>, count: usize) -> Self {
        let size = z.nrows();
        let b = linalg::outer(state.w_of_last(size).transpose());
        Self {
            z_diagonal: (0..size).map(|i| z[(i, i)].max(1.0)).collect(),
            b_diagonal: (0..size).map(|i| b[(i, i)]).collect(),
            gone: vec![false; size],
            v: Vec::with_capacity(count * size),
            c: Vec::with_capacity(count * size),
            z,
            b,
        }
    }

    /// Indices into the pool, in order, and the Cholesky factor of Z between them: what
    /// Z has lost with each choice are its columns.
    fn choose(mut self, count: usize) -> (Vec<usize>, Mat<f32>) {
        let arch = pulp::Arch::new();
        let next = |_| arch.dispatch(Next(&mut self));
        let chosen: Vec<usize> = (0..count).map_while(next).collect();
        let size = self.gone.len();
        let lower = Mat::from_fn(chosen.len(), chosen.len(), |i, j| {
            if i < j { 0.0 } else { self.v[j * size + chosen[i]] }
        });
        (chosen, lower)
    }

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let mut best: Option<(f32, usize)> = None;
        for (i, gone) in self.gone.iter().enumerate() {
            let score = self.b_diagonal[i].max(0.0) / self.z_diagonal[i];
            if !gone && best.is_none_or(|(least, _)| score < least) {
                best = Some((score, i));
            }
        }
        let (_, p) = best?;
        self.gone[p] = true;
        let pivot = 1.0 / self.z_diagonal[p];
        let root = pivot.sqrt();
        let y = self.b_diagonal[p] * pivot;

        let size = self.gone.len();
        let at = self.v.len();
        self.v.extend_from_slice(self.z.col_as_slice(p));
        self.c.extend_from_slice(self.b.col_as_slice(p));
        let (old_v, v) = self.v.split_at_mut(at);
        let (old_c, c) = self.c.split_at_mut(at);
        for (old_v, old_c) in old_v.chunks_exact(size).zip(old_c.chunks_exact(size)) {
            let (vp, cp) = (old_v[p], old_c[p]);
            for ((v, c), (&old_v, &old_c)) in v.iter_mut().zip(c.iter_mut()).zip(old_v.iter().zip(old_c)) {
                *v -= old_v * vp;
                *c -= old_v * cp + old_c * vp;
            }
        }
        let terms = v.iter_mut().zip(c);
        let diagonals = self.z_diagonal.iter_mut().zip(&mut self.b_diagonal);
        for ((v, c), (z, b)) in terms.zip(diagonals) {
            *v *= root;
            *c = *c * root - 0.5 * y * *v;
            *z = (*z - *v * *v).max(1.0);
            *b -= 2.0 * *v * *c;
        }
        // Its pivot is the one it was chosen by.
        v[p] = (1.0 / pivot).sqrt();
        Some(p)
    }
}

/// [`Pool::next`].
struct Next<'a, 'z>(&'a mut Pool<'z>);

impl NullaryFnOnce for Next<'_, '_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn call(self) -> Option<usize> {
        self.0.next()
    }
}
