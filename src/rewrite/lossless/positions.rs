//! One position of a sequence: the pick moves up.
//!
//! From the nodes that pick one position of a value, the graph is walked
//! backwards. A node of which nothing but that position is read takes the pick
//! over to its inputs, where its rule allows that: it then computes a position
//! axis of size 1, under the same names. Everything else stays whole and is
//! followed by a `Slice`.

use std::collections::{BTreeMap, HashSet};

use super::cut::{Context, PositionCut, slice};
use super::{LosslessPass, dead, rules};
use crate::axes::Analysis;
use crate::graph::{Graph, NodeId, ValueId, operators};
use crate::onnx::{self, proto};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The pick of a node that reads nothing but one position of its first input.
fn pick(cx: &Context, node: NodeId) -> Option<PositionCut> {
    let n = cx.graph.node(node);
    let cut = match (n.domain.as_str(), n.op.as_str()) {
        ("", "Gather") => gather(cx, node)?,
        ("", "Slice") => slice(cx, node)?,
        _ => return None,
    };
    let value = cx.graph.input(node, 0)?;
    let facts = cx.analysis.facts(value);
    let rank = facts.dims.as_ref()?.len();
    (rank >= 2 && !facts.table && !facts.constant && !cx.is_single(value, cut.axis)).then_some(cut)
}

fn gather(cx: &Context, node: NodeId) -> Option<PositionCut> {
    let dims = cx.dims(node, 0)?;
    let axis = operators::axis(cx.graph.node(node).int("axis", 0), dims.len())?;
    let [at] = cx.ints(node, 1)?[..] else {
        return None;
    };
    let at = match cx.analysis.space.size(&dims[axis]) {
        Some(size) if at < 0 => at.checked_add(i64::try_from(size).ok()?)?,
        _ => at,
    };
    (at >= -1).then_some(PositionCut { axis, at })
}

/// The first value of which one position is read only, narrowed; `None` where
/// there is none that would save a contraction.
pub(super) fn narrow(
    model: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
) -> Result<Option<(proto::ModelProto, LosslessPass)>> {
    if graph.opset < 10 {
        // `Slice` has attributes there.
        return Ok(None);
    }
    let cx = Context { graph, analysis };
    let mut tried = HashSet::new();
    for &node in graph.order.iter().rev() {
        let (Some(cut), Some(value)) = (pick(&cx, node), graph.input(node, 0)) else {
            continue;
        };
        if !tried.insert(value) || graph.value(value).is_output {
            continue;
        }
        let readers: BTreeMap<NodeId, PositionCut> = graph
            .value(value)
            .consumers
            .iter()
            .filter(|(reader, input)| *input == 0 && pick(&cx, *reader) == Some(cut))
            .map(|(reader, _)| (*reader, cut))
            .collect();
        let mut plan = PositionPlan::new(cx, readers);
        plan.walk();
        if plan.contractions > 0 && !plan.slices.is_empty() {
            let pass = LosslessPass {
                name: "positions",
                what: format!(
                    "{} reads one position of '{}' only: {} operators run on that position only",
                    graph.label(node),
                    graph.value(value).name,
                    plan.narrowed.len()
                ),
                nodes: plan.narrowed.len(),
                contractions: plan.contractions,
            };
            return Ok(Some((plan.finish(model)?, pass)));
        }
    }
    Ok(None)
}

/// What becomes of the graph.
struct PositionPlan<'a> {
    cx: Context<'a>,
    /// Nodes that pick the position now.
    readers: BTreeMap<NodeId, PositionCut>,
    /// Values that are needed whole.
    needed: Vec<bool>,
    /// Cuts of values that are asked for.
    wanted: Vec<Vec<PositionCut>>,
    /// Nodes that compute the cut instead of the whole.
    narrowed: BTreeMap<NodeId, (PositionCut, rules::Push)>,
    /// Cuts that are made with a `Slice`.
    slices: Vec<(ValueId, PositionCut)>,
    contractions: usize,
}

