//! ONNX Runtime, loaded at run time. The crate `ort` is used here and in the modules
//! of this one only.

mod bound;
#[cfg(feature = "cuda")]
mod cuda;
mod placement;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};
use prost::Message;

use self::bound::Bound;
use super::guard::guard;
use super::locate::{self, LibraryCandidate, LibraryOrigin, Surroundings};
use super::prepare::{Prepared, prepare};
use super::serialise::{LIMIT, Serialised, beside, serialise};
use super::signature::Signature;
use super::{Device, Engine, EngineInfo, EngineOptions, INSTALL, Session, SessionOptions, operators};
use crate::error::{Error, Result, ResultExt};
use crate::onnx;
use crate::onnx::proto::ModelProto;
use crate::tensor::{Data, Feeds, Tensor};

/// How the engine is called in messages.
const NAME: &str = "ONNX Runtime";

/// From this many bytes on weights are used as they lie in their file, which costs a
/// twentieth of the speed and saves their size in memory.
const LARGE: u64 = 1 << 30;

/// A library that is loaded. A process loads one and keeps it to its end.
#[derive(Clone)]
struct Library {
    environment: Environment,
    path: PathBuf,
    version: String,
}

static LIBRARY: Mutex<Option<Library>> = Mutex::new(None);

/// The engine.
pub(super) struct OnnxRuntime {
    info: EngineInfo,
    environment: Environment,
    provider: Provider,
    /// Whether inputs that are held go to the device once.
    binds: bool,
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
        let mut engine = OnnxRuntime {
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
    fn builder(&self, optimise: bool, precise: bool) -> ::ort::Result<SessionBuilder> {
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
        let session = guard(NAME, || {
            let builder = |precise| self.builder(options.optimise, precise).map_err(|e| failed(&e));
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
        let folder = tempfile::Builder::new()
            .prefix("onnx-prune-")
            .tempdir()
            .map_err(|e| Error::io("cannot create a folder in", &std::env::temp_dir(), e))?;
        let path = folder.path().join("optimised.onnx");
        guard(NAME, || {
            // The weights go to a side file, so that a model near the limit of
            // one message can be written; nobody reads them.
            let builder = |precise| {
                self.builder(true, precise)
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

/// The library of this process: the one that is loaded already, or the first
/// candidate that loads. Returns why the candidates before it were passed over.
fn library(asked: Option<&Path>) -> Result<(Library, Vec<String>)> {
    let mut loaded = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = &*loaded {
        if let Some(asked) = asked
            && !locate::named(asked).iter().any(|p| same_file(p, &library.path))
        {
            return Err(Error::engine(format!(
                "--ort-lib {}: this process has already loaded {}",
                asked.display(),
                library.path.display()
            )));
        }
        return Ok((library.clone(), Vec::new()));
    }
    let surroundings = Surroundings::of_process();
    let candidates: Box<dyn Iterator<Item = LibraryCandidate>> = match asked {
        Some(path) => Box::new(locate::named(path).into_iter().map(|path| LibraryCandidate {
            path,
            origin: LibraryOrigin::Option,
        })),
        None => Box::new(surroundings.candidates()),
    };
    let mut failures = Vec::new();
    for LibraryCandidate { path, origin } in candidates {
        match load(&path) {
            Ok(library) => return Ok((loaded.insert(library).clone(), failures)),
            // A bare name that is not found is the end of the search, not a
            // fault of something that is there.
            Err(_) if origin == LibraryOrigin::System && !path.is_absolute() => {}
            Err(reason) => failures.push(format!("{origin}: {reason}")),
        }
    }
    Err(Error::engine(match asked {
        Some(path) if failures.is_empty() => format!(
            "--ort-lib {}: the folder has no ONNX Runtime library",
            path.display()
        ),
        Some(_) => failures.join("; "),
        None if failures.is_empty() => format!("no ONNX Runtime library was found; {INSTALL}"),
        None => format!(
            "no ONNX Runtime library could be loaded ({}); {INSTALL}",
            failures.join("; ")
        ),
    }))
}

/// Loads one library; a failure leaves the process free to try another.
fn load(path: &Path) -> Result<Library, String> {
    let environment = guard(NAME, || {
        let builder = ::ort::init_from(path).map_err(|e| Error::engine(cannot_load(&e)))?;
        builder
            .with_name("onnx-prune")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|e| Error::engine(e.to_string()))
    })
    .map_err(|e| e.chain())?;
    environment.set_log_level(LogLevel::Warning);
    let minor = guard(NAME, || Ok(::ort::util::probe(path))).ok().flatten();
    let path = resolved(path);
    let version = version(&path, minor);
    Ok(Library {
        environment,
        path,
        version,
    })
}

/// Why a library cannot be loaded, with the system loader's own words.
fn cannot_load(error: &::ort::LoadDynamicError) -> String {
    match error {
        ::ort::LoadDynamicError::Dlopen { error, path } => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| error.to_string());
            format!("cannot load {}: {cause}", path.display())
        }
        other => other.to_string(),
    }
}

/// The file behind a name that the system's loader has resolved.
fn resolved(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| line.find('/').and_then(|start| line.get(start..)))
        .map(Path::new)
        .find(|file| {
            file.file_name()
                .and_then(|n| locate::version_of(n.to_str()?))
                .is_some()
        })
        .unwrap_or(path)
        .to_owned()
}

/// The version: in full where the file's name has it and agrees with what the
/// library says of itself, else only what it says.
fn version(path: &Path, minor: Option<u32>) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let named = real
        .file_name()
        .and_then(|name| locate::version_of(name.to_str()?))
        .filter(|numbers| numbers.len() > 1);
    match (named, minor) {
        (Some(numbers), minor) if minor.is_none_or(|m| numbers.get(1) == Some(&m)) => {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            numbers.join(".")
        }
        (_, Some(minor)) => format!("1.{minor}"),
        _ => "unknown".into(),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Hands the library's messages to `tracing`. Its warnings speak of the
/// library's own optimisations; failures also arrive as errors.
fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::debug!(location, "{NAME}: {message}"),
        _ => tracing::trace!(location, "{NAME}: {message}"),
    }
}

fn failed<R>(error: &::ort::Error<R>) -> Error {
    Error::engine(format!("{NAME}: {error}"))
}

fn refused(error: &::ort::Error) -> Error {
    Error::engine(format!("{NAME} cannot load the model: {error}"))
}

/// Views of all inputs for the library.
fn inputs(feeds: &Feeds) -> Result<Vec<(Cow<'_, str>, SessionInputValue<'_>)>> {
    let views = feeds.iter().map(|(name, tensor)| {
        let value = to_engine(tensor).map_err(|e| failed(&e))?;
        Ok((Cow::Borrowed(name.as_str()), value))
    });
    views.collect()
}

/// A view of `tensor` for the library.
fn to_engine(tensor: &Tensor) -> ::ort::Result<SessionInputValue<'_>> {
    macro_rules! view {
        ($($kind:ident),*) => {
            match &tensor.data {
                $(Data::$kind(v) => {
                    TensorRef::from_array_view((tensor.shape.clone(), v.as_slice()))?.into()
                })*
            }
        };
    }
    Ok(view!(
        F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool
    ))
}

/// A copy of a value of the library.
fn from_engine(value: &DynValue) -> Result<Tensor> {
    use TensorElementType as T;
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(Error::engine(format!("{} is not a tensor", value.dtype())));
    };
    macro_rules! copy {
        ($($theirs:ident => $ours:ident),*) => {
            match ty {
                $(T::$theirs => {
                    let (shape, data) = value.try_extract_tensor().map_err(|e| failed(&e))?;
                    (shape, Data::$ours(data.to_vec()))
                })*
                other => {
                    return Err(Error::engine(format!("element type {other} is not supported")));
                }
            }
        };
    }
    let (shape, data) = copy!(
        Float32 => F32, Float64 => F64, Float16 => F16, Bfloat16 => BF16,
        Int8 => I8, Int16 => I16, Int32 => I32, Int64 => I64,
        Uint8 => U8, Uint16 => U16, Uint32 => U32, Uint64 => U64, Bool => Bool
    );
    let shape = shape
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::engine("a result has a negative size"))?;
    Ok(Tensor { shape, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_as_full_as_they_are_sure() {
        let version = |name: &str, minor| version(Path::new(name), minor);
        assert_eq!(version("/x/libonnxruntime.so.1.32.0", Some(32)), "1.32.0");
        assert_eq!(version("/x/libonnxruntime.so.1.32.0", Some(30)), "1.30");
        assert_eq!(version("/x/libonnxruntime.so.1", Some(30)), "1.30");
        assert_eq!(version("/x/libonnxruntime.so", Some(30)), "1.30");
        assert_eq!(version("/x/libonnxruntime.so", None), "unknown");
    }
}
