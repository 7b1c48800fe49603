//! Whether a model is sound enough to be worked on.

use std::collections::{HashMap, HashSet};

use super::label::{node_label, quoted};
use super::proto::tensor_shape_proto::dimension;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use super::{MAX_GRAPH_DEPTH, tensor};
use crate::error::{Error, Result, ResultExt};

/// No axis is longer than this, and no tensor has more elements than fit 63 bits.
const LONGEST_AXIS: i64 = 1 << 40;
/// Nodes of a cycle that an error lists.
const LISTED: usize = 5;

/// Checks the structure of a model; what holds afterwards:
///
/// - every value has one producer in its scope: a graph input, an initializer
///   (which may give an input its default), or a node;
/// - every value that is read has a producer, in its scope or in an enclosing
///   graph;
/// - nodes can be ordered: there is no cycle, counting what subgraphs capture;
///   the order in the file may be another;
/// - subgraphs nest at most 33 deep;
/// - every tensor has as many bytes or values as its shape and type say, and
///   declared shapes are sane (-1 is tolerated as "unknown").
///
/// Operators and their types are not checked. Errors name the node by position,
/// name and operator.
pub fn validate(proto: &ModelProto) -> Result<()> {
    let Some(graph) = &proto.graph else {
        return Err(Error::input("there is no graph in the model"));
    };
    Scope::check(Body::of_graph(graph)?, None)?;
    for function in &proto.functions {
        let check = || Scope::check(Body::of_function(function), None);
        check().context(|| format!("function {}", quoted(function.name())))?;
    }
    Ok(())
}

/// What a graph and a function body have in common.
struct Body<'a> {
    inputs: Vec<&'a str>,
    initializers: Vec<&'a str>,
    nodes: &'a [NodeProto],
    outputs: Vec<&'a str>,
}

impl<'a> Body<'a> {
    fn of_graph(graph: &'a GraphProto) -> Result<Self> {
        for (what, infos) in [
            ("input", &graph.input),
            ("output", &graph.output),
            ("value_info", &graph.value_info),
        ] {
            for info in infos {
                check_info(info).context(|| format!("{what} {}", quoted(info.name())))?;
            }
        }
        for tensor in &graph.initializer {
            tensor::sound(tensor).context(|| format!("initializer {}", quoted(tensor.name())))?;
        }
        let sparse_name =
            |sparse: &'a SparseTensorProto| sparse.values.as_ref().map_or("", |values| values.name());
        for sparse in &graph.sparse_initializer {
            check_sparse(sparse).context(|| format!("sparse initializer {}", quoted(sparse_name(sparse))))?;
        }
        let dense = graph.initializer.iter().map(|tensor| tensor.name());
        Ok(Body {
            inputs: graph.input.iter().map(|info| info.name()).collect(),
            initializers: dense
                .chain(graph.sparse_initializer.iter().map(sparse_name))
                .collect(),
            nodes: &graph.node,
            outputs: graph.output.iter().map(|info| info.name()).collect(),
        })
    }