impl<'a> PositionPlan<'a> {
    fn new(cx: Context<'a>, readers: BTreeMap<NodeId, PositionCut>) -> Self {
        let values = cx.graph.values.len();
        let mut needed = vec![false; values];
        for output in &cx.graph.outputs {
            needed[output.0 as usize] = true;
        }
        PositionPlan {
            cx,
            readers,
            needed,
            wanted: vec![Vec::new(); values],
            narrowed: BTreeMap::new(),
            slices: Vec::new(),
            contractions: 0,
        }
    }

    /// Decides for each node, all its readers first.
    fn walk(&mut self) {
        for &node in self.cx.graph.order.iter().rev() {
            self.decide(node);
        }
        for (at, value) in self.cx.graph.values.iter().enumerate() {
            if value.producer.is_none() {
                self.slice_wanted(ValueId(at as u32));
            }
        }
    }

    fn decide(&mut self, id: NodeId) {
        let node = self.cx.graph.node(id);
        let outputs = || node.outputs.iter().flatten().copied();
        let needed = outputs().any(|o| self.needed[o.0 as usize]);
        let cuts: Vec<(usize, PositionCut)> = node
            .outputs
            .iter()
            .enumerate()
            .filter_map(|(k, o)| Some((k, (*o)?)))
            .flat_map(|(k, o)| self.wanted[o.0 as usize].iter().map(move |c| (k, *c)))
            .collect();
        if !needed && cuts.is_empty() {
            return;
        }
        if let (Some(cut), Some(value)) = (self.readers.get(&id).copied(), self.cx.graph.input(id, 0)) {
            self.want(value, cut);
            return;
        }
        if let Some((_, cut)) = cuts.first().copied()
            && !needed
            && node.captures.is_empty()
            && cuts.iter().all(|(_, c)| *c == cut)
        {
            let wanted: Vec<usize> = cuts.iter().map(|(k, _)| *k).collect();
            if let Some(push) = rules::push(&self.cx, id, cut, &wanted) {
                self.narrow(id, cut, push);
                return;
            }
        }
        for output in outputs() {
            self.slice_wanted(output);
        }
        for input in 0..node.inputs.len() + node.captures.len() {
            if let Some(value) = self.cx.graph.input(id, input) {
                self.needed[value.0 as usize] = true;
            }
        }
    }

    fn narrow(&mut self, id: NodeId, cut: PositionCut, push: rules::Push) {
        let node = self.cx.graph.node(id);
        for input in 0..node.inputs.len() {
            let Some(value) = self.cx.graph.input(id, input) else {
                continue;
            };
            match push.axis(input) {
                Some(axis) => self.want(value, PositionCut { axis, ..cut }),
                None if push.is_constant(input) => {}
                None => self.needed[value.0 as usize] = true,
            }
        }
        self.contractions += usize::from(rules::contracts(&node.op));
        self.narrowed.insert(id, (cut, push));
    }

    fn want(&mut self, value: ValueId, cut: PositionCut) {
        if self.cx.is_single(value, cut.axis) {
            self.needed[value.0 as usize] = true;
        } else if !self.wanted[value.0 as usize].contains(&cut) {
            self.wanted[value.0 as usize].push(cut);
        }
    }

    fn slice_wanted(&mut self, value: ValueId) {
        for cut in std::mem::take(&mut self.wanted[value.0 as usize]) {
            self.slices.push((value, cut));
        }
    }

