//! What is read is what is written: bytes, messages, tensors.

use std::path::Path;

use crate::models::*;
use bytes::Bytes;
use half::{bf16, f16};
use onnx_prune::onnx::proto::*;
use onnx_prune::onnx::*;
use onnx_prune::tensor::{Data, Tensor};
use proptest::prelude::*;
use prost::Message;

#[test]
fn every_real_file_comes_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let mut compared = 0;
    for path in wheel().into_iter().chain(zoo()) {
        let model = load(&path).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.chain()));
        assert_eq!(model.notes.unknown_bytes, 0, "{}", path.display());
        validate(&model.proto).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.chain()));
        assert_reads_the_same_elsewhere(&model.proto, &path);
        if !model.notes.external_files.is_empty() {
            continue;
        }
        let saved = save(&model.proto, &out, &SaveOptions::for_model(&model)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), bytes, "{}", path.display());
        assert_eq!(saved.files, [(out.clone(), bytes.len() as u64)]);
        assert_eq!(sha256(&path, &[]).unwrap(), sha256(&out, &[]).unwrap());
        let from_memory = from_bytes(bytes.into()).unwrap();
        assert_eq!(from_memory.sha256().unwrap(), model.sha256().unwrap());
        assert_eq!(from_memory.proto, model.proto);
        compared += 1;
    }
    println!("{compared} files are the same");
}

/// An independent implementation (proto3, so it does not tell an absent field
/// from an empty one) finds the same content in what we write, and we find the
/// same in what it writes.
fn assert_reads_the_same_elsewhere(proto: &ModelProto, path: &Path) {
    use protobuf::Message as _;
    let read = |proto: &ModelProto| onnx_protobuf::ModelProto::parse_from_bytes(&encode(proto)).unwrap();
    let other = read(proto);
    let graph = proto.graph.as_ref().unwrap();
    assert_eq!(other.graph.node.len(), graph.node.len());
    for (ours, theirs) in graph.node.iter().zip(&other.graph.node) {
        assert_eq!(
            (ours.op_type(), ours.name(), ours.domain()),
            (&*theirs.op_type, &*theirs.name, &*theirs.domain)
        );
        assert_eq!((&ours.input, &ours.output), (&theirs.input, &theirs.output));
        assert_eq!(ours.attribute.len(), theirs.attribute.len());
        for (ours, theirs) in ours.attribute.iter().zip(&theirs.attribute) {
            assert_eq!(
                (ours.name(), ours.i(), &ours.ints),
                (&*theirs.name, theirs.i, &theirs.ints)
            );
            assert_eq!(
                (ours.f(), &ours.floats, ours.s()),
                (theirs.f, &theirs.floats, &*theirs.s)
            );
            assert_eq!(
                ours.t.as_ref().map(|t| t.raw_data()),
                theirs.t.as_ref().map(|t| &*t.raw_data)
            );
        }
    }
    assert_eq!(other.graph.initializer.len(), graph.initializer.len());
    for (ours, theirs) in graph.initializer.iter().zip(&other.graph.initializer) {
        assert_eq!(
            (ours.name(), &ours.dims, ours.data_type()),
            (&*theirs.name, &theirs.dims, theirs.data_type)
        );
        assert_eq!(
            (ours.raw_data(), &ours.float_data),
            (&*theirs.raw_data, &theirs.float_data)
        );
    }
    let back = ModelProto::decode(Bytes::from(other.write_to_bytes().unwrap())).unwrap();
    assert!(read(&back) == other, "{}", path.display());
}

