//! From the protobuf message to the [`Graph`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Attr, Constant, DeclaredShape, Graph, Node, NodeId, Role, Value, ValueId, order};
use crate::onnx::{self, proto};
use crate::tensor::Elem;
use crate::{Error, Result};

/// Builds the graph of a model whose local functions are inlined already.
///
/// # Errors
/// A value without a producer, a value with two, a cycle.
pub fn build(model: &proto::ModelProto) -> Result<Graph> {
    let proto = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let mut builder = Builder::default();
    builder.graph.opset = model
        .opset_import
        .iter()
        .find(|o| matches!(o.domain(), "" | "ai.onnx"))
        .map_or(0, |o| o.version());
    builder.whole(proto)
}

/// A subgraph: what it captures becomes an input.
fn body(proto: &proto::GraphProto, opset: i64) -> Result<Graph> {
    let mut builder = Builder {
        inner: true,
        ..Builder::default()
    };
    builder.graph.opset = opset;
    builder.whole(proto)
}

#[derive(Default)]
struct Builder {
    graph: Graph,
    names: HashMap<String, ValueId>,
    declared: HashMap<String, (Option<Elem>, Option<Vec<DeclaredShape>>)>,
    /// Whether names that nothing produces are captured from outside.
    inner: bool,
}

impl Builder {
    fn whole(mut self, proto: &proto::GraphProto) -> Result<Graph> {
        self.declarations(proto);
        self.constants(proto)?;
        self.inputs(proto)?;
        for (at, node) in proto.node.iter().enumerate() {
            self.outputs(at, node)?;
        }
        for (at, node) in proto.node.iter().enumerate() {
            self.node(at, node)?;
        }
        self.finish(proto)
    }

    /// The value of a name that is read.
    fn read(&mut self, name: &str) -> Result<Option<ValueId>> {
        match self.names.get(name) {
            Some(value) => Ok(Some(*value)),
            None if self.inner => {
                let id = self.add(name, Role::Input)?;
                self.graph.inputs.push(id);
                Ok(Some(id))
            }
            None => Ok(None),
        }
    }

    fn declarations(&mut self, proto: &proto::GraphProto) {
        for info in proto.value_info.iter().chain(&proto.input).chain(&proto.output) {
            if let Some(found) = declared(info) {
                self.declared.insert(info.name().to_string(), found);
            }
        }
    }

    fn add(&mut self, name: &str, role: Role) -> Result<ValueId> {
        if self.names.contains_key(name) {
            return Err(Error::input(format!(
                "the value '{name}' is produced twice; a graph must be in single-assignment form"
            )));
        }
        let id = ValueId(self.graph.values.len() as u32);
        let (elem, shape) = self.declared.get(name).cloned().unwrap_or_default();
        self.names.insert(name.to_string(), id);
        self.graph.values.push(Value {
            name: name.to_string(),
            role,
            producer: None,
            consumers: Vec::new(),
            is_output: false,
            elem,
            declared: shape,
            constant: None,
        });
        Ok(id)
    }

