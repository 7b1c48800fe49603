//! Decoders that share the weights of the one that is pruned: the other branch of an `If`,
//! the first step of a search.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use super::options::Options;
use crate::data::{self, DataOptions};
use crate::engine::Ctx;
use crate::io::npz;
use crate::mask::Mask;
use crate::network::Network;
use crate::onnx::proto::{ModelProto, TensorProto};
use crate::sites::{self, PruneTarget};
use crate::{Error, Result, ResultExt, rewrite, verify};

/// Samples that a follower is checked on.
const SAMPLES: usize = 4;

/// Which branch of an `If` on this graph input some data take, where they tell.
pub(super) fn taken(data: &[PathBuf], input: &str) -> Option<bool> {
    let told = data.iter().find_map(|path| {
        let mut archive = npz::Archive::open(path).ok()?;
        archive.header(input)?;
        archive.read(input).ok()
    })?;
    told.to_f32().first().map(|v| *v != 0.0)
}

/// The name of the constant that each target's sinks read.
fn weights(network: &Network, target: &PruneTarget) -> Vec<String> {
    let names = target.sites.iter().filter_map(|site| {
        let place = &site.weight.as_ref()?.place;
        Some(network.graph.value(place.value).name.clone())
    });
    names.collect()
}

/// A decoder with the units gone that `mask` takes out of the one whose weights it shares,
/// and with the weights that `pruned` has.
///
/// # Errors
/// A unit that only one of them can lose; the engine's.
pub(super) fn follow(
    ctx: Ctx,
    other: &ModelProto,
    (network, targets, mask): (&Network, &[PruneTarget], &Mask),
    pruned: &ModelProto,
    options: &Options,
) -> Result<ModelProto> {
    let follower = Network::of(other.clone(), options.axes)?;
    let chosen = sites::choose(&follower, &options.selection)?;
    let mut by_weight: HashMap<String, &PruneTarget> = HashMap::new();
    for target in &chosen {
        by_weight.extend(weights(&follower, target).into_iter().map(|w| (w, target)));
    }
    let held: BTreeMap<&str, &TensorProto> = constants(other);
    let mut own = Mask::default();
    for target in targets {
        let (Some(kept), all) = (mask.kept.get(&target.group), weights(network, target)) else {
            continue;
        };
        if kept.iter().all(|k| *k) {
            continue;
        }
        match all.iter().find_map(|w| by_weight.get(w)) {
            Some(there) if there.kind == target.kind => {
                own.kept.insert(there.group, kept.clone());
            }
            _ if all.iter().any(|w| held.contains_key(w.as_str())) => {
                return Err(Error::Unmet(format!(
                    "'{}' loses units, and another decoder that reads the same weights cannot lose them: leave \
                     it out with --exclude",
                    network.group(target.group).name
                )));
            }
            _ => {}
        }
    }
    let sliced = rewrite::slice(&follower, &own, options.axes)?;
    let few = DataOptions {
        samples: Some(SAMPLES),
        batch: 2,
        seq: Some(16),
        ..DataOptions::default()
    };
    let few = data::read_samples(other, &few)?;
    let groups: Vec<_> = own.kept.keys().copied().collect();
    let equality = verify::sliced_equals_masked(ctx, &follower, &groups, &own, &sliced.network.proto, &few)
        .context(|| "checking another decoder that shares the weights".to_owned())?;
    equality.require()?;
    let new = constants(pruned);
    let mut model = sliced.network.proto;
    for tensor in model.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        if let Some(new) = new.get(tensor.name()) {
            if new.dims != tensor.dims {
                return Err(Error::Unmet(format!(
                    "the constant '{}' has the shape {:?} in one decoder and {:?} in another",
                    tensor.name(),
                    new.dims,
                    tensor.dims
                )));
            }
            tensor.clone_from(new);
        }
    }
    Ok(model)
}

fn constants(model: &ModelProto) -> BTreeMap<&str, &TensorProto> {
    let all = model.graph.iter().flat_map(|g| &g.initializer);
    all.map(|t| (t.name(), t)).collect()
}
