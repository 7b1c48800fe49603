//! Calibration inputs: every format, every hostile file, padding, synthetic samples.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use onnx_prune::data::{
    DataOptions, DataOrigin, InputDim, Sample, Samples, batches, input_specs, read_samples,
};
use onnx_prune::io::npz;
use onnx_prune::onnx::proto;
use onnx_prune::tensor::{Data, Elem, Tensor};
use prost::Message as _;
use tempfile::TempDir;

// ---------------------------------------------------------------- models

fn value(name: &str, elem: Elem, dims: &[&str]) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::Dimension;
    use proto::tensor_shape_proto::dimension::Value;
    let dim = |d: &&str| Dimension {
        value: match d.parse::<i64>() {
            Ok(size) => Some(Value::DimValue(size)),
            Err(_) if *d == "?" => None,
            Err(_) => Some(Value::DimParam((*d).to_owned())),
        },
        ..Default::default()
    };
    let tensor = proto::type_proto::Tensor {
        elem_type: Some(elem.to_onnx()),
        shape: Some(proto::TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
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

fn model(inputs: Vec<proto::ValueInfoProto>) -> proto::ModelProto {
    let graph = proto::GraphProto {
        input: inputs,
        ..Default::default()
    };
    proto::ModelProto {
        graph: Some(graph),
        ..Default::default()
    }
}

/// A BERT-like signature with an embedding table of `rows` rows.
fn bert(batch: &str, sequence: &str, rows: i64) -> proto::ModelProto {
    let mut model = model(vec![
        value("input_ids", Elem::I64, &[batch, sequence]),
        value("attention_mask", Elem::I64, &[batch, sequence]),
        value("token_type_ids", Elem::I64, &[batch, sequence]),
    ]);
    let graph = model.graph.as_mut().unwrap();
    for (table, input, rows) in [("words", "input_ids", rows), ("types", "token_type_ids", 2)] {
        graph.initializer.push(proto::TensorProto {
            name: Some(table.to_owned()),
            dims: vec![rows, 4],
            data_type: Some(1),
            ..Default::default()
        });
        graph.node.push(proto::NodeProto {
            op_type: Some("Gather".to_owned()),
            input: vec![table.to_owned(), input.to_owned()],
            output: vec![format!("{table}_out")],
            ..Default::default()
        });
    }
    model
}

fn options(data: &Path) -> DataOptions {
    DataOptions {
        data: vec![data.to_owned()],
        ..Default::default()
    }
}

fn error(model: &proto::ModelProto, options: &DataOptions) -> String {
    let error = read_samples(model, options).expect_err("it must be refused");
    assert!(matches!(error.exit_code(), 2 | 5), "{error:?}");
    error.chain()
}

fn ids(sample: &Sample) -> Vec<i64> {
    sample.feeds["input_ids"].to_i64().unwrap()
}

/// 3 samples of lengths 4, 2 and 5, padded to 5.
fn padded(folder: &Path, elem: Elem) -> PathBuf {
    let ids = vec![5, 6, 7, 8, 0, 9, 10, 0, 0, 0, 11, 12, 13, 14, 15];
    let mask = vec![1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1];
    let tensor = |values: Vec<i64>| {
        let data = match elem {
            Elem::I32 => Data::I32(values.iter().map(|&v| v as i32).collect()),
            _ => Data::I64(values),
        };
        Tensor {
            shape: vec![3, 5],
            data,
        }
    };
    let path = folder.join("data.npz");
    let (ids, mask) = (tensor(ids), tensor(mask));
    npz::write(&path, [("input_ids", &ids), ("attention_mask", &mask)]).unwrap();
    path
}

// ---------------------------------------------------------------- arrays

#[test]
fn npz_padding_is_cut_and_missing_inputs_are_made() {
    let folder = TempDir::new().unwrap();
    let model = bert("batch", "sequence", 100);
    let path = padded(folder.path(), Elem::I32);
    let samples = read_samples(&model, &options(&path)).unwrap();
    assert_eq!(samples.origin, DataOrigin::Files { paths: vec![path] });
    let all: Vec<Vec<i64>> = samples.samples.iter().map(ids).collect();
    assert_eq!(all, [vec![5, 6, 7, 8], vec![9, 10], vec![11, 12, 13, 14, 15]]);
    for sample in &samples.samples {
        assert_eq!(sample.token_mask, None);
        let shape = &sample.feeds["input_ids"].shape;
        assert_eq!(
            sample.feeds["attention_mask"],
            Tensor::i64(shape.clone(), vec![1; shape[1]])
        );
        assert_eq!(
            sample.feeds["token_type_ids"],
            Tensor::i64(shape.clone(), vec![0; shape[1]])
        );
    }
    let notes = samples.notes.join("\n");
    assert!(notes.contains("'token_type_ids' is not in the data"), "{notes}");
    assert!(notes.contains("4 positions of padding"), "{notes}");
}

#[test]
fn leading_padding_and_holes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("left.npz");
    let ids_in = Tensor::i64(vec![3, 4], vec![0, 0, 5, 6, 7, 0, 8, 0, 0, 0, 0, 0]);
    let mask = Tensor::f32(vec![3, 4], vec![0., 0., 1., 1., 1., 0., 1., 0., 0., 0., 0., 0.]);
    npz::write(&path, [("input_ids", &ids_in), ("attention_mask", &mask)]).unwrap();
    let model = model(vec![
        value("input_ids", Elem::I64, &["b", "s"]),
        value("attention_mask", Elem::F32, &["b", "s"]),
        value("position_ids", Elem::I64, &["b", "s"]),
    ]);
    let samples = read_samples(&model, &options(&path)).unwrap();
    // The third sample has nothing real.
    assert_eq!(samples.samples.len(), 2);
    assert_eq!(ids(&samples.samples[0]), [5, 6]);
    assert_eq!(
        samples.samples[0].feeds["position_ids"],
        Tensor::i64(vec![1, 2], vec![0, 1])
    );
    assert_eq!(ids(&samples.samples[1]), [7, 0, 8]);
    assert_eq!(samples.samples[1].token_mask, Some(vec![true, false, true]));
    assert!(
        samples
            .notes
            .iter()
            .any(|n| n.contains("1 samples without a real token"))
    );
}

#[test]
fn fixed_lengths_keep_padding_and_mark_it() {
    let folder = TempDir::new().unwrap();
    let path = padded(folder.path(), Elem::I64);
    let model = bert("2", "5", 100);
    let samples = read_samples(&model, &options(&path)).unwrap();
    assert_eq!(ids(&samples.samples[1]), [9, 10, 0, 0, 0]);
    assert_eq!(
        samples.samples[1].token_mask,
        Some(vec![true, true, false, false, false])
    );
    assert_eq!(samples.samples[2].token_mask, None);

    let specs = input_specs(&model).unwrap();
    let made: Vec<_> = batches(&samples, &specs, 32)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(made.len(), 2);
    assert_eq!(made[1].rows, [2]);
    assert_eq!(made[1].size, 2);
    assert_eq!(made[1].feeds["input_ids"].shape, [2, 5]);
    // The second row repeats the first and is not real.
    let mask = made[1].token_mask.clone().unwrap();
    assert_eq!(mask, [[true; 5], [false; 5]].concat());
    assert_eq!(made[0].real_tokens() + made[1].real_tokens(), 11);
}

#[test]
fn runs_hold_fewer_of_long_rows_but_four() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data.npz");
    let model = bert("batch", "sequence", 100);
    for (length, rows) in [(32, 16), (128, 8), (700, 4)] {
        let ids = (0..20 * length).map(|i| 1 + i as i64 % 90).collect();
        let ids = Tensor::i64(vec![20, length], ids);
        npz::write(&path, [("input_ids", &ids)]).unwrap();
        let samples = read_samples(&model, &options(&path)).unwrap();
        let runs: Vec<usize> = batches(&samples, &input_specs(&model).unwrap(), 16)
            .unwrap()
            .map(|batch| batch.unwrap().rows.len())
            .collect();
        assert_eq!(runs.iter().max(), Some(&rows), "of {length} tokens");
        assert_eq!(runs.iter().sum::<usize>(), 20);
    }
}

