//! Pruning from a program: the options of the command line as a builder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::budget::Target as Limit;
use crate::data::{DataOptions, Samples};
use crate::engine::{Device, EngineChoice};
use crate::options::{Effort, Method, Options, Reconstruct, Target};
use crate::pipeline::{self, Run};
use crate::progress::{Progress, Quiet};
use crate::report::Report;
use crate::{Error, Result};

/// Prunes one model; every method is an option of the command line, with the same
/// default.
///
/// ```no_run
/// use onnx_prune::pruner::Pruner;
///
/// let report = Pruner::new("model.onnx")
///     .flops(0.6)
///     .data(["texts.tsv"])
///     .tokenizer("tokenizer.json")
///     .prune("small.onnx")?;
/// println!("{} of the work is left", report.budget.got);
/// # Ok::<(), onnx_prune::Error>(())
/// ```
///
/// What has no method here is a field of [`Options`] ([`Pruner::with`]). For other
/// engines, samples or scores between the stages see [`Pruner::run`].
#[derive(Clone)]
pub struct Pruner {
    input: PathBuf,
    options: Options,
    progress: Arc<dyn Progress>,
    cancelled: Arc<AtomicBool>,
    /// The first option that could not be read.
    wrong: Option<String>,
}

impl Pruner {
    /// A run over the model at `input` with all options as they are when nothing is
    /// said.
    pub fn new(input: impl Into<PathBuf>) -> Self {
        Pruner {
            input: input.into(),
            options: Options {
                data: crate::cli::data_defaults(),
                ..Options::default()
            },
            progress: Arc::new(Quiet),
            cancelled: Arc::new(AtomicBool::new(false)),
            wrong: None,
        }
    }

