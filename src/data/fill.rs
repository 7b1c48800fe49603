//! Makes inputs: all of them for synthetic samples, the missing ones for data.

use std::collections::BTreeMap;

use super::draw::Random;
use super::layout::{InputAxis, InputRole, Layout, LayoutInput, StreamKind};
use super::seen::SeenSizes;
use super::spec::InputDim;
use super::tables::Tables;
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Elem, Feeds, Tensor, ops};

/// Token ids below this are drawn where no embedding table is found.
pub(crate) const FALLBACK_VOCABULARY: usize = 1000;

/// Sizes of open axes in one sample.
#[derive(Debug, Clone, Default)]
pub(crate) struct FillSizes {
    /// Tokens per stream.
    pub(crate) tokens: BTreeMap<StreamKind, usize>,
    /// Earlier tokens.
    pub(crate) past: usize,
    /// Named axes.
    pub(crate) symbols: BTreeMap<String, usize>,
}

impl FillSizes {
    /// Reads the sizes that tensors already present imply.
    pub(crate) fn of(layout: &Layout, feeds: &Feeds) -> Self {
        let mut sizes = Self::default();
        for input in &layout.inputs {
            if let Some(tensor) = feeds.get(&input.spec.name) {
                sizes.learn(input, &tensor.shape);
            }
        }
        sizes
    }

    /// Takes over what `shape` says about the axes of `input`.
    pub(crate) fn learn(&mut self, input: &LayoutInput, shape: &[usize]) {
        for ((axis, dim), &size) in input.axes.iter().zip(&input.spec.dims).zip(shape) {
            match axis {
                InputAxis::Tokens(stream) => {
                    self.tokens.entry(*stream).or_insert(size);
                }
                InputAxis::Past => self.past = size,
                _ => {}
            }
            if let (InputAxis::Free | InputAxis::Past | InputAxis::Tokens(_), InputDim::Symbol(name)) =
                (axis, dim)
            {
                self.symbols.entry(name.clone()).or_insert(size);
            }
        }
    }

    /// Takes over what samples have, but for tokens where their number was asked for.
    pub(crate) fn learn_seen(&mut self, input: &LayoutInput, seen: &SeenSizes, tokens: bool) {
        for (at, (axis, dim)) in input.axes.iter().zip(&input.spec.dims).enumerate() {
            let Some(size) = seen.size(&input.spec.name, at) else {
                continue;
            };
            match (axis, dim) {
                (InputAxis::Tokens(stream), _) if tokens => _ = self.tokens.entry(*stream).or_insert(size),
                (InputAxis::Past, _) => self.past = size,
                (InputAxis::Free, InputDim::Symbol(name)) => {
                    self.symbols.entry(name.clone()).or_insert(size);
                }
                _ => {}
            }
        }
    }

    /// The shape of `input` for one sample; `length` is the size of open axes
    /// that are like a sequence.
    fn shape(&self, input: &LayoutInput, length: usize) -> Vec<usize> {
        let main = self.tokens.get(&StreamKind::Main).copied().unwrap_or(length);
        (input.axes.iter().zip(&input.spec.dims).enumerate())
            .map(|(i, (axis, dim))| match (axis, dim) {
                (InputAxis::Batch, _) => 1,
                (_, InputDim::Fixed(size)) => *size,
                (InputAxis::Tokens(stream), _) => self.tokens.get(stream).copied().unwrap_or(length),
                (InputAxis::Total, _) => main.saturating_add(self.past),
                (_, InputDim::Symbol(name)) if self.symbols.contains_key(name) => {
                    self.symbols.get(name).copied().unwrap_or(length)
                }
                (InputAxis::Past, _) => self.past,
                _ => open_size(input, i, length),
            })
            .collect()
    }
}

/// The customary size of an axis of which the graph says nothing.
fn open_size(input: &LayoutInput, axis: usize, length: usize) -> usize {
    match (input.role, axis) {
        (InputRole::Image, 0) => 1,
        (InputRole::Image, 1) => 3,
        (InputRole::Image, _) => 224,
        // One second at 16 kHz.
        (InputRole::Audio, _) => 16_000,
        // Axes before the tokens, such as choices.
        (InputRole::TokenIds | InputRole::TokenTypes | InputRole::Positions, _) => 1,
        (InputRole::Mask | InputRole::InverseMask | InputRole::Floats, _) => length,
        _ => 1,
    }
}

/// Draws one sequence of token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Template {
    /// Special tokens in front.
    pub(crate) prefix: Vec<u32>,
    /// Special tokens at the end.
    pub(crate) suffix: Vec<u32>,
    /// Tokens that are never drawn, sorted.
    pub(crate) avoid: Vec<u32>,
    /// Ids are drawn below this, where it is known.
    pub(crate) vocabulary: Option<usize>,
}

impl Template {
    fn draw(&self, rows: usize, length: usize, random: &mut Random) -> Vec<i64> {
        let rows = self.vocabulary.map_or(rows, |v| v.min(rows)).max(1) as u64;
        let special = self.prefix.len() + self.suffix.len();
        let inner = length.saturating_sub(special);
        let mut ids = Vec::with_capacity(length);
        ids.extend(self.prefix.iter().map(|&id| i64::from(id)));
        for _ in 0..inner {
            let mut id = random.below(rows);
            // Hardly ever more than once; bounded for vocabularies of specials only.
            for _ in 0..16 {
                let special = u32::try_from(id).is_ok_and(|id| self.avoid.binary_search(&id).is_ok());
                if !special {
                    break;
                }
                id = random.below(rows);
            }
            ids.push(id as i64);
        }
        ids.extend(self.suffix.iter().map(|&id| i64::from(id)));
        ids.truncate(length);
        ids
    }
}

