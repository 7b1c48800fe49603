//! `head_mask` and `neuron_mask`: arrays of layers x units, as tools that prune
//! models in their training framework keep them.
//!
//! - A row is a layer: the groups of the kind, in the order of the graph. Where
//!   layers share one weight, and so one group, there may be a row for each use;
//!   those rows must agree.
//! - 0 is pruned, anything else is kept.
//! - Layers of different widths share one array: rows are padded with 0.
//! - With grouped queries, a unit is a key/value head with its query heads. A
//!   `head_mask` as wide as the query heads is written and read by query head: a
//!   unit stays where any of its query heads does.

use std::collections::BTreeMap;

use super::{ARRAYS, FoundMasks};
use crate::axes::{Analysis, Dim, FactorId, GroupId, Kind, PruneGroup, Term};
use crate::mask::{Kept, Mask};
use crate::tensor::{Data, Tensor};
use crate::{Error, Result, ResultExt};

/// What one row of an array is about.
struct LayerMask<'a> {
    /// The group.
    at: GroupId,
    group: &'a PruneGroup,
    /// The unit of each query head; for what has no query heads, of each unit.
    heads: Vec<usize>,
}

impl<'a> LayerMask<'a> {
    fn all(analysis: &'a Analysis, kind: Kind) -> Vec<Self> {
        analysis
            .indexed()
            .filter(|(_, group)| group.kind == kind)
            .map(|(at, group)| LayerMask {
                at,
                group,
                heads: query_heads(analysis, group).unwrap_or_else(|| (0..group.units).collect()),
            })
            .collect()
    }
}

/// The unit of each query head, in the order in which the sink reads them;
/// `None` where units are not groups of query heads.
fn query_heads(analysis: &Analysis, group: &PruneGroup) -> Option<Vec<usize>> {
    if group.kind != Kind::Heads {
        return None;
    }
    let space = &analysis.space;
    let repeats = |leaf: FactorId| {
        let listed = |g: &PruneGroup| g.kind == Kind::Repeats && g.leaf == leaf;
        space.is_repeat(leaf) || analysis.groups.iter().any(listed)
    };
    let sink = group.sinks.first()?;
    let contraction = analysis.contractions.get(sink.contraction)?;
    let mut heads = Dim::one();
    for (_, _, dim) in &contraction.contracted {
        for term in space.resolve(dim).0 {
            match term {
                Term::Factor(leaf) if leaf == group.leaf || repeats(leaf) => {
                    heads = heads.times(Dim::factor(leaf));
                }
                Term::Factor(_) => {}
                Term::Symbol(_) | Term::Sum(_) => return None,
            }
        }
    }
    let units: Option<Vec<usize>> = Kept::unit_of_index(space, &heads, group.leaf)?
        .into_iter()
        .collect();
    units.filter(|units| units.len() >= group.units)
}

/// The kept units that arrays say.
pub(super) fn from_arrays(
    analysis: &Analysis,
    arrays: &BTreeMap<String, Tensor>,
    notes: &mut Vec<String>,
) -> Result<FoundMasks> {
    let mut found = FoundMasks::new();
    for (name, kind) in ARRAYS {
        if let Some(array) = arrays.get(name) {
            from_array(analysis, kind, array, &mut found, notes).context(|| format!("array '{name}'"))?;
        }
    }
    Ok(found)
}