    fn of_function(function: &'a FunctionProto) -> Self {
        Body {
            inputs: function.input.iter().map(String::as_str).collect(),
            initializers: Vec::new(),
            nodes: &function.node,
            outputs: function.output.iter().map(String::as_str).collect(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Producer {
    Input,
    Initializer,
    Node(usize),
}

impl Producer {
    fn describe(self, nodes: &[NodeProto]) -> String {
        match self {
            Producer::Input => "a graph input".into(),
            Producer::Initializer => "an initializer".into(),
            Producer::Node(index) => nodes
                .get(index)
                .map_or_else(String::new, |node| node_label(index, node)),
        }
    }
}

/// The values of one graph, inside the graphs around it.
struct Scope<'a> {
    producers: HashMap<&'a str, Producer>,
    parent: Option<&'a Scope<'a>>,
    depth: usize,
}

impl<'a> Scope<'a> {
    /// Checks a body. Returns the values that it takes from enclosing graphs.
    fn check(body: Body<'_>, parent: Option<&Scope<'_>>) -> Result<HashSet<String>> {
        let depth = parent.map_or(0, |parent| parent.depth + 1);
        if depth >= MAX_GRAPH_DEPTH {
            return Err(Error::input(format!(
                "subgraphs nest more than {MAX_GRAPH_DEPTH} deep"
            )));
        }
        let scope = Scope {
            producers: producers(&body)?,
            parent,
            depth,
        };
        let mut captured = HashSet::new();
        // (producer, consumer) pairs of nodes of this graph.
        let mut edges = Vec::new();
        for (index, node) in body.nodes.iter().enumerate() {
            let mut read = |name: &str| match scope.producers.get(name) {
                Some(Producer::Node(from)) => {
                    edges.push((*from, index));
                    Ok(())
                }
                Some(_) => Ok(()),
                None if scope.is_outer(name) => {
                    captured.insert(name.to_owned());
                    Ok(())
                }
                None => Err(Error::input(format!(
                    "nothing produces its input {}",
                    quoted(name)
                ))),
            };
            let mut check = || {
                if node.op_type().is_empty() {
                    return Err(Error::input("it has no operator"));
                }
                node.input
                    .iter()
                    .filter(|name| !name.is_empty())
                    .try_for_each(|name| read(name))?;
                for attribute in &node.attribute {
                    let inner = scope
                        .check_attribute(attribute)
                        .context(|| format!("attribute {}", quoted(attribute.name())))?;
                    inner.iter().try_for_each(|name| read(name))?;
                }
                Ok(())
            };
            check().context(|| node_label(index, node))?;
        }
        for name in body.outputs {
            if !scope.producers.contains_key(name) {
                if !scope.is_outer(name) {
                    return Err(Error::input(format!(
                        "nothing produces the graph output {}",
                        quoted(name)
                    )));
                }
                captured.insert(name.to_owned());
            }
        }
        if edges.iter().any(|(from, to)| from >= to) {
            check_acyclic(body.nodes, &edges)?;
        }
        Ok(captured)
    }

    fn is_outer(&self, name: &str) -> bool {
        std::iter::successors(self.parent, |scope| scope.parent)
            .any(|scope| scope.producers.contains_key(name))
    }

    fn check_attribute(&self, attribute: &AttributeProto) -> Result<HashSet<String>> {
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            if *tensor != TensorProto::default() {
                tensor::sound(tensor).context(|| format!("tensor {}", quoted(tensor.name())))?;
            }
        }
        for sparse in attribute
            .sparse_tensor
            .as_deref()
            .into_iter()
            .chain(&attribute.sparse_tensors)
        {
            check_sparse(sparse)?;
        }
        let mut captured = HashSet::new();
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            let check = || Scope::check(Body::of_graph(graph)?, Some(self));
            captured.extend(check().context(|| format!("subgraph {}", quoted(graph.name())))?);
        }
        Ok(captured)
    }
}

/// Who makes each value of a body; an error when two do.
fn producers<'a>(body: &Body<'a>) -> Result<HashMap<&'a str, Producer>> {
    let mut producers = HashMap::new();
    let nameless = |what: &str| Err(Error::input(format!("{what} has no name")));
    for name in &body.inputs {
        if name.is_empty() {
            return nameless("a graph input");
        }
        if producers.insert(*name, Producer::Input).is_some() {
            return Err(Error::input(format!(
                "two graph inputs are named {}",
                quoted(name)
            )));
        }
    }
    for name in &body.initializers {
        if name.is_empty() {
            return nameless("an initializer");
        }
        // An initializer may give an input its default.
        if producers.insert(*name, Producer::Initializer) == Some(Producer::Initializer) {
            return Err(Error::input(format!(
                "two initializers are named {}",
                quoted(name)
            )));
        }
    }
    for (index, node) in body.nodes.iter().enumerate() {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if let Some(other) = producers.insert(name, Producer::Node(index)) {
                return Err(Error::input(format!(
                    "{}: its output {} is made by {} already",
                    node_label(index, node),
                    quoted(name),
                    other.describe(body.nodes),
                )));
            }
        }
    }
    Ok(producers)
}

