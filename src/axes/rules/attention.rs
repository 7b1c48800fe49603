//! The fused attention operators of ONNX Runtime (domain com.microsoft).

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

pub(super) const SCALE: &str = "the attention's scale follows from it";

/// Records the two inner products of attention: scores over the channels `qk` and a
/// mixture of the channels `v`, for each entry of `batch` and `heads`.
pub(super) fn inner_products(
    op: &mut Op,
    [batch, heads]: [&Dim; 2],
    [query, keys]: [&Dim; 2],
    [qk, v]: [&Dim; 2],
) {
    let mut record = |free: [Dim; 2], contracted: &Dim| {
        op.contract(Contraction {
            node: op.id,
            inputs: [0, 0],
            constant: [false, false],
            contracted: vec![(0, 0, contracted.clone())],
            batch: vec![batch.clone(), heads.clone()],
            free: free.map(|d| vec![d]),
            bias: None,
            inner: true,
        });
    };
    record([query.clone(), keys.clone()], qk);
    record([query.clone(), v.clone()], keys);
}

/// A positive head count from an attribute.
pub(super) fn heads(op: &Op, name: &str) -> Option<usize> {
    usize::try_from(op.node().int(name, 0)).ok().filter(|n| *n > 0)
}

/// A dimension of size `count x inner` as that product.
pub(super) fn per_head(op: &mut Op, dim: &Dim, heads: &Dim) -> Option<Dim> {
    let total = op.a.space.size(dim)?;
    let count = op.a.space.size(heads)?;
    if count == 0 || !total.is_multiple_of(count) {
        return None;
    }
    let inner = op.a.space.fresh(total / count);
    op.unify(dim, &heads.clone().times(inner.clone()));
    Some(inner)
}

/// Joins the head axis of a mask or bias `[batch or 1, heads or 1, query, keys]`.
pub(super) fn join_bias(op: &mut Op, input: usize, heads: &Dim) {
    let rank = op.dims(input).map_or(0, |d| d.len());
    if rank >= 3 {
        op.join_input(input, rank - 3, heads);
    }
}

/// What a packed projection `q | k | v` is made of.
pub(super) struct Qkv {
    pub(super) head: Dim,
    pub(super) qk: Dim,
    pub(super) v: Dim,
    pub(super) packed: Dim,
}

/// Takes the packed axis of a fused attention apart by its attributes.
pub(super) fn qkv_parts(op: &mut Op, axis: &Dim) -> Option<Qkv> {
    let count = heads(op, "num_heads")?;
    let head = op.a.space.fresh(count);
    let total = op.a.space.size(axis)?;
    let sizes: Vec<usize> = match op.node().ints("qkv_hidden_sizes") {
        Some(v) => v
            .iter()
            .map(|n| usize::try_from(*n).ok())
            .collect::<Option<_>>()?,
        None => vec![total / 3; 3],
    };
    let [q, k, v] = sizes[..] else {
        return None;
    };
    let whole = q.checked_add(k).and_then(|n| n.checked_add(v));
    if whole != Some(total) || q != k || !q.is_multiple_of(count) || !v.is_multiple_of(count) {
        return None;
    }
    let (qk, v) = (op.a.space.fresh(q / count), op.a.space.fresh(v / count));
    let parts = [&qk, &qk, &v].map(|inner| head.clone().times(inner.clone()));
    let packed = Dim::sum(parts.to_vec());
    op.unify(axis, &packed);
    op.freeze(&qk, SCALE);
    op.needs_attr("num_heads", None, Int::Dim(head.clone()));
    if op.node().ints("qkv_hidden_sizes").is_some() {
        for (at, part) in parts.iter().enumerate() {
            op.needs_attr("qkv_hidden_sizes", Some(at), Int::Dim(part.clone()));
        }
    } else {
        op.freeze(&v, "without qkv_hidden_sizes, values are as wide as queries");
    }
    Some(Qkv { head, qk, v, packed })
}

