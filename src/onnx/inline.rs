//! Local functions, inlined.
//!
//! A model may define operators by functions of its own (`ModelProto.functions`).
//! Every call of one is replaced by its body: formal inputs and outputs become
//! the call's, inner names become unique, attributes that refer to the call's
//! get their values, calls inside the body are inlined in turn.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;

use super::MAX_GRAPH_DEPTH;
use super::label::{node_label, quoted};
use super::limits::Growth;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};
use super::rename::{FreshNames, Renamer};
use crate::error::{Error, Result, ResultExt};

/// Functions that call functions, at most.
const MAX_CALL_DEPTH: usize = 64;
/// Nodes that inlining may make. Functions that call each other twice in a row
/// double with each level: a small file can ask for any number.
const MAX_NODES: u64 = 200_000;
/// Bytes that the inlined bodies may have: this much, ...
const MAX_BYTES: u64 = 1 << 28;
/// ... and this many times the model.
const MAX_GROWTH: u64 = 16;

/// The model with all local functions inlined into the main graph and its
/// subgraphs; a clone if it has none.
///
/// Inner names get the call's name in front (`layer.0/attn/MatMul`), with a
/// number where that is taken. Operator sets that bodies rely on are merged into
/// the model's; another version of the same set is an error, and so are recursion,
/// calls with too many arguments, and an expansion beyond any reason.
/// The `value_info` of functions is carried along.
pub fn inline_functions(proto: &ModelProto) -> Result<ModelProto> {
    if proto.functions.is_empty() {
        return Ok(proto.clone());
    }
    let mut inliner = Inliner {
        library: library(&proto.functions)?,
        names: FreshNames::of(proto),
        budget: Growth {
            nodes: MAX_NODES,
            bytes: MAX_BYTES.saturating_add(MAX_GROWTH.saturating_mul(proto.encoded_len() as u64)),
        },
        opsets: opsets(&proto.opset_import)?,
        merged: HashSet::new(),
        calls: Vec::new(),
        depth: 0,
    };
    let mut model = proto.clone();
    model.functions.clear();
    let training = model.training_info.iter_mut();
    let graphs = training.flat_map(|info| info.initialization.iter_mut().chain(&mut info.algorithm));
    for graph in model.graph.iter_mut().chain(graphs) {
        inliner.graph(graph)?;
    }
    for import in &mut model.opset_import {
        inliner.opsets.remove(domain_of(import.domain()));
    }
    let added = inliner.opsets.iter().map(|(domain, version)| OperatorSetIdProto {
        domain: Some((*domain).to_owned()),
        version: Some(*version),
    });
    model.opset_import.extend(added);
    Ok(model)
}

/// Domain, name and overload: what a node calls a function by.
type FunctionKey<'a> = (&'a str, &'a str, &'a str);

fn library(functions: &[FunctionProto]) -> Result<HashMap<FunctionKey<'_>, &FunctionProto>> {
    let mut library = HashMap::new();
    for function in functions {
        if library.insert(key_of(function), function).is_some() {
            return Err(Error::input(format!(
                "two functions are named {}",
                label(function)
            )));
        }
    }
    Ok(library)
}

fn key_of(function: &FunctionProto) -> FunctionKey<'_> {
    (domain_of(function.domain()), function.name(), function.overload())
}

fn label(function: &FunctionProto) -> String {
    match function.overload() {
        "" => quoted(&format!("{}::{}", function.domain(), function.name())),
        overload => quoted(&format!("{}::{}:{overload}", function.domain(), function.name())),
    }
}

/// The default domain has two names.
fn domain_of(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn opsets(imports: &[OperatorSetIdProto]) -> Result<BTreeMap<&str, i64>> {
    let mut opsets = BTreeMap::new();
    for import in imports {
        let domain = domain_of(import.domain());
        if opsets
            .insert(domain, import.version())
            .is_some_and(|other| other != import.version())
        {
            return Err(Error::input(format!(
                "the operator set {} is imported in two versions",
                quoted(domain)
            )));
        }
    }
    Ok(opsets)
}

struct Inliner<'a> {
    library: HashMap<FunctionKey<'a>, &'a FunctionProto>,
    names: FreshNames,
    budget: Growth,
    /// Operator sets of the model and of the bodies inlined so far.
    opsets: BTreeMap<&'a str, i64>,
    /// The functions whose operator sets are among them.
    merged: HashSet<FunctionKey<'a>>,
    /// The functions being expanded, outermost first.
    calls: Vec<&'a FunctionProto>,
    /// How deep the current graph lies.
    depth: usize,
}

/// Where inlined nodes go: the graph that contains the call.
#[derive(Default)]
struct InlinedOutput {
    nodes: Vec<NodeProto>,
    infos: Vec<ValueInfoProto>,
}

