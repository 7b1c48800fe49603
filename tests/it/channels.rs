//! Channels inside heads: another basis changes nothing, and fewer channels give what
//! the model with these channels at zero computes, in every zoo case that has some.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use onnx_prune::calibrate::Watched;
use onnx_prune::channels::{ChannelCalibration, ChannelKind, ChannelOptions, Narrowed, Narrower};
use onnx_prune::data::{DataOptions, Samples};
use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::mask::Narrowing;
use onnx_prune::network::Network;
use onnx_prune::numerics::Statistics;
use onnx_prune::pipeline::Options;
use onnx_prune::rank::positions::Weights;
use onnx_prune::sites::{self, PruneTarget, Selection};
use onnx_prune::tensor::Feeds;
use onnx_prune::{axes, calibrate, onnx, verify};
use serde_json::Value;

use crate::common::quiet;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A model with what narrowing asks for.
struct Case {
    network: Network,
    targets: Vec<PruneTarget>,
    samples: Samples,
    statistics: Statistics,
    damp: f64,
}

impl Case {
    /// `None` where the case has no heads, or its inputs cannot be made up.
    fn load(path: &Path, engine: &dyn Engine) -> Option<Self> {
        let file = onnx::load(path).unwrap();
        let model = onnx::inline_functions(&file.proto).unwrap();
        let network = Network::of(model, axes::AnalysisOptions::default()).unwrap();
        let targets = sites::choose(&network, &Selection::default()).ok()?;
        let data = DataOptions {
            samples: Some(12),
            seq: Some(12),
            ..DataOptions::default()
        };
        let samples = onnx_prune::data::read_samples(&network.proto, &data).ok()?;
        let probes: Vec<_> = (targets.iter().flat_map(|t| &t.sites))
            .filter_map(|s| s.probe.clone())
            .collect();
        let watched = Watched {
            probes: &probes,
            weights: &Weights::new(),
        };
        let rows = onnx_prune::data::ROWS;
        let sums = calibrate::collect(quiet(engine), &network.proto, watched, &samples, rows);
        let statistics = sums.ok()?.0;
        Some(Self {
            network,
            targets,
            samples,
            statistics,
            damp: Options::default().rank.damp,
        })
    }

    fn known<'a>(&'a self, positions: &'a Weights) -> ChannelCalibration<'a> {
        ChannelCalibration {
            network: &self.network,
            targets: &self.targets,
            statistics: &self.statistics,
            positions,
        }
    }

    fn narrower(&self, engine: &dyn Engine) -> Option<Narrower> {
        let options = ChannelOptions {
            axes: axes::AnalysisOptions::default(),
            damp: self.damp,
            step: 4,
        };
        let even = Weights::new();
        let known = self.known(&even);
        Narrower::find(quiet(engine), known, [&self.samples; 2], options).unwrap()
    }

    fn narrowed(&self, engine: &dyn Engine, narrower: &Narrower, kept: Vec<(usize, usize)>) -> Narrowed {
        let (narrowing, selection) = (Narrowing { kept }, Selection::default());
        let even = Weights::new();
        let known = self.known(&even);
        narrower
            .apply(quiet(engine), known, &narrowing, &self.samples, &selection)
            .unwrap()
    }

    /// The model after a narrowing; its equality with channels of zero is checked.
    fn apply(&self, engine: &dyn Engine, narrower: &Narrower, kept: Vec<(usize, usize)>) -> Applied {
        let narrowed = self.narrowed(engine, narrower, kept);
        let session = SessionOptions::default();
        let compared = verify::compare(
            engine
                .session(&narrowed.network.proto, &session)
                .unwrap()
                .as_mut(),
            engine.session(&self.network.proto, &session).unwrap().as_mut(),
            &self.network.proto,
            &self.samples,
            &verify::Interface::default(),
            &NEVER,
        );
        Applied {
            worst: compared.unwrap().worst(),
            parameters: parameters(&narrowed.network.proto),
            equality: narrowed.equality.worst(),
        }
    }
}

struct Applied {
    /// Largest relative difference of the outputs from the dense model's.
    worst: f64,
    parameters: usize,
    equality: f64,
}

fn parameters(model: &onnx::proto::ModelProto) -> usize {
    let constants = model.graph.iter().flat_map(|g| &g.initializer);
    constants.map(|t| t.dims.iter().product::<i64>() as usize).sum()
}

