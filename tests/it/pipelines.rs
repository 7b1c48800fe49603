//! The Python scripts of `examples/python`, on small data.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn python_examples_run_on_small_data() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("VIRTUAL_ENV")
        .map(|venv| Path::new(&venv).join("bin/python"))
        .filter(|p| p.is_file())
        .unwrap_or_else(|| "python3".into());
    let needed = "import numpy, onnx, onnxruntime";
    match Command::new(&python).args(["-c", needed]).output() {
        Ok(output) if output.status.success() => {}
        _ => {
            eprintln!("skipped: {} cannot {needed}", python.display());
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let modules = ["python", "examples/python", "examples/distributed"].map(|m| root.join(m));
    let modules = std::env::join_paths(modules).unwrap();
    let output = Command::new(python)
        .arg(root.join("tests/python/try_examples.py"))
        .arg(root.join("fixtures"))
        .arg(folder.path())
        .env("PYTHONPATH", modules)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ONNX_PRUNE", env!("CARGO_BIN_EXE_onnx-prune"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).to_string();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.ends_with("all is well\n"),
        "{said}{errors}"
    );
    print!("{said}");
}
