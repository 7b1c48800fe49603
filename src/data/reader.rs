//! What samples are read with: the inputs of the graph, what fills those that are not given,
//! and where the samples go.

use std::collections::BTreeMap;

use super::fill::{Filler, Template};
use super::layout::{InputAxis, Layout, StreamKind};
use super::samples::{DataOptions, Sample};
use super::seen::SeenSizes;
use super::spec::InputDim;
use super::tables::Tables;
use crate::error::{Error, Result};
use crate::tensor::ops;

/// What samples go to.
pub type Take<'t> = dyn FnMut(Vec<Sample>) -> Result<()> + 't;

/// Hands samples on, so many at a time.
pub(super) struct ReadParts<'t, 'f> {
    pub(super) waiting: Vec<Sample>,
    pub(super) most: usize,
    /// All so far.
    pub(super) count: usize,
    pub(super) take: &'t mut Take<'f>,
}

impl ReadParts<'_, '_> {
    pub(super) fn push(&mut self, sample: Sample) -> Result<()> {
        self.waiting.push(sample);
        self.count += 1;
        if self.waiting.len() == self.most {
            (self.take)(std::mem::take(&mut self.waiting))?;
        }
        Ok(())
    }

    /// The last ones; returns how many there were.
    pub(super) fn end(mut self) -> Result<usize> {
        if !self.waiting.is_empty() {
            (self.take)(std::mem::take(&mut self.waiting))?;
        }
        Ok(self.count)
    }
}

/// The `--shape` options by name, checked against the graph, of one row each.
pub(super) fn checked_shapes(
    layout: &Layout,
    given: &[(String, Vec<usize>)],
) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut shapes = BTreeMap::new();
    for (name, shape) in given {
        let wrong = |why: &str| {
            Error::input(format!(
                "--shape {name}={shape:?}: {why}; the graph wants {}",
                layout.describe()
            ))
        };
        let input = layout
            .inputs
            .iter()
            .find(|i| i.spec.name == *name)
            .ok_or_else(|| wrong("there is no such input"))?;
        let dims = &input.spec.dims;
        let fits = |(dim, size): (&InputDim, &usize)| dim.fixed().is_none_or(|fixed| fixed == *size);
        if shape.len() != dims.len() {
            return Err(wrong("the number of axes differs"));
        }
        if !dims.iter().zip(shape).all(fits) {
            return Err(wrong("a size that the graph fixes differs"));
        }
        ops::elements(shape)?;
        let mut own = shape.clone();
        // A sample has one row; batches are made later.
        if let Some(rows) = input.batch_axis().and_then(|axis| own.get_mut(axis)) {
            *rows = 1;
        }
        shapes.insert(name.clone(), own);
    }
    Ok(shapes)
}

/// Reads samples of a graph.
pub(super) struct DataReader<'a> {
    pub(super) layout: Layout,
    pub(super) tables: Tables,
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    pub(super) options: &'a DataOptions,
    /// Nothing is seen before samples are read.
    pub(super) seen: SeenSizes,
}

impl DataReader<'_> {
    pub(super) fn filler<'a>(&'a self, template: &'a Template) -> Filler<'a> {
        Filler {
            layout: &self.layout,
            tables: &self.tables,
            shapes: &self.shapes,
            template,
            length: self.options.seq().max(1),
            seen: &self.seen,
        }
    }

    /// The most tokens of a sequence, of `asked`.
    pub(super) fn longest(&self, asked: usize, fixed: Option<usize>) -> usize {
        let limit = fixed.into_iter().chain(self.tables.positions).min();
        limit.map_or(asked, |limit| asked.min(limit))
    }
}

/// The number of tokens of `stream`, where the graph fixes it.
pub(super) fn fixed_tokens(layout: &Layout, stream: StreamKind) -> Option<usize> {
    layout.inputs.iter().find_map(|input| {
        (input.axes.iter().zip(&input.spec.dims))
            .filter(|(axis, _)| **axis == InputAxis::Tokens(stream))
            .find_map(|(_, dim)| dim.fixed())
    })
}
