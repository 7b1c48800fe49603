//! What a mask costs: multiply-accumulates, parameters, bytes.
//!
//! All three are additive over groups up to the products of two pruned axes in
//! one contraction, which do not occur between heads and neurons; a mask's cost
//! is always computed from the whole model, never from the sum of parts.

use std::collections::BTreeMap;

use super::sizes::Sizes;
use crate::axes::{Analysis, Dim, GroupId, SymbolId, Term};
use crate::graph::{Graph, Role};
use crate::mask::{Kept, Mask};
use crate::network::Network;

/// A cost model of one model, and of what lossless passes make of it.
pub struct Cost<'a> {
    dense: Work<'a>,
    /// With the index of each group in it.
    cheaper: Option<(Work<'a>, &'a [GroupId])>,
    /// The same with fewer channels inside heads: what is gone of them.
    narrower: Option<(Work<'a>, &'a [GroupId], Mask)>,
}

/// The work and the weights of one graph.
struct Work<'a> {
    analysis: &'a Analysis,
    symbols: BTreeMap<SymbolId, f64>,
    macs: Vec<Dim>,
    weights: Vec<(Vec<Dim>, usize)>,
}

impl<'a> Cost<'a> {
    /// Reads the work and the weights of a graph.
    pub fn new(network: &'a Network, sizes: &Sizes) -> Self {
        Cost {
            dense: Work::new(&network.graph, &network.axes, sizes),
            cheaper: None,
            narrower: None,
        }
    }

    /// The same model after passes that leave what it computes: the result will
    /// have gone through them. `groups` has the index of each group there.
    #[must_use]
    pub fn after(self, network: &'a Network, groups: &'a [GroupId], sizes: &Sizes) -> Self {
        Cost {
            cheaper: Some((Work::new(&network.graph, &network.axes, sizes), groups)),
            ..self
        }
    }

    /// The same model, after such passes or not, without the channels outside `gone`:
    /// those of an analysis in which they are groups.
    #[must_use]
    pub fn narrowed(self, network: &'a Network, groups: &'a [GroupId], gone: Mask, sizes: &Sizes) -> Self {
        Cost {
            narrower: Some((Work::new(&network.graph, &network.axes, sizes), groups, gone)),
            ..self
        }
    }

    /// The work that is left, and a mask with what is gone besides the units outside
    /// `mask`.
    fn left(&self, mask: &Mask) -> Option<(&Work<'a>, Mask)> {
        let (work, groups, gone) = self.narrower.as_ref()?;
        let mut all = mask.renumbered(groups);
        all.kept.extend(gone.kept.clone());
        Some((work, all))
    }

    /// Multiply-accumulates of the result that a mask gives.
    pub fn macs(&self, mask: &Mask) -> u64 {
        if let Some((work, mask)) = self.left(mask) {
            return work.macs(&mask);
        }
        match &self.cheaper {
            Some((work, groups)) => work.macs(&mask.renumbered(groups)),
            None => self.dense.macs(mask),
        }
    }

    /// Multiply-accumulates of the model itself under a mask, before any lossless
    /// pass.
    pub fn dense_macs(&self, mask: &Mask) -> u64 {
        self.dense.macs(mask)
    }

    /// Parameters (elements of constants) under a mask.
    pub fn parameters(&self, mask: &Mask) -> u64 {
        self.weigh(mask, |_| 1)
    }

    /// Parameters of the model itself under a mask, with all its channels.
    pub fn dense_parameters(&self, mask: &Mask) -> u64 {
        self.dense.weigh(mask, |_| 1)
    }

    /// Bytes of constants of the model itself under a mask, with all its channels.
    pub fn dense_bytes(&self, mask: &Mask) -> u64 {
        self.dense.weigh(mask, |size| size)
    }

    /// Bytes of constants under a mask.
    pub fn bytes(&self, mask: &Mask) -> u64 {
        self.weigh(mask, |size| size)
    }

    fn weigh(&self, mask: &Mask, of: impl Fn(usize) -> usize) -> u64 {
        match self.left(mask) {
            Some((work, mask)) => work.weigh(&mask, of),
            None => self.dense.weigh(mask, of),
        }
    }

    /// Multiply-accumulates of one contraction of the model itself.
    pub(super) fn macs_of(&self, contraction: usize) -> u64 {
        let analysis = self.dense.analysis;
        let macs = analysis.contractions.get(contraction).map(|c| analysis.macs(c));
        macs.map_or(0, |m| self.dense.size(&m, &Kept::default()) as u64)
    }

    /// The value of a run-time size.
    pub fn symbol(&self, id: SymbolId) -> f64 {
        self.dense.symbol(id)
    }
}

impl<'a> Work<'a> {
    fn new(graph: &Graph, analysis: &'a Analysis, sizes: &Sizes) -> Self {
        let macs = analysis
            .contractions
            .iter()
            .filter(|c| c.constant != [true, true])
            .map(|c| analysis.macs(c))
            .collect();
        let mut weights = Vec::new();
        for (at, value) in graph.values.iter().enumerate() {
            let Some(elem) = value.elem else { continue };
            let facts = &analysis.facts[at];
            if let (Role::Constant, Some(dims)) = (value.role, &facts.dims)
                && dims.iter().all(|d| analysis.space.size(d).is_some())
            {
                weights.push((dims.clone(), elem.size()));
            }
        }
        Work {
            analysis,
            symbols: sizes.symbols(graph, analysis),
            macs,
            weights,
        }
    }

    fn macs(&self, mask: &Mask) -> u64 {
        self.macs_kept(&mask.by_factor(self.analysis))
    }

    fn macs_kept(&self, kept: &Kept) -> u64 {
        let total: f64 = self.macs.iter().map(|d| self.size(d, kept)).sum();
        total as u64
    }

    fn weigh(&self, mask: &Mask, of: impl Fn(usize) -> usize) -> u64 {
        let kept = mask.by_factor(self.analysis);
        let each = |(dims, size): &(Vec<Dim>, usize)| {
            dims.iter().map(|d| self.size(d, &kept)).product::<f64>() * of(*size) as f64
        };
        self.weights.iter().map(each).sum::<f64>() as u64
    }

    fn symbol(&self, id: SymbolId) -> f64 {
        self.symbols.get(&id).copied().unwrap_or(1.0)
    }

    fn size(&self, dim: &Dim, kept: &Kept) -> f64 {
        let space = &self.analysis.space;
        space
            .resolve(dim)
            .0
            .iter()
            .map(|term| match term {
                Term::Factor(f) => kept.size(space, *f) as f64,
                Term::Symbol(s) => self.symbol(*s),
                Term::Sum(parts) => parts.iter().map(|p| self.size(p, kept)).sum(),
            })
            .product()
    }
}
