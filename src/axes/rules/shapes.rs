//! Operators that turn sizes into integers and integers into sizes.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::{Int, IntOp};
use crate::axes::op::Op;
use crate::graph::Attr;

pub(super) fn shape(op: &mut Op) -> Option<()> {
    let dims = op.dims(0)?;
    op.ints(0);
    let rank = dims.len() as i64;
    let bound = |v: i64| (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize;
    let (from, to) = (
        bound(op.node().int("start", 0)),
        bound(op.node().int("end", rank)),
    );
    let ints: Vec<Int> = dims
        .get(from..to.max(from))?
        .iter()
        .map(|d| Int::Dim(d.clone()))
        .collect();
    let length = op.a.space.fresh(ints.len());
    op.freeze(&length, "it counts axes");
    op.set(0, vec![length]);
    op.set_ints(0, ints);
    Some(())
}

pub(super) fn size(op: &mut Op) -> Option<()> {
    let dims = op.dims(0)?;
    op.ints(0);
    let total = dims.into_iter().fold(Dim::one(), Dim::times);
    op.set(0, vec![]);
    op.set_ints(0, vec![Int::Dim(total)]);
    Some(())
}

pub(super) fn constant_of_shape(op: &mut Op) -> Option<()> {
    let Some(entries) = op.ints(0) else {
        return super::layout::computed_shape(op, 0, 0, "it is made with sizes that are not followed");
    };
    let dims: Vec<Dim> = entries.iter().map(|i| op.a.space.dim_of(i)).collect();
    for (at, (actual, dim)) in entries.iter().zip(&dims).enumerate() {
        op.needs(0, at, actual.clone(), Int::Dim(dim.clone()));
    }
    let all = dims.iter().cloned().fold(Dim::one(), Dim::times);
    let count = op.a.space.value(&Int::Dim(all)).as_const();
    if let (Some(Attr::Tensor(value)), Some(count)) = (op.node().attrs.get("value"), count)
        && let ([value], Ok(length @ ..=64)) = (&value[..], usize::try_from(count))
    {
        let ints = vec![Int::Const(*value); length];
        op.set_ints(0, ints);
    }
    op.set(0, dims);
    Some(())
}

pub(super) fn range(op: &mut Op) -> Option<()> {
    let scalar = |op: &mut Op, index: usize| op.ints(index).and_then(|v| v.into_iter().next());
    let bounds = (scalar(op, 0), scalar(op, 1), scalar(op, 2));
    let dim = match bounds {
        (Some(start), Some(limit), Some(delta)) => {
            let span = Int::op(IntOp::Sub, limit, start);
            let count = Int::op(IntOp::Div, span, delta);
            let dim = op.a.space.dim_of(&count);
            op.a.space
                .freeze_int(&count, Some(op.id), "it is counted through");
            dim
        }
        (start, limit, delta) => {
            for int in [start, limit, delta].into_iter().flatten() {
                op.drop_int(&int);
            }
            op.a.space.unknown()
        }
    };
    op.freeze(&dim, "it is counted through");
    op.set(0, vec![dim]);
    Some(())
}
