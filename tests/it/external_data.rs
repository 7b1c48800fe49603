//! Side files: read from where they may be, written whole or not at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::models::*;
use onnx_prune::onnx::proto::*;
use onnx_prune::onnx::*;

fn always(inputs: &[PathBuf]) -> SaveOptions {
    SaveOptions {
        external: External::Always,
        inputs: inputs.to_vec(),
        ..SaveOptions::default()
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    }
}

/// A model whose one tensor, four floats, lies at `location`.
fn pointing_at(entries: &[(&str, &str)]) -> ModelProto {
    let mut graph = graph(&["x"], &["y"], vec![node("MatMul", "m", &["x", "w"], &["y"])]);
    graph.initializer.push(TensorProto {
        name: Some("w".into()),
        dims: vec![4],
        data_type: Some(1),
        data_location: Some(1),
        external_data: entries.iter().map(|(key, value)| entry(key, value)).collect(),
        ..TensorProto::default()
    });
    model(graph)
}

/// Writes the messages as they are.
fn write_as_is(proto: &ModelProto, path: &Path) {
    std::fs::write(path, encode(proto)).unwrap();
}

fn load_error(proto: &ModelProto, path: &Path) -> String {
    write_as_is(proto, path);
    let chain = load(path).unwrap_err().chain();
    assert!(chain.contains("tensor \"w\""), "{chain}");
    chain
}

#[test]
fn zoo_models_with_side_files_keep_their_tensors() {
    for name in ["bert-external-all", "bert-external-some", "bertqa-external-each"] {
        let Some(path) = zoo_case(name) else { continue };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.onnx");
        let inside = folder.path().join("inside.onnx");
        let model = load(&path).unwrap();
        assert!(!model.notes.external_files.is_empty());
        let initializers = model.proto.graph.iter().flat_map(|g| &g.initializer);
        for t in initializers {
            assert!(t.external_data.is_empty() && t.data_location.is_none());
            tensor(t).unwrap();
        }
        // Outside stays outside, and can be taken in and put out again.
        let saved = save(&model.proto, &out, &SaveOptions::for_model(&model)).unwrap();
        assert_eq!(saved.files.len(), 2);
        assert_eq!(saved.files[1].0, folder.path().join("out.onnx.data"));
        let again = load(&out).unwrap();
        assert_eq!(again.proto, model.proto);
        save(&again.proto, &inside, &SaveOptions::default()).unwrap();
        let whole = load(&inside).unwrap();
        assert!(whole.notes.external_files.is_empty());
        assert_eq!(whole.proto, model.proto);
        save(&whole.proto, &out, &always(&[])).unwrap();
        assert_eq!(load(&out).unwrap().proto, model.proto);
        assert_eq!(
            listing(folder.path()),
            ["inside.onnx", "out.onnx", "out.onnx.data"]
        );
        assert_ne!(again.sha256().unwrap(), whole.sha256().unwrap());
    }
}

#[test]
fn offsets_are_aligned_and_lengths_exact() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.onnx");
    let mut proto = layers(1, 3);
    let inner = graph(&[], &["z"], vec![]);
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer.push(weights("small", &[10], 1));
    graph.initializer.push(weights("odd", &[257], 2));
    graph.initializer.push(weights("paged", &[20_000], 3));
    // The same bytes twice in memory are once in the file.
    let shared = graph.initializer[0].clone();
    graph.initializer.push(TensorProto {
        name: Some("shared".into()),
        ..shared
    });
    graph.node.push(NodeProto {
        attribute: vec![subgraph(
            "then_branch",
            GraphProto {
                initializer: vec![weights("z", &[500], 4)],
                ..inner
            },
        )],
        ..node("If", "if", &["x0"], &["c"])
    });
    let saved = save(&proto, &out, &always(&[])).unwrap();
    let written = from_raw(&out);
    let graph = written.graph.as_ref().unwrap();
    let place = |t: &TensorProto| {
        let get = |key| {
            t.external_data
                .iter()
                .find(|e| e.key() == key)
                .unwrap()
                .value()
                .parse::<u64>()
                .unwrap()
        };
        (get("offset"), get("length"))
    };
    let by_name = |name: &str| graph.initializer.iter().find(|t| t.name() == name).unwrap();
    assert!(by_name("small").external_data.is_empty());
    assert_eq!(place(by_name("odd")).0 % 64, 0);
    assert_eq!(place(by_name("paged")).0 % 4096, 0);
    assert_eq!(place(by_name("paged")).1, 80_000);
    assert_eq!(place(by_name("shared")), place(by_name("up0")));
    let branch = graph.node.last().unwrap().attribute[0].g.as_ref().unwrap();
    assert_eq!(branch.initializer[0].external_data[0].value(), "m.onnx.data");
    assert_eq!(saved.files[1].1, saved.files[1].0.metadata().unwrap().len());
    assert_eq!(load(&out).unwrap().proto, proto);
}