#[test]
fn a_length_shared_with_an_unknown_axis_is_not_cut() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data.npz");
    let ids_in = Tensor::i64(vec![1, 3], vec![5, 6, 0]);
    let mask = Tensor::i64(vec![1, 3], vec![1, 1, 0]);
    let extra = Tensor::f32(vec![1, 1, 3, 3], vec![0.0; 9]);
    npz::write(
        &path,
        [
            ("input_ids", &ids_in),
            ("attention_mask", &mask),
            ("mask4", &extra),
        ],
    )
    .unwrap();
    let open = model(vec![
        value("input_ids", Elem::I64, &["b", "s"]),
        value("attention_mask", Elem::I64, &["b", "s"]),
        value("mask4", Elem::F32, &["b", "1", "?", "?"]),
    ]);
    let samples = read_samples(&open, &options(&path)).unwrap();
    assert_eq!(samples.samples[0].token_mask, Some(vec![true, true, false]));
    // With the same symbol it is known to count the same tokens.
    let known = model(vec![
        value("input_ids", Elem::I64, &["b", "s"]),
        value("attention_mask", Elem::I64, &["b", "s"]),
        value("mask4", Elem::F32, &["b", "1", "s", "s"]),
    ]);
    let samples = read_samples(&known, &options(&path)).unwrap();
    assert_eq!(samples.samples[0].token_mask, None);
    assert_eq!(samples.samples[0].feeds["mask4"].shape, [1, 1, 2, 2]);
}

#[test]
fn subsets_are_seeded() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("many.npz");
    let n = 1000;
    let values: Vec<i64> = (0..n).collect();
    let t = Tensor::i64(vec![n as usize, 1], values);
    npz::write(&path, [("input_ids", &t)]).unwrap();
    let model = bert("batch", "sequence", 2000);
    let take = |seed| {
        let options = DataOptions {
            samples: Some(20),
            seed,
            ..options(&path)
        };
        let samples = read_samples(&model, &options).unwrap();
        samples.samples.iter().map(|s| ids(s)[0]).collect::<Vec<_>>()
    };
    let first = take(7);
    assert_eq!(first, take(7));
    assert_ne!(first, take(8));
    assert_eq!(first.len(), 20);
    assert!(first.is_sorted());
    // Pinned: the same seed means the same samples on every platform.
    assert_eq!(first[..4], [1, 78, 148, 276]);
}

#[test]
fn folders_of_npz_are_one_data_set() {
    let folder = TempDir::new().unwrap();
    for (name, start) in [("b.npz", 10), ("a.npz", 0)] {
        let t = Tensor::i64(vec![3, 2], (start..start + 6).collect());
        npz::write(&folder.path().join(name), [("input_ids", &t)]).unwrap();
    }
    fs::write(folder.path().join("readme.md"), "not data").unwrap();
    let model = bert("batch", "sequence", 100);
    let samples = read_samples(&model, &options(folder.path())).unwrap();
    let firsts: Vec<i64> = samples.samples.iter().map(|s| ids(s)[0]).collect();
    assert_eq!(firsts, [0, 2, 4, 10, 12, 14]);
    let some = read_samples(
        &model,
        &DataOptions {
            samples: Some(3),
            ..options(folder.path())
        },
    )
    .unwrap();
    assert_eq!(some.samples.len(), 3);
    let some: BTreeSet<i64> = some.samples.iter().map(|s| ids(s)[0]).collect();
    assert!(some.is_subset(&firsts.into_iter().collect()));
}

/// Written by `numpy.savez_compressed`: a big-endian int32 in Fortran order,
/// float16, bool, a scalar.
const NUMPY: &str = "\
504b03042d0000000800000021005d43cb89ffffffffffffffff0d001400696e7075745f6964732e6e70790100100098\
0000000000000053000000000000009bec17ea1b10c9c850c650ad9e925a9c5ca46ea5a06e9769a2aea3a09e965f5452\
9498179f5f94920a120f292a4d050a17672416a402b91a463a0ac69a3a0ab50ae4032e06086006624620660162262066\
0500504b03042d00000008000000210097a4f02fffffffffffffffff05001400782e6e70790100100084000000000000\
004a000000000000009bec17ea1b10c9c850c650ad9e925a9c5ca46ea5a06e9366a4aea3a09e965f54529498179f5f94\
920a12774bcc294e058a17672416a402f91a463a0a869a3a0ab50a64032e060b867d00504b03042d0000000800000021\
00ee19bb5dffffffffffffffff08001400666c61672e6e707901001000820000000000000046000000000000009bec17\
ea1b10c9c850c650ad9e925a9c5ca46ea5a05e9364a8aea3a09e965f54529498179f5f94920a12774bcc294e058a1767\
2416a402f91a463a9a3a0ab50a14002e460600504b03042d00000008000000210035b43a93ffffffffffffffff0a0014\
007363616c61722e6e707901001000880000000000000047000000000000009bec17ea1b10c9c850c650ad9e925a9c5c\
a46ea5a06e9366a1aea3a09e965f54529498179f5f94920a12774bcc294e058a17672416a402f91a9a3a0ab50a14012e\
063060710000504b01022d032d0000000800000021005d43cb8953000000980000000d00000000000000000000008001\
00000000696e7075745f6964732e6e7079504b01022d032d00000008000000210097a4f02f4a00000084000000050000\
000000000000000000800192000000782e6e7079504b01022d032d000000080000002100ee19bb5d4600000082000000\
080000000000000000000000800113010000666c61672e6e7079504b01022d032d00000008000000210035b43a934700\
0000880000000a00000000000000000000008001930100007363616c61722e6e7079504b05060000000004000400dc00\
0000160200000000";