/// `Attention` and `DecoderMaskedSelfAttention`: the packed projection is inside.
pub(super) fn packed(op: &mut Op) -> Option<()> {
    let (x, w) = (op.dims(0)?, op.dims(1)?);
    if x.len() != 3 || w.len() != 2 {
        return None;
    }
    let Qkv { head, qk, v, packed } = qkv_parts(op, &w[1])?;
    op.join_input(2, 0, &packed);
    op.join(&x[2], &w[0]);
    let keys = cache(op, 4, &head, &x[1], &v, 1);
    join_bias(op, 5, &head);
    let constant = [op.is_constant(0), op.is_constant(1)];
    op.contract(Contraction {
        node: op.id,
        inputs: [0, 1],
        constant,
        contracted: vec![(2, 0, x[2].clone())],
        batch: vec![],
        free: [vec![x[0].clone(), x[1].clone()], vec![packed]],
        bias: op.has(2).then_some(2),
        inner: false,
    });
    inner_products(op, [&x[0], &head], [&x[1], &keys], [&qk, &v]);
    op.set(0, vec![x[0].clone(), x[1].clone(), head.times(v)]);
    Some(())
}

/// A packed cache `[2, batch, heads, past, dim]` on input and output; returns
/// the axis of all keys.
pub(super) fn cache(op: &mut Op, input: usize, head: &Dim, query: &Dim, v: &Dim, output: usize) -> Dim {
    let Some(past) = op.dims(input).filter(|d| d.len() == 5) else {
        return query.clone();
    };
    op.unify(&past[2], head);
    op.unify(&past[4], v);
    let keys = op.a.space.unknown();
    let mut present = past;
    present[3] = keys.clone();
    op.set(output, present);
    keys
}

/// `MultiHeadAttention`: query, key, value, bias, padding mask, bias, caches.
pub(super) fn multi_head(op: &mut Op) -> Option<()> {
    let q = op.dims(0)?;
    let count = heads(op, "num_heads")?;
    let head = op.a.space.fresh(count);
    op.needs_attr("num_heads", None, Int::Dim(head.clone()));
    let (batch, query) = (q.first()?.clone(), q.get(1)?.clone());
    let (qk, v, keys);
    match (q.len(), op.dims(1), op.dims(2)) {
        // Packed [batch, sequence, heads, 3, dim].
        (5, None, None) => {
            op.unify(&q[2], &head);
            op.freeze(&q[3], "it counts packed parts");
            (qk, v, keys) = (q[4].clone(), q[4].clone(), query.clone());
        }
        // Packed keys and values [batch, keys, heads, 2, dim].
        (3, Some(kv), None) if kv.len() == 5 => {
            qk = per_head(op, &q[2], &head)?;
            op.unify(&kv[2], &head);
            op.freeze(&kv[3], "it counts packed parts");
            op.unify(&kv[4], &qk);
            (v, keys) = (qk.clone(), kv[1].clone());
        }
        (3, Some(key), Some(value)) => {
            qk = per_head(op, &q[2], &head)?;
            let key_axis = separate(op, &key, &head, &qk)?;
            v = match value.len() {
                3 => per_head(op, &value[2], &head)?,
                4 => value[3].clone(),
                _ => return None,
            };
            separate(op, &value, &head, &v)?;
            keys = key_axis;
        }
        _ => return None,
    }
    op.freeze(&qk, SCALE);
    join_packed_bias(op, 3, &head, &qk, &v);
    join_bias(op, 5, &head);
    let keys = separate_cache(op, [6, 7], [1, 2], &head, [&qk, &v], keys);
    inner_products(op, [&batch, &head], [&query, &keys], [&qk, &v]);
    op.set(0, vec![batch, query, head.times(v)]);
    Some(())
}

/// A bias of query, key and value in a row, where it is given.
pub(super) fn join_packed_bias(op: &mut Op, input: usize, head: &Dim, qk: &Dim, v: &Dim) {
    if op.has(input) {
        let part = |inner: &Dim| head.clone().times(inner.clone());
        op.join_input(input, 0, &Dim::sum(vec![part(qk), part(qk), part(v)]));
    }
}

/// Keys or values, `[batch, n, heads x dim]` or `[batch, heads, n, dim]`;
/// returns the axis `n`.
pub(super) fn separate(op: &mut Op, dims: &[Dim], head: &Dim, inner: &Dim) -> Option<Dim> {
    match dims {
        [_, n, hidden] => {
            op.unify(hidden, &head.clone().times(inner.clone()));
            Some(n.clone())
        }
        [_, h, n, d] => {
            op.unify(h, head);
            op.unify(d, inner);
            Some(n.clone())
        }
        _ => None,
    }
}

