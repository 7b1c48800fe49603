//! Sequences of tensors: exporters that do not optimise split a packed projection
//! into a sequence and pick its parts by constant positions.

use super::parts;
use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::algebra::space::Freeze;
use crate::axes::op::Op;

/// A longer sequence is not followed.
const MOST: usize = 4096;

/// `SplitToSequence`: parts of one length (the last may be shorter), of given
/// lengths, or of one entry each.
pub(super) fn split(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", 0), input.len())?;
    let total = op.a.space.size(&input[axis])?;
    if !op.has(1) {
        return single(op, &input, axis, total);
    }
    let scalar = op.dims(1)?.is_empty();
    let sizes = op.ints(1)?;
    let lengths: Vec<usize> = sizes
        .iter()
        .map(|i| usize::try_from(op.a.space.value(i).as_const()?).ok())
        .collect::<Option<_>>()?;
    let lengths = match (scalar, lengths.as_slice()) {
        (true, [each]) if *each > 0 && total.div_ceil(*each) <= MOST => (0..total.div_ceil(*each))
            .map(|k| (*each).min(total - k * each))
            .collect(),
        (true, _) => return None,
        (false, _) => lengths,
    };
    let all = lengths
        .iter()
        .try_fold(0usize, |n, length| n.checked_add(*length));
    if all != Some(total) || lengths.len() > MOST {
        return None;
    }
    let cut = parts::cuts(op, &input[axis], &lengths);
    if scalar {
        op.a.even_splits.push((op.id, cut.clone()));
    } else {
        for (k, part) in cut.iter().enumerate() {
            op.needs(1, k, sizes[k].clone(), Int::Dim(part.clone()));
        }
    }
    let elements = cut.into_iter().map(|part| {
        let mut dims = input.clone();
        dims[axis] = part;
        dims
    });
    op.set_sequence(elements.collect());
    Some(())
}

/// One entry each, with or without the axis.
fn single(op: &mut Op, input: &[Dim], axis: usize, total: usize) -> Option<()> {
    if total > MOST {
        return None;
    }
    op.freeze(&input[axis], "it becomes a sequence of tensors");
    let mut element = input.to_vec();
    if op.node().int("keepdims", 1) == 0 {
        element.remove(axis);
    } else {
        element[axis] = Dim::one();
    }
    op.set_sequence(vec![element; total]);
    Some(())
}

/// `SequenceConstruct`: the inputs in order.
pub(super) fn construct(op: &mut Op) -> Option<()> {
    let count = op.node().inputs.len();
    let elements: Vec<Vec<Dim>> = (0..count).map(|k| op.dims(k)).collect::<Option<_>>()?;
    op.set_sequence(elements);
    Some(())
}

/// `SequenceAt` with a position that is known.
pub(super) fn at(op: &mut Op) -> Option<()> {
    let elements = op.sequence(0)?;
    let at = *op.values(1)?.first()?;
    let at = op.axis(at, elements.len())?;
    op.set(0, elements[at].clone());
    Some(())
}

/// `SequenceLength`.
pub(super) fn length(op: &mut Op) -> Option<()> {
    let count = i64::try_from(op.sequence(0)?.len()).ok()?;
    op.set(0, vec![]);
    op.set_ints(0, vec![Int::Const(count)]);
    Some(())
}

/// `ConcatFromSequence`: one after another along an axis, or along a new one.
pub(super) fn concat(op: &mut Op) -> Option<()> {
    let elements = op.sequence(0)?;
    let first = elements.first()?.clone();
    if elements.iter().any(|e| e.len() != first.len()) {
        return None;
    }
    let stack = op.node().int("new_axis", 0) != 0;
    let axis = op.axis(op.node().int("axis", 0), first.len() + usize::from(stack))?;
    let mut out = first;
    for element in &elements[1..] {
        for (k, slot) in out.iter_mut().enumerate() {
            if stack || k != axis {
                *slot = op.join(slot, &element[k]);
            }
        }
    }
    if stack {
        let why = Freeze {
            node: Some(op.id),
            why: "it counts tensors laid together".into(),
        };
        let count = op.a.space.fixed(elements.len(), why);
        out.insert(axis, count);
    } else {
        out[axis] = parts::together(op, elements.iter().map(|e| e[axis].clone()).collect());
    }
    op.set(0, out);
    Some(())
}
