//! Where the ONNX Runtime library may be.

use std::cmp::Reverse;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A library to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LibraryCandidate {
    /// The file, or a bare name that the system's loader looks up.
    pub path: PathBuf,
    /// Who named it.
    pub origin: LibraryOrigin,
}

/// Why a library is a candidate, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LibraryOrigin {
    /// `--ort-lib`.
    Option,
    /// The environment variable `ORT_DYLIB_PATH`.
    Variable,
    /// The folder of the executable, and `lib` beside it.
    Executable,
    /// The Python environment in `VIRTUAL_ENV`.
    VirtualEnv,
    /// The Python environment in `CONDA_PREFIX`.
    Conda,
    /// The `onnxruntime` package of the Python on the path.
    Python,
    /// The system's library folders.
    System,
}

impl fmt::Display for LibraryOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LibraryOrigin::Option => "--ort-lib",
            LibraryOrigin::Variable => "ORT_DYLIB_PATH",
            LibraryOrigin::Executable => "the folder of the executable",
            LibraryOrigin::VirtualEnv => "VIRTUAL_ENV",
            LibraryOrigin::Conda => "CONDA_PREFIX",
            LibraryOrigin::Python => "the onnxruntime package of Python",
            LibraryOrigin::System => "the system's library path",
        })
    }
}

/// What the search depends on.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    variable: Option<PathBuf>,
    executable: Option<PathBuf>,
    virtual_env: Option<PathBuf>,
    conda: Option<PathBuf>,
    python: Option<OsString>,
    system: Vec<PathBuf>,
    bare_name: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let folder = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Surroundings {
            variable: folder("ORT_DYLIB_PATH"),
            executable: env::current_exe().ok(),
            virtual_env: folder("VIRTUAL_ENV"),
            conda: folder("CONDA_PREFIX"),
            python: Some(if cfg!(windows) { "python" } else { "python3" }.into()),
            system: system_folders(),
            bare_name: Some(
                format!(
                    "{}onnxruntime{}",
                    env::consts::DLL_PREFIX,
                    env::consts::DLL_SUFFIX
                )
                .into(),
            ),
        }
    }

    /// The libraries to try, in order. Lazy: Python is asked only when it comes
    /// to that.
    pub(super) fn candidates(&self) -> impl Iterator<Item = LibraryCandidate> + '_ {
        const ORDER: [LibraryOrigin; 6] = [
            LibraryOrigin::Variable,
            LibraryOrigin::Executable,
            LibraryOrigin::VirtualEnv,
            LibraryOrigin::Conda,
            LibraryOrigin::Python,
            LibraryOrigin::System,
        ];
        ORDER.into_iter().flat_map(|origin| {
            let paths = self.paths(origin).into_iter();
            paths.map(move |path| LibraryCandidate { path, origin })
        })
    }

    fn paths(&self, origin: LibraryOrigin) -> Vec<PathBuf> {
        let all_in = |folders: &[PathBuf]| folders.iter().flat_map(|f| libraries_in(f)).collect();
        match origin {
            LibraryOrigin::Option => Vec::new(),
            LibraryOrigin::Variable => self.variable.as_deref().map(named).unwrap_or_default(),
            LibraryOrigin::Executable => {
                let folder = self.executable.as_deref().and_then(Path::parent);
                folder.map_or_else(Vec::new, |folder| {
                    let beside = folder.parent().map(|up| up.join("lib"));
                    let folders = std::iter::once(folder.to_owned()).chain(beside);
                    let mut paths: Vec<PathBuf> = all_in(&folders.collect::<Vec<_>>());
                    // A wheel puts it into an environment that need not be active.
                    paths.extend(in_prefix(folder.parent()));
                    paths
                })
            }
            LibraryOrigin::VirtualEnv => in_prefix(self.virtual_env.as_deref()),
            LibraryOrigin::Conda => in_prefix(self.conda.as_deref()),
            LibraryOrigin::Python => {
                let package = self.python.as_ref().and_then(ask);
                package.map_or_else(Vec::new, |package| libraries_in(&package.join("capi")))
            }
            LibraryOrigin::System => {
                let mut paths: Vec<PathBuf> = all_in(&self.system);
                paths.extend(self.bare_name.clone());
                paths
            }
        }
    }
}