/// A message with every field set, each large enough that the writer takes it
/// apart, or small enough that it does not.
fn full_model(raw: usize) -> ModelProto {
    let text = |s: &str| Some(s.to_owned());
    let entries = || {
        vec![StringStringEntryProto {
            key: text("key"),
            value: text("value"),
        }]
    };
    let tensor = TensorProto {
        dims: vec![1, -2, 300],
        data_type: Some(1),
        segment: Some(tensor_proto::Segment {
            begin: Some(1),
            end: Some(2),
        }),
        float_data: vec![1.0, 2.0],
        int32_data: vec![-1, 2],
        string_data: vec![Bytes::from_static(b"s")],
        int64_data: vec![-1, 1 << 40],
        name: text("t"),
        doc_string: text("doc"),
        raw_data: Some(vec![7; raw].into()),
        external_data: entries(),
        data_location: Some(0),
        double_data: vec![0.5],
        uint64_data: vec![1 << 63],
        metadata_props: entries(),
    };
    let sparse = SparseTensorProto {
        values: Some(tensor.clone()),
        indices: Some(tensor.clone()),
        dims: vec![3],
    };
    let typed = value("v");
    let empty_graph = GraphProto {
        node: vec![],
        name: text("inner"),
        initializer: vec![tensor.clone(), TensorProto::default()],
        sparse_initializer: vec![sparse.clone()],
        doc_string: text("doc"),
        input: vec![typed.clone()],
        output: vec![typed.clone()],
        value_info: vec![typed.clone()],
        quantization_annotation: vec![TensorAnnotation {
            tensor_name: text("t"),
            quant_parameter_tensor_names: entries(),
        }],
        metadata_props: entries(),
    };
    let attribute = AttributeProto {
        name: text("a"),
        ref_attr_name: text("r"),
        doc_string: text("doc"),
        r#type: Some(4),
        f: Some(1.5),
        i: Some(-3),
        s: Some(Bytes::from_static(b"s")),
        t: Some(tensor.clone()),
        g: Some(empty_graph.clone()),
        sparse_tensor: Some(Box::new(sparse.clone())),
        tp: typed.r#type.clone(),
        floats: vec![1.0],
        ints: vec![-1, 2],
        strings: vec![Bytes::from_static(b"x")],
        tensors: vec![tensor.clone(), tensor.clone()],
        graphs: vec![empty_graph.clone()],
        sparse_tensors: vec![sparse.clone()],
        type_protos: vec![TypeProto::default()],
    };
    let node = NodeProto {
        domain: text("d"),
        overload: text("o"),
        attribute: vec![attribute.clone(), AttributeProto::default()],
        doc_string: text("doc"),
        metadata_props: entries(),
        device_configurations: vec![NodeDeviceConfigurationProto::default()],
        ..node("Op", "n", &["a", ""], &["b"])
    };
    let graph = GraphProto {
        node: vec![node.clone(), NodeProto::default()],
        ..empty_graph
    };
    let function = FunctionProto {
        name: text("f"),
        input: vec!["a".into()],
        output: vec!["b".into()],
        attribute: vec!["x".into()],
        attribute_proto: vec![attribute],
        node: vec![node],
        doc_string: text("doc"),
        opset_import: vec![opset("", 18)],
        domain: text("d"),
        overload: text("o"),
        value_info: vec![typed],
        metadata_props: entries(),
    };
    ModelProto {
        ir_version: Some(14),
        opset_import: vec![opset("", 18), opset("d", 1)],
        producer_name: text("p"),
        producer_version: text("1"),
        domain: text("d"),
        model_version: Some(2),
        doc_string: text("doc"),
        graph: Some(graph.clone()),
        metadata_props: entries(),
        training_info: vec![TrainingInfoProto {
            initialization: Some(graph.clone()),
            algorithm: Some(graph),
            initialization_binding: entries(),
            update_binding: entries(),
        }],
        functions: vec![function],
        configuration: vec![DeviceConfigurationProto::default()],
    }
}

#[test]
fn streamed_bytes_are_the_encoder_s() {
    for raw in [0, 10, 70_000] {
        let model = full_model(raw);
        let mut streamed = Vec::new();
        let count = write_to(&model, &mut streamed).unwrap();
        assert_eq!(count, streamed.len() as u64);
        assert!(streamed == encode(&model), "raw_data of {raw} bytes");
        assert_eq!(from_bytes(streamed.into()).unwrap().proto, model);
    }
}

#[test]
fn large_files_are_mapped_and_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = layers(100, 1);
    save(&model, &path, &SaveOptions::default()).unwrap();
    assert!(path.metadata().unwrap().len() > 3_000_000);
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.proto, model);
    // Slices of one map: increasing addresses, as far apart as in the file.
    let addresses: Vec<_> = loaded
        .proto
        .graph
        .unwrap()
        .initializer
        .iter()
        .map(|t| t.raw_data().as_ptr() as usize)
        .collect();
    for pair in addresses.windows(2) {
        assert!((16_384..16_384 + 64).contains(&(pair[1] - pair[0])), "{pair:?}");
    }
}

#[test]
fn unknown_fields_are_counted() {
    let mut bytes = encode(&layers(1, 1));
    let known = bytes.clone();
    bytes.extend([0xf8, 0x07, 0x01]); // field 127, varint
    bytes.extend([0xfa, 0x07, 0x02, 0, 0]); // field 127, two bytes
    bytes.extend([0xfb, 0x07, 0x08, 0x01, 0xfc, 0x07]); // field 127, a group with a varint
    let model = from_bytes(bytes.into()).unwrap();
    assert_eq!(model.notes.unknown_bytes, 14);
    assert_eq!(encode(&model.proto), known);
    // In a nested message: ModelProto.graph (7) with an unknown field 60.
    let model = from_bytes(Bytes::from_static(&[0x3a, 3, 0xe0, 0x03, 5])).unwrap();
    assert_eq!(model.notes.unknown_bytes, 3);
    // Packed where the schema says unpacked: known, though written differently.
    let packed = [0x3a, 6, 0x2a, 4, 0x0a, 2, 3, 4];
    assert_eq!(from_bytes(packed.to_vec().into()).unwrap().notes.unknown_bytes, 0);
}

