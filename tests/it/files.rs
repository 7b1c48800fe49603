//! Files that appear together or not at all.

#![cfg(unix)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use onnx_prune::io::staged::{Staged, apart, read, writable, write};

/// What temporary files are called.
const PREFIX: &str = ".onnx-prune-";
const SUFFIX: &str = ".tmp";
/// Older than this, they may be leftovers.
const SETTLED: Duration = Duration::from_secs(10);

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_rename_that_fails_takes_those_before_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("old"), "old").unwrap();
    let mut staged = Staged::default();
    staged.bytes(&at("old"), b"new").unwrap();
    staged.bytes(&at("none"), b"new").unwrap();
    staged.fresh(&at("taken"), |f| f.write_all(b"new")).unwrap();
    staged.bytes(&at("last"), b"new").unwrap();
    std::fs::write(at("taken"), "someone else's").unwrap();
    let error = staged.commit().unwrap_err().chain();
    assert!(error.contains("taken"), "{error}");
    assert_eq!(listing(folder.path()), ["old", "taken"]);
    assert_eq!(std::fs::read(at("old")).unwrap(), b"old");
    assert_eq!(std::fs::read(at("taken")).unwrap(), b"someone else's");
}

#[test]
fn what_is_staged_appears_only_when_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("gone"), "").unwrap();
    std::fs::write(at("a"), "old").unwrap();
    let stage = || {
        let mut staged = Staged::default();
        staged.bytes(&at("a"), b"a").unwrap();
        let mut more = Staged::default();
        more.bytes(&at("b"), b"b").unwrap();
        staged.append(more);
        staged.remove(at("gone"));
        // A file that was just written is never an old one.
        staged.remove(at("b"));
        staged
    };
    drop(stage());
    assert_eq!(listing(folder.path()), ["a", "gone"]);
    assert_eq!(std::fs::read(at("a")).unwrap(), b"old");
    stage().commit().unwrap();
    assert_eq!(listing(folder.path()), ["a", "b"]);
    assert_eq!(std::fs::read(at("a")).unwrap(), b"a");
}

#[test]
fn only_what_nobody_holds_is_a_leftover() {
    let folder = tempfile::tempdir().unwrap();
    let name = |n: &str| folder.path().join(format!("{PREFIX}{n}{SUFFIX}"));
    let old = std::time::SystemTime::now() - 3 * SETTLED;
    let mut held = Vec::new();
    for n in ["dead", "alive", "young"] {
        let file = File::create(name(n)).unwrap();
        if n != "young" {
            file.set_modified(old).unwrap();
        }
        if n == "alive" {
            file.lock().unwrap();
            held.push(file);
        }
    }
    File::create(folder.path().join("other.tmp"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    write(&folder.path().join("a"), b"").unwrap();
    let left = listing(folder.path());
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(!name("dead").exists() && name("alive").exists() && name("young").exists());
}

#[test]
fn the_same_file_under_any_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("in"), "").unwrap();
    std::fs::write(at("other"), "").unwrap();
    std::fs::hard_link(at("in"), at("hard")).unwrap();
    std::os::unix::fs::symlink("in", at("soft")).unwrap();
    let inputs = at("in");
    for name in ["in", "hard", "soft", "./in"] {
        let error = apart(&[("the output", &at(name))], &[("the input", &inputs)]).unwrap_err();
        assert!(
            error.chain().contains("is the same file as the input"),
            "{}",
            error.chain()
        );
    }
    for name in ["other", "none"] {
        apart(&[("the output", &at(name))], &[("the input", &inputs)]).unwrap();
    }
    let both = [("the output", at("new")), ("--json", at("./new"))];
    let both: Vec<(&str, &Path)> = both.iter().map(|(what, path)| (*what, path.as_path())).collect();
    assert!(apart(&both, &[]).is_err());
}

#[test]
fn only_regular_files_of_some_size_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a"), "12345").unwrap();
    assert_eq!(read(&at("a"), 5).unwrap(), b"12345");
    assert!(
        read(&at("a"), 4)
            .unwrap_err()
            .chain()
            .contains("more than 4 bytes")
    );
    let made = std::process::Command::new("mkfifo").arg(at("pipe")).status();
    assert!(made.unwrap().success());
    for path in [at("pipe"), "/dev/zero".into(), folder.path().to_owned()] {
        let error = read(&path, 5).unwrap_err().chain();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}

#[test]
fn a_device_is_written_to_and_not_replaced() {
    writable("/dev/null".as_ref()).unwrap();
    write("/dev/null".as_ref(), b"gone").unwrap();
    assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    assert!(Staged::default().file("/dev/null".as_ref(), |_| Ok(())).is_err());
}
