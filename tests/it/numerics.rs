//! The numerics against naive references: explicit inputs, explicit least
//! squares, every candidate tried.

use faer::Mat;
use faer::linalg::solvers::Solve;
use onnx_prune::numerics::score::baselines::{magnitude, wanda};
use onnx_prune::numerics::score::kcm::{
    KcmOptions, KcmParts, Normalise, gaussian_kernel, kcm, representatives,
};
use onnx_prune::numerics::score::obs::{ObsOptions, obs, obs_at};
use onnx_prune::numerics::score::{Curve, ScoredSite, Units, curve_of_order, order_of_scores};
use onnx_prune::numerics::solve::{Levels, local, rescale};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DAMP: f64 = 0.01;

/// A layer with its inputs at hand.
struct Layer {
    x: Mat<f64>,
    sigma: Mat<f64>,
    mean: Vec<f64>,
    weight: Mat<f64>,
    units: Units,
}

impl Layer {
    fn new(x: Mat<f64>, weight: Mat<f64>, units: Units) -> Self {
        let tokens = x.nrows() as f64;
        let mean: Vec<f64> = x.col_iter().map(|c| c.iter().sum::<f64>() / tokens).collect();
        let centred = Mat::from_fn(x.nrows(), x.ncols(), |t, i| x[(t, i)] - mean[i]);
        let sigma = centred.transpose() * &centred;
        Self {
            x,
            sigma,
            mean,
            weight,
            units,
        }
    }

    /// Correlated inputs of different sizes and means.
    fn random(seed: u64, tokens: usize, units: Units, d: usize) -> Self {
        let n = units.rows.iter().map(Vec::len).sum();
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let mixed = random(rng, tokens, n) * (random(rng, n, n) * 0.7 + Mat::<f64>::identity(n, n));
        let size: Vec<f64> = (0..n).map(|_| rng.random_range(0.2..2.0)).collect();
        let shift: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..2.0)).collect();
        let x = Mat::from_fn(tokens, n, |t, i| mixed[(t, i)] * size[i] + shift[i]);
        Self::new(x, random(rng, n, d), units)
    }

    fn site(&self) -> ScoredSite<'_> {
        ScoredSite {
            sigma: &self.sigma,
            mean: &self.mean,
            tokens: self.x.nrows() as f64,
            weight: &self.weight,
            units: self.units.clone(),
        }
    }

    fn lambda(&self, damp: f64) -> f64 {
        let n = self.sigma.nrows();
        damp * (0..n).map(|i| self.sigma[(i, i)]).sum::<f64>() / n as f64
    }

    /// The re-fit as one ridge regression on explicit inputs with the ridge as
    /// more rows; returns the whole n x d weight and the two terms of the
    /// objective.
    fn refit(&self, kept: &[bool], damp: f64, centred: bool) -> (Mat<f64>, f64, f64) {
        let (tokens, n) = (self.x.nrows(), self.x.ncols());
        let mean = |i: usize| if centred { self.mean[i] } else { 0.0 };
        let x = Mat::from_fn(tokens, n, |t, i| self.x[(t, i)] - mean(i));
        let lambda = if centred {
            self.lambda(damp)
        } else {
            damp * x.squared_norm_l2() / n as f64
        };
        let rows = self.units.kept_rows(kept);
        let tall = Mat::from_fn(tokens + rows.len(), rows.len(), |t, i| {
            if t < tokens {
                x[(t, rows[i])]
            } else if t - tokens == i {
                lambda.sqrt()
            } else {
                0.0
            }
        });
        let y = &x * &self.weight;
        let target = Mat::from_fn(tokens + rows.len(), y.ncols(), |t, j| {
            if t < tokens {
                y[(t, j)]
            } else {
                lambda.sqrt() * self.weight[(rows[t - tokens], j)]
            }
        });
        let normal = tall.transpose() * &tall;
        let fitted = normal
            .llt(faer::Side::Lower)
            .unwrap()
            .solve(tall.transpose() * &target);
        let mut weight = Mat::zeros(n, y.ncols());
        for (i, &row) in rows.iter().enumerate() {
            weight.row_mut(row).copy_from(fitted.row(i));
        }
        let error = (&x * &weight - &y).squared_norm_l2();
        let ridge = lambda * (&self.weight - &weight).squared_norm_l2();
        (weight, error, ridge)
    }

    fn energy(&self, centred: bool) -> f64 {
        self.refit(&vec![false; self.units.len()], DAMP, centred).1
    }
}

