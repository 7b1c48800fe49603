//! Choosing the rows of one step from a pool of the cheapest.

use faer::Mat;

use crate::linalg;

use super::elimination::Elimination;

/// Chooses up to `count` live rows, one after the other, among the `candidates`
/// cheapest: each is the cheapest of the pool once those before it are gone.
/// Returns them with Z between them.
///
/// Removing p adds `-v v^T` to Z, with `v = Z_:p / sqrt(Z_pp)`, and `-v y^T` to
/// W, with `y = W_p / sqrt(Z_pp)`. The scores need only the diagonals of Z and
/// `B = W W^T`; of both, the columns are made when their row is chosen.
pub(super) fn choose(state: &Elimination, count: usize, candidates: usize) -> (Vec<usize>, Mat<f32>) {
    let mut cheapest: Vec<(f32, usize)> = state.scores().collect();
    let by_score = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let size = candidates.min(cheapest.len());
    if size < cheapest.len() {
        cheapest.select_nth_unstable_by(size, by_score);
        cheapest.truncate(size);
    }
    cheapest.sort_unstable_by(by_score);
    let rows: Vec<usize> = cheapest.into_iter().map(|(_, row)| row).collect();
    let z = state.z_between(&rows);
    if candidates <= count {
        return (rows, z);
    }
    let chosen = Pool::new(state, &rows, &z).choose(count);
    let between = Mat::from_fn(chosen.len(), chosen.len(), |i, j| z[(chosen[i], chosen[j])]);
    (chosen.into_iter().map(|i| rows[i]).collect(), between)
}

struct Pool<'a> {
    z: &'a Mat<f32>,
    b: Mat<f32>,
    z_diagonal: Vec<f32>,
    b_diagonal: Vec<f32>,
    gone: Vec<bool>,
    /// `v` and `c = W y - |y|^2 v / 2` of each choice: Z and B have lost
    /// `v v^T` and `v c^T + c v^T`.
    updates: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<'a> Pool<'a> {
    fn new(state: &Elimination, rows: &[usize], z: &'a Mat<f32>) -> Self {
        let w = state.w_of(rows);
        let b = linalg::outer(w.as_ref().transpose());
        Self {
            z_diagonal: (0..rows.len()).map(|i| z[(i, i)].max(1.0)).collect(),
            b_diagonal: (0..rows.len()).map(|i| b[(i, i)]).collect(),
            gone: vec![false; rows.len()],
            updates: Vec::new(),
            z,
            b,
        }
    }

    /// Indices into the pool, in order.
    fn choose(mut self, count: usize) -> Vec<usize> {
        (0..count).map_while(|_| self.next()).collect()
    }

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

        let mut v = self.z.col_as_slice(p).to_vec();
        let mut c = self.b.col_as_slice(p).to_vec();
        for (old_v, old_c) in &self.updates {
            let (vp, cp) = (old_v[p], old_c[p]);
            for ((v, c), (&old_v, &old_c)) in v.iter_mut().zip(&mut c).zip(old_v.iter().zip(old_c)) {
                *v -= old_v * vp;
                *c -= old_v * cp + old_c * vp;
            }
        }
        let terms = v.iter_mut().zip(&mut c);
        let diagonals = self.z_diagonal.iter_mut().zip(&mut self.b_diagonal);
        for ((v, c), (z, b)) in terms.zip(diagonals) {
            *v *= root;
            *c = *c * root - 0.5 * y * *v;
            *z = (*z - *v * *v).max(1.0);
            *b -= 2.0 * *v * *c;
        }
        self.updates.push((v, c));
        Some(p)
    }
}