fn from_raw(path: &Path) -> ModelProto {
    use prost::Message;
    ModelProto::decode(bytes::Bytes::from(std::fs::read(path).unwrap())).unwrap()
}

#[test]
fn side_files_in_subfolders_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let values: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(folder.path().join("sub/w"), &values).unwrap();
    let path = folder.path().join("m.onnx");
    let mut proto = pointing_at(&[("location", "sub/w"), ("offset", "16"), ("length", "16")]);
    let second = pointing_at(&[("location", "./sub/w")])
        .graph
        .unwrap()
        .initializer
        .remove(0);
    proto.graph.as_mut().unwrap().initializer.push(TensorProto {
        name: Some("v".into()),
        ..second
    });
    write_as_is(&proto, &path);
    let model = load(&path).unwrap();
    assert_eq!(
        model.notes.external_files,
        [folder.path().canonicalize().unwrap().join("sub/w")]
    );
    let tensors = &model.proto.graph.as_ref().unwrap().initializer;
    assert_eq!(
        tensor(&tensors[0]).unwrap().as_f32().unwrap(),
        [4.0, 5.0, 6.0, 7.0]
    );
    assert_eq!(
        tensor(&tensors[1]).unwrap().as_f32().unwrap(),
        [0.0, 1.0, 2.0, 3.0]
    );
}

#[test]
fn nothing_outside_the_folder_is_read() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("secret"), [0; 16]).unwrap();
    let folder = outer.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("m.onnx");
    let absolute = outer.path().join("secret");
    for location in [
        "../secret",
        "x/../../secret",
        "./../secret",
        absolute.to_str().unwrap(),
        "..\\secret",
        "\\secret",
        "C:secret",
        "C:\\secret",
        "",
        "a\0b",
    ] {
        let error = load_error(&pointing_at(&[("location", location)]), &path);
        assert!(
            error.contains("not a relative path inside"),
            "{location}: {error}"
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&absolute, folder.join("link")).unwrap();
        std::os::unix::fs::symlink(outer.path(), folder.join("up")).unwrap();
        for location in ["link", "up/secret"] {
            let error = load_error(&pointing_at(&[("location", location)]), &path);
            assert!(error.contains("leads out of the model's folder"), "{error}");
        }
        // A link that stays inside is no harm.
        std::fs::write(folder.join("w"), [0; 16]).unwrap();
        std::os::unix::fs::symlink("w", folder.join("inside")).unwrap();
        write_as_is(&pointing_at(&[("location", "inside")]), &path);
        load(&path).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn download_caches_that_link_every_file_are_read() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshot"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    write_as_is(&pointing_at(&[("location", "m.onnx.data")]), &blobs.join("aa"));
    std::fs::write(blobs.join("bb"), [0; 16]).unwrap();
    symlink("../blobs/aa", snapshot.join("m.onnx")).unwrap();
    symlink("../blobs/bb", snapshot.join("m.onnx.data")).unwrap();
    load(&snapshot.join("m.onnx")).unwrap();
}