fn random(rng: &mut impl Rng, rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0))
}

fn interleaved(count: usize, size: usize) -> Units {
    let rows = (0..count)
        .map(|u| (0..size).map(|r| r * count + u).collect())
        .collect();
    Units { rows }
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!(
        (a - b).abs() <= tolerance * (1.0 + b.abs()),
        "{what}: {a} against {b}"
    );
}

/// Greedy elimination by trying every candidate at every step.
fn brute_force(layer: &Layer) -> Vec<usize> {
    let mut kept = vec![true; layer.units.len()];
    let mut order = Vec::new();
    while order.len() < kept.len() {
        let mut best = (f64::INFINITY, 0);
        for unit in (0..kept.len()).filter(|&u| kept[u]) {
            let mut without = kept.clone();
            without[unit] = false;
            let (_, error, ridge) = layer.refit(&without, DAMP, true);
            if error + ridge < best.0 {
                best = (error + ridge, unit);
            }
        }
        kept[best.1] = false;
        order.push(best.1);
    }
    order
}

fn one_by_one() -> ObsOptions {
    ObsOptions {
        damp: DAMP,
        step: Some(1),
        exact: true,
        ..ObsOptions::default()
    }
}

fn assert_errors_are_refits(layer: &Layer, curve: &Curve, tolerance: f64) {
    let energy = layer.energy(true);
    for removed in 0..=layer.units.len() {
        let (_, error, _) = layer.refit(&curve.kept(removed), DAMP, true);
        close(
            curve.error[removed],
            error / energy,
            tolerance,
            &format!("after {removed}"),
        );
    }
}

#[test]
fn obs_removes_what_trying_every_neuron_would() {
    for seed in 0..4 {
        let layer = Layer::random(seed, 60, Units::single(14), 5);
        let curve = obs(&layer.site(), &one_by_one()).unwrap();
        assert_eq!(curve.order, brute_force(&layer));
        assert_errors_are_refits(&layer, &curve, 1e-4);
    }
}

#[test]
fn obs_removes_what_trying_every_head_would() {
    for (seed, units) in [(5, Units::blocks(6, 4)), (6, interleaved(5, 3))] {
        let layer = Layer::random(seed, 80, units, 9);
        let curve = obs(&layer.site(), &one_by_one()).unwrap();
        assert_eq!(curve.order, brute_force(&layer));
        assert_errors_are_refits(&layer, &curve, 1e-4);
    }
}

#[test]
fn units_of_unequal_size_are_no_special_case() {
    let units = Units {
        rows: vec![vec![0], vec![3, 1], vec![2, 5, 7], vec![4], vec![6]],
    };
    let layer = Layer::random(7, 50, units, 4);
    let curve = obs(&layer.site(), &one_by_one()).unwrap();
    assert_eq!(curve.order, brute_force(&layer));
    assert_errors_are_refits(&layer, &curve, 1e-4);
}

#[test]
fn blocks_lose_next_to_nothing_against_single_steps() {
    let layer = Layer::random(8, 600, Units::single(256), 48);
    let error = |step, pool| {
        let options = ObsOptions {
            damp: DAMP,
            step: Some(step),
            pool,
            ..ObsOptions::default()
        };
        let order = obs(&layer.site(), &options).unwrap().order;
        curve_of_order(&layer.site(), &order, DAMP).unwrap().error
    };
    let single = error(1, 1.0);
    let block = error(16, 1.5);
    for removed in [32, 64, 128, 192, 224] {
        assert!(
            block[removed] <= 1.01 * single[removed],
            "{removed} removed: {} in blocks, {} one by one",
            block[removed],
            single[removed]
        );
    }
}

