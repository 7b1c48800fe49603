//! The wheel: built, installed into an environment that has nothing else, used from
//! Python and from the shell.
//!
//! It is built in the development profile, from what is compiled already. Without
//! maturin (`pip install -r tests/python/requirements.txt`) there is nothing to test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Python of the tests, if it has these modules.
fn python_with(modules: &str) -> Option<PathBuf> {
    let python = std::env::var_os("VIRTUAL_ENV")
        .map(|venv| Path::new(&venv).join("bin/python"))
        .filter(|p| p.is_file())
        .unwrap_or_else(|| "python3".into());
    let found = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output();
    match found {
        Ok(output) if output.status.success() => Some(python),
        _ => {
            eprintln!("skipped: {} cannot import {modules}", python.display());
            None
        }
    }
}

fn must(output: Output) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    said
}

fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    // The environment of the tests must not help.
    let output = Command::new(program)
        .args(args)
        .env_remove("VIRTUAL_ENV")
        .env_remove("PYTHONPATH")
        .env_remove("ORT_DYLIB_PATH")
        .current_dir(std::env::temp_dir())
        .output();
    must(output.unwrap())
}

/// `UPDATE_OPTIONS=1` writes them.
#[test]
fn the_options_of_the_package_are_those_of_the_program() {
    let path = root().join("python/onnx_prune/_options.py");
    let made = onnx_prune::cli::python();
    if std::env::var_os("UPDATE_OPTIONS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), made);
}

#[test]
fn the_types_are_strict() {
    let Some(python) = python_with("mypy, numpy") else {
        return;
    };
    let output = Command::new(python)
        .args([
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            "/dev/null",
            "python/onnx_prune",
        ])
        .current_dir(root())
        .output();
    must(output.unwrap());
}

#[cfg(unix)]
#[test]
fn a_clean_environment_with_the_wheel_alone_prunes() {
    let Some(python) = python_with("maturin, numpy, onnxruntime") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let wheels = text(&folder.path().join("wheels"));
    let mut build = Command::new(&python);
    build
        .args([
            "-m",
            "maturin",
            "build",
            "--profile",
            "dev",
            "--locked",
            "--compatibility",
            "linux",
        ])
        // The features of the tests, so that nothing is compiled again.
        .args(["--features", "tract,ort", "--out", &wheels])
        .current_dir(root());
    // Cargo's own variables for this test would make it compile everything again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&&*text) {
            build.env_remove(&name);
        }
    }
    must(build.output().unwrap());
    let wheel = std::fs::read_dir(&wheels)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();

    let clean = folder.path().join("clean");
    run(&python, &["-m", "venv", &text(&clean)]);
    let own = text(&clean.join("bin/python"));
    run(
        &own,
        &[
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            &text(&wheel),
        ],
    );
    let script = text(&root().join("tests/python/use_wheel.py"));
    let fixtures = text(&root().join("fixtures"));
    let scratch = text(folder.path());
    let said = run(&own, &["-I", &script, &fixtures, &scratch]);
    assert!(said.ends_with("all is well\n"), "{said}");
    // The program finds nothing but the built-in engine here.
    let model = text(&root().join("fixtures/digits-vit/model.onnx"));
    let program = text(&clean.join("bin/onnx-prune"));
    let out = text(&folder.path().join("out.onnx"));
    let shell = [&model, &out, "--method", "magnitude", "--engine", "tract"];
    assert!(run(&program, &shell).contains("tract"));

    // NumPy and ONNX Runtime beside it, as `pip install onnx-prune[ort]` would have them.
    let site = run(
        &python,
        &[
            "-c",
            "import numpy, pathlib; print(pathlib.Path(numpy.__file__).parent.parent)",
        ],
    );
    let into = run(
        &own,
        &["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
    );
    for package in ["numpy", "numpy.libs", "onnxruntime"] {
        let from = Path::new(site.trim()).join(package);
        if from.exists() {
            std::os::unix::fs::symlink(from, Path::new(into.trim()).join(package)).unwrap();
        }
    }
    let said = run(&own, &["-I", &script, &fixtures, &scratch, "arrays"]);
    assert!(said.ends_with("all is well\n"), "{said}");
    // From the shell too, although the environment is not active.
    let said = run(
        &program,
        &[&model, &out, "--method", "magnitude", "--engine", "ort"],
    );
    assert!(said.contains("onnxruntime"), "{said}");
}
