//! The sums of calibration as nodes of the model.
//!
//! The first batch is run the ordinary way: its rows set the pilots, its shapes say
//! which axes there are. So is every batch whose shapes cannot be told yet, and every
//! one whose sums are not finite or whose run fails: the ordinary way names the
//! sample and the column. Nothing of a batch is added before all of its sums are
//! known to be right.

use std::time::Instant;

use super::collector::{Collector, Timings};
use super::nodes::{Nodes, finite};
use crate::data::Batch;
use crate::data::SampleSizes;
use crate::data::{PositionWeights, Rows, Strides};
use crate::engine::{Engine, Session, SessionOptions};
use crate::error::{Error, Result};
use crate::onnx::proto;
use crate::tensor::{Elem, Feeds, Tensor};

/// Sums over tokens, by nodes of the model.
pub(super) struct InGraph<'a> {
    engine: &'a dyn Engine,
    model: &'a proto::ModelProto,
    /// The shapes of each collector's value.
    sizes: Vec<SampleSizes>,
    /// Numbers of axes of these values.
    ranks: Vec<Option<usize>>,
    /// Which samples count for nothing.
    apart: fn(usize) -> bool,
    /// Values that are wanted besides the sums.
    values: &'a [String],
    state: GramState,
}

enum GramState {
    /// Some pilots are not set.
    Waiting,
    Ready(ReadyGram),
    /// The engine cannot run the nodes.
    Failed,
}

struct ReadyGram {
    session: Box<dyn Session>,
    /// The inputs with the roots of the rows' weights, by collector.
    roots: Vec<String>,
    /// The pilots, where the session does not hold them.
    constants: Feeds,
}

/// What the nodes of one collector give: the shape of the value, s, S.
const OUTPUTS: usize = 3;

/// How the rows of one batch count.
struct Weighed {
    shape: Vec<usize>,
    roots: Vec<f32>,
    tokens: u64,
    total: f64,
}

impl<'a> InGraph<'a> {
    /// For as many collectors; samples that are `apart` are left out of the sums, and
    /// `values` are looked at.
    pub(super) fn new(
        engine: &'a dyn Engine,
        model: &'a proto::ModelProto,
        collectors: usize,
        apart: fn(usize) -> bool,
        values: &'a [String],
    ) -> Self {
        Self {
            engine,
            model,
            sizes: vec![SampleSizes::default(); collectors],
            ranks: vec![None; collectors],
            apart,
            values,
            state: GramState::Waiting,
        }
    }

    /// Takes in the shape that a batch, run the ordinary way, gave the value of a
    /// collector.
    pub(super) fn learn(&mut self, collector: usize, batch: &Batch, shape: &[usize]) {
        if let (Some(sizes), Some(rank)) = (self.sizes.get_mut(collector), self.ranks.get_mut(collector)) {
            sizes.learn(&batch.feeds, shape);
            rank.get_or_insert(shape.len());
        }
    }

