//! Several files that hold the same weights: an encoder, a decoder and a decoder
//! with a cache, exported from one model. What they share must be pruned alike,
//! or they would no longer be one model.
//!
//! ```text
//! tie       groups of all files  -> classes that share one mask
//! pool      statistics per file  -> the same for all members of a class
//! (rank, damage, re-fitting run per file as ever; with pooled statistics
//!  members of a class get the same order and the same new weights)
//! items     rankings per file    -> one item of the allocation per class
//! ```
//!
//! Groups are matched by content, not by name: two groups are tied when a sink of
//! each reads the same matrix, however it is stored (transposed, another file
//! layout, another name). Weights whose entries are all equal tie nothing, and
//! within one file nothing is tied: the k-th group of one file that holds a
//! matrix belongs to the k-th of another.
//!
//! Sequential reconstruction would give members of a class different weights,
//! because each file has its own inputs: tied groups are to be re-fitted locally.

use std::collections::BTreeMap;

use faer::Mat;
use sha2::{Digest, Sha256};

use crate::axes::{GroupId, Kind, PruneGroup};
use crate::budget::{Item, Tied};
use crate::graph::{ValueId, ancestors};
use crate::network::Network;
use crate::numerics::disjoint::Disjoint;
use crate::numerics::score::{Curve, Ranking};
use crate::numerics::{SiteStatistics, Statistics};
use crate::onnx;
use crate::sites::{PruneTarget, Site};
use crate::{Error, Result, ResultExt};

/// One of the files.
#[derive(Clone, Copy)]
pub struct SharedFile<'a> {
    /// How messages call it.
    pub name: &'a str,
    /// The network in it.
    pub network: &'a Network,
    /// The groups that may be pruned.
    pub targets: &'a [PruneTarget],
}

impl SharedFile<'_> {
    fn group(&self, target: usize) -> Option<(&PruneTarget, &PruneGroup)> {
        let target = self.targets.get(target)?;
        Some((target, self.network.group(target.group)))
    }

    /// How messages call a group.
    fn label(&self, target: usize) -> String {
        let name = self.group(target).map_or("?", |(_, group)| group.name.as_str());
        format!("'{name}' of {}", self.name)
    }
}

/// A group of one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Index of the file.
    pub file: usize,
    /// Index in the file's [`SharedFile::targets`].
    pub target: usize,
}

/// Groups that share one mask; most have one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileClass {
    /// The groups, in the order of the files.
    pub members: Vec<Member>,
    /// Units of each.
    pub units: usize,
    /// Least number of units to keep, for all of them.
    pub least: usize,
}

impl FileClass {
    /// Whether it spans several groups.
    pub fn is_tied(&self) -> bool {
        self.members.len() > 1
    }
}

/// What a sink's weight holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileContent {
    /// Of the rows, whatever their order.
    rows: [u8; 32],
    /// Of the rows in their order.
    order: [u8; 32],
}

/// The classes of all chosen groups of all files, in the order of their first
/// members: every chosen group is in one.
///
/// # Errors
/// Groups that hold the same weights but cannot share a mask: different numbers
/// of units, or units in another order; a weight that cannot be read.
pub fn tie(files: &[SharedFile<'_>]) -> Result<Vec<FileClass>> {
    let members: Vec<Member> = files
        .iter()
        .enumerate()
        .flat_map(|(file, f)| (0..f.targets.len()).map(move |target| Member { file, target }))
        .collect();
    let mut classes = Disjoint::new(members.len());
    // By content and how often the file has had it before.
    let mut first: BTreeMap<([u8; 32], usize), (usize, FileContent)> = BTreeMap::new();
    let mut counts: BTreeMap<(usize, [u8; 32]), usize> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        let Some(file) = files.get(member.file) else {
            continue;
        };
        for content in contents(file, member.target).context(|| file.label(member.target))? {
            let count = counts.entry((member.file, content.rows)).or_default();
            let key = (content.rows, *count);
            *count += 1;
            match first.get(&key) {
                None => {
                    first.insert(key, (at, content));
                }
                Some((other, theirs)) => {
                    if let Some(other) = members.get(*other) {
                        agree(files, *other, theirs, *member, &content)?;
                    }
                    classes.unite(*other, at);
                }
            }
        }
    }
    let mut found: BTreeMap<usize, FileClass> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        let Some((target, group)) = files.get(member.file).and_then(|f| f.group(member.target)) else {
            continue;
        };
        let class = found.entry(classes.root(at)).or_insert_with(|| FileClass {
            members: Vec::new(),
            units: group.units,
            least: 0,
        });
        class.members.push(*member);
        class.least = class.least.max(target.least);
    }
    Ok(found.into_values().collect())
}

