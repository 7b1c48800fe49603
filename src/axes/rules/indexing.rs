//! Operators that pick elements by index.

use crate::axes::dim::Dim;
use crate::axes::int::Int;
use crate::axes::op::Op;

pub(super) fn gather(op: &mut Op) -> Option<()> {
    let (data, indices) = (op.dims(0)?, op.dims(1)?);
    let axis = op.axis(op.node().int("axis", 0), data.len())?;
    let picks = op.values(1).filter(|_| indices.len() <= 1);
    gather_ints(op, picks.as_deref());
    let whole = op.a.space.resolve(&data[axis]);
    let middle = match (&picks, indices.len()) {
        (Some(_), 0) => {
            op.freeze(&whole, "one entry is picked from it");
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

/// Constant indices: a run of neighbours is a slice.
fn run(op: &mut Op, dim: &Dim, picks: &[i64]) -> Dim {
    let size = op.a.space.size(dim);
    let first = picks.first().copied().unwrap_or(0);
    let neighbours = picks
        .iter()
        .enumerate()
        .all(|(k, p)| first.checked_add(k as i64) == Some(*p));
    if let Some(size) = size
        && neighbours
        && first == 0
        && picks.len() == size
    {
        return dim.clone();
    }
    op.freeze(dim, "some of its entries are picked");
    let out = op.a.space.fresh(picks.len());
    op.freeze(&out, "its entries are picked from another axis");
    out
}

fn gather_ints(op: &mut Op, picks: Option<&[i64]>) {
    let Some(ints) = op.ints(0) else {
        return;
    };
    let length = ints.len() as i64;
    let picked: Option<Vec<Int>> = picks.and_then(|picks| {
        picks
            .iter()
            .map(|p| {
                let at = if *p < 0 { p.checked_add(length)? } else { *p };
                ints.get(usize::try_from(at).ok()?).cloned()
            })
            .collect()
    });
    match picked {
        Some(picked) => op.set_ints(0, picked),
        None => ints.iter().for_each(|i| {
            op.drop_int(i);
        }),
    }
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
        out[k] = op.join(&indices[k], &data[k]);
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
