//! Models of a node or two: element types, odd shapes, odd files.

use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use onnx_prune::tensor::{Data, Elem, Feeds, Tensor};

use super::zoo::{built_in, onnx_runtime};

fn value(name: &str, elem: Elem) -> ValueInfoProto {
    let tensor = type_proto::Tensor {
        elem_type: Some(elem.to_onnx()),
        shape: None,
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// `y = op(inputs)`.
fn model(op: &str, inputs: &[&str], graph: GraphProto) -> ModelProto {
    let node = NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec!["y".into()],
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            version: Some(17),
            ..OperatorSetIdProto::default()
        }],
        graph: Some(GraphProto {
            name: Some("small".into()),
            node: vec![node],
            ..graph
        }),
        ..ModelProto::default()
    }
}

fn run(engine: &dyn Engine, model: &ModelProto, x: &Tensor) -> Result<Tensor, String> {
    let feeds = Feeds::from([("x".to_owned(), x.clone())]);
    let mut session = engine
        .session(model, &SessionOptions::default())
        .map_err(|e| e.chain())?;
    let results = session.run(&feeds).map_err(|e| e.chain())?;
    Ok(results[0].clone())
}

#[test]
fn every_element_type_goes_in_and_comes_out() {
    let half = |x: f32| half::f16::from_f32(x);
    let brain = |x: f32| half::bf16::from_f32(x);
    let types = [
        Data::F32(vec![1.5, f32::MIN, f32::INFINITY]),
        Data::F64(vec![1.5, f64::MIN, 0.0]),
        Data::F16(vec![half(1.5), half(-2.0), half(65504.0)]),
        Data::BF16(vec![brain(1.5), brain(-2.0), brain(3e38)]),
        Data::I8(vec![i8::MIN, 0, i8::MAX]),
        Data::I16(vec![i16::MIN, 0, i16::MAX]),
        Data::I32(vec![i32::MIN, 0, i32::MAX]),
        Data::I64(vec![i64::MIN, 0, i64::MAX]),
        Data::U8(vec![0, 1, u8::MAX]),
        Data::U16(vec![0, 1, u16::MAX]),
        Data::U32(vec![0, 1, u32::MAX]),
        Data::U64(vec![0, 1, u64::MAX]),
        Data::Bool(vec![true, false, true]),
    ];
    for data in types {
        let x = Tensor::new(vec![3, 1], data);
        let identity = GraphProto {
            input: vec![value("x", x.elem())],
            output: vec![value("y", x.elem())],
            ..GraphProto::default()
        };
        let identity = model("Identity", &["x"], identity);
        for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
            let result = run(&*engine, &identity, &x);
            if engine.info().name == "tract" && x.elem() == Elem::BF16 {
                // On a copy in float32, which says so.
                let wide = Tensor::f32(x.shape.clone(), x.to_f32());
                assert_eq!(result, Ok(wide));
                assert!(engine.widens());
            } else {
                assert_eq!(result, Ok(x.clone()), "{}", engine.info().name);
            }
        }
    }
}

#[test]
fn scalars_and_empty_tensors_go_through() {
    let negation = GraphProto {
        input: vec![value("x", Elem::F32)],
        output: vec![value("y", Elem::F32)],
        ..GraphProto::default()
    };
    let negation = model("Neg", &["x"], negation);
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        for (shape, data) in [
            (vec![], vec![2.0]),
            (vec![0, 3], vec![]),
            (vec![1, 1, 2], vec![1.0, 2.0]),
        ] {
            let expected = data.iter().map(|x: &f32| -x).collect();
            let result = run(&*engine, &negation, &Tensor::f32(shape.clone(), data));
            assert_eq!(result, Ok(Tensor::f32(shape, expected)), "{}", engine.info().name);
        }
    }
}

/// `y = x + w` with `w = 10`, listed as an input too if `listed`.
fn sum(listed: bool) -> ModelProto {
    let mut input = vec![value("x", Elem::F32)];
    if listed {
        input.push(value("w", Elem::F32));
    }
    let w = TensorProto {
        name: Some("w".into()),
        dims: vec![1],
        data_type: Some(Elem::F32.to_onnx()),
        float_data: vec![10.0],
        ..TensorProto::default()
    };
    let graph = GraphProto {
        initializer: vec![w],
        input,
        output: vec![value("y", Elem::F32)],
        ..GraphProto::default()
    };
    model("Add", &["x", "w"], graph)
}

#[test]
fn a_default_that_is_an_input_is_kept_or_replaced() {
    let x = Tensor::f32([1], vec![1.0]);
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        assert_eq!(run(&*engine, &sum(true), &x), Ok(Tensor::f32([1], vec![11.0])));
        let feeds = Feeds::from([("x".to_owned(), x.clone()), ("w".to_owned(), x.clone())]);
        let mut session = engine.session(&sum(true), &SessionOptions::default()).unwrap();
        match session.run(&feeds) {
            Ok(results) => assert_eq!(results, [Tensor::f32([1], vec![2.0])]),
            Err(error) => {
                assert_eq!(engine.info().name, "tract");
                assert!(error.chain().contains("`w`"), "{}", error.chain());
            }
        }
    }
}

#[test]
fn inputs_and_constants_can_be_fetched() {
    let feeds = Feeds::from([("x".to_owned(), Tensor::f32([1], vec![1.0]))]);
    let names = ["w", "y", "x"].map(String::from).to_vec();
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        for optimise in [false, true] {
            let options = SessionOptions {
                optimise,
                outputs: Some(names.clone()),
            };
            let mut session = engine.session(&sum(false), &options).unwrap();
            let results = session.run(&feeds).unwrap();
            let expected = [10.0, 11.0, 1.0].map(|v| Tensor::f32([1], vec![v]));
            assert_eq!(results, expected, "{}", engine.info().name);
        }
    }
}

#[test]
fn broken_models_are_errors() {
    let unknown = |domain: &str| {
        let mut broken = sum(false);
        let node = &mut broken.graph.as_mut().unwrap().node[0];
        node.op_type = Some("NoSuchOperator".into());
        node.domain = Some(domain.into());
        broken
    };
    let mut dangling = sum(false);
    dangling.graph.as_mut().unwrap().node[0].input[1] = "nothing".into();
    let mut short = sum(false);
    short.graph.as_mut().unwrap().initializer[0].dims = vec![1 << 40, 1 << 40];
    let mut names = sum(false);
    names.graph.as_mut().unwrap().node[0].output[0] = "y\0".into();
    let broken = [
        ModelProto::default(),
        unknown(""),
        unknown("nowhere"),
        dangling,
        short,
        names,
    ];
    for engine in [onnx_runtime(None), built_in(None)].into_iter().flatten() {
        for model in &broken {
            let x = Tensor::f32([1], vec![1.0]);
            assert!(run(&*engine, model, &x).is_err(), "{}", engine.info().name);
        }
        let error = run(&*engine, &unknown(""), &Tensor::f32([1], vec![1.0]))
            .err()
            .unwrap();
        assert!(error.contains("NoSuchOperator"), "{error}");
    }
}