    fn constants(&mut self, proto: &proto::GraphProto) -> Result<()> {
        for (at, tensor) in proto.initializer.iter().enumerate() {
            let id = self.add(tensor.name(), Role::Constant)?;
            let value = &mut self.graph.values[id.0 as usize];
            value.elem = Elem::from_onnx(tensor.data_type());
            value.constant = Some(constant(tensor, Some(at))?);
        }
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            let id = self.add(name, Role::Constant)?;
            let value = &mut self.graph.values[id.0 as usize];
            value.declared = sparse
                .dims
                .iter()
                .map(|d| usize::try_from(*d).ok().map(DeclaredShape::Size))
                .collect();
        }
        Ok(())
    }

    fn inputs(&mut self, proto: &proto::GraphProto) -> Result<()> {
        for input in &proto.input {
            // An initializer may also be listed as an input: then it is a default.
            if !self.names.contains_key(input.name()) {
                let id = self.add(input.name(), Role::Input)?;
                self.graph.inputs.push(id);
            }
        }
        Ok(())
    }

    fn outputs(&mut self, at: usize, node: &proto::NodeProto) -> Result<()> {
        let op = node.op_type();
        let is_constant = op == "Constant" && matches!(node.domain(), "" | "ai.onnx");
        let mut outputs = Vec::with_capacity(node.output.len());
        for (index, name) in node.output.iter().enumerate() {
            if name.is_empty() {
                outputs.push(None);
                continue;
            }
            let role = if is_constant { Role::Constant } else { Role::Inner };
            let id = self.add(name, role)?;
            let value = &mut self.graph.values[id.0 as usize];
            value.producer = Some((NodeId(at as u32), index));
            if is_constant {
                constant_node(node, value)?;
            }
            outputs.push(Some(id));
        }
        let domain = match node.domain() {
            "ai.onnx" => "",
            other => other,
        };
        self.graph.nodes.push(Node {
            name: node.name().to_string(),
            op: op.to_string(),
            domain: domain.to_string(),
            inputs: Vec::new(),
            outputs,
            captures: Vec::new(),
            attrs: node
                .attribute
                .iter()
                .map(|a| attribute(a, self.graph.opset))
                .collect(),
            scope: scope(node),
        });
        Ok(())
    }

    fn node(&mut self, at: usize, node: &proto::NodeProto) -> Result<()> {
        let id = NodeId(at as u32);
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            if name.is_empty() {
                inputs.push(None);
                continue;
            }
            let Some(value) = self.read(name)? else {
                return Err(Error::input(format!(
                    "node {} reads '{name}', which nothing produces",
                    self.graph.label(id)
                )));
            };
            inputs.push(Some(value));
        }
        let mut captured = BTreeSet::new();
        for attr in &node.attribute {
            for sub in attr.g.iter().chain(&attr.graphs) {
                captures(sub, &mut captured);
            }
        }
        let mut captures: Vec<ValueId> = Vec::with_capacity(captured.len());
        for name in &captured {
            captures.extend(self.read(name)?);
        }
        for (index, value) in inputs.iter().enumerate() {
            if let Some(value) = value {
                self.graph.values[value.0 as usize].consumers.push((id, index));
            }
        }
        for (index, value) in captures.iter().enumerate() {
            let index = inputs.len() + index;
            self.graph.values[value.0 as usize].consumers.push((id, index));
        }
        let node = &mut self.graph.nodes[at];
        node.inputs = inputs;
        node.captures = captures;
        Ok(())
    }

    fn finish(mut self, proto: &proto::GraphProto) -> Result<Graph> {
        for output in &proto.output {
            let Some(id) = self.read(output.name())? else {
                return Err(Error::input(format!(
                    "the graph output '{}' is produced by nothing",
                    output.name()
                )));
            };
            self.graph.values[id.0 as usize].is_output = true;
            self.graph.outputs.push(id);
        }
        self.graph.order = order::topological(&self.graph).map_err(|cycle| {
            let at = cycle.first().map(|n| self.graph.label(*n)).unwrap_or_default();
            Error::input(format!("the graph has a cycle through node {at}"))
        })?;
        Ok(self.graph)
    }
}

/// Names that a node reads: its inputs and what its subgraphs capture.
pub fn node_reads(node: &proto::NodeProto) -> Vec<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for attr in &node.attribute {
        for sub in attr.g.iter().chain(&attr.graphs) {
            captures(sub, &mut names);
        }
    }
    names.extend(node.input.iter().filter(|n| !n.is_empty()).cloned());
    names.into_iter().collect()
}

/// Names that a subgraph reads and does not define itself, directly or deeper.
fn captures(graph: &proto::GraphProto, out: &mut BTreeSet<String>) {
    let mut own: BTreeSet<&str> = BTreeSet::new();
    own.extend(graph.input.iter().map(|i| i.name()));
    own.extend(graph.initializer.iter().map(|i| i.name()));
    own.extend(
        graph
            .node
            .iter()
            .flat_map(|n| n.output.iter().map(String::as_str)),
    );
    let mut inner = BTreeSet::new();
    for node in &graph.node {
        inner.extend(node.input.iter().cloned());
        for attr in &node.attribute {
            for sub in attr.g.iter().chain(&attr.graphs) {
                captures(sub, &mut inner);
            }
        }
    }
    inner.extend(graph.output.iter().map(|o| o.name().to_string()));
    out.extend(
        inner
            .into_iter()
            .filter(|n| !n.is_empty() && !own.contains(n.as_str())),
    );
}

fn declared(info: &proto::ValueInfoProto) -> Option<(Option<Elem>, Option<Vec<DeclaredShape>>)> {
    use proto::tensor_shape_proto::dimension::Value as Dim;
    let proto::type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else {
        return None;
    };
    let shape = tensor.shape.as_ref().map(|shape| {
        shape
            .dim
            .iter()
            .map(|dim| match &dim.value {
                Some(Dim::DimValue(n)) => {
                    usize::try_from(*n).map_or(DeclaredShape::Unknown, DeclaredShape::Size)
                }
                Some(Dim::DimParam(name)) if !name.is_empty() => DeclaredShape::Symbol(name.clone()),
                _ => DeclaredShape::Unknown,
            })
            .collect()
    });
    Some((Elem::from_onnx(tensor.elem_type()), shape))
}

