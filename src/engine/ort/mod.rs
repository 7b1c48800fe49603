//! ONNX Runtime, loaded at run time. The crate `ort` is used here and in the modules
//! of this one only.

mod bound;
#[cfg(feature = "cuda")]
mod cuda;
mod custom;
mod library;
mod placement;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session as OrtSession;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use prost::Message;

use self::bound::Bound;
use self::custom::CustomOperators;
use self::library::library;
use self::values::{from_engine, inputs};
use super::guard::guard;
use super::prepare::{Prepared, prepare};
use super::serialise::{LIMIT, Serialised, beside, serialise};
use super::signature::Signature;
use super::{Device, Engine, EngineInfo, EngineOptions, Session, SessionOptions, operators};
use crate::error::{Error, Result, ResultExt};
use crate::io::scratch::ScratchFolder;
use crate::onnx;
use crate::onnx::proto::ModelProto;
use crate::tensor::{Feeds, Tensor};

/// How the engine is called in messages.
const NAME: &str = "ONNX Runtime";

/// From this many bytes on weights are used as they lie in their file, which costs a
/// twentieth of the speed and saves their size in memory.
const LARGE: u64 = 1 << 30;

/// The engine.
pub(super) struct OnnxRuntime {
    info: EngineInfo,
    environment: Environment,
    provider: Provider,
    /// Whether inputs that are held go to the device once.
    binds: bool,
    operators: CustomOperators,
}

/// What executes the operators.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Provider {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda,
}

impl OnnxRuntime {
    /// Finds and loads the library and settles the device.
    pub(super) fn load(options: &EngineOptions, threads: usize) -> Result<Self> {
        let (library, mut notes) = library(options.ort_lib.as_deref())?;
        let operators = CustomOperators::of(&options.custom_ops, &library.path)?;
        let mut engine = OnnxRuntime {
            operators,
            info: EngineInfo {
                name: "onnxruntime",
                version: library.version,
                device: "cpu".into(),
                threads,
                library: Some(library.path),
                note: None,
            },
            environment: library.environment,
            provider: Provider::Cpu,
            binds: false,
        };
        notes.extend(engine.settle(options.device)?);
        engine.info.note = (!notes.is_empty()).then(|| notes.join("; "));
        Ok(engine)
    }

    /// Settles the device; returns why, where that was left open.
    #[cfg(feature = "cuda")]
    fn settle(&mut self, device: Device) -> Result<Option<String>> {
        if device == Device::Cpu {
            return Ok(None);
        }
        self.provider = Provider::Cuda;
        let works = cuda::probe(self);
        match (works, device) {
            (Ok(()), _) => {
                self.info.device = "cuda".into();
                self.binds = true;
                Ok(None)
            }
            (Err(reason), Device::Cuda) => Err(reason.context("--device cuda")),
            (Err(reason), _) => {
                self.provider = Provider::Cpu;
                Ok(Some(format!("on the CPU, since CUDA: {}", reason.chain())))
            }
        }
    }

    /// Settles the device; returns why, where that was left open.
    #[cfg(not(feature = "cuda"))]
    fn settle(&mut self, device: Device) -> Result<Option<String>> {
        match device {
            Device::Cuda => Err(Error::engine(
                "--device cuda: this build has no CUDA support; build it with \
                 `--features cuda` and install onnxruntime-gpu",
            )),
            Device::Auto | Device::Cpu => Ok(None),
        }
    }

    /// The settings of every session: one operator after the other, so that
    /// equal inputs give equal bytes; no spinning beside our own threads; 8-bit
    /// products that do not saturate on processors without VNNI, where a sum
    /// would depend on which units are neighbours.
    fn builder(&self, libraries: &[&Path], optimise: bool, precise: bool) -> ::ort::Result<SessionBuilder> {
        let level = if optimise {
            GraphOptimizationLevel::All
        } else {
            GraphOptimizationLevel::Disable
        };
        let builder = OrtSession::builder(&self.environment)?
            .with_log_level(LogLevel::Warning)?
            .with_optimization_level(level)?
            .with_parallel_execution(false)?
            .with_inter_threads(1)?
            .with_intra_threads(self.info.threads)?
            .with_intra_op_spinning(false)?
            .with_deterministic_compute(true)?;
        let builder = if precise {
            builder.with_precise_qmm()?
        } else {
            builder
        };
        let register = |builder: SessionBuilder, path: &&Path| -> ::ort::Result<SessionBuilder> {
            Ok(builder.with_operator_library(path)?)
        };
        let builder = libraries.iter().try_fold(builder, register)?;
        match self.provider {
            Provider::Cpu => Ok(builder),
            #[cfg(feature = "cuda")]
            Provider::Cuda => Ok(builder.with_execution_providers([cuda::provider()])?),
        }
    }