    /// Changes any of the options.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    fn data_with(self, change: impl FnOnce(&mut DataOptions)) -> Self {
        self.with(|o| change(&mut o.data))
    }

    /// `--flops`: fraction of the prunable blocks' multiply-adds to keep.
    #[must_use]
    pub fn flops(self, fraction: f64) -> Self {
        self.with(|o| {
            o.flops = fraction;
            o.limits.retain(|l| !matches!(l, Limit::Flops(_)));
            if !o.limits.is_empty() {
                o.limits.push(Limit::Flops(fraction));
            }
        })
    }

    /// Another budget, as in `params=0.5`, `size=25MB` or `speedup=2x`; with several, all must
    /// hold.
    #[must_use]
    pub fn limit(mut self, limit: &str) -> Self {
        match limit.parse() {
            Ok(limit) => self.options.limits.push(limit),
            Err(why) => self.wrong = self.wrong.or(Some(why)),
        }
        self
    }

    /// `--max-drop`: the smallest model within this divergence.
    #[must_use]
    pub fn max_drop(self, bound: f64) -> Self {
        self.with(|o| o.max_drop = Some(bound))
    }

    /// `--method`.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        self.with(|o| o.method = method)
    }

    /// `--reconstruct`.
    #[must_use]
    pub fn reconstruct(self, how: Reconstruct) -> Self {
        self.with(|o| o.reconstruct = how)
    }

    /// `--effort`.
    #[must_use]
    pub fn effort(self, effort: Effort) -> Self {
        self.with(|o| o.effort = effort)
    }

    /// `--targets`.
    #[must_use]
    pub fn targets(self, targets: impl IntoIterator<Item = Target>) -> Self {
        self.with(|o| o.targets = targets.into_iter().collect())
    }

    /// `--exclude`: groups whose name matches stay whole.
    #[must_use]
    pub fn exclude(mut self, pattern: &str) -> Self {
        match regex::Regex::new(pattern) {
            Ok(pattern) => self.options.exclude.push(pattern),
            Err(why) => self.wrong = self.wrong.or(Some(format!("exclude '{pattern}': {why}"))),
        }
        self
    }

    /// `--data`: files with inputs.
    #[must_use]
    pub fn data<P: Into<PathBuf>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        self.data_with(|d| d.data = paths.into_iter().map(Into::into).collect())
    }

    /// Inputs that are at hand, in place of files.
    #[must_use]
    pub fn samples(self, samples: Samples) -> Self {
        self.data_with(|d| d.given = Some(Arc::new(samples)))
    }

    /// `--tokenizer`, for texts.
    #[must_use]
    pub fn tokenizer(self, path: impl Into<PathBuf>) -> Self {
        self.data_with(|d| d.tokenizer = Some(path.into()))
    }

    /// `--samples`: how many inputs to take.
    #[must_use]
    pub fn sample_count(self, count: usize) -> Self {
        self.data_with(|d| d.samples = count)
    }

    /// `--seed`.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.data_with(|d| d.seed = seed)
    }

    /// `--stats`: statistics of this model from a file.
    #[must_use]
    pub fn stats(self, path: impl Into<PathBuf>) -> Self {
        self.with(|o| o.stats = Some(path.into()))
    }

    /// `--mask`: a mask from elsewhere.
    #[must_use]
    pub fn mask(self, path: impl Into<PathBuf>) -> Self {
        self.with(|o| o.mask = Some(path.into()))
    }

    /// `--export-mask`.
    #[must_use]
    pub fn export_mask(self, path: impl Into<PathBuf>) -> Self {
        self.with(|o| o.export_mask = Some(path.into()))
    }

    /// `--engine` and `--device`.
    #[must_use]
    pub fn engine(self, engine: EngineChoice, device: Device) -> Self {
        self.with(|o| {
            o.engine.engine = engine;
            o.engine.device = device;
        })
    }

    /// `--threads`.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        self.with(|o| o.engine.threads = Some(threads))
    }

    /// `--no-timing`: the latency of the result is not measured.
    #[must_use]
    pub fn no_timing(self) -> Self {
        self.with(|o| o.timing = false)
    }

    /// `--dry-run`: write nothing.
    #[must_use]
    pub fn dry_run(self) -> Self {
        self.with(|o| o.dry_run = true)
    }

    /// Who is told how far a stage has come.
    #[must_use]
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// A flag that stops the run at the next batch, from another thread.
    #[must_use]
    pub fn cancelled_by(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancelled = flag;
        self
    }

    /// The options as they stand.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn options(&self) -> Result<&Options> {
        if let Some(wrong) = &self.wrong {
            return Err(Error::input(wrong.clone()));
        }
        self.options.check()?;
        Ok(&self.options)
    }

    /// Writes the pruned model to `output`.
    ///
    /// # Errors
    /// As [`pipeline::prune`].
    pub fn prune(&self, output: impl AsRef<Path>) -> Result<Report> {
        let options = self.options()?;
        pipeline::prune(
            &self.input,
            output.as_ref(),
            options,
            self.progress.as_ref(),
            &self.cancelled,
        )
    }

    /// Writes a model for each budget, from one calibration.
    ///
    /// # Errors
    /// As [`pipeline::sweep`].
    pub fn sweep(&self, output: impl AsRef<Path>, budgets: &[f64]) -> Result<Vec<Report>> {
        let options = self.options()?;
        pipeline::sweep(
            &self.input,
            output.as_ref(),
            budgets,
            &[],
            options,
            self.progress.as_ref(),
            &self.cancelled,
        )
    }

    /// The run stage by stage, with everything in the open: replace
    /// [`Run::engine`], look at [`Run::statistics`], put other rankings into
    /// [`Run::ranked`], then [`Run::allocate`], [`Run::build`] and
    /// [`pipeline::finish`].
    ///
    /// # Errors
    /// As [`Run::open`].
    pub fn run(&self) -> Result<Run<'_>> {
        let options = self.options()?;
        Run::open(&self.input, options, self.progress.as_ref(), &self.cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_when_it_is_used() {
        let error = |p: Pruner| p.options().map(|_| ()).map_err(|e| e.to_string());
        assert!(error(Pruner::new("a.onnx").exclude("(")).is_err_and(|e| e.contains("exclude '('")));
        assert!(error(Pruner::new("a.onnx").limit("weight=3")).is_err_and(|e| e.contains("'weight'")));
        assert!(error(Pruner::new("a.onnx").flops(1.5)).is_err_and(|e| e.contains("--flops")));
        assert_eq!(error(Pruner::new("a.onnx").flops(0.5).exclude("x")), Ok(()));
    }

    #[test]
    fn the_defaults_are_those_of_the_command_line() {
        use clap::Parser;
        let cli = crate::cli::Cli::try_parse_from(["onnx-prune", "a.onnx", "b.onnx"]).expect("parses");
        let theirs = cli.prune.options().expect("valid");
        assert_eq!(
            format!("{theirs:?}"),
            format!("{:?}", Pruner::new("a.onnx").options)
        );
    }
}