#[test]
fn errors_inside_a_block_follow_the_exact_curve() {
    let layer = Layer::random(9, 400, Units::single(128), 24);
    let options = ObsOptions {
        damp: DAMP,
        step: Some(8),
        exact: true,
        ..ObsOptions::default()
    };
    let curve = obs(&layer.site(), &options).unwrap();
    let exact = curve_of_order(&layer.site(), &curve.order, DAMP).unwrap();
    for (removed, (a, b)) in curve.error.iter().zip(&exact.error).enumerate() {
        close(*a, *b, 2e-3, &format!("after {removed}"));
    }
    // By default some steps lie between two exact values.
    let options = ObsOptions {
        exact: false,
        ..options
    };
    let curve = obs(&layer.site(), &options).unwrap();
    let mut off = 0;
    for (removed, (a, b)) in curve.error.iter().zip(&exact.error).enumerate() {
        close(*a, *b, 3e-2, &format!("after {removed}"));
        off += usize::from((a - b).abs() > 2e-3 * b);
    }
    assert!(off > 8, "{off} steps");
}

#[test]
fn what_elimination_leaves_of_the_weights_is_the_local_fit() {
    for (seed, units) in [(21, Units::single(96)), (22, interleaved(12, 4))] {
        let layer = Layer::random(seed, 300, units, 20);
        let options = ObsOptions {
            damp: DAMP,
            ..ObsOptions::default()
        };
        let all = layer.units.len();
        let asked = [all / 3, all / 2, all];
        let (curve, levels) = obs_at(&layer.site(), &options, &asked).unwrap();
        assert_eq!(levels.iter().map(|l| l.removed).collect::<Vec<_>>(), asked);
        for level in levels {
            let rows = layer.units.kept_rows(&curve.kept(level.removed));
            let refit = local(&layer.site(), &rows, DAMP, true).unwrap();
            let size = refit.weight.norm_max().max(1e-9);
            assert_eq!(level.weight.shape(), refit.weight.shape());
            let off = (&level.weight - &refit.weight).norm_max();
            assert!(off < 1e-4 * size, "{} gone: {off} of {size}", level.removed);
        }
    }
}

#[test]
fn a_block_never_takes_both_of_two_that_stand_in_for_each_other() {
    // Each neuron twice, and the pairs of equal worth: as scores go, all are
    // free at the start.
    let base = Layer::random(10, 300, Units::single(32), 16);
    let x = Mat::from_fn(300, 64, |t, i| base.x[(t, i / 2)]);
    let weight = Mat::from_fn(64, 16, |i, j| base.weight[(i / 2, j)]);
    let layer = Layer::new(x, weight, Units::single(64));
    let options = ObsOptions {
        damp: 1e-4,
        step: Some(8),
        pool: 2.0,
        ..ObsOptions::default()
    };
    let curve = obs(&layer.site(), &options).unwrap();
    let first: std::collections::BTreeSet<usize> = curve.order[..32].iter().map(|unit| unit / 2).collect();
    assert_eq!(first.len(), 32, "one of each pair goes first: {:?}", curve.order);
    assert!(
        curve.error[32] < 1e-3,
        "the other one stands in: {}",
        curve.error[32]
    );
}

#[test]
fn a_curve_of_any_order_is_the_error_of_its_refits() {
    for (seed, units) in [(11, Units::single(15)), (12, interleaved(5, 3))] {
        let layer = Layer::random(seed, 40, units, 6);
        let scores = magnitude(&layer.weight, &layer.units).unwrap();
        let order = order_of_scores(&scores);
        let curve = curve_of_order(&layer.site(), &order, DAMP).unwrap();
        assert_eq!(curve.order, order);
        assert_errors_are_refits(&layer, &curve, 1e-5);
        let plain = curve_of_order(&layer.site(), &order, 0.0).unwrap();
        for removed in 0..=order.len() {
            let (_, error, _) = layer.refit(&plain.kept(removed), 0.0, true);
            close(
                plain.error[removed],
                error / layer.energy(true),
                1e-9,
                "without a ridge",
            );
        }
    }
}

