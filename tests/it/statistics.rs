//! Statistics of sites: exact sums, additive, without padding, in flat memory.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use faer::Mat;
use onnx_prune::calibrate::file::{self, Stored};
use onnx_prune::calibrate::{SiteProbe, Timings, Watched, collect};
use onnx_prune::data::{DataOrigin, Padding, Sample, Samples};
use onnx_prune::engine::{Ctx, Engine, EngineInfo, Session, SessionOptions};
use onnx_prune::numerics::{SiteStatistics, Statistics};
use onnx_prune::onnx::proto;
use onnx_prune::progress::Progress;
use onnx_prune::tensor::{Elem, Feeds, Tensor};
use onnx_prune::{Error, Result};

use crate::common::quiet;

// ---------------------------------------------------------------- sums

/// Numbers in -1..1 that look random.
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// Correlated columns about large, different means.
fn rows_with_large_means(t: usize, n: usize) -> Vec<f32> {
    let common = noise(t, 5);
    let own = noise(t * n, 6);
    (0..t * n)
        .map(|i| {
            let (row, column) = (i / n, i % n);
            let mean = 1000.0 + 10.0 * column as f64;
            (mean + 0.5 * common[row] + 0.1 * own[i]) as f32
        })
        .collect()
}

/// Mean, Gram and centred covariance in float64, by definition.
fn reference(x: &[f32], n: usize) -> (Vec<f64>, Mat<f64>, Mat<f64>) {
    let t = x.len() / n;
    let x = Mat::from_fn(t, n, |i, j| f64::from(x[i * n + j]));
    let mean: Vec<f64> = (0..n).map(|j| x.col(j).iter().sum::<f64>() / t as f64).collect();
    let centred = Mat::from_fn(t, n, |i, j| x[(i, j)] - mean[j]);
    (mean, x.transpose() * &x, centred.transpose() * &centred)
}

/// The largest difference relative to the geometric mean of the diagonal.
fn difference(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let n = b.nrows();
    assert_eq!((a.nrows(), a.ncols()), (n, n));
    let mut worst = 0.0f64;
    for i in 0..n {
        for j in 0..n {
            let scale = (b[(i, i)] * b[(j, j)]).sqrt();
            worst = worst.max((a[(i, j)] - b[(i, j)]).abs() / scale);
        }
    }
    worst
}

#[test]
fn large_means_do_not_cancel() {
    // Sizes that fill neither a block of rows nor a panel of columns.
    let (t, n) = (2500, 150);
    let x = rows_with_large_means(t, n);
    let (mean, gram, covariance) = reference(&x, n);
    let mut statistics = SiteStatistics::new(n);
    for chunk in x.chunks(700 * n) {
        statistics.add(chunk, chunk.len() / n, None);
    }
    assert_eq!(statistics.tokens(), t as u64);
    assert_eq!(statistics.width(), n);
    for (a, b) in statistics.mean().iter().zip(&mean) {
        assert!((a - b).abs() < 1e-9 * b.abs());
    }
    // Of float32 products over 1024 rows of numbers of size 0.5. Summed about
    // zero instead, the error would be of the order of 1000^2 / 0.5^2 x 1e-7.
    assert!(difference(&statistics.covariance(), &covariance) < 2e-6);
    assert!(difference(&statistics.gram(), &gram) < 1e-12);
    for (i, square) in statistics.squares().iter().enumerate() {
        assert!((square - gram[(i, i)]).abs() < 1e-12 * gram[(i, i)]);
        assert_eq!(*square, statistics.gram()[(i, i)]);
    }
    for (i, sum) in statistics.sum().iter().enumerate() {
        assert!((sum - mean[i] * t as f64).abs() < 1e-9 * sum);
    }
    let symmetric = statistics.covariance();
    assert_eq!(symmetric, symmetric.transpose().to_owned());
}

