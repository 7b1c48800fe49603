//! What the dense model computes, from what was recorded of it: the nodes between the
//! recorded values and the one that is wanted run again, no others.

use std::collections::{BTreeMap, BTreeSet};

use super::recording::Recording;
use crate::data::Batch;
use crate::engine::Engine;
use crate::graph::{Graph, ValueId};
use crate::network::Network;
use crate::rank::Runner;
use crate::rewrite::segment::{Boundary, is_constant};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The dense model over some batches.
#[derive(Clone, Copy)]
pub(super) struct Dense<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) network: &'a Network,
    /// The graph of the pruned model, whose values are asked for: those of the same name
    /// are given.
    pub(super) pruned: &'a Graph,
    pub(super) batches: &'a [Batch],
    pub(super) recording: &'a Recording,
}

/// Some values of it, batch by batch.
pub(super) struct Fetch<'a> {
    dense: Dense<'a>,
    /// What was asked for, in the pruned graph, by the value here.
    asked: BTreeMap<ValueId, ValueId>,
    /// Those that are recorded.
    known: Vec<ValueId>,
    /// What computes the others, from what.
    computed: Option<(Runner, Vec<ValueId>, Vec<ValueId>)>,
}

impl<'a> Dense<'a> {
    /// Prepares to give `wanted`; `None` where the dense model has no such value.
    pub(super) fn fetch(self, wanted: &[ValueId]) -> Result<Option<Fetch<'a>>> {
        let mut asked = BTreeMap::new();
        for value in wanted {
            let name = &self.pruned.value(*value).name;
            let Some(own) = self.network.graph.find(name) else {
                return Ok(None);
            };
            asked.insert(own, *value);
        }
        let wanted: Vec<ValueId> = asked.keys().copied().collect();
        let held = |v: &&ValueId| self.recording.holds(&self.network.graph.value(**v).name);
        let known: Vec<ValueId> = wanted.iter().filter(held).copied().collect();
        let gives: BTreeSet<ValueId> = wanted.iter().filter(|v| !held(v)).copied().collect();
        let gives: Vec<ValueId> = gives.into_iter().collect();
        let mut computed = None;
        if !gives.is_empty() {
            let reads = self.sources(&gives);
            let boundaries = reads
                .iter()
                .map(|v| Ok(Boundary::of(*v, &self.given(0, *v)?)))
                .collect::<Result<Vec<_>>>()?;
            let runner = Runner::new(self.engine, self.network, &boundaries, &gives)?;
            computed = Some((runner, reads, gives));
        }
        Ok(Some(Fetch {
            dense: self,
            asked,
            known,
            computed,
        }))
    }

    /// The recorded values and graph inputs that `wanted` are computed by.
    fn sources(self, wanted: &[ValueId]) -> Vec<ValueId> {
        let graph = &self.network.graph;
        let mut sources = BTreeSet::new();
        let mut seen = vec![false; graph.values.len()];
        let mut stack = wanted.to_vec();
        while let Some(value) = stack.pop() {
            if std::mem::replace(&mut seen[value.0 as usize], true) {
                continue;
            }
            if self.recording.holds(&graph.value(value).name) || graph.inputs.contains(&value) {
                sources.insert(value);
                continue;
            }
            if is_constant(self.network, value) {
                continue;
            }
            if let Some((node, _)) = graph.value(value).producer {
                let node = graph.node(node);
                stack.extend(node.inputs.iter().flatten());
                stack.extend(&node.captures);
            }
        }
        sources.into_iter().collect()
    }

    /// A recorded value or a graph input of a batch.
    fn given(self, batch: usize, value: ValueId) -> Result<Tensor> {
        let name = &self.network.graph.value(value).name;
        if let Some(tensor) = self.recording.get(batch, name)? {
            return Ok(tensor);
        }
        let feeds = self.batches.get(batch).map(|b| &b.feeds);
        let tensor = feeds.and_then(|f| f.get(name)).cloned();
        tensor.ok_or_else(|| Error::input(format!("the dense model's '{name}' is not known")))
    }
}

impl Fetch<'_> {
    /// The values of one batch.
    pub(super) fn of(&mut self, batch: usize) -> Result<BTreeMap<ValueId, Tensor>> {
        let mut out = BTreeMap::new();
        for value in &self.known {
            out.insert(*value, self.dense.given(batch, *value)?);
        }
        if let Some((runner, reads, gives)) = &mut self.computed {
            let given = reads
                .iter()
                .map(|v| Ok((*v, self.dense.given(batch, *v)?)))
                .collect::<Result<_>>()?;
            out.extend(gives.iter().copied().zip(runner.run(&given)?));
        }
        let renamed = out
            .into_iter()
            .filter_map(|(v, t)| Some((*self.asked.get(&v)?, t)));
        Ok(renamed.collect())
    }
}