#[test]
fn curves_run_from_zero_to_one_and_never_fall() {
    for (seed, tokens, damp) in [(13, 100, 0.03), (14, 10, 1e-6), (15, 30, 3.0)] {
        let layer = Layer::random(seed, tokens, Units::single(40), 8);
        let options = ObsOptions {
            damp,
            ..ObsOptions::default()
        };
        for curve in [
            obs(&layer.site(), &options).unwrap(),
            curve_of_order(&layer.site(), &(0..40).collect::<Vec<_>>(), damp).unwrap(),
        ] {
            assert_eq!(curve.error.len(), 41);
            assert_eq!((curve.error[0], curve.error[40]), (0.0, 1.0));
            assert!(curve.error.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}

#[test]
fn local_is_ridge_regression_on_the_inputs() {
    let layer = Layer::random(16, 50, Units::single(12), 5);
    let site = layer.site();
    let kept: Vec<bool> = (0..12).map(|u| u % 3 != 1).collect();
    let rows = layer.units.kept_rows(&kept);
    for with_bias in [true, false] {
        let refit = local(&site, &rows, DAMP, with_bias).unwrap();
        let (weight, error, _) = layer.refit(&kept, DAMP, with_bias);
        for (i, &row) in rows.iter().enumerate() {
            for j in 0..5 {
                close(refit.weight[(i, j)], weight[(row, j)], 1e-9, "weight");
            }
        }
        let energy = layer.energy(with_bias);
        close(refit.error_after, error / energy, 1e-9, "error after");

        // The errors as a user would measure them, bias included.
        let shift = refit.bias_shift.clone().unwrap_or(vec![0.0; 5]);
        assert_eq!(refit.bias_shift.is_some(), with_bias);
        let gone = Mat::from_fn(12, 5, |i, j| if kept[i] { 0.0 } else { layer.weight[(i, j)] });
        let before = (&layer.x * gone).squared_norm_l2();
        let change = &layer.x * (&weight - &layer.weight);
        let after = Mat::from_fn(50, 5, |t, j| change[(t, j)] + shift[j]).squared_norm_l2();
        close(refit.error_before, before / energy, 1e-9, "measured before");
        close(refit.error_after, after / energy, 1e-9, "measured after");
    }
}

#[test]
fn local_keeps_everything_or_nothing() {
    let layer = Layer::random(17, 30, Units::single(6), 3);
    let all: Vec<usize> = (0..6).collect();
    let refit = local(&layer.site(), &all, DAMP, true).unwrap();
    close(refit.error_after, 0.0, 1e-12, "nothing changed");
    assert!((&refit.weight - &layer.weight).norm_l2() < 1e-9);

    let refit = local(&layer.site(), &[], DAMP, true).unwrap();
    assert_eq!(refit.weight.nrows(), 0);
    close(refit.error_after, 1.0, 1e-12, "only the mean is left");
    let mean_of_output = |j: usize| (0..6).map(|i| layer.mean[i] * layer.weight[(i, j)]).sum();
    for (j, &shift) in refit.bias_shift.unwrap().iter().enumerate() {
        close(shift, mean_of_output(j), 1e-12, "bias");
    }
}

#[test]
fn levels_are_local_refits() {
    for (seed, units) in [(18, Units::single(12)), (19, interleaved(4, 3))] {
        let layer = Layer::random(seed, 40, units, 5);
        let site = layer.site();
        let mut order: Vec<usize> = (0..layer.units.len()).collect();
        order.rotate_left(2);
        order.swap(0, 1);
        for with_bias in [true, false] {
            let levels = Levels::new(&site, &order, DAMP, with_bias).unwrap();
            for removed in 0..=order.len() {
                let mut kept = vec![true; order.len()];
                order[..removed].iter().for_each(|&unit| kept[unit] = false);
                let level = levels.at(removed).unwrap();
                let refit = local(&site, &layer.units.kept_rows(&kept), DAMP, with_bias).unwrap();
                assert_eq!(level.weight.nrows(), refit.weight.nrows());
                assert!((&level.weight - &refit.weight).norm_l2() < 1e-9);
                close(level.error_before, refit.error_before, 1e-9, "before");
                close(level.error_after, refit.error_after, 1e-9, "after");
                assert_eq!(level.bias_shift.is_some(), refit.bias_shift.is_some());
                let shifts = level
                    .bias_shift
                    .iter()
                    .flatten()
                    .zip(refit.bias_shift.iter().flatten());
                shifts.for_each(|(a, b)| close(*a, *b, 1e-9, "bias"));
            }
            assert!(levels.at(order.len() + 1).is_err());
        }
    }
}

#[test]
fn rescaling_is_least_squares_on_the_units_outputs() {
    for (seed, units) in [(20, Units::single(10)), (21, interleaved(5, 2))] {
        let layer = Layer::random(seed, 40, units, 6);
        let keep = [0, 2, 3];
        let output = |rows: &[usize]| {
            let part = Mat::from_fn(layer.weight.nrows(), 6, |i, j| {
                if rows.contains(&i) {
                    layer.weight[(i, j)]
                } else {
                    0.0
                }
            });
            &layer.x * part
        };
        // One column per kept unit: its output, flattened.
        let outputs: Vec<Mat<f64>> = keep.iter().map(|&u| output(&layer.units.rows[u])).collect();
        let flat = |m: &Mat<f64>, at: usize| m[(at % 40, at / 40)];
        let design = Mat::from_fn(240, 3, |at, u| flat(&outputs[u], at));
        let y = &layer.x * &layer.weight;
        let target = Mat::from_fn(240, 1, |at, _| flat(&y, at));
        let normal = design.transpose() * &design;
        let scales = normal
            .llt(faer::Side::Lower)
            .unwrap()
            .solve(design.transpose() * &target);
        let error = (&design * &scales - &target).squared_norm_l2() / layer.energy(true);
        let ones = Mat::<f64>::full(3, 1, 1.0);
        let before = (&design * ones - &target).squared_norm_l2() / layer.energy(true);

        let refit = rescale(&layer.site(), &keep, 0.0).unwrap();
        close(refit.error_after, error, 1e-9, "after");
        close(refit.error_before, before, 1e-9, "before");
        assert!(refit.bias_shift.is_none());
        let mut rows: Vec<(usize, f64)> = (0..)
            .zip(keep)
            .flat_map(|(i, u)| layer.units.rows[u].iter().map(move |&row| (row, i)))
            .map(|(row, i)| (row, scales[(i, 0)]))
            .collect();
        rows.sort_by_key(|&(row, _)| row);
        assert_eq!(refit.weight.nrows(), rows.len());
        for (i, &(row, scale)) in rows.iter().enumerate() {
            for j in 0..6 {
                close(
                    refit.weight[(i, j)],
                    scale * layer.weight[(row, j)],
                    1e-9,
                    "weight",
                );
            }
        }
    }
}

#[test]
fn degenerate_statistics_still_give_an_answer() {
    // Fewer tokens than units, a constant unit, a dead one, a copy.
    let mut layer = Layer::random(22, 6, Units::single(10), 4);
    for t in 0..6 {
        layer.x[(t, 3)] = 5.0;
        layer.x[(t, 4)] = 0.0;
        layer.x[(t, 6)] = layer.x[(t, 7)];
    }
    let layer = Layer::new(layer.x, layer.weight, layer.units);
    for damp in [0.0, 1e-9, DAMP] {
        let options = ObsOptions {
            damp,
            step: Some(1),
            exact: true,
            ..ObsOptions::default()
        };
        let curve = obs(&layer.site(), &options).unwrap();
        let first: Vec<usize> = curve.order.clone();
        assert!(curve.error.iter().all(|e| e.is_finite()), "{curve:?}");
        // The bias absorbs units that do not vary, whatever the ridge.
        let mut constant_first = vec![3, 4];
        constant_first.extend(first.iter().filter(|u| !matches!(u, 3 | 4)));
        let constant = curve_of_order(&layer.site(), &constant_first, damp).unwrap();
        if damp == DAMP {
            assert!(constant.error[2] <= constant.error[3], "{:?}", constant.error);
            let without: Vec<usize> = (0..10).filter(|u| !matches!(u, 3 | 4)).collect();
            let refit = local(&layer.site(), &without, damp, true).unwrap();
            assert!(
                refit.error_after < 1e-6,
                "constant units cost nothing: {}",
                refit.error_after
            );
        }
        let ordered = curve_of_order(&layer.site(), &curve.order, damp).unwrap();
        assert!(ordered.error.iter().all(|e| e.is_finite()));
        let refit = local(&layer.site(), &[0, 1, 6, 7], damp, true).unwrap();
        assert!(refit.error_after.is_finite() && refit.weight.norm_l2().is_finite());
        assert!(rescale(&layer.site(), &[3, 4, 6, 7], damp).is_ok());
    }
}

#[test]
fn a_constant_output_costs_nothing() {
    let x = Mat::from_fn(9, 4, |_, i| i as f64);
    let layer = Layer::new(x, Mat::from_fn(4, 2, |i, j| (i + j) as f64), Units::single(4));
    for curve in [
        obs(&layer.site(), &ObsOptions::default()).unwrap(),
        curve_of_order(&layer.site(), &[0, 1, 2, 3], DAMP).unwrap(),
    ] {
        assert_eq!(curve.error, [0.0; 5]);
    }
    let refit = local(&layer.site(), &[1], DAMP, true).unwrap();
    assert_eq!(refit.error_after, 0.0);
}

#[test]
fn one_unit_is_enough() {
    let layer = Layer::random(23, 20, Units::blocks(1, 1), 3);
    let curve = obs(&layer.site(), &ObsOptions::default()).unwrap();
    assert_eq!((curve.order, curve.error), (vec![0], vec![0.0, 1.0]));
    let layer = Layer::random(23, 20, Units::blocks(1, 8), 3);
    let curve = obs(&layer.site(), &ObsOptions::default()).unwrap();
    assert_eq!((curve.order, curve.error), (vec![0], vec![0.0, 1.0]));
}

#[test]
fn bad_input_is_an_error_that_says_so() {
    let layer = Layer::random(24, 20, Units::single(5), 3);
    let fails = |site: &ScoredSite, says: &str| {
        let order: Vec<usize> = (0..site.units.len()).collect();
        for error in [
            obs(site, &ObsOptions::default()).err(),
            curve_of_order(site, &order, DAMP).err(),
            local(site, &[0, 1], DAMP, true).err(),
            rescale(site, &[0, 1], DAMP).err(),
            Levels::new(site, &order, DAMP, true).err(),
        ] {
            let message = error.expect("an error").chain();
            assert!(message.contains(says), "{message}");
        }
    };
    let nan = Mat::from_fn(5, 5, |i, j| {
        if (i, j) == (4, 2) {
            f64::NAN
        } else {
            layer.sigma[(i, j)]
        }
    });
    fails(
        &ScoredSite {
            sigma: &nan,
            ..layer.site()
        },
        "NaN",
    );
    let infinite = Mat::from_fn(5, 3, |_, _| f64::INFINITY);
    fails(
        &ScoredSite {
            weight: &infinite,
            ..layer.site()
        },
        "infinite",
    );
    fails(
        &ScoredSite {
            tokens: 0.0,
            ..layer.site()
        },
        "0 tokens",
    );
    fails(
        &ScoredSite {
            mean: &[0.0; 4],
            ..layer.site()
        },
        "do not fit",
    );
    fails(
        &ScoredSite {
            units: Units::single(4),
            ..layer.site()
        },
        "row 4 is in no unit",
    );
    fails(
        &ScoredSite {
            units: Units {
                rows: vec![vec![0, 1, 2, 3, 4], vec![4]],
            },
            ..layer.site()
        },
        "two units",
    );
    let negative = Mat::from_fn(5, 5, |i, j| {
        if i == j {
            if i < 4 { 1.0 } else { -3.0 }
        } else {
            0.0
        }
    });
    let site = ScoredSite {
        sigma: &negative,
        ..layer.site()
    };
    assert!(obs(&site, &ObsOptions::default()).is_err());

    assert!(local(&layer.site(), &[1, 0], DAMP, true).is_err());
    assert!(local(&layer.site(), &[5], DAMP, true).is_err());
    assert!(local(&layer.site(), &[0], f64::NAN, true).is_err());
    assert!(curve_of_order(&layer.site(), &[0, 1, 2, 3, 3], DAMP).is_err());
    assert!(curve_of_order(&layer.site(), &[0, 1], DAMP).is_err());
    assert!(rescale(&layer.site(), &[9], DAMP).is_err());
}

#[test]
fn the_same_threads_give_the_same_bytes() {
    let layer = Layer::random(25, 900, Units::single(400), 64);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let curve = obs(&layer.site(), &ObsOptions::default()).unwrap();
            let rows = layer.units.kept_rows(&curve.kept(200));
            (curve, local(&layer.site(), &rows, DAMP, true).unwrap().weight)
        })
    };
    for threads in [1, 2, 3] {
        let (first, second) = (run(threads), run(threads));
        assert!(first == second, "{threads} threads");
    }
}

