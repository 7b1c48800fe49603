//! Groups that keep the same number of units, each its own best ones.
//!
//! A set of such groups is one item for the allocation: a level of it costs what
//! it costs in all members and does the damage that it does in all. The number
//! that is found holds for every member; which units make it up is each
//! member's own ranking.

use std::collections::BTreeMap;

use super::scores::best_first;
use crate::axes::{Analysis, GroupId};
use crate::mask::Mask;
use crate::numerics::disjoint::Disjoint;
use crate::numerics::score::{Curve, Ranking};
use crate::sites::PruneTarget;
use crate::{Error, Result};

/// Items in sets of one number each; every item is in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tied {
    sets: Vec<Set>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    /// Ascending.
    members: Vec<usize>,
    /// Another group of the set is not to be pruned, so that none can be.
    whole: bool,
}

impl Tied {
    /// The targets of a network, as [`Analysis::even`] ties them.
    pub fn of(analysis: &Analysis, targets: &[PruneTarget]) -> Self {
        let item = |group: &GroupId| targets.iter().position(|t| t.group == *group);
        let ties = analysis.even.iter().map(|tie| tie.iter().map(item).collect());
        Self::new(targets.len(), ties)
    }

    /// `count` items; each tie lists its items, with `None` for what is none.
    pub fn new(count: usize, ties: impl IntoIterator<Item = Vec<Option<usize>>>) -> Self {
        let mut joined = Disjoint::new(count);
        let mut whole = Vec::new();
        for tie in ties {
            let known: Vec<usize> = tie.iter().flatten().copied().collect();
            known.windows(2).for_each(|pair| joined.unite(pair[0], pair[1]));
            if known.len() < tie.len() {
                whole.extend(known);
            }
        }
        let mut sets: BTreeMap<usize, Set> = BTreeMap::new();
        for item in 0..count {
            let set = sets.entry(joined.root(item)).or_insert_with(|| Set {
                members: Vec::new(),
                whole: false,
            });
            set.members.push(item);
            set.whole |= whole.contains(&item);
        }
        Self {
            sets: sets.into_values().collect(),
        }
    }

    /// The ranking of each set. Where units have scores, the k-th best of all
    /// members count together.
    ///
    /// # Errors
    /// Members that are ranked in different ways or have other numbers of units.
    pub(super) fn rankings(&self, rankings: &[Ranking]) -> Result<Vec<Ranking>> {
        self.sets.iter().map(|set| set.ranking(rankings)).collect()
    }

    /// What the levels of each set cost, from those of its members.
    pub(super) fn levels(&self, levels: &[Vec<u64>]) -> Vec<Vec<u64>> {
        let joined = |set: &Set| {
            let mut members = set.of(levels);
            let mut sum = members.next().cloned().unwrap_or_default();
            for own in members {
                sum.iter_mut()
                    .zip(own)
                    .for_each(|(a, b)| *a = a.saturating_add(*b));
            }
            sum
        };
        self.sets.iter().map(joined).collect()
    }

    /// The numbers that all members of each set may keep.
    pub(super) fn allowed(&self, allowed: &[Vec<usize>]) -> Vec<Vec<usize>> {
        let common = |set: &Set| {
            let mut members = set.of(allowed);
            let mut common = members.next().cloned().unwrap_or_default();
            members.for_each(|own| common.retain(|k| own.contains(k)));
            match (set.whole, common.last()) {
                (true, Some(all)) => vec![*all],
                _ => common,
            }
        };
        self.sets.iter().map(common).collect()
    }

    /// A number per set as a number per item.
    pub(super) fn spread(&self, counts: &[usize]) -> Vec<usize> {
        let mut out = vec![0; self.sets.iter().map(|s| s.members.len()).sum()];
        for (set, count) in self.sets.iter().zip(counts) {
            for member in &set.members {
                if let Some(slot) = out.get_mut(*member) {
                    *slot = *count;
                }
            }
        }
        out
    }
}

impl Set {
    fn of<'s, T>(&'s self, all: &'s [T]) -> impl Iterator<Item = &'s T> {
        self.members.iter().filter_map(|m| all.get(*m))
    }

