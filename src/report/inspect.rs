//! What can be pruned in a model, and what cannot and why.

use std::collections::BTreeMap;

use serde::Serialize;

use super::terminal::{human, tail};
use super::{FrozenReport, SCHEMA};
use crate::axes::{Analysis, Kind};
use crate::budget::Cost;
use crate::mask::Mask;
use crate::network::Network;

/// One group of a model.
#[derive(Debug, Clone, Serialize)]
pub struct GroupInfo {
    /// Unique name.
    pub name: String,
    /// What its units are.
    pub kind: Kind,
    /// Number of units.
    pub units: usize,
    /// Parameters that go with all of them.
    pub parameters: u64,
    /// Multiply-accumulates that go with all of them.
    pub flops: u64,
    /// As a share of the whole model.
    pub flops_share: f64,
    /// Whether it is pruned when nothing is said.
    pub default: bool,
    /// The sinks' nodes.
    pub sinks: Vec<String>,
}

/// What `inspect` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Version of this layout.
    pub schema: u32,
    /// The file.
    pub input: String,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Nodes of the main graph.
    pub nodes: usize,
    /// Elements of all constants.
    pub parameters: u64,
    /// Multiply-accumulates of one run.
    pub flops: u64,
    /// What can be pruned.
    pub groups: Vec<GroupInfo>,
    /// What has a source and a sink but keeps its size.
    pub frozen: Vec<FrozenReport>,
    /// Operators without a rule.
    pub unsupported: BTreeMap<String, usize>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Collects what `inspect` tells.
pub fn inspect(input: &str, network: &Network, cost: &Cost, notes: Vec<String>) -> Inspection {
    let (graph, analysis) = (&network.graph, &network.axes);
    let whole = Mask::default();
    let (flops, parameters) = (cost.macs(&whole), cost.parameters(&whole));
    let groups = analysis
        .indexed()
        .map(|(at, g)| {
            let mut gone = Mask::default();
            gone.kept.insert(at, vec![false; g.units]);
            let own = flops.saturating_sub(cost.macs(&gone));
            GroupInfo {
                name: g.name.clone(),
                kind: g.kind,
                units: g.units,
                parameters: parameters.saturating_sub(cost.parameters(&gone)),
                flops: own,
                flops_share: own as f64 / flops.max(1) as f64,
                default: g.kind.is_default(),
                sinks: g.sinks.iter().map(|s| graph.label(s.node)).collect(),
            }
        })
        .collect();
    Inspection {
        schema: SCHEMA,
        input: input.to_string(),
        opset: graph.opset,
        nodes: graph.nodes.len(),
        parameters,
        flops,
        groups,
        frozen: frozen(analysis),
        unsupported: analysis.unsupported.clone(),
        notes,
    }
}

/// The frozen axes for a report.
pub fn frozen(analysis: &Analysis) -> Vec<FrozenReport> {
    analysis
        .frozen
        .iter()
        .map(|f| FrozenReport {
            name: f.name.clone(),
            units: f.units,
            why: f.why.clone(),
        })
        .collect()
}

impl Inspection {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}: opset {}, {} nodes, {} parameters, {} multiply-adds per run\n\n",
            self.input,
            self.opset,
            self.nodes,
            human(self.parameters),
            human(self.flops)
        );
        if !self.groups.is_empty() {
            out += &format!(
                "  {:<44}{:<12}{:>7}{:>12}{:>9}\n",
                "group", "kind", "units", "parameters", "flops"
            );
        }
        for g in &self.groups {
            out += &format!(
                "  {:<44}{:<12}{:>7}{:>12}{:>8.1}%{}\n",
                tail(&g.name, 43),
                g.kind.noun(),
                g.units,
                human(g.parameters),
                100.0 * g.flops_share,
                if g.default { "" } else { "  (off by default)" }
            );
        }
        if !self.frozen.is_empty() {
            out += "\n  keeps its size:\n";
        }
        for f in &self.frozen {
            out += &format!("  {:<44}{:>7}  {}\n", tail(&f.name, 43), f.units, f.why);
        }
        for (op, count) in &self.unsupported {
            out += &format!("  no rule for {op} ({count} nodes): what it touches keeps its size\n");
        }
        for note in &self.notes {
            out += &format!("  note: {note}\n");
        }
        out
    }
}