/// Whether two groups with the same rows can share a mask.
fn agree(
    files: &[SharedFile<'_>],
    a: Member,
    of_a: &FileContent,
    b: Member,
    of_b: &FileContent,
) -> Result<()> {
    let (Some(first), Some(second)) = (files.get(a.file), files.get(b.file)) else {
        return Ok(());
    };
    let (Some((x, _)), Some((y, _))) = (first.group(a.target), second.group(b.target)) else {
        return Ok(());
    };
    let conflict = |what: String| {
        Err(Error::input(format!(
            "{} and {} hold the same weights, but {what}: they cannot share a mask; exclude them with \
             --exclude, or prune the files one by one",
            first.label(a.target),
            second.label(b.target)
        )))
    };
    if x.units.len() != y.units.len() {
        return conflict(format!(
            "one has {} units and the other {}",
            x.units.len(),
            y.units.len()
        ));
    }
    if of_a.order != of_b.order {
        return conflict("their rows stand in different orders".to_owned());
    }
    if x.units != y.units {
        return conflict("their units are made of different rows".to_owned());
    }
    Ok(())
}

/// The contents of the sinks' weights of a group, each once. Weights that are
/// the same everywhere have none: they tell nothing apart.
fn contents(file: &SharedFile<'_>, target: usize) -> Result<Vec<FileContent>> {
    let Some((target, _)) = file.group(target) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<FileContent> = Vec::new();
    for site in &target.sites {
        let content = match &site.weight {
            Some(weight) => of_matrix(&weight.read(file.network)?),
            None => of_constants(file.network, site.sink.weight)?,
        };
        found.extend(content);
    }
    // A weight that several sinks read, and each copy of it, is one content.
    let mut once: Vec<FileContent> = Vec::new();
    for content in found {
        if !once.contains(&content) {
            once.push(content);
        }
    }
    Ok(once)
}

fn of_matrix(matrix: &Mat<f64>) -> Option<FileContent> {
    let any = matrix.col_iter().next()?.iter().next().copied()?;
    if matrix.col_iter().all(|c| c.iter().all(|x| *x == any)) {
        return None;
    }
    let size = [matrix.nrows() as u64, matrix.ncols() as u64];
    let mut rows: Vec<[u8; 32]> = matrix
        .row_iter()
        .map(|row| {
            let mut hash = Sha256::new();
            for x in row.iter() {
                hash.update(x.to_bits().to_le_bytes());
            }
            hash.finalize().into()
        })
        .collect();
    let all = |rows: &[[u8; 32]]| -> [u8; 32] {
        let mut hash = Sha256::new();
        for n in size {
            hash.update(n.to_le_bytes());
        }
        for row in rows {
            hash.update(row);
        }
        hash.finalize().into()
    };
    let order = all(&rows);
    rows.sort_unstable();
    Some(FileContent {
        rows: all(&rows),
        order,
    })
}

/// For a weight that is no plain matrix (quantised, computed): all constants that
/// it is computed from, as they are stored.
fn of_constants(network: &Network, weight: ValueId) -> Result<Option<FileContent>> {
    let mut hashes: Vec<[u8; 32]> = Vec::new();
    let mut telling = false;
    let behind = ancestors(&network.graph, weight);
    for (at, value) in network.graph.values.iter().enumerate() {
        let (true, Some(constant)) = (behind.get(at).copied().unwrap_or(false), &value.constant) else {
            continue;
        };
        telling |= constant.shape.len() >= 2 && !constant.uniform;
        let tensor = network.constant(ValueId(at as u32))?;
        let stored = onnx::tensor_proto("", &tensor);
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}", tensor.elem(), tensor.shape));
        hash.update(stored.raw_data.as_deref().unwrap_or_default());
        hashes.push(hash.finalize().into());
    }
    if !telling {
        return Ok(None);
    }
    hashes.sort_unstable();
    let mut hash = Sha256::new_with_prefix("constants");
    for each in &hashes {
        hash.update(each);
    }
    let rows: [u8; 32] = hash.finalize().into();
    Ok(Some(FileContent { rows, order: rows }))
}

