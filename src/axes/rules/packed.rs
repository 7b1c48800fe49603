//! Fused attention whose inputs have the batch packed away, or whose weights are
//! quantised.

use super::attention::{
    SCALE, heads, inner_products, join_bias, join_packed_bias, per_head, qkv_parts, separate,
};
use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

/// `PackedAttention`: tokens of all sequences in a row, projection inside.
pub(super) fn attention(op: &mut Op) -> Option<()> {
    let (x, w) = (op.dims(0)?, op.dims(1)?);
    if x.len() != 2 || w.len() != 2 {
        return None;
    }
    let parts = qkv_parts(op, &w[1])?;
    op.join_input(2, 0, &parts.packed);
    op.join(&x[1], &w[0]);
    join_bias(op, 5, &parts.head);
    project(op, &x[..1], &x[1], &parts.packed, 1);
    inner_products(
        op,
        [&Dim::one(), &parts.head],
        [&x[0], &x[0]],
        [&parts.qk, &parts.v],
    );
    op.set(0, vec![x[0].clone(), parts.head.times(parts.v)]);
    Some(())
}

/// The projection inside a fused attention.
fn project(op: &mut Op, rows: &[Dim], hidden: &Dim, packed: &Dim, axis: usize) {
    let constant = [op.is_constant(0), op.is_constant(1)];
    op.contract(Contraction {
        node: op.id,
        inputs: [0, 1],
        constant,
        contracted: vec![(axis, 0, hidden.clone())],
        batch: vec![],
        free: [rows.to_vec(), vec![packed.clone()]],
        bias: op.has(2).then_some(2),
        inner: false,
    });
}

/// `PackedMultiHeadAttention`: query, key and value as `[tokens, hidden]`, or
/// packed as `[tokens, heads, 3, dim]`.
pub(super) fn multi_head(op: &mut Op) -> Option<()> {
    let q = op.dims(0)?;
    let count = heads(op, "num_heads")?;
    let head = op.a.space.fresh(count);
    op.needs_attr("num_heads", None, Int::Dim(head.clone()));
    let tokens = q.first()?.clone();
    let (qk, v) = match (q.len(), op.dims(1), op.dims(2)) {
        (4, None, None) => {
            op.unify(&q[1], &head);
            op.freeze(&q[2], "it counts packed parts");
            (q[3].clone(), q[3].clone())
        }
        (2, Some(key), Some(value)) if key.len() == 2 && value.len() == 2 => {
            let qk = per_head(op, &q[1], &head)?;
            op.unify(&key[1], &head.clone().times(qk.clone()));
            (qk, per_head(op, &value[1], &head)?)
        }
        _ => return None,
    };
    op.freeze(&qk, SCALE);
    join_packed_bias(op, 3, &head, &qk, &v);
    join_bias(op, 6, &head);
    inner_products(op, [&Dim::one(), &head], [&tokens, &tokens], [&qk, &v]);
    op.set(0, vec![tokens, head.times(v)]);
    Some(())
}

/// `QAttention`: input, weight, bias, their scales, mask, their zero points, past.
pub(super) fn quantised(op: &mut Op) -> Option<()> {
    let (x, w) = (op.dims(0)?, op.dims(1)?);
    if x.len() != 3 || w.len() != 2 {
        return None;
    }
    let parts = qkv_parts(op, &w[1])?;
    for input in [2, 4, 7] {
        if op.dims(input).is_some_and(|d| d.len() == 1) {
            op.join_input(input, 0, &parts.packed);
        }
    }
    op.join(&x[2], &w[0]);
    let keys = super::attention::cache(op, 8, &parts.head, &x[1], &parts.v, 1);
    project(op, &x[..2], &x[2], &parts.packed, 2);
    inner_products(op, [&x[0], &parts.head], [&x[1], &keys], [&parts.qk, &parts.v]);
    op.set(0, vec![x[0].clone(), x[1].clone(), parts.head.times(parts.v)]);
    Some(())
}

