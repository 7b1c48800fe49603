//! `--threads` bounds the whole process, whatever the environment says.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::fixture;

/// Clock ticks that each thread of a process has computed, by its id.
fn ticks(process: u32, into: &mut BTreeMap<String, u64>) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let Ok(text) = std::fs::read_to_string(task.path().join("stat")) else {
            continue;
        };
        // The name may hold spaces; it ends with the last bracket.
        let fields: Vec<&str> = text
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        into.insert(
            task.file_name().to_string_lossy().into_owned(),
            number(11) + number(12),
        );
    }
}

/// How many threads compute, each at least a twentieth of what all do.
fn computing(engine: &str, threads: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .arg(fixture("text-language/model.onnx"))
        .arg(folder.path().join("small.onnx"))
        .arg("--data")
        .arg(fixture("text-language/calibration.txt"))
        .arg("--tokenizer")
        .arg(fixture("text-language/tokenizer.json"))
        .args(["--flops", "0.5", "--no-timing", "--quiet", "--samples", "256"])
        .args(["--engine", engine, "--threads", threads])
        .env("RAYON_NUM_THREADS", "16")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut found = BTreeMap::new();
    let ended = loop {
        ticks(child.id(), &mut found);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    let all: u64 = found.values().sum();
    assert!(all > 20, "too short a run to tell: {all} ticks");
    found.values().filter(|own| **own * 20 >= all).count()
}

#[test]
fn one_thread_is_one_thread() {
    assert_eq!(computing("tract", "1"), 1);
    if crate::common::engine().is_some() {
        assert_eq!(computing("ort", "1"), 1);
    }
}

#[test]
fn two_threads_are_two_at_a_time() {
    assert!(computing("tract", "2") <= 2);
    if crate::common::engine().is_some() {
        // Those of the engine take turns with those of the program: while a model runs, the
        // program waits for it.
        assert!(computing("ort", "2") <= 3);
    }
}
