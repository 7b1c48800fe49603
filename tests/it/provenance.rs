//! What a pruned model says about itself is enough to make it again.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use onnx_prune::budget::Demand;
use onnx_prune::data::DataOptions;
use onnx_prune::engine::{EngineChoice, EngineOptions};
use onnx_prune::onnx::{self, provenance};
use onnx_prune::pipeline;
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::refit::{Reconstruct, RefitOptions};

use crate::common::fixture;

fn options() -> Options {
    Options {
        rank: RankOptions {
            method: Method::Wanda,
            ..Options::default().rank
        },
        refit: RefitOptions {
            reconstruct: Reconstruct::Local,
            ..Options::default().refit
        },
        demands: vec![Demand::Flops(0.5)],
        data: DataOptions {
            data: vec![fixture("digits-vit/calibration.npz")],
            samples: Some(48),
            batch: 1,
            ..DataOptions::default()
        },
        engine: EngineOptions {
            engine: EngineChoice::Tract,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    }
}

fn prune(input: &Path, output: &Path, options: &Options) -> onnx_prune::Result<onnx_prune::report::Report> {
    pipeline::prune(input, output, &[], options, &Quiet, &AtomicBool::new(false))
}

#[test]
fn the_mask_of_a_pruned_model_makes_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    let input = fixture("digits-vit/model.onnx");
    let report = prune(&input, &first, &options()).unwrap();

    let told = provenance::of_file(&first).unwrap();
    assert_eq!(told.tool, format!("onnx-prune {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(told.input_sha256, onnx::sha256(&input, &[]).unwrap());
    let made: serde_json::Value = serde_json::from_str(&told.options).unwrap();
    assert_eq!(made["method"], "wanda");
    assert_eq!(made["goal"], "--flops 0.5");
    let mask: serde_json::Value = serde_json::from_str(&told.mask).unwrap();
    for (entry, group) in mask["groups"].as_array().unwrap().iter().zip(&report.groups) {
        assert_eq!(entry["name"], group.name.as_str());
        assert_eq!(entry["kept"], serde_json::to_value(&group.kept).unwrap());
    }

    let again = Options {
        mask: Some(first.clone()),
        demands: Vec::new(),
        ..options()
    };
    let replayed = prune(&input, &second, &again).unwrap();
    assert!(
        !replayed.notes.iter().any(|n| n.contains("another file")),
        "{:?}",
        replayed.notes
    );
    let (a, b) = (
        onnx::load(&first).unwrap().proto,
        onnx::load(&second).unwrap().proto,
    );
    assert!(a.graph == b.graph, "the same weights and nodes");
    assert_eq!(provenance::read(&b).unwrap().mask, told.mask);
}

#[test]
fn a_mask_of_another_file_is_told_and_a_foreign_model_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let (other, pruned) = (folder.path().join("other.onnx"), folder.path().join("a.onnx"));
    let input = fixture("digits-vit/model.onnx");
    prune(&input, &pruned, &options()).unwrap();
    let mut model = onnx::load(&input).unwrap().proto;
    model.producer_version = Some("another".into());
    onnx::save(&model, &other, &onnx::SaveOptions::default()).unwrap();
    let masked = |mask: &Path| {
        let options = Options {
            mask: Some(mask.to_owned()),
            demands: Vec::new(),
            dry_run: true,
            ..options()
        };
        prune(&other, &folder.path().join("none.onnx"), &options)
    };
    let report = masked(&pruned).unwrap();
    assert!(
        report.notes.iter().any(|n| n.contains("another file")),
        "{:?}",
        report.notes
    );
    let error = masked(&input).expect_err("no mask in it");
    assert_eq!(error.exit_code(), 2);
    assert!(
        error.chain().contains("not written by onnx-prune"),
        "{}",
        error.chain()
    );
}

#[test]
fn other_metadata_stay_and_a_second_run_replaces_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let (input, once, twice) = (
        folder.path().join("in.onnx"),
        folder.path().join("once.onnx"),
        folder.path().join("twice.onnx"),
    );
    let mut model = onnx::load(&fixture("digits-vit/model.onnx")).unwrap().proto;
    model.metadata_props.push(onnx::proto::StringStringEntryProto {
        key: Some("author".into()),
        value: Some("somebody".into()),
    });
    onnx::save(&model, &input, &onnx::SaveOptions::default()).unwrap();
    prune(&input, &once, &options()).unwrap();
    prune(&once, &twice, &options()).unwrap();
    let entries = onnx::load(&twice).unwrap().proto.metadata_props;
    let count = |key: &str| entries.iter().filter(|e| e.key() == key).count();
    assert_eq!((count("author"), count("onnx_prune.mask")), (1, 1));
    let told = provenance::of_file(&twice).unwrap();
    assert_eq!(told.input_sha256, onnx::sha256(&once, &[]).unwrap());
}
