//! Reductions and normalisations: what they run over must keep its size.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::{Int, IntOp};
use crate::axes::op::Op;

const NORM: &str = "it is normalised over";

pub(super) fn reduce(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    let given = op.node().ints("axes").is_some() || op.has(1);
    let axes: Vec<usize> = if given {
        let axes = op.attr_or_input("axes", 1)?;
        axes.into_iter()
            .map(|a| op.axis(a, data.len()))
            .collect::<Option<_>>()?
    } else if op.node().int("noop_with_empty_axes", 0) != 0 {
        vec![]
    } else {
        (0..data.len()).collect()
    };
    if let Some(ints) = op.ints(0) {
        let product = ints.iter().cloned().reduce(|a, b| Int::op(IntOp::Mul, a, b));
        match (op.node().op.as_str(), product) {
            ("ReduceProd", Some(product)) if axes == [0] && data.len() == 1 => op.set_ints(0, vec![product]),
            _ => ints.iter().for_each(|i| {
                op.drop_int(i);
            }),
        }
    }
    let what = match op.node().op.as_str() {
        "ReduceMean" => "a mean is taken over it",
        _ => "it is reduced",
    };
    for axis in &axes {
        op.freeze(&data[*axis], what);
    }
    let keep = op.node().int("keepdims", 1) != 0;
    let out = data
        .into_iter()
        .enumerate()
        .filter_map(|(k, dim)| match (axes.contains(&k), keep) {
            (false, _) => Some(dim),
            (true, true) => Some(Dim::one()),
            (true, false) => None,
        });
    let out = out.collect();
    op.set(0, out);
    Some(())
}

pub(super) fn softmax(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    let old = op.graph.opset < 13;
    let axis = op.axis(op.node().int("axis", if old { 1 } else { -1 }), data.len())?;
    let last = if old { data.len() } else { axis + 1 };
    for dim in &data[axis..last] {
        op.freeze(dim, "a softmax runs over it");
    }
    op.set(0, data);
    Some(())
}

/// A normalisation over the axis in the attribute `axis`.
pub(super) fn one_axis(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", -1), data.len())?;
    op.freeze(&data[axis], NORM);
    op.set(0, data);
    Some(())
}

pub(super) fn layer_norm(op: &mut Op) -> Option<()> {
    let data = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", -1), data.len())?;
    normalise(op, &data, axis, &[1, 2]);
    let mut statistics = data.clone();
    for dim in &mut statistics[axis..] {
        *dim = Dim::one();
    }
    op.set(0, data);
    op.set(1, statistics.clone());
    op.set(2, statistics);
    Some(())
}

/// Freezes the axes from `axis` on and joins scale and bias with them.
fn normalise(op: &mut Op, data: &[Dim], axis: usize, parameters: &[usize]) {
    for &input in parameters {
        let rank = op.dims(input).map_or(0, |d| d.len());
        for k in 0..rank.min(data.len()) {
            op.join_input(input, rank - 1 - k, &data[data.len() - 1 - k]);
        }
    }
    for dim in &data[axis..] {
        op.freeze(dim, NORM);
    }
}

/// Input, skip, gamma, beta, bias -> output, mean, deviation, sum.
pub(super) fn skip_layer_norm(op: &mut Op) -> Option<()> {
    skip(op, &[2, 3, 4])
}

/// Input, skip, gamma, bias.
pub(super) fn skip_simplified(op: &mut Op) -> Option<()> {
    skip(op, &[2, 3])
}

fn skip(op: &mut Op, parameters: &[usize]) -> Option<()> {
    let data = op.broadcast(&[0, 1])?;
    let last = data.len().checked_sub(1)?;
    normalise(op, &data, last, parameters);
    let mut statistics = data.clone();
    statistics[last] = Dim::one();
    op.set(0, data.clone());
    op.set(1, statistics.clone());
    op.set(2, statistics);
    op.set(3, data);
    Some(())
}

/// Token ids, segment ids, word, position and segment tables, gamma, beta.
pub(super) fn embed(op: &mut Op) -> Option<()> {
    let ids = op.dims(0)?;
    let word = op.dims(2)?;
    if word.len() != 2 {
        return None;
    }
    let hidden = word[1].clone();
    for table in [2, 3, 4] {
        if op.has(table) {
            let own = op.dims(table)?;
            op.freeze(own.first()?, "it is indexed at run time");
            op.join_input(table, 1, &hidden);
        }
    }
    for input in [5, 6] {
        if op.has(input) {
            op.join_input(input, 0, &hidden);
        }
    }
    op.freeze(&hidden, NORM);
    let mut out = ids.clone();
    out.push(hidden);
    op.set(0, out.clone());
    op.set(1, ids.into_iter().take(1).collect());
    op.set(2, out);
    Some(())
}

/// `BiasSoftmax`: a softmax over the axes from `axis` on, of a sum.
pub(super) fn bias_softmax(op: &mut Op) -> Option<()> {
    let data = op.broadcast(&[0, 1])?;
    let axis = op.axis(op.node().int("axis", 1), data.len())?;
    for dim in &data[axis..] {
        op.freeze(dim, "a softmax runs over it");
    }
    op.set(0, data);
    Some(())
}
