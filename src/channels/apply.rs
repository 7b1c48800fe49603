//! The network with fewer channels in its heads.

use std::collections::BTreeMap;

use faer::Mat;

use super::projection::read;
use super::{ChannelCalibration, How, Narrower, rotate, side_bases};
use crate::data::Samples;
use crate::engine::Ctx;
use crate::graph::ValueId;
use crate::mask::{Mask, Narrowing};
use crate::network::{Network, WeightReader};
use crate::numerics::{SiteStatistics, solve};
use crate::sites::{self, PruneTarget, Selection, parts};
use crate::tensor::Tensor;
use crate::verify::{self, Equality};
use crate::{Error, Result, rewrite};

/// A network with fewer channels, ready to be pruned.
pub struct Narrowed {
    /// The network.
    pub network: Network,
    /// The targets in it, in the same order.
    pub targets: Vec<PruneTarget>,
    /// Statistics of the sites that are narrower than before.
    pub statistics: BTreeMap<String, SiteStatistics>,
    /// Narrowed against channels that are zero.
    pub equality: Equality,
}

impl Narrowed {
    /// A mask of the network as it was, in the groups of this one. `targets` are those
    /// there.
    pub fn mask(&self, targets: &[PruneTarget], mask: &Mask) -> Mask {
        let mut own = Mask::default();
        for (there, here) in targets.iter().zip(&self.targets) {
            if let Some(kept) = mask.kept.get(&there.group) {
                own.kept.insert(here.group, kept.clone());
            }
        }
        own
    }
}

impl Narrower {
    /// The network with fewer channels; output projections are re-fitted to them on the
    /// statistics. The result is compared on a `few` samples with the network whose
    /// channels are zero.
    ///
    /// # Errors
    /// The engine's; [`Error::Unmet`] where the two differ.
    pub fn apply(
        &self,
        ctx: Ctx,
        known: ChannelCalibration,
        narrowing: &Narrowing,
        few: &Samples,
        selection: &Selection,
    ) -> Result<Narrowed> {
        let ChannelCalibration {
            network,
            targets,
            statistics,
            ..
        } = known;
        let mut open = self.open.network.clone();
        let mut narrower = BTreeMap::new();
        let mut watched = Vec::new();
        // One weight may make values, queries and keys.
        let mut constants: BTreeMap<ValueId, (WeightReader, Tensor)> = BTreeMap::new();
        for (at, kept) in &narrowing.kept {
            let Some(block) = self.blocks.get(*at) else {
                continue;
            };
            for maker in &block.channels.makers {
                let mut bases = side_bases(&block.how, maker.side);
                if let How::Queries(_) = block.how {
                    // No sink tells that these are gone.
                    bases.values_mut().for_each(|basis| forget(basis, *kept));
                }
                let value = maker.reader.value;
                let old = match constants.remove(&value) {
                    Some((_, tensor)) => tensor,
                    None => network.constant(value)?,
                };
                let tensor = rotate::turned(network, maker, &bases, &old)?;
                constants.insert(value, (maker.reader.clone(), tensor));
            }
            let How::Values(bases) = &block.how else { continue };
            let c = &targets[block.at];
            let Some(whole) = read(network, c, statistics)? else {
                continue;
            };
            let own = whole.turned(&block.rows, bases);
            let rows = rotate::kept_of(&block.rows, *kept);
            let site = own.site(&block.rows, block.channels.count);
            let refit = solve::local(&site, &rows, self.options.damp, own.with_bias)?;
            let parts = parts(network, &c.sites)?;
            if let Some(part) = parts.first() {
                part.fit(&rows, refit).put(&mut open)?;
            }
            for site in &c.sites {
                if let Some(old) = statistics.sites.get(&site.name) {
                    let new = rotate::statistics(old, &block.rows, bases, *kept)?;
                    narrower.insert(site.name.clone(), new);
                }
            }
            watched.push(block.channels.group);
        }
        for (reader, tensor) in constants.values() {
            open.set_constant(std::slice::from_ref(reader), tensor)?;
        }
        let mask = self.open.mask(narrowing);
        let sliced = rewrite::slice(&open, &mask, self.options.axes)?;
        let proto = &sliced.network.proto;
        let equality = verify::sliced_equals_masked(ctx, &open, &watched, &mask, proto, few)?;
        equality.require()?;
        drop(open);
        let targets = moved(&sliced, targets, selection)?;
        Ok(Narrowed {
            targets: targets.ok_or_else(|| Error::input("a group of heads is gone with its channels"))?,
            network: sliced.network,
            statistics: narrower,
            equality,
        })
    }
}

/// The targets in the network with fewer channels: where their sinks went.
fn moved(
    sliced: &rewrite::Sliced,
    targets: &[PruneTarget],
    selection: &Selection,
) -> Result<Option<Vec<PruneTarget>>> {
    let found = sites::choose(&sliced.network, selection)?;
    let here = |target: &PruneTarget| {
        let sink = &target.sites.first()?.sink;
        let node = sliced.moved.node(sink.node)?;
        let axes = &sliced.network.axes;
        let group = axes.group_of_sink(target.kind, node, sink.activation_input)?;
        found.iter().find(|new| new.group == group).cloned()
    };
    Ok(targets.iter().map(here).collect())
}

/// A basis without the channels from `kept` on.
fn forget(basis: &mut Mat<f64>, kept: usize) {
    for j in kept..basis.ncols() {
        basis.col_mut(j).fill(0.0);
    }
}
