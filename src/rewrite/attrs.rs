//! Attributes that hold sizes, and splits into equal parts that are not equal
//! any more.

use super::draft::Draft;
use super::reads::ints_attribute;
use crate::axes::{Dim, Int};
use crate::tensor::Tensor;
use crate::{Error, Result};

pub(super) fn mend(draft: &mut Draft) -> Result<()> {
    for entry in &draft.analysis.attr_uses {
        if !draft.live[entry.node.0 as usize] {
            continue;
        }
        let needed = draft.eval(&entry.needed).as_const().ok_or_else(|| {
            Error::input(format!(
                "the attribute '{}' of node {} depends on a run-time size",
                entry.name,
                draft.graph.label(entry.node)
            ))
        })?;
        let mut body = draft.body(entry.node);
        let found = body.attribute.iter_mut().find(|a| a.name() == entry.name);
        let slot = match (found, entry.entry) {
            (Some(attr), None) => attr.i.get_or_insert(0),
            (Some(attr), Some(at)) => match attr.ints.get_mut(at) {
                Some(slot) => slot,
                None => continue,
            },
            (None, _) => continue,
        };
        if *slot != needed {
            *slot = needed;
            draft.changed.insert(entry.node, body);
        }
    }
    splits(draft)?;
    runs(draft);
    Ok(())
}

/// Constant indices that pick a run of neighbours.
fn runs(draft: &mut Draft) {
    let space = &draft.analysis.space;
    for run in &draft.analysis.runs {
        let touched = draft.kept.touches(space, &run.before) || draft.kept.touches(space, &run.part);
        if !touched || !draft.live[run.node.0 as usize] {
            continue;
        }
        let size = |dim: &Dim| draft.eval(&Int::Dim(dim.clone())).as_const();
        let (Some(before), Some(length)) = (size(&run.before), size(&run.part)) else {
            continue;
        };
        let rank = draft
            .graph
            .input(run.node, 1)
            .and_then(|v| draft.analysis.facts(v).dims.as_ref())
            .map_or(1, Vec::len);
        let picks: Vec<i64> = (before..before.saturating_add(length)).collect();
        let shape = match rank {
            0 => vec![],
            1 => vec![picks.len()],
            _ => vec![picks.len(), 1],
        };
        let name = draft.constant("picks", &Tensor::i64(shape, picks));
        draft.inputs.insert((run.node, 1), name);
    }
}

fn splits(draft: &mut Draft) -> Result<()> {
    for (node, parts) in &draft.analysis.even_splits {
        let space = &draft.analysis.space;
        let sizes: Option<Vec<i64>> = parts
            .iter()
            .map(|p| {
                space
                    .size_with(p, &|f| draft.kept.size(space, f))
                    .map(|n| n as i64)
            })
            .collect();
        let touched = parts.iter().any(|p| draft.kept.touches(space, p));
        let Some(sizes) = sizes.filter(|_| touched && draft.live[node.0 as usize]) else {
            continue;
        };
        let sequence = draft.graph.node(*node).is("", "SplitToSequence");
        if !sequence && sizes.windows(2).all(|w| w[0] == w[1]) {
            continue;
        }
        let mut body = draft.body(*node);
        body.attribute.retain(|a| a.name() != "num_outputs");
        if draft.graph.opset >= 13 || sequence {
            let name = draft.constant("split_sizes", &Tensor::i64(vec![sizes.len()], sizes));
            body.input.truncate(1);
            body.input.push(name);
        } else {
            body.attribute.push(ints_attribute("split", sizes));
        }
        draft.changed.insert(*node, body);
    }
    Ok(())
}
