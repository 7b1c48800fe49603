//! The model as an engine gets it: exactly the values to fetch as its outputs,
//! and all tensor data inside.
//!
//! The copy is shallow where it matters, since `raw_data` is shared `Bytes`.

use std::collections::{HashMap, HashSet};

use super::signature::Signature;
use crate::error::{Error, Result};
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto};

/// A model whose outputs are the values to fetch.
pub(super) struct Prepared {
    /// The changed copy; its graph is there and its outputs are distinct.
    pub model: ModelProto,
    /// What it reads.
    pub signature: Signature,
    /// The names to fetch as they were asked for, with repetitions.
    pub outputs: Vec<String>,
    /// For each of `outputs`, its position among the outputs of the graph.
    pub positions: Vec<usize>,
}

/// Makes the copy; `outputs` as in [`SessionOptions`](super::SessionOptions).
pub(super) fn prepare(model: &ModelProto, outputs: Option<&[String]>) -> Result<Prepared> {
    let mut model = model.clone();
    let graph = model
        .graph
        .as_mut()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let outputs: Vec<String> = match outputs {
        Some(names) => names.to_vec(),
        None => graph.output.iter().map(|o| o.name().to_owned()).collect(),
    };
    if outputs.is_empty() {
        return Err(Error::input("there is nothing to fetch: no output is named"));
    }
    let positions = select(graph, &outputs)?;
    let signature = Signature::of(graph)?;
    for_each_tensor(&mut model, &mut keep_inside)?;
    Ok(Prepared {
        model,
        signature,
        outputs,
        positions,
    })
}

/// Makes `names` the outputs of `graph`, each once; returns where each went.
///
/// A value that was no output gets a name and no type, which both engines
/// accept: they infer it.
fn select(graph: &mut GraphProto, names: &[String]) -> Result<Vec<usize>> {
    let mut declared: HashMap<String, ValueInfoProto> = std::mem::take(&mut graph.output)
        .into_iter()
        .map(|info| (info.name().to_owned(), info))
        .collect();
    let known = values(graph);
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut selected = Vec::new();
    let mut positions = Vec::with_capacity(names.len());
    for name in names {
        if !known.contains(name.as_str()) {
            return Err(Error::input(format!("the graph has no value `{name}` to fetch")));
        }
        let place = *places.entry(name).or_insert_with(|| {
            selected.push(declared.remove(name).unwrap_or_else(|| ValueInfoProto {
                name: Some(name.clone()),
                ..ValueInfoProto::default()
            }));
            selected.len() - 1
        });
        positions.push(place);
    }
    drop(known);
    graph.output = selected;
    Ok(positions)
}

/// The names of all values of the outermost graph.
fn values(graph: &GraphProto) -> HashSet<String> {
    let inputs = graph.input.iter().map(ValueInfoProto::name);
    let constants = graph.initializer.iter().map(TensorProto::name);
    let results = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    inputs
        .chain(constants)
        .chain(results)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Data that was mapped from a side file is in `raw_data` already and only the
/// mark is left; data that was not loaded would be looked for by the engine in
/// the current folder, so it is an error here.
fn keep_inside(tensor: &mut TensorProto) -> Result<()> {
    if tensor.data_location() != DataLocation::External {
        return Ok(());
    }
    if tensor.raw_data.is_none() {
        let file = tensor
            .external_data
            .iter()
            .find(|entry| entry.key() == "location")
            .map_or("a side file", |entry| entry.value());
        return Err(Error::input(format!(
            "the data of tensor `{}` are in {file} and were not loaded",
            tensor.name()
        )));
    }
    tensor.data_location = None;
    tensor.external_data.clear();
    Ok(())
}

/// Calls `f` for each tensor of the model: initializers, attributes, inner
/// graphs and local functions included.
fn for_each_tensor(model: &mut ModelProto, f: &mut impl FnMut(&mut TensorProto) -> Result<()>) -> Result<()> {
    if let Some(graph) = &mut model.graph {
        in_graph(graph, f)?;
    }
    for function in &mut model.functions {
        in_nodes(&mut function.node, f)?;
    }
    Ok(())
}

fn in_graph(graph: &mut GraphProto, f: &mut impl FnMut(&mut TensorProto) -> Result<()>) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *f)?;
    for sparse in &mut graph.sparse_initializer {
        in_sparse(sparse, f)?;
    }
    in_nodes(&mut graph.node, f)
}