/// The libraries that a path given by the user means: itself, or those in the
/// folder that it is.
pub(super) fn named(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        // A bare name is for the system's loader; any other relative path is
        // made absolute, since it would be taken for one beside the executable.
        let bare = path.components().count() == 1 && !path.exists();
        let absolute = std::path::absolute(path).ok().filter(|_| !bare);
        return vec![absolute.unwrap_or_else(|| path.to_owned())];
    }
    ["", "lib", "capi", "onnxruntime/capi"]
        .iter()
        .flat_map(|inner| libraries_in(&path.join(inner)))
        .collect()
}

/// The ONNX Runtime libraries in `folder`: the plain name first, then the
/// highest version. Python packages have only versioned names.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = version_of(name.to_str()?)?;
            Some((version, folder.join(name)))
        })
        .collect();
    found.sort_by_key(|(version, path)| (!version.is_empty(), Reverse(version.clone()), path.clone()));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The version in the name of an ONNX Runtime library, empty for the plain
/// name; `None` for any other file.
pub(super) fn version_of(file_name: &str) -> Option<Vec<u32>> {
    let version = if let Some(rest) = file_name.strip_prefix("libonnxruntime.so") {
        rest
    } else if let Some(rest) = file_name.strip_prefix("libonnxruntime") {
        rest.strip_suffix(".dylib")?
    } else if file_name == "onnxruntime.dll" {
        ""
    } else {
        return None;
    };
    if version.is_empty() {
        return Some(Vec::new());
    }
    let numbers = version.strip_prefix('.')?.split('.');
    numbers.map(|number| number.parse().ok()).collect()
}

/// The libraries of the `onnxruntime` package in a Python environment.
fn in_prefix(prefix: Option<&Path>) -> Vec<PathBuf> {
    let Some(prefix) = prefix else {
        return Vec::new();
    };
    let mut packages = vec![prefix.join("Lib/site-packages")];
    for lib in ["lib", "lib64"] {
        let entries = std::fs::read_dir(prefix.join(lib)).into_iter().flatten();
        let mut pythons: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python"))
            .map(|entry| entry.path().join("site-packages"))
            .collect();
        pythons.sort();
        packages.extend(pythons);
    }
    packages
        .iter()
        .flat_map(|folder| libraries_in(&folder.join("onnxruntime/capi")))
        .collect()
}

/// Asks a Python where its `onnxruntime` package is, without importing it,
/// which would take twenty times longer. The current folder is taken off the
/// search path: a package that happens to lie there is not the user's choice.
fn ask(python: &OsString) -> Option<PathBuf> {
    const QUESTION: &str = "\
import sys
sys.path[:] = [p for p in sys.path if p not in ('', '.')]
import importlib.util
spec = importlib.util.find_spec('onnxruntime')
print(next(iter(spec.submodule_search_locations or []), '') if spec else '')";
    let answer = Command::new(python)
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let folder = String::from_utf8(answer.stdout).ok()?;
    let folder = folder.trim_end_matches(['\r', '\n']);
    (answer.status.success() && !folder.is_empty()).then(|| folder.into())
}

