//! The probe set: what a change at one sink does to the outputs, by running only
//! the part of the network after it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::axes::Analysis;
use crate::calibrate::{Batch, Rows, Samples, Strides, batches, input_specs};
use crate::graph::{Graph, ValueId};
use crate::onnx::proto;
use crate::rebuild::weights;
use crate::runtime::{Engine, SessionOptions};
use crate::segment::{Boundary, Cut, Runner, Stream};
use crate::sites::Chosen;
use crate::tensor::{Feeds, Tensor};
use crate::verify::{Comparison, Differences};
use crate::{Error, Result};

/// Rows per run.
const ROWS: usize = 16;
/// Bytes of recorded values that are held at once.
const HELD: usize = 1 << 30;

/// A model with what belongs to it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Runs it.
    pub engine: &'a dyn Engine,
    /// With local functions inlined.
    pub model: &'a proto::ModelProto,
    /// Its graph.
    pub graph: &'a Graph,
    /// Its axes.
    pub analysis: &'a Analysis,
}

/// Samples with what the dense model says about them.
pub struct Probe<'a> {
    subject: Subject<'a>,
    batches: Vec<Batch>,
    outputs: Vec<ValueId>,
    names: Vec<String>,
    dense: Vec<Vec<Tensor>>,
    cancelled: &'a AtomicBool,
}

impl<'a> Probe<'a> {
    /// Prepares samples; `outputs` are the graph outputs that are compared.
    ///
    /// # Errors
    /// Samples that do not fit the model.
    pub fn new(
        subject: Subject<'a>,
        samples: &Samples,
        outputs: &[ValueId],
        cancelled: &'a AtomicBool,
    ) -> Result<Self> {
        let specs = input_specs(subject.model)?;
        Ok(Self {
            subject,
            batches: batches(samples, &specs, ROWS)?.collect::<Result<_>>()?,
            outputs: outputs.to_vec(),
            names: outputs
                .iter()
                .map(|o| subject.graph.value(*o).name.clone())
                .collect(),
            dense: Vec::new(),
            cancelled,
        })
    }

    /// Calls `visit` with the part of the network after each group's first sink.
    /// Groups that no output depends on are left out.
    ///
    /// # Errors
    /// The engine's, an interrupt, those of `visit`.
    pub fn each(
        &mut self,
        chosen: &[Chosen],
        mut visit: impl FnMut(usize, &mut After) -> Result<()>,
    ) -> Result<()> {
        let Subject { graph, analysis, .. } = self.subject;
        let mut cuts = Vec::new();
        for (at, c) in chosen.iter().enumerate() {
            let Some(sink) = analysis.groups[c.group].sinks.first() else {
                continue;
            };
            let cut = Cut::start(graph).until(graph, analysis, &[sink.activation]);
            let crossing = cut.crossing(graph, analysis, &self.outputs);
            if crossing.contains(&sink.activation) {
                cuts.push((at, crossing));
            }
        }
        let mut at = 0;
        while at < cuts.len() {
            let count = self.fitting(&cuts[at..])?;
            let part = &cuts[at..at + count];
            let stream = self.record(part.iter().flat_map(|(_, crossing)| crossing), self.batches.len())?;
            for (index, crossing) in part {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let mut after = self.after(&chosen[*index], crossing, &stream)?;
                visit(*index, &mut after)?;
            }
            at += count;
        }
        Ok(())
    }

