//! Which layers sequential re-fitting stops at.

use std::collections::BTreeSet;

use super::recording::Recording;
use crate::Result;
use crate::axes::{Analysis, Kind, Sink};
use crate::data::PositionWeights;
use crate::graph::{Graph, NodeId, ValueId, ancestors};
use crate::mask::Mask;
use crate::rank::positions::Weights;
use crate::rank::probe::Subject;
use crate::sites::layer::{Part, parts};
use crate::sites::{Chosen, Site, weights};

/// A layer to fit.
#[derive(Clone)]
pub(super) struct Stop {
    /// What is fitted.
    pub(super) part: Part,
    /// Where it is read.
    pub(super) sink: Sink,
    /// The rows that stay.
    pub(super) rows: Vec<usize>,
    /// The local fit that it replaces, by chosen group and part of it; none for a
    /// layer that keeps all its inputs.
    pub(super) fit: Option<(usize, usize)>,
    /// The residual addition that its output goes into.
    pub(super) residual: Option<Residual>,
    /// What its positions count.
    pub(super) weights: PositionWeights,
}

/// The addition of a layer's output to the residual stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Residual {
    /// Its other operand.
    pub(super) other: ValueId,
    /// Its result, where that is a value of the graph.
    pub(super) sum: Option<ValueId>,
}

