//! Small integer tensors of any rank, element by element.
//!
//! Exporters compute shapes, pads and slice bounds with ordinary tensor
//! operators: `Reshape([-1, 2])`, a reversing `Slice` and a `Transpose` turn
//! torch's pads around. The elements stay followed through all of these as long
//! as the tensor's own shape is known.

use super::int::Int;

/// Row-major elements with their shape.
#[derive(Debug, Clone)]
pub(crate) struct Elements {
    /// Sizes of the axes.
    pub(crate) shape: Vec<usize>,
    /// `shape`'s product many.
    pub(crate) ints: Vec<Int>,
}

impl Elements {
    /// `None` where the elements do not fill the shape.
    pub(crate) fn new(shape: Vec<usize>, ints: Vec<Int>) -> Option<Self> {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        (count == ints.len()).then_some(Elements { shape, ints })
    }

    /// A tensor of `shape` whose element at an index is this one's element at
    /// `source(index)`; `None` where that lies outside.
    pub(crate) fn map(
        &self,
        shape: Vec<usize>,
        source: impl Fn(&[usize]) -> Option<Vec<usize>>,
    ) -> Option<Self> {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        let mut ints = Vec::with_capacity(count.min(1024));
        let mut index = vec![0; shape.len()];
        for _ in 0..count {
            ints.push(self.at(&source(&index)?)?.clone());
            step(&mut index, &shape);
        }
        Some(Elements { shape, ints })
    }

    /// The element at an index.
    fn at(&self, index: &[usize]) -> Option<&Int> {
        if index.len() != self.shape.len() {
            return None;
        }
        let mut flat = 0usize;
        for (i, size) in index.iter().zip(&self.shape) {
            if i >= size {
                return None;
            }
            flat = flat.checked_mul(*size)?.checked_add(*i)?;
        }
        self.ints.get(flat)
    }

    /// Axes in another order.
    pub(crate) fn transposed(&self, perm: &[usize]) -> Option<Self> {
        let shape: Option<Vec<usize>> = perm.iter().map(|p| self.shape.get(*p).copied()).collect();
        self.map(shape?, |index| {
            let mut from = vec![0; perm.len()];
            for (i, p) in index.iter().zip(perm) {
                *from.get_mut(*p)? = *i;
            }
            Some(from)
        })
    }

    /// The entries `picks` along an axis, in that order.
    pub(crate) fn taken(&self, axis: usize, picks: &[usize]) -> Option<Self> {
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = picks.len();
        self.map(shape, |index| {
            let mut from = index.to_vec();
            let slot = from.get_mut(axis)?;
            *slot = *picks.get(*slot)?;
            Some(from)
        })
    }

    /// Broadcast to a shape.
    pub(crate) fn expanded(&self, shape: &[usize]) -> Option<Self> {
        let shift = shape.len().checked_sub(self.shape.len())?;
        let own = self.shape.clone();
        self.map(shape.to_vec(), |index| {
            Some(
                own.iter()
                    .zip(index.get(shift..)?)
                    .map(|(size, i)| if *size == 1 { 0 } else { *i })
                    .collect(),
            )
        })
    }

    /// Tensors laid together along an axis.
    pub(crate) fn joined(parts: &[Self], axis: usize) -> Option<Self> {
        let first = parts.first()?;
        let mut shape = first.shape.clone();
        let total = parts
            .iter()
            .try_fold(0usize, |n, p| n.checked_add(*p.shape.get(axis)?))?;
        *shape.get_mut(axis)? = total;
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        let mut ints = Vec::with_capacity(count.min(1024));
        let mut index = vec![0; shape.len()];
        for _ in 0..count {
            let mut from = index.clone();
            let mut found = None;
            for part in parts {
                let size = *part.shape.get(axis)?;
                if from[axis] < size {
                    found = part.at(&from);
                    break;
                }
                from[axis] -= size;
            }
            ints.push(found?.clone());
            step(&mut index, &shape);
        }
        Some(Elements { shape, ints })
    }
}

/// The next index in row-major order.
fn step(index: &mut [usize], shape: &[usize]) {
    for (i, size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *size {
            return;
        }
        *i = 0;
    }
}

/// Whether a tensor of this shape has at most so many elements.
pub(crate) fn at_most(shape: &[usize], most: usize) -> bool {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    count.is_some_and(|count| count <= most)
}

/// The shape that two broadcast to.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], k: usize| (k + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|k| match (at(a, k), at(b, k)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
