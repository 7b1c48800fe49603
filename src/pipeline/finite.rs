//! Weights that are no numbers, found before anything is computed with them.

use crate::graph::{Role, ValueId};
use crate::network::Network;
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// What is wrong with a value.
#[derive(Clone, Copy, PartialEq)]
enum Bad {
    Nan,
    Infinite,
}

/// Refuses a NaN in any constant that is read, and an infinity in one that is
/// multiplied with activations. Elsewhere infinities are usual: masks are made of
/// them.
///
/// # Errors
/// Names the constant, the entry and the node that reads it.
pub(super) fn check(network: &Network) -> Result<()> {
    let graph = &network.graph;
    let mut weights: Vec<ValueId> = Vec::new();
    for c in &network.axes.contractions {
        let sides = (0..2).filter(|side| c.constant[*side]);
        weights.extend(sides.filter_map(|side| graph.input(c.node, c.inputs[side])));
    }
    for (at, value) in graph.values.iter().enumerate() {
        let float = value.elem.is_some_and(|e| e.is_float());
        if value.role != Role::Constant || !float || value.consumers.is_empty() {
            continue;
        }
        let id = ValueId(at as u32);
        // Types that are not read here are left to the engine.
        let Ok(tensor) = network.constant(id) else {
            continue;
        };
        let Some((entry, bad)) = first_bad(&tensor, weights.contains(&id)) else {
            continue;
        };
        let what = match bad {
            Bad::Nan => "NaN",
            Bad::Infinite => "infinite",
        };
        let node = value.consumers.first().map(|(node, _)| graph.label(*node));
        return Err(Error::input(format!(
            "the constant '{}' is {what} at {:?}, and node {} reads it: the file is damaged, or its \
             training diverged; get a sound copy of the model",
            value.name,
            index(&tensor.shape, entry),
            node.unwrap_or_default()
        )));
    }
    Ok(())
}

/// The first value that is NaN, or where asked infinite.
fn first_bad(tensor: &Tensor, infinite: bool) -> Option<(usize, Bad)> {
    fn find<T: Copy>(values: &[T], widen: impl Fn(T) -> f64, infinite: bool) -> Option<(usize, Bad)> {
        values.iter().enumerate().find_map(|(at, value)| {
            let value = widen(*value);
            match () {
                () if value.is_nan() => Some((at, Bad::Nan)),
                () if infinite && value.is_infinite() => Some((at, Bad::Infinite)),
                () => None,
            }
        })
    }
    match &tensor.data {
        Data::F32(v) => find(v, f64::from, infinite),
        Data::F64(v) => find(v, |x| x, infinite),
        Data::F16(v) => find(v, half::f16::to_f64, infinite),
        Data::BF16(v) => find(v, half::bf16::to_f64, infinite),
        _ => None,
    }
}

/// The place of a value along each axis.
fn index(shape: &[usize], flat: usize) -> Vec<usize> {
    let mut rest = flat;
    let mut places: Vec<usize> = shape
        .iter()
        .rev()
        .map(|size| {
            let place = rest % (*size).max(1);
            rest /= (*size).max(1);
            place
        })
        .collect();
    places.reverse();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_axis() {
        assert_eq!(index(&[2, 3, 4], 0), [0, 0, 0]);
        assert_eq!(index(&[2, 3, 4], 17), [1, 1, 1]);
        assert_eq!(index(&[], 0), [0; 0]);
        let tensor = Tensor::f32(vec![2, 2], vec![0.0, f32::INFINITY, 1.0, f32::NAN]);
        assert_eq!(first_bad(&tensor, true).map(|(at, _)| at), Some(1));
        assert_eq!(first_bad(&tensor, false).map(|(at, _)| at), Some(3));
    }
}