fn numpy_file(folder: &Path) -> PathBuf {
    let bytes: Vec<u8> = (0..NUMPY.len() / 2)
        .map(|i| u8::from_str_radix(&NUMPY[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let path = folder.join("numpy.npz");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_numpy_writes_is_read() {
    let folder = TempDir::new().unwrap();
    let path = numpy_file(folder.path());
    let arrays = npz::read(&path).unwrap();
    assert_eq!(
        arrays["input_ids"],
        Tensor::new(vec![2, 3], Data::I32((0..6).collect()))
    );
    assert_eq!(arrays["x"].to_f32(), [0.5, -1.5]);
    assert_eq!(arrays["x"].elem(), Elem::F16);
    assert_eq!(
        arrays["flag"],
        Tensor::new(vec![2], Data::Bool(vec![true, false]))
    );
    assert_eq!(arrays["scalar"], Tensor::new(Vec::new(), Data::F64(vec![2.5])));

    let model = model(vec![
        value("input_ids", Elem::I64, &["n", "s"]),
        value("x", Elem::F32, &["n", "1"]),
    ]);
    let samples = read_samples(&model, &options(&path)).unwrap();
    assert_eq!(ids(&samples.samples[1]), [3, 4, 5]);
    assert_eq!(samples.samples[1].feeds["x"], Tensor::f32(vec![1, 1], vec![-1.5]));
    assert!(
        samples.notes.iter().any(|n| n.contains("flag, scalar")),
        "{:?}",
        samples.notes
    );
}

#[test]
fn written_archives_read_back() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.npz");
    let a = Tensor::f32(vec![2, 0, 3], vec![]);
    let b = Tensor::new(vec![3], Data::U64(vec![0, 1, u64::MAX]));
    let c = Tensor::new(Vec::new(), Data::Bool(vec![true]));
    npz::write(&path, [("a", &a), ("b/c.d", &b), ("c", &c)]).unwrap();
    let back = npz::read(&path).unwrap();
    assert_eq!(back["a"], a);
    assert_eq!(back["b/c.d"], b);
    assert_eq!(back["c"], c);
}

#[test]
fn npz_other_batch_axes_and_single_inputs() {
    let folder = TempDir::new().unwrap();
    // A batch in second place, and an input without one.
    let path = folder.path().join("a.npz");
    let src = Tensor::i64(vec![2, 3], vec![0, 1, 2, 10, 11, 12]);
    let scale = Tensor::f32(vec![1], vec![0.5]);
    npz::write(&path, [("src", &src), ("scale", &scale)]).unwrap();
    let seq_first = model(vec![
        value("src", Elem::I64, &["seq", "batch"]),
        value("scale", Elem::F32, &["1"]),
    ]);
    let samples = read_samples(&seq_first, &options(&path)).unwrap();
    assert_eq!(samples.samples.len(), 3);
    assert_eq!(
        samples.samples[2].feeds["src"],
        Tensor::i64(vec![2, 1], vec![2, 12])
    );
    assert_eq!(samples.samples[2].feeds["scale"], scale);
    let specs = input_specs(&seq_first).unwrap();
    let batch = batches(&samples, &specs, 8).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.feeds["src"], src);

    // One array for one input, with samples in front of a batch of one.
    let path = folder.path().join("b.npz");
    let images = Tensor::f32(vec![4, 1, 2, 2, 2], (0..32).map(|v| v as f32).collect());
    npz::write(&path, [("arr_0", &images)]).unwrap();
    let vit = model(vec![value("pixel_values", Elem::F32, &["1", "2", "2", "2"])]);
    let samples = read_samples(&vit, &options(&path)).unwrap();
    assert_eq!(samples.samples.len(), 4);
    assert_eq!(samples.samples[1].feeds["pixel_values"].shape, [1, 2, 2, 2]);
    assert_eq!(samples.samples[1].feeds["pixel_values"].to_f32()[0], 8.0);
}

fn tensor_file(path: &Path, name: &str, tensor: &Tensor) {
    let mut proto = proto::TensorProto {
        name: Some(name.to_owned()),
        dims: tensor.shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.elem().to_onnx()),
        ..Default::default()
    };
    match &tensor.data {
        Data::I64(v) if v.len() % 2 == 0 => proto.int64_data = v.clone(),
        Data::I64(v) => {
            proto.raw_data = Some(v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into());
        }
        _ => unreachable!("int64 is enough here"),
    }
    fs::write(path, proto.encode_to_vec()).unwrap();
}

#[test]
fn onnx_test_data() {
    let folder = TempDir::new().unwrap();
    let model = bert("batch", "sequence", 100);
    for (set, start) in [("test_data_set_10", 20), ("test_data_set_2", 10)] {
        let set = folder.path().join(set);
        fs::create_dir(&set).unwrap();
        let ids = Tensor::i64(vec![1, 3], (start..start + 3).collect());
        let mask = Tensor::i64(vec![1, 3], vec![1, 1, 0]);
        // Without names the order of the graph's inputs counts.
        tensor_file(&set.join("input_0.pb"), "", &ids);
        tensor_file(&set.join("input_1.pb"), "", &mask);
    }
    let samples = read_samples(&model, &options(folder.path())).unwrap();
    let all: Vec<Vec<i64>> = samples.samples.iter().map(ids).collect();
    assert_eq!(all, [[10, 11], [20, 21]]);

    let single = TempDir::new().unwrap();
    let types = Tensor::i64(vec![2, 2], vec![0, 1, 1, 0]);
    tensor_file(&single.path().join("input_0.pb"), "token_type_ids", &types);
    tensor_file(
        &single.path().join("input_1.pb"),
        "input_ids",
        &Tensor::i64(vec![2, 2], vec![1, 2, 3, 4]),
    );
    let samples = read_samples(&model, &options(single.path())).unwrap();
    assert_eq!(ids(&samples.samples[1]), [3, 4]);
    assert_eq!(
        samples.samples[1].feeds["token_type_ids"].to_i64().unwrap(),
        [1, 0]
    );
}

#[test]
fn hostile_arrays() {
    let folder = TempDir::new().unwrap();
    let model = bert("batch", "sequence", 100);
    let good = fs::read(padded(folder.path(), Elem::I64)).unwrap();
    let path = folder.path().join("bad.npz");
    let said = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        error(&model, &options(&path))
    };

    assert!(said(b"").contains("not a readable .npz"));
    assert!(said(b"PK\x05\x06 nonsense").contains("not a readable .npz"));
    // Cut short anywhere, or with any byte changed: an error or samples, no panic.
    for cut in (0..good.len()).step_by(7) {
        said(&good[..cut]);
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, bytes).unwrap();
        let _ = read_samples(&model, &options(&path));
    }
    // Declared far larger than it is.
    let text = "'shape': (3, 5, )";
    let at = good
        .windows(text.len())
        .position(|w| w == text.as_bytes())
        .unwrap();
    for (claim, problem) in [
        ("'shape': (3, 6, )", "is damaged"),
        ("'shape': (99999,)", "is damaged"),
        ("'shape': (-3,5, )", "header cannot be read"),
        ("'shape': (3, 5, ]", "header cannot be read"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + text.len()].copy_from_slice(claim.as_bytes());
        let said = said(&bytes);
        assert!(said.contains(problem) && said.contains("input_ids"), "{said}");
    }
    let huge = npy("<i8", "(4294967295, 4294967295, 16)");
    assert!(said(&zip_of("input_ids.npy", &huge)).contains("too large"));
    let objects = npy("|O", "(3, 5)");
    assert!(said(&zip_of("input_ids.npy", &objects)).contains("text or objects"));
    let long = [b"\x93NUMPY\x02\x00".as_slice(), &u32::MAX.to_le_bytes(), b"{"].concat();
    assert!(said(&zip_of("input_ids.npy", &long)).contains("header claims"));
    assert!(said(&zip_of("input_ids.npy", b"PNG")).contains("cut short"));
    assert!(said(&zip_of("input_ids.txt", b"1 2 3")).contains("holds no arrays"));
}

