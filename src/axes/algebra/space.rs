//! The factors of all dimensions: a union-find whose members can also split.
//!
//! A factor is a *leaf*, or it is *bound* to a dimension that stands for it: to
//! another factor (a union), to a product (a split, `768 -> 12 x 64`), or to a
//! sum (packed parts, `2304 -> 768 + 768 + 768`). Binding never goes back, so
//! all dimensions that mention a factor see what was learnt about it later.

use std::collections::VecDeque;

use super::dim::{Dim, FactorId, SymbolId, Term, visit};
use super::int::Int;
use crate::graph::NodeId;

/// Why a factor must keep its size, and where that was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Freeze {
    /// The node, unless it is the graph's interface.
    #[serde(skip)]
    pub node: Option<NodeId>,
    /// In words, for the user.
    pub why: String,
}

#[derive(Debug, Clone)]
enum AxisState {
    Leaf(Option<Freeze>),
    Bound(Dim),
}

#[derive(Debug, Clone)]
struct Slot {
    size: usize,
    state: AxisState,
    /// Made by repeating an activation (the query heads of a KV group).
    repeat: bool,
}

#[derive(Debug, Clone)]
struct Symbol {
    name: String,
    /// What it is computed from.
    definition: Option<Int>,
}

/// All factors and symbols of one analysis.
#[derive(Debug, Clone, Default)]
pub struct Space {
    slots: Vec<Slot>,
    symbols: Vec<Symbol>,
    /// Sums within sums that are being unified.
    depth: usize,
}

/// How deep sums may lie in sums: packed projections are two or three deep.
const MOST_NESTED: usize = 32;

impl Space {
    /// A new dimension of a known size, one factor that may shrink.
    pub fn fresh(&mut self, size: usize) -> Dim {
        match size {
            1 => Dim::one(),
            0 => self.derived(Int::Const(0)),
            _ => Dim::factor(self.slot(size, None)),
        }
    }

    /// A new dimension of a known size that must keep it.
    pub fn fixed(&mut self, size: usize, freeze: Freeze) -> Dim {
        match size {
            1 => Dim::one(),
            0 => self.derived(Int::Const(0)),
            _ => Dim::factor(self.slot(size, Some(freeze))),
        }
    }

    /// A new dimension that repeats an activation.
    pub fn repeated(&mut self, size: usize) -> Dim {
        let dim = self.fresh(size);
        self.mark_repeat(&dim);
        dim
    }

    /// Says that an activation is copied along a dimension.
    pub(crate) fn mark_repeat(&mut self, dim: &Dim) {
        for leaf in self.leaves(dim) {
            self.slots[leaf.0 as usize].repeat = true;
        }
    }

    fn slot(&mut self, size: usize, frozen: Option<Freeze>) -> FactorId {
        let id = FactorId(self.slots.len() as u32);
        self.slots.push(Slot {
            size,
            state: AxisState::Leaf(frozen),
            repeat: false,
        });
        id
    }

    /// The symbol of this name; the same name is the same symbol.
    pub fn named(&mut self, name: &str) -> Dim {
        let found = self
            .symbols
            .iter()
            .position(|s| s.definition.is_none() && s.name == name);
        let at = found.unwrap_or_else(|| {
            self.symbols.push(Symbol {
                name: name.to_string(),
                definition: None,
            });
            self.symbols.len() - 1
        });
        Dim::symbol(SymbolId(at as u32))
    }

    /// A new symbol about which nothing is known.
    pub fn unknown(&mut self) -> Dim {
        let name = format!("?{}", self.symbols.len());
        self.named(&name)
    }

    /// A symbol that is computed from other sizes.
    pub fn derived(&mut self, definition: Int) -> Dim {
        let same = self
            .symbols
            .iter()
            .position(|s| s.definition.as_ref() == Some(&definition));
        let at = same.unwrap_or_else(|| {
            let name = format!("?{}", self.symbols.len());
            self.symbols.push(Symbol {
                name,
                definition: Some(definition),
            });
            self.symbols.len() - 1
        });
        Dim::symbol(SymbolId(at as u32))
    }

    /// The name of a symbol.
    pub fn symbol_name(&self, id: SymbolId) -> &str {
        &self.symbols[id.0 as usize].name
    }

    /// What a symbol is computed from.
    pub fn definition(&self, id: SymbolId) -> Option<&Int> {
        self.symbols[id.0 as usize].definition.as_ref()
    }

    /// Number of symbols; their ids are `0..count`.
    pub fn symbol_count(&self) -> usize {
        self.symbols.len()
    }

