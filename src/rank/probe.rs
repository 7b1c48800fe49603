//! The probe set: what a change at one sink does to the outputs, by running only
//! the part of the network after it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::axes::Sink;
use crate::data::{Batch, POSITIONS, ROWS, Rows, Samples, Strides, batches, input_specs};
use crate::engine::{Ctx, Session, SessionOptions};
use crate::graph::ValueId;
use crate::network::Network;
use crate::onnx::proto;
use crate::rank::{Runner, Stream};
use crate::rewrite::heads::OutputHead;
use crate::rewrite::lossless;
use crate::rewrite::segment::{Boundary, Cut, piece};
use crate::sites::PruneTarget;
use crate::tensor::{Feeds, Tensor};
use crate::verify::{Comparison, Differences};
use crate::{Error, Result};

/// Bytes of recorded values that are held at once.
const HELD: usize = 1 << 29;

/// Samples with what the dense model says about them.
pub struct Probe<'a> {
    ctx: Ctx<'a>,
    network: &'a Network,
    batches: Vec<Batch>,
    outputs: Vec<ValueId>,
    names: Vec<String>,
    /// Where an output over a vocabulary is made, which is looked at at some positions.
    head: Option<OutputHead>,
    /// The batches as the outputs have them, where these are made at some positions.
    sampled: Option<Vec<Batch>>,
    dense: Vec<Vec<Tensor>>,
}

impl<'a> Probe<'a> {
    /// Prepares samples; `outputs` are the graph outputs that are compared.
    ///
    /// # Errors
    /// Samples that do not fit the model.
    pub fn new(ctx: Ctx<'a>, network: &'a Network, samples: &Samples, outputs: &[ValueId]) -> Result<Self> {
        let specs = input_specs(&network.proto)?;
        let batches: Vec<Batch> = batches(samples, &specs, ROWS)?.collect::<Result<_>>()?;
        let head = OutputHead::of(network, outputs).filter(|_| batches.iter().all(|b| b.tokens.is_some()));
        let sampled = head
            .as_ref()
            .map(|_| batches.iter().map(Batch::sampled).collect());
        Ok(Self {
            ctx,
            network,
            batches,
            head,
            sampled,
            outputs: outputs.to_vec(),
            names: outputs
                .iter()
                .map(|o| network.graph.value(*o).name.clone())
                .collect(),
            dense: Vec::new(),
        })
    }

    /// The batches as the outputs have them.
    fn observed(&self) -> &[Batch] {
        self.sampled.as_deref().unwrap_or(&self.batches)
    }