fn npy(descr: &str, shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes()].concat()
}

fn zip_of(name: &str, content: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, zip::write::SimpleFileOptions::default())
        .unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn wrong_arrays_are_named() {
    let folder = TempDir::new().unwrap();
    let model = bert("batch", "sequence", 100);
    let path = folder.path().join("x.npz");
    let said = |arrays: &[(&str, &Tensor)]| {
        npz::write(&path, arrays.iter().copied()).unwrap();
        error(&model, &options(&path))
    };
    let ids = Tensor::i64(vec![2, 3], vec![1; 6]);

    let s = said(&[("tokens", &ids), ("labels", &ids)]);
    assert!(s.contains("labels[2, 3], tokens[2, 3]") && s.contains("input_ids I64[batch, sequence]"));
    let s = said(&[("attention_mask", &ids)]);
    assert!(s.contains("nothing for graph input 'input_ids'"), "{s}");
    let s = said(&[("input_ids", &Tensor::f32(vec![2, 3], vec![1.0; 6]))]);
    assert!(
        s.contains("input_ids") && s.contains("floats are not turned into integers"),
        "{s}"
    );
    let s = said(&[
        ("input_ids", &ids),
        ("attention_mask", &Tensor::i64(vec![3, 3], vec![1; 9])),
    ]);
    assert!(s.contains("number of samples differs"), "{s}");
    let s = said(&[
        ("input_ids", &ids),
        ("attention_mask", &Tensor::i64(vec![2, 4], vec![1; 8])),
    ]);
    assert!(s.contains("4 positions where the tokens have 3"), "{s}");
    let s = said(&[("input_ids", &Tensor::i64(vec![1, 1, 1, 6], vec![1; 6]))]);
    assert!(
        s.contains("shape [1, 1, 1, 6]") && s.contains("samples along axis 0"),
        "{s}"
    );
    let s = said(&[("input_ids", &Tensor::i64(vec![1, 2], vec![1, 100]))]);
    assert!(s.contains("id 100") && s.contains("100 rows"), "{s}");
    let s = said(&[("input_ids", &Tensor::i64(vec![1, 2], vec![1, -1]))]);
    assert!(s.contains("id -1"), "{s}");
    let s = said(&[("input_ids", &Tensor::i64(vec![0, 3], vec![]))]);
    assert!(s.contains("no samples"), "{s}");
    let fixed = bert("batch", "7", 100);
    npz::write(&path, [("input_ids", &ids)]).unwrap();
    let s = error(&fixed, &options(&path));
    assert!(
        s.contains("shape [2, 3]") && s.contains("input_ids I64[batch, 7]"),
        "{s}"
    );
}

#[test]
fn hostile_test_data() {
    let model = bert("batch", "sequence", 100);
    let said = |bytes: &[u8]| {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("input_0.pb"), bytes).unwrap();
        error(&model, &options(folder.path()))
    };
    assert!(said(b"\xff\xff\xff\xff").contains("not a tensor in protobuf form"));
    let mut tensor = proto::TensorProto {
        dims: vec![1, 3],
        data_type: Some(7),
        int64_data: vec![1, 2],
        ..Default::default()
    };
    assert!(said(&tensor.encode_to_vec()).contains("3 elements, the file holds 2"));
    tensor.dims = vec![1 << 40, 1 << 40];
    assert!(said(&tensor.encode_to_vec()).contains("more than"));
    tensor.dims = vec![-1, 2];
    assert!(said(&tensor.encode_to_vec()).contains("negative size"));
    tensor.dims = vec![1, 2];
    tensor.data_type = Some(8);
    assert!(said(&tensor.encode_to_vec()).contains("element type 8"));
    tensor.data_type = Some(7);
    tensor.int64_data.clear();
    tensor.raw_data = Some(vec![0; 17].into());
    assert!(said(&tensor.encode_to_vec()).contains("elements"));
    tensor.external_data = vec![proto::StringStringEntryProto {
        key: Some("location".to_owned()),
        value: Some("/etc/passwd".to_owned()),
    }];
    assert!(said(&tensor.encode_to_vec()).contains("external data"));

    let empty = TempDir::new().unwrap();
    assert!(error(&model, &options(empty.path())).contains("neither .npz files nor input_0.pb"));
    assert!(error(&model, &options(Path::new("/does/not/exist.npz"))).contains("/does/not/exist"));
    let odd = empty.path().join("x.parquet");
    fs::write(&odd, "PAR1").unwrap();
    assert!(error(&model, &options(&odd)).contains(".jsonl"));
}

