//! Names of groups: the common prefix of what carries them.

use std::collections::{BTreeSet, HashSet};

use crate::axes::group::Kind;
use crate::graph::{Graph, NodeId, ValueId};

/// Hands out unique names.
#[derive(Default)]
pub(crate) struct GroupNames {
    taken: HashSet<String>,
}

impl GroupNames {
    pub(crate) fn unique(&mut self, prefix: &str, kind: Kind) -> String {
        let base = match (prefix.is_empty(), kind) {
            (true, kind) => kind.noun().to_string(),
            (false, _) => prefix.to_string(),
        };
        let mut name = base.clone();
        let mut count = 1;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = if count == 2 {
                format!("{base}:{}", kind.noun())
            } else {
                format!("{base}:{}.{}", kind.noun(), count - 1)
            };
        }
        name
    }
}

/// The common path of the nodes (module scopes, else node names, else weight
/// names), without a leading separator.
pub(crate) fn prefix(graph: &Graph, nodes: &BTreeSet<NodeId>, weights: &BTreeSet<ValueId>) -> String {
    let scopes: Option<Vec<Vec<String>>> = nodes
        .iter()
        .map(|n| graph.node(*n).scope.as_deref().map(path))
        .collect();
    let names: Vec<Vec<String>> = nodes.iter().map(|n| path(&graph.node(*n).name)).collect();
    let weights: Vec<Vec<String>> = weights.iter().map(|v| path(&graph.value(*v).name)).collect();
    let candidates = [scopes.unwrap_or_default(), names, weights];
    let found = candidates
        .iter()
        .map(|paths| common(paths))
        .find(|p| !p.is_empty());
    match found {
        Some(parts) => parts.join("/"),
        // Nothing in common: the first name that says something.
        None => {
            let first = nodes.iter().map(|n| &graph.node(*n).name).find(|n| !n.is_empty());
            first.cloned().unwrap_or_default()
        }
    }
}

fn path(name: &str) -> Vec<String> {
    let separator = if name.contains('/') { '/' } else { '.' };
    let name = name.trim_start_matches('/');
    let mut parts: Vec<String> = name
        .split(separator)
        .filter(|p| !p.is_empty())
        .map(String::from)
        .collect();
    // A name ends in the operator or the parameter itself.
    parts.pop();
    parts
}

fn common(paths: &[Vec<String>]) -> Vec<String> {
    let Some((first, rest)) = paths.split_first() else {
        return Vec::new();
    };
    let length = rest.iter().fold(first.len(), |length, path| {
        first
            .iter()
            .zip(path)
            .take(length)
            .take_while(|(a, b)| a == b)
            .count()
    });
    first[..length].to_vec()
}
