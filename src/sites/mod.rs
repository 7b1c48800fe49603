//! The groups that a run prunes, with what the numerics need of each.
//!
//! ```text
//! kind     which groups may be pruned
//! weights  where the weight and the bias of a sink sit
//! layer    sinks that read one weight, and new values for it
//! ```

mod kind;
pub mod layer;
pub mod weights;

pub use kind::{Selection, UnitKind, is_named};
pub use layer::{Fit, Fitted, Part, TriedFit, parts};

use faer::Mat;
use rayon::prelude::*;

use crate::axes::{Analysis, GroupId, Kind, PruneGroup, Sink};
use crate::calibrate::SiteProbe;
use crate::mask::Kept;
use crate::network::{Network, WeightReader};
use crate::numerics::linalg;
use crate::numerics::score::Units;
use crate::onnx::proto;
use crate::rewrite::{self, Moved};
use crate::{Error, Result, ResultExt};
use weights::Weight;

/// One sink of a group that may be pruned.
#[derive(Debug, Clone)]
pub struct Site {
    /// Unique name.
    pub name: String,
    /// Where the axis is contracted.
    pub sink: Sink,
    /// The weight, where it is a plain float matrix.
    pub weight: Option<Weight>,
    /// Where the bias is, if there is one.
    pub bias: Option<WeightReader>,
    /// What calibration watches; `None` without a weight.
    pub probe: Option<SiteProbe>,
}

/// A group that the run may prune.
#[derive(Debug, Clone)]
pub struct PruneTarget {
    /// The group.
    pub group: GroupId,
    /// What its units are.
    pub kind: Kind,
    /// Its sinks.
    pub sites: Vec<Site>,
    /// Rows of the sinks' weights per unit.
    pub units: Units,
    /// Least number of units to keep.
    pub least: usize,
}

impl PruneTarget {
    /// Whether a weight is quantised in blocks or computed, so that its units cannot be
    /// ranked.
    pub fn is_closed(&self) -> bool {
        self.sites.iter().any(|s| s.weight.is_none())
    }
}

/// What `work` makes of each group, in order. As many groups at once as there are
/// threads, since more would only take memory, and those of like size together, so that
/// no thread waits long. Each has a thread of its own: threads that share one group wait
/// for one another at every step of it.
pub fn each<T: Send>(targets: &[PruneTarget], work: impl Fn(&PruneTarget) -> T + Sync) -> Vec<T> {
    let size = |c: &PruneTarget| -> usize { c.units.rows.iter().map(Vec::len).sum() };
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(size(&targets[at])));
    let mut made: Vec<(usize, T)> = Vec::with_capacity(targets.len());
    for some in order.chunks(rayon::current_num_threads().max(1)) {
        match some {
            [at] => made.push((*at, work(&targets[*at]))),
            _ => made.par_extend(
                some.par_iter()
                    .map(|&at| (at, linalg::alone(|| work(&targets[at])))),
            ),
        }
    }
    made.sort_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, made)| made).collect()
}

/// Chooses groups.
///
/// # Errors
/// [`Error::NothingPrunable`] with the reasons of what is frozen.
pub fn choose(network: &Network, selection: &Selection) -> Result<Vec<PruneTarget>> {
    let axes = &network.axes;
    let mut targets = Vec::new();
    for (id, group) in axes.indexed().filter(|(_, g)| selection.takes(g)) {
        let zero = selection.min_units == 0 && rewrite::can_empty(network, id);
        targets.push(PruneTarget {
            group: id,
            kind: group.kind,
            sites: sites(network, group),
            units: units(axes, group).context(|| format!("group '{}'", group.name))?,
            least: if zero {
                0
            } else {
                selection.min_units.clamp(1, group.units)
            },
        });
    }
    if targets.is_empty() {
        return Err(Error::NothingPrunable(nothing(axes, selection)));
    }
    Ok(targets)
}

/// A site in the sliced network; `None` where its sink is gone.
pub fn moved(site: &Site, to: &Network, moved: &Moved) -> Option<Site> {
    let graph = &to.graph;
    let old = &site.sink;
    let node = moved.node(old.node)?;
    let same = |c: &crate::axes::Contraction| {
        c.node == node && c.inputs.contains(&old.activation_input) && c.inputs.contains(&old.weight_input)
    };
    let sink = Sink {
        contraction: to.axes.contractions.iter().position(same)?,
        node,
        activation: graph.input(node, old.activation_input)?,
        weight: graph.input(node, old.weight_input)?,
        ..old.clone()
    };
    let bias = site.bias.as_ref().and_then(|bias| {
        let node = moved.node(bias.node)?;
        let value = graph.input(node, bias.input)?;
        Some(WeightReader {
            node,
            input: bias.input,
            value,
        })
    });
    Some(Site {
        name: site.name.clone(),
        weight: weights::weight(to, &sink),
        sink,
        bias,
        probe: None,
    })
}