    /// Applies the plan.
    fn finish(self, model: &proto::ModelProto) -> Result<proto::ModelProto> {
        let graph = self.cx.graph;
        let mut out = model
            .graph
            .clone()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        let mut made = MadeNodes::new(graph);
        let mut slices: BTreeMap<(ValueId, PositionCut), String> = BTreeMap::new();
        for (value, cut) in &self.slices {
            let name = made.slice(&graph.value(*value).name, *cut);
            slices.insert((*value, *cut), name);
        }
        let cut_of = |value: ValueId, cut: PositionCut| -> String {
            let whole = || graph.value(value).name.clone();
            slices.get(&(value, cut)).cloned().unwrap_or_else(whole)
        };
        for (id, (cut, push)) in &self.narrowed {
            let Some(node) = out.node.get_mut(id.0 as usize) else {
                continue;
            };
            for (input, axis) in &push.inputs {
                if let (Some(value), Some(slot)) = (graph.input(*id, *input), node.input.get_mut(*input)) {
                    *slot = cut_of(value, PositionCut { axis: *axis, ..*cut });
                }
            }
            for (input, values) in &push.constants {
                if let Some(slot) = node.input.get_mut(*input) {
                    *slot = made.constant("sizes", values, false);
                }
            }
            if node.op_type() == "Reshape" {
                node.attribute.retain(|a| a.name() != "allowzero");
            }
        }
        for (id, cut) in &self.readers {
            let (Some(value), Some(node)) = (graph.input(*id, 0), out.node.get_mut(id.0 as usize)) else {
                continue;
            };
            let name = cut_of(value, *cut);
            if node.op_type() == "Slice" {
                node.op_type = Some("Identity".into());
                node.input = vec![name];
                node.attribute.clear();
            } else {
                let scalar = self.cx.dims(*id, 1).is_none_or(|d| d.is_empty());
                node.input = vec![name, made.constant("position", &[0], scalar)];
            }
        }
        self.mend_declared(&mut out);
        out.node.extend(made.nodes);
        out.initializer.extend(made.tensors);
        Ok(proto::ModelProto {
            graph: Some(dead::clean(out)?),
            ..model.clone()
        })
    }

    /// Declared shapes of what became narrow.
    fn mend_declared(&self, out: &mut proto::GraphProto) {
        use proto::tensor_shape_proto::dimension::Value as Size;
        let mut axes: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, (cut, _)) in &self.narrowed {
            for output in self.cx.graph.node(*id).outputs.iter().flatten() {
                axes.insert(&self.cx.graph.value(*output).name, cut.axis);
            }
        }
        for info in &mut out.value_info {
            let Some(axis) = axes.get(info.name()) else {
                continue;
            };
            if let Some(proto::type_proto::Value::TensorType(tensor)) =
                info.r#type.as_mut().and_then(|t| t.value.as_mut())
                && let Some(dim) = tensor.shape.as_mut().and_then(|s| s.dim.get_mut(*axis))
            {
                dim.value = Some(Size::DimValue(1));
            }
        }
    }
}

/// Nodes and constants that come in.
struct MadeNodes {
    names: HashSet<String>,
    nodes: Vec<proto::NodeProto>,
    tensors: Vec<proto::TensorProto>,
    constants: BTreeMap<(Vec<i64>, bool), String>,
}

impl MadeNodes {
    fn new(graph: &Graph) -> Self {
        MadeNodes {
            names: graph.values.iter().map(|v| v.name.clone()).collect(),
            nodes: Vec::new(),
            tensors: Vec::new(),
            constants: BTreeMap::new(),
        }
    }

    /// A name that no value has yet.
    fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        name
    }

    /// A constant; equal ones are one.
    fn constant(&mut self, base: &str, values: &[i64], scalar: bool) -> String {
        let key = (values.to_vec(), scalar);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh(&format!("lossless_{base}"));
        let shape = if scalar { vec![] } else { vec![values.len()] };
        let tensor = Tensor::i64(shape, values.to_vec());
        self.tensors.push(onnx::tensor_proto(&name, &tensor));
        self.constants.insert(key, name.clone());
        name
    }

    /// The cut of a value.
    fn slice(&mut self, value: &str, cut: PositionCut) -> String {
        let output = self.fresh(&format!("{value}_position"));
        let axis = i64::try_from(cut.axis).unwrap_or(i64::MAX);
        let input = vec![
            value.to_string(),
            self.constant("start", &[cut.at], false),
            self.constant("end", &[cut.end()], false),
            self.constant("axis", &[axis], false),
        ];
        self.nodes.push(proto::NodeProto {
            name: Some(format!("{output}_Slice")),
            op_type: Some("Slice".into()),
            input,
            output: vec![output.clone()],
            ..Default::default()
        });
        output
    }
}
