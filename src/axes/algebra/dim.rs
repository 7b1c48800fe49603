//! Dimensions as products of terms.

/// A factor of some dimension: an id in a [`Space`](crate::axes::Space).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactorId(pub u32);

/// A size that is known at run time only, as in `batch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymbolId(pub u32);

/// One term of a product.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Term {
    /// A factor of known size.
    Factor(FactorId),
    /// A symbolic size.
    Symbol(SymbolId),
    /// Parts laid one after another: packed projections, concatenations.
    Sum(Vec<Dim>),
}

/// A dimension: the product of its terms, major to minor. The empty product is
/// the size 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Dim(pub Vec<Term>);

impl Dim {
    /// The size 1.
    pub fn one() -> Self {
        Dim(Vec::new())
    }

    /// One factor.
    pub fn factor(id: FactorId) -> Self {
        Dim(vec![Term::Factor(id)])
    }

    /// One symbol.
    pub fn symbol(id: SymbolId) -> Self {
        Dim(vec![Term::Symbol(id)])
    }

    /// Parts one after another; a single part is itself.
    pub fn sum(parts: Vec<Dim>) -> Self {
        let mut flat = Vec::with_capacity(parts.len());
        for part in parts {
            match <[Term; 1]>::try_from(part.0) {
                Ok([Term::Sum(inner)]) => flat.extend(inner),
                Ok([other]) => flat.push(Dim(vec![other])),
                Err(terms) => flat.push(Dim(terms)),
            }
        }
        if flat.len() == 1 {
            flat.swap_remove(0)
        } else {
            Dim(vec![Term::Sum(flat)])
        }
    }

    /// The product of two dimensions, `self` the major one.
    pub fn times(mut self, minor: Dim) -> Self {
        self.0.extend(minor.0);
        self
    }

    /// Whether it is the empty product.
    pub fn is_one(&self) -> bool {
        self.0.is_empty()
    }
}

/// Walks the leaves of a resolved dimension.
pub(crate) fn visit(dim: &Dim, leaf: &mut dyn FnMut(&Term)) {
    for term in &dim.0 {
        match term {
            Term::Sum(parts) => parts.iter().for_each(|p| visit(p, leaf)),
            other => leaf(other),
        }
    }
}
