//! Operators that pick elements by index.

use crate::axes::algebra::dim::{Dim, Term};
use crate::axes::algebra::int::Int;
use crate::axes::facts::RunFacts;
use crate::axes::op::Op;

pub(super) fn gather(op: &mut Op) -> Option<()> {
    let (data, indices) = (op.dims(0)?, op.dims(1)?);
    let axis = op.axis(op.node().int("axis", 0), data.len())?;
    let picks = op.values(1).filter(|_| indices.len() <= 1);
    gather_ints(op, axis, picks.as_deref(), indices.is_empty());
    let whole = op.a.space.resolve(&data[axis]);
    let middle = match (&picks, indices.len()) {
        (Some(picks), 0) => {
            // One of the parts that earlier cuts made, or one of a whole factor.
            let part = matches!(whole.0[..], [Term::Sum(_), ..]) && cut(op, &whole, picks).is_some();
            if !part {
                op.freeze(&whole, "one entry is picked from it");
            }
            vec![]
        }
        (Some(picks), 1) => vec![run(op, &whole, picks)],
        _ => {
            op.freeze(&whole, "it is indexed at run time");
            indices
        }
    };
    let mut out = data[..axis].to_vec();
    out.extend(middle);
    out.extend_from_slice(&data[axis + 1..]);
    op.set(0, out);
    Some(())
}

/// Constant indices: a run of neighbours is a slice, whose indices follow.
fn run(op: &mut Op, dim: &Dim, picks: &[i64]) -> Dim {
    const PICKED: &str = "some of its entries are picked";
    if let Some(part) = cut(op, dim, picks) {
        return part;
    }
    op.freeze(dim, PICKED);
    let out = op.a.space.fresh(picks.len());
    op.freeze(&out, "its entries are picked from another axis");
    out
}

/// The part of an axis that neighbouring indices pick; negative ones count from
/// the end.
fn cut(op: &mut Op, dim: &Dim, picks: &[i64]) -> Option<Dim> {
    let size = op.a.space.size(dim)?;
    let place = |p: i64| usize::try_from(if p < 0 { p.checked_add(size as i64)? } else { p }).ok();
    let first = place(*picks.first()?)?;
    for (k, p) in picks.iter().enumerate() {
        if place(*p)? != first + k {
            return None;
        }
    }
    let part = op.a.space.cut(dim, first, first.checked_add(picks.len())?)?;
    let before = op.a.space.cut(dim, 0, first)?;
    op.a.runs.push(RunFacts {
        node: op.id,
        before,
        part: part.clone(),
    });
    Some(part)
}

/// Follows the elements that constant indices pick along an axis.
fn gather_ints(op: &mut Op, axis: usize, picks: Option<&[i64]>, scalar: bool) {
    if op.ints(0).is_none() {
        return;
    }
    let picked = op.elements(0).zip(picks).and_then(|(e, picks)| {
        let size = i64::try_from(*e.shape.get(axis)?).ok()?;
        let places: Option<Vec<usize>> = picks
            .iter()
            .map(|p| usize::try_from(if *p < 0 { p.checked_add(size)? } else { *p }).ok())
            .collect();
        let mut taken = e.taken(axis, &places?)?;
        if scalar {
            taken.shape.remove(axis);
        }
        Some(taken)
    });
    op.set_elements(0, picked);
}

pub(super) fn gather_elements(op: &mut Op) -> Option<()> {
    let (data, indices) = (op.dims(0)?, op.dims(1)?);
    if data.len() != indices.len() {
        return None;
    }
    let axis = op.axis(op.node().int("axis", 0), data.len())?;
    op.freeze(&data[axis], "it is indexed at run time");
    op.freeze(&indices[axis], "it indexes another axis");
    let mut out = indices.clone();
    for k in (0..data.len()).filter(|k| *k != axis) {
        let size = |op: &Op, dim: &Dim| op.a.space.value(&Int::Dim(dim.clone()));
        if size(op, &indices[k]) == size(op, &data[k]) {
            out[k] = op.join_input(1, k, &data[k]);
        } else {
            // Indices may leave out the end of an axis.
            op.freeze(&data[k], "it is indexed at run time");
            op.freeze(&indices[k], "it indexes another axis");
        }
    }
    op.set(0, out);
    Some(())
}

pub(super) fn gather_nd(op: &mut Op) -> Option<()> {
    let (data, indices) = (op.dims(0)?, op.dims(1)?);
    let batch = usize::try_from(op.node().int("batch_dims", 0)).ok()?;
    let (last, lead) = indices.split_last()?;
    let depth = op.a.space.size(last)?;
    let tail = data.get(batch.checked_add(depth)?..)?.to_vec();
    op.freeze(last, "it counts indices");
    // A column of constant indices picks along the first axis, as Gather does.
    if batch == 0
        && depth == 1
        && lead.len() == 1
        && let Some(picks) = op.values(1)
    {
        let whole = op.a.space.resolve(&data[0]);
        let mut out = vec![run(op, &whole, &picks)];
        out.extend(tail);
        op.set(0, out);
        return Some(());
    }
    let mut out = lead.to_vec();
    for (k, slot) in out.iter_mut().enumerate().take(batch) {
        *slot = op.join(lead.get(k)?, data.get(k)?);
    }
    for dim in &data[batch..batch + depth] {
        op.freeze(dim, "it is indexed at run time");
    }
    out.extend(tail);
    op.set(0, out);
    Some(())
}

pub(super) fn scatter(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    for input in 0..3 {
        op.freeze_input(input, "entries are written into it by index");
    }
    op.set(0, data);
    Some(())
}

/// `CumSum`, `Trilu`: the axes along which entries are told apart stay.
pub(super) fn along_axes(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    if op.node().op == "Trilu" {
        for dim in data.iter().rev().take(2) {
            op.freeze(dim, "a triangle is cut along it");
        }
    } else {
        let axis = op.values(1)?;
        let axis = op.axis(*axis.first()?, data.len())?;
        op.freeze(&data[axis], "it is summed along");
    }
    op.set(0, data);
    Some(())
}

pub(super) fn arg(op: &mut Op) -> Option<()> {
    let mut data = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", 0), data.len())?;
    op.freeze(&data[axis], "the largest or smallest entry along it is sought");
    if op.node().int("keepdims", 1) != 0 {
        data[axis] = Dim::one();
    } else {
        data.remove(axis);
    }
    op.set(0, data);
    Some(())
}