fn weights(seed: u64, n: usize, d: usize) -> Mat<f32> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(n, d, |_, _| rng.random_range(-0.5..0.5))
}

/// The publication's iteration, entry by entry.
fn naive_r2(weight: &Mat<f32>, sigma: f64, alpha: f64, bound: usize) -> (Vec<f64>, usize) {
    let n = weight.nrows();
    let kernel = Mat::from_fn(n, n, |i, j| {
        let distance: f64 = (0..weight.ncols())
            .map(|k| f64::from(weight[(i, k)] - weight[(j, k)]).powi(2))
            .sum();
        (-distance / (sigma * sigma)).exp()
    });
    let mut c = Mat::<f64>::full(n, n, 1.0 / n as f64);
    let mut iterations = 0;
    loop {
        let product = &kernel * &c;
        let next = Mat::from_fn(n, n, |i, j| c[(i, j)] * (kernel[(i, j)] / product[(i, j)]).sqrt());
        let change: f64 = (&next - &c).norm_l1();
        let total: f64 = c.norm_l1();
        c = next;
        iterations += 1;
        if change / total < alpha || iterations == bound {
            return ((0..n).map(|i| c[(i, i)]).collect(), iterations);
        }
    }
}

#[test]
fn r2_is_the_publications_iteration() {
    // 600 columns are more than one panel.
    for (n, d, sigma, alpha) in [(40, 6, 1.0, 0.01), (33, 12, 0.7, 1e-4), (600, 8, 1.0, 0.05)] {
        let weight = weights(n as u64, n, d);
        let (expected, iterations) = naive_r2(&weight, sigma, alpha, 50);
        let options = KcmOptions {
            sigma,
            alpha,
            max_iterations: 50,
            parts: KcmParts::R2,
            ..KcmOptions::default()
        };
        let scores = kcm(&weight, &[], &options).unwrap();
        assert_eq!(scores.iterations, iterations);
        for (a, b) in scores.r2.iter().zip(&expected) {
            close(*a, *b, 1e-4, "R2");
        }
        assert!(scores.d2.is_empty());
    }
}

