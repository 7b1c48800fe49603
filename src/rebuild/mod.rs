//! Re-fitted weights go into the pruned model.

pub mod weights;

use crate::axes::{Analysis, Sink};
use crate::calibrate::Statistics;
use crate::graph::{self, Graph};
use crate::mask::Mask;
use crate::onnx::proto;
use crate::options::{Options, Reconstruct};
use crate::rank::pooled;
use crate::score::Site;
use crate::sites::Chosen;
use crate::solve;
use crate::tensor::Elem;
use crate::{Error, Result, ResultExt};
use weights::Place;

/// What re-fitting did at one site.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Fitted {
    /// The site.
    pub site: String,
    /// Relative squared error of its output with the old weights.
    pub before: f64,
    /// With the new ones.
    pub after: f64,
}

/// Re-fits every pruned site on the dense model's statistics.
///
/// `pruned` is changed in place; `graph`, `analysis` belong to `dense`.
///
/// # Errors
/// A site whose weight or statistics are missing.
#[allow(clippy::too_many_arguments)]
pub fn local(
    dense: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    chosen: &[Chosen],
    mask: &Mask,
    statistics: &Statistics,
    pruned: &mut proto::ModelProto,
    options: &Options,
) -> Result<Vec<Fitted>> {
    let mut fitted = Vec::new();
    for c in chosen {
        let Some(kept) = mask.kept.get(&c.group).filter(|k| k.iter().any(|k| *k)) else {
            continue;
        };
        let group = &analysis.groups[c.group];
        let mut run = || -> Result<Vec<Fitted>> {
            // Sinks that read one weight are fitted together, others each by itself.
            let mut out = Vec::new();
            let mut done: Vec<usize> = Vec::new();
            for first in 0..c.sites.len() {
                if done.contains(&first) {
                    continue;
                }
                let root = c.sites[first].weight.as_ref().map(|w| w.place.value);
                let members: Vec<usize> = (first..c.sites.len())
                    .filter(|s| c.sites[*s].weight.as_ref().map(|w| w.place.value) == root)
                    .collect();
                done.extend(&members);
                let part = Chosen {
                    sites: members.iter().map(|m| c.sites[*m].clone()).collect(),
                    ..c.clone()
                };
                let sinks: Vec<&Sink> = members.iter().map(|m| &group.sinks[c.sites[*m].sink]).collect();
                out.push(site(
                    dense, graph, analysis, &part, &sinks, kept, statistics, pruned, options,
                )?);
            }
            Ok(out)
        };
        fitted.extend(run().context(|| format!("re-fitting group '{}'", group.name))?);
    }
    Ok(fitted)
}

#[allow(clippy::too_many_arguments)]
fn site(
    dense: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    part: &Chosen,
    sinks: &[&Sink],
    kept: &[bool],
    statistics: &Statistics,
    pruned: &mut proto::ModelProto,
    options: &Options,
) -> Result<Fitted> {
    let first = part
        .sites
        .first()
        .ok_or_else(|| Error::input("a group without a sink"))?;
    let old = first
        .weight
        .as_ref()
        .ok_or_else(|| Error::input("its weight is quantised or computed: use --reconstruct none"))?;
    let weight = old.read(dense, graph)?;
    let pooled = pooled(part, statistics)?;
    let with_bias = part.sites.iter().all(|s| s.bias.is_some());
    let (sigma, mean) = (pooled.covariance(), pooled.mean());
    let site = Site {
        sigma: &sigma,
        mean: &mean,
        tokens: pooled.tokens() as f64,
        weight: &weight,
        units: part.units.clone(),
    };
    let rows = part.units.kept_rows(kept);
    let refit = match options.reconstruction() {
        Reconstruct::Rescale => {
            let units: Vec<usize> = (0..kept.len()).filter(|u| kept[*u]).collect();
            solve::rescale(&site, &units, 0.0)?
        }
        _ => solve::local(&site, &rows, options.damp, with_bias)?,
    };
    let small = graph::build(pruned)?;
    let mut places = Vec::new();
    let mut biases: Vec<Place> = Vec::new();
    let mut target = None;
    for sink in sinks {
        let moved = find(graph, &small, sink)?;
        let w = weights::weight(&small, &moved)
            .ok_or_else(|| Error::input("its weight cannot be found after pruning"))?;
        if let Some(place) = weights::bias(&small, analysis, &moved, w.columns) {
            biases.push(place);
        }
        places.push(w.place.clone());
        target = Some(w);
    }
    let target = target.ok_or_else(|| Error::input("a group without a sink"))?;
    let elem = small.value(target.place.value).elem.unwrap_or(Elem::F32);
    weights::put(pruned, &small, &places, &target.tensor(&refit.weight, elem))?;
    if let (Some(shift), Some(place)) = (&refit.bias_shift, biases.first()) {
        let old = weights::constant(pruned, &small, place.value)?;
        let sum: Vec<f64> = old
            .to_f32()
            .iter()
            .zip(shift)
            .map(|(b, s)| f64::from(*b) + s)
            .collect();
        let tensor = weights::rounded(old.shape.clone(), &sum, old.elem());
        weights::put(pruned, &small, &biases, &tensor)?;
    }
    Ok(Fitted {
        site: first.name.clone(),
        before: refit.error_before,
        after: refit.error_after,
    })
}

/// The same sink in the pruned graph, by the name of its output.
fn find(graph: &Graph, small: &Graph, sink: &Sink) -> Result<Sink> {
    let missing = || Error::input(format!("node {} is gone after pruning", graph.label(sink.node)));
    let output = graph
        .node(sink.node)
        .outputs
        .first()
        .copied()
        .flatten()
        .ok_or_else(missing)?;
    let value = small.find(&graph.value(output).name).ok_or_else(missing)?;
    let (node, _) = small.value(value).producer.ok_or_else(missing)?;
    Ok(Sink {
        node,
        activation: small.input(node, sink.activation_input).ok_or_else(missing)?,
        weight: small.input(node, sink.weight_input).ok_or_else(missing)?,
        ..sink.clone()
    })
}