// ---------------------------------------------------------------- texts

const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "is", "\"", "so", ",",
];

fn tokenizer(folder: &Path) -> PathBuf {
    let special = |id: usize| {
        serde_json::json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let vocabulary: serde_json::Map<String, serde_json::Value> = WORDS
        .iter()
        .enumerate()
        .map(|(i, w)| ((*w).to_owned(), i.into()))
        .collect();
    let token = |name: &str, t: u32| serde_json::json!({"SpecialToken": {"id": name, "type_id": t}});
    let text = |name: &str, t: u32| serde_json::json!({"Sequence": {"id": name, "type_id": t}});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": (0..4).map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)],
            "pair": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0), text("B", 1), token("[SEP]", 1)],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    });
    let path = folder.join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    path
}

/// The samples of a file with `content`, as words, without the special tokens.
fn texts(name: &str, content: &[u8], columns: &[&str]) -> Result<Vec<String>, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let tokenizer = tokenizer(folder.path());
    let options = DataOptions {
        tokenizer: Some(tokenizer),
        text_columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        ..options(&path)
    };
    let model = bert("batch", "sequence", 12);
    let samples = read_samples(&model, &options).map_err(|e| {
        assert_eq!(e.exit_code(), 2, "{e:?}");
        e.chain()
    })?;
    Ok(samples.samples.iter().map(words).collect())
}

fn words(sample: &Sample) -> String {
    let ids = ids(sample);
    assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3), "{ids:?}");
    let n = ids.len();
    assert_eq!(
        sample.feeds["attention_mask"],
        Tensor::i64(vec![1, n], vec![1; n])
    );
    let words: Vec<&str> = ids[1..n - 1].iter().map(|&id| WORDS[id as usize]).collect();
    words.join(" ")
}

#[test]
fn plain_lines() {
    let said = texts("x.txt", b"\xef\xbb\xbfA good film\r\n\n  \nbad\nso", &[]).unwrap();
    assert_eq!(said, ["a good film", "bad", "so"]);
}

#[test]
fn json_lines() {
    let pairs = br#"{"label": 1, "premise": "good", "hypothesis": "bad", "x": 1}
{"hypothesis": "so", "premise": "a film"}
{"hypothesis": null, "premise": "a film"}"#;
    assert_eq!(
        texts("x.jsonl", pairs, &[]).unwrap(),
        ["good [SEP] bad", "a film [SEP] so"]
    );
    assert_eq!(texts("x.jsonl", pairs, &["hypothesis"]).unwrap(), ["bad", "so"]);
    assert_eq!(
        texts("x.jsonl", b"\"good film\"\n\"bad\"\n", &[]).unwrap(),
        ["good film", "bad"]
    );
}

#[test]
fn tab_separated_like_glue() {
    // Quotation marks that quote nothing, one of them never closed.
    let sst = b"sentence\tlabel\n\"good\" film \t1\n\" so bad\t0\na , film\t1\n";
    assert_eq!(
        texts("x.tsv", sst, &[]).unwrap(),
        ["\" good \" film", "\" so bad", "a , film"]
    );
    // Quoted by a program.
    assert_eq!(
        texts("x.tsv", b"text\n\"a \"\"good\"\" film\"\n", &[]).unwrap(),
        ["a \" good \" film"]
    );
    // CoLA has no header.
    let cola = b"gj04\t1\t\tgood film\nks08\t0\t*\tbad\n";
    assert_eq!(texts("x.tsv", cola, &["3"]).unwrap(), ["good film", "bad"]);
    let said = texts("x.tsv", cola, &[]).unwrap_err();
    assert!(
        said.contains("4 columns") && said.contains("--text-column"),
        "{said}"
    );
    // Pairs, and by number with a header.
    let mrpc = b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tgood\tbad\n";
    assert_eq!(texts("x.tsv", mrpc, &[]).unwrap(), ["good [SEP] bad"]);
    assert_eq!(texts("x.tsv", mrpc, &["4"]).unwrap(), ["bad"]);
    assert_eq!(
        texts("x.tsv", mrpc, &["#2 String", "#1 String"]).unwrap(),
        ["bad [SEP] good"]
    );
    // Text and label without a header.
    assert_eq!(
        texts("x.tsv", b"a film\t1\nbad\t0\n", &[]).unwrap(),
        ["a film", "bad"]
    );
    let said = texts("x.tsv", sst, &["body"]).unwrap_err();
    assert!(
        said.contains("no column 'body'") && said.contains("sentence | label"),
        "{said}"
    );
}

#[test]
fn comma_separated() {
    let csv = b"id,text,label\n1,\"a, good\nfilm\",1\n2,\"so \"\"bad\"\"\",0\n";
    assert_eq!(
        texts("x.csv", csv, &[]).unwrap(),
        ["a , good film", "so \" bad \""]
    );
    assert_eq!(
        texts("x.CSV", b"good,1\nbad,0\n", &["0"]).unwrap(),
        ["good", "bad"]
    );
}

