//! The tables of a model that have a row or a column for each token, without some of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::graph::node_reads;
use crate::graph::operators::{is_broadcast, is_unary};
use crate::onnx::{self, node_label, proto};
use crate::rewrite::narrowed;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Operators that hand token ids on.
const HANDS_IDS_ON: [&str; 6] = ["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"];

/// A table may have some more rows than there are tokens: its size is rounded up.
const ROUNDED: usize = 1024;

/// A model without some rows of its tables.
pub(super) struct TrimmedTables {
    pub(super) model: proto::ModelProto,
    /// The constants that were cut.
    pub(super) tables: Vec<String>,
    /// Numbers of these that went.
    pub(super) parameters: u64,
    /// Their bytes before and after.
    pub(super) bytes: [u64; 2],
    /// The outputs that have an entry for each token.
    pub(super) outputs: BTreeMap<String, TokenOutput>,
    /// Rows of the tables before.
    pub(super) rows: usize,
}

/// What an output with an entry for each token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenOutput {
    /// Logits, each by itself.
    Logits,
    /// Probabilities of all tokens, which add up to one.
    Probabilities,
    /// The logarithms of these.
    LogProbabilities,
}

/// The model with the rows of tokens `kept` only, of `size`; or of as many rows as another
/// model with the same tokens has, where this one may have a head alone.
///
/// # Errors
/// No table has a row per token; the axis of tokens leads into an operator that needs it whole.
pub(super) fn trim(
    model: &proto::ModelProto,
    (size, rows): (usize, Option<usize>),
    kept: &[u32],
) -> Result<TrimmedTables> {
    let mut search = TokenAxes::of(model, size, rows)?;
    search.compared(kept)?;
    search.heads();
    search.follow()?;
    search.complete()?;
    let outputs = search.outputs.iter();
    let outputs: BTreeMap<String, TokenOutput> =
        outputs.map(|name| (name.clone(), search.kind(name))).collect();
    let (cut, flat) = (search.cut, search.flat);
    let before = search.rows.last().copied().unwrap_or(size);
    let stale = search.stale;
    let mut trimmed = model.clone();
    let graph = trimmed
        .graph
        .as_mut()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let rows: Vec<usize> = kept.iter().map(|at| *at as usize).collect();
    let (mut bytes, mut parameters) = ([0, 0], 0);
    for tensor in &mut graph.initializer {
        let Some(axis) = cut.get(tensor.name()).copied() else {
            continue;
        };
        let whole = onnx::tensor(tensor)?;
        let rows = match flat.get(tensor.name()) {
            Some(each) => rows.iter().flat_map(|row| row * each..(row + 1) * each).collect(),
            None => rows.clone(),
        };
        let less = narrowed(tensor.name(), &whole, &[(axis, rows)])?;
        for (bytes, tensor) in bytes.iter_mut().zip([&whole, &less]) {
            *bytes += (tensor.len() * tensor.elem().size()) as u64;
        }
        parameters += (whole.len() - less.len()) as u64;
        let name = tensor.name().to_owned();
        *tensor = onnx::tensor_proto(&name, &less);
    }
    for info in graph.output.iter_mut().filter(|o| outputs.contains_key(o.name())) {
        if let Some(proto::type_proto::Value::TensorType(tensor)) =
            info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && let Some(last) = tensor.shape.as_mut().and_then(|s| s.dim.last_mut())
        {
            let size = i64::try_from(kept.len()).unwrap_or(i64::MAX);
            last.value = Some(proto::tensor_shape_proto::dimension::Value::DimValue(size));
        }
    }
    for node in graph.node.iter_mut().filter(|n| n.op_type() == "MatMulNBits") {
        let is_head = node.input.get(1).is_some_and(|weight| cut.contains_key(weight));
        let columns = node.attribute.iter_mut().find(|a| a.name() == "N");
        if let (true, Some(columns)) = (is_head, columns) {
            columns.i = i64::try_from(kept.len()).ok();
        }
    }
    graph.value_info.retain(|info| !stale.contains(info.name()));
    Ok(TrimmedTables {
        tables: cut.into_keys().collect(),
        model: trimmed,
        parameters,
        bytes,
        outputs,
        rows: before,
    })
}