/// Multiples of 1/8 below 16: their products and sums are exact in float32.
fn exact_rows(t: usize, n: usize, seed: u64) -> Vec<f32> {
    noise(t * n, seed)
        .into_iter()
        .map(|x| (x * 64.0).round() as f32 / 8.0)
        .collect()
}

/// The largest difference relative to the largest entry.
fn relative(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let size = b.norm_max();
    (a - b).norm_max() / size
}

#[test]
fn shards_add_up_to_the_whole() {
    let (t, n) = (900, 70);
    let mut x = exact_rows(t, n, 11);
    // The mean of the shards differs, and with it their pilots.
    x[300 * n..].iter_mut().for_each(|v| *v += 20.0);
    let (_, gram, covariance) = reference(&x, n);
    let mut whole = SiteStatistics::new(n);
    whole.add(&x, t, None);
    let mut merged = SiteStatistics::new(n);
    for shard in x.chunks(250 * n) {
        let mut own = SiteStatistics::new(n);
        own.add(shard, shard.len() / n, None);
        merged.merge(&own).unwrap();
    }
    merged.merge(&SiteStatistics::new(n)).unwrap();
    assert_eq!(merged.tokens(), whole.tokens());
    for (a, b) in merged.sum().iter().zip(whole.sum()) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} {b}");
    }
    // Pilots are no multiples of 1/8, so that float32 rounds x - p and products.
    assert!(relative(&merged.gram(), &gram) < 1e-6);
    assert!(relative(&merged.covariance(), &covariance) < 1e-6);

    // What merging itself does is exact: the same sums from the same parts.
    let mut parts = [SiteStatistics::new(n), SiteStatistics::new(n)];
    parts[0].add(&x[..250 * n], 250, None);
    parts[1].add(&x[250 * n..], 650, None);
    let sum = parts[0].gram() + parts[1].gram();
    let mut merged = parts[0].clone();
    merged.merge(&parts[1]).unwrap();
    assert!(relative(&merged.gram(), &sum) < 1e-12);
    let mut other_way = parts[1].clone();
    other_way.merge(&parts[0]).unwrap();
    assert!(relative(&other_way.gram(), &sum) < 1e-12);
    assert!(relative(&other_way.covariance(), &merged.covariance()) < 1e-12);
}

#[test]
fn shards_of_exact_numbers_add_up_to_1e12() {
    // Every shard, and the whole, has a mean that is a multiple of 1/8: nothing
    // is rounded in float32, and only the additions in float64 are tested.
    let (t, n) = (1024, 40);
    let half = exact_rows(t / 4, n, 3);
    let mirrored: Vec<f32> = half.iter().map(|x| 4.0 - x).collect();
    let shard = |shift: f32| -> Vec<f32> { half.iter().chain(&mirrored).map(|x| x + shift).collect() };
    let (a, b) = (shard(0.0), shard(8.0));
    let mut whole = SiteStatistics::new(n);
    whole.add(&[a.clone(), b.clone()].concat(), t, None);
    let (mut first, mut second) = (SiteStatistics::new(n), SiteStatistics::new(n));
    first.add(&a, t / 2, None);
    second.add(&b, t / 2, None);
    first.merge(&second).unwrap();
    let (_, gram, covariance) = reference(&[a, b].concat(), n);
    assert!(relative(&first.gram(), &whole.gram()) < 1e-12);
    assert!(relative(&first.covariance(), &whole.covariance()) < 1e-12);
    assert!(relative(&whole.gram(), &gram) < 1e-12);
    assert!(relative(&whole.covariance(), &covariance) < 1e-12);
}

#[test]
fn masked_rows_do_not_count() {
    let (t, n) = (300, 20);
    let x = rows_with_large_means(t, n);
    let keep: Vec<f32> = (0..t).map(|i| if i % 3 != 0 { 1.0 } else { 0.0 }).collect();
    let mut spoiled = x.clone();
    let mut kept = Vec::new();
    for (i, row) in x.chunks(n).enumerate() {
        if keep[i] > 0.0 {
            kept.extend_from_slice(row);
        } else {
            spoiled[i * n..(i + 1) * n].fill(f32::NAN);
        }
    }
    let (mut a, mut b) = (SiteStatistics::new(n), SiteStatistics::new(n));
    a.add(&spoiled, t, Some(&keep));
    b.add(&kept, kept.len() / n, None);
    assert_eq!(a, b);
    assert_eq!(a.tokens(), 200);
}

