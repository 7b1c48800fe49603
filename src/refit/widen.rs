//! Fits of a sliced model in the shapes that its constants had before: so that it can be
//! compared with the masked one.

use crate::axes::Analysis;
use crate::graph::Graph;
use crate::mask::{Kept, Mask};
use crate::onnx::proto;
use crate::sites::layer::Fit;
use crate::sites::weights::{self, Place};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Puts the fits of a sliced model, whose graph is `sliced`, into the one that was
/// sliced; entries that are gone keep their values.
///
/// # Errors
/// A constant that has no counterpart of a fitting shape.
pub fn widen(
    model: &mut proto::ModelProto,
    graph: &Graph,
    analysis: &Analysis,
    mask: &Mask,
    fits: &[Fit],
    sliced: &Graph,
) -> Result<()> {
    let kept = mask.by_factor(analysis);
    for (name, new) in fits.iter().flat_map(|fit| fit.feeds(sliced)) {
        let bad = || {
            Error::input(format!(
                "the re-fitted constant '{name}' is not one of the model before it was sliced"
            ))
        };
        let value = graph.find(&name).ok_or_else(bad)?;
        let [(node, input)] = graph.value(value).consumers[..] else {
            return Err(bad());
        };
        let old = weights::constant(model, graph, value)?;
        let dims = analysis.facts(value).dims.as_ref().ok_or_else(bad)?;
        let wide = scattered(&old, &new, &places(analysis, &kept, dims, &old.shape)).ok_or_else(bad)?;
        weights::put(model, graph, &[Place { node, input, value }], &wide)?;
    }
    Ok(())
}

/// The entries of each axis that stay.
fn places(analysis: &Analysis, kept: &Kept, dims: &[crate::axes::Dim], shape: &[usize]) -> Vec<Vec<usize>> {
    let all = |size: &usize| (0..*size).collect();
    let axes = dims.iter().zip(shape);
    axes.map(|(dim, size)| kept.indices(&analysis.space, dim).unwrap_or_else(|| all(size)))
        .collect()
}

/// `old` with the entries of `new` at the places of each axis.
fn scattered(old: &Tensor, new: &Tensor, places: &[Vec<usize>]) -> Option<Tensor> {
    let fits = places.len() == old.shape.len()
        && new.shape.iter().copied().eq(places.iter().map(Vec::len))
        && (places.iter().zip(&old.shape)).all(|(p, size)| p.iter().all(|i| i < size));
    if !fits {
        return None;
    }
    let mut at = vec![0usize];
    for (axis, size) in places.iter().zip(&old.shape) {
        at = at
            .iter()
            .flat_map(|from| axis.iter().map(move |i| from * size + i))
            .collect();
    }
    let mut values: Vec<f64> = old.to_f32().into_iter().map(f64::from).collect();
    for (to, value) in at.into_iter().zip(new.to_f32()) {
        *values.get_mut(to)? = f64::from(value);
    }
    Some(weights::rounded(old.shape.clone(), &values, old.elem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_to_their_places() {
        let old = Tensor::f32([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let new = Tensor::f32([1, 2], vec![7.0, 8.0]);
        let wide = scattered(&old, &new, &[vec![1], vec![0, 2]]);
        assert_eq!(
            wide,
            Some(Tensor::f32([2, 3], vec![1.0, 2.0, 3.0, 7.0, 5.0, 8.0]))
        );
        assert_eq!(scattered(&old, &new, &[vec![1], vec![0, 3]]), None);
        assert_eq!(scattered(&old, &new, &[vec![0, 1], vec![0, 2]]), None);
    }
}
