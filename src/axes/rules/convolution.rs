//! Conv: channels are contracted, filters are made.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

pub(super) fn conv(op: &mut Op) -> Option<()> {
    let (x, w) = (op.dims(0)?, op.dims(1)?);
    if x.len() < 3 || w.len() != x.len() {
        return None;
    }
    let space = &op.a.space;
    let group = usize::try_from(op.node().int("group", 1)).ok()?;
    let (channels, filters) = (space.size(&x[1]), space.size(&w[0])?);
    let depthwise = group > 1 && Some(group) == channels && filters == group;
    if depthwise {
        op.unify(&x[1], &w[0]);
        op.needs_attr("group", None, Int::Dim(w[0].clone()));
    } else if group > 1 {
        for dim in [&x[1], &w[0], &w[1]] {
            op.freeze(dim, "a grouped convolution deals it out to groups");
        }
    } else {
        op.unify(&x[1], &w[1]);
    }
    for dim in w[2..].iter().chain(&x[2..]) {
        op.freeze(dim, "a convolution slides over it");
    }
    if op.dims(2).is_some() {
        op.join_input(2, 0, &w[0]);
    }
    let spatial = spatial(op, &x, &w);
    let mut out = vec![x[0].clone(), w[0].clone()];
    out.extend(spatial.iter().cloned());
    let bias = op.has(2).then_some(2);
    let constant = [op.is_constant(0), op.is_constant(1)];
    let mut free: Vec<Dim> = vec![x[0].clone()];
    free.extend(spatial);
    // The kernel's own size counts as work but is no axis of the activation.
    let kernel = w[2..].iter().fold(Dim::one(), |k, d| k.times(d.clone()));
    op.contract(Contraction {
        node: op.id,
        inputs: [0, 1],
        constant,
        contracted: if group == 1 {
            vec![(1, 1, x[1].clone())]
        } else {
            vec![]
        },
        batch: vec![kernel],
        free: [free, vec![w[0].clone()]],
        bias,
        inner: group != 1,
    });
    // FusedConv adds another value before its activation.
    if let Some(more) = op.dims(3).filter(|m| m.len() == out.len()) {
        for (dim, own) in more.iter().zip(&out) {
            op.unify(dim, own);
        }
    }
    op.set(0, out);
    Some(())
}

/// How often a filter of `k` entries fits; `None` for numbers of no real model.
fn steps(n: usize, k: usize, pads: [i64; 2], dilation: i64, stride: i64) -> Option<usize> {
    let padded = i64::try_from(n)
        .ok()?
        .checked_add(pads[0])?
        .checked_add(pads[1])?;
    let reach = i64::try_from(k)
        .ok()?
        .checked_sub(1)?
        .checked_mul(dilation)?
        .checked_add(1)?;
    let last = padded.checked_sub(reach)?.checked_div(stride)?;
    usize::try_from(last.checked_add(1)?).ok()
}

/// Sizes after the convolution, computed where everything is known.
fn spatial(op: &mut Op, x: &[Dim], w: &[Dim]) -> Vec<Dim> {
    let rank = x.len() - 2;
    let list = |name: &str, default: i64| -> Vec<i64> {
        let n = if name == "pads" { 2 * rank } else { rank };
        op.node()
            .ints(name)
            .filter(|v| v.len() == n)
            .map_or(vec![default; n], <[i64]>::to_vec)
    };
    let (strides, dilations, pads) = (list("strides", 1), list("dilations", 1), list("pads", 0));
    let explicit = matches!(op.node().text("auto_pad"), None | Some("NOTSET"));
    let mut out = Vec::with_capacity(rank);
    for axis in 0..rank {
        let sizes = (op.a.space.size(&x[axis + 2]), op.a.space.size(&w[axis + 2]));
        let length = match sizes {
            (Some(n), Some(k)) if explicit && strides[axis] > 0 => {
                let ends = [pads[axis], pads[axis + rank]];
                steps(n, k, ends, dilations[axis], strides[axis])
            }
            _ => None,
        };
        let dim = match length {
            Some(n) => op.a.space.fresh(n),
            None => op.a.space.unknown(),
        };
        op.freeze(&dim, "a convolution slides over it");
        out.push(dim);
    }
    out
}
