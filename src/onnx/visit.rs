//! Every tensor of a model, wherever it sits: initializers, sparse initializers,
//! attributes, subgraphs, functions, training information.

use std::collections::HashSet;

use super::label::node_label;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use crate::error::{Result, ResultExt};

/// What a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameRole {
    Initializer,
    Attribute,
}

type Visitor<'a> = &'a mut dyn FnMut(&mut TensorProto, NameRole) -> Result<()>;

/// Calls `visit` on every tensor, in the order of the fields. An error gets the
/// node in front when the tensor is one of its attributes.
pub(super) fn tensors(
    model: &mut ModelProto,
    mut visit: impl FnMut(&mut TensorProto, NameRole) -> Result<()>,
) -> Result<()> {
    let visit: Visitor = &mut visit;
    if let Some(graph) = &mut model.graph {
        in_graph(graph, visit)?;
    }
    for training in &mut model.training_info {
        for graph in training.initialization.iter_mut().chain(&mut training.algorithm) {
            in_graph(graph, visit)?;
        }
    }
    for function in &mut model.functions {
        let result = in_attributes(&mut function.attribute_proto, visit)
            .and_then(|()| in_nodes(&mut function.node, visit));
        result.context(|| format!("function {:?}", function.name()))?;
    }
    Ok(())
}

/// The names of a graph's initializers, sparse ones included.
pub(crate) fn constant_names(graph: &GraphProto) -> HashSet<&str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    graph.initializer.iter().chain(sparse).map(|t| t.name()).collect()
}

fn in_graph(graph: &mut GraphProto, visit: Visitor) -> Result<()> {
    in_nodes(&mut graph.node, visit)?;
    for tensor in &mut graph.initializer {
        visit(tensor, NameRole::Initializer)?;
    }
    for tensor in &mut graph.sparse_initializer {
        in_sparse(tensor, NameRole::Initializer, visit)?;
    }
    Ok(())
}

fn in_nodes(nodes: &mut [NodeProto], visit: Visitor) -> Result<()> {
    for (index, node) in nodes.iter_mut().enumerate() {
        in_attributes(&mut node.attribute, visit).context(|| node_label(index, node))?;
    }
    Ok(())
}

fn in_attributes(attributes: &mut [AttributeProto], visit: Visitor) -> Result<()> {
    for attribute in attributes {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            visit(tensor, NameRole::Attribute)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            in_graph(graph, visit)?;
        }
        if let Some(tensor) = &mut attribute.sparse_tensor {
            in_sparse(tensor, NameRole::Attribute, visit)?;
        }
        for tensor in &mut attribute.sparse_tensors {
            in_sparse(tensor, NameRole::Attribute, visit)?;
        }
    }
    Ok(())
}

fn in_sparse(sparse: &mut SparseTensorProto, role: NameRole, visit: Visitor) -> Result<()> {
    for tensor in sparse.values.iter_mut().chain(&mut sparse.indices) {
        visit(tensor, role)?;
    }
    Ok(())
}
