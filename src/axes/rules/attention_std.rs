//! Attention and RotaryEmbedding of the standard operator set (23 and later).

use super::attention::{heads, inner_products, join_bias, per_head};
use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::op::Op;

/// Query, key, value, mask, caches; 4-D `[batch, heads, n, dim]` or 3-D
/// `[batch, n, heads x dim]` with head counts as attributes.
pub(super) fn attention(op: &mut Op) -> Option<()> {
    let (q, k, v) = (op.dims(0)?, op.dims(1)?, op.dims(2)?);
    let flat = q.len() == 3;
    let q = unfold(op, &q, "q_num_heads")?;
    let k = unfold(op, &k, "kv_num_heads")?;
    let v = unfold(op, &v, "kv_num_heads")?;
    op.unify(&k.head, &v.head);
    op.unify(&k.rows, &v.rows);
    op.unify(&q.inner, &k.inner);
    let (count, kv_count) = (op.a.space.size(&q.head)?, op.a.space.size(&k.head)?);
    if kv_count == 0 || !count.is_multiple_of(kv_count) {
        return None;
    }
    if count == kv_count {
        op.unify(&q.head, &k.head);
    } else {
        let repeat = op.a.space.repeated(count / kv_count);
        op.unify(&q.head, &k.head.clone().times(repeat));
    }
    let scaled = op.node().attrs.contains_key("scale");
    if !scaled {
        op.freeze(&q.inner, "the attention's scale follows from it");
    }
    join_bias(op, 3, &q.head);
    let mut keys = k.rows.clone();
    if let Some(past) = op.dims(4).filter(|d| d.len() == 4) {
        op.unify(&past[1], &k.head);
        op.unify(&past[3], &k.inner);
        keys = op.a.space.unknown();
    }
    if let Some(past) = op.dims(5).filter(|d| d.len() == 4) {
        op.unify(&past[1], &v.head);
        op.unify(&past[3], &v.inner);
    }
    op.freeze(&keys, "a softmax runs over it");
    inner_products(op, [&q.batch, &q.head], [&q.rows, &keys], [&q.inner, &v.inner]);
    if flat {
        op.set(
            0,
            vec![
                q.batch.clone(),
                q.rows.clone(),
                q.head.clone().times(v.inner.clone()),
            ],
        );
    } else {
        op.set(
            0,
            vec![q.batch.clone(), q.head.clone(), q.rows.clone(), v.inner.clone()],
        );
    }
    op.set(1, vec![k.batch, k.head.clone(), keys.clone(), k.inner]);
    op.set(2, vec![v.batch, k.head, keys.clone(), v.inner]);
    op.set(3, vec![q.batch, q.head, q.rows, keys]);
    Some(())
}

struct Operand {
    batch: Dim,
    head: Dim,
    rows: Dim,
    inner: Dim,
}

fn unfold(op: &mut Op, dims: &[Dim], attr: &'static str) -> Option<Operand> {
    let part = |k: usize| dims[k].clone();
    match dims.len() {
        4 => {
            if op.node().int(attr, 0) > 0 {
                op.needs_attr(attr, None, Int::Dim(part(1)));
            }
            Some(Operand {
                batch: part(0),
                head: part(1),
                rows: part(2),
                inner: part(3),
            })
        }
        3 => {
            let count = heads(op, attr)?;
            let head = op.a.space.fresh(count);
            let inner = per_head(op, &dims[2], &head)?;
            op.needs_attr(attr, None, Int::Dim(head.clone()));
            Some(Operand {
                batch: part(0),
                head,
                rows: part(1),
                inner,
            })
        }
        _ => None,
    }
}

/// Input, cosine and sine tables, positions.
pub(super) fn rotary(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    let rotated = unfold(op, &x, "num_heads")?;
    op.freeze(&rotated.inner, "it is rotated");
    op.set(0, x);
    Some(())
}