impl Stop {
    /// With the weights, which a stop of a plan does not hold.
    pub(super) fn loaded(&self, subject: Subject) -> Result<Self> {
        Ok(Self {
            part: self.part.loaded(subject.model, subject.graph)?,
            ..self.clone()
        })
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = ValueId> {
        std::iter::once(self.sink.activation).chain(self.residual.map(|r| r.other))
    }

    /// Whether both read the same rows of the same value, so that they can be
    /// fitted as one.
    fn is_beside(&self, other: &Self) -> bool {
        self.sink.activation == other.sink.activation
            && self.sink.activation_axes == other.sink.activation_axes
            && self.rows == other.rows
            && self.weights == other.weights
            && self.residual == other.residual
            && self.part.has_bias() == other.part.has_bias()
    }
}

/// The layers in order, from the first sink on, those that read the same rows
/// together; `others` asks for those that keep all their inputs too.
pub(super) fn plan(
    subject: Subject,
    chosen: &[Chosen],
    mask: &Mask,
    positions: &Weights,
    others: bool,
) -> Result<Vec<Vec<Stop>>> {
    let Subject {
        model,
        graph,
        analysis,
        ..
    } = subject;
    let mut stops = Vec::new();
    for (at, c) in chosen.iter().enumerate() {
        let Some(kept) = mask.kept.get(&c.group) else {
            continue;
        };
        for (index, part) in parts(model, graph, &c.sites)?.into_iter().enumerate() {
            if !part.is_single(graph) {
                continue;
            }
            let sink = &analysis.groups[c.group].sinks[part.sites[0].sink];
            stops.push(Stop {
                rows: c.units.kept_rows(kept),
                fit: Some((at, index)),
                residual: residual(graph, analysis, sink, &part.sites[0]),
                weights: positions
                    .get(&part.sites[0].name)
                    .copied()
                    .unwrap_or(PositionWeights::EVEN),
                part: part.unloaded(),
                sink: sink.clone(),
            });
        }
    }
    if others {
        stops.extend(unpruned(subject, chosen, positions)?);
    }
    let rank = |stop: &Stop| graph.order.iter().position(|n| *n == stop.sink.node);
    stops.sort_by_key(rank);
    let first = stops.iter().position(|s| s.fit.is_some()).unwrap_or(stops.len());
    let mut halts: Vec<Vec<Stop>> = Vec::new();
    for stop in stops.into_iter().skip(first) {
        match halts.last_mut() {
            Some(halt) if halt[0].is_beside(&stop) => halt.push(stop),
            _ => halts.push(vec![stop]),
        }
    }
    Ok(halts)
}

/// Layers with a constant weight that keep all their inputs: projections of
/// queries, keys and values, the first layers of feed-forward blocks, classifiers.
fn unpruned(subject: Subject, chosen: &[Chosen], positions: &Weights) -> Result<Vec<Stop>> {
    let Subject {
        model,
        graph,
        analysis,
        ..
    } = subject;
    let sinks: BTreeSet<NodeId> = analysis
        .groups
        .iter()
        .flat_map(|g| &g.sinks)
        .map(|s| s.node)
        .collect();
    let mut stops = Vec::new();
    for (at, c) in analysis.contractions.iter().enumerate() {
        if c.inner || sinks.contains(&c.node) || c.constant != [false, true] {
            continue;
        }
        let [input, weight_input] = c.inputs;
        let (Some(activation), Some(weight)) =
            (graph.input(c.node, input), graph.input(c.node, weight_input))
        else {
            continue;
        };
        let sink = Sink {
            contraction: at,
            node: c.node,
            activation_input: input,
            activation,
            activation_axes: c.contracted.iter().map(|(a, ..)| *a).collect(),
            weight_input,
            weight,
            weight_axes: c.contracted.iter().map(|(_, b, _)| *b).collect(),
            residual: false,
        };
        let axes = analysis.facts(weight).dims.as_ref().map_or(0, Vec::len);
        let Some(found) = weights::weight(graph, &sink) else {
            continue;
        };
        // A weight per row of the batch is no layer.
        if axes != c.contracted.len() + c.free[1].len() {
            continue;
        }
        let rows = found.rows;
        let source = found.place.value;
        let site = Site {
            name: graph.label(c.node),
            sink: 0,
            bias: weights::bias(graph, analysis, &sink, found.columns),
            weight: Some(found),
            probe: None,
        };
        let Some(part) = parts(model, graph, &[site])?.pop().filter(|p| p.is_single(graph)) else {
            continue;
        };
        // What feeds neurons is read where their own sink is read.
        let fed = chosen.iter().find(|c| {
            let group = &analysis.groups[c.group];
            group.kind == Kind::Neurons && group.sources.contains(&source)
        });
        let own = fed
            .and_then(|c| c.sites.first())
            .and_then(|s| positions.get(&s.name));
        stops.push(Stop {
            part: part.unloaded(),
            sink,
            rows: (0..rows).collect(),
            fit: None,
            residual: None,
            weights: own.copied().unwrap_or(PositionWeights::EVEN),
        });
    }
    Ok(stops)
}

/// The results of the residual additions that the sinks of the chosen groups go into:
/// what re-fitting wants to know of the dense model.
pub fn targets(subject: Subject, chosen: &[Chosen]) -> BTreeSet<ValueId> {
    let Subject { graph, analysis, .. } = subject;
    let sinks = chosen.iter().flat_map(|c| {
        let own = &analysis.groups[c.group].sinks;
        c.sites
            .iter()
            .filter_map(|site| Some((site, own.get(site.sink)?)))
    });
    sinks
        .filter_map(|(site, sink)| residual(graph, analysis, sink, site)?.sum)
        .collect()
}

/// Whether the results of the residual additions of all pruned sites are recorded: then
/// nothing else of the dense model is needed that has its pruned axes.
pub fn are_recorded(subject: Subject, chosen: &[Chosen], mask: &Mask, recording: &Recording) -> bool {
    let Subject { graph, analysis, .. } = subject;
    let pruned = chosen.iter().filter(|c| mask.kept.contains_key(&c.group));
    let mut sites = pruned.flat_map(|c| {
        let own = &analysis.groups[c.group].sinks;
        c.sites.iter().map(|site| (site, own.get(site.sink)))
    });
    sites.all(|(site, sink)| {
        let sum = sink.and_then(|sink| residual(graph, analysis, sink, site)?.sum);
        sum.is_some_and(|sum| recording.holds(&graph.value(sum).name))
    })
}

/// The addition that the output of a site's sink goes into, where nothing but biases
/// and views lies between.
fn residual(graph: &Graph, analysis: &Analysis, sink: &Sink, site: &Site) -> Option<Residual> {
    let bias = site.bias.as_ref().map(|place| place.value);
    let mut value = (*graph.node(sink.node).outputs.first()?)?;
    // A constant that is added but is not the bias of the fit is not for the fit to make.
    let inner = analysis.contractions.get(sink.contraction)?.bias;
    let mut own = inner.is_none_or(|input| graph.input(sink.node, input) == bias);
    let (other, sum) = loop {
        let [(node, input)] = graph.value(value).consumers[..] else {
            return None;
        };
        let n = graph.node(node);
        let output = |at: usize| n.outputs.get(at).copied().flatten();
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Add") => {
                let other = graph.input(node, 1 - input)?;
                if graph.value(other).constant.is_none() {
                    break (other, output(0));
                }
                own &= Some(other) == bias;
                value = output(0)?;
            }
            ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") if input < 2 => {
                let added = graph.input(node, if n.op == "SkipLayerNormalization" { 4 } else { 3 });
                own &= added.is_none() || added == bias;
                break (graph.input(node, 1 - input)?, output(3));
            }
            ("", "Reshape" | "Identity" | "Dropout") if input == 0 => value = output(0)?,
            _ => return None,
        }
    };
    // The residual must be there before the sink is fitted.
    let output = (*graph.node(sink.node).outputs.first()?)?;
    (!ancestors(graph, other)[output.0 as usize]).then_some(Residual {
        other,
        sum: sum.filter(|_| own),
    })
}
