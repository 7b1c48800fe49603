//! The CUDA execution provider.

use std::path::PathBuf;

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{CUDA, ExecutionProviderDispatch};

use super::*;
use crate::onnx::proto::{
    GraphProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::tensor::Elem;

/// Registered strictly. Neither TF32, whose mantissa has 10 bits, nor
/// algorithms chosen by timing: results are compared and must repeat.
pub(super) fn provider() -> ExecutionProviderDispatch {
    CUDA::default()
        .with_tf32(false)
        .with_conv_algorithm_search(ConvAlgorithmSearch::Default)
        .build()
        .error_on_failure()
}

/// Whether CUDA really works: a library built with CUDA says that it is
/// available even without a driver, so a product is computed on the device.
pub(super) fn probe(engine: &OnnxRuntime) -> Result<()> {
    preload(engine.info.library.as_deref());
    let mut run = engine.open(&product(), &SessionOptions::default(), LIMIT)?;
    let feeds = Feeds::from([("x".to_owned(), Tensor::f32([1, 2], vec![3.0, 4.0]))]);
    let result = run.run(&feeds)?;
    match result.first().and_then(Tensor::as_f32) {
        Some([25.0]) => Ok(()),
        other => Err(Error::engine(format!(
            "CUDA computes {other:?} where 25 is right"
        ))),
    }
}

/// `y = x [1, 2] · (3, 4)`.
fn product() -> ModelProto {
    let float = type_proto::Tensor {
        elem_type: Some(Elem::F32.to_onnx()),
        shape: None,
    };
    let value = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(float.clone())),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            version: Some(17),
            ..OperatorSetIdProto::default()
        }],
        graph: Some(GraphProto {
            name: Some("product".into()),
            node: vec![NodeProto {
                op_type: Some("MatMul".into()),
                input: vec!["x".into(), "w".into()],
                output: vec!["y".into()],
                ..NodeProto::default()
            }],
            initializer: vec![TensorProto {
                name: Some("w".into()),
                dims: vec![2, 1],
                data_type: Some(Elem::F32.to_onnx()),
                float_data: vec![3.0, 4.0],
                ..TensorProto::default()
            }],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// Loads the CUDA libraries that pip installs beside onnxruntime-gpu, where
/// the system's loader does not look. What is missing shows when the
/// provider is registered, with the reason.
fn preload(library: Option<&Path>) {
    /// In the order in which they need each other.
    const WANTED: [&str; 8] = [
        "libcudart.so",
        "libcublasLt.so",
        "libcublas.so",
        "libnvrtc.so",
        "libcurand.so",
        "libcufft.so",
        "libcudnn.so",
        "libcudnn_",
    ];
    let Some(packages) = library.and_then(|l| l.ancestors().nth(3)) else {
        return;
    };
    let list = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let mut files: Vec<PathBuf> = list(packages.join("nvidia"))
        .flat_map(|package| list(package.join("lib")))
        .collect();
    files.sort();
    for wanted in WANTED {
        for file in &files {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with(wanted) && name.contains(".so") {
                let _ = ::ort::util::preload_dylib(file);
            }
        }
    }
}