    /// The network that is probed.
    pub fn network(&self) -> &'a Network {
        self.network
    }

    /// What runs it.
    pub fn ctx(&self) -> Ctx<'a> {
        self.ctx
    }

    /// Calls `visit` with the part of the network after each group's first sink.
    /// Groups that no output depends on are left out.
    ///
    /// # Errors
    /// The engine's, an interrupt, those of `visit`.
    pub fn each(
        &mut self,
        targets: &[PruneTarget],
        mut visit: impl FnMut(usize, &mut After) -> Result<()>,
    ) -> Result<()> {
        let network = self.network;
        let mut cuts = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            let Some(sink) = target.sites.first().map(|s| &s.sink) else {
                continue;
            };
            let cut = Cut::start(&network.graph).until(network, &[sink.activation]);
            let crossing = cut.crossing(network, &self.outputs);
            if crossing.contains(&sink.activation) {
                cuts.push((at, crossing));
            }
        }
        let mut at = 0;
        while at < cuts.len() {
            let (count, stream) = self.record(&cuts[at..])?;
            for (index, crossing) in &cuts[at..at + count] {
                self.ctx.check()?;
                let mut after = After {
                    probe: self,
                    target: &targets[*index],
                    crossing,
                    stream: &stream,
                    part: None,
                };
                visit(*index, &mut after)?;
            }
            at += count;
        }
        Ok(())
    }

    /// The values that cross the first cuts, as many as may be held at once, and
    /// how many cuts these are.
    fn record(&mut self, cuts: &[(usize, Vec<ValueId>)]) -> Result<(usize, Stream)> {
        let mut recording = DamageRecording::open(self, cuts)?;
        recording.run(self, 1)?;
        let count = recording.fitting(self, cuts)?;
        if count < cuts.len() {
            recording = DamageRecording::open(self, &cuts[..count])?;
        }
        recording.run(self, self.batches.len())?;
        if self.dense.is_empty() {
            self.dense = recording.outputs;
        }
        Ok((count, recording.stream))
    }

    /// The part behind the first sink of a target, with the weights and biases of its sinks
    /// as inputs, and what these are in the dense model.
    fn part(&self, target: &PruneTarget, crossing: &[ValueId], stream: &Stream) -> Result<(Runner, Feeds)> {
        let network = self.network;
        let graph = &network.graph;
        let mut fed = Feeds::new();
        let mut constants = Vec::new();
        for site in &target.sites {
            let places = site.weight.iter().map(|w| &w.place).chain(&site.bias);
            for place in places {
                let value = graph.value(place.value);
                if fed.contains_key(&value.name) {
                    continue;
                }
                let tensor = network.constant(place.value)?;
                constants.push(Boundary::of(place.value, &tensor));
                fed.insert(value.name.clone(), tensor);
            }
        }
        let reads = stream.boundary(crossing)?;
        let inputs: Vec<Boundary> = reads.iter().chain(&constants).copied().collect();
        let part = piece(network, &inputs, &self.outputs)?;
        // What the outputs do not read need not be computed, whatever the result
        // of the run will do.
        let part = lossless::apply(&part).map_or(part, |(cheaper, _)| cheaper);
        let part = self.sampled(&part)?;
        let runner = Runner::of(self.ctx.engine, &part, graph, &reads, &self.outputs)?;
        Ok((runner, fed))
    }

    /// A model of the outputs with these at the positions that are looked at.
    fn sampled<'m>(&self, model: &'m proto::ModelProto) -> Result<Cow<'m, proto::ModelProto>> {
        match &self.head {
            None => Ok(Cow::Borrowed(model)),
            Some(head) => head.sampled(model).map(Cow::Owned).ok_or_else(|| {
                Error::input("a piece of the graph is without the product that makes its output")
            }),
        }
    }

    /// Whether the outputs have a row for every position of a sequence, so that all
    /// positions are read.
    pub fn are_all_positions_read(&self) -> bool {
        let first = self.observed().first().zip(self.dense.first());
        first.is_some_and(|(batch, outputs)| {
            outputs.iter().any(|output| {
                let shape = &output.shape;
                shape.len() > 2 && Rows::new(&shape[..shape.len() - 1], batch).are_sequence()
            })
        })
    }
}

/// The dense model on its way through the batches.
struct DamageRecording {
    session: Box<dyn Session>,
    wanted: Vec<ValueId>,
    stream: Stream,
    /// The outputs that are compared, of the batches that were run.
    outputs: Vec<Vec<Tensor>>,
}

impl DamageRecording {
    /// Fetches what crosses `cuts` and the outputs.
    fn open(probe: &Probe, cuts: &[(usize, Vec<ValueId>)]) -> Result<Self> {
        let network = probe.network;
        let graph = &network.graph;
        let crossing = cuts.iter().flat_map(|(_, crossing)| crossing);
        let wanted: BTreeSet<ValueId> = crossing.filter(|v| !graph.inputs.contains(v)).copied().collect();
        let fetched = wanted.iter().chain(&probe.outputs);
        let options = SessionOptions {
            optimise: true,
            outputs: Some(fetched.map(|v| graph.value(*v).name.clone()).collect()),
        };
        let model = probe.sampled(&network.proto)?;
        Ok(Self {
            session: probe.ctx.engine.session(&model, &options)?,
            wanted: wanted.into_iter().collect(),
            stream: Stream::start(graph, &probe.batches),
            outputs: Vec::new(),
        })
    }

    /// Goes on until `count` batches are done.
    fn run(&mut self, probe: &Probe, count: usize) -> Result<()> {
        let done = self.outputs.len();
        let batches = probe.observed().iter().zip(&mut self.stream.tensors);
        for (batch, tensors) in batches.take(count).skip(done) {
            probe.ctx.check()?;
            let mut given = self.session.run(&batch.feeds)?;
            self.outputs.push(given.split_off(self.wanted.len()));
            tensors.extend(self.wanted.iter().copied().zip(given));
        }
        Ok(())
    }

