//! The groups that a run prunes, with what the numerics need of each.

pub mod layer;
pub mod weights;

pub use layer::{Fit, Part, apply, parts};

use faer::Mat;
use rayon::prelude::*;

use crate::axes::{Analysis, Kind, PruneGroup};
use crate::calibrate::SiteProbe;
use crate::graph::Graph;
use crate::mask::Kept;
use crate::numerics::linalg;
use crate::numerics::score::Units;
use crate::onnx::proto;
use crate::options::{Options, Target};
use crate::{Error, Result, ResultExt, rewrite};
use weights::Weight;

/// One sink of a chosen group.
#[derive(Debug, Clone)]
pub struct Site {
    /// Unique name.
    pub name: String,
    /// Index of the sink in the group.
    pub sink: usize,
    /// The weight, where it is a plain float matrix.
    pub weight: Option<Weight>,
    /// Where the bias is, if there is one.
    pub bias: Option<weights::Place>,
    /// What calibration watches; `None` without a weight.
    pub probe: Option<SiteProbe>,
}

/// A group that the run may prune.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Index in [`Analysis::groups`].
    pub group: usize,
    /// Its sinks.
    pub sites: Vec<Site>,
    /// Rows of the sinks' weights per unit.
    pub units: Units,
    /// Least number of units to keep.
    pub least: usize,
}

impl Chosen {
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
pub fn each<T: Send>(chosen: &[Chosen], work: impl Fn(&Chosen) -> T + Sync) -> Vec<T> {
    let size = |c: &Chosen| -> usize { c.units.rows.iter().map(Vec::len).sum() };
    let mut order: Vec<usize> = (0..chosen.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(size(&chosen[at])));
    let mut made: Vec<(usize, T)> = Vec::with_capacity(chosen.len());
    for some in order.chunks(rayon::current_num_threads().max(1)) {
        match some {
            [at] => made.push((*at, work(&chosen[*at]))),
            _ => made.par_extend(
                some.par_iter()
                    .map(|&at| (at, linalg::alone(|| work(&chosen[at])))),
            ),
        }
    }
    made.sort_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, made)| made).collect()
}

/// Chooses groups by the options.
///
/// # Errors
/// [`Error::NothingPrunable`] with the reasons of what is frozen.
pub fn choose(
    model: &proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    options: &Options,
) -> Result<Vec<Chosen>> {
    let wanted = |g: &PruneGroup| {
        let kind = match g.kind {
            Kind::Heads => options.targets.contains(&Target::Heads),
            Kind::Repeats => options.targets.contains(&Target::Queries),
            Kind::Neurons => options.targets.contains(&Target::Neurons),
            _ => false,
        };
        kind && !options.exclude.iter().any(|r| r.is_match(&g.name))
    };
    let mut chosen = Vec::new();
    for (index, group) in analysis.groups.iter().enumerate().filter(|(_, g)| wanted(g)) {
        let zero = options.min_units == 0 && rewrite::can_empty(model, graph, analysis, index);
        chosen.push(Chosen {
            group: index,
            sites: sites(graph, analysis, group),
            units: units(analysis, group).context(|| format!("group '{}'", group.name))?,
            least: if zero {
                0
            } else {
                options.min_units.clamp(1, group.units)
            },
        });
    }
    if chosen.is_empty() {
        return Err(Error::NothingPrunable(nothing(analysis, options)));
    }
    Ok(chosen)
}

/// The model with biases of the chosen sinks that something else reads too given
/// to each sink as its own; `None` where there are none. Exporters share equal
/// constants, such as zeros, by value.
///
/// # Errors
/// A model without a graph.
pub fn own_biases(
    model: &proto::ModelProto,
    graph: &Graph,
    chosen: &[Chosen],
) -> Result<Option<proto::ModelProto>> {
    let mut out: Option<proto::ModelProto> = None;
    for c in chosen {
        let mut done: Vec<&weights::Place> = Vec::new();
        for site in &c.sites {
            let Some(place) = &site.bias else { continue };
            let together: Vec<weights::Place> = c
                .sites
                .iter()
                .filter_map(|s| s.bias.clone())
                .filter(|p| p.value == place.value)
                .collect();
            let readers = graph.value(place.value).consumers.len();
            if readers <= together.len() || done.iter().any(|d| d.value == place.value) {
                continue;
            }
            done.push(place);
            let tensor = weights::constant(model, graph, place.value)?;
            weights::put(
                out.get_or_insert_with(|| model.clone()),
                graph,
                &together,
                &tensor,
            )?;
        }
    }
    Ok(out)
}

fn nothing(analysis: &Analysis, options: &Options) -> String {
    let mut text = "nothing in this model can be pruned".to_string();
    if !analysis.groups.is_empty() {
        text += &format!(
            ": {} groups were found, but --targets ({:?}) and --exclude leave none",
            analysis.groups.len(),
            options.targets
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

fn sites(graph: &Graph, analysis: &Analysis, group: &PruneGroup) -> Vec<Site> {
    let several = group.sinks.len() > 1;
    group
        .sinks
        .iter()
        .enumerate()
        .map(|(at, sink)| {
            let weight = weights::weight(graph, sink);
            let name = if several {
                format!("{}#{at}", group.name)
            } else {
                group.name.clone()
            };
            let probe = weight.as_ref().map(|w| SiteProbe {
                site: name.clone(),
                value: graph.value(sink.activation).name.clone(),
                axes: sink.activation_axes.clone(),
                width: w.rows,
            });
            let bias = weight
                .as_ref()
                .and_then(|w| weights::bias(graph, analysis, sink, w.columns));
            Site {
                name,
                sink: at,
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
pub fn side_by_side(
    model: &proto::ModelProto,
    graph: &Graph,
    chosen: &Chosen,
    name: &str,
) -> Result<Mat<f64>> {
    let mut parts: Vec<Mat<f64>> = Vec::new();
    let mut seen = Vec::new();
    for site in &chosen.sites {
        let weight = site.weight.as_ref().ok_or_else(|| {
            Error::input(format!(
                "the weight of '{name}' is quantised in blocks or computed: its units cannot be ranked"
            ))
        })?;
        if !seen.contains(&weight.place.value) {
            seen.push(weight.place.value);
            let part = weight.read(model, graph)?;
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
