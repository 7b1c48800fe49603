//! Units by their scores.

/// Units by falling score; the earlier of equals first, NaN last.
pub(super) fn best_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| rank(scores[*b]).total_cmp(&rank(scores[*a])).then(a.cmp(b)));
    order
}

/// The `kept` best units.
pub(super) fn best(scores: &[f64], kept: usize) -> Vec<bool> {
    let mut flags = vec![false; scores.len()];
    for unit in best_first(scores).into_iter().take(kept) {
        flags[unit] = true;
    }
    flags
}

pub(super) fn rank(score: f64) -> f64 {
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}
