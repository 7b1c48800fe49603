//! Fits on what really arrives at each sink once the ones before it are pruned.
//!
//! The sinks are walked in order, the dense and the pruned model side by side.
//! At each, X comes from the pruned prefix, and the target is what the dense model
//! has after the residual addition less the pruned model's own residual: so a
//! site also mends what the ones before it have left. The ridge pulls towards the
//! local fit; how strongly is chosen on samples kept apart, with the local fit
//! itself (its intercept moved) as the last resort.
//!
//! Left out, per site: weights that several sinks read, quantised ones, and sinks
//! whose input and output rows do not correspond.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use faer::{Accum, Mat, MatRef};

use super::part::{Fit, Part, parts};
use super::weights;
use crate::axes::{Kind, Sink};
use crate::calibrate::{Batch, PositionWeights, Rows, Samples, Strides, batches, floats, input_specs};
use crate::graph::{Graph, NodeId, ValueId, ancestors};
use crate::importance::Weights;
use crate::linalg;
use crate::mask::Mask;
use crate::probe::Subject;
use crate::progress::Progress;
use crate::segment::{Boundary, Cut, Runner, Stream};
use crate::sites::{Chosen, Site};
use crate::solve::{Normal, Refit, Regression};
use crate::tensor::Feeds;
use crate::{Result, ResultExt};

/// Rows per run.
const ROWS: usize = 16;
/// Rows per block of the sums.
const BLOCK: usize = 1024;
/// Ridges that are tried, as fractions of the mean variance.
const RIDGES: [f64; 2] = [0.2, 2.0];

/// Layers that keep all inputs are fitted where these have drifted by more than
/// this fraction of their variance.
const DRIFT: f64 = 0.02;

/// A layer to fit.
struct Stop {
    part: Part,
    sink: Sink,
    rows: Vec<usize>,
    /// The index of the local fit that it replaces; none for a layer that keeps
    /// all its inputs.
    fit: Option<usize>,
    /// The other operand of the residual addition.
    residual: Option<ValueId>,
    weights: PositionWeights,
}

impl Stop {
    fn reads(&self) -> impl Iterator<Item = ValueId> {
        std::iter::once(self.sink.activation).chain(self.residual)
    }
}

/// Local fits to start from, in the same order.
pub struct Priors {
    /// On all samples.
    pub all: Vec<Fit>,
    /// Without the samples that choose the ridge.
    pub without_guard: Vec<Fit>,
}