    /// Loads `model` with the settings of `builder`, which is told whether 8-bit
    /// products are to be precise. ONNX Runtime's passes for that break some graphs
    /// that it runs otherwise (weights that layers share, operators with quantised
    /// results): those are loaded without.
    fn loaded(
        builder: impl Fn(bool) -> Result<SessionBuilder>,
        model: ModelProto,
        limit: usize,
    ) -> Result<OrtSession> {
        let both = |model: &Serialised| {
            Self::commit(builder(true)?, model).or_else(|_| Self::commit(builder(false)?, model))
        };
        // Older libraries do not look for weights in the folder that they are told.
        if let Some(Ok(session)) = beside(model.clone(), limit).map(|model| both(&model)) {
            return Ok(session);
        }
        both(&serialise(model, limit)?)
    }

    fn commit(mut builder: SessionBuilder, model: &Serialised) -> Result<OrtSession> {
        match model {
            Serialised::Bytes(bytes) => builder.commit_from_memory(bytes),
            Serialised::Beside {
                bytes,
                folder,
                outside,
            } => {
                let key = "session.model_external_initializers_file_folder_path";
                let mut builder = builder
                    .with_config_entry(key, folder.to_string_lossy())
                    .map_err(|e| failed(&e))?;
                // Laid out anew for products, weights are read a second time.
                if *outside > LARGE {
                    // So is what this process has read of them.
                    onnx::let_go();
                    let key = "session.disable_prepacking";
                    builder = builder.with_config_entry(key, "1").map_err(|e| failed(&e))?;
                }
                builder.commit_from_memory(bytes)
            }
            Serialised::File { path, _folder } => {
                onnx::let_go();
                builder.commit_from_file(path)
            }
        }
        .map_err(|e| refused(&e))
    }

    /// [`Engine::session`], with models of more than `limit` bytes handed over
    /// in files.
    fn open(&self, model: &ModelProto, options: &SessionOptions, limit: usize) -> Result<OrtRun> {
        let Prepared {
            model,
            signature,
            outputs,
            positions,
        } = prepare(model, options.outputs.as_deref())?;
        let libraries = self.operators.of_model(&model);
        let session = guard(NAME, || {
            let builder = |precise| {
                let made = self.builder(&libraries, options.optimise, precise);
                made.map_err(|e| failed(&e))
            };
            Self::loaded(builder, model, limit)
        })?;
        Ok(OrtRun {
            session,
            signature,
            outputs,
            positions,
            binds: self.binds,
            bound: None,
        })
    }
}

impl Engine for OnnxRuntime {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn session(&self, model: &ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.open(model, options, LIMIT)?))
    }

    fn optimised_operators(&self, model: &ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        let model = prepare(model, None)?.model;
        let folder = ScratchFolder::new()?;
        let path = folder.path().join("optimised.onnx");
        let libraries = self.operators.of_model(&model);
        guard(NAME, || {
            // The weights go to a side file, so that a model near the limit of
            // one message can be written; nobody reads them.
            let builder = |precise| {
                self.builder(&libraries, true, precise)
                    .and_then(|b| Ok(b.with_optimized_model_path(&path)?))
                    .and_then(|b| {
                        let key = "session.optimized_model_external_initializers_file_name";
                        Ok(b.with_config_entry(key, "weights.bin")?)
                    })
                    .map_err(|e| failed(&e))
            };
            Self::loaded(builder, model, LIMIT).map(drop)
        })?;
        let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot read", &path, e))?;
        let optimised = ModelProto::decode(bytes.as_slice())
            .map_err(|e| Error::engine(format!("{NAME} wrote an unreadable model: {e}")))?;
        Ok(optimised.graph.as_ref().map(operators::count))
    }

    fn placement(&self, model: &ModelProto, feeds: &Feeds) -> Result<Option<BTreeMap<String, usize>>> {
        placement::of(self, model, feeds).map(Some)
    }
}

/// A loaded model.
struct OrtRun {
    session: OrtSession,
    signature: Signature,
    outputs: Vec<String>,
    positions: Vec<usize>,
    binds: bool,
    /// The inputs that are held.
    bound: Option<Bound>,
}

impl Session for OrtRun {
    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn hold(&mut self, constants: &Feeds) -> Result<bool> {
        self.bound = None;
        if !self.binds || constants.is_empty() {
            return Ok(false);
        }
        self.signature.check_some(constants)?;
        self.bound = Some(guard(NAME, || Bound::new(&self.session, constants))?);
        Ok(true)
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        let held = |name: &str| self.bound.as_ref().is_some_and(|b| b.holds(name));
        self.signature.check_with(feeds, &held)?;
        if let Some(bound) = &mut self.bound {
            let done = guard(NAME, || {
                bound.run(&mut self.session, feeds, &self.positions, &self.outputs)
            });
            return done;
        }
        guard(NAME, || {
            let values = self.session.run(inputs(feeds)?).map_err(|e| failed(&e))?;
            self.positions
                .iter()
                .zip(&self.outputs)
                .map(|(&position, name)| {
                    from_engine(&values[position]).context(|| format!("output `{name}`"))
                })
                .collect()
        })
    }
}

fn failed<R>(error: &::ort::Error<R>) -> Error {
    Error::engine(format!("{NAME}: {error}"))
}

fn refused(error: &::ort::Error) -> Error {
    Error::engine(format!("{NAME} cannot load the model: {error}"))
}