#[test]
fn hostile_texts() {
    let said = |name: &str, content: &[u8]| texts(name, content, &[]).unwrap_err();
    for name in ["x.txt", "x.jsonl", "x.tsv", "x.csv"] {
        assert!(said(name, b"").contains("no samples"), "{name}");
        assert!(said(name, b"\n\n \n").contains("no samples"), "{name}");
    }
    assert!(said("x.txt", b"good\nb\xffd\n").contains("x.txt, line 2: not UTF-8"));
    assert!(said("x.tsv", b"good\tx\nbad\xff\tx\n").contains("line 2: not UTF-8"));
    assert!(said("x.csv", b"text,l\n\"good\nfilm\",x\nbad\xff,x\n").contains("line 4: not UTF-8"));
    let json = said("x.jsonl", b"{\"text\": \"good\"}\n\n{\"text\": \"bad\"\n");
    assert!(json.contains("x.jsonl, line 3: not valid JSON"), "{json}");
    assert!(said("x.jsonl", b"{\"text\": 3}\n").contains("line 1: 'text' is not a string"));
    assert!(said("x.jsonl", b"{\"text\": \"a\"}\n{\"t\": \"b\"}").contains("line 2: no key 'text'"));
    assert!(said("x.jsonl", b"{\"a\": \"b\"}\n").contains("--text-column from: a"));
    assert!(said("x.jsonl", b"[1, 2]\n").contains("object or string"));
    assert!(said("x.jsonl", "[".repeat(100_000).as_bytes()).contains("line 1"));
    let ragged = said("x.tsv", b"label\ttext\n1\n2\n");
    assert!(
        ragged.contains("2 lines have fewer columns") && ragged.contains("line 2"),
        "{ragged}"
    );
    let endless = vec![b'a'; 17 << 20];
    assert!(said("x.txt", &endless).contains("line 1: longer than"));
    let open = [b"text\n\"".as_slice(), &endless].concat();
    assert!(said("x.csv", &open).contains("line 2: a record is longer"));
    assert!(
        texts("x.txt", b"a\n", &["1", "2", "3"])
            .unwrap_err()
            .contains("one column, or two")
    );
}

#[test]
fn tokenizers_are_checked() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.txt");
    fs::write(&path, "good good good good film\n").unwrap();
    let model = bert("batch", "sequence", 12);
    assert!(error(&model, &options(&path)).contains("--tokenizer"));

    let tokenizer = tokenizer(folder.path());
    let with = |max_length| DataOptions {
        tokenizer: Some(folder.path().to_owned()),
        max_length,
        ..options(&path)
    };
    let samples = read_samples(&model, &with(5)).unwrap();
    assert_eq!(words(&samples.samples[0]), "good good good");
    for too_short in 0..4 {
        assert!(error(&model, &with(too_short)).contains("leaves no room"));
    }
    // Of another model: its ids do not fit.
    let said = error(&bert("batch", "sequence", 5), &with(16));
    assert!(said.contains("id 6") && said.contains("5 rows"), "{said}");
    let images = self::model(vec![value("pixel_values", Elem::F32, &["b", "3", "8", "8"])]);
    assert!(error(&images, &with(16)).contains("models with token ids"));
    for bad in [
        "",
        "{",
        "{}",
        "[1]",
        "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\"}}",
    ] {
        fs::write(&tokenizer, bad).unwrap();
        assert!(
            error(&model, &with(16)).contains("is not a tokenizer.json"),
            "{bad}"
        );
    }
}

#[test]
fn texts_are_padded_where_the_length_is_fixed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.txt");
    fs::write(&path, "good film\na a a a a a a a\n").unwrap();
    let options = DataOptions {
        tokenizer: Some(tokenizer(folder.path())),
        ..options(&path)
    };
    let samples = read_samples(&bert("1", "6", 12), &options).unwrap();
    assert_eq!(ids(&samples.samples[0]), [2, 4, 6, 3, 0, 0]);
    let mask = samples.samples[0].feeds["attention_mask"].to_i64().unwrap();
    assert_eq!(mask, [1, 1, 1, 1, 0, 0]);
    assert_eq!(
        samples.samples[0].token_mask,
        Some(vec![true, true, true, true, false, false])
    );
    assert_eq!(ids(&samples.samples[1]), [2, 7, 7, 7, 7, 3]);
    assert_eq!(samples.samples[1].token_mask, None);
    assert!(
        samples.notes.iter().any(|n| n.contains("cut to 6 tokens")),
        "{:?}",
        samples.notes
    );
}