#[test]
fn r2_stops_where_it_is_told_to() {
    let weight = weights(1, 30, 5);
    let kernel = gaussian_kernel(&weight, 1.0).unwrap();
    let (_, iterations, converged) = representatives(&kernel, 0.0, 7);
    assert_eq!((iterations, converged), (7, false));
    let (start, iterations, converged) = representatives(&kernel, 0.01, 0);
    assert_eq!((iterations, converged), (0, false));
    assert!(start.iter().all(|&c| (c - 1.0 / 30.0).abs() < 1e-8));
    let (_, _, converged) = representatives(&kernel, 0.01, 1000);
    assert!(converged);
}

#[test]
fn r2_of_neurons_far_apart_goes_to_the_identity_and_of_equal_ones_stays_shared() {
    // K = I: zeros stay zeros, the diagonal goes to its fixed point 1.
    let far = Mat::from_fn(6, 6, |i, j| if i == j { 100.0_f32 } else { 0.0 });
    let kernel = gaussian_kernel(&far, 1.0).unwrap();
    assert_eq!(kernel[(0, 1)], 0.0);
    let (r2, _, converged) = representatives(&kernel, 1e-4, 200);
    assert!(converged && r2.iter().all(|&x| (x - 1.0).abs() < 1e-3), "{r2:?}");
    // K = 1: the start is a fixed point.
    let equal = Mat::<f32>::full(5, 3, 0.3);
    let kernel = gaussian_kernel(&equal, 1.0).unwrap();
    let (r2, iterations, _) = representatives(&kernel, 0.01, 50);
    assert_eq!(iterations, 1);
    assert!(r2.iter().all(|&x| (x - 0.2).abs() < 1e-6));
    // Constant scores normalise to 1.
    let scores = kcm(&equal, &[4.0; 5], &KcmOptions::default()).unwrap();
    assert_eq!(scores.scores, [1.0; 5]);
}

