//! The changes to a model while they are collected: nothing is changed in
//! place, all is applied at once in [`Draft::finish`].

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::Result;
use crate::axes::{Analysis, FactorId, Int, Poly};
use crate::graph::sweep::{Swept, sweep};
use crate::graph::{Graph, NodeId, ValueId};
use crate::mask::Kept;
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::tensor::Tensor;

/// Where slicing has put everything.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    nodes: Vec<Option<NodeId>>,
    slices: BTreeMap<ValueId, Vec<String>>,
}

impl Moved {
    /// Where a node is now; `None` for one that is gone.
    pub fn node(&self, old: NodeId) -> Option<NodeId> {
        self.nodes.get(old.0 as usize).copied().flatten()
    }

    /// The names that the slices of a constant of `before` go by now; those that nothing
    /// reads any more are among them.
    pub fn constant<'m>(&'m self, before: &'m Graph, old: ValueId) -> impl Iterator<Item = &'m str> {
        let own = self.slices.get(&old).into_iter().flatten().map(String::as_str);
        std::iter::once(before.value(old).name.as_str()).chain(own)
    }
}

/// Changes on their way.
pub(super) struct Draft<'a> {
    pub(super) model: &'a proto::ModelProto,
    pub(super) proto: &'a proto::GraphProto,
    pub(super) graph: &'a Graph,
    pub(super) analysis: &'a Analysis,
    pub(super) kept: Kept,
    /// Inputs of nodes that read another value now.
    pub(super) inputs: BTreeMap<(NodeId, usize), String>,
    /// Values whose every use reads another value now.
    pub(super) replaced: HashMap<String, String>,
    /// Nodes with another body.
    pub(super) changed: BTreeMap<NodeId, proto::NodeProto>,
    /// Nodes that come in.
    pub(super) added: Vec<proto::NodeProto>,
    /// Initializers that come in or take the place of one of that name.
    pub(super) tensors: BTreeMap<String, proto::TensorProto>,
    /// Nodes whose data is needed.
    pub(super) live: Vec<bool>,
    /// The names that the slices of a constant go by, where these are constants of their own.
    pub(super) slices: BTreeMap<ValueId, Vec<String>>,
    names: HashSet<String>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(network: &'a Network, kept: Kept) -> Result<Self> {
        let graph = &network.graph;
        Ok(Draft {
            model: &network.proto,
            proto: network.main()?,
            graph,
            analysis: &network.axes,
            kept,
            inputs: BTreeMap::new(),
            replaced: HashMap::new(),
            changed: BTreeMap::new(),
            added: Vec::new(),
            tensors: BTreeMap::new(),
            live: vec![true; graph.nodes.len()],
            slices: BTreeMap::new(),
            names: graph.values.iter().map(|v| v.name.clone()).collect(),
        })
    }

    /// A name that no value has yet.
    pub(super) fn fresh(&mut self, base: &str) -> String {
        let mut name = format!("{base}_pruned");
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{base}_pruned{count}");
        }
        name
    }

    /// Adds an initializer and returns its name.
    pub(super) fn constant(&mut self, base: &str, tensor: &Tensor) -> String {
        let name = self.fresh(base);
        self.tensors
            .insert(name.clone(), onnx::tensor_proto(&name, tensor));
        name
    }

    /// Adds a node with one output and returns the output's name.
    pub(super) fn node(
        &mut self,
        op: &str,
        base: &str,
        inputs: &[&str],
        attributes: Vec<proto::AttributeProto>,
    ) -> String {
        let output = self.fresh(base);
        self.node_named(op, &output, inputs, attributes);
        output
    }

    /// Adds a node that makes a value of this (fresh) name.
    pub(super) fn node_named(
        &mut self,
        op: &str,
        output: &str,
        inputs: &[&str],
        attributes: Vec<proto::AttributeProto>,
    ) {
        self.added.push(proto::NodeProto {
            name: Some(format!("{output}_{op}")),
            op_type: Some(op.to_string()),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.to_string()],
            attribute: attributes,
            ..Default::default()
        });
    }

    /// The body of a node with the changes so far.
    pub(super) fn body(&self, node: NodeId) -> proto::NodeProto {
        self.changed
            .get(&node)
            .cloned()
            .unwrap_or_else(|| self.proto.node.get(node.0 as usize).cloned().unwrap_or_default())
    }

    /// The name that an input reads after the changes so far.
    pub(super) fn reads(&self, node: NodeId, input: usize) -> Option<String> {
        let name = match self.inputs.get(&(node, input)) {
            Some(name) => name.clone(),
            None => self.graph.value(self.graph.input(node, input)?).name.clone(),
        };
        Some(self.follow(&name).to_string())
    }

    /// Follows replacements to what stands.
    pub(super) fn follow<'n>(&'n self, name: &'n str) -> &'n str {
        let mut name = name;
        for _ in 0..=self.replaced.len() {
            match self.replaced.get(name) {
                Some(next) => name = next,
                None => break,
            }
        }
        name
    }

    /// A size after pruning.
    pub(super) fn eval(&self, int: &Int) -> Poly {
        let space = &self.analysis.space;
        space.eval(int, &|f: FactorId| self.kept.size(space, f))
    }

    /// Marks the nodes whose data the outputs need. With `through_shapes` false,
    /// reading a shape needs no data: a `Shape` ends the walk, but is itself
    /// needed.
    pub(super) fn mark_live(&mut self, through_shapes: bool) {
        self.live = vec![false; self.graph.nodes.len()];
        let by_name: HashMap<&str, NodeId> = self
            .graph
            .values
            .iter()
            .filter_map(|v| Some((v.name.as_str(), v.producer?.0)))
            .collect();
        let added: HashMap<&str, usize> = self
            .added
            .iter()
            .enumerate()
            .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
            .collect();
        let mut stack: Vec<String> = self
            .graph
            .outputs
            .iter()
            .map(|o| self.graph.value(*o).name.clone())
            .collect();
        let mut seen = HashSet::new();
        while let Some(name) = stack.pop() {
            let name = self.follow(&name).to_string();
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some(node) = added.get(name.as_str()) {
                if through_shapes || self.added[*node].op_type() != "Shape" {
                    stack.extend(self.added[*node].input.iter().cloned());
                }
                continue;
            }
            let Some(node) = by_name.get(name.as_str()).copied() else {
                continue;
            };
            self.live[node.0 as usize] = true;
            if !through_shapes && self.graph.node(node).is("", "Shape") {
                continue;
            }
            match self.changed.get(&node) {
                Some(body) => stack.extend(body.input.iter().cloned()),
                None => {
                    let n = self.graph.node(node);
                    for input in 0..n.inputs.len() + n.captures.len() {
                        stack.extend(self.reads(node, input));
                    }
                }
            }
        }
    }

    /// Whether the data of a value is there without its shape being asked.
    pub(super) fn is_live(&self, value: ValueId) -> bool {
        match self.graph.value(value).producer {
            Some((node, _)) => self.live[node.0 as usize],
            None => true,
        }
    }

    /// Applies everything.
    pub(super) fn finish(self) -> Result<(proto::ModelProto, Moved)> {
        let mut nodes = Vec::with_capacity(self.proto.node.len());
        for (at, node) in self.proto.node.iter().enumerate() {
            let id = NodeId(at as u32);
            let mut node = self.changed.get(&id).unwrap_or(node).clone();
            for (input, name) in node.input.iter_mut().enumerate() {
                if let Some(other) = self.inputs.get(&(id, input)) {
                    *name = other.clone();
                }
                *name = self.follow(name).to_string();
            }
            nodes.push(node);
        }
        for mut node in self.added.iter().cloned() {
            for name in &mut node.input {
                *name = self.follow(name).to_string();
            }
            nodes.push(node);
        }
        let outputs = self.proto.output.iter().map(|o| o.name().to_string()).collect();
        let before = self.proto.node.len();
        let Swept { nodes, from, used } = sweep(nodes, outputs)?;
        let mut moved = Moved {
            nodes: vec![None; before],
            slices: self.slices,
        };
        for (new, old) in from.into_iter().enumerate().filter(|(_, old)| *old < before) {
            moved.nodes[old] = Some(NodeId(new as u32));
        }
        let mut graph = proto::GraphProto {
            node: nodes,
            initializer: Vec::new(),
            ..self.proto.clone()
        };
        let mut tensors = self.tensors;
        for tensor in &self.proto.initializer {
            if !used.contains(tensor.name()) {
                continue;
            }
            graph
                .initializer
                .push(tensors.remove(tensor.name()).unwrap_or_else(|| tensor.clone()));
        }
        graph
            .initializer
            .extend(tensors.into_values().filter(|t| used.contains(t.name())));
        // An initializer that is an input too goes from both.
        let initial: HashSet<&str> = self.proto.initializer.iter().map(|t| t.name()).collect();
        graph
            .input
            .retain(|i| !initial.contains(i.name()) || used.contains(i.name()));
        let context = Infos {
            analysis: self.analysis,
            kept: &self.kept,
            names: self
                .graph
                .values
                .iter()
                .enumerate()
                .map(|(i, v)| (v.name.as_str(), ValueId(i as u32)))
                .collect(),
        };
        graph.value_info.retain(|i| used.contains(i.name()));
        for info in graph
            .value_info
            .iter_mut()
            .chain(&mut graph.input)
            .chain(&mut graph.output)
        {
            context.mend(info);
        }
        graph
            .quantization_annotation
            .retain(|a| used.contains(a.tensor_name()));
        let mut model = self.model.clone();
        model.graph = Some(graph);
        Ok((model, moved))
    }
}

/// Mends declared shapes.
struct Infos<'a> {
    analysis: &'a Analysis,
    kept: &'a Kept,
    names: HashMap<&'a str, ValueId>,
}

impl Infos<'_> {
    fn mend(&self, info: &mut proto::ValueInfoProto) {
        use proto::tensor_shape_proto::dimension::Value as Size;
        let Some(id) = self.names.get(info.name()) else {
            return;
        };
        let Some(dims) = &self.analysis.facts(*id).dims else {
            return;
        };
        let Some(proto::type_proto::Value::TensorType(tensor)) =
            info.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            return;
        };
        let Some(shape) = &mut tensor.shape else {
            return;
        };
        if shape.dim.len() != dims.len() {
            return;
        }
        let space = &self.analysis.space;
        for (declared, dim) in shape.dim.iter_mut().zip(dims) {
            if !self.kept.touches(space, dim) {
                continue;
            }
            declared.value = space
                .size_with(dim, &|f| self.kept.size(space, f))
                .map(|n| Size::DimValue(n as i64));
        }
    }
}