impl<'a> Inliner<'a> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<()> {
        if self.depth >= MAX_GRAPH_DEPTH {
            return Err(Error::input(format!(
                "subgraphs nest more than {MAX_GRAPH_DEPTH} deep"
            )));
        }
        self.depth += 1;
        let mut output = InlinedOutput::default();
        for (index, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            let named = node_label_parts(&node);
            self.node(node, &mut output)
                .context(|| node_label(index, &named))?;
        }
        self.depth -= 1;
        graph.node = output.nodes;
        add_infos(graph, output.infos);
        Ok(())
    }

    /// Emits a node, or what it stands for.
    fn node(&mut self, mut node: NodeProto, output: &mut InlinedOutput) -> Result<()> {
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                self.graph(graph)?;
            }
        }
        let key = (domain_of(node.domain()), node.op_type(), node.overload());
        let Some(function) = self.library.get(&key).copied() else {
            output.nodes.push(node);
            return Ok(());
        };
        self.call(function, &node, output)
            .context(|| format!("function {}", label(function)))
    }

    fn call(
        &mut self,
        function: &'a FunctionProto,
        call: &NodeProto,
        output: &mut InlinedOutput,
    ) -> Result<()> {
        if self.calls.iter().any(|outer| std::ptr::eq(*outer, function)) {
            return Err(Error::input("it calls itself"));
        }
        if self.calls.len() >= MAX_CALL_DEPTH {
            return Err(Error::input(format!(
                "functions call each other more than {MAX_CALL_DEPTH} deep"
            )));
        }
        self.budget.spend(1, function.encoded_len())?;
        self.merge_opsets(function)?;
        let attributes = bind(function, call)?;
        let mut renamer = Renamer::new(function, call, attributes, &mut self.names, &mut self.budget)?;
        let mut body = Vec::with_capacity(function.node.len());
        for (index, node) in function.node.iter().enumerate() {
            body.push(renamer.node(node).context(|| node_label(index, node))?);
        }
        let copies = renamer.copies()?;
        output
            .infos
            .extend(function.value_info.iter().filter_map(|info| renamer.info(info)));

        self.calls.push(function);
        for node in body {
            self.node(node, output)?;
        }
        self.calls.pop();
        output.nodes.extend(copies);
        Ok(())
    }

    /// Adds the operator sets of the nodes of a body to the model's.
    fn merge_opsets(&mut self, function: &'a FunctionProto) -> Result<()> {
        if !self.merged.insert(key_of(function)) {
            return Ok(());
        }
        let imports = opsets(&function.opset_import)?;
        let mut domains = BTreeSet::new();
        operator_domains(&function.node, &self.library, &mut domains);
        for domain in domains {
            let Some(version) = imports.get(domain) else {
                return Err(Error::input(format!(
                    "it uses the operator set {} without importing it",
                    quoted(domain)
                )));
            };
            let version = *version;
            let known = *self.opsets.entry(domain).or_insert(version);
            if known != version {
                return Err(Error::input(format!(
                    "it relies on version {version} of the operator set {}, the model on version {known}: \
                     convert the model to one version first",
                    quoted(domain),
                )));
            }
        }
        Ok(())
    }
}

/// The attributes that a body sees: the call's, else the function's defaults.
fn bind<'b>(
    function: &'b FunctionProto,
    call: &'b NodeProto,
) -> Result<HashMap<&'b str, &'b AttributeProto>> {
    let mut bound: HashMap<&str, &AttributeProto> = function
        .attribute_proto
        .iter()
        .map(|default| (default.name(), default))
        .collect();
    for attribute in &call.attribute {
        bound.insert(attribute.name(), attribute);
    }
    match bound
        .values()
        .find(|attribute| !attribute.ref_attr_name().is_empty())
    {
        None => Ok(bound),
        Some(attribute) => Err(Error::input(format!(
            "attribute {} refers to an attribute of a function, but there is none around it",
            quoted(attribute.name()),
        ))),
    }
}

/// The domains of a body's operators, less its calls of local functions.
fn operator_domains<'a>(
    nodes: &'a [NodeProto],
    library: &HashMap<FunctionKey<'a>, &'a FunctionProto>,
    domains: &mut BTreeSet<&'a str>,
) {
    for node in nodes {
        let domain = domain_of(node.domain());
        if !library.contains_key(&(domain, node.op_type(), node.overload())) {
            domains.insert(domain);
        }
        for attribute in &node.attribute {
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                operator_domains(&graph.node, library, domains);
            }
        }
    }
}

/// What an error needs of a node that has been moved.
fn node_label_parts(node: &NodeProto) -> NodeProto {
    NodeProto {
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        ..NodeProto::default()
    }
}

/// Appends what is not declared yet.
fn add_infos(graph: &mut GraphProto, infos: Vec<ValueInfoProto>) {
    if infos.is_empty() {
        return;
    }
    let declared = graph
        .input
        .iter()
        .chain(&graph.output)
        .chain(&graph.value_info)
        .map(|info| info.name());
    let constants = graph.initializer.iter().map(|tensor| tensor.name());
    let mut known: HashSet<String> = declared.chain(constants).map(str::to_owned).collect();
    graph.value_info.extend(
        infos
            .into_iter()
            .filter(|info| known.insert(info.name().to_owned())),
    );
}
