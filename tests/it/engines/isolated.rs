//! What depends on the process as a whole: which library is found, how many
//! threads there are. Each test runs itself again in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_prune::engine::{Device, EngineChoice, EngineOptions, SessionOptions, choose};

use super::zoo::{self, built_in, onnx_runtime};

const MARK: &str = "ENGINES_ISOLATED";

/// Whether this is the process of its own. If not, runs the test called `name`
/// in one, with the environment as `prepare` leaves it, and checks that it
/// passed.
fn isolated(name: &str, prepare: impl FnOnce(&mut Command)) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("engines::isolated::{name}"), "--nocapture"])
        .env(MARK, "1");
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(text.contains("1 passed"), "no test was run");
    false
}

/// Hides every library that the search could find.
fn without_library(command: &mut Command) {
    for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command.env("PATH", "/nowhere");
}

fn asked(engine: EngineChoice, ort_lib: Option<PathBuf>) -> EngineOptions {
    EngineOptions {
        engine,
        ort_lib,
        ..EngineOptions::default()
    }
}

/// The text and exit code of the error of [`choose`].
fn error(options: &EngineOptions) -> (String, u8) {
    let error = choose(options).err().expect("it was chosen");
    (error.chain(), error.exit_code())
}

/// Whether the system itself has the library, which cannot be hidden.
fn system_has_it() -> bool {
    let found = choose(&asked(EngineChoice::Ort, None)).is_ok();
    if found {
        println!("skipped: the system has ONNX Runtime");
    }
    found
}

#[cfg_attr(not(all(feature = "ort", feature = "tract")), ignore = "needs both engines")]
#[test]
fn without_a_library_auto_takes_tract_and_says_so() {
    if !isolated("without_a_library_auto_takes_tract_and_says_so", without_library) || system_has_it() {
        return;
    }
    let (text, code) = error(&asked(EngineChoice::Ort, None));
    assert!(text.contains("no ONNX Runtime library was found"), "{text}");
    assert!(
        text.contains("pip install onnxruntime") && text.contains("--ort-lib"),
        "{text}"
    );
    assert_eq!(code, 4);

    let engine = choose(&asked(EngineChoice::Auto, None)).unwrap();
    let info = engine.info();
    assert_eq!((info.name, info.device.as_str()), ("tract", "cpu"));
    let note = info.note.as_deref().unwrap();
    assert!(note.contains("no ONNX Runtime library was found"), "{note}");

    let cuda = EngineOptions {
        device: Device::Cuda,
        ..EngineOptions::default()
    };
    assert_eq!(error(&cuda).1, 4, "auto must not run CUDA on the CPU");
}

#[cfg_attr(not(all(feature = "ort", feature = "tract")), ignore = "needs both engines")]
#[test]
fn a_variable_that_leads_nowhere_is_told() {
    let ran = isolated("a_variable_that_leads_nowhere_is_told", |command| {
        without_library(command);
        command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    });
    if !ran || system_has_it() {
        return;
    }
    let engine = choose(&asked(EngineChoice::Auto, None)).unwrap();
    let note = engine.info().note.clone().unwrap();
    assert!(
        note.contains("ORT_DYLIB_PATH") && note.contains("/nowhere/libonnxruntime.so"),
        "{note}"
    );
}

/// A library that is certainly loadable and is not ONNX Runtime.
fn some_other_library() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)))
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("libc.so"))
        })
        .map(Path::to_owned)
}