#[test]
fn another_basis_changes_nothing_and_fewer_channels_are_channels_of_zero() {
    let Some(engine) = crate::common::engine() else {
        return;
    };
    let engine = engine.as_ref();
    let mut found = Vec::new();
    for path in crate::common::cases() {
        let name = crate::common::name(&path);
        let Some(case) = Case::load(&path.join("model.onnx"), engine) else {
            continue;
        };
        let Some(narrower) = case.narrower(engine) else {
            continue;
        };
        let half = case
            .network
            .graph
            .values
            .iter()
            .any(|v| v.constant.is_some() && v.elem.is_some_and(|e| e.is_float() && e.size() < 4));
        let turns = narrower.blocks();
        let all = |kept: &dyn Fn(&onnx_prune::channels::ChannelBlock) -> usize| {
            turns
                .iter()
                .enumerate()
                .map(|(at, t)| (at, kept(t)))
                .collect::<Vec<_>>()
        };
        let whole = case.apply(engine, &narrower, all(&|t| t.error.len() - 1));
        let close = if half { 5e-2 } else { 1e-3 };
        assert!(
            whole.worst <= close,
            "{name}: another basis differs by {:e}",
            whole.worst
        );
        assert_eq!(whole.parameters, parameters(&case.network.proto), "{name}");
        let least = case.apply(engine, &narrower, all(&|t| t.levels[0]));
        assert!(least.parameters < whole.parameters, "{name}");
        assert!(least.worst.is_finite(), "{name}: {:e}", least.worst);
        for turn in turns {
            assert!(turn.error[0].abs() < 1e-6, "{name}: {:?}", turn.error);
            assert!(
                turn.error.windows(2).all(|e| e[0] <= e[1] + 1e-9),
                "{name}: {:?}",
                turn.error
            );
        }
        let told = narrower.told(
            &case.network,
            &case.targets,
            &Narrowing {
                kept: all(&|t| t.levels[0]),
            },
        );
        let values = told.iter().filter(|t| t.channels == ChannelKind::Values).count();
        eprintln!(
            "{name}: values of {values} blocks, queries and keys of {}; another basis {:.1e}, zero {:.1e}",
            told.len() - values,
            whole.worst,
            least.equality
        );
        found.push(name);
    }
    if std::env::var_os("CASE").is_none() {
        for name in ["bert-dyn23-sdpa", "bertqa-external-each", "mpnet-ts17-eager"] {
            assert!(
                found.iter().any(|f| f == name),
                "{name} has channels that can be turned: {found:?}"
            );
        }
        // Positions turn queries and keys, the cache is an output.
        assert!(!found.iter().any(|f| f == "qwen3past-dyn18"), "{found:?}");
    }
}

/// The rows of the output of a block's projection, with the model as it is and with one
/// turn at work.
fn projected(
    case: &Case,
    engine: &dyn Engine,
    narrower: &Narrower,
    kept: (usize, usize),
) -> Vec<[Vec<f32>; 2]> {
    let narrowed = case.narrowed(engine, narrower, vec![kept]);
    let turn = &narrower.blocks()[kept.0];
    let sink = &case.network.axes.group(case.targets[turn.at].group).sinks[0];
    let output = case
        .network
        .graph
        .value(case.network.graph.node(sink.node).outputs[0].unwrap());
    let options = SessionOptions {
        optimise: true,
        outputs: Some(vec![output.name.clone()]),
    };
    let mut dense = engine.session(&case.network.proto, &options).unwrap();
    let mut less = engine.session(&narrowed.network.proto, &options).unwrap();
    let specs = onnx_prune::data::input_specs(&case.network.proto).unwrap();
    let batches = onnx_prune::data::batches(&case.samples, &specs, onnx_prune::data::ROWS).unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        let feeds: Feeds = batch.unwrap().feeds;
        let (a, b) = (
            dense.run(&feeds).unwrap().remove(0),
            less.run(&feeds).unwrap().remove(0),
        );
        let width = *a.shape.last().unwrap();
        let (a, b) = (a.to_f32(), b.to_f32());
        let pairs = a.chunks(width).zip(b.chunks(width));
        rows.extend(pairs.map(|(a, b)| [a.to_vec(), b.to_vec()]));
    }
    rows
}

