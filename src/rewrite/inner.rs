//! Decoders inside of a node: the branches of an `If` over a decoder with and without a
//! cache, and what `BeamSearch` and its like run at each step.
//!
//! One of them, the primary, is a model of its own while a run prunes it. The others share
//! its weights: they are sliced by the same mask and read the same new weights. The node
//! stays.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::graph::node_reads;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::{Error, Result};

/// A node with decoders inside.
#[derive(Debug, Clone)]
pub struct Inner {
    template: ModelProto,
    node: usize,
    /// The attribute that holds the primary one.
    primary: String,
    /// The others that may share its weights, each as a model of its own, by attribute.
    pub others: Vec<(String, ModelProto)>,
}

/// Matrix products of a subgraph that is worth pruning, at least.
const LEAST_PRODUCTS: usize = 2;

fn subgraph<'n>(node: &'n NodeProto, attribute: &str) -> Option<&'n GraphProto> {
    node.attribute.iter().find(|a| a.name() == attribute)?.g.as_ref()
}

fn holds_products(graph: &GraphProto) -> bool {
    let is_product =
        |n: &&NodeProto| matches!(n.op_type(), "MatMul" | "Gemm" | "MatMulNBits" | "MatMulInteger");
    graph.node.iter().filter(is_product).count() >= LEAST_PRODUCTS
}

/// The attributes of the decoders of a node: the primary one, and those that share its
/// weights. `taken` tells which branch of an `If` on this value the data take.
fn decoders(
    graph: &GraphProto,
    node: &NodeProto,
    taken: impl Fn(&str) -> Option<bool>,
) -> Option<(&'static str, Vec<&'static str>)> {
    match (node.domain(), node.op_type()) {
        ("" | "ai.onnx", "If") => {
            let branches = ["then_branch", "else_branch"];
            let [a, b] = branches.map(|name| subgraph(node, name).filter(|g| holds_products(g)));
            let (a, b) = (a?, b?);
            let inputs: HashSet<&str> = graph.input.iter().map(|i| i.name()).collect();
            let reads = |g: &GraphProto| {
                let all: BTreeSet<String> = g.node.iter().flat_map(node_reads).collect();
                all.iter().filter(|r| inputs.contains(r.as_str())).count()
            };
            // Without a word of the data: the one that needs no cache.
            let first = taken(node.input.first()?).unwrap_or(reads(a) <= reads(b));
            Some(match first {
                true => (branches[0], vec![branches[1]]),
                false => (branches[1], vec![branches[0]]),
            })
        }
        ("com.microsoft", "BeamSearch" | "GreedySearch" | "Sampling" | "WhisperBeamSearch") => {
            subgraph(node, "decoder").filter(|g| holds_products(g))?;
            let others = subgraph(node, "init_decoder").map(|_| "init_decoder");
            Some(("decoder", others.into_iter().collect()))
        }
        _ => None,
    }
}

/// The primary decoder of a model as a model of its own; `None` where no node has one.
/// `taken` tells which branch of an `If` on a graph input the data take.
///
/// # Errors
/// Decoders in a graph that computes more than them.
pub fn open(model: &ModelProto, taken: impl Fn(&str) -> Option<bool>) -> Result<Option<(ModelProto, Inner)>> {
    let Some(graph) = model.graph.as_ref() else {
        return Ok(None);
    };
    // Whatever is prunable outside is pruned as ever.
    if holds_products(graph) {
        return Ok(None);
    }
    let found = graph
        .node
        .iter()
        .enumerate()
        .find_map(|(at, node)| Some((at, node, decoders(graph, node, &taken)?)));
    let Some((at, node, (primary, others))) = found else {
        return Ok(None);
    };
    let made = |attribute: &str| {
        let inner = subgraph(node, attribute);
        inner.and_then(|inner| alone(model, node, inner)).ok_or_else(|| {
            Error::NothingPrunable(format!(
                "the subgraph '{attribute}' of '{}' ({} #{at}) reads what other nodes of the graph compute: take \
                 the decoder out of the node and prune it as a model of its own",
                node.name(),
                node.op_type()
            ))
        })
    };
    let inner = Inner {
        template: model.clone(),
        node: at,
        primary: primary.to_owned(),
        others: others
            .into_iter()
            .map(|name| Ok((name.to_owned(), made(name)?)))
            .collect::<Result<_>>()?,
    };
    Ok(Some((made(primary)?, inner)))
}

