//! What integers and dimensions come to once factors have sizes.

use super::dim::{Dim, FactorId, SymbolId, Term};
use super::int::{Atom, Int, IntOp, Mono, Poly};
use super::space::Space;

impl Space {
    /// The value of an integer when factors have the sizes `kept`.
    pub fn eval(&self, int: &Int, kept: &dyn Fn(FactorId) -> usize) -> Poly {
        match int {
            Int::Const(value) => Poly::constant(*value),
            Int::Dim(dim) => self.eval_dim(dim, kept),
            Int::Unknown(id) => Poly::atom(Atom::Unknown(*id)),
            Int::Op(op, ab) => {
                let (a, b) = (self.eval(&ab.0, kept), self.eval(&ab.1, kept));
                match op {
                    IntOp::Add => a.add(b, 1),
                    IntOp::Sub => a.add(b, -1),
                    IntOp::Mul => a.mul(&b),
                    IntOp::Div => a.div(&b),
                }
            }
        }
    }

    /// The size of a dimension when factors have the sizes `kept`.
    pub fn eval_dim(&self, dim: &Dim, kept: &dyn Fn(FactorId) -> usize) -> Poly {
        let mut total = Poly::constant(1);
        for term in &self.resolve(dim).0 {
            total = total.mul(&self.eval_term(term, kept));
        }
        total
    }

    fn eval_term(&self, term: &Term, kept: &dyn Fn(FactorId) -> usize) -> Poly {
        match term {
            Term::Factor(f) => Poly::constant(kept(*f) as i64),
            Term::Symbol(s) => match self.definition(*s) {
                Some(int) => self.eval(int, kept),
                None => Poly::atom(Atom::Symbol(*s)),
            },
            Term::Sum(parts) => parts
                .iter()
                .fold(Poly::default(), |sum, part| sum.add(self.eval_dim(part, kept), 1)),
        }
    }

    /// The value of an integer with the sizes of the file.
    pub fn value(&self, int: &Int) -> Poly {
        self.eval(int, &|f| self.factor_size(f))
    }

    /// One term as a monomial, with the sizes of the file.
    pub(crate) fn term_monomial(&self, term: &Term) -> Mono {
        self.eval_term(term, &|f| self.factor_size(f)).monomial()
    }

    /// Freezes every factor that an integer reads.
    pub fn freeze_int(&mut self, int: &Int, node: Option<crate::graph::NodeId>, why: &str) {
        let mut dims = Vec::new();
        int.dims(&mut dims);
        for dim in dims {
            self.freeze(&dim, node, why);
        }
    }

    /// The run-time size that an integer comes out as: `batch x heads / heads`.
    fn as_symbol(&self, int: &Int) -> Option<SymbolId> {
        let Mono {
            coefficient: 1,
            atoms,
        } = self.value(int).monomial()
        else {
            return None;
        };
        match atoms[..] {
            [Atom::Symbol(symbol)] => Some(symbol),
            _ => None,
        }
    }

    /// The dimension that an integer makes when something is created with it.
    pub fn dim_of(&mut self, int: &Int) -> Dim {
        match int {
            Int::Const(n) => match usize::try_from(*n) {
                Ok(n) => self.fresh(n),
                Err(_) => self.unknown(),
            },
            Int::Dim(dim) => dim.clone(),
            other => match self.as_symbol(other) {
                Some(symbol) => Dim::symbol(symbol),
                None => self.dim_of_result(other),
            },
        }
    }

    /// The same for the result of an operation.
    fn dim_of_result(&mut self, int: &Int) -> Dim {
        match int {
            // Run-time sizes are the major ones: batch x heads.
            Int::Op(IntOp::Mul, ab) if self.value(int).as_const().is_none() => {
                let (a, b) = (self.dim_of(&ab.0), self.dim_of(&ab.1));
                if self.size(&a).is_some() {
                    b.times(a)
                } else {
                    a.times(b)
                }
            }
            other => match self.value(other).as_const() {
                Some(n) => self.dim_of(&Int::Const(n)),
                None => self.derived(other.clone()),
            },
        }
    }
}