#[test]
fn a_weight_counts_a_row_so_many_times() {
    let (t, n) = (200, 12);
    let x = rows_with_large_means(t, n);
    let weights: Vec<f32> = (0..t).map(|i| (i % 4) as f32).collect();
    let repeated: Vec<f32> = x
        .chunks(n)
        .zip(&weights)
        .flat_map(|(row, w)| row.repeat(*w as usize))
        .collect();
    let (mut a, mut b) = (SiteStatistics::new(n), SiteStatistics::new(n));
    a.add(&x, t, Some(&weights));
    b.add(&repeated, repeated.len() / n, None);
    assert_eq!((a.tokens(), b.tokens()), (150, 300));
    assert_eq!(a.total(), b.total());
    for (p, q) in a.mean().iter().zip(b.mean()) {
        assert!((p - q).abs() < 1e-9 * q.abs().max(1.0));
    }
    let (p, q) = (a.covariance(), b.covariance());
    let scale = q[(0, 0)];
    for i in 0..n {
        for j in 0..n {
            assert!((p[(i, j)] - q[(i, j)]).abs() < 1e-4 * scale);
        }
    }
}

#[test]
fn threads_do_not_change_the_sums() {
    let (t, n) = (1500, 300);
    let x = rows_with_large_means(t, n);
    let sums = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut statistics = SiteStatistics::new(n);
            statistics.add(&x, t, None);
            statistics
        })
    };
    assert_eq!(sums(1), sums(4));
}

#[test]
fn odd_sizes() {
    let mut none = SiteStatistics::new(0);
    none.add(&[], 3, None);
    assert_eq!((none.tokens(), none.mean().len()), (3, 0));
    let mut empty = SiteStatistics::new(2);
    empty.add(&[], 0, None);
    empty.add(&[1.0, 2.0], 1, Some(&[0.0]));
    empty.add(&[1.0, 2.0], 1, Some(&[]));
    assert_eq!((empty.tokens(), empty.mean()), (0, vec![0.0, 0.0]));
    assert_eq!(empty.covariance(), Mat::<f64>::zeros(2, 2));
    // Fewer numbers than rows: what is there counts.
    empty.add(&[1.0, 2.0, 3.0], 5, None);
    assert_eq!(empty.tokens(), 1);
    assert!(empty.merge(&SiteStatistics::new(3)).is_err());
}

// ---------------------------------------------------------------- runs

const WIDTH: usize = 24;

/// An engine whose values are functions of the token ids. Padding gives
/// `padding`, so that it shows wherever it is counted.
struct Fake {
    padding: f32,
    runs: AtomicUsize,
    outputs: Mutex<Vec<String>>,
    info: EngineInfo,
}

struct FakeSession {
    padding: f32,
    outputs: Vec<String>,
}

impl Fake {
    fn new(padding: f32) -> Self {
        let info = EngineInfo {
            name: "fake",
            version: String::new(),
            device: "cpu".to_owned(),
            threads: 1,
            library: None,
            note: None,
        };
        Self {
            padding,
            runs: AtomicUsize::new(0),
            outputs: Mutex::new(Vec::new()),
            info,
        }
    }
}

impl Engine for Fake {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn optimised_operators(&self, _model: &proto::ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        Ok(None)
    }

    fn session(&self, _model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let outputs = options.outputs.clone().unwrap_or_default();
        self.outputs.lock().unwrap().clone_from(&outputs);
        Ok(Box::new(FakeSession {
            padding: self.padding,
            outputs,
        }))
    }
}

