//! What is left of some nodes once those that nothing needs are gone.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::node_reads;
use crate::onnx::proto;
use crate::{Error, Result};

/// What is left.
pub struct Swept {
    /// The nodes.
    pub nodes: Vec<proto::NodeProto>,
    /// Where each of them was before.
    pub from: Vec<usize>,
    /// The names that are in use.
    pub used: BTreeSet<String>,
}

/// Drops what no output needs and puts the rest into topological order, as
/// close to the given order as that allows.
pub fn sweep(nodes: Vec<proto::NodeProto>, outputs: Vec<String>) -> Result<Swept> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            maker.insert(output, at);
        }
    }
    let reads: Vec<Vec<String>> = nodes.iter().map(node_reads).collect();
    let mut needed = vec![false; nodes.len()];
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut queue: VecDeque<String> = outputs.into();
    while let Some(name) = queue.pop_front() {
        if !used.insert(name.clone()) {
            continue;
        }
        if let Some(&at) = maker.get(name.as_str())
            && !std::mem::replace(&mut needed[at], true)
        {
            used.extend(nodes[at].output.iter().cloned());
            queue.extend(reads[at].iter().cloned());
        }
    }
    // Depth-first in the given order: each node after what it reads.
    let mut state = vec![0u8; nodes.len()];
    let mut order = Vec::with_capacity(nodes.len());
    for start in (0..nodes.len()).filter(|i| needed[*i]) {
        let mut stack = vec![(start, 0usize)];
        while let Some((at, next)) = stack.pop() {
            if state[at] == 2 {
                continue;
            }
            state[at] = 1;
            match reads[at].get(next) {
                Some(name) => {
                    stack.push((at, next + 1));
                    if let Some(&before) = maker.get(name.as_str()) {
                        match state[before] {
                            0 => stack.push((before, 0)),
                            1 if before != at => {
                                return Err(Error::input(format!("the graph has a cycle through '{name}'")));
                            }
                            _ => {}
                        }
                    }
                }
                None => {
                    state[at] = 2;
                    order.push(at);
                }
            }
        }
    }
    let mut slots: Vec<Option<proto::NodeProto>> = nodes.into_iter().map(Some).collect();
    let sorted = order.iter().filter_map(|i| slots[*i].take()).collect();
    Ok(Swept {
        nodes: sorted,
        from: order,
        used,
    })
}
