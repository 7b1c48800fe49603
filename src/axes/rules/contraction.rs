//! MatMul and Gemm.

use crate::axes::algebra::dim::Dim;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

/// `MatMul`, `MatMulInteger`, `FusedMatMul`: batch axes and the contracted axis
/// agree.
pub(super) fn matmul(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(1)?);
    let given = |name: &str| op.node().int(name, 0) != 0;
    let flip = [given("transA"), given("transB")];
    let turns = [
        turn(a.len(), given("transBatchA")),
        turn(b.len(), given("transBatchB")),
    ];
    let turned = |dims: &[Dim], turn: &[usize]| turn.iter().map(|k| dims[*k].clone()).collect::<Vec<_>>();
    let out = product(op, &turned(&a, &turns[0]), &turned(&b, &turns[1]), flip)?;
    if let Some(last) = op.a.contractions.last_mut() {
        for (x, y, _) in &mut last.contracted {
            (*x, *y) = (turns[0][*x], turns[1][*y]);
        }
    }
    // Zero points per row of the first and per column of the second operand.
    if op.node().op == "MatMulInteger" {
        let rank = out.len();
        join_vector(op, 2, out.get(rank.wrapping_sub(2)).cloned());
        join_vector(op, 3, out.last().cloned());
    }
    op.set(0, out);
    Some(())
}

/// The order of axes in which a product sees an operand: with `transBatch` the
/// first axis comes after the batch axes.
fn turn(rank: usize, batch: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    if batch && rank > 2 {
        order[..rank - 1].rotate_left(1);
    }
    order
}

/// Joins a vector of one entry per row or column, where it is given.
pub(super) fn join_vector(op: &mut Op, input: usize, dim: Option<Dim>) {
    let Some(rank) = op.dims(input).map(|d| d.len()) else {
        return;
    };
    match (rank, dim) {
        (1.., Some(dim)) => {
            op.join_input(input, rank - 1, &dim);
        }
        (1.., None) => op.freeze_input(input, "it belongs to no axis"),
        _ => {}
    }
}

/// The dimensions of a matrix product of inputs 0 and 1; records it.
pub(super) fn product(op: &mut Op, a: &[Dim], b: &[Dim], flip: [bool; 2]) -> Option<Vec<Dim>> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (ra, rb) = (a.len(), b.len());
    // Axes of rows and columns; a vector has only the contracted one.
    let (row, inner_a) = match (ra, flip[0]) {
        (1, _) => (None, 0),
        (_, false) => (Some(ra - 2), ra - 1),
        (_, true) => (Some(ra - 1), ra - 2),
    };
    let (inner_b, column) = match (rb, flip[1]) {
        (1, _) => (0, None),
        (_, false) => (rb - 2, Some(rb - 1)),
        (_, true) => (rb - 1, Some(rb - 2)),
    };
    let (ba, bb) = (&a[..ra.saturating_sub(2)], &b[..rb.saturating_sub(2)]);
    let mut batch = Vec::new();
    for k in (0..ba.len().max(bb.len())).rev() {
        let x = ba
            .len()
            .checked_sub(k + 1)
            .map_or_else(Dim::one, |i| ba[i].clone());
        let y = bb
            .len()
            .checked_sub(k + 1)
            .map_or_else(Dim::one, |i| bb[i].clone());
        batch.push(op.join(&x, &y));
    }
    let inner = op.join(&a[inner_a], &b[inner_b]);
    let rows: Vec<Dim> = row.map(|i| a[i].clone()).into_iter().collect();
    let columns: Vec<Dim> = column.map(|i| b[i].clone()).into_iter().collect();
    let out: Vec<Dim> = batch.iter().chain(&rows).chain(&columns).cloned().collect();
    let constant = [op.is_constant(0), op.is_constant(1)];
    op.contract(Contraction {
        node: op.id,
        inputs: [0, 1],
        constant,
        contracted: vec![(inner_a, inner_b, inner)],
        batch,
        free: [rows, columns],
        bias: None,
        inner: false,
    });
    Some(out)
}

/// `GemmFastGelu`: rows of any rank, a matrix and a bias.
pub(super) fn with_bias(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(1)?);
    let out = product(op, &a, &b, [false; 2])?;
    join_vector(op, 2, out.last().cloned());
    let bias = op.has(2).then_some(2);
    if let Some(last) = op.a.contractions.last_mut() {
        last.bias = bias;
    }
    op.set(0, out);
    Some(())
}

/// `Gemm`: two matrices and a bias.
pub(super) fn gemm(op: &mut Op) -> Option<()> {
    let (a, b) = (op.dims(0)?, op.dims(1)?);
    if a.len() != 2 || b.len() != 2 {
        return None;
    }
    let flip = [op.node().int("transA", 0) != 0, op.node().int("transB", 0) != 0];
    let out = product(op, &a, &b, flip)?;
    if let Some(bias) = op.dims(2) {
        let shift = out.len().checked_sub(bias.len())?;
        for axis in 0..bias.len() {
            op.join_input(2, axis, &out[axis + shift]);
        }
        if let Some(last) = op.a.contractions.last_mut() {
            last.bias = Some(2);
        }
    }
    op.set(0, out);
    Some(())
}