/// The folders of the system's loader that can be listed; the others are left
/// to the loader itself, by name.
fn system_folders() -> Vec<PathBuf> {
    let variable = if cfg!(target_os = "macos") {
        "DYLD_LIBRARY_PATH"
    } else if cfg!(windows) {
        "PATH"
    } else {
        "LD_LIBRARY_PATH"
    };
    let listed = env::var_os(variable).unwrap_or_default();
    let standard: &[&str] = if cfg!(target_os = "macos") {
        &["/opt/homebrew/lib", "/usr/local/lib"]
    } else if cfg!(windows) {
        &[]
    } else {
        &[
            "/usr/local/lib",
            "/usr/local/lib64",
            "/usr/lib64",
            "/usr/lib",
            "/lib",
        ]
    };
    let triple = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    env::split_paths(&listed)
        .filter(|folder| folder.is_absolute())
        .chain(standard.iter().map(PathBuf::from))
        .chain(cfg!(target_os = "linux").then(|| triple.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, name: &str) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, b"").unwrap();
        path
    }

    #[test]
    fn names_are_told_from_those_of_other_libraries() {
        assert_eq!(version_of("libonnxruntime.so"), Some(vec![]));
        assert_eq!(version_of("libonnxruntime.so.1.32.0"), Some(vec![1, 32, 0]));
        assert_eq!(version_of("libonnxruntime.1.23.2.dylib"), Some(vec![1, 23, 2]));
        assert_eq!(version_of("onnxruntime.dll"), Some(vec![]));
        for other in [
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.so.1.x",
            "libonnxruntime.so1",
            "libonnx.so",
            "onnxruntime_pybind11_state.so",
        ] {
            assert_eq!(version_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_plain_name_comes_first_then_the_highest_version() {
        let folder = tempfile::tempdir().unwrap();
        let names = [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime_providers_shared.so",
        ];
        for name in names {
            touch(folder.path(), name);
        }
        let found = libraries_in(folder.path());
        let expected = [names[1], names[2], names[0]].map(|n| folder.path().join(n));
        assert_eq!(found, expected);
        assert_eq!(named(folder.path()), expected);
    }

    #[test]
    fn the_order_is_the_documented_one() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let name = "libonnxruntime.so.1.30.0";
        let surroundings = Surroundings {
            variable: Some(touch(&root.join("variable"), "any-name.so")),
            executable: Some(touch(&root.join("bin"), "program")),
            virtual_env: Some(root.join("venv")),
            conda: Some(root.join("conda")),
            python: None,
            system: vec![root.join("system")],
            bare_name: Some("libonnxruntime.so".into()),
        };
        let capi = "lib/python3.11/site-packages/onnxruntime/capi";
        let system = touch(&root.join("system"), name);
        let conda = touch(&root.join("conda").join(capi), name);
        let venv = touch(&root.join("venv").join(capi), name);
        let beside = touch(&root.join("bin"), name);
        let found: Vec<_> = surroundings.candidates().map(|c| (c.origin, c.path)).collect();
        assert_eq!(
            found,
            [
                (LibraryOrigin::Variable, root.join("variable/any-name.so")),
                (LibraryOrigin::Executable, beside),
                (LibraryOrigin::VirtualEnv, venv),
                (LibraryOrigin::Conda, conda),
                (LibraryOrigin::System, system),
                (LibraryOrigin::System, "libonnxruntime.so".into()),
            ]
        );
    }

    #[cfg(unix)]
    #[test]
    fn python_is_asked_for_its_package() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let library = touch(&root.path().join("package/capi"), "libonnxruntime.so.1.31.0");
        let python = touch(root.path(), "python3");
        let script = format!("#!/bin/sh\necho {}\n", root.path().join("package").display());
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let surroundings = Surroundings {
            python: Some(python.into()),
            ..Surroundings::default()
        };
        let found: Vec<_> = surroundings.candidates().collect();
        let path = library;
        assert_eq!(
            found,
            [LibraryCandidate {
                path,
                origin: LibraryOrigin::Python
            }]
        );
        assert_eq!(ask(&"/nowhere/python3".into()), None);
    }

    #[test]
    fn nothing_anywhere_is_no_candidate() {
        assert_eq!(Surroundings::default().candidates().count(), 0);
    }
}
