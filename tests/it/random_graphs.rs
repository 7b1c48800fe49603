//! Sliced equals masked on random small graphs: blocks of many shapes, put
//! together at random, random masks of every group that is found.

use onnx_prune::axes::{self, Kind};
use onnx_prune::engine::{self, Engine, EngineOptions, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::onnx::{self, proto};
use onnx_prune::rewrite;
use onnx_prune::tensor::{Feeds, Tensor};
use proto::attribute_proto::AttributeType;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest relative difference; float32, three blocks at most.
const CLOSE: f32 = 1e-5;

struct Builder {
    graph: proto::GraphProto,
    rng: ChaCha8Rng,
    count: usize,
}

impl Builder {
    fn weight(&mut self, shape: &[usize]) -> String {
        let size = shape.iter().product();
        let scale = 1.0 / (shape[0] as f32).sqrt();
        let values = (0..size)
            .map(|_| (self.rng.random::<f32>() - 0.5) * 2.0 * scale)
            .collect();
        self.tensor(Tensor::f32(shape.to_vec(), values))
    }

    fn ints(&mut self, values: &[i64]) -> String {
        self.tensor(Tensor::i64(vec![values.len()], values.to_vec()))
    }

    fn tensor(&mut self, tensor: Tensor) -> String {
        self.count += 1;
        let name = format!("c{}", self.count);
        self.graph.initializer.push(onnx::tensor_proto(&name, &tensor));
        name
    }

    fn op(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Vec<i64>)]) -> String {
        self.many(op, inputs, attrs, 1).remove(0)
    }

    fn many(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Vec<i64>)], outputs: usize) -> Vec<String> {
        self.count += 1;
        let names: Vec<String> = (0..outputs).map(|k| format!("v{}_{k}", self.count)).collect();
        let attribute = attrs
            .iter()
            .map(|(name, values)| {
                let list = matches!(*name, "perm" | "axes" | "split");
                proto::AttributeProto {
                    name: Some((*name).into()),
                    r#type: Some(if list {
                        AttributeType::Ints
                    } else {
                        AttributeType::Int
                    } as i32),
                    ints: if list { values.clone() } else { vec![] },
                    i: (!list).then(|| values[0]),
                    ..Default::default()
                }
            })
            .collect();
        self.graph.node.push(proto::NodeProto {
            op_type: Some(op.into()),
            name: Some(format!("n{}", self.count)),
            input: inputs.iter().map(|s| (*s).to_string()).collect(),
            output: names.clone(),
            attribute,
            ..Default::default()
        });
        names
    }

    fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let w = self.weight(&[from, to]);
        let y = self.op("MatMul", &[x, &w], &[]);
        if self.rng.random_bool(0.5) {
            let b = self.weight(&[to]);
            return self.op("Add", &[&b, &y], &[]);
        }
        y
    }

    fn feed_forward(&mut self, x: &str, hidden: usize) -> String {
        let width = self.rng.random_range(3..9);
        let inner = match self.rng.random_range(0..4) {
            // Gate and up packed into one weight.
            0 => {
                let both = self.linear(x, hidden, 2 * width);
                let sizes = self.ints(&[width as i64, width as i64]);
                let parts = self.many("Split", &[&both, &sizes], &[("axis", vec![-1])], 2);
                let gate = self.op("Sigmoid", &[&parts[0]], &[]);
                self.op("Mul", &[&gate, &parts[1]], &[])
            }
            // Packed with slices instead of a split.
            1 => {
                let both = self.linear(x, hidden, 2 * width);
                let (start, middle) = (self.ints(&[0]), self.ints(&[width as i64]));
                let (end, axis) = (self.ints(&[i64::MAX]), self.ints(&[2]));
                let a = self.op("Slice", &[&both, &start, &middle, &axis], &[]);
                let b = self.op("Slice", &[&both, &middle, &end, &axis], &[]);
                let a = self.op("Tanh", &[&a], &[]);
                self.op("Mul", &[&a, &b], &[])
            }
            // Gated by two projections.
            2 => {
                let gate = self.linear(x, hidden, width);
                let up = self.linear(x, hidden, width);
                let gate = self.op("Relu", &[&gate], &[]);
                self.op("Mul", &[&up, &gate], &[])
            }
            _ => {
                let up = self.linear(x, hidden, width);
                self.op("Relu", &[&up], &[])
            }
        };
        self.linear(&inner, width, hidden)
    }

    fn attention(&mut self, x: &str, hidden: usize) -> String {
        let (heads, dim) = (self.rng.random_range(2..5), self.rng.random_range(2..5));
        let (h, d) = (heads as i64, dim as i64);
        let width = heads * dim;
        let [q, k, v] = match self.rng.random_range(0..3) {
            // Blocks q | k | v.
            0 => {
                let all = self.linear(x, hidden, 3 * width);
                let parts = self.many(
                    "Split",
                    &[&all],
                    &[("axis", vec![2]), ("num_outputs", vec![3])],
                    3,
                );
                let shape = if self.rng.random_bool(0.5) {
                    self.ints(&[0, 0, -1, d])
                } else {
                    self.ints(&[0, 0, h, d])
                };
                [0, 1, 2].map(|i| {
                    let x = self.op("Reshape", &[&parts[i], &shape], &[]);
                    self.op("Transpose", &[&x], &[("perm", vec![0, 2, 1, 3])])
                })
            }
            // [heads, 3, dim] or [3, heads, dim] in one weight.
            kind @ 1..=2 => {
                let all = self.linear(x, hidden, 3 * width);
                let (shape, axis) = if kind == 1 {
                    (vec![0, 0, h, 3, d], 3)
                } else {
                    (vec![0, 0, 3, h, d], 2)
                };
                let shape = self.ints(&shape);
                let all = self.op("Reshape", &[&all, &shape], &[]);
                [0, 1, 2].map(|i| {
                    let at = self.tensor(Tensor::i64(vec![], vec![i]));
                    let x = self.op("Gather", &[&all, &at], &[("axis", vec![axis])]);
                    self.op("Transpose", &[&x], &[("perm", vec![0, 2, 1, 3])])
                })
            }
            _ => unreachable!("three ways"),
        };
        let k = self.op("Transpose", &[&k], &[("perm", vec![0, 1, 3, 2])]);
        let scores = self.op("MatMul", &[&q, &k], &[]);
        let scores = self.op("Softmax", &[&scores], &[("axis", vec![-1])]);
        let mixed = self.op("MatMul", &[&scores, &v], &[]);
        let mixed = self.op("Transpose", &[&mixed], &[("perm", vec![0, 2, 1, 3])]);
        let shape = self.ints(&[0, 0, width as i64]);
        let mixed = self.op("Reshape", &[&mixed, &shape], &[]);
        self.linear(&mixed, width, hidden)
    }
}

