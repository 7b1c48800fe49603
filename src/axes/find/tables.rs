//! Tables that several layers read.
//!
//! A relative position bias `[1, heads, n, n]` is added to the scores of every
//! layer. To join its head axis with that of each layer would couple all
//! layers; so rules only note a [`Link`], and here each is settled: a table
//! with one reader, or with a sink of its own, is joined after all; one with
//! several readers keeps its size, and each reader takes its own slice.

use std::collections::BTreeMap;

use crate::axes::algebra::dim::{Dim, FactorId};
use crate::axes::facts::{Analysis, Link};
use crate::axes::group::{GroupId, Kind};
use crate::graph::Graph;

pub(crate) fn settle(analysis: &mut Analysis) {
    let mut open: Vec<Link> = std::mem::take(&mut analysis.links);
    loop {
        let (ready, rest): (Vec<Link>, Vec<Link>) = {
            let readers = readers(analysis, &open);
            let sinks = contracted(analysis);
            open.into_iter().partition(|link| {
                let leaves = analysis.space.leaves(&link.table);
                let one_reader = leaves.iter().all(|l| readers.get(l).is_none_or(|r| r.len() <= 1));
                one_reader || leaves.iter().any(|l| sinks.contains(l))
            })
        };
        open = rest;
        if ready.is_empty() {
            break;
        }
        for link in ready {
            analysis.space.unify(&link.table, &link.other, link.node);
        }
    }
    for link in &open {
        let why = "several layers read this table; each takes its own slice";
        analysis.space.freeze(&link.table, Some(link.node), why);
    }
    analysis.links = open;
}

/// The different axes that read each leaf of a table.
fn readers(analysis: &Analysis, links: &[Link]) -> BTreeMap<FactorId, Vec<Dim>> {
    let mut out: BTreeMap<FactorId, Vec<Dim>> = BTreeMap::new();
    for link in links {
        let other = analysis.space.resolve(&link.other);
        for leaf in analysis.space.leaves(&link.table) {
            let readers = out.entry(leaf).or_default();
            if !readers.contains(&other) {
                readers.push(other.clone());
            }
        }
    }
    out
}

/// Leaves that a constant weight contracts.
fn contracted(analysis: &Analysis) -> Vec<FactorId> {
    let mut leaves = Vec::new();
    for c in &analysis.contractions {
        if c.constant[0] != c.constant[1] {
            for (_, _, dim) in &c.contracted {
                leaves.extend(analysis.space.leaves(dim));
            }
        }
    }
    leaves.sort_unstable();
    leaves.dedup();
    leaves
}

/// The heads of all layers whose caches are inputs or outputs (of all layers,
/// where no cache is), by how many there are.
pub(crate) fn same_numbers(analysis: &Analysis, graph: &Graph) -> Vec<Vec<GroupId>> {
    let mut cached: Vec<FactorId> = Vec::new();
    for value in graph.inputs.iter().chain(&graph.outputs) {
        for dim in analysis.facts(*value).dims.iter().flatten() {
            cached.extend(analysis.space.leaves(dim));
        }
    }
    let heads = || {
        let groups = analysis.indexed();
        groups.filter(|(_, g)| g.kind == Kind::Heads)
    };
    let any_cached = heads().any(|(_, g)| cached.contains(&g.leaf));
    let mut alike: BTreeMap<usize, Vec<GroupId>> = BTreeMap::new();
    for (index, group) in heads() {
        if !any_cached || cached.contains(&group.leaf) {
            alike.entry(group.units).or_default().push(index);
        }
    }
    alike.into_values().filter(|tie| tie.len() > 1).collect()
}
