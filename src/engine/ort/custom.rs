//! Libraries with operators that ONNX Runtime does not have itself.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::onnx::proto::{GraphProto, ModelProto};

/// The domain of onnxruntime-extensions.
const EXTENSIONS: &str = "ai.onnx.contrib";

/// Libraries to register with sessions.
pub(super) struct CustomOperators {
    /// Those that were named.
    named: Vec<PathBuf>,
    /// That of onnxruntime-extensions, where it is installed beside the runtime.
    extensions: Option<PathBuf>,
}

impl CustomOperators {
    /// Those named, and what is installed beside `runtime`.
    ///
    /// # Errors
    /// A library that is not there.
    pub(super) fn of(named: &[PathBuf], runtime: &Path) -> Result<Self> {
        if let Some(missing) = named.iter().find(|path| !path.is_file()) {
            return Err(Error::input(format!(
                "--ort-custom-ops {}: there is no such file",
                missing.display()
            )));
        }
        // site-packages/onnxruntime/capi/libonnxruntime.so
        let packages = runtime.ancestors().nth(3);
        Ok(Self {
            named: named.to_vec(),
            extensions: packages.and_then(|p| extensions(&p.join("onnxruntime_extensions"))),
        })
    }

    /// What a session of `model` registers: what was named, and onnxruntime-extensions
    /// where the model uses them.
    pub(super) fn of_model(&self, model: &ModelProto) -> Vec<&Path> {
        let uses = model.graph.as_ref().is_some_and(uses_extensions);
        let extensions = self.extensions.iter().filter(|_| uses);
        self.named
            .iter()
            .chain(extensions)
            .map(PathBuf::as_path)
            .collect()
    }
}

/// Whether a node of a graph, or of one inside of it, is one of the extensions.
fn uses_extensions(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| {
        let inner = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        node.domain() == EXTENSIONS || inner.into_iter().any(uses_extensions)
    })
}

/// The library in the Python package.
fn extensions(package: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(package).ok()?.flatten().map(|e| e.path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("_extensions_pydll")
            && [".so", ".pyd", ".dylib"].iter().any(|end| name.ends_with(end))
    };
    entries.into_iter().filter(is_library).min()
}