#[test]
fn texts_fill_every_input() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.tsv");
    fs::write(&path, "sentence1\tsentence2\ngood film\tbad\n").unwrap();
    let options = DataOptions {
        tokenizer: Some(tokenizer(folder.path())),
        ..options(&path)
    };
    let model = model(vec![
        value("input_ids", Elem::I32, &["batch", "sequence"]),
        value("attention_mask", Elem::F32, &["batch", "total"]),
        value("token_type_ids", Elem::I64, &["batch", "sequence"]),
        value("position_ids", Elem::I64, &["batch", "sequence"]),
        value("past_key_values.0.key", Elem::F32, &["batch", "4", "past", "8"]),
        value("use_cache_branch", Elem::Bool, &["1"]),
        value("decoder_input_ids", Elem::I64, &["batch", "decoder_sequence"]),
    ]);
    let samples = read_samples(&model, &options).unwrap();
    let feeds = &samples.samples[0].feeds;
    let n = 6;
    assert_eq!(
        feeds["input_ids"],
        Tensor::new(vec![1, n], Data::I32(vec![2, 4, 6, 3, 5, 3]))
    );
    assert_eq!(feeds["attention_mask"], Tensor::f32(vec![1, n], vec![1.0; n]));
    assert_eq!(
        feeds["token_type_ids"],
        Tensor::i64(vec![1, n], vec![0, 0, 0, 0, 1, 1])
    );
    assert_eq!(feeds["position_ids"], Tensor::i64(vec![1, n], (0..6).collect()));
    assert_eq!(
        feeds["past_key_values.0.key"],
        Tensor::f32(vec![1, 4, 0, 8], vec![])
    );
    assert_eq!(
        feeds["use_cache_branch"],
        Tensor::new(vec![1], Data::Bool(vec![false]))
    );
    assert_eq!(
        feeds["decoder_input_ids"],
        Tensor::i64(vec![1, n], vec![2, 4, 6, 3, 5, 3])
    );
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn real_texts_of_sst2() {
    let Some(data) = shared("data/sst2/train.tsv") else {
        return;
    };
    let Some(folder) = shared("models/minilm-sst2") else {
        return;
    };
    let skeleton = fs::read(folder.join("torchscript17.skeleton.onnx")).unwrap();
    let model = proto::ModelProto::decode(skeleton.as_slice()).unwrap();
    let options = DataOptions {
        tokenizer: Some(folder),
        ..options(&data)
    };
    // Phrases are short: as many as have enough tokens, and the most where there are none.
    let many = |join: bool| {
        let own = DataOptions {
            join,
            ..options.clone()
        };
        let samples = read_samples(&model, &own).unwrap().samples;
        (samples.len(), samples.iter().map(|s| ids(s).len()).sum::<usize>())
    };
    assert_eq!(many(false).0, 2048);
    let (texts, tokens) = many(true);
    assert!(
        (600..2000).contains(&texts) && (28_000..38_000).contains(&tokens),
        "{texts} {tokens}"
    );
    let options = DataOptions {
        samples: Some(512),
        ..options
    };
    let samples = read_samples(&model, &options).unwrap();
    assert_eq!(samples.samples.len(), 512);
    for sample in &samples.samples {
        let ids = ids(sample);
        assert_eq!((ids[0], ids[ids.len() - 1]), (101, 102));
        assert!(ids.len() > 2 && sample.token_mask.is_none());
        assert!(ids.iter().all(|id| (1..30522).contains(id)));
    }
    let tokens: usize = samples.samples.iter().map(|s| ids(s).len()).sum();
    // Phrases of about nine words.
    assert!((8..20).contains(&(tokens / 512)), "{tokens}");
    // Random, not the first ones, and never the header.
    let again = read_samples(&model, &options).unwrap();
    assert_eq!(samples.samples, again.samples);
    let other = read_samples(
        &model,
        &DataOptions {
            seed: 1,
            ..options.clone()
        },
    )
    .unwrap();
    assert_ne!(samples.samples, other.samples);
    assert!(
        samples.notes.iter().any(|n| n.contains("of 60614 texts")),
        "{:?}",
        samples.notes
    );

    // Every label of the file is gone: the texts are the file's first column.
    let file = fs::read_to_string(&data).unwrap();
    let last = file.lines().last().unwrap().split('\t').next().unwrap();
    let all = DataOptions {
        samples: Some(70_000),
        ..options
    };
    let all = read_samples(&model, &all).unwrap();
    assert_eq!(all.samples.len(), 60_614);
    let longest = last.split_whitespace().count();
    assert!(ids(all.samples.last().unwrap()).len() >= longest.min(126));

    let specs = input_specs(&model).unwrap();
    let mut seen = BTreeSet::new();
    for batch in batches(&samples, &specs, 8).unwrap() {
        let batch = batch.unwrap();
        assert!(batch.token_mask.is_none());
        assert_eq!(
            batch.feeds["input_ids"].shape,
            [batch.rows.len(), batch.tokens.unwrap()]
        );
        let rows = batch.feeds["input_ids"].to_i64().unwrap();
        for (row, &sample) in rows.chunks(batch.tokens.unwrap()).zip(&batch.rows) {
            assert_eq!(row, ids(&samples.samples[sample]));
            assert!(seen.insert(sample));
        }
    }
    assert_eq!(seen.len(), 512);
}

// ---------------------------------------------------------------- synthetic

#[test]
fn synthetic_tokens() {
    let model = bert("batch", "sequence", 50);
    let options = DataOptions {
        samples: Some(100),
        seq: Some(40),
        ..Default::default()
    };
    let samples = read_samples(&model, &options).unwrap();
    assert_eq!(samples.origin, DataOrigin::Synthetic { seed: 0 });
    let lengths: BTreeSet<usize> = samples.samples.iter().map(|s| ids(s).len()).collect();
    assert_eq!((lengths.first(), lengths.last()), (Some(&10), Some(&40)));
    assert_eq!(lengths.len(), 12);
    let tokens: BTreeSet<i64> = samples.samples.iter().flat_map(ids).collect();
    assert_eq!(tokens, (0..50).collect());
    for sample in &samples.samples {
        let shape = sample.feeds["input_ids"].shape.clone();
        assert_eq!(
            sample.feeds["attention_mask"],
            Tensor::i64(shape.clone(), vec![1; shape[1]])
        );
    }
    assert_eq!(samples.samples, read_samples(&model, &options).unwrap().samples);
    assert_ne!(
        samples.samples,
        read_samples(&model, &DataOptions { seed: 9, ..options })
            .unwrap()
            .samples
    );
    assert!(samples.notes[0].contains("random token sequences of length 10 to 40"));
    assert!(samples.notes[1].contains("--tokenizer"));
}

#[test]
fn synthetic_special_tokens() {
    let folder = TempDir::new().unwrap();
    let options = DataOptions {
        samples: Some(30),
        seq: Some(16),
        tokenizer: Some(tokenizer(folder.path())),
        ..Default::default()
    };
    let samples = read_samples(&bert("batch", "sequence", 50), &options).unwrap();
    for sample in &samples.samples {
        let ids = ids(sample);
        assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
        // No other special token, none beyond the tokenizer's 12.
        assert!(
            ids[1..ids.len() - 1].iter().all(|id| (4..12).contains(id)),
            "{ids:?}"
        );
    }
    assert_eq!(samples.notes.len(), 1, "{:?}", samples.notes);
}

#[test]
fn synthetic_images_and_shapes() {
    let open = model(vec![value("pixel_values", Elem::F16, &["batch", "c", "h", "w"])]);
    let mut options = DataOptions {
        samples: Some(2),
        ..Default::default()
    };
    let samples = read_samples(&open, &options).unwrap();
    assert_eq!(samples.samples[0].feeds["pixel_values"].shape, [1, 3, 224, 224]);
    let values = samples.samples[0].feeds["pixel_values"].to_f32();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    assert!(
        mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
        "{mean} {variance}"
    );

    options.shapes = vec![("pixel_values".to_owned(), vec![4, 1, 8, 8])];
    let samples = read_samples(&open, &options).unwrap();
    assert_eq!(samples.samples[0].feeds["pixel_values"].shape, [1, 1, 8, 8]);
    for (shape, name, problem) in [
        (vec![1, 3, 8], "pixel_values", "number of axes"),
        (vec![1, 3, 8, 8], "pixels", "no such input"),
        (vec![1, 1 << 40, 1 << 40, 8], "pixel_values", "more than"),
    ] {
        options.shapes = vec![(name.to_owned(), shape)];
        assert!(error(&open, &options).contains(problem));
    }
    let fixed = model(vec![value("pixel_values", Elem::F32, &["batch", "3", "8", "8"])]);
    options.shapes = vec![("pixel_values".to_owned(), vec![1, 3, 8, 9])];
    assert!(error(&fixed, &options).contains("fixes differs"));
    let vast = model(vec![value(
        "x",
        Elem::F32,
        &["batch", "1000000000000", "1000000000000"],
    )]);
    let said = error(
        &vast,
        &DataOptions {
            samples: Some(1),
            ..Default::default()
        },
    );
    assert!(
        said.contains("graph input 'x'") && said.contains("more than"),
        "{said}"
    );
    assert!(
        error(
            &fixed,
            &DataOptions {
                samples: Some(0),
                ..Default::default()
            }
        )
        .contains("at least one")
    );
}

