//! How the sizes of a value follow from those of the inputs, learnt from runs.
//!
//! Nodes that sum over the rows of a value need the weights of these rows before
//! the value is there. Its sizes are learnt instead of derived: a size may be
//! constant, or a multiple of one size of the inputs or of the product of two (the
//! batch times the sequence). All such laws that agree with every run so far are
//! kept; where they disagree about the next batch, nothing is said, and the run that
//! is then done without knowing tells them apart.

use crate::tensor::Feeds;

/// `factor` x the sizes of the inputs at these places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Law {
    factor: usize,
    places: [Option<usize>; 2],
}

impl Law {
    fn of(&self, inputs: &[usize]) -> Option<usize> {
        self.places
            .iter()
            .flatten()
            .try_fold(self.factor, |size, &place| size.checked_mul(*inputs.get(place)?))
    }
}

/// The laws of each axis of one value.
#[derive(Debug, Clone, Default)]
pub(crate) struct SampleSizes {
    axes: Option<Vec<Vec<Law>>>,
}

/// The sizes of all axes of all inputs, in the order of their names.
fn sizes(feeds: &Feeds) -> Vec<usize> {
    feeds.values().flat_map(|t| t.shape.iter().copied()).collect()
}

/// All laws by which `inputs` give `size`.
fn laws(size: usize, inputs: &[usize]) -> Vec<Law> {
    // Inputs with many axes would make many pairs; the first ones have the batch and
    // the sequence.
    const MOST: usize = 24;
    let places = || (0..inputs.len().min(MOST)).map(Some);
    let pairs = places().flat_map(|a| places().filter(move |b| *b > a).map(move |b| [a, b]));
    std::iter::once([None, None])
        .chain(places().map(|a| [a, None]))
        .chain(pairs)
        .filter_map(|places| {
            let product = Law { factor: 1, places }.of(inputs).filter(|p| *p > 0)?;
            size.is_multiple_of(product).then_some(Law {
                factor: size / product,
                places,
            })
        })
        .collect()
}

impl SampleSizes {
    /// Takes in that a run on `feeds` gave the value this shape.
    pub(crate) fn learn(&mut self, feeds: &Feeds, shape: &[usize]) {
        let inputs = sizes(feeds);
        match &mut self.axes {
            Some(axes) => {
                if axes.len() != shape.len() {
                    // One axis that follows no law: nothing is said any more.
                    *axes = vec![Vec::new()];
                }
                for (laws, &size) in axes.iter_mut().zip(shape) {
                    laws.retain(|law| law.of(&inputs) == Some(size));
                }
            }
            none => *none = Some(shape.iter().map(|&size| laws(size, &inputs)).collect()),
        }
    }

    /// The shape that a run on `feeds` will give, where all that is known agrees.
    pub(crate) fn shape(&self, feeds: &Feeds) -> Option<Vec<usize>> {
        let inputs = sizes(feeds);
        let axis = |laws: &Vec<Law>| {
            let first = laws.first()?.of(&inputs)?;
            let agreed = laws.iter().all(|law| law.of(&inputs) == Some(first));
            agreed.then_some(first)
        };
        self.axes.as_ref()?.iter().map(axis).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn feeds(batch: usize, tokens: usize) -> Feeds {
        let tensor = || Tensor::i64([batch, tokens], vec![0; batch * tokens]);
        Feeds::from([("ids".to_owned(), tensor()), ("mask".to_owned(), tensor())])
    }

    #[test]
    fn what_may_be_either_is_not_guessed() {
        let mut sizes = SampleSizes::default();
        assert_eq!(sizes.shape(&feeds(4, 8)), None);
        sizes.learn(&feeds(4, 8), &[32, 12]);
        assert_eq!(sizes.shape(&feeds(4, 8)), Some(vec![32, 12]));
        // 32 may be 4 x 8 or constant, and 12 a multiple of 4.
        assert_eq!(sizes.shape(&feeds(2, 6)), None);
        sizes.learn(&feeds(2, 6), &[12, 12]);
        assert_eq!(sizes.shape(&feeds(3, 5)), Some(vec![15, 12]));
    }

    #[test]
    fn what_follows_no_law_is_never_said() {
        let mut sizes = SampleSizes::default();
        sizes.learn(&feeds(2, 8), &[2, 7]);
        sizes.learn(&feeds(2, 9), &[2, 8]);
        assert_eq!(sizes.shape(&feeds(2, 8)), None);
        let mut ranks = SampleSizes::default();
        ranks.learn(&feeds(2, 8), &[2, 8]);
        ranks.learn(&feeds(2, 8), &[16]);
        assert_eq!(ranks.shape(&feeds(2, 8)), None);
    }
}