/// Replaces local fits by sequential ones where they are better; `fits` are those
/// of [`super::local`] for `mask`. `is_guard` tells by index which samples choose
/// the ridge.
///
/// # Errors
/// The engine's, an interrupt.
#[allow(clippy::too_many_arguments)]
pub fn sequential(
    subject: Subject,
    chosen: &[Chosen],
    mask: &Mask,
    priors: Priors,
    positions: &Weights,
    samples: &Samples,
    is_guard: fn(usize) -> bool,
    others: bool,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Fit>> {
    let Subject {
        engine,
        model,
        graph,
        analysis,
    } = subject;
    let Priors {
        all: mut fits,
        without_guard,
    } = priors;
    let stops = plan(subject, chosen, mask, &fits, positions, others)?;
    let (mut dense_fed, mut pruned_fed) = (Feeds::new(), Feeds::new());
    let constants: Vec<(ValueId, Boundary)> = stops
        .iter()
        .flat_map(|s| s.part.constants())
        .map(|(value, tensor)| {
            let boundary = Boundary {
                value,
                elem: tensor.elem(),
                rank: tensor.shape.len(),
            };
            (value, boundary)
        })
        .collect();
    let batches: Vec<Batch> = batches(samples, &input_specs(model)?, ROWS)?.collect::<Result<_>>()?;
    progress.start("re-fitting", stops.len() as u64);
    let mut dense = Stream::start(graph, &batches);
    let mut pruned: Option<Stream> = None;
    let mut cut = Cut::start(graph);
    for (at, stop) in stops.iter().enumerate() {
        progress.step(1);
        let own: Vec<ValueId> = stop.reads().collect();
        let next = cut.until(graph, analysis, &own);
        let later: Vec<ValueId> = stops[at + 1..].iter().flat_map(Stop::reads).collect();
        let keep: BTreeSet<ValueId> = next
            .crossing(graph, analysis, &later)
            .into_iter()
            .chain(own.iter().copied())
            .collect();
        let held = dense
            .tensors
            .first()
            .map(|t| t.keys().copied().collect::<BTreeSet<_>>());
        let held = held.unwrap_or_default();
        let gives: Vec<ValueId> = keep.difference(&held).copied().collect();
        let reads = dense.boundary(&cut.crossing(graph, analysis, &gives))?;
        let within: Vec<Boundary> = stops[..at]
            .iter()
            .filter(|s| next.is_done(s.sink.node) && !cut.is_done(s.sink.node))
            .flat_map(|s| s.part.constants())
            .filter_map(|(v, _)| constants.iter().find(|(c, _)| *c == v).map(|(_, b)| *b))
            .collect();
        let only = |fed: &Feeds| -> Feeds {
            let names: BTreeSet<&str> = within
                .iter()
                .map(|b| graph.value(b.value).name.as_str())
                .collect();
            let wanted = fed.iter().filter(|(name, _)| names.contains(name.as_str()));
            wanted.map(|(n, t)| (n.clone(), t.clone())).collect()
        };
        if !gives.is_empty() {
            let mut runner = Runner::new(engine, model, graph, &reads, &within, &gives)?;
            runner.advance(&mut dense, &only(&dense_fed), &keep, cancelled)?;
            if let Some(pruned) = &mut pruned {
                runner.advance(pruned, &only(&pruned_fed), &keep, cancelled)?;
            }
        }
        cut = next;
        let name = || format!("re-fitting '{}'", stop.part.sites[0].name);
        let (local, without) = match stop.fit {
            Some(fit) => (fits[fit].clone(), without_guard[fit].clone()),
            None => (stop.part.unchanged(), stop.part.unchanged()),
        };
        // Before anything is pruned the local fit is the best there is.
        let better = match &pruned {
            None => None,
            Some(pruned) if stop.fit.is_none() && drift(stop, &dense, pruned) < DRIFT => None,
            Some(pruned) => {
                let streams = [&dense, pruned];
                fit(stop, graph, &batches, streams, [&local, &without], is_guard).context(name)?
            }
        };
        let changed = better.is_some();
        let new = better.unwrap_or(local);
        pruned_fed.extend(new.feeds(graph));
        match stop.fit {
            Some(fit) => fits[fit] = new,
            None if changed => fits.push(new),
            None => {}
        }
        dense_fed.extend(
            stop.part
                .constants()
                .into_iter()
                .map(|(v, t)| (graph.value(v).name.clone(), t)),
        );
        if pruned.is_none() {
            pruned = Some(dense.clone());
        }
    }
    progress.finish();
    Ok(fits)
}

/// The sinks in order, and the constants that are fed, dense and pruned.
fn plan(
    subject: Subject,
    chosen: &[Chosen],
    mask: &Mask,
    fits: &[Fit],
    positions: &Weights,
    others: bool,
) -> Result<Vec<Stop>> {
    let Subject {
        model,
        graph,
        analysis,
        ..
    } = subject;
    let mut stops = Vec::new();
    let mut at = 0;
    for c in chosen {
        let Some(kept) = mask.kept.get(&c.group) else {
            continue;
        };
        for part in parts(model, graph, &c.sites)? {
            let fit = at;
            at += 1;
            if fits.len() <= fit || !part.is_single(graph) {
                continue;
            }
            let sink = &analysis.groups[c.group].sinks[part.sites[0].sink];
            stops.push(Stop {
                rows: c.units.kept_rows(kept),
                fit: Some(fit),
                residual: residual(graph, sink),
                weights: positions
                    .get(&part.sites[0].name)
                    .copied()
                    .unwrap_or(PositionWeights::EVEN),
                part,
                sink: sink.clone(),
            });
        }
    }
    if others {
        stops.extend(unpruned(subject, chosen, positions)?);
    }
    let rank = |stop: &Stop| graph.order.iter().position(|n| *n == stop.sink.node);
    stops.sort_by_key(rank);
    let first = stops.iter().position(|s| s.fit.is_some()).unwrap_or(stops.len());
    stops.drain(..first);
    Ok(stops)
}

/// Layers with a constant weight that keep all their inputs: projections of
/// queries, keys and values, the first layers of feed-forward blocks, classifiers.
fn unpruned(subject: Subject, chosen: &[Chosen], positions: &Weights) -> Result<Vec<Stop>> {
    let Subject {
        model,
        graph,
        analysis,
        ..
    } = subject;
    let sinks: BTreeSet<NodeId> = analysis
        .groups
        .iter()
        .flat_map(|g| &g.sinks)
        .map(|s| s.node)
        .collect();
    let mut stops = Vec::new();
    for (at, c) in analysis.contractions.iter().enumerate() {
        if c.inner || sinks.contains(&c.node) || c.constant != [false, true] {
            continue;
        }
        let [input, weight_input] = c.inputs;
        let (Some(activation), Some(weight)) =
            (graph.input(c.node, input), graph.input(c.node, weight_input))
        else {
            continue;
        };
        let sink = Sink {
            contraction: at,
            node: c.node,
            activation_input: input,
            activation,
            activation_axes: c.contracted.iter().map(|(a, ..)| *a).collect(),
            weight_input,
            weight,
            weight_axes: c.contracted.iter().map(|(_, b, _)| *b).collect(),
            residual: false,
        };
        let axes = analysis.facts(weight).dims.as_ref().map_or(0, Vec::len);
        let Some(found) = weights::weight(graph, &sink) else {
            continue;
        };
        // A weight per row of the batch is no layer.
        if axes != c.contracted.len() + c.free[1].len() {
            continue;
        }
        let rows = found.rows;
        let source = found.place.value;
        let site = Site {
            name: graph.label(c.node),
            sink: 0,
            bias: weights::bias(graph, analysis, &sink, found.columns),
            weight: Some(found),
            probe: None,
        };
        let Some(part) = parts(model, graph, &[site])?.pop().filter(|p| p.is_single(graph)) else {
            continue;
        };
        // What feeds neurons is read where their own sink is read.
        let fed = chosen.iter().find(|c| {
            let group = &analysis.groups[c.group];
            group.kind == Kind::Neurons && group.sources.contains(&source)
        });
        let own = fed
            .and_then(|c| c.sites.first())
            .and_then(|s| positions.get(&s.name));
        stops.push(Stop {
            part,
            sink,
            rows: (0..rows).collect(),
            fit: None,
            residual: None,
            weights: own.copied().unwrap_or(PositionWeights::EVEN),
        });
    }
    Ok(stops)
}

/// The other operand of the addition that a sink's output goes into, where
/// nothing but biases and views lies between.
fn residual(graph: &Graph, sink: &Sink) -> Option<ValueId> {
    let mut value = (*graph.node(sink.node).outputs.first()?)?;
    let found = loop {
        let [(node, input)] = graph.value(value).consumers[..] else {
            return None;
        };
        let n = graph.node(node);
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Add") => {
                let other = graph.input(node, 1 - input)?;
                if graph.value(other).constant.is_none() {
                    break other;
                }
                value = (*n.outputs.first()?)?;
            }
            ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") if input < 2 => {
                break graph.input(node, 1 - input)?;
            }
            ("", "Reshape" | "Identity" | "Dropout") if input == 0 => value = (*n.outputs.first()?)?,
            _ => return None,
        }
    };
    // The residual must be there before the sink is fitted.
    let output = (*graph.node(sink.node).outputs.first()?)?;
    (!ancestors(graph, found)[output.0 as usize]).then_some(found)
}

