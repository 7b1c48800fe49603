//! What a run may be told to prune besides heads and neurons: caches in the
//! interface, query heads within key/value groups.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use onnx_prune::axes::{self, Kind};
use onnx_prune::budget::Demand;
use onnx_prune::engine::{self, EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::sites::{Selection, UnitKind};
use onnx_prune::tensor::Feeds;
use onnx_prune::{onnx, pipeline};

use crate::common::{cases, feeds, name, take};

fn options(change_interface: bool) -> Options {
    let mut options = Options {
        demands: vec![Demand::Flops(0.6)],
        axes: axes::AnalysisOptions {
            change_interface,
            ..axes::AnalysisOptions::default()
        },
        engine: EngineOptions {
            engine: EngineChoice::Ort,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    };
    options.data.samples = Some(24);
    options
}

/// Sizes of axis 1 (the heads) of the caches among the inputs.
fn cache_heads(path: &Path) -> Vec<(String, i64)> {
    use onnx_prune::onnx::proto::tensor_shape_proto::dimension;
    use onnx_prune::onnx::proto::type_proto;
    let model = onnx::load(path).unwrap();
    let graph = model.proto.graph.as_ref().unwrap();
    let past = graph.input.iter().filter(|i| i.name().contains("past"));
    past.map(|input| {
        let Some(type_proto::Value::TensorType(tensor)) =
            input.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            panic!("{} is no tensor", input.name());
        };
        let dim = &tensor.shape.as_ref().unwrap().dim[1];
        match dim.value {
            Some(dimension::Value::DimValue(n)) => (input.name().to_string(), n),
            _ => panic!("the heads of {} have no size", input.name()),
        }
    })
    .collect()
}

/// Runs a file; all it gives is finite.
fn run(path: &Path, feeds: &Feeds) -> usize {
    let engine = engine::choose(&options(true).engine).unwrap();
    let model = onnx::load(path).unwrap();
    let mut session = engine.session(&model.proto, &SessionOptions::default()).unwrap();
    let given = session.run(feeds).unwrap();
    assert!(given.iter().all(|t| t.to_f32().iter().all(|x| x.is_finite())));
    given.len()
}

#[test]
fn caches_shrink_only_when_asked() {
    if crate::common::engine().is_none() {
        return;
    }
    let mut seen = 0;
    for case in cases() {
        let model = case.join("model.onnx");
        if !name(&case).contains("past") {
            continue;
        }
        seen += 1;
        let folder = tempfile::tempdir().unwrap();
        let before = cache_heads(&model);
        let cancelled = AtomicBool::new(false);
        let kept = folder.path().join("kept.onnx");
        let report = pipeline::prune(&model, &kept, &[], &options(false), &Quiet, &cancelled)
            .unwrap_or_else(|e| panic!("{}: {}", name(&case), e.chain()));
        assert!(report.equality.unwrap().passed);
        assert_eq!(cache_heads(&kept), before, "{}", name(&case));
        run(&kept, &feeds(&case, 0));

        let small = folder.path().join("small.onnx");
        let report = pipeline::prune(&model, &small, &[], &options(true), &Quiet, &cancelled)
            .unwrap_or_else(|e| panic!("{}: {}", name(&case), e.chain()));
        assert!(report.equality.unwrap().passed, "{}", name(&case));
        assert!(report.budget.got <= 0.6 + 1e-9);
        let after = cache_heads(&small);
        assert!(
            after.iter().zip(&before).any(|(a, b)| a.1 < b.1),
            "{}: {before:?} {after:?}",
            name(&case)
        );
        assert!(
            report
                .notes
                .iter()
                .any(|n| n.starts_with("the interface changes")),
            "{:?}",
            report.notes
        );
        let mut feeds = feeds(&case, 0);
        for (input, heads) in &after {
            let tensor = &feeds[input];
            let kept: Vec<usize> = (0..*heads as usize).collect();
            let cut = take(tensor, 1, &kept);
            feeds.insert(input.clone(), cut);
        }
        run(&small, &feeds);
    }
    assert!(seen > 0, "no case with a cache");
}

#[test]
fn query_heads_go_evenly_and_their_groups_stay() {
    if crate::common::engine().is_none() {
        return;
    }
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/zoo/qwen3-dyn23");
    let model = case.join("model.onnx");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let queries = Options {
        selection: Selection {
            targets: vec![UnitKind::Queries],
            min_units: 1,
            ..Selection::default()
        },
        ..options(false)
    };
    let cancelled = AtomicBool::new(false);
    let report = pipeline::prune(&model, &out, &[], &queries, &Quiet, &cancelled)
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    assert!(report.equality.unwrap().passed && report.budget.got <= 0.6);
    assert!(!report.groups.is_empty());
    for group in &report.groups {
        assert_eq!(group.kind, Kind::Repeats, "{}", group.name);
        assert!(
            !group.kept.is_empty() && group.kept.len() < group.units,
            "{}",
            group.name
        );
    }
    run(&out, &feeds(&case, 0));

    let both = Options {
        selection: Selection {
            targets: vec![UnitKind::Heads, UnitKind::Queries],
            ..Selection::default()
        },
        ..options(false)
    };
    let error = pipeline::prune(&model, &out, &[], &both, &Quiet, &cancelled).unwrap_err();
    assert!(error.to_string().contains("cannot both be pruned"), "{error}");
}
