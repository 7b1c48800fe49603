//! Dead branches: nodes and constants that no output needs.

use std::collections::HashSet;

use super::LosslessPass;
use crate::graph::sweep::{Swept, sweep};
use crate::onnx::proto;
use crate::{Error, Result};

/// The model without what no output needs.
pub(super) fn remove(model: &proto::ModelProto, passes: &mut Vec<LosslessPass>) -> Result<proto::ModelProto> {
    let before = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let after = clean(before.clone())?;
    let nodes = before.node.len().saturating_sub(after.node.len());
    let tensors = (before.initializer.len() + before.sparse_initializer.len())
        .saturating_sub(after.initializer.len() + after.sparse_initializer.len());
    if nodes + tensors == 0 {
        return Ok(model.clone());
    }
    passes.push(LosslessPass {
        name: "dead",
        what: format!("{nodes} operators and {tensors} constants that no output needs"),
        nodes,
        contractions: 0,
    });
    Ok(proto::ModelProto {
        graph: Some(after),
        ..model.clone()
    })
}

/// Drops what no output needs and puts the nodes into topological order.
pub(super) fn clean(mut graph: proto::GraphProto) -> Result<proto::GraphProto> {
    let outputs = graph.output.iter().map(|o| o.name().to_string()).collect();
    let Swept { nodes, used, .. } = sweep(std::mem::take(&mut graph.node), outputs)?;
    graph.node = nodes;
    // An initializer that is an input too goes from both.
    let initial: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_string()).collect();
    graph
        .input
        .retain(|i| !initial.contains(i.name()) || used.contains(i.name()));
    graph.initializer.retain(|t| used.contains(t.name()));
    graph
        .sparse_initializer
        .retain(|t| used.contains(t.values.as_ref().map_or("", |v| v.name())));
    graph.value_info.retain(|i| used.contains(i.name()));
    graph
        .quantization_annotation
        .retain(|a| used.contains(a.tensor_name()));
    Ok(graph)
}
