//! What heads do to their queries and keys, and what fewer channels of these do to the
//! block's output: two passes over a few samples.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;

use super::basis::{self, Pair};
use super::damage::Difference;
use super::find::{HeadBlocks, HeadChannels, Seen, Side, seen};
use super::rotate::{self, Bases};
use crate::axes::{FactorId, Sink};
use crate::calibrate::{self, CollectPass, SiteProbe, Watched};
use crate::data::Samples;
use crate::engine::Ctx;
use crate::graph::{Graph, NodeId, ValueId, ancestors};
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::rank::positions::Weights;
use crate::tensor::Tensor;
use crate::{Error, Result, data};

/// A block whose queries and keys can be turned.
pub(super) struct ProbedBlock<'a> {
    /// The site of its output projection.
    pub(super) site: &'a str,
    pub(super) sink: &'a Sink,
    /// Rows of that projection.
    pub(super) width: usize,
    pub(super) heads: FactorId,
    pub(super) channels: &'a HeadChannels,
}

/// The bases of queries and keys by head, for each block; none for one that cannot be
/// watched.
///
/// # Errors
/// The engine's, an interrupt.
pub(super) fn bases(
    ctx: Ctx,
    open: &Network,
    blocks: &[ProbedBlock],
    samples: &Samples,
) -> Result<Vec<BTreeMap<usize, Pair>>> {
    let graph = &open.graph;
    let watched: Vec<Option<[Seen; 2]>> = blocks
        .iter()
        .map(|b| {
            let one = |side| seen(open, b.heads, b.channels, side);
            Some([one(Side::Left)?, one(Side::Right)?])
        })
        .collect();
    let name = |at: usize, side: usize| format!("{at}:{side}");
    let probes: Vec<SiteProbe> = watched
        .iter()
        .enumerate()
        .flat_map(|(at, both)| {
            both.iter()
                .flatten()
                .enumerate()
                .map(move |(s, seen)| (at, s, seen))
        })
        .map(|(at, side, seen)| SiteProbe {
            site: name(at, side),
            value: graph.value(seen.value).name.clone(),
            axes: seen.axes.clone(),
            width: seen.width,
        })
        .collect();
    if probes.is_empty() {
        return Ok(blocks.iter().map(|_| BTreeMap::new()).collect());
    }
    let watched_sites = Watched {
        probes: &probes,
        weights: &Weights::new(),
    };
    let found = calibrate::collect(ctx.quiet(), &open.proto, watched_sites, samples, data::ROWS)?;
    let statistics = found.0.sites;
    let of = |at: usize, side: usize, seen: &Seen| -> Result<Bases> {
        let statistics = statistics
            .get(&name(at, side))
            .ok_or_else(|| Error::engine("queries were not watched".to_string()))?;
        let whole = match side {
            0 => statistics.gram(),
            _ => statistics.covariance(),
        };
        Ok(squares(&whole, &seen.blocks))
    };
    let mut found = Vec::new();
    for (at, both) in watched.iter().enumerate() {
        let mut pairs = BTreeMap::new();
        if let Some([left, right]) = both {
            let (queries, keys) = (of(at, 0, left)?, of(at, 1, right)?);
            for (head, queries) in &queries {
                let Some(keys) = keys.get(head) else { continue };
                pairs.insert(*head, basis::of_queries(queries, keys)?);
            }
        }
        found.push(pairs);
    }
    Ok(found)
}

/// The square blocks on the diagonal of a matrix that belong to each head, summed over
/// its runs.
pub(super) fn squares(whole: &Mat<f64>, blocks: &HeadBlocks) -> Bases {
    let square = |runs: &Vec<Vec<usize>>| {
        let n = runs.first().map_or(0, Vec::len);
        let mut sum = Mat::<f64>::zeros(n, n);
        for run in runs {
            sum += Mat::from_fn(n, n, |i, j| whole[(run[i], run[j])]);
        }
        sum
    };
    blocks.iter().map(|(head, runs)| (*head, square(runs))).collect()
}

