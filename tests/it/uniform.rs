//! `--uniform-kv`: every layer keeps the same number of key/value heads, each its
//! own best ones.

use std::sync::atomic::AtomicBool;

use onnx_prune::axes::{self, Kind};
use onnx_prune::budget::{self, Align, Cost, Demand, Limit, Prices, Sizes};
use onnx_prune::engine::{EngineChoice, EngineOptions, SessionOptions};
use onnx_prune::mask::{self, Mask};
use onnx_prune::network::Network;
use onnx_prune::numerics::score::Curve;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::pipeline::Options;
use onnx_prune::progress::Quiet;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::sites::PruneTarget;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{onnx, pipeline, rewrite, sites};

use crate::corpus::within;

const UNIFORM: axes::AnalysisOptions = axes::AnalysisOptions {
    change_interface: true,
    uniform_kv: true,
    own_rules: &[],
};

fn options(flops: f64, method: Method) -> Options {
    let mut options = Options {
        demands: vec![Demand::Flops(flops)],
        rank: RankOptions {
            method,
            ..Options::default().rank
        },
        axes: UNIFORM,
        engine: EngineOptions {
            engine: EngineChoice::Ort,
            threads: Some(1),
            ..EngineOptions::default()
        },
        ..Options::default()
    };
    options.data.samples = Some(16);
    options
}

struct Case {
    network: Network,
    targets: Vec<PruneTarget>,
}

fn load(name: &str, options: &Options) -> Case {
    let file = onnx::load(&crate::common::fixture(name).join("model.onnx")).unwrap();
    let model = onnx::inline_functions(&file.proto).unwrap();
    let network = Network::of(model, options.axes).unwrap();
    let targets = sites::choose(&network, &options.selection).unwrap();
    Case { network, targets }
}

impl Case {
    fn kind(&self, at: usize) -> Kind {
        self.network.axes.group(self.targets[at].group).kind
    }

    /// Layers that want other heads: the first goes from the front, the next from
    /// the back, and it hurts more in each.
    fn rankings(&self) -> Vec<Ranking> {
        let of = |(at, c): (usize, &PruneTarget)| {
            let units = c.units.len();
            let mut order: Vec<usize> = (0..units).collect();
            if at % 4 >= 2 {
                order.reverse();
            }
            let hurt = 1.0 + 9.0 * at as f64;
            Ranking::Curve(Curve {
                order,
                error: (0..=units)
                    .map(|k| hurt * (k as f64 / units as f64).powi(2))
                    .collect(),
            })
        };
        self.targets.iter().enumerate().map(of).collect()
    }

    fn counts(&self, mask: &Mask) -> Vec<usize> {
        (0..self.targets.len())
            .filter(|at| self.kind(*at) == Kind::Heads)
            .map(|at| mask.count(&self.network.axes, self.targets[at].group))
            .collect()
    }

    fn cut(&self, mask: &Mask, name: &str, mut tensor: Tensor) -> Tensor {
        let (kept, space) = (mask.by_factor(&self.network.axes), &self.network.axes.space);
        let id = self.network.graph.find(name).unwrap();
        for (axis, dim) in self.network.axes.facts(id).dims.iter().flatten().enumerate() {
            if kept.touches(space, dim) {
                tensor = crate::common::take(&tensor, axis, &kept.indices(space, dim).unwrap());
            }
        }
        tensor
    }

    fn run(&self, model: &ModelProto, feeds: &Feeds) -> Option<Vec<Tensor>> {
        let engine = crate::common::engine()?;
        let mut session = engine.session(model, &SessionOptions::default()).unwrap();
        Some(session.run(feeds).unwrap())
    }
}

fn even(counts: &[usize]) -> bool {
    counts.len() > 1 && counts.iter().all(|c| *c == counts[0])
}