    /// All symbols that stand for themselves.
    pub fn free_symbols(&self) -> impl Iterator<Item = (SymbolId, &str)> {
        self.symbols
            .iter()
            .enumerate()
            .filter(|(_, s)| s.definition.is_none())
            .map(|(i, s)| (SymbolId(i as u32), s.name.as_str()))
    }

    /// The dimension in terms of leaves.
    pub fn resolve(&self, dim: &Dim) -> Dim {
        let mut out = Vec::with_capacity(dim.0.len());
        self.resolve_into(dim, &mut out);
        Dim(out)
    }

    fn resolve_into(&self, dim: &Dim, out: &mut Vec<Term>) {
        for term in &dim.0 {
            match term {
                Term::Factor(f) => match &self.slots[f.0 as usize].state {
                    AxisState::Leaf(_) => out.push(Term::Factor(*f)),
                    AxisState::Bound(to) => self.resolve_into(to, out),
                },
                Term::Symbol(s) => out.push(Term::Symbol(*s)),
                Term::Sum(parts) => {
                    let parts = parts.iter().map(|p| self.resolve(p)).collect();
                    out.extend(Dim::sum(parts).0);
                }
            }
        }
    }

    /// The leaves of a dimension, each once, in order.
    pub fn leaves(&self, dim: &Dim) -> Vec<FactorId> {
        let mut found = Vec::new();
        visit(&self.resolve(dim), &mut |term| {
            if let Term::Factor(f) = term
                && !found.contains(f)
            {
                found.push(*f);
            }
        });
        found
    }

    /// Size of one factor.
    pub fn factor_size(&self, id: FactorId) -> usize {
        self.slots[id.0 as usize].size
    }

    /// Whether the leaf was made by repeating an activation.
    pub fn is_repeat(&self, id: FactorId) -> bool {
        self.slots[id.0 as usize].repeat
    }

    /// The size of a dimension without symbols.
    pub fn size(&self, dim: &Dim) -> Option<usize> {
        self.size_with(dim, &|f| self.factor_size(f))
    }

    /// The size of a dimension without symbols when factors have other sizes.
    pub fn size_with(&self, dim: &Dim, kept: &dyn Fn(FactorId) -> usize) -> Option<usize> {
        let mut total = 1usize;
        for term in &self.resolve(dim).0 {
            let size = match term {
                Term::Factor(f) => kept(*f),
                Term::Symbol(_) => return None,
                Term::Sum(parts) => {
                    let mut sum = 0usize;
                    for part in parts {
                        sum = sum.checked_add(self.size_with(part, kept)?)?;
                    }
                    sum
                }
            };
            total = total.checked_mul(size)?;
        }
        Some(total)
    }

    /// Why the leaf must keep its size.
    pub fn frozen(&self, id: FactorId) -> Option<&Freeze> {
        match &self.slots[id.0 as usize].state {
            AxisState::Leaf(frozen) => frozen.as_ref(),
            AxisState::Bound(_) => None,
        }
    }