/// `DecoderMaskedMultiHeadAttention`: one new token against a cache.
pub(super) fn decoder(op: &mut Op) -> Option<()> {
    let q = op.dims(0)?;
    if q.len() != 3 {
        return None;
    }
    let count = heads(op, "num_heads")?;
    let head = op.a.space.fresh(count);
    op.needs_attr("num_heads", None, Int::Dim(head.clone()));
    let (qk, v) = match (op.dims(1), op.dims(2)) {
        (Some(key), Some(value)) => {
            let qk = per_head(op, &q[2], &head)?;
            separate(op, &key, &head, &qk)?;
            let v = match value.len() {
                3 => per_head(op, &value[2], &head)?,
                4 => value[3].clone(),
                _ => return None,
            };
            separate(op, &value, &head, &v)?;
            (qk, v)
        }
        // Packed q | k | v.
        (None, None) => {
            let total = op.a.space.size(&q[2])?;
            if !total.is_multiple_of(3 * count) {
                return None;
            }
            let inner = op.a.space.fresh(total / 3 / count);
            let part = head.clone().times(inner.clone());
            op.unify(&q[2], &Dim::sum(vec![part.clone(), part.clone(), part]));
            (inner.clone(), inner)
        }
        _ => return None,
    };
    op.freeze(&qk, SCALE);
    join_packed_bias(op, 10, &head, &qk, &v);
    join_bias(op, 4, &head);
    let keys = op.a.space.unknown();
    let keys = super::attention::separate_cache(op, [5, 6], [1, 2], &head, [&qk, &v], keys);
    inner_products(op, [&q[0], &head], [&q[1], &keys], [&qk, &v]);
    op.set(0, vec![q[0].clone(), q[1].clone(), head.times(v)]);
    Some(())
}

/// `RelativePositionBias`: a table `[buckets, heads]` spread over positions.
pub(super) fn relative_bias(op: &mut Op) -> Option<()> {
    let table = op.dims(0)?;
    let [buckets, head] = &table[..] else {
        return None;
    };
    op.freeze(buckets, "it is indexed at run time");
    let length = |op: &mut Op, input: usize| match op.ints(input).and_then(|v| v.into_iter().next()) {
        Some(int) => op.a.space.dim_of(&int),
        None => op.a.space.unknown(),
    };
    let (query, keys) = (length(op, 1), length(op, 2));
    op.set(0, vec![Dim::one(), head.clone(), query, keys]);
    Some(())
}

/// `RemovePadding`: tokens in a row, where they came from, and lengths.
pub(super) fn remove_padding(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    let [batch, rows, hidden] = &x[..] else {
        return None;
    };
    let tokens = op.a.space.unknown();
    op.freeze(rows, "its padding is removed");
    op.set(0, vec![tokens, hidden.clone()]);
    op.set(1, vec![batch.clone(), rows.clone()]);
    let sums = op.a.space.unknown();
    op.set(2, vec![sums]);
    op.set(3, vec![Dim::one()]);
    Some(())
}

/// `RestorePadding`: tokens back into `[batch, sequence, hidden]`.
pub(super) fn restore_padding(op: &mut Op) -> Option<()> {
    let (x, places) = (op.dims(0)?, op.dims(1)?);
    let ([_, hidden], [batch, rows]) = (&x[..], &places[..]) else {
        return None;
    };
    op.set(0, vec![batch.clone(), rows.clone(), hidden.clone()]);
    Some(())
}

/// `TensorScatter`: new rows written into a cache along one axis.
pub(super) fn write_rows(op: &mut Op) -> Option<()> {
    let (cache, rows) = (op.dims(0)?, op.dims(1)?);
    if cache.len() != rows.len() {
        return None;
    }
    let axis = op.axis(op.node().int("axis", -2), cache.len())?;
    let mut out = cache.clone();
    for k in (0..cache.len()).filter(|k| *k != axis) {
        out[k] = op.join(&cache[k], &rows[k]);
    }
    for dim in [&cache[axis], &rows[axis]] {
        op.freeze(dim, "entries are written into it by index");
    }
    op.set(0, out);
    Some(())
}
