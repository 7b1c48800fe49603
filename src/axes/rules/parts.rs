//! Operators that cut axes into parts or lay parts together.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::elements::Elements;
use crate::axes::algebra::int::{Int, IntOp};
use crate::axes::algebra::space::Freeze;
use crate::axes::op::Op;

pub(super) fn concat(op: &mut Op) -> Option<()> {
    let count = op.node().inputs.len();
    let operands: Vec<Vec<Dim>> = (0..count).map(|i| op.dims(i)).collect::<Option<_>>()?;
    let rank = operands.first()?.len();
    if operands.iter().any(|dims| dims.len() != rank) {
        return None;
    }
    let axis = op.axis(op.node().int("axis", 0), rank)?;
    concat_ints(op, axis, &operands);
    let mut out = operands[0].clone();
    for (index, dims) in operands.iter().enumerate().skip(1) {
        for (k, slot) in out.iter_mut().enumerate().filter(|(k, _)| *k != axis) {
            dims.get(k)?;
            *slot = op.join_input(index, k, slot);
        }
    }
    let parts: Vec<Dim> = operands.iter().map(|d| d[axis].clone()).collect();
    out[axis] = together(op, parts);
    op.set(0, out);
    Some(())
}

/// Parts one after another; with a symbolic part only the total is kept.
pub(super) fn together(op: &mut Op, parts: Vec<Dim>) -> Dim {
    let sum = Dim::sum(parts.clone());
    if op.a.space.size(&sum).is_some() {
        return sum;
    }
    op.freeze(
        &sum,
        "it is laid beside an axis whose size is known at run time only",
    );
    let empty = |op: &Op, d: &Dim| op.a.space.value(&Int::Dim(d.clone())).as_const() == Some(0);
    let parts: Vec<Dim> = parts.into_iter().filter(|d| !empty(op, d)).collect();
    let total = parts
        .into_iter()
        .map(Int::Dim)
        .reduce(|a, b| Int::op(IntOp::Add, a, b))
        .unwrap_or(Int::Const(0));
    match total {
        Int::Dim(dim) => dim,
        total => op.a.space.derived(total),
    }
}

fn concat_ints(op: &mut Op, axis: usize, operands: &[Vec<Dim>]) {
    let tracked: Vec<bool> = (0..operands.len()).map(|i| op.ints(i).is_some()).collect();
    if !tracked.contains(&true) {
        return;
    }
    let mut parts = Vec::with_capacity(operands.len());
    for (index, dims) in operands.iter().enumerate() {
        let part = match tracked[index] {
            true => op.elements(index),
            false => opaque(op, dims),
        };
        parts.extend(part);
    }
    let joined = (parts.len() == operands.len())
        .then(|| Elements::joined(&parts, axis))
        .flatten();
    match joined {
        Some(joined) => op.set_ints(0, joined.ints),
        None => {
            for index in 0..operands.len() {
                for int in op.ints(index).unwrap_or_default() {
                    op.drop_int(&int);
                }
            }
        }
    }
}

/// Stands for a small integer tensor whose elements are not known.
fn opaque(op: &mut Op, dims: &[Dim]) -> Option<Elements> {
    const SMALL: usize = 64;
    let shape: Vec<usize> = dims.iter().map(|d| op.a.space.size(d)).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    if count > SMALL {
        return None;
    }
    let ints = (0..count).map(|_| op.drop_int(&Int::Const(0))).collect();
    Elements::new(shape, ints)
}

