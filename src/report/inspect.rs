//! What can be pruned in a model, and what cannot and why.

use std::collections::BTreeMap;

use serde::Serialize;

use super::style::Style;
use super::terminal::{human, tail};
use super::{FrozenReport, SCHEMA};
use crate::axes::{Analysis, Kind, Place};
use crate::budget::{Cost, ModelParts};
use crate::mask::Mask;
use crate::network::Network;

/// One group of a model.
#[derive(Debug, Clone, Serialize)]
pub struct GroupInfo {
    /// Unique name.
    pub name: String,
    /// What its units are.
    pub kind: Kind,
    /// Where in the network it is.
    pub place: Option<Place>,
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
    /// What the vocabulary, the positions, the blocks and the rest take.
    pub parts: ModelParts,
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
                place: g.place,
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
        parts: ModelParts::of(network, cost, &whole),
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
    pub fn text(&self, style: Style) -> String {
        let head = format!(
            "{}: opset {}, {} nodes, {} parameters, {} multiply-adds per run",
            self.input,
            self.opset,
            self.nodes,
            human(self.parameters),
            human(self.flops)
        );
        let mut out = style.wrap(&head, 2) + "\n\n";
        let bytes: u64 = self.parts.named().iter().map(|(_, part)| part.bytes).sum();
        let flops: u64 = self.parts.named().iter().map(|(_, part)| part.flops).sum();
        let share = |of: u64, all: u64| format!("{:.1}%", 100.0 * of as f64 / all.max(1) as f64);
        for (name, part) in self.parts.named().iter().filter(|(_, part)| part.bytes > 0) {
            let (of_bytes, of_flops) = (share(part.bytes, bytes), share(part.flops, flops));
            out += &format!("  {name:<12}{of_bytes:>7} of the bytes {of_flops:>7} of the multiply-adds\n");
        }
        out += "\n";
        out += &self.table();
        if !self.frozen.is_empty() {
            out += "\n  keeps its size:\n";
        }
        for f in &self.frozen {
            let line = format!("  {} ({}): {}", f.name, f.units, f.why);
            out += &(style.wrap(&line, 6) + "\n");
        }
        for (op, count) in &self.unsupported {
            let nodes = if *count == 1 { "node" } else { "nodes" };
            let line = format!("  no rule for {op} ({count} {nodes}): what it touches keeps its size");
            out += &(style.wrap(&line, 6) + "\n");
        }
        for note in &self.notes {
            out += &(style.wrap(&format!("  note: {note}"), 8) + "\n");
        }
        out
    }
}

impl Inspection {
    /// A row for all groups that differ in nothing but their block; those that are pruned
    /// when nothing is said come first.
    fn table(&self) -> String {
        if self.groups.is_empty() {
            return String::new();
        }
        let mut rows: Vec<GroupRow> = Vec::new();
        for group in &self.groups {
            match rows.iter_mut().find(|row| row.is_like(group)) {
                Some(row) => row.groups.push(group),
                None => rows.push(GroupRow { groups: vec![group] }),
            }
        }
        let mut out = format!(
            "  {:<27}{:<15}{:>13}{:>7}  {}\n",
            "where", "units", "parameters", "flops", "name"
        );
        for default in [true, false] {
            let mut own = rows
                .iter()
                .filter(|row| row.groups[0].default == default)
                .peekable();
            if !default && own.peek().is_some() {
                out += "  only when asked for, or inside of heads:\n";
            }
            own.for_each(|row| out += &row.line());
        }
        out
    }
}

/// Groups that are one row: each costs what the first does.
struct GroupRow<'g> {
    groups: Vec<&'g GroupInfo>,
}

impl GroupRow<'_> {
    fn is_like(&self, other: &GroupInfo) -> bool {
        let first = self.groups[0];
        let part = |g: &GroupInfo| g.place.map(|p| (p.part, p.nth));
        let share = |g: &GroupInfo| (1000.0 * g.flops_share).round() as u64;
        first.place.is_some()
            && (
                part(first),
                first.kind,
                first.units,
                first.parameters,
                share(first),
            ) == (
                part(other),
                other.kind,
                other.units,
                other.parameters,
                share(other),
            )
    }

    /// Where they are, as `blocks 0-5 attention`.
    fn place(&self) -> String {
        let blocks: Vec<usize> = self.groups.iter().filter_map(|g| Some(g.place?.block)).collect();
        let Some(first) = self.groups[0].place else {
            return "-".to_string();
        };
        if blocks.len() < 2 {
            return first.to_string();
        }
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for block in blocks {
            match spans.last_mut() {
                Some((_, last)) if *last + 1 == block => *last = block,
                _ => spans.push((block, block)),
            }
        }
        let span = |(from, to): &(usize, usize)| match from == to {
            true => from.to_string(),
            false => format!("{from}-{to}"),
        };
        let list = spans.iter().map(span).collect::<Vec<_>>().join(",");
        let text = first.to_string();
        let rest = text.splitn(3, ' ').nth(2).unwrap_or_default();
        match list.len() > 10 {
            true => format!("{} blocks, {rest}", self.groups.len()),
            false => format!("blocks {list} {rest}"),
        }
    }

    fn line(&self) -> String {
        let (first, many) = (self.groups[0], self.groups.len());
        let each = if many > 1 { " each" } else { "" };
        let more = match many {
            1 => String::new(),
            n => format!(" +{}", n - 1),
        };
        format!(
            "  {:<27}{:<15}{:>13}{:>7}  {}{more}\n",
            self.place(),
            format!("{} {}", first.units, first.kind.noun()),
            format!("{}{each}", human(first.parameters)),
            format!("{:.1}%", 100.0 * first.flops_share),
            tail(&first.name, 14 - more.len()),
        )
    }
}