/// What a token is at index `i` of `value`.
fn activation(id: i64, i: usize) -> f32 {
    let x = ((id * 31 + 7) * (i as i64 + 3) % 101) as f32;
    100.0 + x / 16.0
}

impl Session for FakeSession {
    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        let ids = &feeds["input_ids"];
        let (b, s) = (ids.shape[0], ids.shape[1]);
        let id = ids.to_i64().unwrap();
        let mask = feeds["attention_mask"].to_i64().unwrap();
        let at = |row: usize, token: usize, i: usize| match mask[row * s + token] {
            1 => activation(id[row * s + token], i),
            _ => self.padding,
        };
        let make = |shape: Vec<usize>, index: &dyn Fn(&[usize]) -> f32| {
            let n: usize = shape.iter().product();
            let mut data = Vec::with_capacity(n);
            for mut flat in 0..n {
                let mut position = vec![0; shape.len()];
                for (axis, size) in shape.iter().enumerate().rev() {
                    position[axis] = flat % size;
                    flat /= size;
                }
                data.push(index(&position));
            }
            Tensor::f32(shape, data)
        };
        self.outputs
            .iter()
            .map(|name| {
                Ok(match name.as_str() {
                    "bsn" => make(vec![b, s, WIDTH], &|p| at(p[0], p[1], p[2])),
                    "flat" => make(vec![b * s, WIDTH], &|p| at(p[0] / s, p[0] % s, p[1])),
                    "bns" => make(vec![b, WIDTH, s], &|p| at(p[0], p[2], p[1])),
                    "sbn" => make(vec![s, b, WIDTH], &|p| at(p[1], p[0], p[2])),
                    // Two heads that see the same.
                    "bhsn" => make(vec![b, 2, s, WIDTH], &|p| at(p[0], p[2], p[3])),
                    // The first token only, as a pooler sees it.
                    "pooled" => make(vec![b, WIDTH], &|p| at(p[0], 0, p[1])),
                    "half" => {
                        let x = make(vec![b, s, WIDTH], &|p| at(p[0], p[1], p[2])).to_f32();
                        let x = x.into_iter().map(half::f16::from_f32).collect();
                        Tensor::new(vec![b, s, WIDTH], onnx_prune::tensor::Data::F16(x))
                    }
                    "nan" => make(vec![b, s, WIDTH], &|p| match id[p[0] * s + p[1]] {
                        42 if p[2] == 5 => f32::NAN,
                        id => activation(id, p[2]),
                    }),
                    _ => return Err(Error::engine(format!("no value '{name}'"))),
                })
            })
            .collect()
    }
}

