//! Which units of which group stay.

pub mod file;
mod pattern;

use std::collections::BTreeMap;

use crate::axes::{Analysis, Dim, FactorId, GroupId, Space, Term};
use crate::{Error, Result};

pub use pattern::Pattern;

/// Kept units per group, by the group's index in [`Analysis::groups`]; a group
/// that is not mentioned stays whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask {
    /// From the group's index to one flag per unit.
    pub kept: BTreeMap<GroupId, Vec<bool>>,
}

/// How many channels stay, for some of the turns of a
/// [`Narrower`](crate::channels::Narrower) by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// The turn and the number of channels, ascending.
    pub kept: Vec<(usize, usize)>,
}

impl Narrowing {
    /// Whether all channels stay.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

impl Mask {
    /// Number of units of a group that stay.
    pub fn count(&self, analysis: &Analysis, group: GroupId) -> usize {
        match self.kept.get(&group) {
            Some(kept) => kept.iter().filter(|k| **k).count(),
            None => analysis.groups.get(group.0).map_or(0, |g| g.units),
        }
    }

    /// Checks that the groups exist and have these units.
    ///
    /// # Errors
    /// Names the group that does not fit.
    pub fn check(&self, analysis: &Analysis) -> Result<()> {
        for (group, kept) in &self.kept {
            match analysis.groups.get(group.0) {
                Some(g) if g.units == kept.len() => {}
                Some(g) => {
                    return Err(Error::input(format!(
                        "the mask of group '{}' has {} units, the group {}",
                        g.name,
                        kept.len(),
                        g.units
                    )));
                }
                None => {
                    return Err(Error::input(format!(
                        "the mask names a group {} that does not exist",
                        group.0
                    )));
                }
            }
        }
        Ok(())
    }

    /// The same mask for a model in which the group `i` has the index `groups[i]`.
    #[must_use]
    pub fn renumbered(&self, groups: &[GroupId]) -> Self {
        let new = |(old, kept): (&GroupId, &Vec<bool>)| Some((*groups.get(old.0)?, kept.clone()));
        Self {
            kept: self.kept.iter().filter_map(new).collect(),
        }
    }

    /// The mask by factor, for sizes and indices.
    pub fn by_factor(&self, analysis: &Analysis) -> Kept {
        let mut kept = Kept::default();
        for (group, flags) in &self.kept {
            if let Some(group) = analysis.groups.get(group.0)
                && flags.iter().any(|k| !k)
            {
                let units = flags
                    .iter()
                    .enumerate()
                    .filter(|(_, k)| **k)
                    .map(|(i, _)| i)
                    .collect();
                kept.units.insert(group.leaf, units);
            }
        }
        kept
    }
}

/// An axis of more entries is of no real model; a list of them would fill the memory.
const LONGEST: usize = 1 << 25;

/// Whether so many entries are worth listing.
fn sane(outer: usize, inner: usize) -> Option<()> {
    (outer.checked_mul(inner)? <= LONGEST).then_some(())
}

/// Units that stay, per factor that shrinks.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// From the factor to its units that stay, ascending.
    pub units: BTreeMap<FactorId, Vec<usize>>,
}

impl Kept {
    /// Size of a factor after pruning.
    pub fn size(&self, space: &Space, factor: FactorId) -> usize {
        self.units
            .get(&factor)
            .map_or_else(|| space.factor_size(factor), Vec::len)
    }

    /// Whether a dimension changes.
    pub fn touches(&self, space: &Space, dim: &Dim) -> bool {
        space.leaves(dim).iter().any(|l| self.units.contains_key(l))
    }

    /// The flat indices along a dimension that stay, ascending; `None` for
    /// symbolic dimensions and for those of an absurd size.
    pub fn indices(&self, space: &Space, dim: &Dim) -> Option<Vec<usize>> {
        let mut at = vec![0usize];
        for term in &space.resolve(dim).0 {
            let (size, keep): (usize, Vec<usize>) = match term {
                Term::Factor(f) => {
                    let size = space.factor_size(*f);
                    sane(size, 1)?;
                    (
                        size,
                        self.units.get(f).cloned().unwrap_or_else(|| (0..size).collect()),
                    )
                }
                Term::Symbol(_) => return None,
                Term::Sum(parts) => {
                    let mut keep = Vec::new();
                    let mut offset = 0;
                    for part in parts {
                        keep.extend(self.indices(space, part)?.into_iter().map(|i| i + offset));
                        offset = offset.checked_add(space.size(part)?)?;
                    }
                    (offset, keep)
                }
            };
            sane(at.len(), keep.len())?;
            at = at
                .iter()
                .flat_map(|p| keep.iter().map(move |k| p * size + k))
                .collect();
        }
        Some(at)
    }

    /// For each flat index along a dimension whose only shrinking factor is
    /// `leaf`: the unit it belongs to. `None` as for [`Kept::indices`].
    pub fn unit_of_index(space: &Space, dim: &Dim, leaf: FactorId) -> Option<Vec<Option<usize>>> {
        let mut at: Vec<Option<usize>> = vec![None];
        for term in &space.resolve(dim).0 {
            let inner: Vec<Option<usize>> = match term {
                Term::Factor(f) => {
                    let size = space.factor_size(*f);
                    sane(size, 1)?;
                    (0..size).map(|i| (*f == leaf).then_some(i)).collect()
                }
                Term::Symbol(_) => return None,
                Term::Sum(parts) => {
                    let mut all = Vec::new();
                    for part in parts {
                        all.extend(Self::unit_of_index(space, part, leaf)?);
                        sane(all.len(), 1)?;
                    }
                    all
                }
            };
            sane(at.len(), inner.len())?;
            at = at
                .iter()
                .flat_map(|p| inner.iter().map(move |k| p.or(*k)))
                .collect();
        }
        Some(at)
    }
}
