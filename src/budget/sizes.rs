//! The run-time sizes that costs are computed for.
//!
//! They are those of one batch of inputs: each symbol has the size of the axis that it
//! names, or follows from others. What neither gives (the steps of a strided convolution,
//! the tokens that a mask leaves) is read off values that one run fetches.

use std::collections::{BTreeMap, BTreeSet};

use crate::axes::{Analysis, Dim, Int, IntOp, SymbolId, Term};
use crate::graph::{Graph, Role};
use crate::network::Network;
use crate::tensor::{Feeds, Tensor};

/// Sizes of one batch.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Batch size, of axes that are called one.
    pub batch: usize,
    /// Length of a sequence, of axes of which nothing else is known.
    pub seq: usize,
    /// Shapes of values by name: graph inputs, and what a run gave.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

type KnownSymbols = BTreeMap<SymbolId, f64>;

impl Sizes {
    /// Of a batch of inputs.
    pub fn of(batch: usize, seq: usize, feeds: &Feeds) -> Self {
        let shape = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shape.clone());
        Sizes {
            batch,
            seq,
            shapes: feeds.iter().map(shape).collect(),
        }
    }

    /// Values whose shapes tell the sizes that costs need and nothing tells yet; none
    /// where all are known.
    pub fn unknown(&self, network: &Network) -> Vec<String> {
        let Network { graph, axes, .. } = network;
        let mut known = self.told(graph, axes);
        let mut needed = BTreeSet::new();
        for contraction in axes.contractions.iter().filter(|c| c.constant != [true, true]) {
            symbols_in(axes, &axes.macs(contraction), &mut needed);
        }
        needed.retain(|s| !known.contains_key(s));
        let mut values = Vec::new();
        for (at, value) in graph.values.iter().enumerate() {
            if needed.is_empty() {
                break;
            }
            let dims = axes.facts[at].dims.as_deref().unwrap_or_default();
            if value.role == Role::Constant || value.name.is_empty() {
                continue;
            }
            let mut own = BTreeSet::new();
            dims.iter().for_each(|dim| {
                own.extend(lone(axes, dim, &known));
            });
            if own.iter().any(|s| needed.contains(s)) {
                values.push(value.name.clone());
                // Which sizes follow from these is seen with any number in their place.
                known.extend(own.iter().map(|s| (*s, 1.0)));
                derive(axes, &mut known);
                needed.retain(|s| !known.contains_key(s));
            }
        }
        values
    }

    /// A value for every symbol of an analysis.
    pub(super) fn symbols(&self, graph: &Graph, analysis: &Analysis) -> KnownSymbols {
        let space = &analysis.space;
        let mut values = self.told(graph, analysis);
        let first = |input| match &analysis.facts(input).dims.as_ref()?.first()?.0[..] {
            [Term::Symbol(s)] => Some(*s),
            _ => None,
        };
        let leading: BTreeSet<SymbolId> = graph.inputs.iter().filter_map(|i| first(*i)).collect();
        for (id, name) in space.free_symbols() {
            let lower = name.to_ascii_lowercase();
            let value = match () {
                () if lower.contains("batch") || leading.contains(&id) => self.batch,
                () if lower.contains("past") => 0,
                () => self.seq,
            };
            values.entry(id).or_insert(value as f64);
        }
        for id in (0..space.symbol_count()).map(|id| SymbolId(id as u32)) {
            if let (Some(definition), false) = (space.definition(id), values.contains_key(&id)) {
                let value = evaluate(analysis, definition, &values).unwrap_or(self.seq as f64);
                values.insert(id, value);
            }
        }
        values
    }

    /// What the shapes tell.
    fn told(&self, graph: &Graph, analysis: &Analysis) -> KnownSymbols {
        let mut known = KnownSymbols::new();
        let inputs = graph.inputs.iter().map(|id| id.0 as usize);
        let others = (0..graph.values.len()).filter(|at| graph.values[*at].role != Role::Constant);
        for at in inputs.chain(others) {
            let shape = self.shapes.get(&graph.values[at].name);
            if let (Some(shape), Some(dims)) = (shape, &analysis.facts[at].dims) {
                learn(analysis, dims, shape, &mut known);
                derive(analysis, &mut known);
            }
        }
        known
    }
}

