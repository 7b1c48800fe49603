//! Nothing is lost: inputs are never changed, and outputs appear together or not
//! at all, whatever stops the program.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use onnx_prune::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use onnx_prune::onnx::{self, External, SaveOptions};
use onnx_prune::{axes, graph, mask};
use rand::{RngExt, SeedableRng};

use crate::common::{fixture, text};

/// What is in a folder: names, and for regular files their content.
type Listing = BTreeMap<String, Vec<u8>>;

fn listing(folder: &Path) -> Listing {
    let mut found = Listing::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let content = if path.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        found.insert(name, content);
    }
    found
}

/// A folder with the input, which keeps its weights in a side file.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = onnx::load(&fixture("digits-vit/model.onnx")).unwrap();
        let options = SaveOptions {
            external: External::Always,
            inputs: Vec::new(),
            ..SaveOptions::default()
        };
        onnx::save(&model.proto, &folder.path().join("in.onnx"), &options).unwrap();
        Place { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn listing(&self) -> Listing {
        listing(self.folder.path())
    }

    /// A run of less than a second, and what it is called by.
    fn command(&self, program: &[&str], input: &str, output: &Path, extra: &[&str]) -> Command {
        let (input, data) = (self.at(input), fixture("digits-vit/calibration.npz"));
        let mut words: Vec<&str> = program.to_vec();
        words.push(env!("CARGO_BIN_EXE_onnx-prune"));
        words.extend([input.to_str().unwrap(), output.to_str().unwrap()]);
        words.extend(["--threads", "1", "--quiet", "--data", data.to_str().unwrap()]);
        words.extend(extra);
        if !extra.contains(&"--engine") {
            words.extend(["--engine", "tract"]);
        }
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, output: &Path, extra: &[&str]) -> Output {
        self.command(&[], "in.onnx", output, extra).output().unwrap()
    }
}

const FAST: [&str; 4] = ["--method", "magnitude", "--samples", "8"];

/// Refused, with everything as it was.
fn refused(place: &Place, output: &Path, extra: &[&str], message: &str) {
    let before = place.listing();
    let extra: Vec<&str> = FAST.iter().chain(extra).copied().collect();
    let result = place.run(output, &extra);
    assert_eq!(result.status.code(), Some(2), "{}", text(&result));
    assert!(text(&result).contains(message), "{message}: {}", text(&result));
    assert!(place.listing() == before, "{message}: the folder changed");
}

#[test]
fn the_input_is_refused_as_an_output_under_any_name() {
    let place = Place::new();
    std::fs::hard_link(place.at("in.onnx"), place.at("hard.onnx")).unwrap();
    symlink("in.onnx", place.at("soft.onnx")).unwrap();
    std::fs::hard_link(place.at("in.onnx.data"), place.at("hard.data")).unwrap();
    let same = "is the same file as the input";
    for name in ["in.onnx", "hard.onnx", "soft.onnx", "./in.onnx"] {
        refused(&place, &place.at(name), &[], same);
    }
    for name in ["in.onnx.data", "hard.data"] {
        refused(
            &place,
            &place.at(name),
            &[],
            "the same file as the input's external data",
        );
    }
    let out = place.at("out.onnx");
    for name in ["in.onnx", "hard.onnx", "soft.onnx"] {
        let path = place.at(name);
        refused(&place, &out, &["--json", path.to_str().unwrap()], same);
    }
    let path = place.at("out.onnx");
    refused(
        &place,
        &out,
        &["--json", path.to_str().unwrap()],
        "would both be written",
    );
    std::fs::hard_link(place.at("in.onnx"), place.at("mask.json")).unwrap();
    let path = place.at("mask.json");
    refused(&place, &out, &["--export-mask", path.to_str().unwrap()], same);
    // Several files into the folder that they come from.
    let folder = place.folder.path().to_str().unwrap().to_owned();
    let before = place.listing();
    let result = Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
        .args([place.at("in.onnx"), place.at("hard.onnx")])
        .args(["--out-dir", &folder, "--engine", "tract", "--method", "magnitude"])
        .output()
        .unwrap();
    assert_eq!(result.status.code(), Some(2), "{}", text(&result));
    assert!(text(&result).contains(same), "{}", text(&result));
    assert!(place.listing() == before);
}