fn constant(tensor: &proto::TensorProto, initializer: Option<usize>) -> Result<Constant> {
    let shape: Option<Vec<usize>> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let count = shape
        .as_ref()
        .and_then(|s| s.iter().try_fold(1usize, |n, d| n.checked_mul(*d)));
    let (Some(shape), Some(count)) = (shape, count) else {
        return Err(Error::input(format!(
            "the tensor '{}' has the impossible shape {:?}",
            tensor.name(),
            tensor.dims
        )));
    };
    let is_float = Elem::from_onnx(tensor.data_type()).is_none_or(Elem::is_float);
    let ints = if !is_float && count <= Constant::MAX_INTS {
        onnx::tensor(tensor)?.to_i64()
    } else {
        None
    };
    Ok(Constant {
        shape,
        uniform: uniform(tensor),
        ints,
        initializer,
    })
}

/// Whether all elements are equal; a look at the raw bytes, which stops at the
/// first difference.
fn uniform(tensor: &proto::TensorProto) -> bool {
    fn same<T: PartialEq>(items: &[T]) -> bool {
        items.iter().all(|x| *x == items[0])
    }
    if let Some(raw) = &tensor.raw_data {
        let Some(elem) = Elem::from_onnx(tensor.data_type()) else {
            return false;
        };
        let mut chunks = raw.chunks_exact(elem.size());
        match chunks.next() {
            Some(first) => chunks.all(|c| c == first),
            None => true,
        }
    } else {
        same(&tensor.float_data)
            && same(&tensor.int32_data)
            && same(&tensor.int64_data)
            && same(&tensor.double_data)
            && same(&tensor.uint64_data)
            && tensor.string_data.is_empty()
    }
}

fn constant_node(node: &proto::NodeProto, value: &mut Value) -> Result<()> {
    for attr in &node.attribute {
        match attr.name() {
            "value" => {
                if let Some(tensor) = &attr.t {
                    value.elem = Elem::from_onnx(tensor.data_type());
                    value.constant = Some(constant(tensor, None)?);
                }
            }
            "value_int" => {
                value.elem = Some(Elem::I64);
                value.constant = Some(Constant {
                    shape: vec![],
                    ints: Some(vec![attr.i()]),
                    uniform: true,
                    initializer: None,
                });
            }
            "value_ints" => {
                value.elem = Some(Elem::I64);
                value.constant = Some(Constant {
                    shape: vec![attr.ints.len()],
                    ints: Some(attr.ints.clone()),
                    uniform: false,
                    initializer: None,
                });
            }
            "value_float" | "value_floats" => {
                let shape = if attr.name() == "value_float" {
                    vec![]
                } else {
                    vec![attr.floats.len()]
                };
                value.elem = Some(Elem::F32);
                value.constant = Some(Constant {
                    shape,
                    ints: None,
                    uniform: attr.floats.iter().all(|x| Some(x) == attr.floats.first()),
                    initializer: None,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn attribute(attr: &proto::AttributeProto, opset: i64) -> (String, Attr) {
    use proto::attribute_proto::AttributeType as Type;
    let value = match attr.r#type() {
        Type::Int => Attr::Int(attr.i()),
        Type::Ints => Attr::Ints(attr.ints.clone()),
        Type::Float => Attr::Float(attr.f()),
        Type::String => Attr::Text(String::from_utf8_lossy(attr.s()).into_owned()),
        Type::Tensor => attr
            .t
            .as_ref()
            .filter(|t| {
                t.dims
                    .iter()
                    .try_fold(1i64, |n, d| n.checked_mul(*d))
                    .is_some_and(|n| n <= 64)
            })
            .and_then(|t| onnx::tensor(t).ok()?.to_i64())
            .map_or(Attr::Other, Attr::Tensor),
        Type::Graph => attr
            .g
            .as_ref()
            .and_then(|g| body(g, opset).ok())
            .map_or(Attr::Other, |g| Attr::Graph(Box::new(g))),
        _ => Attr::Other,
    };
    (attr.name().to_string(), value)
}

/// The innermost module path that torch's exporter wrote into the metadata.
fn scope(node: &proto::NodeProto) -> Option<String> {
    let entries: BTreeMap<&str, &str> = node.metadata_props.iter().map(|p| (p.key(), p.value())).collect();
    let list = entries.get("pkg.torch.onnx.name_scopes")?;
    let names: Vec<&str> = list
        .split('\'')
        .skip(1)
        .step_by(2)
        .filter(|s| !s.is_empty())
        .collect();
    // The last entry is the operator's own name, the one before it the module.
    let module = names
        .len()
        .checked_sub(2)
        .and_then(|i| names.get(i))
        .or(names.last())?;
    Some(module.replace('.', "/"))
}