/// How far the input of a layer is from the dense model's, as a fraction of its
/// variance, on one batch.
fn drift(stop: &Stop, dense: &Stream, pruned: &Stream) -> f64 {
    let activation = stop.sink.activation;
    let of = |stream: &Stream| Some(stream.tensors.first()?.get(&activation)?.to_f32());
    let (Some(a), Some(b)) = (of(dense), of(pruned)) else {
        return 0.0;
    };
    let n = a.len().max(1) as f64;
    let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let spread: f64 = a.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    let change: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    change / spread.max(f64::MIN_POSITIVE)
}

/// Sums over all batches, of the samples to fit and those kept apart.
struct Sums {
    fit: Regression,
    guard: Regression,
}

fn fit(
    stop: &Stop,
    graph: &Graph,
    batches: &[Batch],
    streams: [&Stream; 2],
    [local, without]: [&Fit; 2],
    is_guard: fn(usize) -> bool,
) -> Result<Option<Fit>> {
    let Some(sums) = sums(stop, graph, batches, streams, is_guard)? else {
        return Ok(None);
    };
    let intercept = stop.part.has_bias();
    let (train, guard) = (sums.fit.normal(intercept), sums.guard.normal(intercept));
    let biased = |normal: &Normal, weight: &Mat<f64>| {
        if intercept {
            normal.intercept(weight)
        } else {
            vec![0.0; weight.ncols()]
        }
    };
    let prior = stop.part.fitted(without, &stop.rows)?;
    let before = guard.error(&prior, &stop.part.intercept(without));
    let mut best = (guard.error(&prior, &biased(&train, &prior)), None);
    if sums.guard.tokens() > 0 && !stop.rows.is_empty() {
        for ridge in RIDGES {
            let weight = train.solve(&prior, ridge)?;
            let error = guard.error(&weight, &biased(&train, &weight));
            if error < best.0 {
                best = (error, Some(ridge));
            }
        }
    }
    if before <= best.0 {
        return Ok(None);
    }
    let whole = {
        let mut whole = sums.fit;
        whole.merge(&sums.guard)?;
        whole.normal(intercept)
    };
    let prior = stop.part.fitted(local, &stop.rows)?;
    let weight = match best.1 {
        Some(ridge) => whole.solve(&prior, ridge)?,
        None => prior,
    };
    let shift = intercept.then(|| {
        let new = whole.intercept(&weight);
        new.iter().zip(stop.part.bias()).map(|(n, old)| n - old).collect()
    });
    let mut fit = stop.part.fit(
        &stop.rows,
        Refit {
            weight,
            bias_shift: shift,
            error_before: before,
            error_after: best.0,
        },
    );
    fit.told.ridge = best.1;
    Ok(Some(fit))
}