/// A subgraph as a model: what it takes from around it are constants and graph inputs.
fn alone(model: &ModelProto, node: &NodeProto, inner: &GraphProto) -> Option<ModelProto> {
    let outer = model.graph.as_ref()?;
    let own: HashSet<&str> = inner
        .node
        .iter()
        .flat_map(|n| &n.output)
        .map(String::as_str)
        .collect();
    let held: HashSet<&str> = (inner.initializer.iter().map(|t| t.name()))
        .chain(inner.input.iter().map(|i| i.name()))
        .collect();
    let mut read: BTreeSet<String> = inner.node.iter().flat_map(node_reads).collect();
    read.retain(|r| !r.is_empty() && !own.contains(r.as_str()) && !held.contains(r.as_str()));
    let constants: Vec<TensorProto> = outer
        .initializer
        .iter()
        .filter(|t| read.contains(t.name()))
        .cloned()
        .collect();
    let inputs: Vec<ValueInfoProto> = outer
        .input
        .iter()
        .filter(|i| read.contains(i.name()) && !constants.iter().any(|t| t.name() == i.name()))
        .cloned()
        .collect();
    if constants.len() + inputs.len() != read.len() {
        return None;
    }
    // An output of a branch may say nothing of its type, where that of the node does.
    let outputs = inner.output.iter().enumerate().map(|(at, info)| {
        let outside = node.output.get(at);
        let known = outer
            .output
            .iter()
            .find(|o| Some(o.name()) == outside.map(String::as_str));
        ValueInfoProto {
            r#type: info
                .r#type
                .clone()
                .or_else(|| known.and_then(|k| k.r#type.clone())),
            ..info.clone()
        }
    });
    let graph = GraphProto {
        input: inner.input.iter().cloned().chain(inputs).collect(),
        initializer: inner.initializer.iter().cloned().chain(constants).collect(),
        output: outputs.collect(),
        ..inner.clone()
    };
    Some(ModelProto {
        graph: Some(graph),
        ..model.clone()
    })
}

/// Takes over what is known of values of the same name.
pub(super) fn mend(old: &mut [ValueInfoProto], new: &[ValueInfoProto]) {
    for info in old {
        if let Some(new) = new.iter().find(|n| n.name() == info.name()) {
            info.clone_from(new);
        }
    }
}

impl Inner {
    /// The attribute that holds the primary decoder.
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// The whole model again: `primary` and the `others`, in their order, in the node.
    ///
    /// # Errors
    /// A model without a graph.
    pub fn attach(&self, primary: &ModelProto, others: &[ModelProto]) -> Result<ModelProto> {
        let missing = || Error::input("the model has no graph");
        let mut graph = self.template.graph.clone().ok_or_else(missing)?;
        let mut shared: HashMap<String, TensorProto> = HashMap::new();
        let mut parts: BTreeMap<&str, GraphProto> = BTreeMap::new();
        let outside: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
        let attributes = std::iter::once(&self.primary).chain(self.others.iter().map(|(name, _)| name));
        for (attribute, model) in attributes.zip(std::iter::once(primary).chain(others)) {
            let mut part = model.graph.clone().ok_or_else(missing)?;
            // What both read lies outside, where it did; what they do not agree on, inside.
            let mut inside = Vec::new();
            for tensor in std::mem::take(&mut part.initializer) {
                match (outside.contains(tensor.name()), shared.get(tensor.name())) {
                    (true, None) => _ = shared.insert(tensor.name().to_owned(), tensor),
                    (true, Some(other)) if *other == tensor => {}
                    (true, Some(_)) => {
                        let own = format!("{}_{attribute}", tensor.name());
                        for node in &mut part.node {
                            node.input
                                .iter_mut()
                                .filter(|i| *i == tensor.name())
                                .for_each(|i| i.clone_from(&own));
                        }
                        inside.push(TensorProto {
                            name: Some(own),
                            ..tensor
                        });
                    }
                    (false, _) => inside.push(tensor),
                }
            }
            part.initializer = inside;
            parts.insert(attribute, part);
        }
        let node = graph.node.get_mut(self.node).ok_or_else(missing)?;
        let is_branch = node.op_type() == "If";
        let mut outer: HashMap<String, ValueInfoProto> = HashMap::new();
        for attribute in &mut node.attribute {
            let AttributeProto { name, g, .. } = attribute;
            let (Some(old), Some(part)) = (g, name.as_deref().and_then(|name| parts.remove(name))) else {
                continue;
            };
            // An interface that may change has other sizes.
            mend(&mut old.input, &part.input);
            mend(&mut old.output, &part.output);
            for info in &part.input {
                outer
                    .entry(info.name().to_owned())
                    .or_insert_with(|| info.clone());
            }
            for (name, info) in node.output.iter().zip(&part.output) {
                let info = ValueInfoProto {
                    name: Some(name.clone()),
                    ..info.clone()
                };
                outer.entry(name.clone()).or_insert(info);
            }
            old.node = part.node;
            old.initializer = part.initializer;
            old.value_info.clear();
        }
        // A search takes and gives other things than what it runs.
        if is_branch {
            for info in graph.input.iter_mut().chain(&mut graph.output) {
                if let Some(new) = outer.remove(info.name()) {
                    *info = new;
                }
            }
        }
        let read: HashSet<String> = graph.node.iter().flat_map(node_reads).collect();
        graph.initializer = graph
            .initializer
            .into_iter()
            .filter_map(|t| match shared.remove(t.name()) {
                Some(new) => Some(new),
                None => read.contains(t.name()).then_some(t),
            })
            .collect();
        Ok(ModelProto {
            graph: Some(graph),
            ..primary.clone()
        })
    }
}