#[test]
fn kcm_merges_what_it_is_told_to() {
    let weight = weights(2, 20, 4);
    let squares: Vec<f64> = (0..20).map(|i| f64::from(i * i)).collect();
    let run = |parts, normalise| {
        kcm(
            &weight,
            &squares,
            &KcmOptions {
                parts,
                normalise,
                ..KcmOptions::default()
            },
        )
        .unwrap()
    };
    let both = run(KcmParts::Both, Normalise::MinMax);
    let (r2, d2) = (
        run(KcmParts::R2, Normalise::MinMax),
        run(KcmParts::D2, Normalise::MinMax),
    );
    assert_eq!(d2.iterations, 0);
    for i in 0..20 {
        close(d2.d2[i], i as f64, 1e-12, "D2");
        close(d2.scores[i], i as f64 / 19.0, 1e-12, "normalised D2");
        close(both.scores[i], r2.scores[i] * d2.scores[i], 1e-12, "product");
    }
    let least = r2.scores.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(least, 0.0);
    assert_eq!(run(KcmParts::D2, Normalise::None).scores, d2.d2);
    close(
        run(KcmParts::D2, Normalise::Max).scores[10],
        10.0 / 19.0,
        1e-12,
        "by the greatest",
    );
    let shares = run(KcmParts::D2, Normalise::Sum).scores;
    close(shares.iter().sum(), 1.0, 1e-12, "shares");
    close(shares[10], 10.0 / 190.0, 1e-12, "a share");
}

