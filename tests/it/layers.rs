//! Modules import downwards only: each floor of the house stands on those before it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The floors, from the ground up. A module may import what stands on a lower floor.
const FLOORS: &[&[&str]] = &[
    &["error", "progress", "words"],
    &["numerics", "tensor"],
    &["io"],
    &["onnx"],
    &["data", "engine", "folder", "graph"],
    &["axes", "calibrate"],
    &["mask", "network"],
    &["rewrite"],
    &["sites", "verify", "vocabulary"],
    &["budget", "rank"],
    &["channels", "measure", "refit"],
    &["report"],
    &["pipeline"],
    &["cli", "pruner"],
];

/// Names at the root of the crate that are re-exports, and where they come from.
const ROOT: &[(&str, &str)] = &[
    ("Error", "error"),
    ("Result", "error"),
    ("ResultExt", "error"),
    ("Warning", "error"),
];

fn floor(module: &str) -> usize {
    let own = |floor: &&[&str]| floor.contains(&module);
    let found = FLOORS.iter().position(own);
    found.unwrap_or_else(|| {
        panic!(
            "the module '{module}' stands on no floor: give it one in {}",
            file!()
        )
    })
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

/// The source without comments and without its unit tests, which may use anything.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of the crate that `code` names after `crate::`, alone or in braces.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // Not the end of another path or name.
        if at > 0 && code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        match rest.strip_prefix('{') {
            None => _ = found.insert(word(rest)),
            Some(list) => {
                let (mut depth, mut start) = (0, 0);
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        ',' | '}' if depth == 0 => {
                            found.insert(word(&list[start..i]));
                            start = i + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        '}' => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn modules_import_downwards_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for file in &files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&module.as_str()) || file.ends_with("tests.rs") {
            continue;
        }
        let own = floor(&module);
        seen.insert(module.clone());
        for name in imports(&code(file)) {
            let name = ROOT
                .iter()
                .find(|(n, _)| *n == name)
                .map_or(name.as_str(), |(_, m)| m);
            if name != module && name.starts_with(char::is_lowercase) && floor(name) >= own {
                wrong.push(format!("{} imports {name}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let named: BTreeSet<String> = FLOORS.concat().iter().map(ToString::to_string).collect();
    assert_eq!(seen, named, "every floor is there, and nothing else");
}

#[test]
fn what_the_crate_shows_is_little() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = std::fs::read_to_string(root).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.windows(2).filter(|pair| {
        pair[1].starts_with("pub mod ") && !pair[0].contains("doc(hidden)") && !pair[0].contains("cfg(")
    });
    assert!(shown.count() <= 10);
}

#[test]
fn no_lint_of_arguments_is_switched_off() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            !text.contains("allow(clippy::too_many_arguments)"),
            "{}",
            file.display()
        );
    }
}

/// The names of the types that `code` declares at the start of a line.
fn types(code: &str) -> Vec<&str> {
    let declared = code.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let line = match line.strip_prefix("pub(") {
            Some(rest) => rest.split_once(") ")?.1,
            None => line,
        };
        let rest = ["struct ", "enum ", "trait ", "type ", "union "]
            .iter()
            .find_map(|keyword| line.strip_prefix(keyword))?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
    });
    declared.collect()
}

#[test]
fn a_type_name_means_one_thing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    // What stands in for tokenizers in a build without the feature `text`, and tests of a module.
    files.retain(|file| {
        let other = ["no_tokenizer.rs", "no_segmenter.rs", "tests.rs"];
        !other.iter().any(|name| file.ends_with(name))
    });
    let mut found: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for file in &files {
        for name in types(&code(file)) {
            let place = file.strip_prefix(&root).unwrap().display().to_string();
            found.entry(name.to_owned()).or_default().push(place);
        }
    }
    assert!(found.len() > 200, "{}", found.len());
    found.retain(|_, places| places.len() > 1);
    assert!(found.is_empty(), "{found:#?}");
}
