//! The smallest model within a bound, found by trying budgets.
//!
//! Divergence grows as the budget shrinks, but not strictly: allocation is
//! discrete, and what is measured on few samples has noise. So no curve is
//! fitted and nothing is assumed beyond "smaller is usually worse": every
//! fraction that is returned was tried, and its divergence is within the bound.

use crate::{Error, Result};

/// One budget that was tried.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct BisectPoint {
    /// The fraction of the prunable blocks that was asked for.
    pub fraction: f64,
    /// What it cost in divergence; NaN where the model's outputs are.
    pub divergence: f64,
}

/// What [`bisect`] found.
#[derive(Debug, Clone)]
pub struct Found<T> {
    /// The smallest fraction tried whose divergence is within the bound.
    pub point: BisectPoint,
    /// What was made at that fraction.
    pub made: T,
    /// All that was tried, in that order.
    pub tried: Vec<BisectPoint>,
}

/// Finds the smallest fraction in `[low, high]` whose divergence is at most
/// `max_drop`, to within `(high - low) / 2^steps`.
///
/// `try_at` is called with at most `steps + 2` different fractions: `low` (all
/// is done where that is within the bound), `high`, and then midpoints between
/// the largest fraction that was too small and the smallest that was not. It
/// returns the divergence and anything that is to be kept for the best fraction;
/// what belongs to worse ones is dropped on the way. A divergence that is NaN is
/// not within any bound.
///
/// # Errors
/// Those of `try_at`, bad bounds, and [`Error::Unmet`] when even `high` is not
/// within the bound.
pub fn bisect<T>(
    low: f64,
    high: f64,
    steps: usize,
    max_drop: f64,
    mut try_at: impl FnMut(f64) -> Result<(f64, T)>,
) -> Result<Found<T>> {
    if !(low.is_finite() && high.is_finite() && low <= high) {
        return Err(Error::input(format!(
            "there is no fraction between {low} and {high}"
        )));
    }
    if max_drop.is_nan() || max_drop < 0.0 {
        return Err(Error::input(format!(
            "--max-drop is {max_drop}: it is a divergence, at least 0"
        )));
    }
    let mut tried = Vec::new();
    let mut within = |fraction: f64| -> Result<Option<(BisectPoint, T)>> {
        let (divergence, made) = try_at(fraction)?;
        let point = BisectPoint { fraction, divergence };
        tried.push(point);
        Ok((divergence <= max_drop).then_some((point, made)))
    };
    let mut best = within(low)?;
    if best.is_none() && high > low {
        best = within(high)?;
        let (mut too_small, mut enough) = (low, high);
        for _ in 0..steps {
            let middle = 0.5 * (too_small + enough);
            // Neighbours in floating point have nothing between them.
            if best.is_none() || middle <= too_small || middle >= enough {
                break;
            }
            match within(middle)? {
                Some(found) => {
                    enough = middle;
                    best = Some(found);
                }
                None => too_small = middle,
            }
        }
    }
    match best {
        Some((point, made)) => Ok(Found { point, made, tried }),
        None => {
            let last = tried.last().map_or(f64::NAN, |p| p.divergence);
            Err(Error::Unmet(format!(
                "--max-drop {max_drop} cannot be met: keeping {high} of the prunable blocks already costs \
                 {last:.3e}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_fraction_is_taken_at_once_where_it_will_do() {
        let found = bisect(0.2, 1.0, 10, 0.5, |f| Ok((0.1, f))).expect("found");
        assert_eq!((found.point.fraction, found.tried.len()), (0.2, 1));
    }

    #[test]
    fn a_bound_that_even_the_largest_misses_is_unmet() {
        let error = bisect(0.2, 0.9, 10, 0.1, |_| Ok((0.5, ()))).expect_err("unmet");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("--max-drop 0.1"), "{error}");
    }

    #[test]
    fn bad_bounds_are_errors_of_usage() {
        for (low, high, drop) in [
            (1.0, 0.5, 0.1),
            (f64::NAN, 1.0, 0.1),
            (0.1, 1.0, -0.1),
            (0.1, 1.0, f64::NAN),
        ] {
            let error = bisect(low, high, 5, drop, |_| Ok((0.0, ()))).expect_err("bad");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn errors_pass_through() {
        let error = bisect(0.1, 1.0, 5, 0.1, |_| -> Result<(f64, ())> {
            Err(Error::Interrupted)
        });
        assert_eq!(error.map(|_| ()).map_err(|e| e.exit_code()), Err(130));
    }

    #[test]
    fn an_interval_of_one_point_is_tried_once() {
        let error = bisect(0.5, 0.5, 5, 0.1, |_| Ok((1.0, ()))).expect_err("unmet");
        assert_eq!(error.exit_code(), 1);
        let found = bisect(0.5, 0.5, 5, 1.0, |_| Ok((1.0, ()))).expect("found");
        assert_eq!(found.tried.len(), 1);
    }

    #[test]
    fn nan_is_not_within_the_bound() {
        let at = |f: f64| if f < 0.5 { f64::NAN } else { 0.0 };
        let found = bisect(0.0, 1.0, 8, 1.0, |f| Ok((at(f), f))).expect("found");
        assert!((0.5..0.51).contains(&found.made), "{}", found.made);
    }

    proptest! {
        /// For a divergence that falls as the fraction grows, the answer is the
        /// threshold to within the promised distance.
        #[test]
        fn monotone(edge in 0.01f64..0.99, steps in 1usize..20) {
            let found = bisect(0.0, 1.0, steps, 0.5, |f| Ok((1.0 / (1.0 + f / edge), f)));
            let found = found.expect("the largest is within");
            let distance = found.point.fraction - edge;
            prop_assert!(distance >= -1e-12 && distance <= 0.5f64.powi(steps as i32) + 1e-12);
            prop_assert_eq!(found.made, found.point.fraction);
        }

        /// For any divergence whatever: what is returned was tried, is within the
        /// bound, nothing smaller that was tried is, and the calls are bounded.
        #[test]
        fn any(
            table in proptest::collection::vec(prop_oneof![0.0f64..2.0, Just(f64::NAN)], 1..40),
            low in 0.0f64..0.9,
            steps in 0usize..12,
            max_drop in 0.0f64..2.0,
        ) {
            let at = |f: f64| table[((f * table.len() as f64) as usize).min(table.len() - 1)];
            let mut asked = Vec::new();
            let result = bisect(low, 1.0, steps, max_drop, |f| {
                asked.push(f);
                Ok((at(f), f))
            });
            prop_assert!(asked.len() <= steps + 2);
            prop_assert!(asked.iter().all(|f| (low..=1.0).contains(f)));
            let smallest = asked
                .iter()
                .copied()
                .filter(|f| at(*f) <= max_drop)
                .reduce(f64::min);
            match result {
                Ok(found) => {
                    prop_assert_eq!(Some(found.point.fraction), smallest);
                    prop_assert_eq!(found.point.divergence, at(found.point.fraction));
                    prop_assert_eq!(found.made, found.point.fraction);
                    let tried: Vec<f64> = found.tried.iter().map(|p| p.fraction).collect();
                    prop_assert_eq!(tried, asked);
                }
                Err(error) => {
                    prop_assert_eq!(error.exit_code(), 1);
                    prop_assert_eq!(smallest, None);
                }
            }
        }
    }
}
