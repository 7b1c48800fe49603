//! Which provider runs which node: the library's own profile of a run says it.
//!
//! A provider that was registered need not run anything: what it has no kernel for
//! falls back to the CPU, node by node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::values::inputs;
use super::{NAME, OnnxRuntime, failed};
use crate::engine::guard::guard;
use crate::engine::prepare::prepare;
use crate::engine::serialise::LIMIT;
use crate::error::{Error, Result};
use crate::io::scratch::ScratchFolder;
use crate::onnx::proto::ModelProto;
use crate::tensor::Feeds;

/// Nodes by provider in one run of `model` on `feeds`.
pub(super) fn of(engine: &OnnxRuntime, model: &ModelProto, feeds: &Feeds) -> Result<BTreeMap<String, usize>> {
    let prepared = prepare(model, None)?;
    prepared.signature.check_with(feeds, &|_| false)?;
    let folder = ScratchFolder::new()?;
    let profile = folder.path().join("profile");
    let path = guard(NAME, || {
        let builder = |precise| {
            let builder = engine.builder(&[], true, precise);
            builder
                .and_then(|b| Ok(b.with_profiling(&profile)?))
                .map_err(|e| failed(&e))
        };
        let mut session = OnnxRuntime::loaded(builder, prepared.model, LIMIT)?;
        session.run(inputs(feeds)?).map_err(|e| failed(&e))?;
        session.end_profiling().map_err(|e| failed(&e))
    })?;
    let path = folder.path().join(path);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("cannot read", &path, e))?;
    count(&text).ok_or_else(|| Error::engine(format!("{NAME} wrote a profile that does not name its nodes")))
}

/// An event of a profile: something that took time.
#[derive(serde::Deserialize)]
struct Event {
    name: String,
    #[serde(default)]
    args: Option<NodePlacement>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct NodePlacement {
    provider: Option<String>,
}

/// The nodes by provider; `None` where there are none.
fn count(profile: &str) -> Option<BTreeMap<String, usize>> {
    let events: Vec<Event> = serde_json::from_str(profile).ok()?;
    // Nodes of inner graphs run more than once.
    let nodes: BTreeSet<(String, &str)> = events
        .iter()
        .filter_map(|event| {
            let node = event.name.strip_suffix("_kernel_time")?;
            Some((event.args.as_ref()?.provider.clone()?, node))
        })
        .collect();
    let mut counts = BTreeMap::new();
    for (provider, _) in nodes {
        *counts.entry(provider).or_insert(0) += 1;
    }
    (!counts.is_empty()).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_once_by_provider() {
        let node = |name: &str, provider: &str| {
            format!(r#"{{"cat": "Node", "name": "{name}", "args": {{"provider": "{provider}", "x": "1"}}}}"#)
        };
        let events = [
            r#"{"cat": "Session", "name": "model_run", "args": {}}"#.to_owned(),
            r#"{"cat": "Session", "name": "session_initialization"}"#.to_owned(),
            node("a_fence_before", "CUDAExecutionProvider"),
            node("a_kernel_time", "CUDAExecutionProvider"),
            node("b_kernel_time", "CPUExecutionProvider"),
            node("b_kernel_time", "CPUExecutionProvider"),
            node("c_kernel_time", "CUDAExecutionProvider"),
        ];
        let counts = count(&format!("[{}]", events.join(","))).expect("nodes");
        let expected = [("CPUExecutionProvider", 1), ("CUDAExecutionProvider", 2)];
        assert_eq!(counts, expected.map(|(name, n)| (name.to_owned(), n)).into());
        assert_eq!(count("[]"), None);
        assert_eq!(count("{"), None);
    }
}
