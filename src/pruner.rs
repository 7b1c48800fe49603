//! Pruning from a program: the options of the command line as a builder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::budget::Demand;
use crate::data::Samples;
use crate::pipeline::{self, Declared, Options, Source, Word, declarations};
use crate::progress::{Progress, Quiet};
use crate::report::Report;
use crate::{Error, Result};

/// Prunes one model; every option of the command line is a method, with the same
/// default.
///
/// ```no_run
/// use onnx_prune::Pruner;
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
/// For other engines, samples or scores between the stages see [`Pruner::source`].
#[derive(Clone)]
pub struct Pruner {
    input: PathBuf,
    options: Options,
    progress: Arc<dyn Progress>,
    cancelled: Arc<AtomicBool>,
    /// The first option that could not be read.
    wrong: Option<String>,
}

/// One value of an option, or several.
pub trait Words {
    /// As they are written on the command line.
    fn words(self) -> Vec<OsString>;
}

macro_rules! one_word {
    ($($type:ty),+ $(,)?) => { $(
        impl Words for $type {
            fn words(self) -> Vec<OsString> {
                vec![self.word()]
            }
        }
    )+ };
}

one_word!(
    f64,
    i32,
    usize,
    u64,
    &str,
    String,
    &String,
    &Path,
    PathBuf,
    &PathBuf,
    crate::rank::Method,
    crate::rank::Effort,
    crate::refit::Reconstruct,
    crate::sites::UnitKind,
    crate::engine::EngineChoice,
    crate::engine::Device,
    crate::numerics::score::kcm::Normalise,
);

impl<T: Words, const N: usize> Words for [T; N] {
    fn words(self) -> Vec<OsString> {
        self.into_iter().flat_map(Words::words).collect()
    }
}

impl<T: Words> Words for Vec<T> {
    fn words(self) -> Vec<OsString> {
        self.into_iter().flat_map(Words::words).collect()
    }
}

impl<T: Words> Words for Option<T> {
    fn words(self) -> Vec<OsString> {
        self.into_iter().flat_map(Words::words).collect()
    }
}

macro_rules! method {
    ($method:ident $name:literal $help:literal Nothing) => {
        #[doc = concat!("`--", $name, "`: ", $help)]
        #[must_use]
        pub fn $method(self) -> Self {
            self.say($name, Vec::new())
        }
    };
    ($method:ident $name:literal $help:literal $takes:ident) => {
        #[doc = concat!("`--", $name, "`: ", $help)]
        #[must_use]
        pub fn $method(self, value: impl Words) -> Self {
            self.say($name, value.words())
        }
    };
}

macro_rules! builder {
    ($($topic:ident $method:ident $takes:ident $(($value:literal))? $name:literal [$($conflict:literal),*]
        { $words:expr } $help:literal { $read:expr } { $tell:expr };)*) => {
        impl Pruner {
            $(method!($method $name $help $takes);)*
        }
    };
}

declarations!(builder);

impl Pruner {
    /// A run over the model at `input` with all options as they are when nothing is
    /// said.
    pub fn new(input: impl Into<PathBuf>) -> Self {
        Pruner {
            input: input.into(),
            options: Options::default(),
            progress: Arc::new(Quiet),
            cancelled: Arc::new(AtomicBool::new(false)),
            wrong: None,
        }
    }

    /// An option of the command line by its name, without the dashes.
    fn say(mut self, name: &str, words: Vec<OsString>) -> Self {
        if let Some(option) = Declared::find(name)
            && let Err(why) = (option.read)(&mut self.options, &words)
        {
            self.wrong = self.wrong.or(Some(format!("--{name}: {why}")));
        }
        self
    }

    /// Changes any of the options.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// A budget, as in `params=0.5`, `size=25MB` or `speedup=2x`; with several, all must hold.
    #[must_use]
    pub fn limit(mut self, limit: &str) -> Self {
        match limit.parse::<Demand>() {
            Ok(limit) => self.options.demands.push(limit),
            Err(why) => self.wrong = self.wrong.or(Some(why)),
        }
        self
    }

    /// Inputs that are at hand, in place of files.
    #[must_use]
    pub fn samples(self, samples: Samples) -> Self {
        self.with(|o| o.data.given = Some(Arc::new(samples)))
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
        let (options, output) = (self.options()?, output.as_ref());
        let (progress, cancelled) = (self.progress.as_ref(), &*self.cancelled);
        options.in_pool(|| pipeline::prune(&self.input, output, &[], options, progress, cancelled))
    }

    /// Writes a model for each budget, from one calibration.
    ///
    /// # Errors
    /// As [`pipeline::sweep`].
    pub fn sweep(&self, output: impl AsRef<Path>, budgets: &[f64]) -> Result<Vec<Report>> {
        let (options, output) = (self.options()?, output.as_ref());
        let (progress, cancelled) = (self.progress.as_ref(), &*self.cancelled);
        options.in_pool(|| pipeline::sweep(&self.input, (output, &[]), budgets, options, progress, cancelled))
    }

    /// The first stage of a run, with everything in the open: give it another engine
    /// ([`Source::with_engine`]), then [`pipeline::calibrate`], [`pipeline::rank`],
    /// [`Ranked::with_rankings`](pipeline::Ranked::with_rankings), and on as
    /// [`pipeline::prune`] does.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn source(&self) -> Result<Source<'_>> {
        let options = self.options()?;
        Source::read(&self.input, options, self.progress.as_ref(), &self.cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_when_it_is_used() {
        let error = |p: Pruner| p.options().map(|_| ()).map_err(|e| e.to_string());
        assert!(error(Pruner::new("a.onnx").exclude("(")).is_err_and(|e| e.contains("--exclude: '('")));
        assert!(error(Pruner::new("a.onnx").limit("weight=3")).is_err_and(|e| e.contains("'weight'")));
        assert!(error(Pruner::new("a.onnx").flops(1.5)).is_err_and(|e| e.contains("--flops")));
        assert_eq!(error(Pruner::new("a.onnx").flops(0.5).exclude("x")), Ok(()));
    }

    #[test]
    fn options_that_exclude_each_other_are_told() {
        let error = |p: Pruner| p.options().map(|_| ()).map_err(|e| e.to_string());
        let both = Pruner::new("a.onnx").flops(0.5).max_drop(0.1);
        assert_eq!(
            error(both),
            Err("--flops and --max-drop exclude each other".into())
        );
        let both = Pruner::new("a.onnx").latency("12ms").speedup("2x");
        assert_eq!(
            error(both),
            Err("--latency and --speedup exclude each other".into())
        );
    }
}