/// The model with biases of the targets' sinks that something else reads too given
/// to each sink as its own; `None` where there are none. Exporters share equal
/// constants, such as zeros, by value.
///
/// # Errors
/// A model without a graph.
pub fn own_biases(network: &Network, targets: &[PruneTarget]) -> Result<Option<proto::ModelProto>> {
    let mut out: Option<Network> = None;
    for target in targets {
        let mut done = Vec::new();
        for site in &target.sites {
            let Some(place) = &site.bias else { continue };
            let together: Vec<WeightReader> = target
                .sites
                .iter()
                .filter_map(|s| s.bias.clone())
                .filter(|p| p.value == place.value)
                .collect();
            let readers = network.graph.value(place.value).consumers.len();
            if readers <= together.len() || done.contains(&place.value) {
                continue;
            }
            done.push(place.value);
            let tensor = network.constant(place.value)?;
            out.get_or_insert_with(|| network.clone())
                .set_constant(&together, &tensor)?;
        }
    }
    Ok(out.map(|network| network.proto))
}

fn nothing(analysis: &Analysis, selection: &Selection) -> String {
    let words: Vec<&str> = selection.targets.iter().map(|t| t.name()).collect();
    let mut text = "nothing in this model can be pruned".to_string();
    if !analysis.groups.is_empty() {
        text += &format!(
            ": {} groups were found, but --targets ({}) and --exclude leave none",
            analysis.groups.len(),
            words.join(", ")
        );
    }
    for (op, count) in &analysis.unsupported {
        text += &format!("; {op} ({count}x) has no rule");
    }
    for frozen in analysis.frozen.iter().take(3) {
        text += &format!("; '{}' ({} units): {}", frozen.name, frozen.units, frozen.why);
    }
    text
}

fn sites(network: &Network, group: &PruneGroup) -> Vec<Site> {
    let several = group.sinks.len() > 1;
    group
        .sinks
        .iter()
        .enumerate()
        .map(|(at, sink)| {
            let weight = weights::weight(network, sink);
            let name = if several {
                format!("{}#{at}", group.name)
            } else {
                group.name.clone()
            };
            let probe = weight.as_ref().map(|w| SiteProbe {
                site: name.clone(),
                value: network.graph.value(sink.activation).name.clone(),
                axes: sink.activation_axes.clone(),
                width: w.rows,
            });
            let bias = weight
                .as_ref()
                .and_then(|w| weights::bias(network, sink, w.columns));
            Site {
                name,
                sink: sink.clone(),
                weight,
                bias,
                probe,
            }
        })
        .collect()
}

/// The rows of the sink's weight that belong to each unit.
fn units(analysis: &Analysis, group: &PruneGroup) -> Result<Units> {
    let sink = group
        .sinks
        .first()
        .ok_or_else(|| Error::input("it has no sink"))?;
    let mut of_row: Vec<Option<usize>> = vec![None];
    for (_, _, dim) in &analysis.contractions[sink.contraction].contracted {
        let axis = Kept::unit_of_index(&analysis.space, dim, group.leaf)
            .ok_or_else(|| Error::input("its axis is symbolic"))?;
        of_row = of_row
            .iter()
            .flat_map(|a| axis.iter().map(move |b| a.or(*b)))
            .collect();
    }
    let mut rows = vec![Vec::new(); group.units];
    for (row, unit) in of_row.iter().enumerate() {
        let unit = unit.ok_or_else(|| Error::input(format!("row {row} of its sink belongs to no unit")))?;
        rows[unit].push(row);
    }
    Ok(Units { rows })
}

/// The weights of a group's sinks side by side, rows by all columns.
///
/// # Errors
/// A weight that is not a plain float matrix.
pub fn side_by_side(network: &Network, target: &PruneTarget, name: &str) -> Result<Mat<f64>> {
    let mut parts: Vec<Mat<f64>> = Vec::new();
    let mut seen = Vec::new();
    for site in &target.sites {
        let weight = site.weight.as_ref().ok_or_else(|| {
            Error::input(format!(
                "the weight of '{name}' is quantised in blocks or computed: its units cannot be ranked"
            ))
        })?;
        if !seen.contains(&weight.place.value) {
            seen.push(weight.place.value);
            let part = weight.read(network)?;
            if let Some(first) = parts.first().filter(|first| first.nrows() != part.nrows()) {
                return Err(Error::input(format!(
                    "the sinks of '{name}' have weights of {} and of {} rows: its units cannot be ranked together (--exclude it)",
                    first.nrows(),
                    part.nrows()
                )));
            }
            parts.push(part);
        }
    }
    Ok(linalg::side_by_side(&parts))
}
