//! Operators that move elements without changing them.

use crate::axes::algebra::align::{self, AlignEntry};
use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::elements;
use crate::axes::algebra::int::Int;
use crate::axes::op::Op;

/// Copies of integers are followed up to this many.
const MOST_COPIES: usize = 64;

pub(super) fn reshape(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let from_attr = op.node().ints("shape").map(<[i64]>::to_vec);
    let shape: Vec<Int> = match from_attr {
        Some(v) => v.into_iter().map(Int::Const).collect(),
        None => match op.ints(1) {
            Some(shape) => shape,
            None => return computed_shape(op, 1, 0, "it is reshaped by numbers that are not followed"),
        },
    };
    let zero_is_size = op.node().int("allowzero", 0) != 0;
    let mut entries = Vec::with_capacity(shape.len());
    for (at, int) in shape.iter().enumerate() {
        entries.push(match int {
            Int::Const(-1) => AlignEntry::Rest,
            Int::Const(0) if !zero_is_size => AlignEntry::Int(Int::Dim(input.get(at)?.clone())),
            other => AlignEntry::Int(other.clone()),
        });
    }
    let out = align::reshape(&mut op.a.space, &input, &entries, op.id);
    for (at, (entry, dim)) in entries.iter().zip(&out).enumerate() {
        if let AlignEntry::Int(actual) = entry {
            op.needs(1, at, actual.clone(), Int::Dim(dim.clone()));
        }
    }
    pass_ints(op);
    op.set(0, out);
    Some(())
}

/// A shape whose entries are not followed, only their number (and that the
/// result has at least so many axes): nothing passes.
pub(super) fn computed_shape(op: &mut Op, input: usize, least: usize, why: &str) -> Option<()> {
    const MOST_AXES: usize = 16;
    let shape = op.dims(input)?;
    let rank = op.a.space.size(shape.first()?).filter(|n| *n <= MOST_AXES)?;
    op.give_up(why);
    let out = (0..rank.max(least)).map(|_| op.a.space.unknown()).collect();
    op.set(0, out);
    Some(())
}

pub(super) fn flatten(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let axis = op.node().int("axis", 1);
    let axis = if axis == input.len() as i64 {
        input.len()
    } else {
        op.axis(axis, input.len())?
    };
    let product = |dims: &[Dim]| dims.iter().fold(Dim::one(), |p, d| p.times(d.clone()));
    pass_ints(op);
    op.set(0, vec![product(&input[..axis]), product(&input[axis..])]);
    Some(())
}

pub(super) fn transpose(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let perm: Vec<usize> = match op.node().ints("perm") {
        Some(perm) => perm
            .iter()
            .map(|p| usize::try_from(*p).ok())
            .collect::<Option<_>>()?,
        None => (0..input.len()).rev().collect(),
    };
    if op.ints(0).is_some() {
        let turned = op.elements(0).and_then(|e| e.transposed(&perm));
        op.set_elements(0, turned);
    }
    let out: Option<Vec<Dim>> = perm.iter().map(|p| input.get(*p).cloned()).collect();
    op.set(0, out?);
    Some(())
}

pub(super) fn unsqueeze(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let axes = op.attr_or_input("axes", 1)?;
    let rank = input.len() + axes.len();
    let mut out: Vec<Option<Dim>> = vec![None; rank];
    for axis in axes {
        out[op.axis(axis, rank)?] = Some(Dim::one());
    }
    let mut rest = input.into_iter();
    for slot in &mut out {
        if slot.is_none() {
            *slot = Some(rest.next()?);
        }
    }
    pass_ints(op);
    op.set(0, out.into_iter().flatten().collect());
    Some(())
}

pub(super) fn squeeze(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let gone: Vec<usize> = if op.node().ints("axes").is_some() || op.has(1) {
        let axes = op.attr_or_input("axes", 1)?;
        axes.into_iter()
            .map(|a| op.axis(a, input.len()))
            .collect::<Option<_>>()?
    } else {
        (0..input.len())
            .filter(|i| op.a.space.resolve(&input[*i]).is_one())
            .collect()
    };
    for axis in &gone {
        op.freeze(&input[*axis], "it is squeezed away");
    }
    let out: Vec<Dim> = input
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !gone.contains(i))
        .map(|(_, d)| d)
        .collect();
    pass_ints(op);
    op.set(0, out);
    Some(())
}

/// The elements of an integer tensor stay what they are, in the same order.
fn pass_ints(op: &mut Op) {
    if let Some(ints) = op.ints(0) {
        op.set_ints(0, ints);
    }
}

pub(super) fn expand(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let Some(shape) = op.ints(1) else {
        return computed_shape(
            op,
            1,
            input.len(),
            "it is expanded by numbers that are not followed",
        );
    };
    let rank = input.len().max(shape.len());
    let activation = !op.is_table(0);
    let mut out = Vec::with_capacity(rank);
    for axis in 0..rank {
        let own = (axis + input.len())
            .checked_sub(rank)
            .map_or_else(Dim::one, |i| input[i].clone());
        let Some(at) = (axis + shape.len()).checked_sub(rank) else {
            out.push(own);
            continue;
        };
        let own = op.a.space.resolve(&own);
        let dim = match &shape[at] {
            Int::Const(1) | Int::Const(-1) => own,
            Int::Const(n) if own.is_one() && activation => match usize::try_from(*n) {
                Ok(n) => op.a.space.repeated(n),
                Err(_) => op.a.space.unknown(),
            },
            int if own.is_one() => {
                let dim = op.a.space.dim_of(int);
                if activation {
                    op.a.space.mark_repeat(&dim);
                }
                dim
            }
            _ => own,
        };
        if !matches!(shape[at], Int::Const(1) | Int::Const(-1)) {
            op.needs(1, at, shape[at].clone(), Int::Dim(dim.clone()));
        }
        out.push(dim);
    }
    if op.ints(0).is_some() {
        let sizes: Option<Vec<usize>> = out.iter().map(|d| op.a.space.size(d)).collect();
        let small = sizes.filter(|s| elements::at_most(s, MOST_COPIES));
        let copied = op.elements(0).zip(small).and_then(|(e, s)| e.expanded(&s));
        op.set_elements(0, copied);
    }
    op.set(0, out);
    Some(())
}

pub(super) fn tile(op: &mut Op) -> Option<()> {
    let input = op.dims(0)?;
    let Some(repeats) = op.ints(1) else {
        return computed_shape(
            op,
            1,
            0,
            "it is copied as often as numbers say that are not followed",
        );
    };
    if repeats.len() != input.len() {
        return None;
    }
    let mut out = Vec::with_capacity(input.len());
    for (at, (dim, repeat)) in input.into_iter().zip(repeats).enumerate() {
        let count = op.a.space.dim_of(&repeat);
        op.freeze(&count, "it counts copies");
        op.needs(1, at, repeat, Int::Dim(count.clone()));
        out.push(count.times(dim));
    }
    op.set(0, out);
    Some(())
}
