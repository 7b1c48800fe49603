//! The embedding tables behind the inputs of a graph: how many different
//! tokens and positions it knows.

use std::collections::{BTreeMap, BTreeSet};

use super::implied;
use crate::onnx::proto;

/// What the tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Per graph input: the rows of the smallest table it indexes.
    rows: BTreeMap<String, usize>,
    /// The longest sequence the table of positions allows, where there is one.
    pub(crate) positions: Option<usize>,
    /// Sizes of open axes of inputs that constants and operators imply.
    sizes: BTreeMap<(String, usize), usize>,
}

/// Operators that hand indices on.
const HANDS_INDICES_ON: [&str; 7] = [
    "Cast",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
];

/// Operators that keep the rows of a table.
const KEEPS_ROWS: [&str; 4] = ["Cast", "Identity", "DequantizeLinear", "QuantizeLinear"];

/// A table of positions has more rows than one of token types.
const MIN_POSITIONS: usize = 16;

impl Tables {
    /// The rows of the table that `input` indexes.
    pub(crate) fn rows(&self, input: &str) -> Option<usize> {
        self.rows.get(input).copied()
    }

    /// The size of an axis of `input` that the constants behind it imply.
    pub(crate) fn size(&self, input: &str, axis: usize) -> Option<usize> {
        self.sizes.get(&(input.to_owned(), axis)).copied()
    }

    /// Looks for the tables of `model`, whose external data may be absent.
    pub(crate) fn find(model: &proto::ModelProto) -> Self {
        match &model.graph {
            Some(graph) => Search::new(graph).run(graph),
            None => Self::default(),
        }
    }
}

