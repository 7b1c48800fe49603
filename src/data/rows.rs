//! A tensor as the rows of X: one row per token (or image patch, or sample), the
//! contracted axes as columns; and which rows are real, of which sample, at
//! which position.

use super::batch::Batch;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// How much the rows at each place of a sequence count.
///
/// Outputs often read some positions only: a classifier reads the first one of
/// the last layer. See [`crate::rank::positions`] for how these are measured.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct PositionWeights {
    /// The first real position of a sequence.
    pub first: f32,
    /// All others but the last.
    pub inner: f32,
    /// The last real position.
    pub last: f32,
}

impl PositionWeights {
    /// All rows count alike.
    pub const EVEN: Self = Self {
        first: 1.0,
        inner: 1.0,
        last: 1.0,
    };

    /// The weight of one place.
    pub fn of(&self, place: RowPlace) -> f32 {
        match place {
            RowPlace::First => self.first,
            RowPlace::Inner => self.inner,
            RowPlace::Last => self.last,
        }
    }
}

/// Where a row lies in its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowPlace {
    /// At the first real position.
    First,
    /// Elsewhere, or in something that is no sequence.
    Inner,
    /// At the last real position, where it is not the first.
    Last,
}

/// Where the elements of each row of X lie in a row-major tensor.
#[derive(Debug, Clone)]
pub(crate) struct Strides {
    /// The number of rows.
    pub(crate) count: usize,
    /// The sizes of the axes that make the rows, in order.
    pub(crate) leading: Vec<usize>,
    /// Their strides.
    steps: Vec<usize>,
    /// The offset of each column.
    columns: Vec<usize>,
    contiguous: bool,
}

impl Strides {
    /// Of a tensor of `shape` whose `axes` are the columns, the last one fastest;
    /// `None` when an axis does not exist.
    pub(crate) fn new(shape: &[usize], axes: &[usize]) -> Option<Self> {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let mut columns = vec![0usize];
        for &axis in axes {
            let size = *shape.get(axis)?;
            let step = stride(axis);
            columns = columns
                .iter()
                .flat_map(|c| (0..size).map(move |i| c + i * step))
                .collect();
        }
        let rest: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
        Some(Self {
            count: rest.iter().map(|a| shape[*a]).product(),
            leading: rest.iter().map(|a| shape[*a]).collect(),
            steps: rest.iter().map(|a| stride(*a)).collect(),
            contiguous: columns.iter().enumerate().all(|(i, c)| i == *c),
            columns,
        })
    }

    /// The number of columns.
    pub(crate) fn width(&self) -> usize {
        self.columns.len()
    }

    fn start(&self, mut row: usize) -> usize {
        let mut start = 0;
        for (size, step) in self.leading.iter().zip(&self.steps).rev() {
            start += row % size.max(&1) * step;
            row /= size.max(&1);
        }
        start
    }

    /// Appends one row.
    pub(crate) fn read(&self, data: &[f32], row: usize, out: &mut Vec<f32>) {
        let start = self.start(row);
        if self.contiguous {
            out.extend(data.iter().skip(start).take(self.columns.len()));
        } else {
            out.extend(self.columns.iter().filter_map(|c| data.get(start + c)));
        }
    }

    /// Appends some columns of one row.
    pub(crate) fn pick(&self, data: &[f32], row: usize, columns: &[usize], out: &mut Vec<f32>) {
        let start = self.start(row);
        let offsets = columns.iter().filter_map(|c| self.columns.get(*c));
        out.extend(offsets.filter_map(|c| data.get(start + c)));
    }

    /// Changes one row in place.
    pub(crate) fn change(&self, data: &mut [f32], row: usize, f: impl Fn(usize, f32) -> f32) {
        let start = self.start(row);
        for (column, offset) in self.columns.iter().enumerate() {
            if let Some(x) = data.get_mut(start + offset) {
                *x = f(column, *x);
            }
        }
    }
}

/// The values of a float tensor, copied only where they are not float32.
pub(crate) fn floats<'a>(tensor: &'a Tensor, name: &str) -> Result<std::borrow::Cow<'a, [f32]>> {
    if !tensor.elem().is_float() {
        return Err(Error::engine(format!(
            "value '{name}' is {:?}, floats are expected",
            tensor.elem()
        )));
    }
    Ok(match tensor.as_f32() {
        Some(data) => data.into(),
        None => tensor.to_f32().into(),
    })
}

/// Which rows of a value are real, of which sample, and where in it.
pub(crate) struct Rows<'a> {
    batch: &'a Batch,
    /// Divisor and size by which a row's index gives its row of the batch.
    sample: Option<(usize, usize)>,
    /// The same for its token position.
    token: Option<(usize, usize)>,
    /// The same for a position that is no token of an input, such as a patch.
    patch: Option<(usize, usize)>,
    /// The first and the last real token of each row of the batch.
    ends: Vec<(usize, usize)>,
}