fn value(name: &str, dims: [Option<i64>; 2]) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::Dimension;
    use proto::tensor_shape_proto::dimension::Value;
    let names = ["batch", "sequence"];
    let dim = dims.iter().zip(names).map(|(size, name)| Dimension {
        value: Some(size.map_or(Value::DimParam(name.to_owned()), Value::DimValue)),
        ..Default::default()
    });
    let tensor = proto::type_proto::Tensor {
        elem_type: Some(Elem::I64.to_onnx()),
        shape: Some(proto::TensorShapeProto { dim: dim.collect() }),
    };
    proto::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(proto::TypeProto {
            value: Some(proto::type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn model(dims: [Option<i64>; 2]) -> proto::ModelProto {
    let input = vec![value("input_ids", dims), value("attention_mask", dims)];
    let graph = proto::GraphProto {
        input,
        ..Default::default()
    };
    proto::ModelProto {
        graph: Some(graph),
        ..Default::default()
    }
}

/// Samples of varied lengths; `pad_to` keeps padding, before the tokens for
/// every other sample, and marks it.
fn samples(count: usize, pad_to: Option<usize>) -> Samples {
    let mut samples = Vec::new();
    for i in 0..count {
        let length = 1 + i * 5 % 7;
        let ids: Vec<i64> = (0..length).map(|k| (i * 13 + k * 3) as i64 % 40).collect();
        let total = pad_to.unwrap_or(length);
        let start = if i % 2 == 0 { 0 } else { total - length };
        let mut padded = vec![0; total];
        padded[start..start + length].copy_from_slice(&ids);
        let real: Vec<bool> = (0..total).map(|k| (start..start + length).contains(&k)).collect();
        let mask = real.iter().map(|&r| i64::from(r)).collect();
        let feeds = BTreeMap::from([
            ("input_ids".to_owned(), Tensor::i64(vec![1, total], padded)),
            ("attention_mask".to_owned(), Tensor::i64(vec![1, total], mask)),
        ]);
        let token_mask = real.contains(&false).then_some(real);
        samples.push(Sample { feeds, token_mask });
    }
    Samples {
        samples,
        origin: DataOrigin::Synthetic { seed: 0 },
        notes: Vec::new(),
        padding: Padding::No,
    }
}

fn probe(site: &str, value: &str, axis: usize) -> SiteProbe {
    SiteProbe {
        site: site.to_owned(),
        value: value.to_owned(),
        axes: vec![axis],
        width: WIDTH,
    }
}

fn run(
    dims: [Option<i64>; 2],
    probes: &[SiteProbe],
    samples: &Samples,
    rows: usize,
) -> Result<(Statistics, Timings)> {
    let engine = Fake::new(f32::NAN);
    let weights = BTreeMap::new();
    collect(
        quiet(&engine),
        &model(dims),
        Watched {
            probes,
            weights: &weights,
        },
        samples,
        rows,
    )
}

const OPEN: [Option<i64>; 2] = [None, None];

/// The same numbers up to the order of their sums.
fn assert_same(a: &SiteStatistics, b: &SiteStatistics, what: &str) {
    assert_eq!(a.tokens(), b.tokens(), "{what}");
    for (a, b) in a.mean().iter().zip(b.mean()) {
        assert!((a - b).abs() < 1e-9, "{what}: {a} {b}");
    }
    assert!(difference(&a.covariance(), &b.covariance()) < 1e-6, "{what}");
}

/// The statistics of the real tokens of `samples`, by definition.
fn expected(samples: &Samples) -> SiteStatistics {
    let mut rows = Vec::new();
    for sample in &samples.samples {
        let ids = sample.feeds["input_ids"].to_i64().unwrap();
        let mask = sample.feeds["attention_mask"].to_i64().unwrap();
        for (id, _) in ids.iter().zip(&mask).filter(|(_, m)| **m == 1) {
            rows.extend((0..WIDTH).map(|i| activation(*id, i)));
        }
    }
    let mut statistics = SiteStatistics::new(WIDTH);
    statistics.add(&rows, rows.len() / WIDTH, None);
    statistics
}

#[test]
fn padding_never_enters() {
    let probes = [
        probe("bsn", "bsn", 2),
        probe("flat", "flat", 1),
        probe("bns", "bns", 1),
        probe("sbn", "sbn", 2),
        probe("half", "half", 2),
    ];
    let whole = expected(&samples(50, None));
    for (what, dims, samples, rows) in [
        ("cut to length", OPEN, samples(50, None), 4),
        ("one at a time", OPEN, samples(50, None), 1),
        ("padded and marked", OPEN, samples(50, Some(9)), 4),
        (
            "fixed length and batch",
            [Some(8), Some(9)],
            samples(50, Some(9)),
            1,
        ),
        (
            "batch as large as the sequence",
            [Some(9), Some(9)],
            samples(50, Some(9)),
            1,
        ),
    ] {
        // A value with the sequence in front cannot be told from one with the batch
        // in front where both have one size.
        let clear = dims != [Some(9), Some(9)];
        let own: Vec<SiteProbe> = probes
            .iter()
            .filter(|p| clear || p.site != "sbn")
            .cloned()
            .collect();
        let (statistics, timings) = run(dims, &own, &samples, rows).unwrap();
        assert_eq!(statistics.samples, 50);
        assert_eq!(statistics.tokens, whole.tokens(), "{what}");
        assert!(timings.runs >= 50 / 9);
        for (site, own) in &statistics.sites {
            if site == "half" {
                assert_eq!(own.tokens(), whole.tokens());
                continue;
            }
            assert_same(own, &whole, &format!("{what}, {site}"));
        }
    }
}

#[test]
fn axes_besides_the_tokens() {
    let probes = [probe("heads", "bhsn", 3), probe("pooler", "pooled", 1)];
    // Padding behind the tokens only: a pooler sees the first one.
    let mut data = samples(30, Some(8));
    data.samples
        .retain(|s| s.feeds["attention_mask"].to_i64().unwrap()[0] == 1);
    let (statistics, _) = run([Some(4), Some(8)], &probes, &data, 1).unwrap();
    let whole = expected(&data);
    let heads = &statistics.sites["heads"];
    assert_eq!(heads.tokens(), 2 * whole.tokens());
    for (a, b) in heads.mean().iter().zip(whole.mean()) {
        assert!((a - b).abs() < 1e-9);
    }
    let mut first = SiteStatistics::new(WIDTH);
    for sample in &data.samples {
        let id = sample.feeds["input_ids"].to_i64().unwrap()[0];
        let row: Vec<f32> = (0..WIDTH).map(|i| activation(id, i)).collect();
        first.add(&row, 1, None);
    }
    assert_same(&statistics.sites["pooler"], &first, "pooler");
}

#[test]
fn sites_with_one_input_share_it() {
    let engine = Fake::new(f32::NAN);
    let probes = [
        probe("up", "bsn", 2),
        probe("gate", "bsn", 2),
        probe("flat", "flat", 1),
    ];
    let weights = BTreeMap::new();
    let watched = Watched {
        probes: &probes,
        weights: &weights,
    };
    let (statistics, _) = collect(quiet(&engine), &model(OPEN), watched, &samples(10, None), 4).unwrap();
    assert_eq!(*engine.outputs.lock().unwrap(), ["bsn", "flat"]);
    assert_eq!(engine.runs.load(Ordering::Relaxed), 1);
    assert_eq!(statistics.sites["up"], statistics.sites["gate"]);
    assert!(statistics.sites["up"].tokens() > 0);
    let twice = [probe("up", "bsn", 2), probe("up", "flat", 1)];
    let said = run(OPEN, &twice, &samples(3, None), 4).unwrap_err().chain();
    assert!(said.contains("two probes are named 'up'"), "{said}");
}

#[test]
fn bad_values_are_named() {
    let mut data = samples(20, None);
    data.samples[13]
        .feeds
        .insert("input_ids".to_owned(), Tensor::i64(vec![1, 3], vec![1, 42, 2]));
    data.samples[13]
        .feeds
        .insert("attention_mask".to_owned(), Tensor::i64(vec![1, 3], vec![1; 3]));
    let said = run(OPEN, &[probe("layer 3", "nan", 2)], &data, 8).unwrap_err();
    assert_eq!(said.exit_code(), 2);
    let said = said.chain();
    for part in ["'layer 3'", "'nan'", "NaN", "column 5", "sample 13"] {
        assert!(said.contains(part), "{said}");
    }
    let said = run(OPEN, &[probe("x", "bsn", 1)], &data, 8).unwrap_err().chain();
    assert!(
        said.contains("site 'x'") && said.contains("24 entries along the axes [1]"),
        "{said}"
    );
    let said = run(OPEN, &[probe("x", "bsn", 7)], &data, 8).unwrap_err().chain();
    assert!(said.contains("along the axes [7]"), "{said}");
    let said = run(OPEN, &[probe("x", "absent", 1)], &data, 8)
        .unwrap_err()
        .chain();
    assert!(
        said.contains("no value 'absent'") && said.contains("input_ids["),
        "{said}"
    );
    let mut torn = samples(2, None);
    torn.samples[1].feeds.remove("attention_mask");
    let said = run(OPEN, &[probe("x", "bsn", 2)], &torn, 8).unwrap_err().chain();
    assert!(
        said.contains("sample 1") && said.contains("'attention_mask'"),
        "{said}"
    );
}

#[test]
fn progress_counts_samples_and_stops_on_demand() {
    #[derive(Default)]
    struct Count {
        total: AtomicUsize,
        done: AtomicUsize,
        finished: AtomicUsize,
    }
    impl Progress for Count {
        fn start(&self, _what: &str, total: u64) {
            self.total.store(total as usize, Ordering::Relaxed);
        }
        fn step(&self, n: u64) {
            self.done.fetch_add(n as usize, Ordering::Relaxed);
        }
        fn finish(&self) {
            self.finished.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (engine, probes, data) = (Fake::new(0.0), [probe("x", "bsn", 2)], samples(25, Some(9)));
    let (count, cancelled) = (Count::default(), AtomicBool::new(false));
    let weights = BTreeMap::new();
    let watched = Watched {
        probes: &probes,
        weights: &weights,
    };
    let ctx = Ctx {
        engine: &engine,
        progress: &count,
        cancelled: &cancelled,
    };
    collect(ctx, &model([Some(4), Some(9)]), watched, &data, 1).unwrap();
    assert_eq!(count.total.load(Ordering::Relaxed), 25);
    assert_eq!(count.done.load(Ordering::Relaxed), 25);
    assert_eq!(count.finished.load(Ordering::Relaxed), 1);
    cancelled.store(true, Ordering::Relaxed);
    let stopped = collect(ctx, &model(OPEN), watched, &data, 1);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(count.finished.load(Ordering::Relaxed), 2);
}

/// The most memory this process has had, in MiB; `None` where it is not known.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[test]
fn memory_does_not_grow_with_samples() {
    const NAME: &str = "memory_does_not_grow_with_samples";
    // A process of its own: the peak is that of all tests of a process.
    if std::env::var_os(NAME).is_none() {
        let own = std::env::current_exe().unwrap();
        let ended = std::process::Command::new(own)
            .args(["--exact", &format!("statistics::{NAME}"), "--nocapture"])
            .env(NAME, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let probes = [probe("a", "bsn", 2), probe("b", "flat", 1), probe("c", "bns", 1)];
    let tokens = 512;
    let long = |count: usize| {
        let mut data = samples(count, None);
        for (i, sample) in data.samples.iter_mut().enumerate() {
            let ids = (0..tokens).map(|k| (i + k) as i64 % 50).collect();
            sample
                .feeds
                .insert("input_ids".to_owned(), Tensor::i64(vec![1, tokens], ids));
            let mask = Tensor::i64(vec![1, tokens], vec![1; tokens]);
            sample.feeds.insert("attention_mask".to_owned(), mask);
        }
        data
    };
    let (few, many) = (long(40), long(1200));
    run(OPEN, &probes, &few, 8).unwrap();
    let Some(before) = peak_mib() else {
        println!("skipped: the peak of memory is not known here");
        return;
    };
    let (statistics, _) = run(OPEN, &probes, &many, 8).unwrap();
    let after = peak_mib().unwrap();
    assert_eq!(statistics.sites["a"].tokens(), 1200 * tokens as u64);
    // The activations of all samples are 1200 x 512 x 24 x 4 bytes x 3 = 168 MiB.
    assert!(
        after - before < 40,
        "{before} MiB with 40 samples, {after} MiB with 1200"
    );
}

// ---------------------------------------------------------------- files

fn some_statistics() -> Statistics {
    let probes = [probe("encoder/0/ffn", "bsn", 2), probe("head.é \"x\"", "flat", 1)];
    run(OPEN, &probes, &samples(20, None), 4).unwrap().0
}

#[test]
fn files_keep_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let statistics = some_statistics();
    file::save(&path, "sha256:1", &statistics).unwrap();
    let stored = file::load(&path).unwrap();
    assert_eq!(
        stored,
        Stored {
            model: "sha256:1".to_owned(),
            statistics: statistics.clone(),
            samples: Vec::new(),
        }
    );
    let first = std::fs::read(&path).unwrap();
    file::save(&path, "sha256:1", &statistics).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap());
    // Any safetensors reader can open it.
    let read = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(read.tensor("encoder/0/ffn.pilot").unwrap().shape(), [WIDTH]);
}

#[test]
fn samples_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.safetensors");
    let sample = |at: i64, mask: Option<Vec<bool>>| Sample {
        feeds: [
            ("ids".to_owned(), Tensor::i64([1, 2], vec![at, 7])),
            ("x".to_owned(), Tensor::f32([1, 0], vec![])),
        ]
        .into(),
        token_mask: mask,
    };
    let stored = Stored {
        model: "a".to_owned(),
        statistics: some_statistics(),
        samples: vec![sample(1, None), sample(-3, Some(vec![true, false]))],
    };
    stored.save(&path).unwrap();
    assert_eq!(file::load(&path).unwrap(), stored);
    // Cut anywhere it is an error, and never a panic.
    let whole = std::fs::read(&path).unwrap();
    for end in (0..whole.len()).rev().take(200) {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert!(file::load(&path).is_err());
    }
}

#[test]
fn merging_checks_what_is_merged() {
    let stored = Stored {
        model: "a".to_owned(),
        statistics: some_statistics(),
        samples: Vec::new(),
    };
    let mut twice = stored.clone();
    twice.merge(&stored).unwrap();
    assert_eq!(twice.statistics.samples, 40);
    assert_eq!(twice.statistics.tokens, 2 * stored.statistics.tokens);
    let site = "encoder/0/ffn";
    let (one, two) = (&stored.statistics.sites[site], &twice.statistics.sites[site]);
    assert_eq!(two.tokens(), 2 * one.tokens());
    assert!(relative(&two.gram(), &(one.gram() + one.gram())) < 1e-12);

    let mut other = stored.clone();
    other.model = "b".to_owned();
    assert!(
        twice
            .merge(&other)
            .unwrap_err()
            .chain()
            .contains("different models")
    );
    let mut other = stored.clone();
    other.statistics.sites.remove(site);
    assert!(twice.merge(&other).unwrap_err().chain().contains(site));
    let mut other = stored.clone();
    other
        .statistics
        .sites
        .insert(site.to_owned(), SiteStatistics::new(3));
    let before = twice.clone();
    assert!(
        twice
            .merge(&other)
            .unwrap_err()
            .chain()
            .contains("differs in width")
    );
    assert_eq!(twice, before);
}

#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    file::save(&path, "sha256:1", &some_statistics()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        file::load(&path).expect_err("it must be refused").chain()
    };
    for cut in (0..good.len()).step_by(211) {
        assert!(said(&good[..cut]).contains("x.safetensors"));
    }
    assert!(said(&[&good[..], b"more"].concat()).contains("cut short or damaged"));
    assert!(said(&u64::MAX.to_le_bytes()).contains("not a file of statistics"));
    assert!(said(b"\x02\0\0\0\0\0\0\0{}").contains("not a file of statistics"));
    let replaced = |from: &str, to: &str| {
        let at = good
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        let mut bytes = good.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert!(said(&replaced("\\\"version\\\":2", "\\\"version\\\":7")).contains("another version"));
    assert!(said(&replaced("ffn.gram", "ffn.gran")).contains("no gram of site 'encoder/0/ffn'"));
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 8..].copy_from_slice(&f64::NAN.to_le_bytes());
    assert!(said(&nan).contains("NaN"));
    for at in 0..400 {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&path, bytes).unwrap();
        let _ = file::load(&path);
    }
    let absent = folder.path().join("absent");
    assert_eq!(file::load(&absent).unwrap_err().exit_code(), 2);
    assert!(file::save(&folder.path().join("no/such/folder"), "m", &some_statistics()).is_err());
}