#[test]
fn hostile_bytes_are_errors() {
    let error = |bytes: Vec<u8>| from_bytes(bytes.into()).unwrap_err().chain();
    assert!(error(vec![]).contains("empty file"));
    assert!(error(b"version https://git-lfs.github.com/spec/v1\n".to_vec()).contains("Git LFS"));
    assert!(error(b"PK\x03\x04....".to_vec()).contains("ZIP"));
    assert!(error(vec![0x08, 0x07]).contains("no graph"));
    assert!(error(vec![0x3a, 0x05, 0x00]).contains("message ends"));
    assert!(error(vec![0xff; 20]).contains("invalid varint"));
    let cut = encode(&layers(1, 1));
    assert!(error(cut[..cut.len() / 2].to_vec()).contains("cut off"));

    // graph > node > attribute > graph > ... deeper than any decoder goes.
    let mut deep = vec![];
    for level in 0..200u32 {
        let key = match level {
            199 => 0x3a,
            level => [0x0a, 0x2a, 0x32][(198 - level) as usize % 3],
        };
        let mut outer = vec![key];
        prost::encode_length_delimiter(deep.len(), &mut outer).unwrap();
        outer.extend(&deep);
        deep = outer;
    }
    assert!(error(deep).contains("nest too deeply"));

    // A million empty attributes in four megabytes take a thousand times as much.
    let bomb: Vec<u8> = [0x2a, 0].repeat(2_000_000);
    let wrap = |key: u8, inner: &[u8]| {
        let mut outer = vec![key];
        prost::encode_length_delimiter(inner.len(), &mut outer).unwrap();
        outer.extend(inner);
        outer
    };
    assert!(error(wrap(0x3a, &wrap(0x0a, &bomb))).contains("exhaust memory"));
}

#[test]
fn hostile_tensors_are_errors() {
    let base = |dims: &[i64], data_type| TensorProto {
        name: Some("w".into()),
        dims: dims.to_vec(),
        data_type: Some(data_type),
        ..TensorProto::default()
    };
    let raw = |dims: &[i64], data_type, bytes: usize| TensorProto {
        raw_data: Some(vec![0; bytes].into()),
        ..base(dims, data_type)
    };
    let error = |t: &TensorProto| {
        let chain = tensor(t).unwrap_err().chain();
        assert!(chain.contains("tensor \"w\""), "{chain}");
        chain
    };
    assert!(error(&raw(&[i64::MAX, 3], 1, 4)).contains("too many"));
    assert!(error(&raw(&[1 << 61, 2], 1, 4)).contains("too many"));
    assert!(error(&raw(&[i64::MIN, -1], 1, 4)).contains("negative"));
    assert!(error(&raw(&[-2, -2], 1, 16)).contains("negative"));
    assert!(error(&raw(&[2], 1, 7)).contains("need 8 bytes, raw_data has 7"));
    assert!(error(&raw(&[2], 1, 12)).contains("raw_data has 12"));
    assert!(error(&raw(&[0], 1, 4)).contains("need 0 bytes"));
    assert!(error(&raw(&[1; 65], 1, 4)).contains("65 axes"));
    assert!(error(&raw(&[1], 8, 4)).contains("no raw form"));
    assert!(error(&raw(&[1], 0, 4)).contains("type"));
    assert!(error(&raw(&[1], 999, 4)).contains("#999"));
    assert!(error(&raw(&[1], 14, 8)).contains("complex64 cannot be read"));
    assert!(error(&base(&[1 << 40], 1)).contains("there are 0"));
    assert!(error(&base(&[i64::MAX, i64::MAX], 1)).contains("too many"));
    let strings = TensorProto {
        string_data: vec![Bytes::from_static(b"a")],
        ..base(&[1], 8)
    };
    assert!(error(&strings).contains("string cannot be read"));
    let both = TensorProto {
        float_data: vec![0.0],
        ..raw(&[1], 1, 4)
    };
    assert!(error(&both).contains("both"));
    let elsewhere = TensorProto {
        float_data: vec![1.0],
        ..base(&[1], 7)
    };
    assert!(error(&elsewhere).contains("another field"));
    let wide = TensorProto {
        int32_data: vec![300],
        ..base(&[1], 3)
    };
    assert!(error(&wide).contains("300 does not fit"));
    let external = TensorProto {
        data_location: Some(1),
        ..base(&[1], 1)
    };
    assert!(error(&external).contains("external"));
    // An empty tensor has no elements, whatever the other sizes.
    assert_eq!(tensor(&base(&[0, i64::MAX, i64::MAX], 1)).unwrap().len(), 0);
}