#[test]
fn bad_references_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(folder.path().join("w"), [0; 20]).unwrap();
    let error = |entries: &[(&str, &str)]| load_error(&pointing_at(entries), &path);
    let at = ("location", "w");
    assert!(error(&[]).contains("no location"));
    assert!(error(&[at, at]).contains("location twice"));
    assert!(error(&[("location", "none")]).contains("cannot open"));
    assert!(error(&[("location", ".")]).contains("not a regular file"));
    assert!(error(&[at, ("offset", "8")]).contains("outside"));
    assert!(error(&[at, ("offset", "18446744073709551615")]).contains("outside"));
    assert!(error(&[at, ("offset", "-4")]).contains("not a number"));
    assert!(error(&[at, ("offset", "99999999999999999999")]).contains("not a number"));
    assert!(error(&[at, ("length", "20")]).contains("need 16 bytes"));
    let edited = |edit: fn(&mut TensorProto)| {
        let mut proto = pointing_at(&[at]);
        edit(&mut proto.graph.as_mut().unwrap().initializer[0]);
        load_error(&proto, &path)
    };
    assert!(edited(|t| t.dims = vec![i64::MAX, 8]).contains("too many"));
    assert!(edited(|t| t.dims = vec![-4]).contains("negative"));
    assert!(edited(|t| t.data_type = Some(8)).contains("no raw form"));
    assert!(edited(|t| t.raw_data = Some(vec![0; 16].into())).contains("both"));
    assert!(
        from_bytes(encode(&pointing_at(&[at])).into())
            .unwrap_err()
            .chain()
            .contains("from memory")
    );
    let saved = save(
        &pointing_at(&[at]),
        &folder.path().join("o.onnx"),
        &SaveOptions::default(),
    );
    assert!(saved.unwrap_err().chain().contains("not loaded"));
    #[cfg(unix)]
    {
        // A named pipe would block for ever.
        let pipe = folder.path().join("pipe");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        assert!(error(&[("location", "pipe")]).contains("not a regular file"));
        assert!(load(&pipe).unwrap_err().chain().contains("not a regular file"));
    }
}

#[test]
fn failures_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let proto = layers(2, 5);
    let is_folder = folder.path().join("folder.onnx");
    std::fs::create_dir(&is_folder).unwrap();
    for options in [SaveOptions::default(), always(&[])] {
        let error = save(&proto, &is_folder, &options).unwrap_err();
        assert!(error.chain().contains("it is a folder"), "{}", error.chain());
        assert_eq!(listing(folder.path()), ["folder.onnx"]);
        let missing = save(&proto, &folder.path().join("no/m.onnx"), &options).unwrap_err();
        assert_eq!(missing.exit_code(), 2, "{}", missing.chain());
        assert_eq!(listing(folder.path()), ["folder.onnx"]);
        assert_eq!(listing(&is_folder), [""; 0]);
    }
    assert!(save(&proto, Path::new("/"), &SaveOptions::default()).is_err());
    #[cfg(target_os = "linux")]
    {
        assert!(save(&proto, Path::new("/dev/null"), &SaveOptions::default()).is_err());
        // No new files can be made here, whoever asks.
        let error = save(&proto, Path::new("/proc/self/m.onnx"), &SaveOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{}", error.chain());
    }
    // The side file has its name already when the model's turns out to be a
    // folder's (the slash at the end), which does not exist.
    let slash = folder.path().join("m.onnx/");
    let error = save(&proto, &slash, &always(&[])).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{}", error.chain());
    assert_eq!(listing(folder.path()), ["folder.onnx"]);
}

#[test]
fn saving_over_the_input_leaves_the_loaded_model_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let original = layers(100, 7);
    save(&original, &path, &SaveOptions::default()).unwrap();
    let loaded = load(&path).unwrap();
    let mut changed = loaded.proto.clone();
    changed.producer_name = Some("changed".into());
    changed.graph.as_mut().unwrap().initializer.remove(0);
    save(&changed, &path, &SaveOptions::for_model(&loaded)).unwrap();
    assert_eq!(load(&path).unwrap().proto, changed);
    assert_eq!(loaded.proto, original, "the map shows the old file");
    assert_eq!(listing(folder.path()), ["m.onnx"]);

    // With side files: the input's own is never written over or removed.
    let path = folder.path().join("e.onnx");
    save(&original, &path, &always(&[])).unwrap();
    let loaded = load(&path).unwrap();
    save(&changed, &path, &SaveOptions::for_model(&loaded)).unwrap();
    assert_eq!(load(&path).unwrap().proto, changed);
    assert_eq!(loaded.proto, original);
    assert_eq!(
        listing(folder.path()),
        ["e.onnx", "e.onnx.1.data", "e.onnx.data", "m.onnx"]
    );
}

