//! The operators of a graph, inner graphs included.

use crate::onnx::proto::{GraphProto, NodeProto};

/// Calls `f` for each node of `graph` and of the graphs inside its attributes.
pub(super) fn for_each_node<'a>(graph: &'a GraphProto, f: &mut impl FnMut(&'a NodeProto)) {
    for node in &graph.node {
        f(node);
        for attribute in &node.attribute {
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                for_each_node(inner, f);
            }
        }
    }
}

/// The one spelling of a domain: the default one is empty.
pub(super) fn spelling(domain: &str) -> &str {
    match domain {
        "ai.onnx" => "",
        other => other,
    }
}

/// The operator as users read it: `Add`, `com.microsoft::Gelu`.
pub(super) fn operator(node: &NodeProto) -> String {
    match spelling(node.domain()) {
        "" => node.op_type().to_owned(),
        domain => format!("{domain}::{}", node.op_type()),
    }
}

/// How often each operator occurs.
#[cfg(feature = "ort")]
pub(super) fn count(graph: &GraphProto) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for_each_node(graph, &mut |node| {
        *counts.entry(operator(node)).or_insert(0) += 1;
    });
    counts
}

#[cfg(all(test, feature = "ort"))]
mod tests {
    use super::*;
    use crate::onnx::proto::AttributeProto;

    #[test]
    fn inner_graphs_and_domains_count() {
        let node = |domain: Option<&str>, op: &str, inner: Option<GraphProto>| NodeProto {
            domain: domain.map(String::from),
            op_type: Some(op.into()),
            attribute: vec![AttributeProto {
                g: inner,
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        };
        let graph = |node| GraphProto {
            node,
            ..GraphProto::default()
        };
        let inner = graph(vec![node(Some("ai.onnx"), "Add", None)]);
        let outer = graph(vec![
            node(None, "If", Some(inner)),
            node(Some(""), "Add", None),
            node(Some("com.microsoft"), "Gelu", None),
        ]);
        let expected = [("Add", 2), ("If", 1), ("com.microsoft::Gelu", 1)];
        let expected = expected.map(|(name, n)| (name.to_owned(), n)).into();
        assert_eq!(count(&outer), expected);
    }
}