fn from_array(
    analysis: &Analysis,
    kind: Kind,
    array: &Tensor,
    found: &mut FoundMasks,
    notes: &mut Vec<String>,
) -> Result<()> {
    let [rows, width] = array.shape[..] else {
        return Err(Error::input(format!(
            "its shape is {:?}: layers x {} are expected",
            array.shape,
            kind.noun()
        )));
    };
    let flags = non_zero(array, width)?;
    let layers = LayerMask::all(analysis, kind);
    let of_row = layers_of_rows(&layers, rows, kind)?;
    // One array is by query head or by unit as a whole: no row says it alone.
    let widest = |of: fn(&LayerMask<'_>) -> usize| layers.iter().map(of).max().unwrap_or(0);
    let (units, heads) = (widest(|l| l.group.units), widest(|l| l.heads.len()));
    let by_head = heads > units && width >= heads;
    if by_head {
        notes.push(
            "head_mask is by query head: a key/value head stays where any of its query heads does".to_owned(),
        );
    }
    let mut row_of: BTreeMap<GroupId, usize> = BTreeMap::new();
    for (row, layer) in of_row.into_iter().enumerate() {
        let start = row * width;
        let own = flags.get(start..start + width).unwrap_or_default();
        let units = units_of_row(layer, own, by_head)
            .context(|| format!("row {row}, which is '{}'", layer.group.name))?;
        let first = *row_of.entry(layer.at).or_insert(row);
        match found.get(&layer.at) {
            Some(other) if *other != units => {
                return Err(Error::input(format!(
                    "rows {first} and {row} differ, but both are '{}': the layers share one weight",
                    layer.group.name
                )));
            }
            _ => {
                found.insert(layer.at, units);
            }
        }
    }
    Ok(())
}

/// The layer that each row is about.
fn layers_of_rows<'a, 'b>(
    layers: &'a [LayerMask<'b>],
    rows: usize,
    kind: Kind,
) -> Result<Vec<&'a LayerMask<'b>>> {
    if rows == layers.len() {
        return Ok(layers.iter().collect());
    }
    let mut uses: Vec<(usize, &LayerMask<'_>)> = layers
        .iter()
        .flat_map(|layer| {
            layer
                .group
                .sinks
                .iter()
                .map(move |sink| (sink.contraction, layer))
        })
        .collect();
    // Contractions are numbered in topological order.
    uses.sort_by_key(|(contraction, _)| *contraction);
    if rows == uses.len() {
        return Ok(uses.into_iter().map(|(_, layer)| layer).collect());
    }
    let shared = if uses.len() > layers.len() {
        format!(" ({} with one row for each use of a shared weight)", uses.len())
    } else {
        String::new()
    };
    Err(Error::input(format!(
        "it has {rows} rows, but {} groups of {} can be pruned in the model{shared}: 'inspect' lists \
         them, and what is frozen",
        layers.len(),
        kind.noun()
    )))
}

fn units_of_row(layer: &LayerMask<'_>, row: &[bool], by_head: bool) -> Result<Vec<bool>> {
    let count = if by_head {
        layer.heads.len()
    } else {
        layer.group.units
    };
    let own = row.get(..count).ok_or_else(|| {
        Error::input(format!(
            "it has {} entries, the layer {count} {}",
            row.len(),
            layer.group.kind.noun()
        ))
    })?;
    if let Some(extra) = row.iter().skip(count).position(|kept| *kept) {
        return Err(Error::input(format!(
            "entry {} is not 0, but the layer has only {count} {}",
            count + extra,
            layer.group.kind.noun()
        )));
    }
    if !by_head {
        return Ok(own.to_vec());
    }
    let mut units = vec![false; layer.group.units];
    for (kept, unit) in own.iter().zip(&layer.heads) {
        if let Some(slot) = units.get_mut(*unit) {
            *slot |= kept;
        }
    }
    Ok(units)
}

/// Which entries are not 0.
fn non_zero(array: &Tensor, width: usize) -> Result<Vec<bool>> {
    macro_rules! numbers {
        ($values:expr, $zero:expr) => {
            $values.iter().map(|x| *x != $zero).collect()
        };
    }
    macro_rules! floats {
        ($values:expr, $zero:expr) => {{
            if let Some(at) = $values.iter().position(|x| x.is_nan()) {
                let width = width.max(1);
                return Err(Error::input(format!(
                    "the entry at row {}, column {} is NaN",
                    at / width,
                    at % width
                )));
            }
            numbers!($values, $zero)
        }};
    }
    Ok(match &array.data {
        Data::F32(v) => floats!(v, 0.0),
        Data::F64(v) => floats!(v, 0.0),
        Data::F16(v) => floats!(v, half::f16::ZERO),
        Data::BF16(v) => floats!(v, half::bf16::ZERO),
        Data::I8(v) => numbers!(v, 0),
        Data::I16(v) => numbers!(v, 0),
        Data::I32(v) => numbers!(v, 0),
        Data::I64(v) => numbers!(v, 0),
        Data::U8(v) => numbers!(v, 0),
        Data::U16(v) => numbers!(v, 0),
        Data::U32(v) => numbers!(v, 0),
        Data::U64(v) => numbers!(v, 0),
        Data::Bool(v) => v.clone(),
    })
}

/// The array of one kind as float32 zeros and ones; `None` where the model has
/// no group of the kind.
pub(super) fn array(analysis: &Analysis, mask: &Mask, kind: Kind, notes: &mut Vec<String>) -> Option<Tensor> {
    let layers = LayerMask::all(analysis, kind);
    let width = layers.iter().map(|l| l.heads.len()).max()?;
    if layers.iter().any(|l| l.heads.len() < width) {
        notes.push(format!(
            "layers have different numbers of {}: shorter rows are filled with 0 at the end",
            kind.noun()
        ));
    }
    if layers.iter().any(|l| l.heads.len() > l.group.units) {
        notes.push("head_mask is by query head; query heads of one key/value head go together".to_owned());
    }
    let mut values = Vec::with_capacity(layers.len().saturating_mul(width));
    for layer in &layers {
        let kept = mask.kept.get(&layer.at);
        let flag = |unit: &usize| kept.and_then(|k| k.get(*unit)).copied().unwrap_or(true);
        values.extend(layer.heads.iter().map(|unit| f32::from(u8::from(flag(unit)))));
        values.extend(std::iter::repeat_n(0.0, width - layer.heads.len()));
    }
    Some(Tensor::f32(vec![layers.len(), width], values))
}