struct Search<'a> {
    constants: BTreeMap<&'a str, &'a [i64]>,
    producers: BTreeMap<&'a str, &'a proto::NodeProto>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a proto::GraphProto) -> Self {
        let mut constants: BTreeMap<&str, &[i64]> = graph
            .initializer
            .iter()
            .map(|t| (t.name(), t.dims.as_slice()))
            .collect();
        let mut producers = BTreeMap::new();
        for node in &graph.node {
            if node.op_type() == "Constant" {
                let value = node.attribute.iter().find_map(|a| a.t.as_ref());
                if let (Some(value), Some(name)) = (value, node.output.first()) {
                    constants.insert(name, value.dims.as_slice());
                }
            }
            for output in &node.output {
                producers.insert(output.as_str(), node);
            }
        }
        Self { constants, producers }
    }

    /// The shape of a constant table, through what keeps its rows.
    fn table(&self, name: &str) -> Option<Vec<usize>> {
        let mut name = name;
        let mut flipped = false;
        // A chain longer than this is no table; the bound also ends cycles.
        for _ in 0..16 {
            if let Some(dims) = self.constants.get(name) {
                let mut dims = dims
                    .iter()
                    .map(|&d| usize::try_from(d))
                    .collect::<Result<Vec<_>, _>>()
                    .ok()?;
                if flipped {
                    dims.reverse();
                }
                return Some(dims);
            }
            let node = self.producers.get(name)?;
            // A matrix shared with the output layer may be stored transposed.
            if node.op_type() == "Transpose" {
                flipped = !flipped;
            } else if !KEEPS_ROWS.contains(&node.op_type()) {
                return None;
            }
            name = node.input.first()?;
        }
        None
    }

    /// The values that hold the indices given as `input`, and those that hold what a list of
    /// numbers has for each of them.
    fn same_indices(
        &self,
        graph: &'a proto::GraphProto,
        input: &'a str,
    ) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
        let mut same = BTreeSet::from([input]);
        let mut mapped = BTreeSet::new();
        // Nodes come in topological order.
        for node in &graph.node {
            let first = node.input.first().map(String::as_str);
            if HANDS_INDICES_ON.contains(&node.op_type()) && first.is_some_and(|v| same.contains(v)) {
                same.extend(node.output.iter().map(String::as_str));
            } else if HANDS_INDICES_ON.contains(&node.op_type()) && first.is_some_and(|v| mapped.contains(v))
            {
                mapped.extend(node.output.iter().map(String::as_str));
            }
            let list = first.and_then(|table| self.constants.get(table));
            let ids = node.input.get(1).map(String::as_str);
            if node.op_type() == "Gather"
                && list.is_some_and(|dims| dims.len() == 1)
                && ids.is_some_and(|v| same.contains(v))
            {
                mapped.extend(node.output.iter().map(String::as_str));
            }
        }
        (same, mapped)
    }

    fn run(&self, graph: &'a proto::GraphProto) -> Tables {
        let mut rows: BTreeMap<String, usize> = BTreeMap::new();
        let mut widths = BTreeSet::new();
        let mut by_input = BTreeSet::new();
        let mut positions: Option<usize> = None;
        let lookups: Vec<Lookup<'_>> = graph.node.iter().flat_map(lookups).collect();
        for input in &graph.input {
            let (same, mapped) = self.same_indices(graph, input.name());
            for lookup in lookups
                .iter()
                .filter(|l| same.contains(l.indices) || mapped.contains(l.indices))
            {
                let Some(shape) = self.table(lookup.table) else {
                    continue;
                };
                let Some(&n) = shape.first() else { continue };
                if mapped.contains(lookup.indices) {
                    by_input.insert(lookup.indices);
                    widths.insert(shape.get(1).copied());
                    continue;
                }
                let known = rows.entry(input.name().to_owned()).or_insert(n);
                *known = (*known).min(n);
                by_input.insert(lookup.indices);
                widths.insert(shape.get(1).copied());
                if input.name().to_lowercase().contains("position") {
                    positions = Some(positions.map_or(n, |p| p.min(n)));
                }
            }
        }
        // A table as wide as that of the tokens, indexed by something that no
        // input gives as it is, holds the positions.
        for lookup in lookups
            .iter()
            .filter(|l| l.positions || !by_input.contains(l.indices))
        {
            let Some(shape) = self.table(lookup.table) else {
                continue;
            };
            if let [n, width] = shape[..]
                && n >= MIN_POSITIONS
                && (lookup.positions || widths.contains(&Some(width)))
            {
                positions = Some(positions.map_or(n, |p| p.min(n)));
            }
        }
        Tables {
            rows,
            positions: (positions.map(usable_positions))
                .into_iter()
                .chain(implied::rotations(graph, &self.constants))
                .min(),
            sizes: implied::sizes(graph, &self.constants),
        }
    }
}

/// RoBERTa and its like count positions from padding index + 1 = 2: their
/// tables have two rows more than tokens.
fn usable_positions(rows: usize) -> usize {
    if rows % 8 == 2 { rows - 2 } else { rows }
}

/// One use of a table.
struct Lookup<'a> {
    table: &'a str,
    indices: &'a str,
    positions: bool,
}

fn lookups(node: &proto::NodeProto) -> Vec<Lookup<'_>> {
    let input = |i: usize| node.input.get(i).map(String::as_str).filter(|s| !s.is_empty());
    match node.op_type() {
        "Gather" | "GatherBlockQuantized" => {
            let axis = node
                .attribute
                .iter()
                .find(|a| a.name() == "axis" || node.op_type() != "Gather" && a.name() == "gather_axis");
            match (axis.map_or(0, |a| a.i()), input(0), input(1)) {
                (0, Some(table), Some(indices)) => {
                    vec![Lookup {
                        table,
                        indices,
                        positions: false,
                    }]
                }
                _ => Vec::new(),
            }
        }
        "EmbedLayerNormalization" => {
            let mut found = Vec::new();
            for (table, indices) in [(2, 0), (4, 1)] {
                if let (Some(table), Some(indices)) = (input(table), input(indices)) {
                    found.push(Lookup {
                        table,
                        indices,
                        positions: false,
                    });
                }
            }
            if let Some(table) = input(3) {
                let indices = input(8).unwrap_or("");
                found.push(Lookup {
                    table,
                    indices,
                    positions: true,
                });
            }
            found
        }
        _ => Vec::new(),
    }
}