#[test]
fn an_output_beside_its_input_shares_nothing_with_it() {
    let place = Place::new();
    // The input's side file has the name that the output's would get.
    let model = onnx::load(&place.at("in.onnx")).unwrap().proto;
    let options = SaveOptions {
        external: External::Always,
        inputs: Vec::new(),
        ..SaveOptions::default()
    };
    onnx::save(&model, &place.at("out.onnx"), &options).unwrap();
    std::fs::rename(place.at("out.onnx"), place.at("in.onnx")).unwrap();
    std::fs::remove_file(place.at("in.onnx.data")).unwrap();
    let before = place.listing();
    let result = place.run(&place.at("out.onnx"), &FAST);
    assert!(result.status.success(), "{}", text(&result));
    let after = place.listing();
    let names: Vec<&str> = after.keys().map(String::as_str).collect();
    assert_eq!(names, ["in.onnx", "out.onnx", "out.onnx.1.data", "out.onnx.data"]);
    assert!(before.iter().all(|(name, content)| after[name] == *content));
    assert!(onnx::load(&place.at("in.onnx")).unwrap().proto == model);
    onnx::validate(&onnx::load(&place.at("out.onnx")).unwrap().proto).unwrap();
}

#[test]
fn a_failure_of_one_output_is_none_of_any() {
    let place = Place::new();
    std::fs::write(place.at("out.onnx"), "older").unwrap();
    std::fs::create_dir(place.at("folder")).unwrap();
    let before = place.listing();
    let out = place.at("out.onnx");
    let missing = place.at("missing/report.json");
    let folder = place.at("folder");
    for (option, path, code) in [
        ("--json", &missing, 2),
        ("--json", &folder, 2),
        ("--export-mask", &missing, 2),
    ] {
        let extra: Vec<&str> = FAST.into_iter().chain([option, path.to_str().unwrap()]).collect();
        let result = place.run(&out, &extra);
        assert_eq!(result.status.code(), Some(code), "{option}: {}", text(&result));
        assert!(text(&result).contains("cannot write"), "{}", text(&result));
        assert!(place.listing() == before, "{option}");
    }
    for (path, code) in [(missing, 2), (folder, 2)] {
        let result = place.run(&path, &FAST);
        assert_eq!(result.status.code(), Some(code), "{}", text(&result));
        assert!(place.listing() == before);
    }
}

