//! The analysis of a transformer of 1,000 layers, which should take less than a
//! second.
//!
//! `cargo bench --bench axes`

mod common;
#[path = "../tests/it/models/mod.rs"]
mod models;

use std::hint::black_box;
use std::time::Duration;

use common::{say, time};
use criterion::{Criterion, criterion_group, criterion_main};
use models::{attribute, node, shaped, weights};
use onnx_prune::onnx::proto::attribute_proto::AttributeType;
use onnx_prune::onnx::proto::tensor_shape_proto::dimension::Value;
use onnx_prune::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use onnx_prune::{axes, graph};

const LAYERS: usize = 1000;
const HIDDEN: i64 = 8;
const HEADS: i64 = 2;
const NEURONS: i64 = 16;

/// A graph in the making.
#[derive(Default)]
struct Build {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Build {
    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = format!("v{}", self.nodes.len());
        let mut made = node(op, &output, inputs, &[&output]);
        made.attribute = attributes;
        self.nodes.push(made);
        output
    }

    fn weight(&mut self, sizes: &[i64]) -> String {
        let name = format!("w{}", self.constants.len());
        self.constants
            .push(weights(&name, sizes, self.constants.len() as u32));
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("w{}", self.constants.len());
        self.constants.push(TensorProto {
            name: Some(name.clone()),
            dims: vec![values.len() as i64],
            data_type: Some(7),
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        name
    }

    /// `x W + b`.
    fn linear(&mut self, x: &str, rows: i64, columns: i64) -> String {
        let (weight, bias) = (self.weight(&[rows, columns]), self.weight(&[columns]));
        let product = self.op("MatMul", &[x, &weight], vec![]);
        self.op("Add", &[&product, &bias], vec![])
    }

    fn turned(&mut self, x: &str, perm: &[i64]) -> String {
        let perm = AttributeProto {
            r#type: Some(AttributeType::Ints as i32),
            ints: perm.to_vec(),
            ..attribute("perm")
        };
        self.op("Transpose", &[x], vec![perm])
    }

    fn heads(&mut self, x: &str, perm: &[i64]) -> String {
        let (y, shape) = (
            self.linear(x, HIDDEN, HIDDEN),
            self.ints(&[0, 0, HEADS, HIDDEN / HEADS]),
        );
        let split = self.op("Reshape", &[&y, &shape], vec![]);
        self.turned(&split, perm)
    }

    fn residual(&mut self, x: &str, y: &str) -> String {
        let sum = self.op("Add", &[x, y], vec![]);
        let (scale, bias) = (self.weight(&[HIDDEN]), self.weight(&[HIDDEN]));
        self.op("LayerNormalization", &[&sum, &scale, &bias], vec![])
    }

    fn layer(&mut self, x: &str) -> String {
        let [query, value] = [(); 2].map(|()| self.heads(x, &[0, 2, 1, 3]));
        let key = self.heads(x, &[0, 2, 3, 1]);
        let scores = self.op("MatMul", &[&query, &key], vec![]);
        let scores = self.op("Softmax", &[&scores], vec![]);
        let mixed = self.op("MatMul", &[&scores, &value], vec![]);
        let mixed = self.turned(&mixed, &[0, 2, 1, 3]);
        let shape = self.ints(&[0, 0, HIDDEN]);
        let merged = self.op("Reshape", &[&mixed, &shape], vec![]);
        let attention = self.linear(&merged, HIDDEN, HIDDEN);
        let x = self.residual(x, &attention);
        let neurons = self.linear(&x, HIDDEN, NEURONS);
        let active = self.op("Relu", &[&neurons], vec![]);
        let out = self.linear(&active, NEURONS, HIDDEN);
        self.residual(&x, &out)
    }
}

fn transformer() -> ModelProto {
    let sizes = || {
        let [batch, tokens] = ["batch", "tokens"].map(|s| Value::DimParam(s.into()));
        [batch, tokens, Value::DimValue(HIDDEN)]
    };
    let mut build = Build::default();
    let mut x = "x".to_owned();
    for _ in 0..LAYERS {
        x = build.layer(&x);
    }
    models::model(GraphProto {
        name: Some("transformer".into()),
        input: vec![shaped("x", sizes())],
        output: vec![shaped(&x, sizes())],
        node: build.nodes,
        initializer: build.constants,
        ..GraphProto::default()
    })
}

fn analysis(c: &mut Criterion) {
    let model = transformer();
    let analyse = || {
        let graph = graph::build(&model).expect("a graph");
        axes::analyse(&graph, axes::AnalysisOptions::default())
            .groups
            .len()
    };
    let groups = analyse();
    let seconds = (0..3)
        .map(|_| {
            time(|| {
                black_box(analyse());
            })
        })
        .fold(f64::INFINITY, f64::min);
    let what = format!("{LAYERS} layers, {groups} groups: {seconds:.3} s, against one second");
    say(&what, seconds, "at most 1.00");
    let mut group = c.benchmark_group("axes");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("1,000 layers", |b| b.iter(analyse));
    group.finish();
}

criterion_group!(benches, analysis);
criterion_main!(benches);
