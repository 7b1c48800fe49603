//! Where `unsafe` may stand: in the mapping module and nowhere else.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code, without comments, that speak of `unsafe`.
fn mentions(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("a source file");
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim().to_owned())
        .filter(|line| line.contains("unsafe"))
        .collect()
}

#[test]
fn only_the_map_is_unsafe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("build.rs")];
    for folder in ["src", "examples"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 100, "only {} files", files.len());
    let mut found: Vec<(String, Vec<String>)> = files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(root).expect("inside").display().to_string();
            (name, mentions(path))
        })
        .filter(|(_, lines)| !lines.is_empty())
        .collect();
    found.sort();
    let expected = [
        ("src/lib.rs", vec!["#![deny(unsafe_code)]"]),
        ("src/main.rs", vec!["#![forbid(unsafe_code)]"]),
        (
            "src/onnx/map.rs",
            vec![
                "#![allow(unsafe_code)]",
                "let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;",
                "let _ = unsafe { map.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };",
            ],
        ),
    ];
    let expected = expected.map(|(name, lines)| {
        (
            name.to_owned(),
            lines.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        )
    });
    assert_eq!(found, expected);
}