/// Root may write everywhere, so what it starts here runs as somebody else.
#[test]
fn a_read_only_folder_is_known_before_the_work() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let place = Place::new();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let folder = place.at("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("out.onnx"), "older").unwrap();
    mode(&folder, 0o555);
    let is_root = std::fs::write(folder.join("probe"), "").is_ok();
    let _ = std::fs::remove_file(folder.join("probe"));

    // All that is read lies where anybody can read it.
    mode(place.folder.path(), 0o755);
    let (program, data) = (place.at("program"), place.at("data.npz"));
    std::fs::copy(env!("CARGO_BIN_EXE_onnx-prune"), &program).unwrap();
    std::fs::copy(fixture("digits-vit/calibration.npz"), &data).unwrap();
    let run = |output: &Path, extra: &[&str]| {
        let mut command = Command::new(&program);
        command.arg(place.at("in.onnx")).arg(output);
        command.args(["--engine", "tract", "--threads", "1", "--quiet", "--data"]);
        command.arg(&data).args(extra).env("HOME", place.folder.path());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().unwrap()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    mode(elsewhere.path(), 0o777);
    let fine = elsewhere.path().join("out.onnx");
    let report = folder.join("r.json");
    let tries: [(PathBuf, Vec<&str>); 2] = [
        (folder.join("out.onnx"), FAST.to_vec()),
        (
            fine.clone(),
            [&FAST[..], &["--json", report.to_str().unwrap()]].concat(),
        ),
    ];
    for (output, extra) in tries {
        let result = run(&output, &extra);
        assert_eq!(result.status.code(), Some(5), "{}", text(&result));
        let said = text(&result);
        assert!(said.contains("no file can be made in"), "{said}");
        assert_eq!(
            listing(&folder),
            Listing::from([("out.onnx".into(), b"older".to_vec())])
        );
        assert!(listing(elsewhere.path()).is_empty(), "one of two files appeared");
    }
    // The same run where it may write: nothing else stood in its way.
    let result = run(&fine, &FAST);
    assert!(result.status.success(), "{}", text(&result));
    mode(&folder, 0o755);
}

/// A disk of a few hundred kilobytes, where the user may mount one.
#[test]
fn a_disk_that_is_really_full_leaves_the_old_files() {
    let place = Place::new();
    let (disk, copy) = (place.at("disk"), place.at("copy"));
    std::fs::create_dir(&disk).unwrap();
    let whole = place.at("out.onnx");
    let result = place.run(&whole, &FAST);
    assert!(result.status.success(), "{}", text(&result));
    let size = |name: &str| std::fs::metadata(place.at(name)).unwrap().len();
    let needed = (size("out.onnx") + size("out.onnx.data")) / 1024;

    let run = |kilobytes: u64| {
        // In a mount namespace of its own: it is gone with the process.
        let script = format!(
            "mount -t tmpfs -o size={kilobytes}k tmpfs '{disk}' || exit 99
             printf older > '{disk}/out.onnx'; printf older > '{disk}/out.onnx.data'
             \"$@\"; code=$?; mkdir '{copy}'; cp -a '{disk}/.' '{copy}/'; exit $code",
            disk = disk.display(),
            copy = copy.display()
        );
        let _ = std::fs::remove_dir_all(&copy);
        let words = ["unshare", "-m", "sh", "-c", &script, "sh"];
        let ended = place
            .command(&words, "in.onnx", &disk.join("out.onnx"), &FAST)
            .output();
        ended
            .ok()
            .filter(|ended| ended.status.code() != Some(99) && copy.exists())
    };
    let old = Listing::from(["out.onnx", "out.onnx.data"].map(|n| (n.to_owned(), b"older".to_vec())));
    for kilobytes in [16, needed / 2, needed.saturating_sub(16)] {
        let Some(result) = run(kilobytes) else {
            println!("skipped: this user may not mount a file system");
            return;
        };
        assert_eq!(
            result.status.code(),
            Some(5),
            "{kilobytes} KiB: {}",
            text(&result)
        );
        assert!(text(&result).contains("cannot write"), "{}", text(&result));
        assert!(
            listing(&copy) == old,
            "{kilobytes} KiB: an old file is not as it was"
        );
    }
    // With room for both there is nothing else that fails.
    let result = run(4 * needed).unwrap();
    assert!(result.status.success(), "{}", text(&result));
    assert!(listing(&copy)["out.onnx"] != b"older");
}

/// A device that takes nothing: it is written to as it is, and no model appears.
#[test]
fn a_full_device_is_an_error() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let place = Place::new();
    let before = place.listing();
    for extra in [["--json", "/dev/full"], ["--report", "/dev/full"]] {
        let result = place.run(&place.at("out.onnx"), &[&FAST[..], &extra].concat());
        assert_eq!(result.status.code(), Some(5), "{}", text(&result));
        assert!(text(&result).contains("/dev/full"), "{}", text(&result));
        assert!(place.listing() == before);
    }
}

/// A limit on the size of files stands in for a full disk.
#[test]
fn a_full_disk_leaves_the_old_files() {
    let place = Place::new();
    let extra = ["--json", "r.json", "--export-mask", "m.npz"].map(|n| match n.starts_with("--") {
        true => n.to_owned(),
        false => place.at(n).to_str().unwrap().to_owned(),
    });
    let extra: Vec<&str> = FAST.into_iter().chain(extra.iter().map(String::as_str)).collect();
    let out = place.at("out.onnx");
    let result = place.run(&out, &extra);
    assert!(result.status.success(), "{}", text(&result));
    let whole = place.listing();
    let names = ["out.onnx", "out.onnx.data", "r.json", "m.npz"];
    for name in names {
        std::fs::write(place.at(name), "older").unwrap();
    }
    let before = place.listing();
    // Just too little for each of the files; in blocks of 512 bytes.
    let limits = names.map(|name| (whole[name].len() as u64 - 1) / 512);
    let limits = limits.iter().map(|blocks| (*blocks, true));
    for (blocks, reported) in limits.chain([(100, false)]) {
        let ignore = if reported { "trap '' XFSZ;" } else { "" };
        let script = format!("ulimit -c 0; ulimit -f {blocks}; {ignore} exec \"$@\"");
        let result = place
            .command(&["sh", "-c", &script, "sh"], "in.onnx", &out, &extra)
            .output()
            .unwrap();
        let mut after = place.listing();
        if reported {
            assert_eq!(result.status.code(), Some(5), "{blocks}: {}", text(&result));
            assert!(text(&result).contains("cannot write"), "{}", text(&result));
        } else {
            // The signal ends the process there and then.
            assert!(result.status.signal().is_some(), "{}", text(&result));
            after.retain(|name, _| !name.starts_with(".onnx-prune-"));
        }
        assert!(after == before, "{blocks} blocks");
    }
    let result = place.run(&out, &extra);
    assert!(result.status.success(), "{}", text(&result));
    assert!(place.listing()["out.onnx"] != b"older");
}

