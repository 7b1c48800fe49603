//! Quantisation: values keep their axes, scales follow them.

use super::contraction::{join_vector, product};
use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

const BLOCK: &str = "it lies inside a block of quantised numbers";

/// `QuantizeLinear`, `DequantizeLinear`: a scale per tensor, per axis, or per
/// block along an axis.
pub(super) fn linear(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    let block = usize::try_from(op.node().int("block_size", 0)).ok()?;
    for input in [1, 2] {
        if !op.has(input) {
            continue;
        }
        let rank = op.dims(input)?.len();
        if block > 0 && rank == x.len() {
            join_blocks(op, input, &x, block)?;
        } else if rank == 1 && !x.is_empty() {
            let axis = op.axis(op.node().int("axis", 1), x.len()).unwrap_or(0);
            op.join_input(input, 0, &x[axis]);
        } else if rank > 1 {
            return None;
        }
    }
    op.set(0, x);
    Some(())
}

/// Joins an input that has an entry per block of `x` along an axis.
fn join_blocks(op: &mut Op, input: usize, x: &[Dim], block: usize) -> Option<()> {
    let along = op.axis(op.node().int("axis", 1), x.len())?;
    for (axis, dim) in x.iter().enumerate().filter(|(axis, _)| *axis != along) {
        op.join_input(input, axis, dim);
    }
    let count = op.dims(input)?[along].clone();
    whole_blocks(op, &x[along], &count, block);
    Some(())
}

/// An axis that is quantised in blocks: only whole ones can go. `count` is the
/// number of blocks.
fn whole_blocks(op: &mut Op, axis: &Dim, count: &Dim, block: usize) {
    let blocks = op.a.space.size(count).and_then(|n| n.checked_mul(block));
    if blocks.is_some() && blocks == op.a.space.size(axis) {
        let inner = op.a.space.fresh(block);
        op.freeze(&inner, BLOCK);
        op.unify(axis, &count.clone().times(inner));
    } else {
        op.freeze(axis, BLOCK);
        op.freeze(count, BLOCK);
    }
}

/// `DynamicQuantizeLinear`: one scale for the tensor, computed from its range.
pub(super) fn dynamic(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    op.set(0, x);
    op.set(1, vec![]);
    op.set(2, vec![]);
    Some(())
}

/// Matrix product of a (dynamically) quantised activation and a quantised
/// weight; scales, zero points and bias per column.
pub(super) fn matmul(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(1)?);
    let out: Vec<Dim> = product(op, &a, &b, [false; 2])?;
    let per_column: &[usize] = match op.node().op.as_str() {
        "MatMulIntegerToFloat" => &[3, 5, 6],
        _ => &[2, 3, 4],
    };
    for &input in per_column {
        join_vector(op, input, out.last().cloned());
    }
    let bias = per_column.last().copied().filter(|input| op.has(*input));
    if let Some(last) = op.a.contractions.last_mut() {
        last.bias = bias;
    }
    op.set(0, out);
    Some(())
}

/// `MatMulNBits`: columns are whole rows of the packed weight; the contracted axis
/// is blocks of quantised numbers, of which only whole blocks can go.
pub(super) fn blocks(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(1)?);
    let (last, rows) = a.split_last()?;
    let [columns, count, packed] = &b[..] else {
        return None;
    };
    let size = |name: &str| usize::try_from(op.node().int(name, 0)).ok().filter(|n| *n > 0);
    let (width, block, bits) = (size("K")?, size("block_size")?, size("bits").unwrap_or(4));
    if op.a.space.size(columns) != size("N") || op.has(4) {
        return None;
    }
    op.freeze(packed, BLOCK);
    if op.a.space.size(last).is_some_and(|n| n != width) {
        return None;
    }
    whole_blocks(op, last, count, block);
    for input in [2, 3] {
        let Some(own) = op.dims(input) else { continue };
        let total = own.iter().cloned().fold(Dim::one(), Dim::times);
        if op.a.space.size(&total) == op.a.space.size(&columns.clone().times(count.clone())) {
            op.unify(&total, &columns.clone().times(count.clone()));
        } else {
            // Zero points of several blocks share a byte.
            op.freeze(count, BLOCK);
            let rest = op.a.space.size(&total)?.checked_div(op.a.space.size(columns)?)?;
            let rest = op.a.space.fresh(rest);
            op.freeze(&rest, BLOCK);
            op.unify(&total, &columns.clone().times(rest));
        }
    }
    if bits > 8 {
        op.freeze(count, BLOCK);
    }
    join_vector(op, 5, Some(columns.clone()));
    op.needs_attr("K", None, Int::Dim(last.clone()));
    op.needs_attr("N", None, Int::Dim(columns.clone()));
    let constant = [op.is_constant(0), op.is_constant(1)];
    op.contract(Contraction {
        node: op.id,
        inputs: [0, 1],
        constant,
        contracted: vec![(rows.len(), 1, last.clone())],
        batch: vec![],
        free: [rows.to_vec(), vec![columns.clone()]],
        bias: op.has(5).then_some(5),
        inner: false,
    });
    let mut out = rows.to_vec();
    out.push(columns.clone());
    op.set(0, out);
    Some(())
}

/// `GatherBlockQuantized`: rows of a table in blocks of quantised numbers.
pub(super) fn embedding(op: &mut Op) -> Option<()> {
    const WHY: &str = "it is an axis of a quantised table";
    let (indices, scales) = (op.dims(1)?, op.dims(2)?);
    let block = usize::try_from(op.node().int("block_size", 128)).ok()?;
    let hidden = op.a.space.size(scales.last()?)?.checked_mul(block)?;
    for input in [0, 2, 3] {
        op.freeze_input(input, WHY);
    }
    let hidden = op.a.space.fresh(hidden);
    op.freeze(&hidden, WHY);
    let mut out = indices;
    out.push(hidden);
    op.set(0, out);
    Some(())
}

/// Products of quantised numbers with a quantised result (`QLinearMatMul`,
/// `QGemm`): a masked unit would be the zero point of what goes in, not zero, so
/// nothing here shrinks; shapes pass.
pub(super) fn integer_product(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(3)?);
    let turned = op.node().int("transB", 0) != 0;
    op.give_up("it is an axis of a product of quantised numbers");
    let (column, inner) = match (b.len(), turned) {
        (2, true) => (0, 1),
        (rank, _) => (rank.checked_sub(1)?, rank.saturating_sub(2)),
    };
    let (last, rows) = a.split_last()?;
    // Recorded, so that the axes that it stops are listed with the reason.
    if b.len() == 2 {
        let last = op.join(last, &b[inner]);
        let constant = [op.is_constant(0), op.is_constant(3)];
        op.contract(Contraction {
            node: op.id,
            inputs: [0, 3],
            constant,
            contracted: vec![(rows.len(), inner, last)],
            batch: vec![],
            free: [rows.to_vec(), vec![b[column].clone()]],
            bias: None,
            inner: false,
        });
    }
    let mut out = rows.to_vec();
    out.push(b[column].clone());
    op.set(0, out);
    Some(())
}

/// `QLinearAdd`, `QLinearMul`.
pub(super) fn integer_sum(op: &mut Op) -> Option<()> {
    let out = op.broadcast(&[0, 3])?;
    op.give_up("it is an axis of a sum of quantised numbers");
    op.set(0, out);
    Some(())
}