/// The first table that token ids index, a row for each token; `None` where its numbers are in
/// blocks.
///
/// # Errors
/// There is none.
pub(super) fn embedding(model: &proto::ModelProto, size: usize) -> Result<Option<Tensor>> {
    let search = TokenAxes::of(model, size, None)?;
    if !search.blocks.is_empty() {
        return Ok(None);
    }
    let Some((name, axis)) = search.cut.first_key_value() else {
        return Err(no_table(size));
    };
    let tensor = onnx::tensor(search.constants[name.as_str()])?;
    match (*axis, &tensor.shape[..]) {
        (1, [width, rows]) => {
            let (values, rows, width) = (tensor.to_f32(), *rows, *width);
            let turned = (0..rows * width).map(|at| values[at % width * rows + at / width]);
            Ok(Some(Tensor::f32(vec![rows, width], turned.collect::<Vec<_>>())))
        }
        _ => Ok(Some(tensor)),
    }
}

/// Whether there is a table with a row for each token that ids index, or a head of `rows`.
pub(super) fn is_there(model: &proto::ModelProto, (size, rows): (usize, Option<usize>)) -> bool {
    TokenAxes::of(model, size, rows).is_ok()
}

/// The rows of the table that token ids index, whatever the tokenizer.
pub fn rows(model: &proto::ModelProto) -> Option<usize> {
    let search = TokenAxes::new(model.graph.as_ref()?, 0);
    let tables = search.graph.node.iter().filter(|n| n.op_type() == "Gather");
    let mut found = tables.filter_map(|node| {
        let [table, ids] = &node.input[..] else {
            return None;
        };
        let (constant, axis) = search.source(table, 0).filter(|_| search.are_ids(ids))?;
        search
            .dims(constant)
            .filter(|dims| dims.len() == 2)?
            .get(axis)
            .copied()
    });
    found.next()
}

fn no_table(size: usize) -> Error {
    Error::input(format!(
        "--vocab: no table that token ids index has a row for each of the {size} tokens of the tokenizer: \
         does it belong to this model?"
    ))
}

/// Where the axis of tokens is: its number, or the last one of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Axis(usize),
    Last,
}

struct TokenAxes<'g> {
    graph: &'g proto::GraphProto,
    size: usize,
    /// The rows of the tables that token ids index.
    rows: BTreeSet<usize>,
    constants: HashMap<&'g str, &'g proto::TensorProto>,
    producers: HashMap<&'g str, &'g proto::NodeProto>,
    /// The axis of tokens of each constant that has one.
    cut: BTreeMap<String, usize>,
    /// How many entries each token has in a constant that lies flat.
    flat: BTreeMap<String, usize>,
    /// Tables whose numbers are in blocks.
    blocks: BTreeSet<String>,
    /// Values whose consumers are still to be looked at.
    open: Vec<(&'g str, At)>,
    /// Graph outputs that end in the tokens.
    outputs: BTreeSet<String>,
    /// Values whose declared shapes hold no more.
    stale: BTreeSet<String>,
}

impl<'g> TokenAxes<'g> {
    /// With the tables that token ids index, or where there is none with a head of `rows`.
    fn of(model: &'g proto::ModelProto, size: usize, rows: Option<usize>) -> Result<Self> {
        let graph = model
            .graph
            .as_ref()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        let mut search = Self::new(graph, size);
        search.tables();
        if let (true, Some(rows)) = (search.cut.is_empty(), rows) {
            search.rows.insert(rows);
            search.heads();
        }
        match search.cut.is_empty() {
            true => Err(no_table(size)),
            false => Ok(search),
        }
    }

    fn new(graph: &'g proto::GraphProto, size: usize) -> Self {
        let made = |node: &'g proto::NodeProto| node.output.iter().map(move |o| (o.as_str(), node));
        Self {
            graph,
            size,
            rows: BTreeSet::new(),
            constants: graph.initializer.iter().map(|t| (t.name(), t)).collect(),
            producers: graph.node.iter().flat_map(made).collect(),
            cut: BTreeMap::new(),
            flat: BTreeMap::new(),
            blocks: BTreeSet::new(),
            open: Vec::new(),
            outputs: BTreeSet::new(),
            stale: BTreeSet::new(),
        }
    }

    fn dims(&self, constant: &str) -> Option<Vec<usize>> {
        let tensor = self.constants.get(constant)?;
        tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect()
    }

    /// Whether a size is that of a table of tokens.
    fn counts_tokens(&self, rows: usize) -> bool {
        self.rows.contains(&rows)
    }

    /// Whether a value holds token ids as an input gives them: not positions or segments,
    /// whose tables may be as large.
    fn are_ids(&self, mut value: &'g str) -> bool {
        const OTHERS: [&str; 4] = ["position", "type", "segment", "mask"];
        loop {
            if self.graph.input.iter().any(|i| i.name() == value) {
                let name = value.to_ascii_lowercase();
                return !OTHERS.iter().any(|other| name.contains(other));
            }
            match self.producers.get(value) {
                Some(node) if HANDS_IDS_ON.contains(&node.op_type()) => match node.input.first() {
                    Some(first) => value = first,
                    None => return false,
                },
                _ => return false,
            }
        }
    }