#[test]
fn an_interrupt_leaves_the_old_files() {
    let place = Place::new();
    std::fs::write(place.at("out.onnx"), "older").unwrap();
    let before = place.listing();
    for signal in ["-INT", "-TERM"] {
        let mut command = place.command(&[], "in.onnx", &place.at("out.onnx"), &["--effort", "high"]);
        let child = command.spawn().unwrap();
        // Long after the handler is set, long before the end.
        std::thread::sleep(Duration::from_millis(700));
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap();
        let result = child.wait_with_output().unwrap();
        assert!(sent.success(), "it ended before the signal: {}", text(&result));
        assert_eq!(result.status.code(), Some(130), "{}", text(&result));
        assert!(text(&result).contains("interrupted"), "{}", text(&result));
        assert!(place.listing() == before);
    }
}

/// The model with a loop of a thousand million rounds at its end: one run of it takes longer
/// than anybody waits.
fn endless(place: &Place) {
    let mut model = onnx::load(&place.at("in.onnx")).unwrap().proto;
    let node = |op: &str, inputs: &[&str], outputs: &[&str]| NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|s| (*s).into()).collect(),
        output: outputs.iter().map(|s| (*s).into()).collect(),
        ..NodeProto::default()
    };
    let value = |(name, elem): (&str, i32)| ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(elem),
                // A number of its own for the rounds and whether to go on.
                shape: (elem != 1).then(TensorShapeProto::default),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    };
    let body = GraphProto {
        name: Some("body".into()),
        node: vec![
            node("Identity", &["going"], &["still"]),
            node("Tanh", &["state"], &["next"]),
        ],
        input: [("round", 7), ("going", 9), ("state", 1)].map(value).into(),
        output: [("still", 9), ("next", 1)].map(value).into(),
        ..GraphProto::default()
    };
    let graph = model.graph.as_mut().unwrap();
    let end = graph.output[0].name.clone().unwrap();
    for node in &mut graph.node {
        node.output
            .iter_mut()
            .filter(|o| **o == end)
            .for_each(|o| *o = "short".into());
    }
    graph.initializer.push(TensorProto {
        name: Some("rounds".into()),
        data_type: Some(7),
        int64_data: vec![1_000_000_000],
        ..TensorProto::default()
    });
    let mut endless = node("Loop", &["rounds", "", "short"], &[&end]);
    endless.attribute.push(AttributeProto {
        name: Some("body".into()),
        r#type: Some(5),
        g: Some(body),
        ..AttributeProto::default()
    });
    graph.node.push(endless);
    onnx::save(&model, &place.at("endless.onnx"), &SaveOptions::default()).unwrap();
}

