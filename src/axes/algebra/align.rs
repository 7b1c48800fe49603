//! Reshape: which input terms make up which output dimension.
//!
//! Terms are consumed from the left while their product matches the entries of
//! the shape vector, then from the right; one entry in between takes what is
//! left (`-1` is a quotient). A factor that is larger than what an entry still
//! wants splits.

use std::collections::VecDeque;

use super::dim::{Dim, Term};
use super::int::{Int, Mono};
use super::space::Space;
use crate::graph::NodeId;

/// One entry of the shape vector.
#[derive(Debug, Clone)]
pub(crate) enum AlignEntry {
    /// A known integer.
    Int(Int),
    /// `-1`.
    Rest,
}

/// The dimensions of a reshaped tensor.
pub(crate) fn reshape(space: &mut Space, input: &[Dim], entries: &[AlignEntry], at: NodeId) -> Vec<Dim> {
    let mut terms: VecDeque<Term> = VecDeque::new();
    for dim in input {
        terms.extend(space.resolve(dim).0);
    }
    let mut out: Vec<Option<Dim>> = vec![None; entries.len()];
    let mut first = 0;
    while let Some(AlignEntry::Int(int)) = entries.get(first) {
        let Some(dim) = consume(space, &mut terms, int, true, at) else {
            break;
        };
        out[first] = Some(dim);
        first += 1;
    }
    let mut last = entries.len();
    while last > first
        && let AlignEntry::Int(int) = &entries[last - 1]
        && let Some(dim) = consume(space, &mut terms, int, false, at)
    {
        last -= 1;
        out[last] = Some(dim);
    }
    let rest = Dim(terms.into());
    match &entries[first..last] {
        [] => {
            if !rest.is_one() {
                space.freeze(&rest, Some(at), "a reshape does not account for it");
            }
        }
        [entry] => {
            if let AlignEntry::Int(int) = entry
                && let (Some(wanted), Some(is)) = (space.value(int).as_const(), space.size(&rest))
                && usize::try_from(wanted) != Ok(is)
            {
                space.freeze(&rest, Some(at), "a reshape takes it apart across its factors");
            }
            out[first] = Some(rest);
        }
        several => {
            space.freeze(&rest, Some(at), "a reshape takes it apart across its factors");
            for (entry, slot) in several.iter().zip(&mut out[first..]) {
                let dim = match entry {
                    AlignEntry::Int(int) => space.dim_of(int),
                    AlignEntry::Rest => space.unknown(),
                };
                space.freeze(&dim, Some(at), "a reshape takes it apart across its factors");
                *slot = Some(dim);
            }
        }
    }
    out.into_iter().map(Option::unwrap_or_default).collect()
}

/// Takes terms whose product is `int` from one end; on failure nothing is taken
/// (a split that was learnt on the way stays: it says nothing false).
fn consume(
    space: &mut Space,
    terms: &mut VecDeque<Term>,
    int: &Int,
    from_left: bool,
    at: NodeId,
) -> Option<Dim> {
    let mut need = space.value(int).monomial();
    if need.coefficient <= 0 {
        return None;
    }
    let mut queue = terms.clone();
    let mut taken: VecDeque<Term> = VecDeque::new();
    while !need.is_one() {
        let term = if from_left {
            queue.pop_front()?
        } else {
            queue.pop_back()?
        };
        // A split inside this loop may have bound the term.
        let mut now = space.resolve(&Dim(vec![term])).0;
        if now.len() != 1 {
            if from_left {
                now.into_iter().rev().for_each(|t| queue.push_front(t));
            } else {
                queue.extend(now);
            }
            continue;
        }
        let term = now.pop()?;
        let (take, leave) = part(space, term, &mut need, from_left, at)?;
        if from_left {
            taken.extend(take.0);
            leave.0.into_iter().rev().for_each(|t| queue.push_front(t));
        } else {
            take.0.into_iter().rev().for_each(|t| taken.push_front(t));
            queue.extend(leave.0);
        }
    }
    *terms = queue;
    Some(Dim(taken.into()))
}

/// What of `term` goes into the entry that still needs `need`, and what stays.
fn part(space: &mut Space, term: Term, need: &mut Mono, from_left: bool, at: NodeId) -> Option<(Dim, Dim)> {
    let mono = space.term_monomial(&term);
    if let Some(rest) = need.div(&mono)
        && mono.coefficient > 0
    {
        *need = rest;
        return Some((Dim(vec![term]), Dim::one()));
    }
    let wanted = usize::try_from(need.coefficient).ok().filter(|n| *n > 1)?;
    let whole = usize::try_from(mono.coefficient).ok()?;
    if !mono.atoms.is_empty() || !whole.is_multiple_of(wanted) {
        return None;
    }
    let major = if from_left { wanted } else { whole / wanted };
    let (major, minor) = match term {
        Term::Factor(f) => space.split(f, major),
        Term::Sum(parts) => space.rows(&parts, major, at)?,
        Term::Symbol(_) => return None,
    };
    need.coefficient = 1;
    Some(if from_left { (major, minor) } else { (minor, major) })
}