    /// The constant that a table is made of, and which of its axes is `axis`.
    fn source(&self, mut value: &'g str, mut axis: usize) -> Option<(&'g str, usize)> {
        loop {
            if self.constants.contains_key(value) {
                return Some((value, axis));
            }
            let node = self.producers.get(value)?;
            match node.op_type() {
                "Cast" | "Identity" | "DequantizeLinear" => {}
                "Transpose" => axis = *permutation(node)?.get(axis)?,
                _ => return None,
            }
            value = node.input.first()?;
        }
    }

    fn take(&mut self, value: &'g str, axis: usize) {
        if let Some((constant, axis)) = self.source(value, axis)
            && self
                .dims(constant)
                .and_then(|d| d.get(axis).copied())
                .is_some_and(|n| self.counts_tokens(n))
            && self.cut.insert(constant.to_owned(), axis).is_none()
        {
            self.open.push((constant, At::Axis(axis)));
        }
    }

    /// The same of what goes with a weight in blocks: a row for each token, or all rows in one.
    fn take_blocks(&mut self, value: &'g str) {
        match self.dims(value).as_deref() {
            Some([n]) if !self.counts_tokens(*n) => {
                if let Some(rows) = self
                    .rows
                    .iter()
                    .find(|rows| **rows > 0 && n.is_multiple_of(**rows))
                {
                    self.flat.insert(value.to_owned(), n / rows);
                    self.cut.insert(value.to_owned(), 0);
                }
            }
            _ => self.take(value, 0),
        }
    }

    /// The tables that token ids index.
    fn tables(&mut self) {
        for node in &self.graph.node {
            let input = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
            let pair = match node.op_type() {
                "Gather" if integer(node, "axis", 0) == 0 => (input(0), input(1)),
                "EmbedLayerNormalization" => (input(2), input(0)),
                // Blocks lie along the rows, which go whole.
                "GatherBlockQuantized"
                    if integer(node, "gather_axis", 0) == 0 && integer(node, "quantize_axis", 1) != 0 =>
                {
                    (input(0), input(1))
                }
                _ => continue,
            };
            if let (Some(table), Some(ids)) = pair
                && self.are_ids(ids)
                && let Some((constant, axis)) = self.source(table, 0)
                && let Some(rows) = self.dims(constant).and_then(|d| d.get(axis).copied())
                && (self.size..=self.size + ROUNDED.max(self.size / 16)).contains(&rows)
            {
                self.rows.insert(rows);
                self.take(table, 0);
                if node.op_type() == "GatherBlockQuantized" {
                    self.blocks.insert(constant.to_owned());
                    [2, 3]
                        .into_iter()
                        .filter_map(input)
                        .for_each(|with| self.take(with, 0));
                }
            }
        }
    }

    /// Numbers that token ids are compared with keep their meaning.
    fn compared(&self, kept: &[u32]) -> Result<()> {
        const COMPARE: [&str; 5] = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"];
        for (index, node) in self.graph.node.iter().enumerate() {
            let [a, b] = &node.input[..] else { continue };
            if !COMPARE.contains(&node.op_type()) {
                continue;
            }
            for (ids, other) in [(a, b), (b, a)] {
                let numbers = if self.are_ids(ids) {
                    self.numbers(other)
                } else {
                    None
                };
                let moved = |n: &i64| {
                    *n >= 0
                        && kept
                            .get(usize::try_from(*n).unwrap_or(usize::MAX))
                            .map(|at| i64::from(*at))
                            != Some(*n)
                };
                if let Some(number) = numbers.iter().flatten().find(|n| moved(n)) {
                    return Err(Error::input(format!(
                        "--vocab: {} compares token ids with {number}, which would be another token; nothing was changed",
                        node_label(index, node)
                    )));
                }
            }
        }
        Ok(())
    }

    /// The integers of a constant.
    fn numbers(&self, value: &'g str) -> Option<Vec<i64>> {
        let own = self
            .producers
            .get(value)
            .filter(|n| matches!(n.op_type(), "Constant" | "Cast" | "Identity"));
        match (self.constants.get(value), own) {
            (Some(tensor), _) => onnx::tensor(tensor).ok()?.to_i64(),
            (None, Some(node)) if node.op_type() == "Constant" => {
                let held = node.attribute.iter().find_map(|a| a.t.as_ref())?;
                onnx::tensor(held).ok()?.to_i64()
            }
            (None, Some(node)) => self.numbers(node.input.first()?),
            _ => None,
        }
    }