/// The squares of some rows about their mean.
fn spread(rows: &[Vec<f64>]) -> f64 {
    let mean = |j: usize| rows.iter().map(|r| r[j]).sum::<f64>() / rows.len() as f64;
    let means: Vec<f64> = (0..rows[0].len()).map(mean).collect();
    let squares = rows.iter().flatten().zip(means.iter().cycle());
    squares.map(|(x, m)| (x - m).powi(2)).sum()
}

#[test]
fn the_error_that_is_told_is_that_of_the_output_projection() {
    let Some(engine) = crate::common::engine() else {
        return;
    };
    let engine = engine.as_ref();
    let path = crate::common::fixture("digits-vit/model.onnx");
    let mut case = Case::load(&path, engine).unwrap();
    // Weights that are fitted exactly tell the error exactly.
    case.damp = 1e-9;
    let narrower = case.narrower(engine).unwrap();
    let mut checked = Vec::new();
    for (at, turn) in narrower.blocks().iter().enumerate() {
        let kept = (at, (turn.error.len() - 1) / 2);
        let told = narrower.told(&case.network, &case.targets, &Narrowing { kept: vec![kept] });
        let rows = projected(&case, engine, &narrower, kept);
        let change: Vec<Vec<f64>> = rows
            .iter()
            .map(|[a, b]| a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect())
            .collect();
        let dense: Vec<Vec<f64>> = rows
            .iter()
            .map(|[a, _]| a.iter().map(|x| f64::from(*x)).collect())
            .collect();
        // The bias, which comes later, takes up the mean of what values lose.
        let lost = match told[0].channels {
            ChannelKind::Values => spread(&change),
            ChannelKind::QueriesAndKeys => change.iter().flatten().map(|x| x * x).sum(),
        };
        let (got, told) = (lost / spread(&dense), &told[0]);
        assert!(
            (got - told.error).abs() <= 0.02 * told.error + 1e-6,
            "{got} of {told:?}"
        );
        checked.push(told.channels);
    }
    assert!(checked.contains(&ChannelKind::Values) && checked.contains(&ChannelKind::QueriesAndKeys));
}

fn prune(out: &Path, extra: &[&str]) -> Value {
    let json = out.with_extension("json");
    let fixture = |name: &str| crate::common::fixture(name).to_str().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .args([&fixture("digits-vit/model.onnx"), out.to_str().unwrap()])
        .args([
            "--data",
            &fixture("digits-vit/calibration.npz"),
            "--samples",
            "96",
        ])
        .args(["--json", json.to_str().unwrap(), "--no-timing"])
        .args(["--engine", "tract", "--threads", "1", "--quiet"])
        .args(extra)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", crate::common::text(&output));
    crate::common::conforms(&json);
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

#[test]
fn a_budget_takes_channels_where_that_does_less_harm() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.onnx");
    let with = prune(&out, &["--flops", "0.4"]);
    let without = prune(&folder.path().join("b.onnx"), &["--flops", "0.4", "--no-narrow"]);
    assert!(
        !with["channels"].as_array().unwrap().is_empty(),
        "{}",
        with["channels"]
    );
    assert!(without["channels"].as_array().unwrap().is_empty());
    let damage = |r: &Value| -> f64 {
        let groups = r["groups"].as_array().unwrap();
        groups.iter().map(|g| g["damage"].as_f64().unwrap()).sum()
    };
    assert!(
        damage(&with) < damage(&without),
        "{} {}",
        damage(&with),
        damage(&without)
    );
    for report in [&with, &without] {
        assert!(report["budget"]["got"].as_f64().unwrap() <= 0.4);
        assert_eq!(report["equality"]["passed"], true);
    }

    // A mask says nothing of channels: where it is asked for, there is nothing to say.
    let mask = folder.path().join("mask.json");
    let asked = ["--flops", "0.4", "--export-mask", mask.to_str().unwrap()];
    let exported = prune(&folder.path().join("c.onnx"), &asked);
    assert!(exported["channels"].as_array().unwrap().is_empty());
    let replayed = prune(&folder.path().join("d.onnx"), &["--mask", out.to_str().unwrap()]);
    assert!(
        replayed["notes"].to_string().contains("fewer channels"),
        "{}",
        replayed["notes"]
    );
}
