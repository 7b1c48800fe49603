//! Running models: one trait, two engines.
//!
//! ONNX Runtime is loaded at run time from wherever it is installed; tract is
//! built in, so there is always one. The rest of the crate sees only
//! [`Engine`] and [`Session`]: which of the two answers is decided once, by
//! [`choose`], and is told to the user by [`EngineInfo`]. Comparing the engines
//! is comparing two values of one trait.

pub use metered::{EngineSeconds, Metered};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::onnx::proto;
use crate::progress::{Progress, Quiet};
use crate::tensor::{Feeds, Tensor};
use crate::words::words;
use widened::Widened;

#[cfg(any(feature = "ort", feature = "tract"))]
mod guard;
#[cfg(feature = "ort")]
mod locate;
mod metered;
#[cfg(any(feature = "ort", feature = "tract"))]
mod operators;
#[cfg(feature = "ort")]
mod ort;
#[cfg(any(feature = "ort", feature = "tract"))]
mod prepare;
#[cfg(feature = "ort")]
mod serialise;
#[cfg(any(feature = "ort", feature = "tract"))]
mod signature;
mod threads;
#[cfg(feature = "tract")]
mod tract;
mod widened;

/// Which engine runs the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// ONNX Runtime where it is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime.
    Ort,
    /// tract, which is built in.
    Tract,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// CUDA where it really works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

words!(EngineChoice { Auto = "auto", Ort = "ort", Tract = "tract" });
words!(Device { Auto = "auto", Cpu = "cpu", Cuda = "cuda" });

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Which engine.
    pub engine: EngineChoice,
    /// Which device.
    pub device: Device,
    /// Threads within one operator; `None` is one per physical core.
    pub threads: Option<usize>,
    /// The ONNX Runtime library, or a folder that holds it.
    pub ort_lib: Option<PathBuf>,
    /// Libraries with operators that ONNX Runtime does not have itself.
    pub custom_ops: Vec<PathBuf>,
}

/// What the user got.
#[derive(Debug, Clone, serde::Serialize)]
pub struct EngineInfo {
    /// `"onnxruntime"` or `"tract"`.
    pub name: &'static str,
    /// The engine's version.
    pub version: String,
    /// `"cpu"` or `"cuda"`.
    pub device: String,
    /// Threads within one operator.
    pub threads: usize,
    /// The library that was loaded, if one was.
    pub library: Option<PathBuf>,
    /// Why this engine and device, where the user left it open.
    pub note: Option<String>,
}

/// Something that runs ONNX models.
pub trait Engine: Send + Sync {
    /// Which engine, device and library this is.
    fn info(&self) -> &EngineInfo;

    /// Prepares `model` for runs.
    ///
    /// Fails when the engine cannot run the model (naming the operator or the
    /// tensor), and when a value to fetch does not exist.
    fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>>;

    /// Whether sums over tokens are made by nodes of the model, so that they come back
    /// and not the activations: where the device has a memory of its own.
    fn reduces(&self) -> bool {
        self.info().device == "cuda"
    }

    /// Whether models run on a copy in float32, since the engine has no kernels for their
    /// own types.
    fn widens(&self) -> bool {
        false
    }

    /// How often each operator occurs after the engine's own optimisations, as
    /// `op_type` for the default domain and `domain::op_type` for others, inner
    /// graphs included; `None` where the engine cannot tell.
    ///
    /// The optimisations depend on the device and on the processor.
    fn optimised_operators(&self, model: &proto::ModelProto) -> Result<Option<BTreeMap<String, usize>>>;

    /// How many nodes each provider of the engine really runs, after optimisations,
    /// found by one run on `feeds`; `None` where the engine cannot tell.
    fn placement(&self, model: &proto::ModelProto, feeds: &Feeds) -> Result<Option<BTreeMap<String, usize>>> {
        let _ = (model, feeds);
        Ok(None)
    }
}

/// What every stage that runs a model needs.
#[derive(Clone, Copy)]
pub struct Ctx<'a> {
    /// Runs models.
    pub engine: &'a dyn Engine,
    /// Is told how far a stage has come.
    pub progress: &'a dyn Progress,
    /// Set where the run is to stop.
    pub cancelled: &'a AtomicBool,
}

impl<'a> Ctx<'a> {
    /// The same without a word of progress.
    #[must_use]
    pub fn quiet(self) -> Self {
        Self {
            progress: &Quiet,
            ..self
        }
    }

    /// # Errors
    /// [`Error::Interrupted`] once the run is to stop.
    pub fn check(&self) -> Result<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}

