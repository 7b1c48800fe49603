//! Models that tests read: the ones that the `onnx` package ships, the shared
//! zoo, and small ones built here.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_prune::onnx::proto::*;

/// The `.onnx` files that the `onnx` Python package ships. The interpreter is
/// `ONNX_PRUNE_TEST_PYTHON` or `target/py/bin/python`; without one the list is
/// empty, and a message says so.
pub fn wheel() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("ONNX_PRUNE_TEST_PYTHON")
        .map_or_else(|| root.join("target/py/bin/python"), PathBuf::from);
    let script = "import onnx, os; print(os.path.dirname(onnx.__file__))";
    let found = Command::new(&python).args(["-c", script]).output();
    let Some(output) = found.ok().filter(|output| output.status.success()) else {
        println!(
            "skipped: no onnx package in {} (set ONNX_PRUNE_TEST_PYTHON)",
            python.display()
        );
        return Vec::new();
    };
    let package = String::from_utf8(output.stdout).expect("a path");
    let mut files = Vec::new();
    collect(&Path::new(package.trim()).join("backend/test/data"), &mut files);
    files.sort();
    assert!(files.len() > 100, "only {} files in {package}", files.len());
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            collect(&entry, files);
        } else if entry.extension().is_some_and(|e| e == "onnx") {
            files.push(entry);
        }
    }
}

/// The models of the shared zoo; empty, with a message, where there is none.
pub fn zoo() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/zoo");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: no {}", folder.display());
        return Vec::new();
    };
    let models = entries.map(|entry| entry.expect("an entry").path().join("model.onnx"));
    let mut models: Vec<_> = models.filter(|path| path.exists()).collect();
    models.sort();
    assert!(models.len() > 50, "only {} models in the zoo", models.len());
    models
}

/// A case of the zoo, if it is there.
pub fn zoo_case(name: &str) -> Option<PathBuf> {
    zoo()
        .into_iter()
        .find(|path| path.parent().is_some_and(|folder| folder.ends_with(name)))
}

pub fn node(op: &str, name: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some(name.into()),
        input: input.iter().map(|s| s.to_string()).collect(),
        output: output.iter().map(|s| s.to_string()).collect(),
        ..NodeProto::default()
    }
}

/// The same, in a domain.
pub fn call(domain: &str, op: &str, name: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        domain: Some(domain.into()),
        ..node(op, name, input, output)
    }
}

/// A float value of shape [n, 4].
pub fn value(name: &str) -> ValueInfoProto {
    use tensor_shape_proto::dimension::Value;
    shaped(name, [Value::DimParam("n".into()), Value::DimValue(4)])
}

/// A float value of these sizes.
pub fn shaped(
    name: &str,
    sizes: impl IntoIterator<Item = tensor_shape_proto::dimension::Value>,
) -> ValueInfoProto {
    let dim = |value| tensor_shape_proto::Dimension {
        value: Some(value),
        ..Default::default()
    };
    let shape = TensorShapeProto {
        dim: sizes.into_iter().map(dim).collect(),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(1),
                shape: Some(shape),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// Float32 weights in `raw_data`.
pub fn weights(name: &str, dims: &[i64], seed: u32) -> TensorProto {
    let count: i64 = dims.iter().product();
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut raw = Vec::with_capacity(count as usize * 4);
    for _ in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        raw.extend(((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes());
    }
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

pub fn graph(input: &[&str], output: &[&str], node: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        name: Some("g".into()),
        input: input.iter().map(|name| value(name)).collect(),
        output: output.iter().map(|name| value(name)).collect(),
        node,
        ..GraphProto::default()
    }
}

pub fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![opset("", 18)],
        producer_name: Some("test".into()),
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub fn attribute(name: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        ..AttributeProto::default()
    }
}

pub fn subgraph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        r#type: Some(attribute_proto::AttributeType::Graph as i32),
        g: Some(graph),
        ..attribute(name)
    }
}

/// `x [n, 4] -> MatMul -> ... -> y`, with layers of weights of 4 x 4 kilobytes.
pub fn layers(count: usize, seed: u32) -> ModelProto {
    let mut nodes = Vec::new();
    let mut initializer = Vec::new();
    for layer in 0..count {
        let (from, to) = (format!("x{layer}"), format!("x{}", layer + 1));
        let (up, down) = (format!("up{layer}"), format!("down{layer}"));
        initializer.push(weights(&up, &[4, 1024], seed + 2 * layer as u32));
        initializer.push(weights(&down, &[1024, 4], seed + 2 * layer as u32 + 1));
        nodes.push(node(
            "MatMul",
            &format!("up.{layer}"),
            &[&from, &up],
            &[&format!("h{layer}")],
        ));
        nodes.push(node(
            "MatMul",
            &format!("down.{layer}"),
            &[&format!("h{layer}"), &down],
            &[&to],
        ));
    }
    let mut graph = graph(&["x0"], &[&format!("x{count}")], nodes);
    graph.initializer = initializer;
    model(graph)
}

/// What is in a folder, sorted.
pub fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
