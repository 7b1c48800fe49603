//! Quantisation: values keep their axes, scales follow them.

use super::contraction::{join_vector, product};
use crate::axes::dim::Dim;
use crate::axes::op::Op;

/// `QuantizeLinear`, `DequantizeLinear`: a scale per tensor, per axis, or per
/// block (not followed).
pub(super) fn linear(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    if op.node().int("block_size", 0) != 0 {
        return None;
    }
    for input in [1, 2] {
        if !op.has(input) {
            continue;
        }
        let rank = op.dims(input)?.len();
        if rank == 1 && !x.is_empty() {
            let axis = op.axis(op.node().int("axis", 1), x.len()).unwrap_or(0);
            op.join_input(input, 0, &x[axis]);
        } else if rank > 1 {
            return None;
        }
    }
    op.set(0, x);
    Some(())
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
    op.set(0, out);
    Some(())
}