#[test]
#[cfg(unix)]
fn links_to_the_input_are_replaced_and_the_input_is_not() {
    for external in [External::Auto, External::Always] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let original = layers(100, 8);
        save(
            &original,
            &at("in.onnx"),
            &SaveOptions {
                external,
                inputs: vec![],
                ..SaveOptions::default()
            },
        )
        .unwrap();
        std::fs::hard_link(at("in.onnx"), at("hard.onnx")).unwrap();
        std::os::unix::fs::symlink("in.onnx", at("soft.onnx")).unwrap();
        let hash = sha256(&at("in.onnx"), &[]).unwrap();
        let loaded = load(&at("in.onnx")).unwrap();
        let mut changed = loaded.proto.clone();
        changed.graph.as_mut().unwrap().initializer.remove(0);
        for out in ["hard.onnx", "soft.onnx"] {
            save(&changed, &at(out), &SaveOptions::for_model(&loaded)).unwrap();
            assert!(at(out).symlink_metadata().unwrap().is_file());
            assert_eq!(load(&at(out)).unwrap().proto, changed);
            assert_eq!(sha256(&at("in.onnx"), &[]).unwrap(), hash);
            assert_eq!(load(&at("in.onnx")).unwrap().proto, original);
        }
        assert_eq!(loaded.proto, original);
    }
}

#[test]
fn an_input_whose_side_file_has_the_output_s_name_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = layers(100, 9);
    save(&original, &at("out.onnx"), &always(&[])).unwrap();
    // The input is another file with the same side file.
    std::fs::copy(at("out.onnx"), at("in.onnx")).unwrap();
    let loaded = load(&at("in.onnx")).unwrap();
    let changed = layers(100, 10);
    save(&changed, &at("out.onnx"), &SaveOptions::for_model(&loaded)).unwrap();
    assert_eq!(load(&at("in.onnx")).unwrap().proto, original);
    assert_eq!(load(&at("out.onnx")).unwrap().proto, changed);
}

#[test]
fn saving_again_replaces_the_old_pair() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let input = [at("elsewhere.onnx")];
    std::fs::write(at("other.data"), b"not ours").unwrap();
    save(&layers(3, 1), &at("m.onnx"), &always(&input)).unwrap();
    let first = std::fs::read(at("m.onnx")).unwrap();
    // The same again: the same bytes under the same names.
    save(&layers(3, 1), &at("m.onnx"), &always(&input)).unwrap();
    assert_eq!(std::fs::read(at("m.onnx")).unwrap(), first);
    assert_eq!(listing(folder.path()), ["m.onnx", "m.onnx.data", "other.data"]);
    // Other weights: the new side file is there before the old one goes.
    save(&layers(3, 2), &at("m.onnx"), &always(&input)).unwrap();
    assert_eq!(listing(folder.path()), ["m.onnx", "m.onnx.1.data", "other.data"]);
    assert_eq!(load(&at("m.onnx")).unwrap().proto, layers(3, 2));
    // And inside again: no side file remains.
    let inside = SaveOptions {
        external: External::Auto,
        inputs: input.to_vec(),
        ..SaveOptions::default()
    };
    save(&layers(3, 3), &at("m.onnx"), &inside).unwrap();
    assert_eq!(listing(folder.path()), ["m.onnx", "other.data"]);
    // A name that is taken by someone else's file is left alone.
    std::fs::write(at("m.onnx.data"), b"someone else's").unwrap();
    save(&layers(3, 4), &at("m.onnx"), &always(&input)).unwrap();
    assert_eq!(std::fs::read(at("m.onnx.data")).unwrap(), b"someone else's");
    assert_eq!(load(&at("m.onnx")).unwrap().proto, layers(3, 4));
}

