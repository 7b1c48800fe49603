//! The sums of a sequential fit, made by the engine.
//!
//! The rows of the dense and of the pruned model go to the device, a block at a time,
//! and their products come back: the target `Y = X W + (bias and residuals)` is made
//! there too. What the symbols mean is told in [`crate::numerics::solve::Regression`]; how
//! rows are weighed, in `calibrate::nodes`.

use faer::Mat;

use super::block::{FitTarget, RefitBlock};
use crate::calibrate::{Nodes, finite};
use crate::engine::{Engine, Session, SessionOptions};
use crate::numerics::solve;
use crate::onnx::proto;
use crate::tensor::{Elem, Feeds, Tensor};
use crate::{Error, Result};

/// A model of one layer's sums; it fails once and for all.
pub(super) struct OnDevice {
    /// n, the number of the pruned model's columns and that of Y.
    sizes: [usize; 3],
    ready: Option<ReadySums>,
}

struct ReadySums {
    session: Box<dyn Session>,
    names: SumNames,
}

/// What the target is made of.
#[derive(Clone, Copy)]
pub(super) enum MadeSums<'a> {
    /// X W of the dense model's X, on top of what is given.
    Product(&'a Mat<f32>),
    /// The dense model's X itself.
    Dense,
    /// It is given.
    Given,
}

/// The inputs.
struct SumNames {
    /// The dense model's X, where the target is made of it.
    dense: Option<String>,
    pruned: String,
    /// The target, or what X W is added to; without it X itself is the target.
    target: Option<String>,
    roots: String,
    /// p and q.
    pilots: [String; 2],
    /// The pilot of the dense X, where that is summed too.
    of_dense: Option<String>,
}

impl OnDevice {
    /// The columns of the dense X, of the pruned one and of the target.
    pub(super) fn new(engine: &dyn Engine, sizes: [usize; 3], made: MadeSums) -> Self {
        let ready = prepare(engine, made);
        let ready = ready.map_err(|error| failed(&error)).ok();
        Self { sizes, ready }
    }

    /// Adds the rows of a block; `false` where nothing was added.
    pub(super) fn add(&mut self, block: &RefitBlock, into: &mut FitTarget) -> bool {
        if block.weights.is_empty() {
            return true;
        }
        let Some(ready) = &mut self.ready else {
            return false;
        };
        match ready.run(self.sizes, block, into) {
            Ok(given) => add(self.sizes, block, &given, into).is_some(),
            Err(error) => {
                failed(&error);
                self.ready = None;
                false
            }
        }
    }
}

fn failed(error: &Error) {
    tracing::warn!(
        "sums of a layer are made outside of the engine, which is slower: {}",
        error.chain()
    );
}

