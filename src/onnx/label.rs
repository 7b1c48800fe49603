//! How errors name things: short, quoted, and safe to print.

use super::proto::NodeProto;

/// The longest name that is printed in full, in characters.
const LONGEST: usize = 120;

/// `node #12 "/encoder/MatMul" (com.microsoft::FusedMatMul)`: position in its
/// graph, name, operator.
pub fn node_label(index: usize, node: &NodeProto) -> String {
    let domain = match node.domain() {
        "" | "ai.onnx" => String::new(),
        domain => format!("{}::", clipped(domain)),
    };
    let operator = clipped(node.op_type());
    match node.name() {
        "" => format!("node #{index} ({domain}{operator})"),
        name => format!("node #{index} {} ({domain}{operator})", quoted(name)),
    }
}

/// A name in quotes, control characters escaped, its middle left out when it is
/// absurdly long.
pub(super) fn quoted(name: &str) -> String {
    format!("{:?}", clipped(name))
}

fn clipped(name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST / 2).collect();
    let mut end: Vec<char> = name.chars().rev().take(LONGEST / 2).collect();
    end.reverse();
    format!("{start}...{}", end.into_iter().collect::<String>())
}