    /// All leaves, with their size.
    pub fn all_leaves(&self) -> impl Iterator<Item = (FactorId, usize)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, s)| matches!(s.state, AxisState::Leaf(_)))
            .map(|(i, s)| (FactorId(i as u32), s.size))
    }

    /// Freezes every leaf of a dimension; the first reason stays.
    pub fn freeze(&mut self, dim: &Dim, node: Option<NodeId>, why: &str) {
        for leaf in self.leaves(dim) {
            let AxisState::Leaf(frozen) = &mut self.slots[leaf.0 as usize].state else {
                continue;
            };
            if frozen.is_none() {
                *frozen = Some(Freeze {
                    node,
                    why: why.to_string(),
                });
            }
        }
    }

    /// Binds a leaf to what stands for it; a freeze goes over to all of it.
    fn bind(&mut self, leaf: FactorId, to: Dim) {
        let slot = &mut self.slots[leaf.0 as usize];
        let AxisState::Leaf(frozen) = std::mem::replace(&mut slot.state, AxisState::Bound(to.clone())) else {
            unreachable!("only leaves are bound: resolve comes first");
        };
        let repeat = slot.repeat;
        if let Some(freeze) = frozen {
            self.freeze(&to, freeze.node, &freeze.why);
        }
        if repeat {
            for f in self.leaves(&to) {
                self.slots[f.0 as usize].repeat = true;
            }
        }
    }

    /// Splits a leaf into a product `major x minor`.
    pub(crate) fn split(&mut self, leaf: FactorId, major: usize) -> (Dim, Dim) {
        let size = self.factor_size(leaf);
        debug_assert!(major > 0 && size.is_multiple_of(major));
        let (a, b) = (self.fresh(major), self.fresh(size / major));
        self.bind(leaf, a.clone().times(b.clone()));
        (a, b)
    }

    /// A sum seen as `count` equal rows: `q + k + v -> 3 x q`. The rows become
    /// one; the count cannot shrink.
    pub(crate) fn rows(&mut self, parts: &[Dim], count: usize, at: NodeId) -> Option<(Dim, Dim)> {
        if count == 0 || !parts.len().is_multiple_of(count) {
            return None;
        }
        let rows: Vec<Dim> = parts
            .chunks(parts.len() / count)
            .map(|row| Dim::sum(row.to_vec()))
            .collect();
        let size = self.size(&rows[0])?;
        if rows.iter().any(|row| self.size(row) != Some(size)) {
            return None;
        }
        for row in &rows[1..] {
            self.unify(&rows[0], row, at);
        }
        let why = Freeze {
            node: Some(at),
            why: "it counts packed parts".into(),
        };
        let count = self.fixed(count, why);
        Some((count, rows[0].clone()))
    }

    /// The part `start..end` of a dimension, cutting factors into sums where
    /// the borders fall; `None` where a border falls inside a product's minor
    /// terms or the size is symbolic.
    pub fn cut(&mut self, dim: &Dim, start: usize, end: usize) -> Option<Dim> {
        let dim = self.resolve(dim);
        let size = self.size(&dim)?;
        if start > end || end > size {
            return None;
        }
        if start == end {
            return Some(self.derived(Int::Const(0)));
        }
        if start == 0 && end == size {
            return Some(dim);
        }
        let (first, rest) = dim.0.split_first()?;
        let rest = Dim(rest.to_vec());
        let inner = self.size(&rest)?;
        if !start.is_multiple_of(inner) || !end.is_multiple_of(inner) {
            return None;
        }
        let (start, end) = (start / inner, end / inner);
        let head = match first {
            Term::Factor(f) => {
                let size = self.factor_size(*f);
                let mut parts = Vec::new();
                let mut wanted = Dim::one();
                for (from, to) in [(0, start), (start, end), (end, size)] {
                    if from < to {
                        let part = self.fresh(to - from);
                        if from == start {
                            wanted = part.clone();
                        }
                        parts.push(part);
                    }
                }
                self.bind(*f, Dim::sum(parts));
                wanted
            }
            Term::Sum(parts) => {
                let mut taken = Vec::new();
                let mut offset = 0;
                for part in parts {
                    let size = self.size(part)?;
                    let (from, to) = (start.max(offset), end.min(offset + size));
                    if from < to {
                        taken.push(self.cut(part, from - offset, to - offset)?);
                    }
                    offset += size;
                }
                Dim::sum(taken)
            }
            Term::Symbol(_) => return None,
        };
        Some(head.times(rest))
    }

    /// Makes two dimensions the same. Where their structure does not nest
    /// (4 x 12 against 6 x 8), both are frozen.
    pub fn unify(&mut self, a: &Dim, b: &Dim, at: NodeId) {
        let mut left: VecDeque<Term> = self.resolve(a).0.into();
        let mut right: VecDeque<Term> = self.resolve(b).0.into();
        loop {
            self.refresh(&mut left);
            self.refresh(&mut right);
            let (Some(x), Some(y)) = (left.pop_front(), right.pop_front()) else {
                break;
            };
            if x == y {
                continue;
            }
            if !self.unify_heads(x.clone(), y.clone(), &mut left, &mut right, at) {
                left.push_front(x);
                right.push_front(y);
                break;
            }
        }
        if !left.is_empty() || !right.is_empty() {
            let why = "its parts do not line up with those of another axis it must match";
            self.freeze(&Dim(left.into()), Some(at), why);
            self.freeze(&Dim(right.into()), Some(at), why);
        }
    }

    /// Resolves the front of a queue after bindings.
    fn refresh(&self, queue: &mut VecDeque<Term>) {
        if let Some(front) = queue.pop_front() {
            for term in self.resolve(&Dim(vec![front])).0.into_iter().rev() {
                queue.push_front(term);
            }
        }
    }

    fn unify_heads(
        &mut self,
        x: Term,
        y: Term,
        left: &mut VecDeque<Term>,
        right: &mut VecDeque<Term>,
        at: NodeId,
    ) -> bool {
        match (x, y) {
            (Term::Factor(f), Term::Factor(g)) => {
                let (m, n) = (self.factor_size(f), self.factor_size(g));
                if m == n {
                    self.bind(g, Dim::factor(f));
                } else if m > n && m.is_multiple_of(n) {
                    let (major, minor) = self.split(f, n);
                    push_front(left, major.times(minor));
                    right.push_front(Term::Factor(g));
                } else if n > m && n.is_multiple_of(m) {
                    let (major, minor) = self.split(g, m);
                    push_front(right, major.times(minor));
                    left.push_front(Term::Factor(f));
                } else {
                    return false;
                }
                true
            }
            (Term::Factor(f), Term::Sum(parts)) => self.unify_with_sum(f, parts, left, right, at),
            (Term::Sum(parts), Term::Factor(f)) => self.unify_with_sum(f, parts, right, left, at),
            (Term::Sum(a), Term::Sum(b)) => self.unify_sums(&a, &b, at),
            // Sizes known at run time only must agree there, whatever they are.
            (Term::Symbol(_), Term::Symbol(_)) => true,
            _ => false,
        }
    }

    fn unify_with_sum(
        &mut self,
        f: FactorId,
        parts: Vec<Dim>,
        of_factor: &mut VecDeque<Term>,
        of_sum: &mut VecDeque<Term>,
        at: NodeId,
    ) -> bool {
        let sum = Dim(vec![Term::Sum(parts.clone())]);
        let Some(total) = self.size(&sum) else {
            return false;
        };
        let size = self.factor_size(f);
        if size == total {
            if self.leaves(&sum).contains(&f) {
                return false;
            }
            self.bind(f, sum);
            true
        } else if size > total && total > 0 && size.is_multiple_of(total) {
            let (major, minor) = self.split(f, total);
            push_front(of_factor, major.times(minor));
            push_front(of_sum, sum);
            true
        } else if size < total
            && let Some((count, row)) = self.rows(&parts, size, at)
        {
            of_factor.push_front(Term::Factor(f));
            push_front(of_sum, count.times(row));
            true
        } else {
            false
        }
    }

    /// Piece by piece. `x + y` against `y + x` makes pieces of pieces, one more for
    /// each step that both are apart: what is deeper than any model packs its parts
    /// does not line up.
    fn unify_sums(&mut self, a: &[Dim], b: &[Dim], at: NodeId) -> bool {
        if self.depth == MOST_NESTED {
            return false;
        }
        self.depth += 1;
        let lined_up = self.unify_pieces(a, b, at);
        self.depth -= 1;
        lined_up
    }

    fn unify_pieces(&mut self, a: &[Dim], b: &[Dim], at: NodeId) -> bool {
        let (a, b) = (Dim(vec![Term::Sum(a.to_vec())]), Dim(vec![Term::Sum(b.to_vec())]));
        let (Some(m), Some(n)) = (self.size(&a), self.size(&b)) else {
            return false;
        };
        if m != n {
            return false;
        }
        let borders = |space: &Self, dim: &Dim| -> Option<Vec<usize>> {
            let [Term::Sum(parts)] = &dim.0[..] else {
                return None;
            };
            let mut at = 0;
            let mut borders = vec![0];
            for part in parts {
                at += space.size(part)?;
                borders.push(at);
            }
            Some(borders)
        };
        let (Some(mut all), Some(more)) = (borders(self, &a), borders(self, &b)) else {
            return false;
        };
        all.extend(more);
        all.sort_unstable();
        all.dedup();
        for pair in all.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            match (self.cut(&a, from, to), self.cut(&b, from, to)) {
                (Some(x), Some(y)) => self.unify(&x, &y, at),
                _ => return false,
            }
        }
        true
    }
}

fn push_front(queue: &mut VecDeque<Term>, dim: Dim) {
    for term in dim.0.into_iter().rev() {
        queue.push_front(term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two packings of a large axis that are one entry apart: each piece that is
    /// lined up leaves a smaller pair of the same kind.
    #[test]
    fn sums_that_are_turned_against_each_other_are_frozen() {
        let mut space = Space::default();
        let (one, many) = (Dim::one(), space.fresh(1 << 20));
        let a = Dim::sum(vec![one.clone(), many.clone()]);
        let b = Dim::sum(vec![many.clone(), one]);
        space.unify(&a, &b, NodeId(0));
        let leaves = space.leaves(&many);
        assert!(leaves.iter().any(|leaf| space.frozen(*leaf).is_some()));
    }
}
