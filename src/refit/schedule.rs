//! Which layers sequential re-fitting goes through, in order.

use std::collections::BTreeSet;

use super::recording::Recording;
use crate::Result;
use crate::axes::{Kind, Sink};
use crate::data::PositionWeights;
use crate::graph::operators::{addition, is_view};
use crate::graph::{NodeId, ValueId, ancestors};
use crate::mask::Mask;
use crate::network::Network;
use crate::rank::positions::Weights;
use crate::rewrite::Sliced;
use crate::rewrite::segment::is_constant;
use crate::sites::{self, Part, PruneTarget, Site, parts, weights};

/// A layer to fit.
#[derive(Clone)]
pub(super) struct FitLayer {
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

impl FitLayer {
    /// With the weights, which a plan does not hold.
    pub(super) fn loaded(&self, network: &Network) -> Result<Self> {
        Ok(Self {
            part: self.part.loaded(network)?,
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

/// A network whose layers are re-fitted in order: with the units still in it and their
/// rows zero, or sliced.
pub struct Layers<'a> {
    /// The network.
    pub network: &'a Network,
    /// What was pruned and what could have been.
    targets: Vec<ScheduledLayer>,
    /// The contractions of all groups.
    sinks: BTreeSet<NodeId>,
}

/// A target as it is in the network.
struct ScheduledLayer {
    /// Its sinks that are still there, by the index of the target's own.
    sites: Vec<Site>,
    /// The rows that stay, where it was pruned.
    rows: Option<Vec<usize>>,
    /// The constants that make it.
    sources: Vec<ValueId>,
    kind: Kind,
}

impl<'a> Layers<'a> {
    /// Those of a network that has all units still.
    pub fn masked(network: &'a Network, targets: &[PruneTarget], mask: &Mask) -> Self {
        let layer = |target: &PruneTarget| ScheduledLayer {
            sites: target.sites.clone(),
            rows: mask
                .kept
                .get(&target.group)
                .map(|kept| target.units.kept_rows(kept)),
            sources: network.group(target.group).sources.clone(),
            kind: target.kind,
        };
        let sinks = network.axes.groups.iter().flat_map(|g| &g.sinks);
        Self {
            network,
            targets: targets.iter().map(layer).collect(),
            sinks: sinks.map(|s| s.node).collect(),
        }
    }

    /// Those of a sliced network: where the layers of `dense` went.
    pub fn sliced(sliced: &'a Sliced, dense: &Network, targets: &[PruneTarget], mask: &Mask) -> Self {
        let Sliced { network, moved } = sliced;
        let layer = |target: &PruneTarget| {
            let units = mask.count(&dense.axes, target.group);
            let sites = target
                .sites
                .iter()
                .filter_map(|s| sites::moved(s, network, moved));
            let sites: Vec<Site> = if units == 0 { Vec::new() } else { sites.collect() };
            let pruned = mask.kept.contains_key(&target.group);
            let rows = sites
                .first()
                .and_then(|s| s.weight.as_ref())
                .map(|w| (0..w.rows).collect());
            let sources = dense.group(target.group).sources.iter();
            let sources = sources.flat_map(|value| moved.constant(&dense.graph, *value));
            ScheduledLayer {
                rows: rows.filter(|_| pruned),
                sources: sources.filter_map(|name| network.graph.find(name)).collect(),
                kind: target.kind,
                sites,
            }
        };
        let sinks = dense.axes.groups.iter().flat_map(|g| &g.sinks);
        Self {
            network,
            targets: targets.iter().map(layer).collect(),
            sinks: sinks.filter_map(|s| moved.node(s.node)).collect(),
        }
    }

    /// What is fitted together, per target.
    ///
    /// # Errors
    /// A weight that is quantised or computed.
    pub fn parts(&self) -> Result<Vec<Vec<Part>>> {
        let parts = |layer: &ScheduledLayer| match layer.rows {
            Some(_) => parts(self.network, &layer.sites),
            None => Ok(Vec::new()),
        };
        self.targets.iter().map(parts).collect()
    }

    /// Whether the results of the residual additions of all pruned sites are recorded: then
    /// nothing else of the dense model is needed that has its pruned axes.
    pub fn are_recorded(&self, recording: &Recording) -> bool {
        let pruned = self.targets.iter().filter(|t| t.rows.is_some());
        let mut sites = pruned.flat_map(|t| &t.sites);
        sites.all(|site| {
            let sum = residual(self.network, site).and_then(|r| r.sum);
            sum.is_some_and(|sum| recording.holds(&self.network.graph.value(sum).name))
        })
    }

    /// The layers in order, from the first sink on, those that read the same rows
    /// together; `others` asks for those that keep all their inputs too.
    pub(super) fn plan(&self, positions: &Weights, others: bool) -> Result<Vec<Vec<FitLayer>>> {
        let network = self.network;
        let mut layers = Vec::new();
        for (at, target) in self.targets.iter().enumerate() {
            let Some(rows) = &target.rows else {
                continue;
            };
            for (index, part) in parts(network, &target.sites)?.into_iter().enumerate() {
                if !part.is_single(&network.graph) {
                    continue;
                }
                let site = &part.sites[0];
                layers.push(FitLayer {
                    rows: rows.clone(),
                    fit: Some((at, index)),
                    residual: residual(network, site),
                    weights: positions
                        .get(&site.name)
                        .copied()
                        .unwrap_or(PositionWeights::EVEN),
                    sink: site.sink.clone(),
                    part: part.unloaded(),
                });
            }
        }
        if others {
            layers.extend(self.unpruned(positions)?);
        }
        let rank = |layer: &FitLayer| network.graph.order.iter().position(|n| *n == layer.sink.node);
        layers.sort_by_key(rank);
        let first = layers
            .iter()
            .position(|s| s.fit.is_some())
            .unwrap_or(layers.len());
        let mut halts: Vec<Vec<FitLayer>> = Vec::new();
        for layer in layers.into_iter().skip(first) {
            match halts.last_mut() {
                Some(halt) if halt[0].is_beside(&layer) => halt.push(layer),
                _ => halts.push(vec![layer]),
            }
        }
        Ok(halts)
    }

    /// Layers with a constant weight that keep all their inputs: projections of
    /// queries, keys and values, the first layers of feed-forward blocks, classifiers.
    fn unpruned(&self, positions: &Weights) -> Result<Vec<FitLayer>> {
        let (graph, axes) = (&self.network.graph, &self.network.axes);
        let mut layers = Vec::new();
        for (at, c) in axes.contractions.iter().enumerate() {
            if c.inner || self.sinks.contains(&c.node) || c.constant != [false, true] {
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
            let rank = axes.facts(weight).dims.as_ref().map_or(0, Vec::len);
            let Some(found) = weights::weight(self.network, &sink) else {
                continue;
            };
            // A weight per row of the batch is no layer.
            if rank != c.contracted.len() + c.free[1].len() {
                continue;
            }
            let rows = found.rows;
            let source = found.place.value;
            let site = Site {
                name: graph.label(c.node),
                bias: weights::bias(self.network, &sink, found.columns),
                sink,
                weight: Some(found),
                probe: None,
            };
            let sink = site.sink.clone();
            let Some(part) = parts(self.network, &[site])?.pop().filter(|p| p.is_single(graph)) else {
                continue;
            };
            // What feeds neurons is read where their own sink is read.
            let feeds = |t: &&ScheduledLayer| t.kind == Kind::Neurons && t.sources.contains(&source);
            let fed = self.targets.iter().find(feeds);
            let own = fed
                .and_then(|t| t.sites.first())
                .and_then(|s| positions.get(&s.name));
            layers.push(FitLayer {
                part: part.unloaded(),
                sink,
                rows: (0..rows).collect(),
                fit: None,
                residual: None,
                weights: own.copied().unwrap_or(PositionWeights::EVEN),
            });
        }
        Ok(layers)
    }
}

/// The results of the residual additions that the sinks of the targets go into:
/// what re-fitting wants to know of the dense model.
pub fn wanted(network: &Network, targets: &[PruneTarget]) -> BTreeSet<ValueId> {
    let sites = targets.iter().flat_map(|t| &t.sites);
    sites.filter_map(|site| residual(network, site)?.sum).collect()
}

/// The addition that the output of a site's sink goes into, where nothing but biases
/// and views lies between.
fn residual(network: &Network, site: &Site) -> Option<Residual> {
    let (graph, sink) = (&network.graph, &site.sink);
    let bias = site.bias.as_ref().map(|place| place.value);
    let mut value = (*graph.node(sink.node).outputs.first()?)?;
    // A constant that is added but is not the bias of the fit is not for the fit to make.
    let inner = network.axes.contractions.get(sink.contraction)?.bias;
    let mut own = inner.is_none_or(|input| graph.input(sink.node, input) == bias);
    let (other, sum) = loop {
        let [(node, input)] = graph.value(value).consumers[..] else {
            return None;
        };
        let n = graph.node(node);
        let output = |at: usize| n.outputs.get(at).copied().flatten();
        match addition(&n.domain, &n.op) {
            Some(adds) => match adds.summands {
                Some(summands) if input < summands => {
                    let added = graph.input(node, adds.bias?);
                    own &= added.is_none() || added == bias;
                    break (graph.input(node, 1 - input)?, output(adds.sum));
                }
                None if n.inputs.len() == 2 => {
                    let other = graph.input(node, 1 - input)?;
                    // A bias that layers share is a copy of a constant in some exports.
                    if !is_constant(network, other) {
                        break (other, output(adds.sum));
                    }
                    own &= Some(other) == bias;
                    value = output(0)?;
                }
                _ => return None,
            },
            None if is_view(&n.domain, &n.op) && input == 0 => value = output(0)?,
            None => return None,
        }
    };
    // The residual must be there before the sink is fitted.
    let output = (*graph.node(sink.node).outputs.first()?)?;
    (!ancestors(graph, other)[output.0 as usize]).then_some(Residual {
        other,
        sum: sum.filter(|_| own),
    })
}
