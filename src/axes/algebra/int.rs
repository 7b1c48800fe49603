//! Integers that are computed from shapes, as expressions over dimensions.
//!
//! A graph computes the entries of a shape vector at run time. Here each entry
//! is an expression; evaluated with the sizes that remain after pruning it
//! tells whether the running graph will still compute what is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dim::{Dim, SymbolId};

/// An integer of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Int {
    /// A constant of the file.
    Const(i64),
    /// The size of a dimension, read with `Shape`.
    Dim(Dim),
    /// Computed from two others.
    Op(IntOp, Arc<(Int, Int)>),
    /// Not followed; the number tells them apart.
    Unknown(u32),
}

/// Arithmetic that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IntOp {
    Add,
    Sub,
    Mul,
    Div,
}

/// What a polynomial is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A run-time size.
    Symbol(SymbolId),
    /// An integer that is not followed.
    Unknown(u32),
    /// A quotient that does not come out even.
    Quotient(Poly, Poly),
    /// A polynomial of several monomials, where one factor is wanted.
    Whole(Poly),
}

/// A polynomial over [`Atom`]s with integer coefficients: from sorted atoms to
/// the coefficient; no zero coefficients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Poly(pub BTreeMap<Vec<Atom>, i64>);

/// One monomial: coefficient and sorted atoms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mono {
    /// The coefficient.
    pub coefficient: i64,
    /// Sorted atoms.
    pub atoms: Vec<Atom>,
}

impl Int {
    /// Arithmetic on two integers; constants are folded.
    pub fn op(op: IntOp, a: Int, b: Int) -> Int {
        match (op, &a, &b) {
            (IntOp::Add, Int::Const(x), Int::Const(y)) => x.checked_add(*y).map(Int::Const),
            (IntOp::Sub, Int::Const(x), Int::Const(y)) => x.checked_sub(*y).map(Int::Const),
            (IntOp::Mul, Int::Const(x), Int::Const(y)) => x.checked_mul(*y).map(Int::Const),
            (IntOp::Div, Int::Const(x), Int::Const(y)) => x.checked_div(*y).map(Int::Const),
            (IntOp::Add | IntOp::Sub, _, Int::Const(0)) | (IntOp::Mul | IntOp::Div, _, Int::Const(1)) => {
                Some(a.clone())
            }
            (IntOp::Add, Int::Const(0), _) | (IntOp::Mul, Int::Const(1), _) => Some(b.clone()),
            _ => None,
        }
        .unwrap_or_else(|| Int::Op(op, Arc::new((a, b))))
    }

    /// Number of nodes of the expression, counted up to `limit`.
    pub fn weight(&self, limit: usize) -> usize {
        match self {
            Int::Op(_, ab) if limit > 0 => {
                let a = ab.0.weight(limit - 1);
                1 + a + ab.1.weight(limit.saturating_sub(1 + a))
            }
            _ => 1,
        }
    }

    /// The dimensions that it reads.
    pub fn dims(&self, out: &mut Vec<Dim>) {
        match self {
            Int::Dim(dim) => out.push(dim.clone()),
            Int::Op(_, ab) => {
                ab.0.dims(out);
                ab.1.dims(out);
            }
            _ => {}
        }
    }
}

impl Poly {
    /// A constant.
    pub fn constant(value: i64) -> Self {
        Mono {
            coefficient: value,
            atoms: vec![],
        }
        .into()
    }

    pub(super) fn atom(atom: Atom) -> Self {
        Mono {
            coefficient: 1,
            atoms: vec![atom],
        }
        .into()
    }

    /// Its value when it has no atoms.
    pub fn as_const(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&vec![]).copied(),
            _ => None,
        }
    }

    /// As one monomial; a sum of several becomes one atom.
    pub fn monomial(&self) -> Mono {
        let mut terms = self.0.iter();
        match (terms.next(), terms.next()) {
            (None, _) => Mono {
                coefficient: 0,
                atoms: vec![],
            },
            (Some((atoms, c)), None) => Mono {
                coefficient: *c,
                atoms: atoms.clone(),
            },
            _ => Mono {
                coefficient: 1,
                atoms: vec![Atom::Whole(self.clone())],
            },
        }
    }

    pub(super) fn add(mut self, other: Self, sign: i64) -> Self {
        for (atoms, c) in other.0 {
            let entry = self.0.entry(atoms).or_insert(0);
            *entry = entry.saturating_add(c.saturating_mul(sign));
        }
        self.0.retain(|_, c| *c != 0);
        self
    }

    pub(super) fn mul(&self, other: &Self) -> Self {
        let mut out = Poly::default();
        for (a, c) in &self.0 {
            for (b, d) in &other.0 {
                let mut atoms: Vec<Atom> = a.iter().chain(b).cloned().collect();
                atoms.sort();
                let entry = out.0.entry(atoms).or_insert(0);
                *entry = entry.saturating_add(c.saturating_mul(*d));
            }
        }
        out.0.retain(|_, c| *c != 0);
        out
    }

    pub(super) fn div(&self, other: &Self) -> Self {
        let by = other.monomial();
        let exact: Option<Vec<Mono>> = self
            .0
            .iter()
            .map(|(atoms, c)| {
                Mono {
                    coefficient: *c,
                    atoms: atoms.clone(),
                }
                .div(&by)
            })
            .collect();
        match (exact, self.as_const(), other.as_const()) {
            (Some(terms), ..) => terms
                .into_iter()
                .fold(Poly::default(), |sum, t| sum.add(t.into(), 1)),
            (None, Some(a), Some(b)) if b != 0 => Poly::constant(a.div_euclid(b)),
            _ => Poly::atom(Atom::Quotient(self.clone(), other.clone())),
        }
    }
}

impl Mono {
    /// The constant 1.
    pub fn one() -> Self {
        Mono {
            coefficient: 1,
            atoms: vec![],
        }
    }

    /// Whether it is the constant 1.
    pub fn is_one(&self) -> bool {
        self.coefficient == 1 && self.atoms.is_empty()
    }

    /// The exact quotient.
    pub fn div(&self, by: &Mono) -> Option<Mono> {
        if by.coefficient == 0 || self.coefficient % by.coefficient != 0 {
            return None;
        }
        let mut atoms = self.atoms.clone();
        for atom in &by.atoms {
            let at = atoms.iter().position(|a| a == atom)?;
            atoms.remove(at);
        }
        Some(Mono {
            coefficient: self.coefficient / by.coefficient,
            atoms,
        })
    }
}

impl From<Mono> for Poly {
    fn from(mono: Mono) -> Self {
        let mut poly = Poly::default();
        if mono.coefficient != 0 {
            poly.0.insert(mono.atoms, mono.coefficient);
        }
        poly
    }
}