pub(super) fn split(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", 0), input.len())?;
    let outputs = op.node().outputs.len();
    let from_attr = op.node().ints("split").map(<[i64]>::to_vec);
    let explicit = from_attr.is_some();
    let sizes = match from_attr {
        Some(v) => Some(v.into_iter().map(Int::Const).collect()),
        None if op.has(1) => Some(op.ints(1)?),
        None => None,
    };
    let Some(total) = op.a.space.size(&input[axis]) else {
        return symbolic_split(op, &input, axis, sizes);
    };
    let lengths: Vec<usize> = match &sizes {
        Some(ints) => ints
            .iter()
            .map(|i| usize::try_from(op.a.space.value(i).as_const()?).ok())
            .collect::<Option<_>>()?,
        None => {
            let each = total.div_ceil(outputs.max(1));
            (0..outputs)
                .map(|k| each.min(total.saturating_sub(k * each)))
                .collect()
        }
    };
    let all = lengths
        .iter()
        .try_fold(0usize, |n, length| n.checked_add(*length));
    if all != Some(total) || lengths.len() != outputs {
        return None;
    }
    if let Some(ints) = op.ints(0) {
        let mut rest = &ints[..];
        for (k, length) in lengths.iter().enumerate() {
            let (part, after) = rest.split_at_checked(*length)?;
            op.set_ints(k, part.to_vec());
            rest = after;
        }
    }
    let parts = cuts(op, &input[axis], &lengths);
    for (k, part) in parts.iter().enumerate() {
        match &sizes {
            Some(_) if explicit => op.needs_attr("split", Some(k), Int::Dim(part.clone())),
            Some(ints) => op.needs(1, k, ints[k].clone(), Int::Dim(part.clone())),
            None => {}
        }
        let mut out = input.clone();
        out[axis] = part.clone();
        op.set(k, out);
    }
    if sizes.is_none() {
        op.a.even_splits.push((op.id, parts));
    }
    Some(())
}

/// Consecutive parts of these lengths, which fill the axis.
pub(super) fn cuts(op: &mut Op, dim: &Dim, lengths: &[usize]) -> Vec<Dim> {
    const INSIDE: &str = "a split cuts it inside a factor";
    let mut parts = Vec::with_capacity(lengths.len());
    let mut from = 0;
    for length in lengths {
        let part = match op.a.space.cut(dim, from, from + length) {
            Some(part) => part,
            None => {
                op.freeze(dim, INSIDE);
                let part = op.a.space.fresh(*length);
                op.freeze(&part, INSIDE);
                part
            }
        };
        parts.push(part);
        from += length;
    }
    parts
}

fn symbolic_split(op: &mut Op, input: &[Dim], axis: usize, sizes: Option<Vec<Int>>) -> Option<()> {
    op.freeze(&input[axis], "it is split at run time");
    for k in 0..op.node().outputs.len() {
        let dim = match sizes.as_ref().and_then(|s| s.get(k)) {
            Some(int) => op.a.space.dim_of(&int.clone()),
            None => op.a.space.unknown(),
        };
        let mut out = input.to_vec();
        out[axis] = dim;
        op.set(k, out);
    }
    Some(())
}

pub(super) fn slice(op: &mut Op) -> Option<()> {
    let mut out = op.dims(0)?;
    let list = |op: &mut Op, name: &str, input: usize| -> Option<Vec<Int>> {
        match op.node().ints(name) {
            Some(v) => Some(v.iter().map(|x| Int::Const(*x)).collect()),
            None => op.ints(input),
        }
    };
    let from_attr = op.node().ints("starts").is_some();
    let bounds = list(op, "starts", 1).zip(list(op, "ends", 2));
    let known_axes = op.node().ints("axes").is_some() || !op.has(3) || op.values(3).is_some();
    let known_steps = !op.has(4) || op.values(4).is_some();
    let Some((starts, ends)) = bounds.filter(|_| known_axes && known_steps) else {
        let out = out.iter().map(|_| op.a.space.unknown()).collect();
        op.give_up("it is sliced by numbers that are not followed");
        op.set(0, out);
        return Some(());
    };
    let axes: Vec<i64> = if op.node().ints("axes").is_some() || op.has(3) {
        op.attr_or_input("axes", 3)?
    } else {
        (0..starts.len() as i64).collect()
    };
    let steps = if op.has(4) {
        op.values(4)?
    } else {
        vec![1; starts.len()]
    };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    slice_ints(op, &starts, &ends, &axes, &steps);
    for k in 0..starts.len() {
        let axis = op.axis(axes[k], out.len())?;
        let range = Range {
            entry: k,
            from_attr,
            start: &starts[k],
            end: &ends[k],
            step: steps[k],
        };
        out[axis] = range.of(op, &out[axis].clone());
    }
    op.set(0, out);
    Some(())
}

fn slice_ints(op: &mut Op, starts: &[Int], ends: &[Int], axes: &[i64], steps: &[i64]) {
    if op.ints(0).is_none() {
        return;
    }
    let mut sliced = op.elements(0);
    for k in 0..starts.len() {
        let bounds = (
            op.a.space.value(&starts[k]).as_const(),
            op.a.space.value(&ends[k]).as_const(),
        );
        sliced = match (sliced, bounds) {
            (Some(e), (Some(start), Some(end))) => op
                .axis(axes[k], e.shape.len())
                .and_then(|axis| e.taken(axis, &picks(start, end, steps[k], e.shape[axis]))),
            _ => None,
        };
    }
    op.set_elements(0, sliced);
}