/// Kahn's algorithm; what is never free lies on a cycle or behind one.
fn check_acyclic(nodes: &[NodeProto], edges: &[(usize, usize)]) -> Result<()> {
    let mut consumers = vec![Vec::new(); nodes.len()];
    let mut producers = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    for &(from, to) in edges {
        consumers[from].push(to);
        producers[to].push(from);
        waiting[to] += 1;
    }
    let mut free: Vec<usize> = (0..nodes.len()).filter(|&node| waiting[node] == 0).collect();
    while let Some(node) = free.pop() {
        for &next in &consumers[node] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                free.push(next);
            }
        }
    }
    let Some(start) = (0..nodes.len()).find(|&node| waiting[node] > 0) else {
        return Ok(());
    };
    // Each waiting node waits for another one: following those must come back.
    let mut path = vec![start];
    let mut position = HashMap::from([(start, 0)]);
    let mut node = start;
    let cycle = loop {
        let Some(&before) = producers[node].iter().find(|&&from| waiting[from] > 0) else {
            break &path[..];
        };
        if let Some(&first) = position.get(&before) {
            break &path[first..];
        }
        position.insert(before, path.len());
        path.push(before);
        node = before;
    };
    let named: Vec<String> = cycle
        .iter()
        .rev()
        .take(LISTED)
        .map(|&index| node_label(index, &nodes[index]))
        .collect();
    let more = match cycle.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::input(format!(
        "nodes depend on each other in a cycle: {}{more}",
        named.join(" -> ")
    )))
}

fn check_info(info: &ValueInfoProto) -> Result<()> {
    info.r#type.as_ref().map_or(Ok(()), check_type)
}

fn check_type(found: &TypeProto) -> Result<()> {
    use type_proto::Value;
    let shape = match &found.value {
        Some(Value::TensorType(tensor)) => &tensor.shape,
        Some(Value::SparseTensorType(tensor)) => &tensor.shape,
        Some(Value::SequenceType(inner)) => {
            return inner.elem_type.as_deref().map_or(Ok(()), check_type);
        }
        Some(Value::OptionalType(inner)) => {
            return inner.elem_type.as_deref().map_or(Ok(()), check_type);
        }
        Some(Value::MapType(inner)) => {
            return inner.value_type.as_deref().map_or(Ok(()), check_type);
        }
        Some(Value::OpaqueType(_)) | None => return Ok(()),
    };
    shape.as_ref().map_or(Ok(()), check_shape)
}

fn check_shape(shape: &TensorShapeProto) -> Result<()> {
    let known = shape.dim.iter().filter_map(|dim| match &dim.value {
        // Some exporters write -1 for "not known".
        Some(dimension::Value::DimValue(-1)) => None,
        Some(dimension::Value::DimValue(size)) => Some(*size),
        _ => None,
    });
    check_dims(known, shape.dim.len())
}

fn check_dims(mut known: impl Iterator<Item = i64>, rank: usize) -> Result<()> {
    if rank > tensor::MAX_RANK {
        return Err(Error::input(format!(
            "it has {rank} axes, more than {}",
            tensor::MAX_RANK
        )));
    }
    let total = known.try_fold(1i64, |product, size| match size {
        0..=LONGEST_AXIS => product.checked_mul(size.max(1)),
        _ => None,
    });
    match total {
        Some(_) => Ok(()),
        None => Err(Error::input("its shape has a negative or an absurdly large size")),
    }
}

fn check_sparse(sparse: &SparseTensorProto) -> Result<()> {
    check_dims(sparse.dims.iter().copied(), sparse.dims.len())?;
    sparse
        .values
        .iter()
        .chain(&sparse.indices)
        .try_for_each(tensor::sound)
}