    /// No other constant is as large along an axis: it would be a head that was not found.
    fn complete(&self) -> Result<()> {
        for (name, tensor) in &self.constants {
            let large = |d: &i64| usize::try_from(*d).is_ok_and(|d| self.rows.contains(&d));
            if !self.cut.contains_key(*name) && tensor.dims.iter().any(large) {
                return Err(Error::input(format!(
                    "--vocab: '{name}' has an entry for each token too, but how it is read is not understood; nothing \
                     was changed"
                )));
            }
        }
        for (index, node) in self.graph.node.iter().enumerate() {
            let wide = usize::try_from(integer(node, "N", 0)).is_ok_and(|n| self.rows.contains(&n));
            let cut = node
                .input
                .get(1)
                .is_some_and(|weight| self.cut.contains_key(weight));
            if node.op_type() == "MatMulNBits" && wide && !cut {
                return Err(Error::input(format!(
                    "--vocab: {} has an entry for each token, but how it is read is not understood; nothing was changed",
                    node_label(index, node)
                )));
            }
        }
        Ok(())
    }

    /// What an output that ends in the tokens is.
    fn kind(&self, output: &str) -> TokenOutput {
        let (mut value, mut is_log) = (output, false);
        for _ in 0..self.graph.node.len() {
            let Some(node) = self.producers.get(value) else {
                break;
            };
            match (node.op_type(), node.input.first()) {
                ("Softmax", _) if is_log => return TokenOutput::LogProbabilities,
                ("Softmax", _) => return TokenOutput::Probabilities,
                ("LogSoftmax", _) if !is_log => return TokenOutput::LogProbabilities,
                ("Log", Some(first)) if !is_log => (value, is_log) = (first, true),
                ("Cast" | "Identity", Some(first)) => value = first,
                _ => break,
            }
        }
        TokenOutput::Logits
    }

    /// Heads with a weight of their own: constants whose product is an output.
    fn heads(&mut self) {
        let mut open: Vec<&str> = self.graph.output.iter().map(|o| o.name()).collect();
        let mut seen: BTreeSet<&str> = open.iter().copied().collect();
        while let Some(value) = open.pop() {
            let Some(node) = self.producers.get(value).copied() else {
                continue;
            };
            let (domain, op) = (node.domain(), node.op_type());
            match (op, node.input.get(1)) {
                ("MatMul" | "MatMulInteger", Some(weight)) => self.take(weight, 1),
                ("MatMulNBits", Some(weight)) => self.take(weight, 0),
                ("Gemm", Some(weight)) => self.take(weight, usize::from(integer(node, "transB", 0) == 0)),
                _ => {}
            }
            let last = ["Cast", "Identity", "Softmax", "LogSoftmax", "ArgMax"].contains(&op);
            if last || is_unary(domain, op) || is_broadcast(domain, op) {
                open.extend(node.input.iter().map(String::as_str).filter(|v| seen.insert(v)));
            }
        }
    }

    /// Takes the constants with a number for each token that a value is made of, operand by
    /// operand.
    fn take_behind(&mut self, value: &'g str) {
        let mut open = vec![value];
        let mut seen = BTreeSet::from([value]);
        while let Some(value) = open.pop() {
            let dims = self.dims(value).unwrap_or_default();
            if dims.last().is_some_and(|n| self.counts_tokens(*n)) {
                self.take(value, dims.len() - 1);
            } else if let Some(node) = self.producers.get(value).copied()
                && (is_broadcast(node.domain(), node.op_type())
                    || matches!(node.op_type(), "Cast" | "Identity"))
            {
                open.extend(node.input.iter().map(String::as_str).filter(|v| seen.insert(v)));
            }
        }
    }