/// The indices that `start:end:step` picks from an axis.
fn picks(start: i64, end: i64, step: i64, size: usize) -> Vec<usize> {
    let Some(stride) = usize::try_from(step.unsigned_abs()).ok().filter(|s| *s > 0) else {
        return Vec::new();
    };
    if step > 0 {
        return (clamp(start, size)..clamp(end, size)).step_by(stride).collect();
    }
    // Going down, the end itself is not taken: -1 stands before the first.
    let n = size as i64;
    let place = |v: i64| if v < 0 { v.saturating_add(n) } else { v }.clamp(-1, n - 1);
    let (from, to) = (place(start), place(end));
    ((to + 1)..=from)
        .rev()
        .step_by(stride)
        .filter_map(|i| usize::try_from(i).ok())
        .collect()
}

/// A slice bound in `0..=size`; negative ones count from the end.
fn clamp(bound: i64, size: usize) -> usize {
    let size = size as i64;
    let bound = if bound < 0 {
        bound.saturating_add(size)
    } else {
        bound
    };
    bound.clamp(0, size) as usize
}

/// No axis is longer: what ends there ends where the axis does. Exporters write the
/// end as the greatest number of 32 or 64 bits, or as a thousand million.
const FAR: i64 = 1 << 24;

/// One `start:end:step` of a Slice.
struct Range<'i> {
    entry: usize,
    from_attr: bool,
    start: &'i Int,
    end: &'i Int,
    step: i64,
}

impl Range<'_> {
    /// The axis after slicing.
    fn of(&self, op: &mut Op, dim: &Dim) -> Dim {
        let (start, end) = (op.a.space.value(self.start), op.a.space.value(self.end));
        let (start_value, end_value) = (start.as_const(), end.as_const());
        let far = |v: i64| v >= FAR;
        let whole = start_value == Some(0)
            && self.step == 1
            && (end_value.is_some_and(far) || end == op.a.space.value(&Int::Dim(dim.clone())));
        if whole {
            if matches!(self.end, Int::Op(..) | Int::Dim(_)) {
                self.needs(op, 2, "ends", self.end, Int::Dim(dim.clone()));
            }
            return dim.clone();
        }
        match (op.a.space.size(dim), start_value, end_value) {
            (Some(size), Some(start), Some(end)) => self.of_known(op, dim, size, start, end),
            _ => {
                op.freeze(dim, "it is sliced at run time");
                for bound in [self.start, self.end] {
                    op.a.space
                        .freeze_int(bound, Some(op.id), "it is where a slice begins or ends");
                }
                // An axis whose size is known at run time only may be shorter than
                // where several entries end.
                let beyond = op.a.space.size(dim).is_none()
                    && end_value
                        .is_some_and(|v| !far(v) && v > start_value.unwrap_or(0).max(0).saturating_add(1));
                if self.step != 1 || beyond {
                    return op.a.space.unknown();
                }
                let end = match end_value {
                    Some(v) if far(v) => Int::Dim(dim.clone()),
                    Some(v) if v < 0 => Int::op(IntOp::Add, Int::Dim(dim.clone()), Int::Const(v)),
                    _ => self.end.clone(),
                };
                let start = match start_value {
                    Some(v) if v < 0 => Int::op(IntOp::Add, Int::Dim(dim.clone()), Int::Const(v)),
                    _ => self.start.clone(),
                };
                let length = Int::op(IntOp::Sub, end, start);
                op.a.space.dim_of(&length)
            }
        }
    }

    fn of_known(&self, op: &mut Op, dim: &Dim, size: usize, start: i64, end: i64) -> Dim {
        if self.step != 1 {
            if let Some(rows) = self.every(op, dim, size, start, end) {
                return rows;
            }
            op.freeze(dim, "it is sliced with a step");
            let out = op.a.space.fresh(picks(start, end, self.step, size).len());
            op.freeze(&out, "it is sliced with a step");
            return out;
        }
        let (from, to) = (clamp(start, size), clamp(end, size));
        let to = to.max(from);
        let cuts = (
            op.a.space.cut(dim, 0, from),
            op.a.space.cut(dim, from, to),
            op.a.space.cut(dim, to, size),
        );
        let (Some(before), Some(taken), Some(after)) = cuts else {
            op.freeze(dim, "a slice cuts it inside a factor");
            let out = op.a.space.fresh(to - from);
            op.freeze(&out, "a slice cuts it inside a factor");
            return out;
        };
        let plus = |a: &Dim, b: &Dim| Int::op(IntOp::Add, Int::Dim(a.clone()), Int::Dim(b.clone()));
        let minus = |i: Int| Int::op(IntOp::Sub, Int::Const(0), i);
        if start > 0 {
            self.needs(op, 1, "starts", self.start, Int::Dim(before.clone()));
        } else if start < 0 && from > 0 {
            self.needs(op, 1, "starts", self.start, minus(plus(&taken, &after)));
        }
        // A bound beyond the end is clamped whatever the size.
        if end < 0 {
            self.needs(op, 2, "ends", self.end, minus(Int::Dim(after)));
        } else if to < size || matches!(self.end, Int::Op(..)) {
            self.needs(op, 2, "ends", self.end, plus(&before, &taken));
        }
        taken
    }

    /// Every `step`-th entry of the whole axis: one of interleaved parts, as in
    /// `gate_up[..., ::2]`. The axis is rows of `step` entries then.
    fn every(&self, op: &mut Op, dim: &Dim, size: usize, start: i64, end: i64) -> Option<Dim> {
        let step = usize::try_from(self.step).ok().filter(|s| *s > 1)?;
        let first = usize::try_from(start).ok().filter(|s| *s < step)?;
        let whole = usize::try_from(end).ok()? >= size && size.is_multiple_of(step);
        if !whole || first >= size {
            return None;
        }
        let why = Freeze {
            node: Some(op.id),
            why: "it counts interleaved parts".into(),
        };
        let rows = op.a.space.fresh(size / step);
        let parts = op.a.space.fixed(step, why);
        op.unify(dim, &rows.clone().times(parts));
        if matches!(self.end, Int::Op(..) | Int::Dim(_)) {
            self.needs(op, 2, "ends", self.end, Int::Dim(dim.clone()));
        }
        Some(rows)
    }

    fn needs(&self, op: &mut Op, input: usize, name: &'static str, actual: &Int, needed: Int) {
        if self.from_attr {
            op.needs_attr(name, Some(self.entry), needed);
        } else {
            op.needs(input, self.entry, actual.clone(), needed);
        }
    }
}

