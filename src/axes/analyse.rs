//! The pass over a graph that applies the rules, and what it ends in.

use super::algebra::dim::Dim;
use super::facts::{Analysis, Facts};
use super::find::{groups, tables};
use super::op::{OwnRule, Rules, follow};
use super::rules;
use crate::graph::{Graph, NodeId};

/// What the analysis may assume.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnalysisOptions {
    /// Whether axes of graph inputs and outputs (the KV cache) may shrink.
    pub change_interface: bool,
    /// Whether every layer is to keep the same number of heads, as runtimes with
    /// one cache size want: see [`Analysis::even`].
    pub uniform_kv: bool,
    /// Rules that come before the built-in ones.
    pub own_rules: &'static [OwnRule],
}

/// Analyses a graph. Never fails: what cannot be followed is frozen.
pub fn analyse(graph: &Graph, options: AnalysisOptions) -> Analysis {
    analyse_with(graph, options, false)
}

/// The same, but what queries and keys are multiplied along is free: groups of
/// [`Kind::QueryDims`](super::Kind::QueryDims), which have no sink. Without some of its entries their product is
/// another one, so this is for who turns the weights before ([`crate::channels`]).
pub fn analyse_open(graph: &Graph, options: AnalysisOptions) -> Analysis {
    analyse_with(graph, options, true)
}

fn analyse_with(graph: &Graph, options: AnalysisOptions, open: bool) -> Analysis {
    let mut analysis = Analysis::empty(graph);
    analysis.seed_inputs(graph, options);
    let rules = Rules {
        own: options.own_rules,
        built_in: rules::find,
    };
    follow(&mut analysis, graph, rules);
    tables::settle(&mut analysis);
    if !open {
        analysis.freeze_inner_products();
    }
    if !options.change_interface {
        analysis.freeze_outputs(graph);
    }
    groups::find(&mut analysis, graph);
    if options.uniform_kv {
        analysis.even = tables::same_numbers(&analysis, graph);
    }
    analysis
}

impl Analysis {
    fn seed_inputs(&mut self, graph: &Graph, options: AnalysisOptions) {
        for &input in &graph.inputs {
            let dims = if options.change_interface {
                self.open_dims(graph, input)
            } else {
                self.declared_dims(graph, input, "it is an axis of a graph input")
            };
            self.facts[input.0 as usize] = Facts {
                dims,
                table: graph.value(input).elem.is_some_and(|e| !e.is_float()),
                ..Facts::default()
            };
        }
    }

    /// What two activations are multiplied along: without an entry of it, their
    /// product is another one (queries and keys packed with the values).
    fn freeze_inner_products(&mut self) {
        let inner: Vec<(Dim, NodeId)> = self
            .contractions
            .iter()
            .filter(|c| c.constant == [false, false])
            .flat_map(|c| c.contracted.iter().map(|(_, _, dim)| (dim.clone(), c.node)))
            .collect();
        for (dim, node) in inner {
            self.space
                .freeze(&dim, Some(node), "two activations are multiplied along it");
        }
    }

    fn freeze_outputs(&mut self, graph: &Graph) {
        for output in &graph.outputs {
            let facts = self.facts(*output).clone();
            let name = &graph.value(*output).name;
            let why = format!("it is an axis of the graph output '{name}'");
            let elements = facts.sequence.iter().flatten();
            for dim in facts.dims.iter().chain(elements).flatten() {
                self.space.freeze(dim, None, &why);
            }
            for int in facts.ints.iter().flatten() {
                self.space.freeze_int(int, None, &why);
            }
        }
    }
}