/// How to prepare a model.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Whether the engine may rewrite the graph for speed.
    pub optimise: bool,
    /// The values to fetch, in this order: graph outputs or any other value of
    /// the outermost graph. `None` is all graph outputs in order.
    pub outputs: Option<Vec<String>>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            optimise: true,
            outputs: None,
        }
    }
}

/// A model that is ready to run.
pub trait Session: Send {
    /// The names of the values that [`run`](Session::run) returns, in order.
    fn outputs(&self) -> &[String];

    /// Keeps inputs for all later runs, which are then not given them, until the next
    /// call; `false` where the engine gains nothing by that and wants them each time.
    ///
    /// Fails when one is unknown, or of the wrong type or shape.
    fn hold(&mut self, constants: &Feeds) -> Result<bool> {
        let _ = constants;
        Ok(false)
    }

    /// Runs the model once; one tensor for each of [`outputs`](Session::outputs), in
    /// float32 where the engine [`widens`](Engine::widens) the model.
    ///
    /// Fails when an input is missing, unknown, or of the wrong type or shape,
    /// and when the engine fails.
    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>>;
}

/// How to get the engine that is not there.
#[cfg(any(feature = "ort", feature = "tract"))]
const INSTALL: &str = "install ONNX Runtime (`pip install onnxruntime`) or point --ort-lib at its library";

/// Picks the engine and the device, once, for a whole run.
///
/// `auto` prefers ONNX Runtime where it is found and loads; otherwise it takes
/// tract and says why in [`EngineInfo::note`]. A library named in
/// [`EngineOptions::ort_lib`] must load, and [`Device::Cuda`] must really be
/// there: neither is ever replaced by something else.
///
/// A model in bfloat16 or float16 that the engine has no kernels for runs on a copy in
/// float32: [`Engine::widens`] tells.
pub fn choose(options: &EngineOptions) -> Result<Box<dyn Engine>> {
    let threads = threads::resolve(options.threads)?;
    Ok(Box::new(Widened::new(plain(options, threads)?)))
}

fn plain(options: &EngineOptions, threads: usize) -> Result<Box<dyn Engine>> {
    match options.engine {
        EngineChoice::Ort => onnx_runtime(options, threads),
        EngineChoice::Tract => built_in(options, threads, None),
        EngineChoice::Auto => match onnx_runtime(options, threads) {
            Err(missing)
                if cfg!(feature = "tract") && options.ort_lib.is_none() && options.device != Device::Cuda =>
            {
                let note = format!("auto took the built-in engine: {}", missing.chain());
                built_in(options, threads, Some(note))
            }
            other => other,
        },
    }
}

/// How many threads compute: as many as were asked for, or one per physical core.
///
/// # Errors
/// No threads at all.
pub fn threads(options: &EngineOptions) -> Result<usize> {
    threads::resolve(options.threads)
}

#[cfg(feature = "ort")]
fn onnx_runtime(options: &EngineOptions, threads: usize) -> Result<Box<dyn Engine>> {
    Ok(Box::new(ort::OnnxRuntime::load(options, threads)?))
}

#[cfg(not(feature = "ort"))]
fn onnx_runtime(_: &EngineOptions, _: usize) -> Result<Box<dyn Engine>> {
    Err(Error::engine(
        "this build has no ONNX Runtime engine; build it with `--features ort`",
    ))
}

#[cfg(feature = "tract")]
fn built_in(options: &EngineOptions, threads: usize, note: Option<String>) -> Result<Box<dyn Engine>> {
    if options.device == Device::Cuda {
        return Err(Error::engine(
            "the built-in engine runs on the CPU only: --device cuda needs --engine ort",
        ));
    }
    Ok(Box::new(tract::Tract::new(threads, note)?))
}

#[cfg(not(feature = "tract"))]
fn built_in(_: &EngineOptions, _: usize, _: Option<String>) -> Result<Box<dyn Engine>> {
    Err(Error::engine(
        "this build has no built-in engine; build it with `--features tract`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_from_the_command_line_and_written_back() {
        for (text, choice) in [
            ("auto", EngineChoice::Auto),
            ("ort", EngineChoice::Ort),
            ("tract", EngineChoice::Tract),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("CUDA".parse(), Ok(Device::Cuda));
        assert!("gpu".parse::<Device>().is_err());
    }

    #[test]
    fn no_threads_is_an_error() {
        let options = EngineOptions {
            threads: Some(0),
            ..EngineOptions::default()
        };
        let error = choose(&options).map(|_| ()).map_err(|e| e.exit_code());
        assert_eq!(error, Err(2));
    }
}