#[cfg_attr(not(feature = "ort"), ignore = "needs the feature ort")]
#[test]
fn a_library_that_was_named_loads_or_is_an_error() {
    if !isolated("a_library_that_was_named_loads_or_is_an_error", |_| {}) {
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let garbage = empty.path().join("garbage.so");
    std::fs::write(&garbage, b"not a library").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = vec![
        ("/nowhere/libonnxruntime.so".into(), "/nowhere/libonnxruntime.so"),
        (garbage, "garbage.so"),
        (folder.path().to_owned(), "the folder has no ONNX Runtime library"),
    ];
    wrong.extend(some_other_library().map(|path| (path, "OrtGetApiBase")));
    for (path, expected) in wrong {
        for engine in [EngineChoice::Ort, EngineChoice::Auto] {
            let (text, code) = error(&asked(engine, Some(path.clone())));
            assert!(text.contains("--ort-lib") && text.contains(expected), "{text}");
            assert_eq!(code, 4);
        }
    }

    // The failures leave the process free to load the right one.
    let Some(engine) = onnx_runtime(None) else {
        return;
    };
    let library = engine.info().library.clone().unwrap();
    assert!(library.exists(), "{}", library.display());
    assert!(
        engine.info().version.starts_with("1."),
        "{}",
        engine.info().version
    );
    let again = choose(&asked(EngineChoice::Auto, Some(library.clone()))).unwrap();
    assert_eq!(again.info().name, "onnxruntime");
    let parent = library.parent().unwrap().to_owned();
    assert!(choose(&asked(EngineChoice::Ort, Some(parent))).is_ok());

    // One library per process.
    let (text, _) = error(&asked(EngineChoice::Ort, Some("/nowhere/other.so".into())));
    assert!(text.contains("already loaded"), "{text}");
}

#[cfg_attr(not(feature = "ort"), ignore = "needs the feature ort")]
#[test]
fn cuda_is_there_or_is_an_error() {
    if !isolated("cuda_is_there_or_is_an_error", |_| {}) || onnx_runtime(None).is_none() {
        return;
    }
    let cuda = EngineOptions {
        engine: EngineChoice::Ort,
        device: Device::Cuda,
        ..EngineOptions::default()
    };
    match choose(&cuda) {
        Ok(engine) => assert_eq!(engine.info().device, "cuda"),
        Err(error) => {
            let text = error.chain();
            println!("{text}");
            assert_eq!(error.exit_code(), 4);
            assert!(text.starts_with("--device cuda"), "{text}");
            if cfg!(not(feature = "cuda")) {
                assert!(text.contains("--features cuda"), "{text}");
            }
            // The same reason, as a note, where the choice was left open.
            let auto = EngineOptions {
                device: Device::Auto,
                ..cuda
            };
            let engine = choose(&auto).unwrap();
            assert_eq!(engine.info().device, "cpu");
            assert_eq!(engine.info().note.is_some(), cfg!(feature = "cuda"));
        }
    }
}

#[cfg_attr(not(feature = "tract"), ignore = "needs the feature tract")]
#[test]
fn tract_has_no_cuda() {
    let options = EngineOptions {
        engine: EngineChoice::Tract,
        device: Device::Cuda,
        ..EngineOptions::default()
    };
    let (text, code) = error(&options);
    assert!(text.contains("--engine ort"), "{text}");
    assert_eq!(code, 4);
}

#[cfg_attr(
    any(feature = "ort", feature = "tract"),
    ignore = "for builds without engines"
)]
#[test]
fn a_build_without_engines_says_so() {
    for engine in [EngineChoice::Auto, EngineChoice::Ort, EngineChoice::Tract] {
        let (text, code) = error(&asked(engine, None));
        assert!(text.contains("--features"), "{text}");
        assert_eq!(code, 4);
    }
}

#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
#[test]
fn the_number_of_threads_is_respected() {
    if !isolated("the_number_of_threads_is_respected", |_| {}) {
        return;
    }
    let Some(case) = zoo::case("bert-ts17-eager") else {
        return;
    };
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    // The library keeps a thread of its own from the time it is loaded.
    let _loaded = onnx_runtime(Some(1));
    // The pools count the calling thread differently: ONNX Runtime has one
    // worker less, tract one for each and none for one.
    for (engine, workers) in [(onnx_runtime as fn(_) -> _, [0, 1, 4]), (built_in, [0, 2, 5])] {
        for (asked, workers) in [1, 2, 5].into_iter().zip(workers) {
            let before = threads();
            let Some(engine) = engine(Some(asked)) else {
                continue;
            };
            assert_eq!(engine.info().threads, asked);
            let mut session = engine.session(&case.model, &SessionOptions::default()).unwrap();
            session.run(&case.io[0].0).unwrap();
            assert_eq!(threads() - before, workers, "{}", engine.info().name);
            drop((session, engine));
            // Workers take a moment to leave.
            for _ in 0..100 {
                if threads() > before {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        }
    }
}