#[test]
fn kcm_normalisation_is_named_on_the_command_line() {
    let names: Vec<&str> = Normalise::WORDS.to_vec();
    assert_eq!(names, ["none", "minmax", "max", "sum"]);
    assert_eq!(
        serde_json::to_value(Normalise::default()).unwrap(),
        serde_json::json!("minmax")
    );
}

#[test]
fn scores_without_a_scale_are_one_and_stay_finite() {
    let weight = weights(5, 6, 3);
    for normalise in [Normalise::MinMax, Normalise::Max, Normalise::Sum] {
        let options = KcmOptions {
            parts: KcmParts::D2,
            normalise,
            ..KcmOptions::default()
        };
        let scores = kcm(&weight, &[0.0; 6], &options).unwrap().scores;
        assert_eq!(scores, [1.0; 6], "{normalise:?}");
    }
}

#[test]
fn kcm_refuses_bad_numbers() {
    let weight = weights(3, 8, 4);
    let options = KcmOptions::default();
    assert!(kcm(&weight, &[1.0; 7], &options).is_err());
    assert!(kcm(&weight, &[f64::NAN; 8], &options).is_err());
    assert!(
        kcm(
            &weight,
            &[1.0; 8],
            &KcmOptions {
                sigma: 0.0,
                ..options
            }
        )
        .is_err()
    );
    for alpha in [-0.1, f64::NAN] {
        assert!(kcm(&weight, &[1.0; 8], &KcmOptions { alpha, ..options }).is_err());
    }
    let nan = Mat::<f32>::full(8, 4, f32::NAN);
    assert!(kcm(&nan, &[1.0; 8], &options).is_err());
    let one = kcm(&weights(4, 1, 4), &[2.0], &options).unwrap();
    assert_eq!(one.scores, [1.0]);
}

#[test]
fn baselines_are_norms() {
    let weight = Mat::from_fn(4, 2, |i, j| (i + j) as f64);
    let squares = [1.0, 4.0, 9.0, 16.0];
    let single = Units::single(4);
    let pairs = interleaved(2, 2);
    let norm = |row: usize| ((row * row + (row + 1) * (row + 1)) as f64).sqrt();
    let by_row = magnitude(&weight, &single).unwrap();
    let by_activation = wanda(&weight, &squares, &single).unwrap();
    for row in 0..4 {
        close(by_row[row], norm(row), 1e-12, "magnitude");
        close(by_activation[row], norm(row) * (row + 1) as f64, 1e-12, "wanda");
    }
    let by_pair = magnitude(&weight, &pairs).unwrap();
    close(by_pair[1], norm(1).hypot(norm(3)), 1e-12, "a unit of two rows");
    // A head: the norm over its rows of row norm times activation norm.
    let by_head = wanda(&weight, &squares, &pairs).unwrap();
    close(
        by_head[0],
        norm(0).hypot(norm(2) * 3.0),
        1e-12,
        "wanda of a unit of two rows",
    );
    assert!(wanda(&weight, &squares[..3], &single).is_err());
    assert!(magnitude(&weight, &Units::single(3)).is_err());
}
