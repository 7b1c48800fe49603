//! Lossless passes, constant units and latency budgets in whole runs, in the
//! built-in engine.

use std::sync::atomic::AtomicBool;

use onnx_prune::axes::{self, Kind};
use onnx_prune::budget::Demand;
use onnx_prune::engine::{EngineChoice, EngineOptions};
use onnx_prune::network::Network;
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::report::Report;
use onnx_prune::tensor::Tensor;
use onnx_prune::{Error, onnx, pipeline};

use crate::common::fixture;

fn digits() -> Options {
    let mut options = Options {
        engine: EngineOptions {
            engine: EngineChoice::Tract,
            threads: Some(1),
            ..EngineOptions::default()
        },
        timing: false,
        ..Options::default()
    };
    options.data.data = vec![fixture("digits-vit/calibration.npz")];
    options.data.samples = Some(64);
    options
}

fn prune(model: &std::path::Path, options: &Options) -> Result<Report, Error> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.onnx");
    let report = pipeline::prune(model, &out, &[], options, &Quiet, &AtomicBool::new(false));
    assert_eq!(out.exists(), report.is_ok());
    report
}

#[test]
fn what_costs_nothing_comes_first_and_counts() {
    let model = fixture("digits-vit/model.onnx");
    let with = Options {
        demands: vec![Demand::Flops(1.0)],
        ..digits()
    };
    let report = prune(&model, &with).unwrap();
    // The classifier reads one position: the last of its layers runs on that.
    assert!(report.lossless.iter().any(|p| p.name == "positions"));
    assert!(report.groups.iter().all(|g| g.kept.len() == g.units));
    assert!(report.budget.got < 0.95, "{:?}", report.budget);
    assert!(report.budget.whole_after < report.budget.whole_before);
    assert!(report.held_out.unwrap().worst() <= 1e-5);
    assert!(report.equality.unwrap().lossless.unwrap() <= 1e-5);

    let without = Options {
        lossless: false,
        ..with.clone()
    };
    let plain = prune(&model, &without).unwrap();
    assert!(plain.lossless.is_empty());
    assert_eq!(plain.budget.got, 1.0);
    assert_eq!(plain.budget.prunable, report.budget.prunable);

    // The same budget leaves more units where the passes pay a part of it.
    let at = |lossless: bool| {
        let options = Options {
            demands: vec![Demand::Flops(0.6)],
            lossless,
            ..digits()
        };
        let report = prune(&model, &options).unwrap();
        assert!(report.budget.got <= 0.6);
        report.size.parameters_after
    };
    assert!(at(true) > at(false));
}

#[test]
fn constant_units_are_folded_when_asked() {
    let path = fixture("digits-vit/model.onnx");
    let mut file = onnx::load(&path).unwrap();
    let network = Network::of(file.proto.clone(), axes::AnalysisOptions::default()).unwrap();
    let (graph, analysis) = (&network.graph, &network.axes);
    let group = analysis.groups.iter().find(|g| g.kind == Kind::Neurons).unwrap();
    // The weights in front of two neurons become zero: their bias alone goes
    // through the activation.
    let weight = graph.value(group.sources[0]);
    let index = weight.constant.as_ref().unwrap().initializer.unwrap();
    let slot = &mut file.proto.graph.as_mut().unwrap().initializer[index];
    let old = onnx::tensor(slot).unwrap();
    let axis = old.shape.iter().position(|n| *n == group.units).unwrap();
    assert_eq!(old.shape.len(), 2);
    let columns = old.shape[1];
    let values: Vec<f32> = old
        .to_f32()
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            let unit = if axis == 0 { i / columns } else { i % columns };
            if [3, 5].contains(&unit) { 0.0 } else { v }
        })
        .collect();
    *slot = onnx::tensor_proto(&weight.name, &Tensor::f32(old.shape.clone(), values));
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.onnx");
    onnx::save(&file.proto, &changed, &onnx::SaveOptions::for_model(&file)).unwrap();

    let mut options = Options {
        demands: vec![Demand::Flops(1.0)],
        fold_constant: true,
        ..digits()
    };
    let report = prune(&changed, &options).unwrap();
    let found = report.groups.iter().find(|g| g.name == group.name).unwrap();
    let gone: Vec<usize> = (0..found.units).filter(|u| !found.kept.contains(u)).collect();
    assert_eq!(gone, [3, 5]);
    let others = report.groups.iter().filter(|g| g.name != group.name);
    assert!(others.clone().all(|g| g.kept.len() == g.units));
    assert!(report.held_out.unwrap().worst() < 1e-4);

    options.fold_constant = false;
    let report = prune(&changed, &options).unwrap();
    assert!(report.groups.iter().all(|g| g.kept.len() == g.units));
}

#[test]
fn a_speed_up_is_measured_and_met() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("latency.json");
    let mut options = Options {
        demands: vec![Demand::Speedup(1.3)],
        rank: RankOptions {
            method: Method::Magnitude,
            ..Options::default().rank
        },
        latency_cache: Some(cache.clone()),
        ..digits()
    };
    options.data.batch = 16;
    let model = fixture("digits-vit/model.onnx");
    let report = prune(&model, &options).unwrap();
    let measured = report.latency.unwrap();
    let Demand::Speedup(got) = report.limits[0].got else {
        panic!("{:?}", report.limits);
    };
    assert_eq!(measured.batch, 16);
    assert_eq!(got, measured.timing.speedup.unwrap().median);
    // Within twice the noise, which is what the run itself accepts.
    assert!(
        got >= 1.3 * (1.0 - 2.0 * measured.timing.noise) - 1e-9,
        "{got} {measured:?}"
    );
    assert!(cache.exists());

    // No mask makes it a thousand times as fast: the least is told, nothing is
    // written.
    options.demands = vec![Demand::Speedup(1000.0)];
    let error = prune(&model, &options).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(
        error.to_string().contains("the least that magnitude can keep"),
        "{error}"
    );
}
