//! Which operators keep positions apart: for a cut of the output, the cuts of
//! the inputs that it is computed from.
//!
//! A rule answers `None` where the cut cannot go through; that is always safe.

use super::cut::{Context, PositionCut};
use crate::axes::Dim;
use crate::graph::operators::{axis, is_broadcast, is_unary};
use crate::graph::{Node, NodeId};

const MS: &str = "com.microsoft";

/// How a cut of the outputs goes over to the inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Push {
    /// Inputs that are cut, each with the axis; all others are read whole.
    pub(super) inputs: Vec<(usize, usize)>,
    /// Inputs that are constants now: the shape of a `Reshape`, bounds that the
    /// graph computed from the shape of a value that is narrow now.
    pub(super) constants: Vec<(usize, Vec<i64>)>,
}

impl Push {
    fn of(inputs: impl Into<Vec<(usize, usize)>>) -> Option<Self> {
        let inputs = inputs.into();
        (!inputs.is_empty()).then_some(Push {
            inputs,
            constants: Vec::new(),
        })
    }

    /// Whether an input is replaced by a constant.
    pub(super) fn is_constant(&self, input: usize) -> bool {
        self.constants.iter().any(|(i, _)| *i == input)
    }

    /// The axis along which an input is cut.
    pub(super) fn axis(&self, input: usize) -> Option<usize> {
        self.inputs
            .iter()
            .find(|(i, _)| *i == input)
            .map(|(_, axis)| *axis)
    }
}

/// Whether the operator does the work that a cut is made for.
pub(super) fn contracts(op: &str) -> bool {
    matches!(
        op,
        "MatMul"
            | "Gemm"
            | "FusedMatMul"
            | "MatMulInteger"
            | "MatMulIntegerToFloat"
            | "Attention"
            | "MultiHeadAttention"
    )
}

/// The cuts of the inputs for the same cut of the outputs `wanted`.
pub(super) fn push(cx: &Context, id: NodeId, cut: PositionCut, wanted: &[usize]) -> Option<Push> {
    let rule = LosslessRule {
        cx,
        id,
        node: cx.graph.node(id),
        cut,
    };
    let first = wanted == [0];
    match (rule.node.domain.as_str(), rule.node.op.as_str()) {
        ("", "Split") => rule.split(),
        (MS, "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization")
            if wanted.iter().all(|k| matches!(k, 0 | 3)) =>
        {
            rule.skip_layer_norm()
        }
        _ if !first => None,
        (domain, op) if is_unary(domain, op) => Push::of([(0, cut.axis)]),
        ("", "Dropout") if !rule.has(2) => Push::of([(0, cut.axis)]),
        (MS, "BiasGelu" | "FastGelu" | "BiasAdd") => rule.not_last(),
        (domain, op) if is_broadcast(domain, op) => rule.broadcast(0..rule.node.inputs.len()),
        ("", "MatMul") => rule.matmul(false, false),
        (MS, "FusedMatMul") => rule.fused_matmul(),
        ("", "MatMulInteger") | (MS, "MatMulIntegerToFloat") => rule.matmul_integer(),
        ("", "Gemm") => rule.gemm(),
        ("", "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization")
        | (MS, "SimplifiedLayerNormalization" | "LayerNormalization") => rule.layer_norm(),
        ("", "Softmax" | "LogSoftmax") => rule.softmax(),
        (
            "",
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
            | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare",
        ) => rule.reduce(),
        ("", "Transpose") => rule.transpose(),
        ("", "Reshape") => rule.reshape(),
        ("", "Unsqueeze") => rule.unsqueeze(),
        ("", "Squeeze") => rule.squeeze(),
        ("", "Concat") => rule.concat(),
        ("", "Slice") => rule.slice(),
        ("", "Gather") => rule.gather(),
        ("", "QuantizeLinear" | "DequantizeLinear") | (MS, "QuantizeLinear" | "DequantizeLinear") => {
            rule.quantise()
        }
        ("", "Attention") => rule.attention(),
        (MS, "MultiHeadAttention") => rule.multi_head(),
        _ => None,
    }
}

/// A node under a cut of its output.
struct LosslessRule<'a> {
    cx: &'a Context<'a>,
    id: NodeId,
    node: &'a Node,
    cut: PositionCut,
}

