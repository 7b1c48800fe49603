//! Elementwise operators: aligned dimensions are the same.

use crate::axes::int::{Int, Op as IntOp};
use crate::axes::op::Op;
use crate::tensor::Elem;

/// Any number of operands with broadcasting.
pub(super) fn broadcast(op: &mut Op) -> Option<()> {
    let inputs: Vec<usize> = (0..op.node().inputs.len()).filter(|i| op.has(*i)).collect();
    integers(op, &inputs);
    let dims = op.broadcast(&inputs)?;
    op.set(0, dims);
    Some(())
}

/// One operand; further inputs are scalars.
pub(super) fn unary(op: &mut Op) -> Option<()> {
    let dims = op.dims(0)?;
    if let Some(ints) = op.ints(0) {
        let keeps = match op.node().op.as_str() {
            "Identity" => true,
            "Cast" => Elem::from_onnx(i32::try_from(op.node().int("to", 0)).unwrap_or(0))
                .is_some_and(|e| !e.is_float() && e != Elem::Bool),
            _ => false,
        };
        match (keeps, op.node().op.as_str()) {
            (true, _) => op.set_ints(0, ints),
            (false, "Neg") => {
                let ints = ints
                    .into_iter()
                    .map(|i| Int::op(IntOp::Sub, Int::Const(0), i))
                    .collect();
                op.set_ints(0, ints);
            }
            _ => ints.iter().for_each(|i| {
                op.drop_int(i);
            }),
        }
    }
    let outputs = op.node().outputs.len();
    for output in 0..outputs {
        op.set(output, dims.clone());
    }
    Some(())
}

/// An activation and an optional bias vector.
pub(super) fn with_bias(op: &mut Op) -> Option<()> {
    let inputs: Vec<usize> = (0..2).filter(|i| op.has(*i)).collect();
    let dims = op.broadcast(&inputs)?;
    op.set(0, dims);
    Some(())
}

/// Follows integer arithmetic element by element.
fn integers(op: &mut Op, inputs: &[usize]) {
    let tracked: Vec<Option<Vec<Int>>> = inputs.iter().map(|i| op.ints(*i)).collect();
    if tracked.iter().all(Option::is_none) {
        return;
    }
    let length = tracked.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let whole: Option<Vec<&Vec<Int>>> = tracked.iter().map(Option::as_ref).collect();
    let whole = whole.filter(|all| all.iter().all(|v| v.len() == length || v.len() == 1));
    let Some(all) = whole else {
        for int in tracked.iter().flatten().flatten() {
            op.drop_int(int);
        }
        return;
    };
    let at = |v: &Vec<Int>, k: usize| if v.len() == 1 { v[0].clone() } else { v[k].clone() };
    let mut out = Vec::with_capacity(length);
    for k in 0..length {
        let row: Vec<Int> = all.iter().map(|v| at(v, k)).collect();
        out.push(element(op, &row));
    }
    op.set_ints(0, out);
}

fn element(op: &mut Op, row: &[Int]) -> Int {
    let known = match (op.node().op.as_str(), row) {
        ("Add", [a, b]) => Some(Int::op(IntOp::Add, a.clone(), b.clone())),
        ("Sub", [a, b]) => Some(Int::op(IntOp::Sub, a.clone(), b.clone())),
        ("Mul", [a, b]) => Some(Int::op(IntOp::Mul, a.clone(), b.clone())),
        ("Div", [a, b]) => Some(Int::op(IntOp::Div, a.clone(), b.clone())),
        ("Equal", [a, b]) => equal(op, a, b).map(|v| Int::Const(i64::from(v))),
        ("Where", [Int::Const(c), a, b]) => Some(if *c != 0 { a.clone() } else { b.clone() }),
        ("Min" | "Max", [a, b]) if op.a.space.value(a) == op.a.space.value(b) => Some(a.clone()),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let mut last = Int::Const(0);
        for int in row {
            last = op.drop_int(int);
        }
        last
    })
}

/// Whether two integers are equal, where that does not depend on a run or on
/// what is pruned: two constants, or a size against a negative number.
fn equal(op: &Op, a: &Int, b: &Int) -> Option<bool> {
    match (a, b) {
        (Int::Const(x), Int::Const(y)) => Some(x == y),
        (Int::Const(n), Int::Dim(_)) | (Int::Dim(_), Int::Const(n)) if *n < 0 => Some(false),
        (Int::Dim(_), Int::Dim(_)) if op.a.space.value(a) == op.a.space.value(b) => Some(true),
        _ => None,
    }
}
