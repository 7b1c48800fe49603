//! The cases of the fuzz targets, replayed: those that the targets start from and
//! those that once found something. `tests/fuzz/README.md` says how to find more.

use std::path::PathBuf;
use std::time::{Duration, Instant};

#[path = "../fuzz/bodies.rs"]
mod bodies;

pub use bodies::within;

/// No case is as large as this takes, by far; a hang is.
const LONG: Duration = Duration::from_secs(20);

fn replay(target: &str) {
    let (_, body) = bodies::TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target);
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("a folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", folder.display());
    let mut bad = Vec::new();
    for case in &cases {
        let bytes = std::fs::read(case).expect("a case");
        let start = Instant::now();
        let ended = std::panic::catch_unwind(|| body(&bytes));
        let name = case.file_name().unwrap_or_default().to_string_lossy();
        if ended.is_err() {
            bad.push(format!("{name} panics"));
        }
        if start.elapsed() > LONG {
            bad.push(format!("{name} takes {:.0?}", start.elapsed()));
        }
    }
    assert!(bad.is_empty(), "{target}: {}", bad.join(", "));
    println!("{target}: {} cases", cases.len());
}

#[test]
fn model() {
    replay("model");
}

#[test]
fn external() {
    replay("external");
}

#[test]
fn mutated() {
    replay("mutated");
}

#[test]
fn inputs() {
    replay("inputs");
}

#[test]
fn masks() {
    replay("masks");
}
