//! Which positions of a sequence matter at a sink.
//!
//! A classifier reads one position of the last layer: an error at the others
//! costs nothing there, and little in the layers before. Weighting the rows of
//! the statistics by what an error in them does to the outputs makes elimination
//! and re-fitting spend the units on what is read.
//!
//! It is measured, not derived from the architecture: the spread of the sink's
//! input is halved at the first, the last, or all other real positions of a few
//! samples, the rest of the network runs, and the damage is divided by the energy
//! of the change at the sink's output. Heads that are followed by neurons take what is
//! measured for these: both add to the same sum, and what comes after reads it alike.
//!
//! Where the outputs have a row for every position, as a language model's, all positions are
//! read and count alike.
//!
//! On a six-layer BERT that classifies by its first position (512 texts, 60% of
//! the multiply-accumulates) see the table in [`crate::refit`].

use std::collections::BTreeMap;

use faer::Mat;

use crate::Result;
use crate::axes::Kind;
use crate::data::{PositionWeights, RowPlace, Rows, Strides};
use crate::numerics::linalg;
use crate::rank::damage::damage;
use crate::rank::probe::Probe;
use crate::sites::PruneTarget;

/// Weights by site; rows of other sites count alike.
pub type Weights = BTreeMap<String, PositionWeights>;

/// Places whose weight is below this fraction of the greatest get that: rows
/// that are not read still tell how the units vary together, and regularise.
const FLOOR: f64 = 0.02;

/// Changes that are run for each group that is measured: at the first, the last and the
/// inner positions.
const CHANGES: usize = 3;

/// How many changes [`measure`] runs.
pub fn changes(targets: &[PruneTarget]) -> usize {
    CHANGES * own(&measured(targets)).count()
}

/// Those among the targets that are measured themselves.
fn own(of: &[usize]) -> impl Iterator<Item = usize> {
    (0..of.len()).filter(|&at| of[at] == at)
}

/// For each target the one whose positions count as its own do.
fn measured(targets: &[PruneTarget]) -> Vec<usize> {
    let one = |c: &PruneTarget| matches!(&c.sites[..], [site] if site.weight.is_some());
    let partner = |at: usize| match targets.get(at..at + 2) {
        Some([heads, neurons]) => {
            heads.kind == Kind::Heads && neurons.kind == Kind::Neurons && one(heads) && one(neurons)
        }
        _ => false,
    };
    (0..targets.len())
        .map(|at| at + usize::from(partner(at)))
        .collect()
}

/// By what the spread is multiplied.
const SHRINK: f32 = 0.5;

/// Measures the weights of all groups with one sink, by site.
///
/// # Errors
/// The engine's, an interrupt.
pub fn measure(probe: &mut Probe, targets: &[PruneTarget]) -> Result<Weights> {
    let (network, progress) = (probe.network(), probe.ctx().progress);
    let mut out = BTreeMap::new();
    let of = measured(targets);
    let own: Vec<PruneTarget> = own(&of).map(|at| targets[at].clone()).collect();
    progress.start("positions", own.len() as u64);
    probe.each(&own, |at, after| {
        progress.step(1);
        if after.are_all_positions_read() {
            return Ok(());
        }
        let [site] = &own[at].sites[..] else {
            return Ok(());
        };
        let Some(weight) = &site.weight else {
            return Ok(());
        };
        let width = weight.rows;
        let mut values: Vec<f32> = Vec::new();
        let mut places: Vec<RowPlace> = Vec::new();
        let mut sequence = false;
        after.rows(|rows, row, x| {
            sequence |= rows.are_sequence();
            places.push(rows.place(row));
            values.extend_from_slice(x);
        })?;
        if !sequence || places.is_empty() || values.len() != width * places.len() {
            return Ok(());
        }
        let mean: Vec<f32> = (0..width)
            .map(|j| {
                let sum: f64 = values.iter().skip(j).step_by(width).map(|x| f64::from(*x)).sum();
                (sum / places.len() as f64) as f32
            })
            .collect();
        let x = Mat::<f64>::from_fn(places.len(), width, |i, j| {
            f64::from(values[i * width + j] - mean[j])
        });
        let w = weight.read(network)?;
        let y = linalg::product(x.as_ref(), w.as_ref());
        let axes = site.sink.activation_axes.clone();
        let mut sensitivity = |place: RowPlace| -> Result<Option<f64>> {
            let energy: f64 = places
                .iter()
                .enumerate()
                .filter(|(_, p)| **p == place)
                .map(|(i, _)| y.row(i).iter().map(|v| v * v).sum::<f64>())
                .sum();
            if energy <= 0.0 {
                return Ok(None);
            }
            let comparison = after.with_activation(&|batch, data, shape| {
                let Some(strides) = Strides::new(shape, &axes) else {
                    return;
                };
                let rows = Rows::new(&strides.leading, batch);
                for row in 0..strides.count {
                    if rows.sample(row).is_some() && rows.place(row) == place {
                        strides.change(data, row, |j, x| mean.get(j).map_or(x, |m| m + SHRINK * (x - m)));
                    }
                }
            })?;
            Ok(Some(damage(&comparison) / energy))
        };
        let first = sensitivity(RowPlace::First)?;
        let inner = sensitivity(RowPlace::Inner)?;
        let last = sensitivity(RowPlace::Last)?;
        let top = [first, inner, last].into_iter().flatten().fold(0.0, f64::max);
        if top > 0.0 && top.is_finite() {
            let share = |s: Option<f64>| s.map_or(1.0, |s| (s / top).max(FLOOR)) as f32;
            out.insert(
                site.name.clone(),
                PositionWeights {
                    first: share(first),
                    inner: share(inner),
                    last: share(last),
                },
            );
        }
        Ok(())
    })?;
    for (c, of) in targets.iter().zip(of) {
        let known = (targets[of].sites.first()).and_then(|site| out.get(&site.name).copied());
        if let (Some(known), [site]) = (known, &c.sites[..]) {
            out.insert(site.name.clone(), known);
        }
    }
    progress.finish();
    Ok(out)
}