fn data() -> impl Strategy<Value = Data> {
    let n = 0..40usize;
    prop_oneof![
        prop::collection::vec(any::<u32>(), n.clone())
            .prop_map(|v| Data::F32(v.into_iter().map(f32::from_bits).collect())),
        prop::collection::vec(any::<u64>(), n.clone())
            .prop_map(|v| Data::F64(v.into_iter().map(f64::from_bits).collect())),
        prop::collection::vec(any::<u16>(), n.clone())
            .prop_map(|v| Data::F16(v.into_iter().map(f16::from_bits).collect())),
        prop::collection::vec(any::<u16>(), n.clone())
            .prop_map(|v| Data::BF16(v.into_iter().map(bf16::from_bits).collect())),
        prop::collection::vec(any::<i8>(), n.clone()).prop_map(Data::I8),
        prop::collection::vec(any::<i16>(), n.clone()).prop_map(Data::I16),
        prop::collection::vec(any::<i32>(), n.clone()).prop_map(Data::I32),
        prop::collection::vec(any::<i64>(), n.clone()).prop_map(Data::I64),
        prop::collection::vec(any::<u8>(), n.clone()).prop_map(Data::U8),
        prop::collection::vec(any::<u16>(), n.clone()).prop_map(Data::U16),
        prop::collection::vec(any::<u32>(), n.clone()).prop_map(Data::U32),
        prop::collection::vec(any::<u64>(), n.clone()).prop_map(Data::U64),
        prop::collection::vec(any::<bool>(), n).prop_map(Data::Bool),
    ]
}

/// The same values in the typed field.
fn typed(t: &TensorProto, values: &Tensor) -> TensorProto {
    let mut t = TensorProto {
        raw_data: None,
        ..t.clone()
    };
    let ints = || {
        values
            .to_i64()
            .unwrap_or_default()
            .into_iter()
            .map(|v| v as i32)
            .collect()
    };
    match &values.data {
        Data::F32(v) => t.float_data = v.clone(),
        Data::F64(v) => t.double_data = v.clone(),
        Data::F16(v) => t.int32_data = v.iter().map(|v| v.to_bits().into()).collect(),
        Data::BF16(v) => t.int32_data = v.iter().map(|v| v.to_bits().into()).collect(),
        Data::I64(v) => t.int64_data = v.clone(),
        Data::U64(v) => t.uint64_data = v.clone(),
        Data::U32(v) => t.uint64_data = v.iter().map(|&v| v.into()).collect(),
        _ => t.int32_data = ints(),
    }
    t
}

proptest! {
    #[test]
    fn tensors_round_trip(data in data(), rows in any::<bool>()) {
        let count = Tensor { shape: vec![], data: data.clone() }.len();
        let shape = if rows && count.is_multiple_of(2) { vec![count / 2, 2] } else { vec![count] };
        let values = Tensor { shape: shape.clone(), data };
        let proto = tensor_proto("w", &values);
        prop_assert_eq!(proto.raw_data().len(), count * values.elem().size());
        let back = tensor(&proto).unwrap();
        prop_assert_eq!(&back.shape, &shape);
        prop_assert_eq!(back.elem(), values.elem());
        // Bytes are compared, so that NaN equals NaN.
        prop_assert_eq!(&tensor_proto("w", &back), &proto);
        let from_fields = tensor(&typed(&proto, &values)).unwrap();
        prop_assert_eq!(&tensor_proto("w", &from_fields), &proto);
    }

    /// Whatever the bytes are, there is a model or an error.
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), shorten in any::<bool>()) {
        let mut small = full_model(3);
        small.graph = layers(1, 2).graph.map(|mut g| { g.initializer.truncate(0); g.node.push(NodeProto { overload: Some("o".into()), ..call("d", "f", "", &["x0"], &["z"]) }); g });
        let mut bytes = encode(&small);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(model) = from_bytes(bytes.into()) {
            let _ = validate(&model.proto);
            let _ = inline_functions(&model.proto);
            let mut out = Vec::new();
            write_to(&model.proto, &mut out).unwrap();
            prop_assert_eq!(out, encode(&model.proto));
        }
    }
}