    /// How many of the cuts may be recorded at once.
    fn fitting(&mut self, cuts: &[(usize, Vec<ValueId>)]) -> Result<usize> {
        let size = |b: &Batch| b.feeds.values().map(Tensor::len).sum::<usize>().max(1);
        let Some(first) = self.batches.first() else {
            return Err(Error::input("there are no samples to measure damage on"));
        };
        let times = self.batches.iter().map(size).sum::<usize>() as f64 / size(first) as f64;
        let one = self.record(cuts.iter().flat_map(|(_, crossing)| crossing), 1)?;
        let mut held: BTreeSet<ValueId> = BTreeSet::new();
        let mut bytes = 0.0;
        for (count, (_, crossing)) in cuts.iter().enumerate() {
            for value in crossing {
                if held.insert(*value)
                    && let Some(tensor) = one.tensors.first().and_then(|t| t.get(value))
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

    /// Runs the dense model over the first `count` batches and keeps `values`.
    fn record<'v>(&mut self, values: impl Iterator<Item = &'v ValueId>, count: usize) -> Result<Stream> {
        let Subject {
            engine, model, graph, ..
        } = self.subject;
        let inputs: BTreeSet<ValueId> = graph.inputs.iter().copied().collect();
        let wanted: BTreeSet<ValueId> = values.filter(|v| !inputs.contains(v)).copied().collect();
        let fetched: Vec<ValueId> = wanted.iter().chain(&self.outputs).copied().collect();
        let options = SessionOptions {
            optimise: true,
            outputs: Some(fetched.iter().map(|v| graph.value(*v).name.clone()).collect()),
        };
        let mut session = engine.session(model, &options)?;
        let batches = &self.batches[..count.min(self.batches.len())];
        let mut stream = Stream::start(graph, batches);
        let whole = self.dense.is_empty() && batches.len() == self.batches.len();
        for (batch, tensors) in batches.iter().zip(&mut stream.tensors) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut given = session.run(&batch.feeds)?;
            let outputs = given.split_off(wanted.len());
            if whole {
                self.dense.push(outputs);
            }
            tensors.extend(wanted.iter().copied().zip(given));
        }
        Ok(stream)
    }

    fn after<'s>(
        &'s self,
        chosen: &'s Chosen,
        crossing: &[ValueId],
        stream: &'s Stream,
    ) -> Result<After<'s>> {
        let Subject {
            engine, model, graph, ..
        } = self.subject;
        let mut fed = Feeds::new();
        let mut constants = Vec::new();
        for site in &chosen.sites {
            let places = site.weight.iter().map(|w| &w.place).chain(&site.bias);
            for place in places {
                let value = graph.value(place.value);
                if fed.contains_key(&value.name) {
                    continue;
                }
                let tensor = weights::constant(model, graph, place.value)?;
                constants.push(Boundary {
                    value: place.value,
                    elem: tensor.elem(),
                    rank: tensor.shape.len(),
                });
                fed.insert(value.name.clone(), tensor);
            }
        }
        let reads = stream.boundary(crossing)?;
        Ok(After {
            probe: self,
            chosen,
            runner: Runner::new(engine, model, graph, &reads, &constants, &self.outputs)?,
            stream,
            fed,
        })
    }
}

/// Changes an activation in place, given its batch, values and shape.
type Change<'c> = dyn Fn(&Batch, &mut [f32], &[usize]) + 'c;

/// The network after the first sink of a group, with the weights and biases of
/// its sinks as inputs.
pub struct After<'s> {
    probe: &'s Probe<'s>,
    chosen: &'s Chosen,
    runner: Runner,
    stream: &'s Stream,
    fed: Feeds,
}

impl After<'_> {
    /// The outputs with other weights and biases (by name; the others stay)
    /// against the dense ones.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn with_weights(&mut self, changed: Feeds) -> Result<Comparison> {
        let mut fed = self.fed.clone();
        fed.extend(changed);
        self.compare(&fed, None)
    }

    /// The outputs with the activation of the first sink changed: `change` is
    /// given its batch and the tensor.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn with_activation(&mut self, change: &Change) -> Result<Comparison> {
        let fed = self.fed.clone();
        self.compare(&fed, Some(change))
    }

    fn compare(&mut self, fed: &Feeds, change: Option<&Change>) -> Result<Comparison> {
        let probe = self.probe;
        let activation = self.activation()?;
        let mut differences = Differences::new(&probe.names);
        let all = probe.batches.iter().zip(&self.stream.tensors).zip(&probe.dense);
        for ((batch, tensors), dense) in all {
            if probe.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let given = match change {
                None => self.runner.run(tensors, fed)?,
                Some(change) => {
                    let mut tensors = tensors.clone();
                    if let Some(tensor) = tensors.get_mut(&activation) {
                        let mut values = tensor.to_f32();
                        change(batch, &mut values, &tensor.shape);
                        *tensor = weights::rounded(
                            tensor.shape.clone(),
                            &values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
                            tensor.elem(),
                        );
                    }
                    self.runner.run(&tensors, fed)?
                }
            };
            differences.add(batch, &given, dense)?;
        }
        Ok(differences.finish())
    }

    fn activation(&self) -> Result<ValueId> {
        let group = &self.probe.subject.analysis.groups[self.chosen.group];
        let sink = group.sinks.first();
        Ok(sink
            .ok_or_else(|| Error::input("a group without a sink"))?
            .activation)
    }

    /// Calls `f` with every real row of the first sink's input: the row's
    /// rows-of-batch view, its index, and its values.
    pub(crate) fn rows(&self, mut f: impl FnMut(&Rows, usize, &[f32])) -> Result<()> {
        let group = &self.probe.subject.analysis.groups[self.chosen.group];
        let sink = group
            .sinks
            .first()
            .ok_or_else(|| Error::input("a group without a sink"))?;
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
