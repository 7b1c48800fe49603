//! Orders and reachability.

use super::{Graph, NodeId, ValueId};

/// A topological order of the nodes, or the nodes that lie on a cycle.
pub(super) fn topological(graph: &Graph) -> Result<Vec<NodeId>, Vec<NodeId>> {
    let mut waiting: Vec<usize> = vec![0; graph.nodes.len()];
    for value in &graph.values {
        if value.producer.is_some() {
            for (consumer, _) in &value.consumers {
                waiting[consumer.0 as usize] += 1;
            }
        }
    }
    let mut ready: std::collections::BinaryHeap<std::cmp::Reverse<u32>> = waiting
        .iter()
        .enumerate()
        .filter(|(_, n)| **n == 0)
        .map(|(i, _)| std::cmp::Reverse(i as u32))
        .collect();
    let mut order = Vec::with_capacity(graph.nodes.len());
    while let Some(std::cmp::Reverse(at)) = ready.pop() {
        order.push(NodeId(at));
        for output in graph.nodes[at as usize].outputs.iter().flatten() {
            for (consumer, _) in &graph.value(*output).consumers {
                let left = &mut waiting[consumer.0 as usize];
                *left -= 1;
                if *left == 0 {
                    ready.push(std::cmp::Reverse(consumer.0));
                }
            }
        }
    }
    if order.len() == graph.nodes.len() {
        Ok(order)
    } else {
        Err((0..graph.nodes.len() as u32)
            .map(NodeId)
            .filter(|n| waiting[n.0 as usize] > 0)
            .collect())
    }
}

/// All values that `from` is computed from, itself included.
pub fn ancestors(graph: &Graph, from: ValueId) -> Vec<bool> {
    let mut seen = vec![false; graph.values.len()];
    let mut stack = vec![from];
    while let Some(value) = stack.pop() {
        if std::mem::replace(&mut seen[value.0 as usize], true) {
            continue;
        }
        if let Some((node, _)) = graph.value(value).producer {
            let node = graph.node(node);
            stack.extend(node.inputs.iter().flatten());
            stack.extend(&node.captures);
        }
    }
    seen
}
