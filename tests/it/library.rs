//! What a program can do that the command line cannot: own inputs, own operators,
//! own engines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use onnx_prune::Pruner;
use onnx_prune::axes::{self, Kind, Op, OwnRule};
use onnx_prune::budget::Goal;
use onnx_prune::data::Samples;
use onnx_prune::engine::{
    self, Device, Engine, EngineChoice, EngineInfo, EngineOptions, Session, SessionOptions,
};
use onnx_prune::io::npz;
use onnx_prune::onnx::{self, proto};
use onnx_prune::pipeline::{Planner, calibrate, rank, search};
use onnx_prune::rank::Method;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{Result, graph};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn pruner() -> Pruner {
    Pruner::new(fixture("digits-vit/model.onnx"))
        .method(Method::Wanda)
        .engine(EngineChoice::Tract)
        .device(Device::Cpu)
        .threads(1usize)
        .flops(0.5)
        .no_timing()
        .dry_run()
}

#[test]
fn inputs_at_hand_do_what_the_same_inputs_in_files_do() {
    let data = fixture("digits-vit/calibration.npz");
    let images = npz::read(&data).unwrap().remove("pixel_values").unwrap();
    let samples = images.to_f32();
    let feeds = samples.chunks(64).map(|image| {
        let image = Tensor::f32(vec![1, 1, 8, 8], image.to_vec());
        Feeds::from([("pixel_values".to_owned(), image)])
    });
    let given = pruner()
        .samples(Samples::of_feeds(feeds))
        .prune("none.onnx")
        .unwrap();
    let read = pruner().data([&data]).prune("none.onnx").unwrap();
    let kept = |r: &onnx_prune::report::Report| -> Vec<Vec<usize>> {
        r.groups.iter().map(|g| g.kept.clone()).collect()
    };
    assert_eq!(kept(&given), kept(&read));
    let made = pruner().prune("none.onnx").unwrap();
    assert_ne!(kept(&given), kept(&made), "the inputs matter");
    let none = pruner().samples(Samples::of_feeds([])).prune("none.onnx");
    assert_eq!(none.map(|_| ()).map_err(|e| e.exit_code()), Err(2));
}

fn same_dims(op: &mut Op) -> Option<()> {
    let dims = op.dims(0)?;
    op.set(0, dims);
    Some(())
}

#[test]
fn a_rule_of_ones_own_frees_what_the_operator_froze() {
    static RULES: [OwnRule; 1] = [OwnRule {
        domain: "com.example",
        op: "Wave",
        rule: same_dims,
    }];
    let mut model = onnx::load(&fixture("digits-vit/model.onnx")).unwrap().proto;
    for node in &mut model.graph.as_mut().unwrap().node {
        if matches!(node.op_type(), "Gelu" | "Erf") {
            node.op_type = Some("Wave".into());
            node.domain = Some("com.example".into());
        }
    }
    let graph = graph::build(&model).unwrap();
    let neurons = |own_rules: &'static [OwnRule]| {
        let options = axes::AnalysisOptions {
            own_rules,
            ..axes::AnalysisOptions::default()
        };
        let found = axes::analyse(&graph, options);
        let count = found.groups.iter().filter(|g| g.kind == Kind::Neurons).count();
        (count, found.unsupported.len())
    };
    assert_eq!(neurons(&[]), (0, 1));
    assert_eq!(neurons(&RULES), (4, 0));
}

/// Another engine, which counts.
struct Counting {
    inner: Box<dyn Engine>,
    sessions: Arc<AtomicUsize>,
}

impl Engine for Counting {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.inner.session(model, options)
    }

    fn optimised_operators(
        &self,
        model: &proto::ModelProto,
    ) -> Result<Option<std::collections::BTreeMap<String, usize>>> {
        self.inner.optimised_operators(model)
    }
}

#[test]
fn another_engine_runs_all_models() {
    let sessions = Arc::new(AtomicUsize::new(0));
    let pruner = pruner()
        .data([fixture("digits-vit/calibration.npz")])
        .sample_count(32);
    let options = EngineOptions {
        engine: EngineChoice::Tract,
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = Counting {
        inner: engine::choose(&options).unwrap(),
        sessions: Arc::clone(&sessions),
    };
    let source = pruner.source().unwrap().with_engine(Box::new(engine));
    let ranked = rank(calibrate(source).unwrap()).unwrap();
    let planner = Planner::of(&ranked).unwrap();
    let output = Path::new("none.onnx");
    let found = search(&planner, &Goal::flops(0.5), &[output]).unwrap();
    let report = found.only(&ranked).unwrap().write(output).unwrap();
    assert!(report.equality.unwrap().passed);
    // Calibration, sliced against masked, held-out samples.
    assert!(sessions.load(Ordering::Relaxed) >= 5);
}
