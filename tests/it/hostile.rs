//! Files of every kind in every place of the command line: each is an error with the
//! exit code that the help promises, within seconds, and nothing that was there is
//! changed.

#![cfg(unix)]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use onnx_prune::io::npz;
use onnx_prune::tensor::Tensor;

use crate::common::{fixture, text};

/// No case takes a tenth of it; one that waits for a pipe takes all.
const LONG: Duration = Duration::from_secs(60);

/// Codes of errors that the user can mend: bad input, nothing to prune, a file that
/// cannot be read.
const ERRORS: [i32; 3] = [2, 3, 5];

/// Address space that a run may take, in KiB: far more than these models need.
const MEMORY: u64 = 8 << 20;

/// Ends in time, or the test fails.
fn run(args: &[&str]) -> Output {
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$@\""), "sh"])
        .arg(env!("CARGO_BIN_EXE_onnx-prune"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LONG {
            child.kill().unwrap();
            let said = child.wait_with_output().unwrap();
            panic!("{args:?} does not end: {}", text(&said));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// An error of the user's, told in words.
fn refused(args: &[&str]) -> String {
    let result = run(args);
    let said = text(&result);
    let code = result.status.code();
    assert!(
        code.is_some_and(|code| ERRORS.contains(&code)),
        "{args:?} ends with {code:?}: {said}"
    );
    assert!(said.contains("error: "), "{args:?}: {said}");
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    said
}

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.at(name), bytes).unwrap();
        self.at(name)
    }

    /// What is no file of any sense, under names that end so.
    fn nonsense(&self, ending: &str) -> Vec<String> {
        let name = |kind: &str| format!("{kind}{ending}");
        let noise: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut all = vec![
            self.put(&name("empty"), b""),
            self.put(&name("zeros"), &[0; 4096]),
            self.put(&name("noise"), &noise),
            self.put(&name("words"), b"not what you think\nat all\n"),
            self.put(&name("deep"), "[".repeat(200_000).as_bytes()),
            self.put(&name("deep-objects"), "{\"a\":".repeat(100_000).as_bytes()),
            self.put(&name("number"), b"1e999"),
            self.at(&name("missing")),
        ];
        std::fs::create_dir(self.at(&name("folder"))).unwrap();
        all.push(self.at(&name("folder")));
        let made = Command::new("mkfifo").arg(self.at(&name("pipe"))).status();
        if made.is_ok_and(|made| made.success()) {
            all.push(self.at(&name("pipe")));
        }
        for (to, kind) in [("/dev/zero", "endless"), ("/dev/null", "nothing")] {
            symlink(to, self.at(&name(kind))).unwrap();
            all.push(self.at(&name(kind)));
        }
        symlink(name("round"), self.at(&name("round"))).unwrap();
        all.push(self.at(&name("round")));
        all
    }
}

fn model() -> String {
    fixture("digits-vit/model.onnx").to_str().unwrap().to_owned()
}

fn texts() -> [String; 3] {
    ["model.onnx", "calibration.txt", "tokenizer.json"]
        .map(|name| fixture("text-language").join(name).to_str().unwrap().to_owned())
}

const FAST: [&str; 6] = ["--engine", "tract", "--threads", "1", "--method", "magnitude"];

#[test]
fn what_is_no_model_is_refused() {
    let place = Place::new();
    let (model, out) = (model(), place.at("out.onnx"));
    for bad in place.nonsense(".onnx") {
        refused(&with(&[&bad, &out], &FAST));
        refused(&["inspect", &bad]);
        refused(&["calibrate", &bad, "-o", &place.at("s")]);
        refused(&["compare", &bad, &model, "--engine", "tract"]);
        refused(&["bench", &model, &bad, "--engine", "tract", "--runs", "1"]);
        refused(&with(&[&model, &out, "--mask", &bad], &FAST));
    }
    assert!(!Path::new(&out).exists() && !Path::new(&place.at("s")).exists());
}

#[test]
fn a_model_that_is_cut_short_is_refused() {
    let place = Place::new();
    let whole = std::fs::read(model()).unwrap();
    for part in 1..40 {
        let bad = place.put("cut.onnx", &whole[..whole.len() * part / 40]);
        let said = refused(&["inspect", &bad]);
        assert!(said.contains("cut.onnx"), "{said}");
    }
}