/// `Pad`: axes that get nothing stay as they are; with amounts that are known
/// at run time only, every axis may get some.
pub(super) fn pad(op: &mut Op) -> Option<()> {
    const PADDED: &str = "it is padded";
    let input = op.dims(0)?;
    let amounts: Option<Vec<Int>> = match op.node().ints("pads") {
        Some(pads) => Some(pads.iter().map(|n| Int::Const(*n)).collect()),
        None => op.ints(1),
    };
    let axes: Option<Vec<usize>> = if op.has(3) {
        op.values(3)
            .and_then(|axes| axes.into_iter().map(|a| op.axis(a, input.len())).collect())
    } else {
        Some((0..input.len()).collect())
    };
    let given = amounts.zip(axes).filter(|(a, x)| a.len() == 2 * x.len());
    let mut out = input.clone();
    let Some((amounts, axes)) = given else {
        for (dim, slot) in input.iter().zip(&mut out) {
            op.freeze(dim, PADDED);
            *slot = op.a.space.unknown();
        }
        op.set(0, out);
        return Some(());
    };
    for (k, axis) in axes.iter().enumerate() {
        let total = Int::op(IntOp::Add, amounts[k].clone(), amounts[k + axes.len()].clone());
        for amount in [&amounts[k], &amounts[k + axes.len()]] {
            op.a.space.freeze_int(amount, Some(op.id), PADDED);
        }
        let none = |op: &Op, int: &Int| op.a.space.value(int).as_const() == Some(0);
        if none(op, &amounts[k]) && none(op, &amounts[k + axes.len()]) {
            continue;
        }
        op.freeze(&input[*axis], PADDED);
        let total = Int::op(IntOp::Add, Int::Dim(input[*axis].clone()), total);
        out[*axis] = op.a.space.dim_of(&total);
        op.freeze(&out[*axis].clone(), PADDED);
    }
    op.set(0, out);
    Some(())
}
