//! From a mask to a smaller model: slice constants, mend shapes and attributes,
//! drop dead sublayers.
//!
//! ```text
//! zero      groups without units: their sinks' outputs become constants
//! live      what the outputs still need; shapes read from dead tensors move
//! constants each use of a constant gets its slice
//! ints      shape entries, attributes, splits get the new sizes
//! links     a table shared by layers is sliced at each of them
//! draft     all changes are applied at once, dead nodes go
//! ```

mod attrs;
mod constants;
mod draft;
mod ints;
mod masked;
mod reshape;
mod slice;
mod zero;

pub use constants::tensor_of;
pub(crate) use draft::sweep;
pub use masked::{float_type, masked};

use crate::axes::Analysis;
use crate::graph::Graph;
use crate::mask::Mask;
use crate::onnx::proto;
use crate::{Error, Result, ResultExt};
use draft::Draft;

/// The model with the units outside `mask` gone.
///
/// `graph` and `analysis` belong to `model`, whose local functions are inlined.
///
/// # Errors
/// A group without units whose sink cannot be cut ([`can_empty`] tells), a
/// tensor that cannot be sliced.
pub fn prune(
    model: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    mask: &Mask,
) -> Result<proto::ModelProto> {
    plan(model, graph, analysis, mask)?.finish()
}

/// Whether a group may lose all its units.
pub fn can_empty(model: &proto::ModelProto, graph: &Graph, analysis: &Analysis, group: usize) -> bool {
    let mut mask = Mask::default();
    let Some(units) = analysis.groups.get(group).map(|g| g.units) else {
        return false;
    };
    mask.kept.insert(group, vec![false; units]);
    plan(model, graph, analysis, &mask).is_ok()
}

fn plan<'a>(
    model: &'a proto::ModelProto,
    graph: &'a Graph,
    analysis: &'a Analysis,
    mask: &Mask,
) -> Result<Draft<'a>> {
    for (group, kept) in &mask.kept {
        match analysis.groups.get(*group) {
            Some(g) if g.units == kept.len() => {}
            Some(g) => {
                return Err(Error::input(format!(
                    "the mask of group '{}' has {} units, the group {}",
                    g.name,
                    kept.len(),
                    g.units
                )));
            }
            None => {
                return Err(Error::input(format!(
                    "the mask names a group {group} that does not exist"
                )));
            }
        }
    }
    let mut draft = Draft::new(model, graph, analysis, mask.by_factor(analysis))?;
    for (group, kept) in &mask.kept {
        if kept.iter().all(|k| !k) {
            let group = &analysis.groups[*group];
            zero::cut(&mut draft, group)
                .context(|| format!("group '{}' cannot lose all its units", group.name))?;
        }
    }
    if mask.kept.values().any(|kept| kept.iter().all(|k| !k)) {
        draft.mark_live(false);
        reshape::shapes_of_the_dead(&mut draft)?;
    }
    draft.mark_live(true);
    constants::slice(&mut draft)?;
    ints::mend(&mut draft)?;
    attrs::mend(&mut draft)?;
    Ok(draft)
}
