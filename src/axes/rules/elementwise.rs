//! Elementwise operators: aligned dimensions are the same.

use crate::axes::algebra::elements::{self, Elements};
use crate::axes::algebra::int::{Int, IntOp};
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
                .is_some_and(|e| !e.is_float() && (e != Elem::Bool || all_flags(&ints))),
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
            _ => {
                let out = ints
                    .iter()
                    .map(|i| element(op, std::slice::from_ref(i)))
                    .collect();
                if matches!(op.node().op.as_str(), "Not" | "Abs" | "Sign") {
                    op.set_ints(0, out);
                }
            }
        }
    }
    let outputs = op.node().outputs.len();
    for output in 0..outputs {
        op.set(output, dims.clone());
    }
    Some(())
}

/// Whether a cast to a boolean keeps all values.
fn all_flags(ints: &[Int]) -> bool {
    ints.iter().all(|i| matches!(i, Int::Const(0 | 1)))
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
    const MOST: usize = 1024;
    let tracked: Vec<usize> = inputs.iter().copied().filter(|i| op.ints(*i).is_some()).collect();
    if tracked.is_empty() {
        return;
    }
    let operands: Vec<Elements> = inputs.iter().filter_map(|i| op.elements(*i)).collect();
    let shape = operands
        .iter()
        .try_fold(Vec::new(), |shape, e| elements::broadcast(&shape, &e.shape))
        .filter(|s| operands.len() == inputs.len() && elements::at_most(s, MOST));
    let spread: Option<Vec<Elements>> = shape.and_then(|s| operands.iter().map(|e| e.expanded(&s)).collect());
    let Some(spread) = spread else {
        for index in tracked {
            for int in op.ints(index).unwrap_or_default() {
                op.drop_int(&int);
            }
        }
        return;
    };
    let count = spread.first().map_or(0, |e| e.ints.len());
    let mut out = Vec::with_capacity(count);
    for k in 0..count {
        let row: Vec<Int> = spread.iter().filter_map(|e| e.ints.get(k).cloned()).collect();
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
        // Frozen, what is read keeps the value that it has in the file.
        let values: Option<Vec<i64>> = row.iter().map(|i| op.a.space.value(i).as_const()).collect();
        let folded = values.and_then(|v| fold(&op.node().op, op.node().int("fmod", 0) != 0, &v));
        let mut last = Int::Const(0);
        for int in row {
            last = op.drop_int(int);
        }
        folded.map_or(last, Int::Const)
    })
}

/// The value of an operator on known integers; booleans are 0 and 1.
fn fold(op: &str, truncated: bool, row: &[i64]) -> Option<i64> {
    let flag = |b: bool| Some(i64::from(b));
    match (op, row) {
        ("Mod", [a, b]) if truncated => a.checked_rem(*b),
        ("Mod", [a, b]) => {
            let rest = a.checked_rem(*b)?;
            // The sign of the divisor.
            Some(if rest != 0 && (rest < 0) != (*b < 0) {
                rest + b
            } else {
                rest
            })
        }
        ("Min", row) => row.iter().min().copied(),
        ("Max", row) => row.iter().max().copied(),
        ("Equal", [a, b]) => flag(a == b),
        ("Less", [a, b]) => flag(a < b),
        ("LessOrEqual", [a, b]) => flag(a <= b),
        ("Greater", [a, b]) => flag(a > b),
        ("GreaterOrEqual", [a, b]) => flag(a >= b),
        ("And", [a, b]) => flag(*a != 0 && *b != 0),
        ("Or", [a, b]) => flag(*a != 0 || *b != 0),
        ("Xor", [a, b]) => flag((*a != 0) != (*b != 0)),
        ("Where", [c, a, b]) => Some(if *c != 0 { *a } else { *b }),
        ("Pow", [a, b]) => a.checked_pow(u32::try_from(*b).ok()?),
        ("Not", [a]) => flag(*a == 0),
        ("Abs", [a]) => a.checked_abs(),
        ("Sign", [a]) => Some(a.signum()),
        _ => None,
    }
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

/// `BiasDropout`: data, bias, residual.
pub(super) fn with_bias_and_residual(op: &mut Op) -> Option<()> {
    let inputs: Vec<usize> = (0..3).filter(|i| op.has(*i)).collect();
    let dims = op.broadcast(&inputs)?;
    op.set(0, dims.clone());
    op.set(1, dims);
    Some(())
}