#[test]
fn an_interrupt_ends_a_run_that_does_not_listen() {
    let place = Place::new();
    endless(&place);
    let temporary = place.at("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let before = place.listing();
    // The built-in engine does not take loops.
    if crate::common::engine().is_none() {
        return;
    }
    let mut command = place.command(&[], "endless.onnx", &place.at("out.onnx"), &["--engine", "ort"]);
    let child = command.env("TMPDIR", &temporary).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let started = Instant::now();
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    let result = child.wait_with_output().unwrap();
    assert!(sent.unwrap().success(), "{}", text(&result));
    assert_eq!(result.status.code(), Some(130), "{}", text(&result));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(place.listing() == before);
    // The engine has a file of its own there.
    let left = listing(&temporary);
    assert!(
        left.keys().all(|name| !name.contains("onnx-prune")),
        "{:?}",
        left.keys()
    );
}

/// The real program, killed at 50 random moments, half of them while it writes.
#[test]
fn killed_at_any_moment() {
    const ROUNDS: usize = 50;
    let place = Place::new();
    let out = place.at("out.onnx");
    let (report, masks) = (place.at("r.json"), place.at("m.json"));
    let extra = |flops| {
        let mut words: Vec<&str> = FAST.to_vec();
        words.extend(["--flops", flops]);
        words.extend(["--json", report.to_str().unwrap()]);
        words.extend(["--export-mask", masks.to_str().unwrap()]);
        words
    };
    // The old output, whole; and how long a run takes.
    let result = place.run(&out, &extra("0.9"));
    assert!(result.status.success(), "{}", text(&result));
    let old = place.listing();
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let result = place.run(&out, &extra("0.5"));
        assert!(result.status.success(), "{}", text(&result));
        times.push(start.elapsed());
    }
    times.sort();
    let (typical, new) = (times[1], onnx::load(&out).unwrap().proto);
    let restore = || {
        for name in place
            .listing()
            .keys()
            .filter(|name| !name.starts_with(".onnx-prune-"))
        {
            std::fs::remove_file(place.at(name)).unwrap();
        }
        for (name, content) in &old {
            std::fs::write(place.at(name), content).unwrap();
        }
    };
    restore();
    let before = onnx::load(&out).unwrap().proto;
    let analysis = {
        let model = onnx::load(&place.at("in.onnx")).unwrap().proto;
        axes::analyse(&graph::build(&model).unwrap(), axes::AnalysisOptions::default())
    };
    let open = analysis.indexed().map(|(g, _)| (g, 0)).collect();

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(50);
    let (mut killed, mut replaced) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = place
            .command(&[], "in.onnx", &out, &extra("0.5"))
            .spawn()
            .unwrap();
        let start = Instant::now();
        let moment = match round % 2 {
            0 => typical.mul_f64(rng.random_range(0.0..1.0)),
            _ => {
                // From when the first temporary file has something in it.
                while start.elapsed() < 20 * typical {
                    if let Ok(Some(_)) = child.try_wait() {
                        break;
                    }
                    let names = std::fs::read_dir(place.folder.path()).unwrap();
                    let large = names.flatten().any(|e| {
                        e.file_name().to_string_lossy().starts_with(".onnx-prune-")
                            && e.metadata().is_ok_and(|m| m.len() > 0)
                    });
                    if large {
                        break;
                    }
                    std::thread::yield_now();
                }
                start.elapsed() + Duration::from_micros(rng.random_range(0..6_000))
            }
        };
        std::thread::sleep(moment.saturating_sub(start.elapsed()));
        let _ = child.kill();
        let status = child.wait().unwrap();
        killed += usize::from(status.signal().is_some());

        let now = place.listing();
        for name in ["in.onnx", "in.onnx.data"] {
            assert!(now[name] == old[name], "kill {round}: {name} changed");
        }
        let found = onnx::load(&out).unwrap_or_else(|e| panic!("kill {round}: {}", e.chain()));
        onnx::validate(&found.proto).unwrap();
        assert!(
            found.proto == new || found.proto == before,
            "kill {round}: neither the old nor the new model"
        );
        let told: serde_json::Value =
            serde_json::from_slice(&now["r.json"]).unwrap_or_else(|e| panic!("kill {round}: report: {e}"));
        mask::file::read(&masks, &analysis, &open).unwrap();
        if found.proto == new {
            replaced += 1;
            assert_eq!(
                told["budget"]["asked"], 0.5,
                "kill {round}: the model came before its report"
            );
            assert!(now["m.json"] != old["m.json"], "kill {round}: or before its mask");
        } else {
            assert!(now["out.onnx"] == old["out.onnx"] && now["out.onnx.data"] == old["out.onnx.data"]);
        }
        restore();
    }
    println!("{killed} of {ROUNDS} were killed while they ran, {replaced} outputs were new");
    assert!(killed >= ROUNDS / 2, "only {killed} were killed in time");

    // What the dead left goes with the next run, once it is old enough.
    let leftovers = |place: &Place| -> Vec<String> {
        let names = place.listing().into_keys();
        names.filter(|name| name.starts_with(".onnx-prune-")).collect()
    };
    println!("{} temporary files were left", leftovers(&place).len());
    for name in leftovers(&place) {
        let file = std::fs::File::options()
            .write(true)
            .open(place.at(&name))
            .unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(60))
            .unwrap();
    }
    let result = place.run(&out, &extra("0.5"));
    assert!(result.status.success(), "{}", text(&result));
    assert_eq!(leftovers(&place), Vec::<String>::new());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for extra in [&["--json"][..], &[]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_onnx-prune"))
            .arg("inspect")
            .arg(fixture("digits-vit/model.onnx"))
            .args(extra)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let result = child.wait_with_output().unwrap();
        assert_eq!(result.status.code(), Some(0), "{}", text(&result));
        assert_eq!(text(&result), "");
    }
}
