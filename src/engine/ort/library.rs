//! Finding and loading the library: once per process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use super::NAME;
use crate::engine::INSTALL;
use crate::engine::guard::guard;
use crate::engine::locate::{self, LibraryCandidate, LibraryOrigin, Surroundings};
use crate::error::{Error, Result};

/// A library that is loaded. A process loads one and keeps it to its end.
#[derive(Clone)]
pub(super) struct Library {
    pub(super) environment: Environment,
    pub(super) path: PathBuf,
    pub(super) version: String,
}

static LIBRARY: Mutex<Option<Library>> = Mutex::new(None);

/// The library of this process: the one that is loaded already, or the first
/// candidate that loads. Returns why the candidates before it were passed over.
pub(super) fn library(asked: Option<&Path>) -> Result<(Library, Vec<String>)> {
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
