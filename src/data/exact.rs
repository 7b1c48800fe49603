//! One batch of a given size: what latency is measured on.

use std::collections::BTreeMap;

use super::draw::{Purpose, Random};
use super::fill::{FillSizes, Filler, Template};
use super::layout::{InputAxis, InputRole, Layout, StreamKind};
use super::reader::checked_shapes;
use super::samples::{DataOptions, TOKENS};
use super::seen::SeenSizes;
use super::spec::input_specs;
use super::tables::Tables;
use crate::error::{Error, Result, ResultExt};
use crate::onnx::proto;
use crate::tensor::{Feeds, Tensor, ops};

/// Inputs of exactly one size.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactBatch {
    /// The inputs by name: random tokens or noise, nothing is padding.
    pub feeds: Feeds,
    /// Rows.
    pub batch: usize,
    /// Token positions per row, where the model takes tokens.
    pub seq: Option<usize>,
}

/// What size an exact batch has.
#[derive(Debug, Clone, Copy)]
pub struct ExactSizes<'a> {
    /// Rows.
    pub batch: usize,
    /// Tokens of every sequence; without it those of the samples, where all have the
    /// same number, else 128 or as many as the model takes.
    pub seq: Option<usize>,
    /// Shapes of one row, by input.
    pub shapes: &'a [(String, Vec<usize>)],
    /// What samples have.
    pub seen: &'a SeenSizes,
}

/// Makes one batch of inputs. Sizes that the graph fixes win, then
/// [`shapes`](ExactSizes::shapes), then what was asked, then what was seen.
///
/// # Errors
/// More tokens than the model has positions for; inputs that cannot be made.
pub fn exact_batch(model: &proto::ModelProto, wanted: &ExactSizes) -> Result<ExactBatch> {
    let ExactSizes {
        batch,
        seq: asked,
        shapes,
        seen,
    } = *wanted;
    if batch == 0 || asked == Some(0) {
        return Err(Error::input("--batch and --seq must be at least 1"));
    }
    let layout = Layout::new(&input_specs(model)?);
    let tables = Tables::find(model);
    let shapes: BTreeMap<String, Vec<usize>> = checked_shapes(&layout, shapes)?;
    let tokens = layout.inputs.iter().any(|i| i.role == InputRole::TokenIds);
    let most = tables.positions.filter(|_| tokens);
    if let (Some(seq), Some(most)) = (asked, most)
        && seq > most
    {
        return Err(Error::input(format!(
            "--seq {seq}: the model takes at most {most} tokens"
        )));
    }
    let seq = asked.unwrap_or(TOKENS).min(most.unwrap_or(usize::MAX));
    let batch = layout.fixed_batch.unwrap_or(batch);
    let template = Template::default();
    let filler = Filler {
        layout: &layout,
        tables: &tables,
        shapes: &shapes,
        template: &template,
        length: seq,
        seen,
    };
    let mut random = Random::new(0, Purpose::Values);
    let mut sizes = FillSizes::default();
    for input in &layout.inputs {
        if let Some(shape) = shapes.get(&input.spec.name) {
            sizes.learn(input, shape);
        }
        for (axis, dim) in input.axes.iter().zip(&input.spec.dims) {
            if let (InputAxis::Tokens(stream), Some(size)) = (axis, dim.fixed()) {
                sizes.tokens.entry(*stream).or_insert(size);
            }
        }
    }
    for input in &layout.inputs {
        sizes.learn_seen(input, seen, asked.is_none());
    }
    for stream in StreamKind::ALL {
        sizes.tokens.entry(stream).or_insert(seq);
    }
    let mut feeds = Feeds::new();
    let mut found = None;
    for input in &layout.inputs {
        let name = &input.spec.name;
        let tensor = match input.batch_axis() {
            Some(axis) => {
                let rows: Vec<Tensor> = (0..batch)
                    .map(|_| filler.make(input, &sizes, &mut random))
                    .collect::<Result<_>>()?;
                let rows: Vec<&Tensor> = rows.iter().collect();
                ops::concat(&rows, axis).context(|| format!("graph input '{name}'"))?
            }
            None => filler.make(input, &sizes, &mut random)?,
        };
        let axis = input
            .axes
            .iter()
            .position(|a| *a == InputAxis::Tokens(StreamKind::Main));
        found = found.or(axis.and_then(|a| tensor.shape.get(a)).copied());
        feeds.insert(name.clone(), tensor);
    }
    Ok(ExactBatch {
        feeds,
        batch,
        seq: found,
    })
}

impl DataOptions {
    /// The batch that costs and timings are for, given what samples have.
    pub fn exact<'a>(&'a self, seen: &'a SeenSizes) -> ExactSizes<'a> {
        ExactSizes {
            batch: self.batch,
            seq: self.seq,
            shapes: &self.shapes,
            seen,
        }
    }
}