#[test]
fn layers_keep_the_same_number_of_different_heads() {
    let case = load("zoo/qwen3past-dyn18", &options(0.6, Method::Obs));
    let sizes = Sizes {
        batch: 1,
        seq: 16,
        shapes: Default::default(),
    };
    let cost = Cost::new(&case.network, &sizes);
    let rankings = case.rankings();
    let mut different = 0;
    for asked in [0.9, 0.8, 0.7, 0.6, 0.5] {
        let prices = Prices::macs(&cost, &case.targets);
        let limits = [Limit::new(Demand::Flops(asked), prices)];
        let (network, targets) = (&case.network, &case.targets);
        let found = [1, 2].map(|align| {
            let align = Align::exactly(align);
            within(&limits, network, targets, &rankings, align).unwrap().0
        });
        for mask in found {
            assert!(even(&case.counts(&mask)), "{asked}: {mask:?}");
            budget::check_even(&case.network.axes, &mask).unwrap();
            let heads: Vec<_> = (0..case.targets.len())
                .filter(|at| case.kind(*at) == Kind::Heads)
                .filter_map(|at| mask.kept.get(&case.targets[at].group))
                .filter(|kept| kept.contains(&true))
                .collect();
            different += usize::from(heads.windows(2).any(|w| w[0] != w[1]));
            let sliced = rewrite::prune(&case.network, &mask).unwrap();
            let masked = rewrite::masked(&case.network, &mask).unwrap();
            let feeds = crate::common::feeds(&crate::common::fixture("zoo/qwen3past-dyn18"), 0);
            let fitted = feeds
                .iter()
                .map(|(k, v)| (k.clone(), case.cut(&mask, k, v.clone())));
            let Some(a) = case.run(&sliced, &fitted.collect()) else {
                continue;
            };
            let b = case.run(&masked, &feeds).unwrap();
            for ((a, b), id) in a.iter().zip(b).zip(&case.network.graph.outputs) {
                let b = case.cut(&mask, &case.network.graph.value(*id).name, b);
                assert_eq!(a.shape, b.shape);
                let (a, b) = (a.to_f32(), b.to_f32());
                let scale = b.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
                assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-5 * scale));
            }
        }
    }
    assert!(different > 0, "all layers kept the same heads");
}

#[test]
fn without_it_the_layers_differ() {
    let mut options = options(0.6, Method::Obs);
    options.axes.uniform_kv = false;
    let case = load("zoo/qwen3past-dyn18", &options);
    assert!(case.network.axes.even.is_empty());
}

#[test]
fn what_one_layer_keeps_whole_all_keep_whole() {
    let mut options = options(0.6, Method::Obs);
    let case = load("zoo/qwen3past-dyn18", &options);
    let first = case
        .network
        .axes
        .groups
        .iter()
        .find(|g| g.kind == Kind::Heads)
        .unwrap();
    options.selection.exclude = vec![format!("^{}$", first.name).parse().unwrap()];
    let case = load("zoo/qwen3past-dyn18", &options);
    let sizes = Sizes {
        batch: 1,
        seq: 16,
        shapes: Default::default(),
    };
    let cost = Cost::new(&case.network, &sizes);
    let limits = [Limit::new(Demand::Flops(0.7), Prices::macs(&cost, &case.targets))];
    let align = Align::exactly(1);
    let found = within(&limits, &case.network, &case.targets, &case.rankings(), align);
    let (mask, picked) = found.unwrap();
    assert!(case.counts(&mask).iter().all(|c| *c == 2));
    budget::check_even(&case.network.axes, &mask).unwrap();
    assert!(picked.got[0].got.value() <= 0.7);
}

#[test]
fn whole_runs_keep_the_number() {
    if crate::common::engine().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = crate::common::fixture("zoo/qwen3past-dyn18").join("model.onnx");
    let cancelled = AtomicBool::new(false);
    for (method, flops) in [(Method::Obs, 0.5), (Method::Magnitude, 0.5), (Method::Wanda, 0.5)] {
        let options = options(flops, method);
        let out = folder.path().join("small.onnx");
        let report = pipeline::prune(&model, &out, &[], &options, &Quiet, &cancelled)
            .unwrap_or_else(|e| panic!("{method:?}: {}", e.chain()));
        assert!(report.equality.unwrap().passed && report.budget.got <= flops);
        let heads = report.groups.iter().filter(|g| g.kind == Kind::Heads);
        let counts: Vec<usize> = heads.map(|g| g.kept.len()).collect();
        assert!(even(&counts) && counts[0] < 2, "{method:?}: {counts:?}");
    }
}

#[test]
fn a_mask_with_other_numbers_is_an_error() {
    let options = options(0.6, Method::Magnitude);
    let case = load("zoo/qwen3past-dyn18", &options);
    let first = case.network.axes.even[0][0];
    let mut uneven = Mask::default();
    uneven.kept.insert(first, vec![true, false]);
    let error = budget::check_even(&case.network.axes, &uneven).unwrap_err();
    assert!(error.to_string().contains("--uniform-kv"), "{error}");
    if crate::common::engine().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.json");
    mask::file::write(&path, &case.network.axes, &uneven).unwrap();
    let options = Options {
        mask: Some(path),
        demands: Vec::new(),
        ..options
    };
    let model = crate::common::fixture("zoo/qwen3past-dyn18").join("model.onnx");
    let out = folder.path().join("small.onnx");
    let error = pipeline::prune(&model, &out, &[], &options, &Quiet, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("--uniform-kv"), "{error}");
    assert!(!out.exists());
}
