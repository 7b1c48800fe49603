//! A function body in the words of its call: names made unique, attributes
//! filled in.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::label::quoted;
use super::limits::Growth;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::error::{Error, Result, ResultExt};

/// Names of calls longer than this are not repeated: each level adds to them.
const LONGEST_PREFIX: usize = 200;

/// Every name in use, of values and of nodes.
pub(super) struct FreshNames {
    taken: HashSet<String>,
    /// Grows only, so that the search for a free name never starts over.
    next: u64,
}

impl FreshNames {
    pub(super) fn of(model: &ModelProto) -> Self {
        let mut names = FreshNames {
            taken: HashSet::new(),
            next: 1,
        };
        let training = model.training_info.iter();
        let graphs = training.flat_map(|info| info.initialization.iter().chain(&info.algorithm));
        for graph in model.graph.iter().chain(graphs) {
            names.add(graph);
        }
        names
    }

    fn add(&mut self, graph: &GraphProto) {
        let infos = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        self.taken.extend(infos.map(|info| info.name().to_owned()));
        self.taken
            .extend(graph.initializer.iter().map(|tensor| tensor.name().to_owned()));
        let sparse = graph
            .sparse_initializer
            .iter()
            .filter_map(|sparse| sparse.values.as_ref());
        self.taken.extend(sparse.map(|values| values.name().to_owned()));
        for node in &graph.node {
            let values = node.input.iter().chain(&node.output).chain(&node.name);
            self.taken.extend(values.cloned());
            for attribute in &node.attribute {
                for graph in attribute.g.iter().chain(&attribute.graphs) {
                    self.add(graph);
                }
            }
        }
    }

    /// `wanted`, or the same with a number if that is taken.
    fn fresh(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        while !self.taken.insert(name.clone()) {
            name = format!("{wanted}_{}", self.next);
            self.next += 1;
        }
        name
    }
}

/// Renames the body of one function for one call.
pub(super) struct Renamer<'a> {
    attributes: HashMap<&'a str, &'a AttributeProto>,
    /// Old names to new ones: the body, then the subgraphs inside, innermost last.
    scopes: Vec<HashMap<&'a str, String>>,
    /// Outputs of the function that are no node's: value and the call's name for it.
    copies: Vec<(&'a str, &'a str)>,
    prefix: String,
    names: &'a mut FreshNames,
    budget: &'a mut Growth,
}

impl<'a> Renamer<'a> {
    pub(super) fn new(
        function: &'a FunctionProto,
        call: &'a NodeProto,
        attributes: HashMap<&'a str, &'a AttributeProto>,
        names: &'a mut FreshNames,
        budget: &'a mut Growth,
    ) -> Result<Self> {
        for (what, given, declared) in [
            ("inputs", call.input.len(), function.input.len()),
            ("outputs", call.output.len(), function.output.len()),
        ] {
            if given > declared {
                return Err(Error::input(format!(
                    "it has {declared} {what}, the call has {given}"
                )));
            }
        }
        let mut renamer = Renamer {
            attributes,
            scopes: vec![HashMap::new()],
            copies: Vec::new(),
            prefix: prefix(call, names),
            names,
            budget,
        };
        let body = renamer.body(function, call)?;
        renamer.scopes = vec![body];
        Ok(renamer)
    }