    /// Runs a batch, adds its sums and shows its values to `watch`; `false` where it
    /// must be run the ordinary way.
    ///
    /// # Errors
    /// Those of `watch`.
    pub(super) fn add(
        &mut self,
        batch: &Batch,
        collectors: &mut [Collector<'_>],
        timings: &mut Timings,
        watch: &mut dyn FnMut(&[&Tensor]) -> Result<()>,
    ) -> Result<bool> {
        let weighed: Option<Vec<Weighed>> = (collectors.iter().zip(&self.sizes))
            .map(|(collector, sizes)| weigh(sizes.shape(&batch.feeds)?, collector, batch, self.apart))
            .collect();
        let Some(weighed) = weighed else {
            return Ok(false);
        };
        if matches!(self.state, GramState::Waiting) && collectors.iter().all(|c| c.statistics.total() > 0.0) {
            let started = Instant::now();
            self.state = match self.prepare(collectors) {
                Ok(ready) => GramState::Ready(ready),
                Err(error) => GramState::failed(&error),
            };
            timings.prepare_seconds += started.elapsed().as_secs_f64();
        }
        let GramState::Ready(ready) = &mut self.state else {
            return Ok(false);
        };
        let started = Instant::now();
        let given = ready.run(batch, &weighed);
        timings.engine_seconds += started.elapsed().as_secs_f64();
        timings.runs += 1;
        let given = match given {
            Ok(given) => given,
            Err(error) => {
                self.state = GramState::failed(&error);
                return Ok(false);
            }
        };
        let started = Instant::now();
        let (sums, values) = given.split_at(given.len().min(collectors.len() * OUTPUTS));
        let added = add(collectors, &weighed, sums);
        if added && !values.is_empty() {
            watch(&values.iter().collect::<Vec<_>>())?;
        }
        timings.statistics_seconds += started.elapsed().as_secs_f64();
        Ok(added)
    }

    /// The model with the nodes, ready to run.
    fn prepare(&self, collectors: &[Collector<'_>]) -> Result<ReadyGram> {
        let mut model = self.model.clone();
        let graph = model.graph.as_ref();
        let mut nodes = Nodes::beside(graph.ok_or_else(|| Error::input("the model has no graph"))?);
        let (mut roots, mut outputs) = (Vec::new(), Vec::new());
        let mut constants = Feeds::new();
        for (collector, rank) in collectors.iter().zip(&self.ranks) {
            let width = collector.statistics.width();
            let shape = nodes.node("Shape", &[collector.value], Vec::new());
            let rows = nodes.rows(collector.value, rank.unwrap_or_default(), collector.axes, width);
            let pilot = nodes.input("pilot", Elem::F32, 1);
            let root = nodes.input("roots", Elem::F32, 2);
            let weighted = nodes.weighted(&rows, &pilot, &root);
            outputs.push(shape);
            outputs.push(nodes.product(&root, &weighted));
            outputs.push(nodes.product(&weighted, &weighted));
            let (p, _) = collector.statistics.parts();
            let p = p.iter().map(|p| *p as f32).collect();
            constants.insert(pilot, Tensor::f32([width], p));
            roots.push(root);
        }
        outputs.extend(self.values.iter().cloned());
        nodes.put(&mut model)?;
        let options = SessionOptions {
            optimise: true,
            outputs: Some(outputs),
        };
        let mut session = self.engine.session(&model, &options)?;
        if session.hold(&constants)? {
            constants.clear();
        }
        Ok(ReadyGram {
            session,
            roots,
            constants,
        })
    }
}

impl GramState {
    fn failed(error: &Error) -> Self {
        tracing::warn!(
            "sums are made outside of the model, which is slower: {}",
            error.chain()
        );
        GramState::Failed
    }
}

impl ReadyGram {
    fn run(&mut self, batch: &Batch, weighed: &[Weighed]) -> Result<Vec<Tensor>> {
        let mut feeds = batch.feeds.clone();
        feeds.extend(self.constants.clone());
        for (name, own) in self.roots.iter().zip(weighed) {
            feeds.insert(name.clone(), Tensor::f32([own.roots.len(), 1], own.roots.clone()));
        }
        self.session.run(&feeds)
    }
}

/// How the rows of a value of this shape count.
fn weigh(
    shape: Vec<usize>,
    collector: &Collector<'_>,
    batch: &Batch,
    apart: fn(usize) -> bool,
) -> Option<Weighed> {
    let strides = Strides::new(&shape, collector.axes)?;
    if strides.width() != collector.statistics.width() {
        return None;
    }
    let mut weighed = Weighed {
        shape,
        roots: Vec::new(),
        tokens: 0,
        total: 0.0,
    };
    let weights = row_weights(&strides, batch, &collector.weights);
    let counts = |w: &Option<(usize, f32)>| w.filter(|(sample, _)| !apart(*sample));
    for weight in weights.iter().map(|w| counts(w).map_or(0.0, |(_, w)| w)) {
        weighed.tokens += u64::from(weight > 0.0);
        weighed.total += f64::from(weight.max(0.0));
        weighed.roots.push(weight.max(0.0).sqrt());
    }
    Some(weighed)
}

/// For each row its sample and how much it counts; `None` where it is not real.
pub(crate) fn row_weights(
    strides: &Strides,
    batch: &Batch,
    weights: &PositionWeights,
) -> Vec<Option<(usize, f32)>> {
    let rows = Rows::new(&strides.leading, batch);
    let of = |row| Some((rows.sample(row)?, weights.of(rows.place(row))));
    (0..strides.count).map(of).collect()
}

/// Adds what the nodes gave, if all of it is what it should be.
fn add(collectors: &mut [Collector<'_>], weighed: &[Weighed], given: &[Tensor]) -> bool {
    let all = || collectors.iter().zip(weighed).zip(given.chunks(OUTPUTS));
    let mut sums = Vec::new();
    for ((collector, own), given) in all() {
        let [shape, s, gram] = given else {
            return false;
        };
        let n = collector.statistics.width();
        let expected = own.shape.iter().map(|&d| i64::try_from(d).unwrap_or(-1));
        let (Some(shape), Some(s), Some(gram)) = (shape.to_i64(), finite(s, n), finite(gram, n * n)) else {
            return false;
        };
        if !shape.into_iter().eq(expected) {
            return false;
        }
        sums.push((own, s, gram));
    }
    if sums.len() != collectors.len() {
        return false;
    }
    for (collector, (own, s, gram)) in collectors.iter_mut().zip(sums) {
        collector.statistics.add_sums(own.tokens, own.total, s, gram);
    }
    true
}