    fn ranking(&self, rankings: &[Ranking]) -> Result<Ranking> {
        if let ([one], false) = (&self.members[..], self.whole) {
            return Ok(rankings.get(*one).cloned().unwrap_or(Ranking::Whole));
        }
        if self.whole || self.of(rankings).any(|r| matches!(r, Ranking::Whole)) {
            return Ok(Ranking::Whole);
        }
        let mut members = self.of(rankings).map(sorted);
        let mut total = members.next().unwrap_or(Ranking::Whole);
        for own in members {
            match (&mut total, own) {
                (Ranking::Curve(sum), Ranking::Curve(own)) if sum.error.len() == own.error.len() => {
                    sum.error.iter_mut().zip(own.error).for_each(|(a, b)| *a += b);
                }
                (Ranking::Scores(sum), Ranking::Scores(own)) if sum.len() == own.len() => {
                    sum.iter_mut().zip(own).for_each(|(a, b)| *a += b);
                }
                _ => {
                    return Err(Error::input(
                        "groups that are to keep the same number of units are ranked in different ways",
                    ));
                }
            }
        }
        // A score is that of one unit, whatever stands beside it.
        if let Ranking::Scores(sum) = &mut total {
            let members = self.members.len().max(1) as f64;
            sum.iter_mut().for_each(|s| *s /= members);
        }
        Ok(total)
    }
}

/// The same ranking of units that are numbered from the best.
fn sorted(ranking: &Ranking) -> Ranking {
    match ranking {
        Ranking::Curve(curve) => Ranking::Curve(Curve {
            order: (0..curve.order.len()).rev().collect(),
            error: curve.error.clone(),
        }),
        Ranking::Scores(scores) => {
            Ranking::Scores(best_first(scores).into_iter().map(|u| scores[u]).collect())
        }
        Ranking::Whole => Ranking::Whole,
    }
}

/// Checks a mask that was made elsewhere.
///
/// # Errors
/// Groups that are to keep the same number of units and do not.
pub fn check_even(analysis: &Analysis, mask: &Mask) -> Result<()> {
    for tie in &analysis.even {
        let mut kept = tie.iter().map(|g| (g, mask.count(analysis, *g)));
        let Some((first, count)) = kept.next() else {
            continue;
        };
        if let Some((other, different)) = kept.find(|(_, n)| *n != count) {
            let name = |g: &GroupId| analysis.groups.get(g.0).map_or("?", |g| g.name.as_str());
            return Err(Error::input(format!(
                "the mask keeps {count} units of '{}' and {different} of '{}': with --uniform-kv they keep the same number",
                name(first),
                name(other)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(error: &[f64]) -> Ranking {
        Ranking::Curve(Curve {
            order: (0..error.len() - 1).collect(),
            error: error.to_vec(),
        })
    }

    #[test]
    fn a_set_is_one_item() {
        let even = Tied::new(4, [vec![Some(0), Some(2)]]);
        assert_eq!(even.spread(&[2, 9, 0]), [2, 9, 2, 0]);
        assert_eq!(
            even.levels(&[vec![0, 1], vec![5], vec![2, 3], vec![7]]),
            [vec![2, 4], vec![5], vec![7]]
        );
        assert_eq!(
            even.allowed(&[vec![0, 1, 3], vec![9], vec![1, 2, 3], vec![2]]),
            [vec![1, 3], vec![9], vec![2]]
        );
    }

    #[test]
    fn damage_adds_up_and_best_scores_meet_best() {
        let even = Tied::new(2, [vec![Some(0), Some(1)]]);
        let joined = even.rankings(&[curve(&[0.0, 0.1, 1.0]), curve(&[0.0, 0.5, 1.0])]);
        let Ranking::Curve(joined) = &joined.unwrap()[0] else {
            panic!("no curve")
        };
        assert_eq!(joined.error, [0.0, 0.6, 2.0]);
        let scores = [
            Ranking::Scores(vec![1.0, 4.0, 2.0]),
            Ranking::Scores(vec![8.0, 0.0, 6.0]),
        ];
        let Ranking::Scores(joined) = &even.rankings(&scores).unwrap()[0] else {
            panic!("no scores")
        };
        assert_eq!(joined, &[6.0, 4.0, 0.5]);
        assert!(even.rankings(&[scores[0].clone(), curve(&[0.0, 1.0])]).is_err());
    }

    #[test]
    fn what_one_keeps_whole_all_keep_whole() {
        let tied = Tied::new(2, [vec![Some(0), Some(1)]]);
        let rankings = [Ranking::Whole, curve(&[0.0, 1.0])];
        assert!(matches!(tied.rankings(&rankings).unwrap()[..], [Ranking::Whole]));
        let beside = Tied::new(1, [vec![Some(0), None]]);
        assert!(matches!(
            beside.rankings(&rankings[1..]).unwrap()[..],
            [Ranking::Whole]
        ));
        assert_eq!(beside.allowed(&[vec![0, 1]]), [vec![1]]);
    }
}
