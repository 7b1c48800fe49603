//! The basis of every block, and its error with fewer channels.

use std::collections::BTreeMap;

use super::damage::Difference;
use super::find::{self, HeadBlocks, HeadChannels};
use super::measure::{self, ProbedBlock};
use super::projection::read;
use super::rotate::Bases;
use super::{ChannelCalibration, FoundChannels, How, basis, damage};
use crate::Result;
use crate::axes;
use crate::data::Samples;
use crate::engine::Ctx;
use crate::network::Network;
use crate::numerics::{linalg, score};

/// What is known of the queries and keys of a block: their bases, the error with fewer
/// channels, and the change with half of them.
pub(super) type MeasuredChannels = (BTreeMap<usize, basis::Pair>, Vec<f64>, Difference);

/// The bases of the values of a block, the rows of its output projection, and the error
/// with fewer channels.
pub(super) fn values(
    open: &Network,
    known: ChannelCalibration,
    (at, channels, heads): &FoundChannels,
    damp: f64,
) -> Result<Option<(How, HeadBlocks, Vec<f64>)>> {
    let group = open.group(channels.group);
    let rows = group.sinks.first().and_then(|sink| {
        let contraction = open.axes.contractions.get(sink.contraction)?;
        let dims = contraction.contracted.iter().map(|(_, _, dim)| dim);
        let dim = dims.fold(axes::Dim::one(), |all, dim| all.times(dim.clone()));
        find::blocks(&open.axes, &dim, *heads, group)
    });
    let own = known
        .targets
        .get(*at)
        .map(|c| read(known.network, c, known.statistics));
    let (Some(rows), Some(read)) = (rows, own.transpose()?.flatten()) else {
        return Ok(None);
    };
    let mut bases = Bases::new();
    for (head, covariance) in measure::squares(&read.sigma, &rows) {
        let runs = rows.get(&head).map_or(&[][..], Vec::as_slice);
        let weights = runs
            .iter()
            .map(|run| linalg::select_rows(read.weight.as_ref(), run));
        bases.insert(head, basis::of_values(&covariance, &weights.collect::<Vec<_>>())?);
    }
    let order: Vec<usize> = (0..channels.count).rev().collect();
    let turned = read.turned(&rows, &bases);
    let curve = score::curve_of_order(&turned.site(&rows, channels.count), &order, damp)?;
    Ok(Some((How::Values(bases), rows, curve.error)))
}

/// The bases of queries and keys, and the error with fewer channels; nothing for a block
/// that cannot be measured.
pub(super) fn queries(
    ctx: Ctx,
    open: &Network,
    known: ChannelCalibration,
    [many, few]: [&Samples; 2],
    found: &[&FoundChannels],
) -> Result<Vec<Option<MeasuredChannels>>> {
    let ChannelCalibration {
        network,
        targets,
        statistics,
        positions,
    } = known;
    let block = |(at, channels, heads): &&'_ FoundChannels| {
        let site = targets.get(*at)?.sites.first()?;
        Some((
            site.name.clone(),
            &site.sink,
            site.weight.as_ref()?.rows,
            channels.clone(),
            *heads,
        ))
    };
    let blocks: Option<Vec<_>> = found.iter().map(block).collect();
    let Some(blocks) = blocks.filter(|b| !b.is_empty()) else {
        return Ok(found.iter().map(|_| None).collect());
    };
    let all = || {
        blocks
            .iter()
            .map(|(site, sink, width, channels, heads)| ProbedBlock {
                site,
                sink,
                width: *width,
                heads: *heads,
                channels,
            })
    };
    let bases = measure::bases(ctx, open, &all().collect::<Vec<_>>(), many)?;
    let half = |channels: &HeadChannels| channels.count / 2;
    let projected: Vec<(ProbedBlock, Bases)> = all()
        .zip(&bases)
        .filter(|(_, pairs)| !pairs.is_empty())
        .map(|(block, pairs)| {
            let kept = half(block.channels);
            let projections = pairs.iter().map(|(head, pair)| (*head, pair.projection(kept)));
            (block, projections.collect())
        })
        .collect();
    let mut differences = measure::differences(ctx, network, &projected, positions, few)?;
    let mut out = Vec::new();
    for (((at, channels, _), block), pairs) in found.iter().zip(all()).zip(bases) {
        let difference = differences.remove(block.site);
        let (Some(difference), Some(read)) = (difference, read(network, &targets[*at], statistics)?) else {
            out.push(None);
            continue;
        };
        let sums = &difference.statistics;
        let whole = damage::energy(&read.sigma, &read.weight) / read.tokens.max(f64::MIN_POSITIVE);
        let lost = damage::energy(&sums.gram(), &read.weight) / sums.total().max(f64::MIN_POSITIVE);
        // Between the numbers of channels the error follows the scores that are lost.
        let tail = |kept: usize| -> f64 { pairs.values().flat_map(|p| p.lost.iter().skip(kept)).sum() };
        let error = |kept: usize| lost / whole * tail(kept) / tail(half(channels));
        let errors: Vec<f64> = (0..=channels.count).rev().map(error).collect();
        let finite = errors.iter().all(|e| e.is_finite());
        out.push(finite.then_some((pairs, errors, difference)));
    }
    Ok(out)
}