    /// Goes on to whatever reads a value with an axis of tokens.
    fn follow(&mut self) -> Result<()> {
        let mut seen = BTreeSet::new();
        while let Some((value, at)) = self.open.pop() {
            if !seen.insert((value, at)) {
                continue;
            }
            self.stale.insert(value.to_owned());
            if self.graph.output.iter().any(|o| o.name() == value) {
                self.outputs.insert(value.to_owned());
            }
            for (index, node) in self.graph.node.iter().enumerate() {
                for (place, _) in node.input.iter().enumerate().filter(|(_, n)| *n == value) {
                    if !self.read(node, place, at) {
                        return Err(Error::input(format!(
                            "--vocab: the axis of tokens leads into {}, which may need all of it; nothing was changed",
                            node_label(index, node)
                        )));
                    }
                }
                let inner = node.attribute.iter().any(|a| a.g.is_some());
                if inner
                    && node_reads(node).iter().any(|n| n == value)
                    && !node.input.iter().any(|n| n == value)
                {
                    return Err(Error::input(format!(
                        "--vocab: a subgraph of {} reads the table '{value}'; nothing was changed",
                        node_label(index, node)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Takes in what a node makes of a value with an axis of tokens; `false` where that is not
    /// known.
    fn read(&mut self, node: &'g proto::NodeProto, place: usize, at: At) -> bool {
        let (domain, op) = (node.domain(), node.op_type());
        let Some(output) = node.output.first().map(String::as_str) else {
            return false;
        };
        let input = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
        match (op, at, place) {
            ("Gather", At::Axis(0), 0) => {
                integer(node, "axis", 0) == 0 && input(1).is_some_and(|ids| self.are_ids(ids))
            }
            ("EmbedLayerNormalization", At::Axis(0), 2) => true,
            ("GatherBlockQuantized", At::Axis(0), 0 | 2 | 3) => true,
            ("MatMulNBits", At::Axis(0), 1) => {
                let with = [2, 3, 5].into_iter().filter_map(input);
                with.for_each(|with| self.take_blocks(with));
                self.open.push((output, At::Last));
                true
            }
            ("MatMulNBits", At::Axis(0), 2 | 3 | 5) => true,
            ("Cast" | "Identity", _, 0) => {
                self.open.push((output, at));
                true
            }
            ("DequantizeLinear", At::Axis(axis), 0) => {
                for scale in [input(1), input(2)].into_iter().flatten() {
                    match self.dims(scale).as_deref() {
                        Some([n] | [n, ..]) if self.counts_tokens(*n) && axis == 0 => self.take(scale, 0),
                        Some([n]) if self.counts_tokens(*n) => self.take(scale, 0),
                        Some([] | [1]) => {}
                        // One number per column of a table.
                        Some([_]) if usize::try_from(integer(node, "axis", 1)) != Ok(axis) => {}
                        _ => return false,
                    }
                }
                self.open.push((output, at));
                true
            }
            // A constant that goes with a table and was cut with it.
            ("DequantizeLinear", At::Axis(0), 1 | 2) => true,
            ("Transpose", At::Axis(axis), 0) => {
                let to = permutation(node).and_then(|p| p.iter().position(|from| *from == axis));
                to.is_some_and(|to| {
                    self.open.push((output, At::Axis(to)));
                    true
                })
            }
            ("MatMul" | "MatMulInteger", At::Axis(1), 1) => {
                if let Some(zero) = input(3) {
                    self.take(zero, 0);
                }
                self.open.push((output, At::Last));
                true
            }
            ("Gemm", At::Axis(axis), 1) if axis == usize::from(integer(node, "transB", 0) == 0) => {
                if let Some(bias) = input(2) {
                    let last = self.dims(bias).map_or(0, |d| d.len().saturating_sub(1));
                    self.take(bias, last);
                }
                self.open.push((output, At::Last));
                true
            }
            ("Gemm", At::Axis(_), 2) | ("MatMulInteger", At::Axis(_), 3) => true,
            ("ArgMax", At::Last, 0) => true,
            ("Softmax" | "LogSoftmax", At::Last, 0) => {
                self.open.push((output, At::Last));
                true
            }
            (_, At::Last, _) if is_unary(domain, op) || is_broadcast(domain, op) => {
                for other in (0..node.input.len()).filter(|o| *o != place).filter_map(input) {
                    self.take_behind(other);
                }
                self.open.push((output, At::Last));
                true
            }
            // The bias of a head, which was cut with it.
            (_, At::Axis(_), _) => is_broadcast(domain, op),
            _ => false,
        }
    }
}

fn integer(node: &proto::NodeProto, name: &str, default: i64) -> i64 {
    let found = node.attribute.iter().find(|a| a.name() == name);
    found.map_or(default, |a| a.i())
}

/// Which axis of its input each axis of a `Transpose` is.
fn permutation(node: &proto::NodeProto) -> Option<Vec<usize>> {
    let given = node.attribute.iter().find(|a| a.name() == "perm");
    match given {
        Some(perm) => perm.ints.iter().map(|p| usize::try_from(*p).ok()).collect(),
        // Of a matrix.
        None => Some(vec![1, 0]),
    }
}