impl LosslessRule<'_> {
    fn has(&self, input: usize) -> bool {
        self.node.inputs.get(input).is_some_and(Option::is_some)
    }

    fn dims(&self, input: usize) -> Option<Vec<Dim>> {
        self.cx.dims(self.id, input)
    }

    fn out_dims(&self) -> Option<Vec<Dim>> {
        self.cx.value_dims((*self.node.outputs.first()?)?)
    }

    fn attr_or_input(&self, name: &str, input: usize) -> Option<Vec<i64>> {
        match self.node.ints(name) {
            Some(v) => Some(v.to_vec()),
            None => self.cx.ints(self.id, input),
        }
    }

    /// The cut of an operand that is broadcast to the output: `Some(None)`
    /// where it has the size 1 there, `None` where that is not known.
    fn operand(&self, dims: &[Dim], rank: usize, of: &Dim) -> Option<Option<usize>> {
        let shift = rank.checked_sub(dims.len())?;
        let Some(axis) = self.cut.axis.checked_sub(shift) else {
            return Some(None);
        };
        let own = dims.get(axis)?;
        if own.is_one() {
            Some(None)
        } else if self.cut.is_end() || own == of {
            // The first and the last entry are right for a size that turns out
            // to be 1, too.
            Some(Some(axis))
        } else {
            None
        }
    }

    fn broadcast(&self, inputs: impl IntoIterator<Item = usize>) -> Option<Push> {
        let mut operands = Vec::new();
        for input in inputs {
            operands.push((input, self.dims(input)?));
        }
        let rank = operands.iter().map(|(_, d)| d.len()).max()?;
        let out = self.out_dims()?;
        let of = out.get(self.cut.axis).filter(|_| out.len() == rank)?;
        let mut cuts = Vec::new();
        for (input, dims) in &operands {
            if let Some(axis) = self.operand(dims, rank, of)? {
                cuts.push((*input, axis));
            }
        }
        Push::of(cuts)
    }

    /// Operators with a vector along the last axis.
    fn not_last(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        (self.cut.axis + 1 < rank)
            .then(|| Push::of([(0, self.cut.axis)]))
            .flatten()
    }

    /// `A B`, one or both transposed in their last two axes.
    fn matmul(&self, transposed_a: bool, transposed_b: bool) -> Option<Push> {
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        if a.len() < 2 || b.len() < 2 {
            return None;
        }
        let rank = a.len().max(b.len());
        if self.cut.axis + 2 == rank {
            let axis = a.len() - if transposed_a { 1 } else { 2 };
            return Push::of([(0, axis)]);
        }
        if self.cut.axis + 1 == rank {
            let axis = b.len() - if transposed_b { 2 } else { 1 };
            return Push::of([(1, axis)]);
        }
        self.broadcast([0, 1])
    }

    fn fused_matmul(&self) -> Option<Push> {
        if self.node.int("transBatchA", 0) != 0 || self.node.int("transBatchB", 0) != 0 {
            return None;
        }
        self.matmul(self.node.int("transA", 0) != 0, self.node.int("transB", 0) != 0)
    }

    /// Only the rows: the columns may have their own scale and zero point.
    fn matmul_integer(&self) -> Option<Push> {
        let scalar = |input: usize| {
            !self.has(input) || self.dims(input).is_some_and(|dims| dims.iter().all(Dim::is_one))
        };
        let own = match self.node.op.as_str() {
            "MatMulInteger" => scalar(2),
            _ => scalar(2) && scalar(4),
        };
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        if !own || b.len() != 2 || a.len() < 2 || self.cut.axis + 2 != a.len() {
            return None;
        }
        Push::of([(0, self.cut.axis)])
    }

    fn gemm(&self) -> Option<Push> {
        let (input, axis) = match self.cut.axis {
            0 => (0, usize::from(self.node.int("transA", 0) != 0)),
            1 => (1, usize::from(self.node.int("transB", 0) == 0)),
            _ => return None,
        };
        let mut cuts = vec![(input, axis)];
        if self.has(2) {
            let out = self.out_dims()?;
            if let Some(axis) = self.operand(&self.dims(2)?, 2, out.get(self.cut.axis)?)? {
                cuts.push((2, axis));
            }
        }
        Push::of(cuts)
    }

    fn layer_norm(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        let from = axis(self.node.int("axis", -1), rank)?;
        let vectors = (1..self.node.inputs.len())
            .filter(|i| self.has(*i))
            .all(|i| self.dims(i).is_some_and(|d| d.len() <= rank - from));
        (vectors && self.cut.axis < from)
            .then(|| Push::of([(0, self.cut.axis)]))
            .flatten()
    }

    fn skip_layer_norm(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        if self.cut.axis + 1 >= rank {
            return None;
        }
        let dims = self.dims(0)?;
        let mut cuts = vec![(0, self.cut.axis)];
        if let Some(axis) = self.operand(&self.dims(1)?, rank, dims.get(self.cut.axis)?)? {
            cuts.push((1, axis));
        }
        Push::of(cuts)
    }

    fn softmax(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        let old = self.cx.graph.opset < 13;
        let over = axis(self.node.int("axis", if old { 1 } else { -1 }), rank)?;
        // Before version 13, it goes over all axes from that one on.
        let apart = if old {
            self.cut.axis < over
        } else {
            self.cut.axis != over
        };
        apart.then(|| Push::of([(0, self.cut.axis)])).flatten()
    }

    fn reduce(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        let axes = self.attr_or_input("axes", 1)?;
        if axes.is_empty() {
            return None;
        }
        let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?;
        let own = if self.node.int("keepdims", 1) != 0 {
            self.cut.axis
        } else {
            (0..rank).filter(|a| !axes.contains(a)).nth(self.cut.axis)?
        };
        (!axes.contains(&own)).then(|| Push::of([(0, own)])).flatten()
    }

    fn transpose(&self) -> Option<Push> {
        let own = match self.node.ints("perm") {
            Some(perm) => usize::try_from(*perm.get(self.cut.axis)?).ok()?,
            None => self.dims(0)?.len().checked_sub(self.cut.axis + 1)?,
        };
        Push::of([(0, own)])
    }

    /// Where the axis stays an axis of its own: as much lies left of it before
    /// and after.
    fn reshape(&self) -> Option<Push> {
        let (from, to) = (self.dims(0)?, self.out_dims()?);
        let axis = self.cut.axis;
        let of = to.get(axis)?;
        let left = product(&to[..axis]);
        let own =
            (0..from.len()).find(|i| self.same(&from[*i], of) && self.same(&product(&from[..*i]), &left))?;
        let asked = self.cx.ints(self.id, 1);
        let mut shape = Vec::with_capacity(to.len());
        for (k, dim) in to.iter().enumerate() {
            let size = self.cx.analysis.space.size(dim);
            let entry = if k == axis {
                1
            } else if let Some(entry) = asked.as_ref().and_then(|a| a.get(k)).filter(|e| **e != 0) {
                *entry
            } else if k != own && from.get(k) == Some(dim) {
                0
            } else {
                match size {
                    Some(size) if size > 0 => i64::try_from(size).ok()?,
                    _ => -1,
                }
            };
            shape.push(entry);
        }
        if shape.iter().filter(|e| **e == -1).count() > 1 {
            return None;
        }
        Some(Push {
            inputs: vec![(0, own)],
            constants: vec![(1, shape)],
        })
    }

    fn same(&self, a: &Dim, b: &Dim) -> bool {
        let size = |d: &Dim| self.cx.analysis.space.size(d);
        a == b || size(a).is_some() && size(a) == size(b)
    }

    fn unsqueeze(&self) -> Option<Push> {
        let axes = self.attr_or_input("axes", 1)?;
        let rank = self.dims(0)?.len() + axes.len();
        let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?;
        if axes.contains(&self.cut.axis) {
            return None;
        }
        let before = axes.iter().filter(|a| **a < self.cut.axis).count();
        Push::of([(0, self.cut.axis.checked_sub(before)?)])
    }

    fn squeeze(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        let axes = self.attr_or_input("axes", 1)?;
        let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?;
        let own = (0..rank).filter(|a| !axes.contains(a)).nth(self.cut.axis)?;
        Push::of([(0, own)])
    }

    fn concat(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        if axis(self.node.int("axis", 0), rank)? == self.cut.axis {
            return None;
        }
        let cuts: Vec<(usize, usize)> = (0..self.node.inputs.len()).map(|i| (i, self.cut.axis)).collect();
        Push::of(cuts)
    }

    fn split(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        if axis(self.node.int("axis", 0), rank)? == self.cut.axis {
            return None;
        }
        Push::of([(0, self.cut.axis)])
    }

    /// A slice of other axes, or one that starts where the axis does.
    fn slice(&self) -> Option<Push> {
        let rank = self.dims(0)?.len();
        let axes = self.cx.ints(self.id, 3)?;
        for (k, a) in axes.iter().enumerate() {
            if axis(*a, rank)? != self.cut.axis {
                continue;
            }
            let start = *self.cx.ints(self.id, 1)?.get(k)?;
            let end = *self.cx.ints(self.id, 2)?.get(k)?;
            let step = !self.has(4) || self.cx.ints(self.id, 4)?.get(k) == Some(&1);
            if start != 0 || !step || self.cut.at < 0 || end <= self.cut.at {
                return None;
            }
        }
        let mut push = Push::of([(0, self.cut.axis)])?;
        let bounds = || (1..self.node.inputs.len()).filter(|i| self.has(*i));
        let computed = |i: usize| {
            let value = self.cx.graph.input(self.id, i);
            value.is_some_and(|v| !self.cx.analysis.facts(v).constant)
        };
        if bounds().any(computed) {
            // All of them: they are of one type. Where one is not known, the
            // shapes that they come from are needed.
            let known: Option<Vec<_>> = bounds().map(|i| Some((i, self.cx.ints(self.id, i)?))).collect();
            push.constants = known.unwrap_or_default();
        }
        Some(push)
    }

    fn gather(&self) -> Option<Push> {
        let (data, indices) = (self.dims(0)?.len(), self.dims(1)?.len());
        let at = axis(self.node.int("axis", 0), data)?;
        match self.cut.axis {
            a if a < at => Push::of([(0, a)]),
            a if a < at + indices => Push::of([(1, a - at)]),
            a => Push::of([(0, a + 1 - indices)]),
        }
    }

    /// One scale for all, or scales along another axis.
    fn quantise(&self) -> Option<Push> {
        if self.node.int("block_size", 0) != 0 {
            return None;
        }
        let scale = self.dims(1)?;
        let whole = scale.iter().all(Dim::is_one);
        let rank = self.dims(0)?.len();
        (whole || axis(self.node.int("axis", 1), rank)? != self.cut.axis)
            .then(|| Push::of([(0, self.cut.axis)]))
            .flatten()
    }

    /// `Attention` of the standard operator set: one query.
    fn attention(&self) -> Option<Push> {
        if self.node.int("is_causal", 0) != 0 || (4..6).any(|i| self.has(i)) {
            return None;
        }
        let query = self.dims(0)?;
        let own = match query.len() {
            3 => 1,
            4 => 2,
            _ => return None,
        };
        if self.cut.axis != own {
            return None;
        }
        let mut cuts = vec![(0, own)];
        if self.has(3) {
            cuts.extend(self.rows_of_mask(3, &query[own])?);
        }
        Push::of(cuts)
    }

    /// The fused attention whose query is an input of its own.
    fn multi_head(&self) -> Option<Push> {
        let packed = !self.has(1) || !self.has(2);
        let past = (6..self.node.inputs.len()).any(|i| self.has(i));
        if packed || past || self.node.int("unidirectional", 0) != 0 || self.cut.axis != 1 {
            return None;
        }
        let query = self.dims(0)?;
        if query.len() != 3 || self.dims(1)?.len() != 3 || self.has(4) && self.dims(4)?.len() > 2 {
            return None;
        }
        let mut cuts = vec![(0, 1)];
        if self.has(5) {
            cuts.extend(self.rows_of_mask(5, &query[1])?);
        }
        Push::of(cuts)
    }

    /// The axis before the last of what is added to the scores.
    fn rows_of_mask(&self, input: usize, queries: &Dim) -> Option<Option<(usize, usize)>> {
        let dims = self.dims(input)?;
        let Some(axis) = dims.len().checked_sub(2) else {
            return Some(None);
        };
        let own = &dims[axis];
        if own.is_one() {
            Some(None)
        } else if self.cut.is_end() || own == queries {
            Some(Some((input, axis)))
        } else {
            None
        }
    }
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().cloned().fold(Dim::one(), Dim::times)
}
