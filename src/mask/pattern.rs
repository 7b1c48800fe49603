//! A mask by where its groups are in the network: for the same network in another form,
//! whose groups have other names.

use std::collections::BTreeMap;

use super::Mask;
use crate::axes::{Analysis, GroupId, Kind, Place, PruneGroup};
use crate::{Error, Result};

/// Where a group is: the n-th of its kind in its place.
type PatternKey = (Kind, Option<Place>, usize);

/// A mask by where its groups are.
#[derive(Debug, Clone, Default)]
pub struct Pattern {
    kept: BTreeMap<PatternKey, (String, Vec<bool>)>,
}

impl Pattern {
    /// Of a mask of one form of a network.
    pub fn of(analysis: &Analysis, mask: &Mask) -> Self {
        let own = keys(analysis).into_iter().filter_map(|(key, (at, group))| {
            let kept = mask.kept.get(&at)?;
            Some((key, (group.name.clone(), kept.clone())))
        });
        Self { kept: own.collect() }
    }

    /// The same mask for another form of it.
    ///
    /// # Errors
    /// A group that is not there, or has another number of units.
    pub fn mask(&self, analysis: &Analysis) -> Result<Mask> {
        let there = keys(analysis);
        let mut mask = Mask::default();
        for (key, (name, kept)) in &self.kept {
            let Some((at, group)) = there.get(key) else {
                return Err(Error::input(format!(
                    "it has no group that '{name}' of the other form corresponds to"
                )));
            };
            if group.units != kept.len() {
                return Err(Error::input(format!(
                    "'{}' has {} units, and '{name}' of the other form {}",
                    group.name,
                    group.units,
                    kept.len()
                )));
            }
            mask.kept.insert(*at, kept.clone());
        }
        Ok(mask)
    }
}

fn keys(analysis: &Analysis) -> BTreeMap<PatternKey, (GroupId, &PruneGroup)> {
    let mut counts: BTreeMap<(Kind, Option<Place>), usize> = BTreeMap::new();
    let each = analysis.indexed().map(|(at, group)| {
        let nth = counts.entry((group.kind, group.place)).or_default();
        *nth += 1;
        ((group.kind, group.place, *nth), (at, group))
    });
    each.collect()
}