/// Takes over what the shape of a value tells.
fn learn(analysis: &Analysis, dims: &[Dim], shape: &[usize], known: &mut KnownSymbols) {
    if dims.len() != shape.len() {
        return;
    }
    // A value of this name may be another one, where the graph is another one.
    let differs =
        |(dim, size): (&Dim, &usize)| size_of(analysis, dim, known).is_some_and(|n| n != *size as f64);
    if dims.iter().zip(shape).any(differs) {
        return;
    }
    for (dim, size) in dims.iter().zip(shape) {
        let Some(symbol) = lone(analysis, dim, known) else {
            continue;
        };
        let mut whole = known.clone();
        whole.insert(symbol, 1.0);
        if let Some(rest) = size_of(analysis, dim, &whole)
            && rest > 0.0
            && (*size as f64 / rest).fract() == 0.0
        {
            known.insert(symbol, *size as f64 / rest);
        }
    }
}

/// The only symbol of a dimension whose size is not known, where it is a factor of it.
fn lone(analysis: &Analysis, dim: &Dim, known: &KnownSymbols) -> Option<SymbolId> {
    let mut found = None;
    for term in &analysis.space.resolve(dim).0 {
        match term {
            Term::Symbol(s) if !known.contains_key(s) && found.replace(*s).is_some() => return None,
            Term::Sum(parts) if parts.iter().any(|p| size_of(analysis, p, known).is_none()) => return None,
            _ => {}
        }
    }
    found
}

/// Adds the symbols whose definition can be evaluated.
fn derive(analysis: &Analysis, known: &mut KnownSymbols) {
    let space = &analysis.space;
    for id in (0..space.symbol_count()).map(|id| SymbolId(id as u32)) {
        if let (Some(definition), false) = (space.definition(id), known.contains_key(&id))
            && let Some(value) = evaluate(analysis, definition, known)
        {
            known.insert(id, value);
        }
    }
}

fn symbols_in(analysis: &Analysis, dim: &Dim, found: &mut BTreeSet<SymbolId>) {
    for term in analysis.space.resolve(dim).0 {
        match term {
            Term::Symbol(s) => _ = found.insert(s),
            Term::Sum(parts) => parts.iter().for_each(|p| symbols_in(analysis, p, found)),
            Term::Factor(_) => {}
        }
    }
}

/// The size of a dimension, where all symbols in it are known.
fn size_of(analysis: &Analysis, dim: &Dim, known: &KnownSymbols) -> Option<f64> {
    let space = &analysis.space;
    let terms = space.resolve(dim).0;
    let sizes = terms.iter().map(|term| match term {
        Term::Factor(f) => Some(space.factor_size(*f) as f64),
        Term::Symbol(s) => known.get(s).copied(),
        Term::Sum(parts) => parts.iter().map(|p| size_of(analysis, p, known)).sum(),
    });
    sizes.product()
}

fn evaluate(analysis: &Analysis, int: &Int, known: &KnownSymbols) -> Option<f64> {
    match int {
        Int::Const(n) => Some(*n as f64),
        Int::Dim(dim) => size_of(analysis, dim, known),
        Int::Unknown(_) => None,
        Int::Op(op, ab) => {
            let (a, b) = (
                evaluate(analysis, &ab.0, known)?,
                evaluate(analysis, &ab.1, known)?,
            );
            match op {
                IntOp::Add => Some(a + b),
                IntOp::Sub => Some(a - b),
                IntOp::Mul => Some(a * b),
                IntOp::Div => (b != 0.0).then(|| (a / b).floor()),
            }
        }
    }
}
