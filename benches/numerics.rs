//! The loops that must run at the speed of a plain matrix product: the Gram
//! matrix of calibration, one R2 iteration of `kcm` and the block elimination of
//! `obs`; and the local fit, which runs in float64. Besides criterion's
//! times each prints its ratio to an f32 product of the same size in the same
//! library, as useful operations per second over the product's.
//!
//! `cargo bench --bench numerics` (threads: `RAYON_NUM_THREADS`).

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{best, say, time};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat};
use onnx_prune::numerics::score::kcm::{gaussian_kernel, representatives};
use onnx_prune::numerics::score::obs::{Elimination, ObsOptions, eliminate};
use onnx_prune::numerics::score::{ScoredSite, Units};
use onnx_prune::numerics::{SiteStatistics, linalg, solve};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Neurons and outputs: the feed-forward sinks of MiniLM and of BERT-base.
const SIZES: [(usize, usize); 2] = [(1536, 384), (3072, 768)];
/// What is named for the Gram matrix, R2 and elimination.
const FAST: &str = "at least 0.60";

fn random(seed: u64, rows: usize, columns: usize) -> Mat<f64> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, columns, |_, _| rng.random_range(-0.5..0.5))
}

fn single(a: &Mat<f64>) -> Mat<f32> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32)
}

/// Prints operations per second of `what` over those of a product.
fn print_ratio(what: &str, operations: f64, n: usize, bar: &str, run: impl FnMut() -> f64 + Send) {
    // As in the pipeline, inside the pool: each call from outside would wait for
    // a thread to wake up.
    rayon::scope(|_| ratio(what, operations, n, bar, run));
}

fn ratio(what: &str, operations: f64, n: usize, bar: &str, run: impl FnMut() -> f64) {
    let a = single(&random(1, n, n));
    let mut out = Mat::<f32>::zeros(n, n);
    let product = || {
        let (out, a) = (out.as_mut(), a.as_ref());
        time(|| matmul(out, Accum::Replace, a, a, 1.0, linalg::par()))
    };
    let (own, product) = best(7, run, product);
    let product_rate = 2.0 * (n as f64).powi(3) / product;
    let what = format!(
        "{what}, n = {n}: {own:.4} s, {:.0} GF/s; product {:.0} GF/s",
        operations / own / 1e9,
        product_rate / 1e9,
    );
    say(&what, operations / own / product_rate, bar);
}

fn gram(c: &mut Criterion) {
    const ROWS: usize = 2048;
    let mut group = c.benchmark_group("gram");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (n, _) in SIZES {
        let x = random(5, n, ROWS);
        let x: Vec<f32> = x
            .col_iter()
            .flat_map(|row| row.iter().map(|v| *v as f32))
            .collect();
        let mut statistics = SiteStatistics::new(n);
        // One triangle.
        let operations = (ROWS * n * (n + 1)) as f64;
        print_ratio("Gram", operations, n, FAST, || {
            time(|| statistics.add(&x, ROWS, None))
        });
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(n.to_string(), |b| b.iter(|| statistics.add(&x, ROWS, None)));
    }
    group.finish();
}

fn r2_iteration(c: &mut Criterion) {
    let mut group = c.benchmark_group("r2 iteration");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (n, d) in SIZES {
        let kernel = gaussian_kernel(&single(&random(2, n, d)), 1.0).expect("finite weights");
        let operations = 2.0 * (n as f64).powi(3);
        // Two counts of iterations apart: the set-up of C falls out.
        print_ratio("R2 iteration", operations, n, FAST, || {
            let run = |iterations| time(|| drop(black_box(representatives(&kernel, 0.0, iterations))));
            (run(4) - run(1)) / 3.0
        });
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(n.to_string(), |b| b.iter(|| representatives(&kernel, 0.0, 1)));
    }
    group.finish();
}

/// A site of n neurons with random statistics of one and a half times as many tokens.
struct Data {
    sigma: Mat<f64>,
    mean: Vec<f64>,
    weight: Mat<f64>,
}

impl Data {
    fn random(seed: u64, n: usize, d: usize) -> Self {
        Self {
            sigma: linalg::outer(random(seed, n, n + n / 2).as_ref()),
            mean: vec![0.0; n],
            weight: random(seed + 1, n, d),
        }
    }

    fn site(&self) -> ScoredSite<'_> {
        let n = self.mean.len();
        ScoredSite {
            sigma: &self.sigma,
            mean: &self.mean,
            tokens: 1.5 * n as f64,
            weight: &self.weight,
            units: Units::single(n),
        }
    }
}

fn block_elimination(c: &mut Criterion) {
    let mut group = c.benchmark_group("block elimination");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (n, d) in SIZES {
        let data = Data::random(3, n, d);
        let site = data.site();
        let options = ObsOptions::default();
        let start = Elimination::new(&site, options.damp).expect("a Gram matrix");
        // Z takes a third of n^3 in its symmetric form, W takes n^2 d; with steps of k
        // rows, solving with their factor takes n^2 k / 2 and n d k more.
        let k = (n / 32) as f64;
        let (square, outputs) = ((n * n) as f64, d as f64);
        let operations = square * (n as f64 / 3.0 + outputs + k / 2.0) + n as f64 * outputs * k;
        // As in a run: every thread has a site of its own.
        print_ratio(
            "block elimination, a site per thread",
            operations,
            n,
            FAST,
            || {
                let threads = rayon::current_num_threads();
                let states: Vec<Elimination> = (0..threads).map(|_| start.clone()).collect();
                let one = |state| linalg::alone(|| drop(black_box(eliminate(state, &site.units, &options))));
                time(|| states.into_par_iter().for_each(one)) / threads as f64
            },
        );
        linalg::alone(|| {
            ratio("block elimination, one thread", operations, n, FAST, || {
                let state = start.clone();
                time(|| drop(black_box(eliminate(state, &site.units, &options))))
            });
        });
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(n.to_string(), |b| {
            b.iter_batched(
                || start.clone(),
                |state| eliminate(state, &site.units, &options),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{n}, with factor and inverse"), |b| {
            b.iter(|| onnx_prune::numerics::score::obs::obs(&site, &options));
        });
    }
    group.finish();
}

fn local_fit(c: &mut Criterion) {
    let mut group = c.benchmark_group("local fit");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (n, d) in SIZES {
        let data = Data::random(6, n, d);
        let site = data.site();
        let kept: Vec<usize> = (0..n).step_by(2).collect();
        let k = kept.len() as f64;
        // The right-hand sides, a factor, two triangular solves.
        let operations = 2.0 * k * (n * d) as f64 + k.powi(3) / 3.0 + 2.0 * k * k * d as f64;
        let fit = || solve::local(&site, &kept, 0.03, true).expect("a fit").error_after;
        let bar = "none; float64 halves it";
        print_ratio("local fit", operations, n, bar, || {
            time(|| {
                black_box(fit());
            })
        });
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(n.to_string(), |b| b.iter(fit));
    }
    group.finish();
}

criterion_group!(benches, gram, r2_iteration, block_elimination, local_fit);
criterion_main!(benches);
