//! Feed-forward blocks whose gate is cut out in unusual ways: one group of
//! neurons is found, and sliced equals masked in ONNX Runtime.

use onnx_prune::axes::{self, Kind};
use onnx_prune::engine::SessionOptions;
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::attribute_proto::AttributeType;
use onnx_prune::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use onnx_prune::rewrite;
use onnx_prune::tensor::{Feeds, Tensor};

use crate::models::{attribute, node, weights};

const NEURONS: usize = 6;

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..attribute(name)
    }
}

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

fn integers(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(7),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// `x -> up -> (nodes make 'h' of 'p') -> down -> + residual`.
fn block(
    width: usize,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    residual: Vec<NodeProto>,
) -> ModelProto {
    let stream = if residual.is_empty() { "x" } else { "r" };
    let mut all = vec![node("MatMul", "up", &["x", "w_up"], &["p"])];
    all.extend(nodes);
    all.push(node("MatMul", "down", &["h", "w_down"], &["d"]));
    all.extend(residual);
    all.push(node("Add", "sum", &["d", stream], &["y"]));
    let mut graph = crate::models::graph(&["x"], &["y"], all);
    graph.initializer = constants;
    graph.initializer.push(weights("w_up", &[4, width as i64], 1));
    graph.initializer.push(weights("w_down", &[NEURONS as i64, 4], 2));
    crate::models::model(graph)
}

fn check(case: &str, model: &ModelProto) {
    let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
    let analysis = &network.axes;
    let found: Vec<(Kind, usize)> = analysis.groups.iter().map(|g| (g.kind, g.units)).collect();
    assert_eq!(found, [(Kind::Neurons, NEURONS)], "{case}: {:?}", analysis.frozen);
    let mut mask = Mask::default();
    mask.kept
        .insert(axes::GroupId(0), vec![true, false, true, true, false, false]);
    let sliced = rewrite::prune(&network, &mask).unwrap();
    let masked = rewrite::masked(&network, &mask).unwrap();
    let Some(engine) = crate::common::engine() else {
        return;
    };
    let inputs: Vec<f32> = (0..12u8).map(|i| f32::from(i) * 0.3 - 1.5).collect();
    let feeds: Feeds = [("x".to_string(), Tensor::f32(vec![3, 4], inputs))]
        .into_iter()
        .collect();
    let run = |model: &ModelProto| -> Vec<f32> {
        let options = SessionOptions {
            optimise: true,
            outputs: None,
        };
        let mut session = engine
            .session(model, &options)
            .unwrap_or_else(|e| panic!("{case}: {}", e.chain()));
        session.run(&feeds).unwrap()[0].to_f32().to_vec()
    };
    let (dense, a, b) = (run(model), run(&sliced), run(&masked));
    assert_ne!(dense, b, "{case}: the mask changes nothing");
    for (x, y) in a.iter().zip(&b) {
        assert!((x - y).abs() < 1e-5, "{case}: {a:?} {b:?}");
    }
}

fn product() -> NodeProto {
    node("Mul", "gate", &["a", "b"], &["h"])
}

/// Picks both parts of the sequence `s`.
fn picks() -> Vec<NodeProto> {
    vec![
        node("SequenceAt", "first", &["s", "zero"], &["a"]),
        node("SequenceAt", "second", &["s", "minus_one"], &["b"]),
        product(),
    ]
}

fn sequence(split: TensorProto) -> ModelProto {
    let cut = with(
        node("SplitToSequence", "cut", &["p", "split"], &["s"]),
        vec![int("axis", -1)],
    );
    let mut nodes = vec![cut];
    nodes.extend(picks());
    let places = vec![
        split,
        integers("zero", &[], &[0]),
        integers("minus_one", &[], &[-1]),
    ];
    block(2 * NEURONS, nodes, places, vec![])
}

#[test]
fn parts_of_a_sequence() {
    check("parts of one length", &sequence(integers("split", &[], &[6])));
    check(
        "parts of given lengths",
        &sequence(integers("split", &[2], &[6, 6])),
    );
}

#[test]
fn a_sequence_laid_together() {
    let nodes = vec![
        with(
            node("SplitToSequence", "cut", &["p", "split"], &["s"]),
            vec![int("axis", 1)],
        ),
        with(
            node("ConcatFromSequence", "joined", &["s"], &["q"]),
            vec![int("axis", 1)],
        ),
        node("Relu", "act", &["q"], &["h"]),
    ];
    let model = block(NEURONS, nodes, vec![integers("split", &[], &[6])], vec![]);
    check("one part", &model);
}

#[test]
fn interleaved_parts() {
    let slice =
        |name: &str, start: &str, to: &str| node("Slice", name, &["p", start, "end", "last", "two"], &[to]);
    for end in [i64::MAX, 12] {
        let constants = vec![
            integers("zero", &[1], &[0]),
            integers("one", &[1], &[1]),
            integers("end", &[1], &[end]),
            integers("last", &[1], &[-1]),
            integers("two", &[1], &[2]),
        ];
        let nodes = vec![slice("even", "zero", "a"), slice("odd", "one", "b"), product()];
        check("interleaved", &block(2 * NEURONS, nodes, constants, vec![]));
    }
}

#[test]
fn a_product_of_three() {
    let equation = AttributeProto {
        r#type: Some(AttributeType::String as i32),
        s: Some("nf,nf,f->nf".into()),
        ..attribute("equation")
    };
    let nodes = vec![
        node("Tanh", "act", &["p"], &["a"]),
        with(
            node("Einsum", "three", &["p", "a", "scale"], &["h"]),
            vec![equation],
        ),
    ];
    check(
        "three operands",
        &block(NEURONS, nodes, vec![weights("scale", &[6], 3)], vec![]),
    );
}

#[test]
fn a_weighed_residual() {
    let nodes = vec![node("Relu", "act", &["p"], &["h"])];
    let residual = vec![node("Mul", "weigh", &["x", "by"], &["r"])];
    check(
        "weighed",
        &block(NEURONS, nodes, vec![weights("by", &[4], 4)], residual),
    );
}
