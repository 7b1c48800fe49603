//! The output projection of a block as the numerics see it.

use faer::Mat;

use super::channels::Blocks;
use super::turn::{self, Bases};
use crate::Result;
use crate::calibrate::Statistics;
use crate::probe::Subject;
use crate::rank::pooled;
use crate::rebuild::parts;
use crate::score::{Site, Units};
use crate::sites::Chosen;

/// The weight of a block's output projection with what its statistics say of its input.
pub(super) struct Read {
    pub(super) weight: Mat<f64>,
    pub(super) sigma: Mat<f64>,
    mean: Vec<f64>,
    pub(super) tokens: f64,
    pub(super) with_bias: bool,
}

/// Reads it; `None` where several sinks share the weight.
///
/// # Errors
/// A weight that is quantised or computed, statistics that are missing.
pub(super) fn read(subject: Subject, c: &Chosen, statistics: &Statistics) -> Result<Option<Read>> {
    let parts = parts(subject.model, subject.graph, &c.sites)?;
    let [part] = &parts[..] else { return Ok(None) };
    if !part.is_single(subject.graph) {
        return Ok(None);
    }
    let pooled = pooled(&part.sites, statistics)?;
    let with_bias = part.has_bias();
    let (sigma, mean) = pooled.moments(with_bias);
    Ok(Some(Read {
        weight: part.matrix.clone(),
        sigma,
        mean,
        tokens: pooled.total(),
        with_bias,
    }))
}

impl Read {
    /// The same in other bases of the heads.
    pub(super) fn turned(&self, rows: &Blocks, bases: &Bases) -> Self {
        let weight = turn::columns(&self.weight.transpose().to_owned(), rows, bases);
        let half = turn::columns(&self.sigma, rows, bases);
        let mean = Mat::from_fn(1, self.mean.len(), |_, j| self.mean[j]);
        let mean = turn::columns(&mean, rows, bases);
        Self {
            weight: weight.transpose().to_owned(),
            sigma: turn::columns(&half.transpose().to_owned(), rows, bases),
            mean: mean.row(0).iter().copied().collect(),
            ..*self
        }
    }

    /// As the numerics see it, the channels as its units.
    pub(super) fn site(&self, rows: &Blocks, count: usize) -> Site<'_> {
        let of = |channel: usize| {
            rows.values()
                .flatten()
                .filter_map(move |run| run.get(channel).copied())
        };
        Site {
            sigma: &self.sigma,
            mean: &self.mean,
            tokens: self.tokens,
            weight: &self.weight,
            units: Units {
                rows: (0..count).map(|channel| of(channel).collect()).collect(),
            },
        }
    }
}