#[test]
fn what_is_no_data_is_refused() {
    let place = Place::new();
    let [texts, _, tokenizer] = texts();
    let (model, out) = (model(), place.at("out.onnx"));
    for bad in place.nonsense(".npz") {
        refused(&with(&[&model, &out, "--data", &bad], &FAST));
        refused(&[
            "calibrate",
            &model,
            "--data",
            &bad,
            "-o",
            &out,
            "--engine",
            "tract",
        ]);
    }
    for ending in [".jsonl", ".csv", ".txt"] {
        for bad in place.nonsense(ending) {
            // A line of anything is a text.
            let read = run(&with(
                &[
                    &texts,
                    &out,
                    "--data",
                    &bad,
                    "--tokenizer",
                    &tokenizer,
                    "--dry-run",
                ],
                &FAST,
            ));
            let code = read.status.code().unwrap_or(-1);
            assert!(code == 0 || ERRORS.contains(&code), "{bad}: {}", text(&read));
            assert!(!text(&read).contains("panicked"), "{bad}: {}", text(&read));
        }
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn what_is_no_tokenizer_mask_or_statistics_is_refused() {
    let place = Place::new();
    let [texts, data, _] = texts();
    let (model, out) = (model(), place.at("out.onnx"));
    for bad in place.nonsense(".json") {
        refused(&with(
            &[&texts, &out, "--data", &data, "--tokenizer", &bad],
            &FAST,
        ));
        refused(&with(&[&model, &out, "--mask", &bad], &FAST));
        refused(&with(&[&model, &out, "--stats", &bad], &FAST[..4]));
        refused(&["merge", &bad, &bad, "-o", &place.at("sum")]);
    }
    for ending in [".npz", ".npy"] {
        for bad in place.nonsense(ending) {
            refused(&with(&[&model, &out, "--mask", &bad], &FAST));
        }
    }
    assert!(!Path::new(&out).exists() && !Path::new(&place.at("sum")).exists());
}

/// An archive whose array of zeros takes `bytes` once it is unpacked.
fn bomb(path: &str, bytes: u64, shape: &str) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    zip.start_file(
        "pixel_values.npy",
        zip::write::SimpleFileOptions::default().large_file(true),
    )
    .unwrap();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..bytes >> 20 {
        zip.write_all(&zeros).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn an_archive_that_unfolds_without_end_is_refused() {
    let place = Place::new();
    let (model, path) = (model(), place.at("bomb.npz"));
    let out = place.at("out.onnx");
    // Sizes that are really there, and sizes that only the header has.
    for (bytes, shape) in [
        (1 << 30, "(268435456, 1, 1, 1)"),
        (1 << 30, "(64, 1, 4096, 1024)"),
        (1 << 20, "(9223372036854775807, 4, 4, 4)"),
        (1 << 20, "(4294967296, 4294967296, 4, 4)"),
        (1 << 20, "(1099511627776, 1, 8, 8)"),
    ] {
        bomb(&path, bytes, shape);
        let said = refused(&with(&[&model, &out, "--data", &path], &FAST));
        assert!(said.contains("pixel_values"), "{shape}: {said}");
    }
}

/// Every option that names an output, with each file that is read.
#[test]
fn no_output_is_ever_an_input() {
    let place = Place::new();
    let copy = |from: PathBuf, name: &str| {
        std::fs::copy(from, place.at(name)).unwrap();
        place.at(name)
    };
    let input = copy(fixture("digits-vit/model.onnx"), "in.onnx");
    let data = copy(fixture("digits-vit/calibration.npz"), "data.npz");
    let (stats, other) = (place.at("s.safetensors"), place.at("t.safetensors"));
    let done = run(&[
        "calibrate",
        &input,
        "--data",
        &data,
        "--engine",
        "tract",
        "-o",
        &stats,
        "--quiet",
    ]);
    assert!(done.status.success(), "{}", text(&done));
    std::fs::copy(&stats, &other).unwrap();
    symlink("in.onnx", place.at("link")).unwrap();
    std::fs::hard_link(&data, place.at("twin")).unwrap();
    let before: Vec<Vec<u8>> = [&input, &data, &stats, &other]
        .map(|p| std::fs::read(p).unwrap())
        .into();

    let (out, link, twin) = (place.at("out.onnx"), place.at("link"), place.at("twin"));
    let folder = place.at("folder");
    let cases: [&[&str]; 10] = [
        &["calibrate", &input, "--data", &data, "-o", &input],
        &["calibrate", &input, "--data", &data, "-o", &link],
        &["calibrate", &input, "--data", &data, "-o", &twin],
        &["merge", &stats, &other, "-o", &other],
        &[&input, &out, "--stats", &stats, "--report", &stats],
        &[&input, &out, "--stats", &stats, "--json", &stats],
        &[
            &input, &out, "--sweep", "0.8,0.6", "--data", &data, "--json", &link,
        ],
        &[
            &input, &out, "--sweep", "0.8,0.6", "--data", &data, "--report", &twin,
        ],
        &[&input, "--out-dir", &folder, "--data", &data, "--report", &input],
        &[&input, "--out-dir", &folder, "--data", &data, "--json", &twin],
    ];
    for case in cases {
        let said = refused(case);
        assert!(said.contains("is the same file as"), "{case:?}: {said}");
        let after: Vec<Vec<u8>> = [&input, &data, &stats, &other]
            .map(|p| std::fs::read(p).unwrap())
            .into();
        assert!(after == before, "{case:?} changed a file that it reads");
    }
}

/// A cache of latencies is only a cache, whatever it holds.
#[test]
fn a_damaged_latency_cache_does_not_stop_a_run() {
    let place = Place::new();
    let model = model();
    let folder = place.at("home");
    let cache = format!("{folder}/onnx-prune/latency.json");
    std::fs::create_dir_all(format!("{folder}/onnx-prune")).unwrap();
    let made = Command::new("mkfifo").arg(&cache).status();
    if !made.is_ok_and(|made| made.success()) {
        println!("skipped: no pipe can be made");
        return;
    }
    let out = place.at("out.onnx");
    let given = [&model, &out, "--latency-cache", &cache, "--speedup", "1.05x"];
    let few = [&FAST[..4], &["--samples", "8", "--probe", "4"]].concat();
    let result = run(&with(&given, &few));
    // Whether so small a model gets faster is another matter.
    let code = result.status.code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {}", text(&result));
}

#[test]
fn an_array_of_the_wrong_type_is_refused() {
    let place = Place::new();
    let data = place.at("data.npz");
    for shape in [
        vec![0, 1, 8, 8],
        vec![2, 3, 8, 8],
        vec![2],
        vec![],
        vec![2, 1, 0, 8],
    ] {
        let zeros = vec![0.0; shape.iter().product()];
        npz::write(
            Path::new(&data),
            [("pixel_values", &Tensor::f32(shape.clone(), zeros))],
        )
        .unwrap();
        let said = refused(&[
            "calibrate",
            &model(),
            "--data",
            &data,
            "-o",
            &place.at("s"),
            "--engine",
            "tract",
        ]);
        assert!(said.contains("data.npz"), "{shape:?}: {said}");
    }
}
