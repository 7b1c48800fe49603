//! Sizes of open axes of inputs that the constants behind them imply: the channels and
//! the side of an image by the patch projection and the table of positions, the head size
//! of a cache by the packed width of the attention that reads it.

use std::collections::BTreeMap;

use crate::onnx::proto::{GraphProto, NodeProto};

/// Operators between an image and its first convolution.
const PREPARES: [&str; 6] = ["Cast", "Identity", "Sub", "Mul", "Div", "Add"];

type TableShapes<'a> = BTreeMap<&'a str, &'a [i64]>;

/// By input and axis.
pub(super) fn sizes(graph: &GraphProto, constants: &TableShapes) -> BTreeMap<(String, usize), usize> {
    let mut found = BTreeMap::new();
    for input in &graph.input {
        images(graph, constants, input.name(), &mut found);
        caches(graph, constants, input.name(), &mut found);
    }
    found
}

fn integer(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name() == name).map(|a| a.i())
}

fn input(node: &NodeProto, at: usize) -> Option<&str> {
    node.input.get(at).map(String::as_str).filter(|n| !n.is_empty())
}

/// An image whose patches do not overlap has as many as the table of positions has rows,
/// less the class token and the like.
fn images(
    graph: &GraphProto,
    constants: &TableShapes,
    name: &str,
    found: &mut BTreeMap<(String, usize), usize>,
) {
    let mut same = vec![name];
    for node in &graph.node {
        let reads = input(node, 0).is_some_and(|first| same.contains(&first));
        if reads && PREPARES.contains(&node.op_type()) {
            same.extend(node.output.first().map(String::as_str));
        }
    }
    let conv = graph
        .node
        .iter()
        .find(|n| n.op_type() == "Conv" && input(n, 0).is_some_and(|x| same.contains(&x)));
    let weight = conv.and_then(|n| Some((n, *constants.get(input(n, 1)?)?)));
    let Some((conv, [width, channels, sides @ ..])) = weight else {
        return;
    };
    let size = |n: i64| usize::try_from(n).ok().filter(|n| *n > 0);
    let groups = integer(conv, "group").unwrap_or(1);
    if let Some(channels) = size(channels.saturating_mul(groups)) {
        found.insert((name.to_owned(), 1), channels);
    }
    let strides = conv.attribute.iter().find(|a| a.name() == "strides");
    let [rows, columns] = sides else { return };
    if strides.is_none_or(|s| s.ints != sides) || rows != columns {
        return;
    }
    let root = |n: i64| {
        let root = (n.max(0) as f64).sqrt().round() as i64;
        (root > 1 && root * root == n).then_some(root)
    };
    let side = graph.initializer.iter().find_map(|t| {
        let rows = match t.dims[..] {
            [1, rows, own] | [rows, own] if own == *width && rows > 3 => rows,
            _ => return None,
        };
        // With a class token, without one, with one for distillation too.
        [rows - 1, rows, rows - 2].into_iter().find_map(root)
    });
    if let Some(side) = side.and_then(|side| size(side.saturating_mul(*rows))) {
        found.insert((name.to_owned(), 2), side);
        found.insert((name.to_owned(), 3), side);
    }
}

/// The last axis of a cache of `GroupQueryAttention`.
fn caches(
    graph: &GraphProto,
    constants: &TableShapes,
    name: &str,
    found: &mut BTreeMap<(String, usize), usize>,
) {
    let reads = |n: &&NodeProto| {
        n.op_type() == "GroupQueryAttention" && [3, 4].iter().any(|at| input(n, *at) == Some(name))
    };
    let Some(node) = graph.node.iter().find(reads) else {
        return;
    };
    let queries = integer(node, "num_heads").unwrap_or(0);
    let heads = match input(node, 1) {
        Some(_) => queries,
        None => queries.saturating_add(integer(node, "kv_num_heads").unwrap_or(0).saturating_mul(2)),
    };
    let width = input(node, 0).and_then(|packed| width(graph, constants, packed));
    // Tables of angles hold half of what is rotated, which is all of a head but for some.
    let turned = || Some(constants.get(input(node, 7)?)?.get(1)?.saturating_mul(2));
    let size = match width {
        Some(width) if heads > 0 && width % heads == 0 => Some(width / heads),
        _ => turned(),
    };
    if let Some(size) = size.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
        found.insert((name.to_owned(), 3), size);
    }
}

/// The longest sequence that tables of rotation angles allow.
pub(super) fn rotations(graph: &GraphProto, constants: &TableShapes) -> Option<usize> {
    let rows = graph.node.iter().filter_map(|node| {
        let table = match (node.domain(), node.op_type()) {
            ("com.microsoft", "GroupQueryAttention") => input(node, 7),
            ("com.microsoft", "RotaryEmbedding") => input(node, 2),
            _ => None,
        };
        usize::try_from(*constants.get(table?)?.first()?).ok()
    });
    rows.filter(|rows| *rows > 0).min()
}

/// The size of the last axis of a value that a projection makes.
fn width(graph: &GraphProto, constants: &TableShapes, value: &str) -> Option<i64> {
    let mut value = value;
    // A longer chain is no projection; the bound also ends cycles.
    for _ in 0..8 {
        let node = graph.node.iter().find(|n| n.output.iter().any(|o| o == value))?;
        match node.op_type() {
            "MatMul" => return constants.get(input(node, 1)?)?.last().copied(),
            "MatMulNBits" => return integer(node, "N"),
            "Gemm" => {
                let dims = constants.get(input(node, 1)?)?;
                return match integer(node, "transB") {
                    Some(1) => dims.first().copied(),
                    _ => dims.last().copied(),
                };
            }
            "Add" if constants.contains_key(input(node, 0)?) => value = input(node, 1)?,
            "Add" | "Cast" | "Identity" | "DequantizeLinear" => value = input(node, 0)?,
            _ => return None,
        }
    }
    None
}
