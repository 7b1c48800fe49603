//! Constants and statistics in another basis.

use std::collections::BTreeMap;

use faer::Mat;

use super::find::{HeadBlocks, Maker};
use crate::network::Network;
use crate::numerics::SiteStatistics;
use crate::numerics::linalg::{product, select_columns};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A matrix for each head.
pub(super) type Bases = BTreeMap<usize, Mat<f64>>;

/// A matrix whose columns are channels (and others, which stay), in the basis of each
/// head.
pub(super) fn columns(matrix: &Mat<f64>, blocks: &HeadBlocks, bases: &Bases) -> Mat<f64> {
    let mut out = matrix.clone();
    for (head, runs) in blocks {
        let Some(basis) = bases.get(head) else { continue };
        for run in runs {
            let turned = product(select_columns(matrix.as_ref(), run).as_ref(), basis.as_ref());
            for (j, column) in run.iter().enumerate() {
                out.col_mut(*column).copy_from(turned.col(j));
            }
        }
    }
    out
}

/// The entries of an axis whose channel is among the first `kept`, ascending.
pub(super) fn kept_of(blocks: &HeadBlocks, kept: usize) -> Vec<usize> {
    let runs = blocks.values().flatten();
    let mut all: Vec<usize> = runs.flat_map(|run| run.iter().take(kept).copied()).collect();
    all.sort_unstable();
    all
}

/// The statistics of a sink's input in the basis of each head, with the first `kept`
/// channels of each.
pub(super) fn statistics(
    of: &SiteStatistics,
    blocks: &HeadBlocks,
    bases: &Bases,
    kept: usize,
) -> Result<SiteStatistics> {
    let rows = kept_of(blocks, kept);
    of.mapped(rows.len(), &|matrix| {
        select_columns(columns(matrix, blocks, bases).as_ref(), &rows)
    })
}

/// A weight or bias in the basis of each head.
pub(super) fn constant(network: &Network, maker: &Maker, bases: &Bases) -> Result<Tensor> {
    turned(network, maker, bases, &network.constant(maker.reader.value)?)
}

/// The same of a tensor that stands for it.
pub(super) fn turned(network: &Network, maker: &Maker, bases: &Bases, tensor: &Tensor) -> Result<Tensor> {
    let value = maker.reader.value;
    let name = || network.graph.value(value).name.as_str();
    let sizes = &tensor.shape;
    let Some(width) = sizes.get(maker.axis).copied() else {
        return Err(Error::input(format!(
            "the constant '{}' has no axis {}",
            name(),
            maker.axis
        )));
    };
    let inner: usize = sizes.iter().skip(maker.axis + 1).product();
    let outer: usize = sizes.iter().take(maker.axis).product();
    let old = tensor.to_f32();
    if old.len() != outer * width * inner {
        return Err(Error::input(format!(
            "the data of the constant '{}' does not match its shape",
            name()
        )));
    }
    let at = |row: usize, column: usize| (row / inner.max(1) * width + column) * inner + row % inner.max(1);
    let matrix = Mat::from_fn(outer * inner, width, |i, j| f64::from(old[at(i, j)]));
    let turned = columns(&matrix, &maker.blocks, bases);
    let mut values = vec![0.0f64; old.len()];
    for row in 0..outer * inner {
        for column in 0..width {
            values[at(row, column)] = turned[(row, column)];
        }
    }
    Ok(Tensor::rounded(sizes.clone(), &values, tensor.elem()))
}