#[test]
#[cfg(unix)]
fn new_files_have_the_usual_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let usual = folder.path().join("usual");
    std::fs::write(&usual, b"").unwrap();
    let saved = save(&layers(1, 1), &folder.path().join("m.onnx"), &always(&[])).unwrap();
    for (path, _) in saved.files {
        assert_eq!(
            path.metadata().unwrap().permissions().mode(),
            usual.metadata().unwrap().permissions().mode()
        );
    }
}

const VICTIM: &str = "ONNX_PRUNE_TEST_VICTIM";

/// Not a test: what [`killed_at_any_moment`] kills.
#[test]
fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else {
        return;
    };
    let models = [layers(40, 1000), layers(40, 1)];
    std::fs::write(Path::new(&path).with_extension("ready"), b"").unwrap();
    for model in models.iter().cycle() {
        save(model, Path::new(&path), &always(&["elsewhere".into()])).unwrap();
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let models = [layers(40, 1), layers(40, 1000)];
    save(&models[0], &path, &always(&[])).unwrap();
    let ready = path.with_extension("ready");
    let mut seen = [0, 0];
    for round in 0..50u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "external_data::victim"])
            .env(VICTIM, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !ready.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7_919_777) % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(&ready).unwrap();
        let found = load(&path)
            .unwrap_or_else(|e| panic!("after kill {round}: {}", e.chain()))
            .proto;
        let which = models
            .iter()
            .position(|model| *model == found)
            .expect("one of the two, whole");
        seen[which] += 1;
    }
    println!("after 50 kills: {seen:?}");
    assert!(
        seen.iter().all(|count| *count > 0),
        "the victim saved nothing: {seen:?}"
    );
}

/// Needs 6 GiB of disk. Four tensors of 768 MiB, read from a sparse side file.
#[test]
#[cfg(unix)]
#[ignore = "writes 3 GiB"]
fn more_than_two_gibibytes() {
    const PART: u64 = 768 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.onnx");
    let side = std::fs::File::create(folder.path().join("w")).unwrap();
    side.set_len(4 * PART + 4).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&side, &1.5f32.to_le_bytes(), 4 * PART).unwrap();
    let mut graph = graph(
        &["x0"],
        &["x1"],
        vec![node("MatMul", "m", &["x0", "w0"], &["x1"])],
    );
    for part in 0..4 {
        graph.initializer.push(TensorProto {
            name: Some(format!("w{part}")),
            dims: vec![PART as i64 / 4096, 1024],
            data_type: Some(1),
            data_location: Some(1),
            external_data: vec![
                entry("location", "w"),
                entry("offset", &(part * PART + 4).to_string()),
            ],
            ..TensorProto::default()
        });
    }
    write_as_is(&model(graph), &path);
    let loaded = load(&path).unwrap();
    validate(&loaded.proto).unwrap();
    let out = folder.path().join("out.onnx");
    let saved = save(&loaded.proto, &out, &SaveOptions::default()).unwrap();
    assert_eq!(saved.files.len(), 2, "Auto makes a side file above 2 GiB");
    assert_eq!(saved.files[1].1, 4 * PART);
    assert!(saved.files[0].1 < 2000);
    let again = load(&out).unwrap();
    let graph = again.proto.graph.as_ref().unwrap();
    let last = graph.initializer[3].raw_data();
    assert_eq!(last.len() as u64, PART);
    assert_eq!(last[last.len() - 4..], 1.5f32.to_le_bytes());
    assert!(
        graph
            .initializer
            .iter()
            .zip(&loaded.proto.graph.as_ref().unwrap().initializer)
            .all(|(a, b)| a == b)
    );
}

