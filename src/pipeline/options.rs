//! What a run is asked to do: the small options of each stage, put together.

use std::path::PathBuf;
use std::sync::Arc;

use crate::axes;
use crate::budget::{Align, Demand, Goal, Multiples};
use crate::channels::ChannelOptions;
use crate::data::DataOptions;
use crate::engine::EngineOptions;
use crate::mask::Pattern;
use crate::rank::{Effort, Method, RankOptions};
use crate::refit::{Reconstruct, RefitOptions};
use crate::sites::Selection;
use crate::vocabulary::VocabularyOptions;
use crate::{Error, Result};

/// The budget of a run that asks for none.
pub const DEFAULT_FLOPS: f64 = 0.6;

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Budgets that must all hold.
    pub demands: Vec<Demand>,
    /// Instead of a budget: the smallest model whose divergence on held-out samples (or the
    /// number of [`Options::eval`]) is at most this.
    pub max_drop: Option<f64>,
    /// A command that prints a number for a candidate file, in place of the divergence.
    pub eval: Option<String>,
    /// Instead of a ranking: a mask that something else made.
    pub mask: Option<PathBuf>,
    /// The same of another form of this model, by where its groups are.
    pub like: Option<Arc<Pattern>>,
    /// How units are ranked.
    pub rank: RankOptions,
    /// How the weights that stay are re-fitted; its ridge is that of [`Options::rank`].
    pub refit: RefitOptions,
    /// What may be pruned.
    pub selection: Selection,
    /// Which axes may shrink together, and whether the interface may.
    pub axes: axes::AnalysisOptions,
    /// Calibration inputs; `batch` and `seq` also say what costs are computed for.
    pub data: DataOptions,
    /// What runs the model.
    pub engine: EngineOptions,
    /// Graph outputs that count when damage is measured; none means all.
    pub outputs: Vec<String>,
    /// How much time measurements may take.
    pub effort: Effort,
    /// Samples that damage is measured on; none asks for as many as take a few
    /// dense passes over all samples.
    pub probe: Option<usize>,
    /// Groups of neurons keep a multiple of this many units, or all; none asks for
    /// what suits the device.
    pub align: Option<Multiples>,
    /// Whether passes that leave what the model computes come first.
    pub lossless: bool,
    /// Whether heads may lose channels ([`crate::channels`]).
    pub narrow: bool,
    /// Whether units go that are constant on all calibration inputs.
    pub fold_constant: bool,
    /// Instead of a calibration: files with the statistics of the models
    /// ([`crate::calibrate::file`]).
    pub stats: Vec<PathBuf>,
    /// Where the mask of the run goes.
    pub export_mask: Option<PathBuf>,
    /// Where tables of measured latencies are kept; none asks for the usual place.
    pub latency_cache: Option<PathBuf>,
    /// Whether the result is timed against the dense model.
    pub timing: bool,
    /// Whether a warning is an error.
    pub strict: bool,
    /// Which tokens stay, where some are to go.
    pub vocabulary: VocabularyOptions,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Always write tensors to a side file.
    pub external_data: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            demands: Vec::new(),
            max_drop: None,
            eval: None,
            mask: None,
            like: None,
            rank: RankOptions::default(),
            refit: RefitOptions::default(),
            selection: Selection::default(),
            axes: axes::AnalysisOptions::default(),
            data: DataOptions {
                batch: 1,
                join: true,
                ..DataOptions::default()
            },
            engine: EngineOptions::default(),
            outputs: Vec::new(),
            effort: Effort::Normal,
            probe: None,
            align: None,
            lossless: true,
            narrow: true,
            fold_constant: false,
            stats: Vec::new(),
            export_mask: None,
            latency_cache: None,
            timing: true,
            strict: false,
            vocabulary: VocabularyOptions::default(),
            dry_run: false,
            external_data: false,
        }
    }
}

/// Fewest channels of a step where kernels read whole vectors.
const LEAST_STEP: usize = 4;
/// The same on CUDA, whose fused attention asks for it.
const CUDA_STEP: usize = 8;

impl Options {
    /// What the run aims at.
    pub fn goal(&self) -> Goal {
        if let Some(path) = &self.mask {
            return Goal::Mask(path.clone());
        }
        if let Some(bound) = self.max_drop {
            let eval = self.eval.clone();
            return Goal::MaxDrop { bound, eval };
        }
        match self.demands.is_empty() {
            true => Goal::flops(DEFAULT_FLOPS),
            false => Goal::Limits(self.demands.clone()),
        }
    }

    /// Whether what stays is given, and not to be found.
    pub(super) fn has_mask(&self) -> bool {
        self.mask.is_some() || self.like.is_some()
    }

    /// Runs `work` with as many threads as were asked for, here and in the engine; the
    /// results of a run depend on their number.
    ///
    /// # Errors
    /// Threads that cannot be started; those of `work`.
    pub fn in_pool<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        /// What the deepest recursion over a graph takes, and more.
        const STACK: usize = 16 << 20;
        let threads = crate::engine::threads(&self.engine)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(STACK);
        match pool.build() {
            Ok(pool) => pool.install(work),
            Err(error) => Err(Error::input(format!(
                "{threads} threads cannot be started: {error}"
            ))),
        }
    }

    /// The multiples that suit a device (`cuda` or a CPU) where none is asked for.
    /// Methods that rank all units together keep their own order.
    pub fn alignment(&self, device: &str) -> Align {
        match self.align.and_then(|multiples| multiples.neurons) {
            Some(n) => Align::exactly(n),
            None if self.rank.method != Method::Obs => Align::exactly(1),
            None if device.starts_with("cuda") => Align::up_to(64),
            None => Align::up_to(8),
        }
    }

    /// The re-fitting that is really done.
    pub fn reconstruction(&self) -> Reconstruct {
        match (self.refit.reconstruct, self.rank.method) {
            (Reconstruct::Auto, Method::Obs) => Reconstruct::Sequential,
            (Reconstruct::Auto, Method::Kcm) => Reconstruct::Rescale,
            (Reconstruct::Auto, Method::Wanda | Method::Magnitude) => Reconstruct::None,
            (other, _) => other,
        }
    }

    /// How the weights that stay are re-fitted.
    pub fn refitting(&self) -> RefitOptions {
        RefitOptions {
            reconstruct: self.reconstruction(),
            damp: self.rank.damp,
            ..self.refit
        }
    }

    /// How channels are looked at.
    pub(super) fn channels(&self, device: &str) -> ChannelOptions {
        ChannelOptions {
            axes: self.axes,
            damp: self.rank.damp,
            step: match self.align.and_then(|multiples| multiples.heads) {
                Some(n) => n,
                None if device.starts_with("cuda") => CUDA_STEP,
                None => LEAST_STEP,
            },
        }
    }
}