    /// How many of the cuts may be held, by what the first batch takes.
    fn fitting(&self, probe: &Probe, cuts: &[(usize, Vec<ValueId>)]) -> Result<usize> {
        let size = |b: &Batch| b.feeds.values().map(Tensor::len).sum::<usize>().max(1);
        let (Some(first), Some(one)) = (probe.batches.first(), self.stream.tensors.first()) else {
            return Err(Error::input("there are no samples to measure damage on"));
        };
        let times = probe.batches.iter().map(size).sum::<usize>() as f64 / size(first) as f64;
        let mut held: BTreeSet<ValueId> = BTreeSet::new();
        let mut bytes = 0.0;
        for (count, (_, crossing)) in cuts.iter().enumerate() {
            for value in crossing {
                if held.insert(*value)
                    && let Some(tensor) = one.get(value)
                {
                    bytes += times * (tensor.len() * tensor.elem().size()) as f64;
                }
            }
            if bytes > HELD as f64 && count > 0 {
                return Ok(count);
            }
        }
        Ok(cuts.len())
    }
}

/// Changes an activation in place, given its batch, values and shape.
type BatchChange<'c> = dyn Fn(&Batch, &mut [f32], &[usize]) + 'c;

/// The network after the first sink of a group, with the weights and biases of
/// its sinks as inputs.
pub struct After<'s> {
    probe: &'s Probe<'s>,
    target: &'s PruneTarget,
    crossing: &'s [ValueId],
    stream: &'s Stream,
    /// Made when it first runs.
    part: Option<(Runner, Feeds)>,
}

impl After<'_> {
    /// [`Probe::are_all_positions_read`].
    pub fn are_all_positions_read(&self) -> bool {
        self.probe.are_all_positions_read()
    }

    /// The outputs with other weights and biases (by name; the others stay)
    /// against the dense ones.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn with_weights(&mut self, changed: Feeds) -> Result<Comparison> {
        self.compare(changed, None)
    }

    /// The outputs with the activation of the first sink changed: `change` is
    /// given its batch and the tensor.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn with_activation(&mut self, change: &BatchChange) -> Result<Comparison> {
        self.compare(Feeds::new(), Some(change))
    }

    fn compare(&mut self, changed: Feeds, change: Option<&BatchChange>) -> Result<Comparison> {
        let probe = self.probe;
        let activation = self.sink()?.activation;
        let (runner, fed) = match &mut self.part {
            Some(part) => part,
            none => none.insert(probe.part(self.target, self.crossing, self.stream)?),
        };
        let mut fed = fed.clone();
        fed.extend(changed);
        runner.feed(fed);
        let mut differences = Differences::new(&probe.names);
        let batches = probe.batches.iter().zip(probe.observed());
        let all = batches.zip(&self.stream.tensors).zip(&probe.dense);
        for (((batch, observed), tensors), dense) in all {
            probe.ctx.check()?;
            if let Some(positions) = observed.feeds.get(POSITIONS) {
                runner.give(POSITIONS, positions.clone());
            }
            let given = match change {
                None => runner.run(tensors)?,
                Some(change) => {
                    let mut tensors = tensors.clone();
                    if let Some(tensor) = tensors.get_mut(&activation) {
                        let mut values = tensor.to_f32();
                        change(batch, &mut values, &tensor.shape);
                        *tensor = Tensor::rounded(
                            tensor.shape.clone(),
                            &values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
                            tensor.elem(),
                        );
                    }
                    runner.run(&tensors)?
                }
            };
            differences.add(observed, &given, dense)?;
        }
        Ok(differences.finish())
    }

    /// The group's first sink.
    fn sink(&self) -> Result<&Sink> {
        let first = self.target.sites.first();
        first
            .map(|site| &site.sink)
            .ok_or_else(|| Error::input("a group without a sink"))
    }

    /// Calls `f` with every real row of the first sink's input: the row's
    /// rows-of-batch view, its index, and its values.
    pub(crate) fn rows(&self, mut f: impl FnMut(&Rows, usize, &[f32])) -> Result<()> {
        let sink = self.sink()?;
        let mut row = Vec::new();
        for (batch, tensors) in self.probe.batches.iter().zip(&self.stream.tensors) {
            let Some(tensor) = tensors.get(&sink.activation) else {
                continue;
            };
            let Some(strides) = Strides::new(&tensor.shape, &sink.activation_axes) else {
                continue;
            };
            let data = tensor.to_f32();
            let rows = Rows::new(&strides.leading, batch);
            for at in 0..strides.count {
                if rows.sample(at).is_some() {
                    row.clear();
                    strides.read(&data, at, &mut row);
                    f(&rows, at, &row);
                }
            }
        }
        Ok(())
    }
}