fn in_nodes(nodes: &mut [NodeProto], f: &mut impl FnMut(&mut TensorProto) -> Result<()>) -> Result<()> {
    for attribute in nodes.iter_mut().flat_map(|n| &mut n.attribute) {
        if let Some(tensor) = &mut attribute.t {
            f(tensor)?;
        }
        if let Some(graph) = &mut attribute.g {
            in_graph(graph, f)?;
        }
        if let Some(sparse) = &mut attribute.sparse_tensor {
            in_sparse(sparse, f)?;
        }
        attribute.tensors.iter_mut().try_for_each(&mut *f)?;
        for graph in &mut attribute.graphs {
            in_graph(graph, f)?;
        }
        for sparse in &mut attribute.sparse_tensors {
            in_sparse(sparse, f)?;
        }
    }
    Ok(())
}

fn in_sparse(
    sparse: &mut SparseTensorProto,
    f: &mut impl FnMut(&mut TensorProto) -> Result<()>,
) -> Result<()> {
    let SparseTensorProto { values, indices, .. } = sparse;
    values.iter_mut().chain(indices).try_for_each(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, StringStringEntryProto, TypeProto, type_proto};

    fn named(name: &str) -> ValueInfoProto {
        let tensor = type_proto::Tensor {
            elem_type: Some(1),
            shape: None,
        };
        ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        }
    }

    fn model() -> ModelProto {
        let node = NodeProto {
            op_type: Some("Relu".into()),
            input: vec!["x".into()],
            output: vec!["h".into(), String::new()],
            ..NodeProto::default()
        };
        ModelProto {
            graph: Some(GraphProto {
                node: vec![node],
                input: vec![named("x")],
                output: vec![named("h")],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    #[test]
    fn values_are_selected_in_the_order_asked_for_and_once() {
        let asked: Vec<String> = ["x", "h", "x"].map(String::from).to_vec();
        let prepared = prepare(&model(), Some(&asked)).unwrap();
        assert_eq!(prepared.outputs, asked);
        assert_eq!(prepared.positions, [0, 1, 0]);
        let graph = prepared.model.graph.unwrap();
        let names: Vec<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
        assert_eq!(names, ["x", "h"]);
    }

    #[test]
    fn a_value_that_does_not_exist_is_named() {
        for name in ["nowhere", ""] {
            let error = prepare(&model(), Some(&[name.to_owned()])).err().unwrap();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
        assert!(prepare(&model(), Some(&[])).is_err());
        assert!(prepare(&ModelProto::default(), None).is_err());
    }

    #[test]
    fn data_outside_are_an_error_and_a_mark_alone_is_removed() {
        let mut outside = model();
        let mut tensor = TensorProto {
            name: Some("w".into()),
            data_location: Some(DataLocation::External as i32),
            external_data: vec![StringStringEntryProto {
                key: Some("location".into()),
                value: Some("w.bin".into()),
            }],
            ..TensorProto::default()
        };
        let attribute = |tensor: &TensorProto| AttributeProto {
            t: Some(tensor.clone()),
            ..AttributeProto::default()
        };
        outside.graph.as_mut().unwrap().node[0].attribute = vec![attribute(&tensor)];
        let error = prepare(&outside, None).err().unwrap().to_string();
        assert!(error.contains("`w`") && error.contains("w.bin"), "{error}");

        tensor.raw_data = Some(vec![0; 4].into());
        outside.graph.as_mut().unwrap().node[0].attribute = vec![attribute(&tensor)];
        let inside = prepare(&outside, None).unwrap().model;
        let kept = &inside.graph.unwrap().node[0].attribute[0];
        assert_eq!(kept.t.as_ref().unwrap().data_location, None);
    }
}