/// x (1 x 1024) times w (1024 x 512), w in a side file that is large enough to be mapped.
fn large(folder: &Path) -> (Model, Vec<f32>) {
    let values: Vec<f32> = (0..1024 * 512).map(|i| (i % 251) as f32 / 251.0 - 0.4).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.join("w.bin"), bytes).unwrap();
    let mut proto = pointing_at(&[("location", "w.bin"), ("offset", "0")]);
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer[0].dims = vec![1024, 512];
    let rows = || tensor_shape_proto::dimension::Value::DimParam("n".into());
    let columns = tensor_shape_proto::dimension::Value::DimValue;
    graph.input[0] = shaped("x", [rows(), columns(1024)]);
    graph.output[0] = shaped("y", [rows(), columns(512)]);
    let path = folder.join("model.onnx");
    write_as_is(&proto, &path);
    (load(&path).unwrap(), values)
}

#[test]
fn mapped_data_know_their_file_as_long_as_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = large(folder.path());
    let tensor = &model.proto.graph.as_ref().unwrap().initializer[0];
    let raw = tensor.raw_data.as_ref().unwrap();
    let file = folder.path().canonicalize().unwrap().join("w.bin");
    let found = |bytes: &[u8]| origin(bytes).map(|o| (o.path, o.offset));
    if cfg!(unix) {
        assert_eq!(found(raw), Some((file.clone(), 0)));
        assert_eq!(found(&raw[4096..8192]), Some((file.clone(), 4096)));
    }
    let before = raw.to_vec();
    assert_eq!(found(&before), None, "a copy is of no file");
    let_go();
    assert_eq!(raw.to_vec(), before, "what was given back is read again");
    // Another file under the same name is not what was mapped.
    let other = folder.path().join("other.bin");
    std::fs::write(&other, vec![0u8; before.len()]).unwrap();
    std::fs::rename(&other, &file).unwrap();
    assert_eq!(found(raw), None);
    assert_eq!(raw.to_vec(), before);
}

#[test]
fn engines_compute_the_same_from_data_in_a_side_file() {
    use onnx_prune::engine::{EngineOptions, SessionOptions, choose};
    use onnx_prune::tensor::{Feeds, Tensor};

    let Ok(engine) = choose(&EngineOptions::default()) else {
        eprintln!("skipped: no engine");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (beside, values) = large(folder.path());
    let mut inside = beside.proto.clone();
    let tensor = &mut inside.graph.as_mut().unwrap().initializer[0];
    tensor.raw_data = Some(tensor.raw_data.as_ref().unwrap().to_vec().into());
    let x: Vec<f32> = (0..1024).map(|i| (i % 13) as f32 - 6.0).collect();
    let feeds = Feeds::from([("x".to_owned(), Tensor::f32([1, 1024], x.clone()))]);
    let run = |model: &ModelProto| {
        let mut session = engine.session(model, &SessionOptions::default()).unwrap();
        session.run(&feeds).unwrap()[0].to_f32()
    };
    let (a, b) = (run(&beside.proto), run(&inside));
    assert_eq!(a, b);
    let expected: f32 = x.iter().zip(values.iter().step_by(512)).map(|(x, w)| x * w).sum();
    assert!((a[0] - expected).abs() < 1e-2, "{} {expected}", a[0]);
    // The file is replaced while the model is in memory: its weights stay those of before.
    let other = folder.path().join("other.bin");
    std::fs::write(&other, vec![0u8; 4 * values.len()]).unwrap();
    std::fs::rename(&other, folder.path().join("w.bin")).unwrap();
    assert_eq!(run(&beside.proto), b);
}

#[test]
fn a_side_file_is_called_as_the_models_own_was() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let options = SaveOptions {
        external: External::Always,
        side: SideName::Underscore,
        ..SaveOptions::default()
    };
    save(&layers(3, 3), &at("model.onnx"), &options).unwrap();
    assert_eq!(listing(folder.path()), ["model.onnx", "model.onnx_data"]);
    let loaded = load(&at("model.onnx")).unwrap();
    let options = SaveOptions::for_model(&loaded);
    save(&loaded.proto, &at("small.onnx"), &options).unwrap();
    let found = listing(folder.path());
    assert!(found.contains(&"small.onnx_data".to_owned()), "{found:?}");
    // Loaded again, it is the same.
    assert_eq!(load(&at("small.onnx")).unwrap().proto, loaded.proto);
}
