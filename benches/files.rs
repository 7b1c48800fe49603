//! Loading and saving a file of 440 MB against a copy of it. A saved file is on the
//! disk before it has its name, so the copy is brought to the disk too; `cp` alone
//! leaves that to later, and its ratio is printed beside.
//!
//! `cargo bench --bench files` (`TMPDIR`: where the files are, 1.4 GB).

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use common::{best, say, time};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onnx_prune::onnx::{self, SaveOptions, proto};

/// Weights of 4 MB each.
const TENSORS: usize = 110;
const BYTES: usize = 4 << 20;

fn model() -> proto::ModelProto {
    let tensor = |at: usize| {
        let bytes: Vec<u8> = (0..BYTES).map(|i| (i * 31 + at * 7) as u8 & 0x3f).collect();
        proto::TensorProto {
            name: Some(format!("weight{at}")),
            dims: vec![1024, 1024],
            data_type: Some(1),
            raw_data: Some(bytes.into()),
            ..Default::default()
        }
    };
    proto::ModelProto {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSetIdProto {
            version: Some(17),
            ..Default::default()
        }],
        graph: Some(proto::GraphProto {
            name: Some("weights".into()),
            initializer: (0..TENSORS).map(tensor).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn load_and_save(from: &Path, to: &Path) {
    let model = onnx::load(from).expect("the model loads");
    onnx::save(&model.proto, to, &SaveOptions::for_model(&model)).expect("it is saved");
}

fn copy(from: &Path, to: &Path, to_disk: bool) {
    fs::copy(from, to).expect("the file is copied");
    if to_disk {
        let file = File::options().write(true).open(to).expect("the copy is there");
        file.sync_all().expect("it is on the disk");
    }
}

fn files(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let [from, to, copied] = ["in.onnx", "out.onnx", "copy.onnx"].map(|name| folder.path().join(name));
    let options = SaveOptions::default();
    onnx::save(&model(), &from, &options).expect("the model is saved");

    let own = || time(|| load_and_save(&from, &to));
    for (what, to_disk) in [("a copy that is on the disk", true), ("cp", false)] {
        let (own, other) = best(3, own, || time(|| copy(&from, &copied, to_disk)));
        let what = format!("load and save {own:.3} s, {what} {other:.3} s");
        say(&what, own / other, "at most 2.00");
    }
    let mut group = c.benchmark_group("files");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.throughput(Throughput::Bytes((TENSORS * BYTES) as u64));
    group.bench_function("load", |b| b.iter(|| onnx::load(&from).map(|m| m.path)));
    group.bench_function("load and save", |b| b.iter(|| load_and_save(&from, &to)));
    group.finish();
}

criterion_group!(benches, files);
criterion_main!(benches);