/// Values of one input that are made up, at most: above, a declared size is taken for
/// a mistake before memory is asked for.
const MOST_MADE: usize = 1 << 26;

/// Makes the tensors of inputs.
pub(crate) struct Filler<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) tables: &'a Tables,
    /// Shapes that the user gave.
    pub(crate) shapes: &'a BTreeMap<String, Vec<usize>>,
    pub(crate) template: &'a Template,
    /// Size of open axes that are like a sequence and of which nothing is known.
    pub(crate) length: usize,
    /// What samples have.
    pub(crate) seen: &'a SeenSizes,
}

impl Filler<'_> {
    /// The shape of `input` in one sample.
    pub(crate) fn shape(&self, input: &LayoutInput, sizes: &FillSizes) -> Vec<usize> {
        let name = &input.spec.name;
        if let Some(shape) = self.shapes.get(name) {
            return shape.clone();
        }
        let mut shape = sizes.shape(input, self.length);
        for (at, (size, axis)) in shape.iter_mut().zip(&input.axes).enumerate() {
            if *axis == InputAxis::Free {
                let known = self.seen.size(name, at).or_else(|| self.tables.size(name, at));
                *size = known.unwrap_or(*size);
            }
        }
        shape
    }

    /// Makes one input.
    pub(crate) fn make(&self, input: &LayoutInput, sizes: &FillSizes, random: &mut Random) -> Result<Tensor> {
        let shape = self.shape(input, sizes);
        self.values(input, shape, random)
            .context(|| format!("making graph input '{}'", input.spec.name))
    }

    fn values(&self, input: &LayoutInput, shape: Vec<usize>, random: &mut Random) -> Result<Tensor> {
        let elem = input.spec.elem;
        let n = ops::elements(&shape)?;
        if n > MOST_MADE {
            return Err(Error::input(format!(
                "its shape {shape:?} takes {n} values, more than are made up: give real inputs with --data, \
                 or smaller axes with --shape where the graph leaves them open"
            )));
        }
        let overflow = || Error::input(format!("the values do not fit {elem:?}"));
        match input.role {
            InputRole::TokenIds => {
                let rows = self.tables.rows(&input.spec.name).unwrap_or(FALLBACK_VOCABULARY);
                let length = along_tokens(input, &shape);
                let mut ids = Vec::with_capacity(n);
                while ids.len() < n {
                    ids.extend(self.template.draw(rows, length.max(1), random));
                }
                ids.truncate(n);
                ops::from_integers(elem, shape, &ids).ok_or_else(overflow)
            }
            InputRole::Positions => {
                let length = along_tokens(input, &shape).max(1);
                let positions: Vec<i64> = (0..n).map(|i| (i % length) as i64).collect();
                ops::from_integers(elem, shape, &positions).ok_or_else(overflow)
            }
            InputRole::Mask => ops::filled(elem, shape, 1),
            InputRole::TokenTypes | InputRole::InverseMask | InputRole::Past | InputRole::Flag => {
                ops::filled(elem, shape, 0)
            }
            InputRole::Integers => match self.tables.rows(&input.spec.name) {
                Some(rows) if elem != Elem::Bool => {
                    let ids: Vec<i64> = (0..n).map(|_| random.below(rows as u64) as i64).collect();
                    ops::from_integers(elem, shape, &ids).ok_or_else(overflow)
                }
                _ => ops::filled(elem, shape, 0),
            },
            InputRole::Image | InputRole::Audio | InputRole::Floats if elem.is_float() => {
                let values: Vec<f64> = (0..n).map(|_| random.normal()).collect();
                ops::from_floats(elem, shape, &values).ok_or_else(overflow)
            }
            InputRole::Image | InputRole::Audio | InputRole::Floats => ops::filled(elem, shape, 0),
        }
    }

    /// Makes the inputs that data need not give: masks, segments, positions,
    /// empty caches, switches. Returns their names; an input that only the user
    /// can give is an error.
    pub(crate) fn complete(&self, feeds: &mut Feeds, random: &mut Random) -> Result<Vec<String>> {
        let mut sizes = FillSizes::of(self.layout, feeds);
        let mut made = Vec::new();
        for input in &self.layout.inputs {
            if feeds.contains_key(&input.spec.name) {
                continue;
            }
            let optional = match input.role {
                InputRole::Mask
                | InputRole::InverseMask
                | InputRole::TokenTypes
                | InputRole::Positions
                | InputRole::Past
                | InputRole::Flag => true,
                InputRole::Integers => input.spec.dims.len() <= 1,
                InputRole::TokenIds | InputRole::Image | InputRole::Audio | InputRole::Floats => false,
            };
            if !optional {
                return Err(Error::input(format!(
                    "the data have nothing for graph input '{}'; the graph wants {}",
                    input.spec.name,
                    self.layout.describe()
                )));
            }
            let tensor = self.make(input, &sizes, random)?;
            sizes.learn(input, &tensor.shape);
            feeds.insert(input.spec.name.clone(), tensor);
            made.push(input.spec.name.clone());
        }
        Ok(made)
    }
}

/// The number of token positions in `shape`: its last axis that is not the batch.
fn along_tokens(input: &LayoutInput, shape: &[usize]) -> usize {
    let axis = input
        .axes
        .iter()
        .rposition(|a| matches!(a, InputAxis::Tokens(_) | InputAxis::Total));
    axis.or(shape.len().checked_sub(1))
        .and_then(|a| shape.get(a))
        .copied()
        .unwrap_or(1)
}