/// Caches `[batch, heads, past, dim]` of keys and values.
pub(super) fn separate_cache(
    op: &mut Op,
    inputs: [usize; 2],
    outputs: [usize; 2],
    head: &Dim,
    inner: [&Dim; 2],
    keys: Dim,
) -> Dim {
    let mut all = keys;
    if let Some(past) = op.dims(inputs[0]).filter(|d| d.len() == 4) {
        all = op.a.space.unknown();
        op.unify(&past[1], head);
        op.unify(&past[3], inner[0]);
    }
    if let Some(past) = op.dims(inputs[1]).filter(|d| d.len() == 4) {
        op.unify(&past[1], head);
        op.unify(&past[3], inner[1]);
    }
    let batch = op.dims(0).and_then(|d| d.first().cloned()).unwrap_or_default();
    for (output, inner) in outputs.into_iter().zip(inner) {
        op.set(
            output,
            vec![batch.clone(), head.clone(), all.clone(), inner.clone()],
        );
    }
    all
}

/// `GroupQueryAttention`: each key/value head serves a group of query heads.
pub(super) fn grouped(op: &mut Op) -> Option<()> {
    let q = op.dims(0)?;
    if q.len() != 3 {
        return None;
    }
    let (count, kv_count) = (heads(op, "num_heads")?, heads(op, "kv_num_heads")?);
    if !count.is_multiple_of(kv_count) {
        return None;
    }
    let kv = op.a.space.fresh(kv_count);
    let repeat = op.a.space.repeated(count / kv_count);
    let head = kv.clone().times(repeat);
    op.needs_attr("num_heads", None, Int::Dim(head.clone()));
    op.needs_attr("kv_num_heads", None, Int::Dim(kv.clone()));
    let inner;
    match (op.dims(1), op.dims(2)) {
        (Some(key), Some(value)) if key.len() == 3 && value.len() == 3 => {
            inner = per_head(op, &q[2], &head)?;
            separate(op, &key, &kv, &inner)?;
            separate(op, &value, &kv, &inner)?;
        }
        (None, None) => {
            let total = op.a.space.size(&q[2])?;
            let all = count + 2 * kv_count;
            if !total.is_multiple_of(all) {
                return None;
            }
            inner = op.a.space.fresh(total / all);
            let part = |h: &Dim| h.clone().times(inner.clone());
            let packed = Dim::sum(vec![part(&head), part(&kv), part(&kv)]);
            op.unify(&q[2], &packed);
        }
        _ => return None,
    }
    op.freeze(&inner, SCALE);
    join_bias(op, 10, &head);
    if op.has(11) {
        op.join_input(11, 0, &head);
    }
    let keys = separate_cache(op, [3, 4], [1, 2], &kv, [&inner, &inner], q[1].clone());
    inner_products(op, [&q[0], &head], [&q[1], &keys], [&inner, &inner]);
    op.set(0, vec![q[0].clone(), q[1].clone(), head.times(inner)]);
    Some(())
}

/// `RotaryEmbedding`: input, positions, cosine and sine tables.
pub(super) fn rotary(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    let cos = op.dims(2)?;
    let half = op.a.space.size(cos.last()?)?;
    let declared = heads(op, "num_heads");
    match x.len() {
        3 => {
            let total = op.a.space.size(&x[2])?;
            let count = declared.unwrap_or_else(|| total / (2 * half).max(1));
            let head = op.a.space.fresh(count.max(1));
            let inner = per_head(op, &x[2], &head)?;
            op.freeze(&inner, "it is rotated");
            if declared.is_some() {
                op.needs_attr("num_heads", None, Int::Dim(head));
            }
        }
        4 => {
            op.freeze(&x[3], "it is rotated");
            if declared.is_some() {
                op.needs_attr("num_heads", None, Int::Dim(x[1].clone()));
            }
        }
        _ => return None,
    }
    op.set(0, x);
    Some(())
}
