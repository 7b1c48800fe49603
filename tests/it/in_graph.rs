//! Sums that nodes of the model make are those that the host makes, and so is what
//! follows from them.
//!
//! Only a device with a memory of its own has the sums made there; here the engines
//! on the CPU are told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use faer::Mat;
use onnx_prune::Pruner;
use onnx_prune::budget::Goal;
use onnx_prune::calibrate::{SiteProbe, Watched, collect};
use onnx_prune::data::PositionWeights;
use onnx_prune::engine::{
    self, Device, Engine, EngineChoice, EngineInfo, EngineOptions, Session, SessionOptions,
};
use onnx_prune::numerics::Statistics;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::pipeline::{Planner, Source, calibrate, rank, search};
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{Error, Result, onnx};

use crate::common::quiet;

/// An engine that has sums made by nodes, and counts the runs that make some.
struct Reducing {
    inner: Box<dyn Engine>,
    runs: Arc<AtomicUsize>,
}

impl Engine for Reducing {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn reduces(&self) -> bool {
        true
    }

    fn session(&self, model: &ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        let inner = self.inner.session(model, options)?;
        let sums = inner.outputs().iter().any(|name| name.starts_with("sums"));
        let runs = sums.then(|| Arc::clone(&self.runs));
        Ok(Box::new(Counted { inner, runs }))
    }

    fn optimised_operators(&self, model: &ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        self.inner.optimised_operators(model)
    }
}

struct Counted {
    inner: Box<dyn Session>,
    runs: Option<Arc<AtomicUsize>>,
}

