//! One batch of a given size: what latency is measured on.

use std::collections::BTreeMap;

use super::draw::{Purpose, Random};
use super::fill::{FillSizes, Filler, Template};
use super::layout::{InputAxis, InputRole, Layout, StreamKind};
use super::read::checked_shapes;
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

/// Makes inputs of `batch` rows with `seq` tokens each; sizes that the graph
/// fixes win, as do `shapes` (of one row, by input).
///
/// # Errors
/// More tokens than the model has positions for; inputs that cannot be made.
pub fn exact_batch(
    model: &proto::ModelProto,
    batch: usize,
    seq: usize,
    shapes: &[(String, Vec<usize>)],
) -> Result<ExactBatch> {
    if batch == 0 || seq == 0 {
        return Err(Error::input("--batch and --seq must be at least 1"));
    }
    let layout = Layout::new(&input_specs(model)?);
    let tables = Tables::find(model);
    let shapes: BTreeMap<String, Vec<usize>> = checked_shapes(&layout, shapes)?;
    let tokens = layout.inputs.iter().any(|i| i.role == InputRole::TokenIds);
    if let Some(most) = tables.positions.filter(|most| tokens && seq > *most) {
        return Err(Error::input(format!(
            "--seq {seq}: the model takes at most {most} tokens"
        )));
    }
    let batch = layout.fixed_batch.unwrap_or(batch);
    let template = Template::default();
    let filler = Filler {
        layout: &layout,
        tables: &tables,
        shapes: &shapes,
        template: &template,
        length: seq,
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