/// What each block's output projection reads with the first `kept` channels of queries
/// and keys, less what it reads with all of them. The nodes
/// between are there twice, the second time behind projected queries.
///
/// # Errors
/// The engine's, an interrupt.
pub(super) fn differences(
    ctx: Ctx,
    network: &Network,
    blocks: &[(ProbedBlock, Bases)],
    weights: &Weights,
    samples: &Samples,
) -> Result<BTreeMap<String, Difference>> {
    let mut model = network.proto.clone();
    let mut probes = Vec::new();
    for (at, (block, projections)) in blocks.iter().enumerate() {
        let suffix = format!("~{at}~narrow");
        let difference = twice(network, &mut model, block, projections, &suffix)?;
        probes.push(SiteProbe {
            site: block.site.to_string(),
            value: difference,
            axes: block.sink.activation_axes.clone(),
            width: block.width,
        });
    }
    if probes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let values: Vec<String> = probes.iter().map(|p| p.value.clone()).collect();
    let mut seen: Vec<Vec<Vec<f32>>> = vec![Vec::new(); probes.len()];
    let mut watch = |tensors: &[&Tensor]| {
        seen.iter_mut()
            .zip(tensors)
            .for_each(|(seen, tensor)| seen.push(tensor.to_f32()));
        Ok(())
    };
    let pass = CollectPass {
        max_rows: data::ROWS,
        apart: |_| false,
        values: &values,
        watch: &mut watch,
    };
    let watched = Watched {
        probes: &probes,
        weights,
    };
    let (mut statistics, _) = calibrate::collect_watching(ctx.quiet(), &model, watched, samples, pass)?;
    let specs = data::input_specs(&network.proto)?;
    let firsts: Vec<usize> = data::batches(samples, &specs, data::ROWS)?
        .map(|batch| Ok(batch?.rows.first().copied().unwrap_or_default()))
        .collect::<Result<_>>()?;
    let mut found = BTreeMap::new();
    for (probe, seen) in probes.into_iter().zip(seen) {
        if let Some(statistics) = statistics.sites.remove(&probe.site) {
            let batches = firsts.iter().copied().zip(seen).collect();
            found.insert(probe.site, Difference { statistics, batches });
        }
    }
    Ok(found)
}

/// Adds to `model` the nodes of a block once more, and the difference that projected
/// queries make to what its sink reads; the name of that.
fn twice(
    network: &Network,
    model: &mut proto::ModelProto,
    block: &ProbedBlock,
    projections: &Bases,
    suffix: &str,
) -> Result<String> {
    let graph = &network.graph;
    let makers: Vec<_> = block
        .channels
        .makers
        .iter()
        .filter(|m| m.side == Side::Left)
        .collect();
    let mut projected = BTreeMap::new();
    for maker in &makers {
        let tensor = rotate::constant(network, maker, projections)?;
        let name = format!("{}{suffix}", graph.value(maker.reader.value).name);
        projected.insert((maker.reader.node, maker.reader.input), (name, tensor));
    }
    let nodes = between(
        graph,
        makers.iter().map(|m| m.reader.node).collect(),
        block.sink.activation,
    );
    let made: BTreeSet<&str> = nodes
        .iter()
        .flat_map(|n| graph.node(*n).outputs.iter().flatten())
        .map(|v| graph.value(*v).name.as_str())
        .collect();
    let activation = &graph.value(block.sink.activation).name;
    if !made.contains(activation.as_str()) {
        return Err(Error::input(format!(
            "'{activation}' does not depend on the queries of '{}'",
            block.site
        )));
    }
    let old = network.proto.graph.as_ref().map_or(&[][..], |g| &g.node);
    let own = model.graph.get_or_insert_default();
    for id in &nodes {
        let Some(mut node) = old.get(id.0 as usize).cloned() else {
            continue;
        };
        for (input, name) in node.input.iter_mut().enumerate() {
            if let Some((new, _)) = projected.get(&(*id, input)) {
                name.clone_from(new);
            } else if made.contains(name.as_str()) {
                name.push_str(suffix);
            }
        }
        for name in node.output.iter_mut().filter(|n| !n.is_empty()) {
            name.push_str(suffix);
        }
        node.name = node.name.map(|n| n + suffix);
        own.node.push(node);
    }
    for (name, tensor) in projected.values() {
        own.initializer.push(onnx::tensor_proto(name, tensor));
    }
    let difference = format!("{activation}{suffix}~less");
    own.node.push(proto::NodeProto {
        op_type: Some("Sub".into()),
        input: vec![format!("{activation}{suffix}"), activation.clone()],
        output: vec![difference.clone()],
        ..Default::default()
    });
    Ok(difference)
}

/// The nodes behind `from` that `to` is computed by, in order.
fn between(graph: &Graph, from: BTreeSet<NodeId>, to: ValueId) -> Vec<NodeId> {
    let wanted = ancestors(graph, to);
    let mut reached = vec![false; graph.values.len()];
    let mut nodes = Vec::new();
    for id in &graph.order {
        let node = graph.node(*id);
        let inputs = node.inputs.iter().flatten().chain(&node.captures);
        let behind = from.contains(id) || inputs.into_iter().any(|v| reached[v.0 as usize]);
        let outputs = || node.outputs.iter().flatten();
        if behind && outputs().any(|v| wanted[v.0 as usize]) {
            outputs().for_each(|v| reached[v.0 as usize] = true);
            nodes.push(*id);
        }
    }
    nodes
}