impl Session for Counted {
    fn outputs(&self) -> &[String] {
        self.inner.outputs()
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        if let Some(runs) = &self.runs {
            runs.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.run(feeds)
    }
}

fn chosen(engine: EngineChoice) -> Option<Box<dyn Engine>> {
    let options = EngineOptions {
        engine,
        threads: Some(1),
        ..EngineOptions::default()
    };
    engine::choose(&options)
        .map_err(|e| eprintln!("skipped: {}", e.chain()))
        .ok()
}

fn reducing(engine: EngineChoice) -> Option<(Reducing, Arc<AtomicUsize>)> {
    let runs = Arc::new(AtomicUsize::new(0));
    let inner = chosen(engine)?;
    let own = Arc::clone(&runs);
    Some((Reducing { inner, runs: own }, runs))
}

fn pruner(model: &Path, engine: EngineChoice) -> Pruner {
    Pruner::new(model)
        .engine(engine)
        .device(Device::Cpu)
        .threads(1usize)
}

fn probes(source: &Source) -> Vec<SiteProbe> {
    let sites = source.targets.iter().flat_map(|c| &c.sites);
    sites.filter_map(|s| s.probe.clone()).collect()
}

/// The greatest difference as a fraction of the greatest value.
fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let pairs = a.iter().zip(b);
    pairs.fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn flat(m: &Mat<f64>) -> Vec<f64> {
    m.col_iter()
        .flat_map(|c| c.iter().copied().collect::<Vec<_>>())
        .collect()
}

/// The greatest relative difference of means, Gram matrices and covariances.
fn difference(a: &Statistics, b: &Statistics) -> f64 {
    assert!(a.sites.keys().eq(b.sites.keys()));
    assert_eq!((a.samples, a.tokens), (b.samples, b.tokens));
    let mut worst = 0.0f64;
    for (a, b) in a.sites.values().zip(b.sites.values()) {
        assert_eq!(a.tokens(), b.tokens());
        assert!((a.total() - b.total()).abs() <= 1e-6 * b.total());
        worst = worst
            .max(relative(&a.mean(), &b.mean()))
            .max(relative(&flat(&a.gram()), &flat(&b.gram())))
            .max(relative(&flat(&a.covariance()), &flat(&b.covariance())));
    }
    worst
}

/// Weights that differ from site to site; the last rows of some count for nothing.
fn some_weights(probes: &[SiteProbe]) -> BTreeMap<String, PositionWeights> {
    let some = probes.iter().enumerate().filter(|(at, _)| at % 3 != 0);
    let weights = |at: usize| PositionWeights {
        first: 1.0,
        inner: 0.3,
        last: if at % 3 == 1 { 0.0 } else { 0.7 },
    };
    some.map(|(at, p)| (p.site.clone(), weights(at))).collect()
}

/// Collects on the host and in the graph; the difference and the runs in the graph.
fn both(source: &Source, engine: EngineChoice, rows: usize) -> Result<(f64, usize)> {
    let probes = probes(source);
    let weights = some_weights(&probes);
    let (own, runs) = reducing(engine).ok_or_else(|| Error::engine("it is not there"))?;
    let collected = |engine: &dyn Engine| {
        let watched = Watched {
            probes: &probes,
            weights: &weights,
        };
        collect(quiet(engine), source.dense(), watched, &source.samples, rows)
    };
    let host = collected(own.inner.as_ref())?.0;
    let graph = collected(&own)?.0;
    Ok((difference(&graph, &host), runs.load(Ordering::Relaxed)))
}

/// How far apart the sums may be: of float32, and of models that compute in float16,
/// which the engine rounds elsewhere once nodes are behind their values.
fn tolerance(name: &str) -> f64 {
    if name.ends_with("-fp16") { 1e-3 } else { 1e-5 }
}

fn zoo(engine: EngineChoice, cases: &[PathBuf]) {
    if chosen(engine).is_none() {
        return;
    }
    let (mut compared, mut failed) = (0, Vec::new());
    for case in cases {
        let name = crate::common::name(case);
        let pruner = pruner(&case.join("model.onnx"), engine).sample_count(24);
        // What cannot be pruned, or not run by this engine, is tested elsewhere.
        let Ok(source) = pruner.source() else { continue };
        let Ok((difference, runs)) = both(&source, engine, 4) else {
            continue;
        };
        compared += 1;
        println!("{name}: {difference:.1e} in {runs} runs");
        if runs == 0 || difference > tolerance(&name) {
            failed.push(format!("{name}: {difference:e} in {runs} runs"));
        }
    }
    assert!(failed.is_empty(), "of {compared}: {failed:#?}");
    assert!(compared > 5 || std::env::var_os("CASE").is_some(), "{compared}");
}

#[test]
fn sums_of_the_zoo_are_the_same_in_onnx_runtime() {
    zoo(EngineChoice::Ort, &crate::common::cases());
}

#[test]
fn sums_of_the_zoo_are_the_same_in_tract() {
    // It takes its time to prepare a run; the cases of the repository will do.
    let own = crate::common::fixture("zoo");
    let cases: Vec<PathBuf> = (crate::common::cases().into_iter())
        .filter(|c| c.starts_with(&own))
        .collect();
    zoo(EngineChoice::Tract, &cases);
}

#[test]
fn padded_texts_of_many_lengths_give_the_same_sums() {
    for engine in [EngineChoice::Ort, EngineChoice::Tract] {
        if chosen(engine).is_none() {
            continue;
        }
        let pruner = pruner(&crate::common::fixture("text-language/model.onnx"), engine)
            .data([crate::common::fixture("text-language/calibration.txt")])
            .tokenizer(crate::common::fixture("text-language/tokenizer.json"))
            .sample_count(96);
        let source = pruner.source().expect("a model and texts");
        let (difference, runs) = both(&source, engine, 4).expect("runs");
        assert!(difference <= 1e-5, "{engine}: {difference:e}");
        assert!(runs >= 4, "{engine}: {runs}");
    }
}

/// The float constants by name.
fn weights(model: &ModelProto) -> BTreeMap<String, Vec<f64>> {
    let constants = model.graph.iter().flat_map(|g| &g.initializer);
    let floats = constants.filter_map(|t| {
        let tensor = onnx::tensor(t).ok().filter(|t| t.elem().is_float())?;
        let values = tensor.to_f32().into_iter().map(f64::from).collect();
        Some((t.name().to_owned(), values))
    });
    floats.collect()
}

#[test]
fn what_follows_from_them_is_the_same() {
    for engine in [EngineChoice::Ort, EngineChoice::Tract] {
        let Some((own, runs)) = reducing(engine) else {
            continue;
        };
        let pruner = pruner(&crate::common::fixture("digits-vit/model.onnx"), engine)
            .data([crate::common::fixture("digits-vit/calibration.npz")])
            .sample_count(96);
        let own = Mutex::new(Some(own));
        let pruned = |reduce: bool| {
            let mut source = pruner.source().expect("a model");
            if reduce {
                let engine = own.lock().ok().and_then(|mut o| o.take()).expect("once");
                source = source.with_engine(Box::new(engine));
            }
            let ranked = rank(calibrate(source).expect("sums")).expect("rankings");
            let planner = Planner::of(&ranked).expect("a planner");
            let found = search(&planner, &Goal::flops(0.5), &[Path::new("none.onnx")]).expect("a mask");
            let kept = found.plans[0].allocation.mask.kept.clone();
            (
                kept,
                weights(&found.only(&ranked).expect("a smaller model").pruned.model),
            )
        };
        let ((kept, graph), (expected, host)) = (pruned(true), pruned(false));
        assert_eq!(kept, expected, "{engine}");
        assert!(graph.keys().eq(host.keys()));
        for (name, own) in &graph {
            let worst = relative(own, &host[name]);
            assert!(worst <= 1e-3, "{engine}: {name}: {worst:e}");
        }
        assert!(runs.load(Ordering::Relaxed) > 0, "{engine}");
    }
}

#[test]
fn what_is_no_number_is_told_with_the_site_and_the_sample() {
    let engine = EngineChoice::Tract;
    let Some((own, runs)) = reducing(engine) else {
        return;
    };
    let pruner = pruner(&crate::common::fixture("digits-vit/model.onnx"), engine)
        .data([crate::common::fixture("digits-vit/calibration.npz")])
        .sample_count(64);
    let source = pruner.source().expect("a model");
    let probes = probes(&source);
    let mut samples = source.samples.clone();
    let even = BTreeMap::new();
    // In the third batch.
    for tensor in samples.samples[21].feeds.values_mut() {
        *tensor = Tensor::f32(tensor.shape.clone(), vec![f32::NAN; tensor.len()]);
    }
    let told = |engine: &dyn Engine| {
        let watched = Watched {
            probes: &probes,
            weights: &even,
        };
        let found = collect(quiet(engine), source.dense(), watched, &samples, 8);
        found.map(|_| ()).map_err(|e| e.chain())
    };
    let host = told(own.inner.as_ref()).expect_err("NaN");
    assert!(host.contains("sample 21"), "{host}");
    assert_eq!(told(&own), Err(host));
    assert!(runs.load(Ordering::Relaxed) > 0);
}