/// `None` where the rows of the sink's input and output do not correspond.
fn sums(
    stop: &Stop,
    graph: &Graph,
    batches: &[Batch],
    [dense, pruned]: [&Stream; 2],
    is_guard: fn(usize) -> bool,
) -> Result<Option<Sums>> {
    let (n, d) = (stop.part.matrix.nrows(), stop.part.matrix.ncols());
    let name = |v: ValueId| graph.value(v).name.as_str();
    let mut sums = Sums {
        fit: Regression::new(stop.rows.len(), d),
        guard: Regression::new(stop.rows.len(), d),
    };
    let mut blocks = [Block::default(), Block::default()];
    let old = stop.part.bias();
    let weight = Mat::<f32>::from_fn(n, d, |i, j| stop.part.matrix[(i, j)] as f32);
    let activation = stop.sink.activation;
    for ((batch, dense), pruned) in batches.iter().zip(&dense.tensors).zip(&pruned.tensors) {
        let (Some(x), Some(new)) = (dense.get(&activation), pruned.get(&activation)) else {
            return Ok(None);
        };
        let Some(strides) = Strides::new(&x.shape, &stop.sink.activation_axes) else {
            return Ok(None);
        };
        if x.shape != new.shape || strides.width() != n {
            return Ok(None);
        }
        let (x, new) = (floats(x, name(activation))?, floats(new, name(activation))?);
        let residual = match stop.residual {
            Some(r) => match (dense.get(&r), pruned.get(&r)) {
                (Some(a), Some(b)) if a.len() == strides.count * d && b.len() == a.len() => {
                    Some((floats(a, name(r))?, floats(b, name(r))?))
                }
                _ => return Ok(None),
            },
            None => None,
        };
        let rows = Rows::new(&strides.leading, batch);
        for row in 0..strides.count {
            let Some(sample) = rows.sample(row) else {
                continue;
            };
            let guard = is_guard(sample);
            let block = &mut blocks[usize::from(guard)];
            strides.read(&x, row, &mut block.dense);
            strides.pick(&new, row, &stop.rows, &mut block.pruned);
            block.weights.push(stop.weights.of(rows.place(row)));
            let range = row * d..(row + 1) * d;
            match &residual {
                Some((a, b)) => {
                    let parts = a[range.clone()].iter().zip(&b[range]).zip(&old);
                    block
                        .target
                        .extend(parts.map(|((a, b), old)| a - b + *old as f32));
                }
                None => block.target.extend(old.iter().map(|b| *b as f32)),
            }
            if block.weights.len() == BLOCK {
                let into = if guard { &mut sums.guard } else { &mut sums.fit };
                block.flush(&weight, into);
            }
        }
    }
    let [fit, guard] = &mut blocks;
    fit.flush(&weight, &mut sums.fit);
    guard.flush(&weight, &mut sums.guard);
    Ok(Some(sums))
}

/// Rows that wait to be summed.
#[derive(Default)]
struct Block {
    /// The dense model's X, all columns.
    dense: Vec<f32>,
    /// The pruned model's, kept columns.
    pruned: Vec<f32>,
    /// The bias and the difference of the residuals; X W comes on top.
    target: Vec<f32>,
    weights: Vec<f32>,
}

impl Block {
    fn flush(&mut self, weight: &Mat<f32>, into: &mut Regression) {
        let (rows, n, d) = (self.weights.len(), weight.nrows(), weight.ncols());
        if rows > 0 {
            let x = MatRef::from_row_major_slice(&self.dense, rows, n);
            let y = faer::MatMut::from_row_major_slice_mut(&mut self.target, rows, d);
            faer::linalg::matmul::matmul(y, Accum::Add, x, weight.as_ref(), 1.0, linalg::par());
            into.add(&self.pruned, &self.target, &self.weights);
        }
        self.dense.clear();
        self.pruned.clear();
        self.target.clear();
        self.weights.clear();
    }
}