fn info(name: &str, hidden: usize) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::dimension::Value;
    let dims = [
        Value::DimParam("batch".into()),
        Value::DimParam("seq".into()),
        Value::DimValue(hidden as i64),
    ];
    crate::models::shaped(name, dims)
}

/// A residual stream with one to three random blocks; returns how many heads
/// and neuron groups it has.
fn random_model(seed: u64) -> (proto::ModelProto, usize, [usize; 2]) {
    let mut b = Builder {
        graph: proto::GraphProto {
            name: Some("random".into()),
            ..Default::default()
        },
        rng: ChaCha8Rng::seed_from_u64(seed),
        count: 0,
    };
    let hidden = b.rng.random_range(4..8);
    b.graph.input.push(info("x", hidden));
    let mut x = "x".to_string();
    let mut found = [0, 0];
    for _ in 0..b.rng.random_range(1..4) {
        let y = if b.rng.random_bool(0.5) {
            found[0] += 1;
            b.attention(&x, hidden)
        } else {
            found[1] += 1;
            b.feed_forward(&x, hidden)
        };
        x = b.op("Add", &[&x, &y], &[]);
        if b.rng.random_bool(0.5) {
            let (gamma, beta) = (b.weight(&[hidden]), b.weight(&[hidden]));
            x = b.op("LayerNormalization", &[&x, &gamma, &beta], &[("axis", vec![-1])]);
        }
    }
    b.graph.output.push(info(&x, hidden));
    let model = proto::ModelProto {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(18),
        }],
        graph: Some(b.graph),
        ..Default::default()
    };
    (model, hidden, found)
}

fn run(engine: &dyn Engine, model: &proto::ModelProto, feeds: &Feeds) -> Vec<f32> {
    let mut session = engine.session(model, &SessionOptions::default()).unwrap();
    session.run(feeds).unwrap()[0].to_f32()
}

#[test]
fn sliced_equals_masked_on_random_graphs() {
    let options = EngineOptions {
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = engine::choose(&options).unwrap();
    for seed in 0..60 {
        let (model, hidden, expected) = random_model(seed);
        onnx::validate(&model).unwrap();
        let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
        let analysis = &network.axes;
        let of = |kind: Kind| analysis.groups.iter().filter(|g| g.kind == kind).count();
        assert_eq!(
            [of(Kind::Heads), of(Kind::Neurons)],
            expected,
            "seed {seed}: {:?}",
            analysis.groups
        );
        let mut rng = ChaCha8Rng::seed_from_u64(seed + 1000);
        let values = (0..2 * 3 * hidden).map(|_| rng.random::<f32>() - 0.5).collect();
        let feeds: Feeds = [("x".to_string(), Tensor::f32(vec![2, 3, hidden], values))].into();
        for round in 0..3 {
            let mut mask = Mask::default();
            for (at, group) in analysis.indexed().filter(|(_, g)| g.kind.is_default()) {
                let empty = round == 2 && rewrite::can_empty(&network, at);
                let sure = rng.random_range(0..group.units);
                let kept = (0..group.units)
                    .map(|u| !empty && (u == sure || rng.random_bool(0.5)))
                    .collect();
                mask.kept.insert(at, kept);
            }
            let sliced = rewrite::prune(&network, &mask).unwrap();
            let masked = rewrite::masked(&network, &mask).unwrap();
            let (a, b) = (
                run(engine.as_ref(), &sliced, &feeds),
                run(engine.as_ref(), &masked, &feeds),
            );
            let scale = b.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
            let worst = a
                .iter()
                .zip(&b)
                .fold(0.0f32, |m, (x, y)| m.max((x - y).abs() / scale));
            assert!(
                a.len() == b.len() && worst <= CLOSE,
                "seed {seed}, round {round}: differs by {worst:e}"
            );
        }
    }
}
