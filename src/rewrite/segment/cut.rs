//! Which nodes are done before a sink runs, and what crosses from there on.

use crate::graph::{Graph, NodeId, Role, ValueId};
use crate::network::Network;

/// The nodes that some values are computed by: everything before a point of the
/// graph. Nodes that read constants only are never counted: each piece has its
/// own copy of them.
#[derive(Debug, Clone)]
pub struct Cut {
    done: Vec<bool>,
}

impl Cut {
    /// Nothing is done: what crosses are the graph's inputs.
    pub fn start(graph: &Graph) -> Self {
        Self {
            done: vec![false; graph.nodes.len()],
        }
    }

    /// This cut moved on until `values` are computed.
    #[must_use]
    pub fn until(&self, network: &Network, values: &[ValueId]) -> Self {
        let graph = &network.graph;
        let mut done = self.done.clone();
        let mut stack = values.to_vec();
        while let Some(value) = stack.pop() {
            let Some((node, _)) = graph.value(value).producer else {
                continue;
            };
            if is_constant(network, value) || std::mem::replace(&mut done[node.0 as usize], true) {
                continue;
            }
            let node = graph.node(node);
            stack.extend(node.inputs.iter().flatten());
            stack.extend(&node.captures);
        }
        Self { done }
    }

    /// Whether a node lies before the cut.
    pub fn is_done(&self, node: NodeId) -> bool {
        self.done.get(node.0 as usize).copied().unwrap_or(false)
    }

    /// The values that are known at the cut and that nodes behind it read, of
    /// those nodes that `wanted` values are computed by. In the order of the
    /// graph.
    pub fn crossing(&self, network: &Network, wanted: &[ValueId]) -> Vec<ValueId> {
        let graph = &network.graph;
        let mut crossing = vec![false; graph.values.len()];
        let mut seen = vec![false; graph.values.len()];
        let mut stack = wanted.to_vec();
        while let Some(value) = stack.pop() {
            if std::mem::replace(&mut seen[value.0 as usize], true) || is_constant(network, value) {
                continue;
            }
            match graph.value(value).producer {
                Some((node, _)) if !self.is_done(node) => {
                    let node = graph.node(node);
                    stack.extend(node.inputs.iter().flatten());
                    stack.extend(&node.captures);
                }
                _ => crossing[value.0 as usize] = true,
            }
        }
        (0..graph.values.len() as u32)
            .map(ValueId)
            .filter(|v| crossing[v.0 as usize])
            .collect()
    }
}

/// Whether a value is the same in every run.
pub(crate) fn is_constant(network: &Network, value: ValueId) -> bool {
    network.graph.value(value).role == Role::Constant || network.axes.facts(value).constant
}