impl<'a> Rows<'a> {
    /// The rows of a value with these `leading` axes.
    ///
    /// They are, in this order of preference: the batch and the tokens as axes of
    /// their own, both in one, the batch and something else in one.
    pub(crate) fn new(leading: &[usize], batch: &'a Batch) -> Self {
        let count: usize = leading.iter().product();
        let strided = |at: usize| {
            let after: usize = leading.iter().skip(at + 1).product();
            (after.max(1), leading.get(at).copied().unwrap_or(1).max(1))
        };
        let find = |size: usize, not: Option<usize>| {
            leading
                .iter()
                .enumerate()
                .position(|(i, &d)| d == size && Some(i) != not)
        };
        let (size, tokens) = (batch.size, batch.tokens.unwrap_or(1));
        let mut rows = Self {
            batch,
            sample: None,
            token: None,
            patch: None,
            ends: Vec::new(),
        };
        if leading.len() == 1 {
            // One axis for everything: rows of a sample lie together.
            if count == size.saturating_mul(tokens) {
                rows.sample = Some((tokens.max(1), size.max(1)));
                rows.token = Some((1, tokens.max(1)));
            } else if count.checked_rem(size) == Some(0) {
                rows.sample = Some(((count / size).max(1), size.max(1)));
                rows.patch = Some((1, (count / size).max(1)));
            }
        } else {
            let batch_axis = find(size, None).or_else(|| {
                // The batch and something else, such as windows, in the first axis.
                leading
                    .first()
                    .filter(|d| d.checked_rem(size) == Some(0))
                    .map(|_| 0)
            });
            if let Some(at) = batch_axis {
                let (divisor, on) = strided(at);
                let together = on / size.max(1);
                rows.sample = Some((divisor.saturating_mul(together.max(1)), size.max(1)));
                if batch.tokens.is_some() {
                    rows.token = find(tokens, Some(at)).map(strided);
                } else if leading.len() == 2 && together == 1 {
                    rows.patch = Some(strided(1 - at));
                }
            }
        }
        if let (Some(mask), Some((_, on))) = (&batch.token_mask, rows.token) {
            rows.ends = mask
                .chunks(on.max(1))
                .map(|own| {
                    let first = own.iter().position(|r| *r).unwrap_or(0);
                    (first, own.iter().rposition(|r| *r).unwrap_or(0))
                })
                .collect();
        }
        rows
    }

    fn batch_row(&self, row: usize) -> Option<usize> {
        self.sample.map(|(divisor, size)| row / divisor % size)
    }

    /// The sample that row `row` belongs to, if the row is real.
    pub(crate) fn sample(&self, row: usize) -> Option<usize> {
        let Some(batch_row) = self.batch_row(row) else {
            // Rows that are not of a sample, as in a value that does not
            // depend on the batch.
            return self.batch.rows.first().copied();
        };
        let sample = self.batch.rows.get(batch_row).copied()?;
        if let (Some((divisor, size)), Some(mask)) = (self.token, &self.batch.token_mask) {
            let token = row / divisor % size;
            let real = mask.get(batch_row * size + token).copied().unwrap_or(false);
            return real.then_some(sample);
        }
        Some(sample)
    }

    /// Whether rows have places in a sequence at all.
    pub(crate) fn are_sequence(&self) -> bool {
        let axis = self.token.or(self.patch);
        self.sample.is_some() && axis.is_some_and(|(_, size)| size > 1)
    }

    /// Where a real row lies.
    pub(crate) fn place(&self, row: usize) -> RowPlace {
        let (Some((divisor, size)), Some(batch_row)) = (self.token.or(self.patch), self.batch_row(row))
        else {
            return RowPlace::Inner;
        };
        let at = row / divisor % size;
        let (first, last) = self
            .ends
            .get(batch_row)
            .copied()
            .unwrap_or((0, size.saturating_sub(1)));
        if size < 2 {
            RowPlace::Inner
        } else if at == first {
            RowPlace::First
        } else if at == last {
            RowPlace::Last
        } else {
            RowPlace::Inner
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Feeds;

    fn batch(size: usize, tokens: usize, mask: Option<Vec<bool>>) -> Batch {
        Batch {
            feeds: Feeds::new(),
            rows: (0..size).collect(),
            size,
            tokens: Some(tokens),
            token_mask: mask,
        }
    }

    #[test]
    fn columns_of_several_axes_are_read_in_their_order() {
        // [2, 3, 2]: columns are axes 2 and 0.
        let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let strides = Strides::new(&[2, 3, 2], &[2, 0]).unwrap();
        assert_eq!((strides.count, strides.width()), (3, 4));
        let mut row = Vec::new();
        strides.read(&data, 1, &mut row);
        assert_eq!(row, [2.0, 8.0, 3.0, 9.0]);
        let mut some = Vec::new();
        strides.pick(&data, 2, &[3, 0], &mut some);
        assert_eq!(some, [11.0, 4.0]);
    }

    #[test]
    fn places_are_those_of_real_tokens() {
        let padded = batch(2, 3, Some(vec![true, true, false, false, true, true]));
        let rows = Rows::new(&[2, 3], &padded);
        let places: Vec<_> = (0..6).map(|r| rows.sample(r).map(|_| rows.place(r))).collect();
        use RowPlace::{First, Last};
        assert_eq!(
            places,
            [Some(First), Some(Last), None, None, Some(First), Some(Last)]
        );
        let flat = Rows::new(&[6], &padded);
        assert_eq!(flat.place(4), First);
        assert_eq!(flat.sample(2), None);
    }

    #[test]
    fn patches_of_images_have_places_and_plain_rows_have_none() {
        let images = Batch {
            tokens: None,
            ..batch(2, 1, None)
        };
        let patches = Rows::new(&[2, 5], &images);
        assert!(patches.are_sequence());
        assert_eq!(patches.place(5), RowPlace::First);
        assert_eq!(patches.place(9), RowPlace::Last);
        assert!(!Rows::new(&[2], &images).are_sequence());
    }
}