    /// New names for the values of the body.
    fn body(&mut self, function: &'a FunctionProto, call: &'a NodeProto) -> Result<HashMap<&'a str, String>> {
        let mut scope: HashMap<&str, String> = HashMap::new();
        for (index, formal) in function.input.iter().enumerate() {
            let actual = call.input.get(index).cloned().unwrap_or_default();
            if formal.is_empty() || scope.insert(formal, actual).is_some() {
                return Err(Error::input(format!(
                    "two of its inputs are named {}",
                    quoted(formal)
                )));
            }
        }
        let produced: HashSet<&str> = function
            .node
            .iter()
            .flat_map(|node| &node.output)
            .map(String::as_str)
            .collect();
        for (formal, actual) in function
            .output
            .iter()
            .zip(&call.output)
            .filter(|(_, actual)| !actual.is_empty())
        {
            // An output that is an input too, or is given twice, needs a copy.
            if scope.contains_key(formal.as_str()) {
                self.copies.push((formal, actual));
            } else if produced.contains(formal.as_str()) {
                scope.insert(formal, actual.clone());
            } else {
                return Err(Error::input(format!(
                    "nothing in it produces its output {}",
                    quoted(formal)
                )));
            }
        }
        let outputs: HashSet<&str> = function.output.iter().map(String::as_str).collect();
        let inputs: HashSet<&str> = function.input.iter().map(String::as_str).collect();
        let mut seen = HashSet::new();
        for name in function
            .node
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| !name.is_empty())
        {
            if !seen.insert(name.as_str()) || inputs.contains(name.as_str()) {
                return Err(Error::input(format!("in it, {} is produced twice", quoted(name))));
            }
            if !(outputs.contains(name.as_str()) && scope.contains_key(name.as_str())) {
                scope.insert(name, self.fresh(name));
            }
        }
        Ok(scope)
    }

    /// A node of the body, renamed, with its attributes filled in.
    pub(super) fn node(&mut self, node: &'a NodeProto) -> Result<NodeProto> {
        // Its bytes are paid for with the whole function.
        self.budget.spend(1, 0)?;
        let mut renamed = NodeProto {
            attribute: Vec::with_capacity(node.attribute.len()),
            input: node
                .input
                .iter()
                .map(|name| self.value(name))
                .collect::<Result<_>>()?,
            output: node
                .output
                .iter()
                .map(|name| self.value(name))
                .collect::<Result<_>>()?,
            name: Some(match node.name() {
                "" => self.fresh(node.op_type()),
                name => self.fresh(name),
            }),
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            overload: node.overload.clone(),
            doc_string: node.doc_string.clone(),
            metadata_props: node.metadata_props.clone(),
            device_configurations: node.device_configurations.clone(),
        };
        for attribute in &node.attribute {
            let attribute = self
                .attribute(attribute)
                .context(|| format!("attribute {}", quoted(attribute.name())))?;
            renamed.attribute.extend(attribute);
        }
        for spec in renamed
            .device_configurations
            .iter_mut()
            .flat_map(|c| &mut c.sharding_spec)
        {
            if let Some(name) = &mut spec.tensor_name {
                *name = self.value(name)?;
            }
        }
        Ok(renamed)
    }

    /// `Identity` nodes for outputs that are copies of inputs or of each other.
    pub(super) fn copies(&mut self) -> Result<Vec<NodeProto>> {
        let copies = std::mem::take(&mut self.copies);
        let mut nodes = Vec::with_capacity(copies.len());
        for (from, to) in copies {
            let value = self.value(from)?;
            if value.is_empty() {
                return Err(Error::input(format!(
                    "its output {} is an input that the call omits",
                    quoted(from)
                )));
            }
            nodes.push(NodeProto {
                input: vec![value],
                output: vec![to.to_owned()],
                name: Some(self.fresh("Identity")),
                op_type: Some("Identity".into()),
                ..NodeProto::default()
            });
        }
        Ok(nodes)
    }

    /// The declaration of a value of the body; `None` when the call omits it.
    pub(super) fn info(&self, info: &ValueInfoProto) -> Option<ValueInfoProto> {
        let name = self
            .scopes
            .first()?
            .get(info.name())
            .filter(|name| !name.is_empty())?;
        Some(ValueInfoProto {
            name: Some(name.clone()),
            ..info.clone()
        })
    }

    fn fresh(&mut self, name: &str) -> String {
        let wanted = format!("{}/{name}", self.prefix);
        self.names.fresh(wanted)
    }

    /// The new name of a value.
    fn value(&self, name: &str) -> Result<String> {
        if name.is_empty() {
            return Ok(String::new());
        }
        let found = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        found
            .cloned()
            .ok_or_else(|| Error::input(format!("nothing in the function produces {}", quoted(name))))
    }

    /// An attribute with its value; `None` when it refers to one that the call
    /// does not give and that has no default.
    fn attribute(&mut self, attribute: &'a AttributeProto) -> Result<Option<AttributeProto>> {
        if attribute.ref_attr_name().is_empty() {
            let mut renamed = AttributeProto {
                g: None,
                graphs: Vec::new(),
                ..attribute.clone()
            };
            if let Some(graph) = &attribute.g {
                renamed.g = Some(self.graph(graph)?);
            }
            for graph in &attribute.graphs {
                renamed.graphs.push(self.graph(graph)?);
            }
            return Ok(Some(renamed));
        }
        let Some(value) = self.attributes.get(attribute.ref_attr_name()).copied() else {
            return Ok(None);
        };
        let known = |kind: AttributeType| kind != AttributeType::Undefined;
        let (wanted, given) = (attribute.r#type(), value.r#type());
        if known(wanted) && known(given) && wanted != given {
            return Err(Error::input(format!(
                "it is {}, the value given for {} is {}",
                wanted.as_str_name(),
                quoted(value.name()),
                given.as_str_name(),
            )));
        }
        self.budget.spend(0, value.encoded_len())?;
        Ok(Some(AttributeProto {
            name: attribute.name.clone(),
            ..value.clone()
        }))
    }

    /// A subgraph of the body. Names inside become unique as well: a value of a
    /// subgraph must not hide one of the graph that the body is moved to.
    fn graph(&mut self, graph: &'a GraphProto) -> Result<GraphProto> {
        let mut scope: HashMap<&str, String> = HashMap::new();
        let inputs = graph.input.iter().map(|info| info.name());
        let tensors = graph.initializer.iter().map(|tensor| tensor.name());
        let sparse = graph
            .sparse_initializer
            .iter()
            .filter_map(|sparse| sparse.values.as_ref());
        let values = graph
            .node
            .iter()
            .flat_map(|node| &node.output)
            .map(String::as_str);
        let all = inputs
            .chain(tensors)
            .chain(sparse.map(|values| values.name()))
            .chain(values);
        for name in all.filter(|name| !name.is_empty()) {
            if !scope.contains_key(name) {
                scope.insert(name, self.fresh(name));
            }
        }
        self.scopes.push(scope);
        let result = self.graph_inside(graph);
        self.scopes.pop();
        result
    }

    fn graph_inside(&mut self, graph: &'a GraphProto) -> Result<GraphProto> {
        let mut renamed = GraphProto {
            node: Vec::with_capacity(graph.node.len()),
            ..clone_without_nodes(graph)
        };
        for node in &graph.node {
            renamed.node.push(self.node(node)?);
        }
        for info in renamed.input.iter_mut().chain(&mut renamed.output) {
            info.name = Some(self.value(info.name())?);
        }
        // Declarations of values that do not exist are harmless, but not here.
        renamed
            .value_info
            .retain_mut(|info| match self.value(info.name()) {
                Ok(name) => {
                    info.name = Some(name);
                    true
                }
                Err(_) => false,
            });
        let sparse = renamed
            .sparse_initializer
            .iter_mut()
            .filter_map(|sparse| sparse.values.as_mut());
        for tensor in renamed.initializer.iter_mut().chain(sparse) {
            tensor.name = Some(self.value(tensor.name())?);
        }
        for annotation in &mut renamed.quantization_annotation {
            annotation.tensor_name = Some(self.value(annotation.tensor_name())?);
            for entry in &mut annotation.quant_parameter_tensor_names {
                entry.value = Some(self.value(entry.value())?);
            }
        }
        Ok(renamed)
    }
}

fn clone_without_nodes(graph: &GraphProto) -> GraphProto {
    GraphProto {
        node: Vec::new(),
        name: graph.name.clone(),
        initializer: graph.initializer.clone(),
        sparse_initializer: graph.sparse_initializer.clone(),
        doc_string: graph.doc_string.clone(),
        input: graph.input.clone(),
        output: graph.output.clone(),
        value_info: graph.value_info.clone(),
        quantization_annotation: graph.quantization_annotation.clone(),
        metadata_props: graph.metadata_props.clone(),
    }
}

/// What stands before the names of a body: the name of the call, or its operator
/// made unique when it has none (or an absurdly long one).
fn prefix(call: &NodeProto, names: &mut FreshNames) -> String {
    match call.name() {
        name if (1..=LONGEST_PREFIX).contains(&name.len()) => name.to_owned(),
        _ => names.fresh(call.op_type().chars().take(LONGEST_PREFIX).collect()),
    }
}