/// Gives every site of a tied group the statistics of all inputs of that weight,
/// over all files, so that the same units rank alike and the same weights are
/// re-fitted alike.
///
/// Sites of one group that read one weight each hold the whole sum. What adds
/// them up counts it twice: a scale that neither ranking nor re-fitting sees.
///
/// # Errors
/// Statistics of different widths.
pub fn pool(files: &[SharedFile<'_>], classes: &[FileClass], statistics: &mut [Statistics]) -> Result<()> {
    for class in classes.iter().filter(|c| c.is_tied()) {
        let mut sums: BTreeMap<[u8; 32], SiteStatistics> = BTreeMap::new();
        let sites = sites(files, class)?;
        for (member, site, key) in &sites {
            let own = statistics.get(member.file).and_then(|s| s.sites.get(&site.name));
            let Some(own) = own else { continue };
            let place = || {
                files
                    .get(member.file)
                    .map_or_else(String::new, |f| f.label(member.target))
            };
            match sums.get_mut(key) {
                Some(sum) => sum.merge(own).context(place)?,
                None => {
                    sums.insert(*key, own.clone());
                }
            }
        }
        for (member, site, key) in &sites {
            let slot = statistics
                .get_mut(member.file)
                .and_then(|s| s.sites.get_mut(&site.name));
            if let (Some(slot), Some(sum)) = (slot, sums.get(key)) {
                slot.clone_from(sum);
            }
        }
    }
    Ok(())
}

/// The sites of a class with the content of the weight each reads; those whose
/// weight is no plain matrix are left out: they have no statistics.
fn sites<'a>(files: &[SharedFile<'a>], class: &FileClass) -> Result<Vec<(Member, &'a Site, [u8; 32])>> {
    let mut found = Vec::new();
    for member in &class.members {
        let Some(file) = files.get(member.file) else {
            continue;
        };
        for site in file.targets.get(member.target).map_or(&[][..], |t| &t.sites) {
            if let Some(weight) = &site.weight
                && let Some(content) = of_matrix(&weight.read(file.network)?)
            {
                found.push((*member, site, content.rows));
            }
        }
    }
    Ok(found)
}

/// The items of an allocation over all files: one per class, whose damage adds up over its
/// members, and so do scores.
///
/// # Errors
/// Rankings that are missing or of different kinds within a class.
pub fn items(files: &[SharedFile<'_>], classes: &[FileClass], rankings: &[&[Ranking]]) -> Result<Vec<Item>> {
    let item = |class: &FileClass| {
        let first = class
            .members
            .first()
            .and_then(|m| files.get(m.file)?.targets.get(m.target));
        Ok(Item {
            kind: first.map_or(Kind::Other, |t| t.kind),
            units: class.units,
            least: class.least,
            ranking: join(files, class, rankings)?,
        })
    };
    classes.iter().map(item).collect()
}

/// Classes that keep the same number of units because groups of some file do.
pub fn tied(files: &[SharedFile<'_>], classes: &[FileClass]) -> Tied {
    let class_of = |file: usize, group: GroupId| {
        classes.iter().position(|class| {
            let of_group = |m: &Member| {
                files[file]
                    .targets
                    .get(m.target)
                    .is_some_and(|t| t.group == group)
            };
            class.members.iter().any(|m| m.file == file && of_group(m))
        })
    };
    let ties = files.iter().enumerate().flat_map(|(file, f)| {
        let tie = move |tie: &Vec<GroupId>| tie.iter().map(|group| class_of(file, *group)).collect();
        f.network.axes.even.iter().map(tie)
    });
    Tied::new(classes.len(), ties)
}

/// The ranking of a class: damage adds up over its members, and so do scores.
fn join(files: &[SharedFile<'_>], class: &FileClass, rankings: &[&[Ranking]]) -> Result<Ranking> {
    let mut total: Option<Ranking> = None;
    for member in &class.members {
        let label = || {
            files
                .get(member.file)
                .map_or_else(String::new, |f| f.label(member.target))
        };
        let own = rankings
            .get(member.file)
            .and_then(|r| r.get(member.target))
            .ok_or_else(|| Error::input(format!("{} is not ranked", label())))?;
        total = Some(match (total, own) {
            (None, own) => own.clone(),
            (Some(Ranking::Whole), _) | (Some(_), Ranking::Whole) => Ranking::Whole,
            (Some(Ranking::Curve(a)), Ranking::Curve(b)) if a.error.len() == b.error.len() => {
                // The members' orders differ by rounding at most: their statistics
                // and weights are the same. The first one's is taken.
                Ranking::Curve(Curve {
                    error: sum(&a.error, &b.error),
                    order: a.order,
                })
            }
            (Some(Ranking::Scores(a)), Ranking::Scores(b)) if a.len() == b.len() => {
                Ranking::Scores(sum(&a, b))
            }
            _ => {
                return Err(Error::input(format!(
                    "{} is ranked in another way than the groups of other files with the same weights",
                    label()
                )));
            }
        });
    }
    Ok(total.unwrap_or(Ranking::Whole))
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
