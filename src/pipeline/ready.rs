//! A model that was read, with the groups that may be pruned.

use std::path::Path;

use super::{Loaded, finite, load};
use crate::calibrate::SiteProbe;
use crate::onnx::proto;
use crate::options::Options;
use crate::rewrite::dequantise::{self, Closed};
use crate::sites::{self, Chosen};
use crate::{Error, Result, axes, graph};

/// A model with the groups that may be pruned.
pub(super) struct Ready {
    pub(super) loaded: Loaded,
    /// The model with quantised weights and how to get back to it, where that is
    /// what was read.
    pub(super) closed: Option<(proto::ModelProto, Closed)>,
    pub(super) chosen: Vec<Chosen>,
}

/// Reads a model and chooses its groups.
pub(super) fn ready(input: &Path, options: &Options) -> Result<Ready> {
    let mut loaded = load(input, options.axes)?;
    finite::check(&loaded)?;
    let mut chosen = sites::choose(&loaded.model, &loaded.graph, &loaded.analysis, options)?;
    let mut closed = None;
    let quantised = |c: &Chosen| c.sites.iter().any(|s| s.weight.is_none());
    if chosen.iter().any(quantised)
        && let Some((model, back)) = dequantise::open(&loaded.model)?
    {
        loaded.graph = graph::build(&model)?;
        loaded.analysis = axes::analyse(&loaded.graph, options.axes);
        closed = Some((std::mem::replace(&mut loaded.model, model), back));
        chosen = sites::choose(&loaded.model, &loaded.graph, &loaded.analysis, options)?;
        loaded.notes.push(
            "quantised weights are pruned and re-fitted as floats and quantised again, with new scales where they changed"
                .into(),
        );
    }
    if let Some(model) = sites::own_biases(&loaded.model, &loaded.graph, &chosen)? {
        loaded.graph = graph::build(&model)?;
        loaded.analysis = axes::analyse(&loaded.graph, options.axes);
        loaded.model = model;
        chosen = sites::choose(&loaded.model, &loaded.graph, &loaded.analysis, options)?;
    }
    Ok(Ready {
        loaded,
        closed,
        chosen,
    })
}

/// What calibration watches.
///
/// # Errors
/// [`Error::NothingPrunable`] where there is nothing to watch.
pub(super) fn probes(chosen: &[Chosen]) -> Result<Vec<SiteProbe>> {
    let sites = chosen.iter().flat_map(|c| &c.sites);
    let probes: Vec<SiteProbe> = sites.filter_map(|s| s.probe.clone()).collect();
    if probes.is_empty() {
        return Err(Error::NothingPrunable(
            "nothing in this model can be ranked: the weights behind all heads and neurons are quantised in blocks or computed (--mask with --reconstruct none can still remove some)"
                .into(),
        ));
    }
    Ok(probes)
}