/// The model and its session.
fn prepare(engine: &dyn Engine, made: MadeSums) -> Result<ReadySums> {
    let mut model = proto::ModelProto {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSetIdProto {
            version: Some(17),
            ..Default::default()
        }],
        graph: Some(proto::GraphProto {
            name: Some("sums".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut nodes = Nodes::beside(&proto::GraphProto::default());
    let matrix = |nodes: &mut Nodes, what: &str| nodes.input(what, Elem::F32, 2);
    let pruned = matrix(&mut nodes, "pruned");
    let roots = matrix(&mut nodes, "roots");
    let pilots = ["p", "q"].map(|what| nodes.input(what, Elem::F32, 1));
    let (y, dense, target) = match made {
        MadeSums::Product(weight) => {
            let (dense, target) = (matrix(&mut nodes, "dense"), matrix(&mut nodes, "target"));
            let (n, d) = (weight.nrows(), weight.ncols());
            let rows = weight
                .row_iter()
                .flat_map(|r| r.iter().copied().collect::<Vec<_>>());
            let weight = nodes.constant("weight", &Tensor::f32([n, d], rows.collect()));
            let product = nodes.node("MatMul", &[&dense, &weight], Vec::new());
            let sum = nodes.node("Add", &[&product, &target], Vec::new());
            (sum, Some(dense), Some(target))
        }
        MadeSums::Dense => {
            let dense = matrix(&mut nodes, "dense");
            (dense.clone(), Some(dense), None)
        }
        MadeSums::Given => {
            let target = matrix(&mut nodes, "target");
            (target.clone(), None, Some(target))
        }
    };
    let x = nodes.weighted(&pruned, &pilots[0], &roots);
    let y = nodes.weighted(&y, &pilots[1], &roots);
    let mut outputs = vec![
        nodes.product(&roots, &x),
        nodes.product(&x, &x),
        nodes.product(&roots, &y),
        nodes.product(&x, &y),
        nodes.squares(&y),
    ];
    let own = dense.as_ref().filter(|_| target.is_none());
    let of_dense = own.map(|dense| {
        let pilot = nodes.input("r", Elem::F32, 1);
        let rows = nodes.weighted(dense, &pilot, &roots);
        outputs.push(nodes.product(&roots, &rows));
        outputs.push(nodes.product(&rows, &rows));
        pilot
    });
    nodes.put(&mut model)?;
    let options = SessionOptions {
        optimise: true,
        outputs: Some(outputs),
    };
    Ok(ReadySums {
        session: engine.session(&model, &options)?,
        names: SumNames {
            dense,
            pruned,
            target,
            roots,
            pilots,
            of_dense,
        },
    })
}

impl ReadySums {
    fn run(
        &mut self,
        [n, kept, width]: [usize; 3],
        block: &RefitBlock,
        into: &FitTarget,
    ) -> Result<Vec<Tensor>> {
        let rows = block.weights.len();
        let matrix = |values: &[f32], columns: usize| Tensor::f32([rows, columns], values.to_vec());
        let vector = |values: &[f64]| Tensor::f32([values.len()], values.iter().map(|v| *v as f32).collect());
        let roots: Vec<f32> = block.weights.iter().map(|w| w.max(0.0).sqrt()).collect();
        let (names, (p, q)) = (&self.names, into.regression.pilots());
        let mut feeds = Feeds::from([
            (names.pruned.clone(), matrix(&block.pruned, kept)),
            (names.roots.clone(), matrix(&roots, 1)),
            (names.pilots[0].clone(), vector(p)),
            (names.pilots[1].clone(), vector(q)),
        ]);
        if let Some(name) = &names.dense {
            feeds.insert(name.clone(), matrix(&block.dense, n));
        }
        if let Some(name) = &names.target {
            feeds.insert(name.clone(), matrix(&block.target, width));
        }
        if let Some(name) = &names.of_dense {
            feeds.insert(name.clone(), vector(into.dense.parts().0));
        }
        self.session.run(&feeds)
    }
}

/// Adds what came back, if all of it is finite and of the right size.
fn add(
    [n, kept, width]: [usize; 3],
    block: &RefitBlock,
    given: &[Tensor],
    into: &mut FitTarget,
) -> Option<()> {
    let [x, gram, y, cross, square, of_dense @ ..] = given else {
        return None;
    };
    let tokens = block.weights.iter().filter(|w| **w > 0.0).count() as u64;
    let total = block.weights.iter().map(|w| f64::from(w.max(0.0))).sum();
    let sums = solve::RegressionSums {
        tokens,
        total,
        x: finite(x, kept)?,
        gram: finite(gram, kept * kept)?,
        y: finite(y, width)?,
        cross: finite(cross, kept * width)?,
        square: finite(square, width)?,
    };
    if let [sum, gram] = of_dense {
        let (sum, gram) = (finite(sum, n)?, finite(gram, n * n)?);
        into.dense.add_sums(tokens, total, sum, gram);
    }
    into.regression.add_sums(&sums);
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Pruner;
    use crate::data::{Batch, batches, input_specs};
    use crate::engine::{self, Device, EngineChoice, EngineInfo, EngineOptions};
    use crate::pipeline::{self, Calibrated};
    use crate::rank::Stream;
    use crate::refit::Layers;
    use crate::refit::dense::Dense;
    use crate::refit::schedule::FitLayer;
    use crate::refit::sums::{FitSums, Runs, sums, values};

    /// An engine on the CPU that makes the sums all the same.
    struct Reducing(Box<dyn Engine>, Arc<AtomicUsize>);

    impl Engine for Reducing {
        fn info(&self) -> &EngineInfo {
            self.0.info()
        }
        fn reduces(&self) -> bool {
            true
        }
        fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
            let (inner, runs) = (self.0.session(model, options)?, Arc::clone(&self.1));
            Ok(Box::new(Counted(inner, runs)))
        }
        fn optimised_operators(&self, model: &proto::ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
            self.0.optimised_operators(model)
        }
    }

    struct Counted(Box<dyn Session>, Arc<AtomicUsize>);

    impl Session for Counted {
        fn outputs(&self) -> &[String] {
            self.0.outputs()
        }
        fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.run(feeds)
        }
    }

    /// The values of all stops, a little changed.
    fn streams(engine: &dyn Engine, run: &Calibrated, halts: &[Vec<FitLayer>], batches: &[Batch]) -> Stream {
        let network = run.source.network();
        let graph = &network.graph;
        let values: Vec<_> = halts.iter().flatten().flat_map(FitLayer::reads).collect();
        let options = SessionOptions {
            optimise: true,
            outputs: Some(values.iter().map(|v| graph.value(*v).name.clone()).collect()),
        };
        let mut session = engine.session(&network.proto, &options).unwrap();
        let dense = batches.iter().map(|b| {
            let given = session.run(&b.feeds).unwrap();
            values.iter().copied().zip(given).collect()
        });
        let mut pruned = Stream {
            tensors: dense.collect(),
        };
        for tensor in pruned.tensors.iter_mut().flat_map(BTreeMap::values_mut) {
            let values = tensor.to_f32().into_iter().enumerate();
            let changed = values.map(|(i, v)| 0.9 * v + 0.01 * ((i % 7) as f32 - 3.0));
            *tensor = Tensor::f32(tensor.shape.clone(), changed.collect());
        }
        pruned
    }

    /// The greatest difference as a fraction of the greatest value.
    fn relative(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).norm_max() / b.norm_max().max(f64::MIN_POSITIVE)
    }

    fn difference(a: &FitSums, b: &FitSums, intercept: bool) -> f64 {
        let of = |a: &solve::Regression, b: &solve::Regression| {
            assert_eq!(a.tokens(), b.tokens());
            let columns: Vec<usize> = (0..a.pilots().1.len()).collect();
            let (a, b) = (a.normal(&columns, intercept), b.normal(&columns, intercept));
            let row = |v: &[f64]| Mat::from_fn(1, v.len(), |_, j| v[j]);
            relative(&a.sigma, &b.sigma)
                .max(relative(&a.cross, &b.cross))
                .max(relative(&row(&a.energy), &row(&b.energy)))
                .max(relative(&row(&a.mean_x), &row(&b.mean_x)))
                .max(relative(&row(&a.mean_y), &row(&b.mean_y)))
        };
        of(&a.fit, &b.fit).max(of(&a.guard, &b.guard))
    }

    fn compared(engine: EngineChoice, pruner: &Pruner) {
        let options = EngineOptions {
            engine,
            threads: Some(1),
            ..EngineOptions::default()
        };
        let (Ok(plain), Ok(inner)) = (engine::choose(&options), engine::choose(&options)) else {
            eprintln!("skipped: no {engine}");
            return;
        };
        let reducing = Reducing(inner, Arc::default());
        let pruner = pruner.clone().engine(engine).device(Device::Cpu).threads(1usize);
        let run = pipeline::calibrate(pruner.source().unwrap()).unwrap();
        let network = run.source.network();
        let mut mask = crate::mask::Mask::default();
        for target in &run.source.targets {
            let half = target.units.len().div_ceil(2);
            let flags = (0..target.units.len()).map(|u| u < half).collect();
            mask.kept.insert(target.group, flags);
        }
        let layers = Layers::masked(network, &run.source.targets, &mask);
        let halts = layers.plan(&run.positions, true).unwrap();
        let specs = input_specs(&network.proto).unwrap();
        let all = batches(&run.source.samples, &specs, crate::data::ROWS).unwrap();
        let batches: Vec<Batch> = run.recording.kept(all).collect::<Result<_>>().unwrap();
        let pruned = streams(plain.as_ref(), &run, &halts, &batches);
        let (mut narrow, mut residual) = (false, false);
        for halt in &halts {
            let halt: Vec<FitLayer> = halt
                .iter()
                .map(|s| s.loaded(network))
                .collect::<Result<_>>()
                .unwrap();
            let dense = Dense {
                engine: plain.as_ref(),
                network,
                pruned: &network.graph,
                batches: &batches,
                recording: &run.recording,
            };
            let of = |engine: &dyn Engine| {
                let mut fetch = dense.fetch(&values(&halt)).unwrap().unwrap();
                let guard = |s| s % 5 == 4;
                sums(
                    engine,
                    &halt,
                    Runs {
                        graph: &network.graph,
                        batches: &batches,
                        pruned: &pruned,
                    },
                    &mut fetch,
                    guard,
                )
                .unwrap()
            };
            let (Some(host), Some(device)) = (of(plain.as_ref()), of(&reducing)) else {
                panic!("its rows do not correspond")
            };
            let n = halt[0].part.matrix.nrows();
            narrow |= host.fit.pilots().0.len() == n && halt[0].fit.is_none();
            residual |= halt[0].residual.is_some();
            for intercept in [true, false] {
                let worst = difference(&device, &host, intercept);
                assert!(
                    worst <= 1e-5,
                    "{engine}: {}: {worst:e}",
                    halt[0].part.sites[0].name
                );
            }
        }
        assert!(narrow && residual);
        assert!(reducing.1.load(Ordering::Relaxed) > halts.len());
    }

    #[test]
    fn the_sums_are_those_of_the_host() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let images = Pruner::new(fixtures.join("digits-vit/model.onnx"))
            .data([fixtures.join("digits-vit/calibration.npz")])
            .sample_count(192usize);
        let texts = Pruner::new(fixtures.join("text-language/model.onnx"))
            .data([fixtures.join("text-language/calibration.txt")])
            .tokenizer(fixtures.join("text-language/tokenizer.json"))
            .sample_count(160usize);
        for engine in [EngineChoice::Ort, EngineChoice::Tract] {
            compared(engine, &images);
            compared(engine, &texts);
        }
    }
}
