//! A model with what is known of it: who reads what, and which axes shrink together.

use crate::axes::{self, Analysis, GroupId, PruneGroup};
use crate::graph::{self, Graph, NodeId, Role, Value, ValueId};
use crate::onnx::{self, proto};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A model, its graph and its axes, which belong together.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// With local functions inlined.
    pub proto: proto::ModelProto,
    /// Who produces and who consumes each value.
    pub graph: Graph,
    /// Which axes shrink together.
    pub axes: Analysis,
}

/// A constant as one of its readers sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightReader {
    /// The node that reads the constant itself.
    pub node: NodeId,
    /// Its input.
    pub input: usize,
    /// The constant.
    pub value: ValueId,
}

impl Network {
    /// Analyses a model.
    ///
    /// # Errors
    /// A graph that is not well-formed.
    pub fn of(proto: proto::ModelProto, options: axes::AnalysisOptions) -> Result<Self> {
        let graph = graph::build(&proto)?;
        let axes = axes::analyse(&graph, options);
        Ok(Self { proto, graph, axes })
    }

    /// The same with what queries and keys are multiplied along left free
    /// ([`axes::analyse_open`]).
    ///
    /// # Errors
    /// A graph that is not well-formed.
    pub fn open(proto: proto::ModelProto, options: axes::AnalysisOptions) -> Result<Self> {
        let graph = graph::build(&proto)?;
        let axes = axes::analyse_open(&graph, options);
        Ok(Self { proto, graph, axes })
    }

    /// A group.
    pub fn group(&self, id: GroupId) -> &PruneGroup {
        self.axes.group(id)
    }

    /// The main graph of the model.
    ///
    /// # Errors
    /// A model without one.
    pub fn main(&self) -> Result<&proto::GraphProto> {
        let graph = self.proto.graph.as_ref();
        graph.ok_or_else(|| Error::input("the model has no graph"))
    }

    /// The tensor of a constant: an initializer, or what a `Constant` node holds.
    ///
    /// # Errors
    /// A constant of a kind that is not read.
    pub fn constant(&self, value: ValueId) -> Result<Tensor> {
        onnx::tensor(&graph::constant_of(self.main()?, &self.graph, value)?)
    }

    /// Puts a tensor of the same shape where nodes read a constant (all `readers` read
    /// the same one). Other readers keep the old one; then the new one is a constant of its
    /// own, with the same axes. Returns the value that the readers read now.
    ///
    /// # Errors
    /// A model without a graph; values that are infinite or NaN in the constant's type.
    pub fn set_constant(&mut self, readers: &[WeightReader], tensor: &Tensor) -> Result<Option<ValueId>> {
        let Some(value) = readers.first().map(|r| r.value) else {
            return Ok(None);
        };
        let old = self.graph.value(value);
        // What fits float32 may not fit float16.
        if tensor.elem().is_float() && tensor.to_f32().iter().any(|v| !v.is_finite()) {
            return Err(Error::input(format!(
                "the re-fitted values of '{}' overflow {:?}: give --reconstruct none, a larger --damp or more \
                 samples",
                old.name,
                tensor.elem()
            )));
        }
        let proto = self.proto.graph.as_mut();
        let proto = proto.ok_or_else(|| Error::input("the model has no graph"))?;
        let index = old.constant.as_ref().and_then(|c| c.initializer);
        let reads = |node: NodeId, input: usize| readers.iter().any(|r| r.node == node && r.input == input);
        let all = old.consumers.iter().all(|(node, input)| reads(*node, *input));
        if let (Some(index), true) = (index, all && !old.is_output)
            && let Some(slot) = proto.initializer.get_mut(index)
        {
            *slot = onnx::tensor_proto(&old.name, tensor);
            return Ok(Some(value));
        }
        let base = format!("{}_fitted", old.name);
        let mut name = base.clone();
        let mut count = 1;
        while proto.initializer.iter().any(|t| t.name() == name) || self.graph.find(&name).is_some() {
            count += 1;
            name = format!("{base}{count}");
        }
        for reader in readers {
            let node = proto.node.get_mut(reader.node.0 as usize);
            if let Some(slot) = node.and_then(|n| n.input.get_mut(reader.input)) {
                slot.clone_from(&name);
            }
        }
        let own = self.graph.value(value).clone();
        let constant = own.constant.map(|constant| graph::Constant {
            initializer: Some(proto.initializer.len()),
            ..constant
        });
        proto.initializer.push(onnx::tensor_proto(&name, tensor));
        Ok(Some(self.split(
            value,
            Value {
                name,
                role: Role::Constant,
                producer: None,
                consumers: readers.iter().map(|r| (r.node, r.input)).collect(),
                is_output: false,
                constant,
                ..own
            },
        )))
    }

    /// Adds a value that stands for `old` where it is read, with the same facts.
    fn split(&mut self, old: ValueId, new: Value) -> ValueId {
        let id = ValueId(self.graph.values.len() as u32);
        if let Some(value) = self.graph.values.get_mut(old.0 as usize) {
            value.consumers.retain(|c| !new.consumers.contains(c));
        }
        for (node, input) in &new.consumers {
            let node = self.graph.nodes.get_mut(node.0 as usize);
            if let Some(slot) = node.and_then(|n| n.inputs.get_mut(*input)) {
                *slot = Some(id);
            }
        }
        self.graph.values.push(new);
        let facts = self.axes.facts(old).clone();
        self.axes.facts.push(facts);
        for group in &mut self.axes.groups {
            for sink in group.sinks.iter_mut().filter(|s| s.weight == old) {
                if self.graph.input(sink.node, sink.weight_input) == Some(id) {
                    sink.weight = id;
                }
            }
        }
        id
    }
}