#[test]
fn synthetic_shape_of_tokens_is_shared() {
    let model = bert("batch", "sequence", 50);
    let options = DataOptions {
        samples: Some(5),
        shapes: vec![("attention_mask".to_owned(), vec![1, 9])],
        ..Default::default()
    };
    let samples = read_samples(&model, &options).unwrap();
    assert!(
        samples
            .samples
            .iter()
            .all(|s| s.feeds.values().all(|t| t.shape == [1, 9]))
    );
}

#[test]
fn inputs_that_cannot_be_fed() {
    let mut no_shape = model(vec![value("x", Elem::F32, &["batch"])]);
    let input = &mut no_shape.graph.as_mut().unwrap().input[0];
    match input.r#type.as_mut().unwrap().value.as_mut().unwrap() {
        proto::type_proto::Value::TensorType(t) => t.shape = None,
        _ => unreachable!(),
    }
    assert!(
        input_specs(&no_shape)
            .unwrap_err()
            .chain()
            .contains("'x' declares no shape")
    );
    no_shape.graph.as_mut().unwrap().input[0].r#type = None;
    assert!(
        input_specs(&no_shape)
            .unwrap_err()
            .chain()
            .contains("'x' is not a dense tensor")
    );
    assert!(input_specs(&proto::ModelProto::default()).is_err());

    let negative = model(vec![value("x", Elem::F32, &["-1", "4"])]);
    let specs = input_specs(&negative).unwrap();
    assert_eq!(specs[0].dims, [InputDim::Unknown, InputDim::Fixed(4)]);
}

/// The number of values of the model's initializer that `input` indexes, by name.
fn table(model: &proto::ModelProto, suffix: &str) -> Option<usize> {
    let graph = model.graph.as_ref()?;
    let found = graph.initializer.iter().find(|t| t.name().contains(suffix))?;
    usize::try_from(*found.dims.first()?).ok()
}

#[test]
fn synthetic_samples_of_every_zoo_model() {
    let Some(zoo) = shared("zoo") else { return };
    let mut checked = 0;
    for entry in fs::read_dir(zoo).unwrap() {
        let path = entry.unwrap().path().join("model.onnx");
        let Ok(bytes) = fs::read(&path) else { continue };
        let model = proto::ModelProto::decode(bytes.as_slice()).unwrap();
        let options = DataOptions {
            samples: Some(12),
            ..Default::default()
        };
        let samples = read_samples(&model, &options).unwrap();
        let place = path.display();
        check_shapes(&model, &samples, &place.to_string());
        let words = [
            "word_embeddings.weight",
            "wte.weight",
            "embed_tokens.weight",
            "shared.weight",
            "lm_head.weight",
        ];
        let rows = words.iter().find_map(|w| table(&model, w));
        if let Some(rows) = rows.filter(|_| samples.samples[0].feeds.contains_key("input_ids")) {
            let most = samples.samples.iter().flat_map(ids).max().unwrap();
            assert!(most < rows as i64, "{place}: {most} of {rows}");
            assert!(most > rows as i64 * 8 / 10, "{place}: {most} of {rows}");
        }
        let positions = ["position_embeddings.weight", "wpe.weight"];
        if let Some(rows) = positions.iter().find_map(|w| table(&model, w)) {
            let most = samples.samples.iter().map(|s| ids(s).len()).max().unwrap();
            assert!(most <= rows && most >= 10, "{place}: {most} of {rows}");
        }
        checked += 1;
    }
    assert!(checked > 50);
}

/// Every input is there, of its type, with the sizes that the graph fixes, and
/// one size per symbol.
fn check_shapes(model: &proto::ModelProto, samples: &Samples, place: &str) {
    let specs = input_specs(model).unwrap();
    for batch in batches(samples, &specs, 4).unwrap() {
        let batch = batch.unwrap();
        let mut symbols = std::collections::BTreeMap::new();
        for spec in &specs {
            let tensor = &batch.feeds[&spec.name];
            assert_eq!(tensor.elem(), spec.elem, "{place}");
            assert_eq!(tensor.shape.len(), spec.dims.len(), "{place}");
            for (dim, &size) in spec.dims.iter().zip(&tensor.shape) {
                match dim {
                    InputDim::Fixed(fixed) => assert_eq!(*fixed, size, "{place} {}", spec.name),
                    InputDim::Symbol(name) => {
                        assert_eq!(*symbols.entry(name).or_insert(size), size, "{place} {name}");
                    }
                    InputDim::Unknown => {}
                }
            }
        }
    }
}

#[test]
fn the_zoo_s_own_inputs_lose_their_padding() {
    let Some(case) = shared("zoo/bert-ts17-eager") else {
        return;
    };
    let model = fs::read(case.join("model.onnx")).unwrap();
    let model = proto::ModelProto::decode(model.as_slice()).unwrap();
    let arrays = npz::read(&case.join("io.npz")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in1.npz");
    let own: Vec<(&str, &Tensor)> = arrays
        .iter()
        .filter_map(|(n, t)| Some((n.strip_prefix("in1.")?, t)))
        .collect();
    npz::write(&path, own).unwrap();
    let samples = read_samples(&model, &options(&path)).unwrap();
    let mask = arrays["in1.attention_mask"].to_i64().unwrap();
    let ids_in = arrays["in1.input_ids"].to_i64().unwrap();
    assert!(mask.contains(&0));
    let width = arrays["in1.attention_mask"].shape[1];
    assert_eq!(samples.samples.len(), mask.len() / width);
    for (row, sample) in samples.samples.iter().enumerate() {
        let own = row * width..(row + 1) * width;
        let real: Vec<i64> = (own.clone().zip(&mask[own]))
            .filter(|(_, m)| **m == 1)
            .map(|(i, _)| ids_in[i])
            .collect();
        assert_eq!(ids(sample), real);
        assert_eq!(sample.token_mask, None);
    }
}
