//! From a mask to a smaller model: slice constants, mend shapes and attributes,
//! drop dead sublayers.
//!
//! ```text
//! zero      groups without units: their sinks' outputs become constants
//! folding   what operators make of constants
//! live      what the outputs still need; shapes read from dead tensors move
//! constants each use of a constant gets its slice
//! ints      shape entries, attributes, splits get the new sizes
//! links     a table shared by layers is sliced at each of them
//! heads     outputs over a vocabulary at some positions, to measure with
//! draft     all changes are applied at once, dead nodes go
//! ```

mod attrs;
pub mod computed;
mod constants;
pub mod dequantise;
mod draft;
pub mod ends;
mod folding;
pub mod heads;
pub mod inner;
mod ints;
mod known;
pub mod lossless;
mod masked;
mod reads;
mod reshape;
pub mod segment;
mod slice;
mod unpack;
mod zero;

pub use draft::Moved;
pub use masked::{float_type, masked};
pub(crate) use slice::narrowed;
pub use unpack::unpack;

use crate::axes::{self, GroupId, PruneGroup};
use crate::mask::Mask;
use crate::network::Network;
use crate::onnx::proto;
use crate::{Result, ResultExt};
use draft::Draft;

/// A network with units gone, and where everything went.
#[derive(Debug, Clone)]
pub struct Sliced {
    /// The smaller network.
    pub network: Network,
    /// Where the nodes and constants of the larger one are in it.
    pub moved: Moved,
}

/// The network with the units outside `mask` gone.
///
/// # Errors
/// A group without units whose sink cannot be cut ([`can_empty`] tells), a
/// tensor that cannot be sliced.
pub fn slice(network: &Network, mask: &Mask, options: axes::AnalysisOptions) -> Result<Sliced> {
    let (proto, moved) = plan(network, mask)?.finish()?;
    let network = Network::of(proto, options)?;
    Ok(Sliced { network, moved })
}

/// The model with the units outside `mask` gone.
///
/// # Errors
/// As [`slice`](slice()).
pub fn prune(network: &Network, mask: &Mask) -> Result<proto::ModelProto> {
    Ok(plan(network, mask)?.finish()?.0)
}

/// What a mask changes about the graph's inputs and outputs, in words.
pub fn interface_changes(network: &Network, mask: &Mask) -> Vec<String> {
    let (graph, analysis) = (&network.graph, &network.axes);
    let (kept, space) = (mask.by_factor(analysis), &analysis.space);
    let mut changes = Vec::new();
    let inputs = graph.inputs.iter().map(|v| ("input", v));
    for (what, value) in inputs.chain(graph.outputs.iter().map(|v| ("output", v))) {
        for (axis, dim) in analysis.facts(*value).dims.iter().flatten().enumerate() {
            let sizes = (space.size(dim), space.size_with(dim, &|f| kept.size(space, f)));
            if let (Some(before), Some(after)) = sizes
                && kept.touches(space, dim)
            {
                let name = &graph.value(*value).name;
                changes.push(format!(
                    "the interface changes: axis {axis} of the {what} '{name}' has {after} of {before} entries"
                ));
            }
        }
    }
    changes
}

/// Whether a group may lose all its units.
pub fn can_empty(network: &Network, group: GroupId) -> bool {
    let mut mask = Mask::default();
    let Some(units) = network.axes.groups.get(group.0).map(|g| g.units) else {
        return false;
    };
    mask.kept.insert(group, vec![false; units]);
    plan(network, &mask).is_ok()
}

fn plan<'a>(network: &'a Network, mask: &Mask) -> Result<Draft<'a>> {
    let analysis = &network.axes;
    mask.check(analysis)?;
    let mut draft = Draft::new(network, mask.by_factor(analysis))?;
    let empty: Vec<&PruneGroup> = mask
        .kept
        .iter()
        .filter(|(_, kept)| kept.iter().all(|k| !k))
        .map(|(group, _)| network.group(*group))
        .collect();
    if !empty.is_empty() {
        let wanted = zero::cut(&mut draft, &empty).context(|| {
            let names: Vec<&str> = empty.iter().map(|g| g.name.as_str()).collect();
            format!("{} cannot lose all units", names.join(", "))
        })?;
        draft.mark_live(false);
        zero::expand(&mut draft, wanted)?;
        reshape::shapes_of_the_dead(&mut draft)?;
    }
    draft.mark_live(true);
    constants::cut(&mut draft)?;
    ints::mend(&mut draft)?;
    attrs::mend(&mut draft)?;
    Ok(draft)
}
