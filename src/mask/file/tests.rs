use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::axes::FactorId;
use crate::tensor::Data;

/// A model as far as masks see it: layers of heads and neurons in turns.
fn analysis(layers: &[(usize, usize)]) -> Analysis {
    let group = |name: String, kind, units| PruneGroup {
        name,
        kind,
        place: None,
        leaf: FactorId(0),
        units,
        sinks: Vec::new(),
        sources: Vec::new(),
    };
    let mut analysis = Analysis::default();
    for (at, (heads, neurons)) in layers.iter().enumerate() {
        analysis
            .groups
            .push(group(format!("layer.{at}.attention"), Kind::Heads, *heads));
        analysis
            .groups
            .push(group(format!("layer.{at}.mlp"), Kind::Neurons, *neurons));
    }
    analysis
}

fn all_open(analysis: &Analysis) -> BTreeMap<GroupId, usize> {
    analysis.indexed().map(|(at, _)| (at, 0)).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, text: &str) -> PathBuf {
        let path = self.path("mask.json");
        std::fs::write(&path, text).expect("written");
        path
    }

    fn arrays(&self, arrays: &[(&str, Tensor)]) -> PathBuf {
        let path = self.path("mask.npz");
        npz::write(&path, arrays.iter().map(|(n, t)| (*n, t))).expect("written");
        path
    }
}

fn read_all(path: &Path, analysis: &Analysis) -> Result<(Mask, Vec<String>)> {
    read(path, analysis, &all_open(analysis))
}

fn refused(path: &Path, analysis: &Analysis) -> String {
    let error = read_all(path, analysis).expect_err("refused");
    assert_eq!(error.exit_code(), 2, "{}", error.chain());
    error.chain()
}

#[test]
fn json_is_matched_by_name_and_the_rest_stays_whole() {
    let (folder, analysis) = (Folder::new(), analysis(&[(4, 6), (4, 6)]));
    let path = folder.text(
        r#"{"schema": 1, "more": true, "groups": [
            {"name": "layer.1.mlp", "kind": "neurons", "units": 6, "kept": [5, 0]},
            {"name": "layer.0.attention", "units": 4, "kept": [0, 1, 2, 3], "damage": 0.5}]}"#,
    );
    let (mask, notes) = read_all(&path, &analysis).expect("read");
    let expected = BTreeMap::from([(GroupId(3), vec![true, false, false, false, false, true])]);
    assert_eq!(mask.kept, expected);
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn json_that_does_not_fit_is_refused_and_says_why() {
    let (folder, analysis) = (Folder::new(), analysis(&[(4, 6)]));
    let groups = |groups: &str| format!("{{\"schema\": 1, \"groups\": [{groups}]}}");
    let one = r#"{"name": "layer.0.mlp", "units": 6, "kept": [1]}"#;
    for (text, says) in [
        (
            groups(r#"{"name": "layer.9.mlp", "units": 6, "kept": []}"#),
            "no group 'layer.9.mlp'",
        ),
        (
            groups(r#"{"name": "layer.0.mlp", "units": 7, "kept": []}"#),
            "7 units in the mask and 6",
        ),
        (
            groups(r#"{"name": "layer.0.mlp", "units": 6, "kept": [6]}"#),
            "unit 6 is out of range",
        ),
        (
            groups(r#"{"name": "layer.0.mlp", "units": 6, "kept": [2, 2]}"#),
            "unit 2 is there twice",
        ),
        (
            groups(r#"{"name": "layer.0.mlp", "units": 6, "kept": [-1]}"#),
            "not a mask in JSON",
        ),
        (
            groups(r#"{"name": "layer.0.mlp", "kind": "heads", "units": 6, "kept": [1]}"#),
            "heads in the mask and neurons",
        ),
        (groups(&format!("{one}, {one}")), "'layer.0.mlp' is there twice"),
        ("{\"schema\": 3, \"groups\": []}".to_owned(), "the layout 3"),
        ("[]".to_owned(), "not a mask in JSON"),
        (String::new(), "not a mask in JSON"),
    ] {
        let message = refused(&folder.text(&text), &analysis);
        assert!(message.contains(says), "{says}: {message}");
        assert!(message.contains("mask.json"), "{message}");
    }
}

#[test]
fn arrays_are_read_by_layer_whatever_their_type() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 3), (2, 3)]));
    let heads = |data| Tensor::new(vec![2, 2], data);
    let expected = BTreeMap::from([(GroupId(2), vec![false, true])]);
    for data in [
        Data::Bool(vec![true, true, false, true]),
        Data::I64(vec![1, 1, 0, -3]),
        Data::U8(vec![1, 1, 0, 255]),
        Data::F32(vec![1.0, 0.7, -0.0, 1.0]),
        // The smallest number is not 0, though it is as float32.
        Data::F64(vec![1.0, 1.0, 0.0, 5e-324]),
        Data::F16([1.0, 1.0, 0.0, f32::INFINITY].map(half::f16::from_f32).to_vec()),
    ] {
        let path = folder.arrays(&[("head_mask", heads(data))]);
        let (mask, _) = read_all(&path, &analysis).expect("read");
        assert_eq!(mask.kept, expected);
    }
    let neurons = Tensor::f32(vec![2, 3], vec![0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let path = folder.arrays(&[
        ("neuron_mask", neurons),
        ("head_mask", heads(Data::Bool(vec![true, true, false, true]))),
        ("other", Tensor::f32(vec![1], vec![1.0])),
    ]);
    let (mask, _) = read_all(&path, &analysis).expect("read");
    assert_eq!(mask.kept.get(&GroupId(1)), Some(&vec![false, true, true]));
    assert_eq!(mask.kept.get(&GroupId(2)), Some(&vec![false, true]));
    assert_eq!(mask.kept.len(), 2);
}

#[test]
fn arrays_that_do_not_fit_are_refused_and_say_why() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 3), (4, 3)]));
    let array = |rows: usize, width: usize| Tensor::f32(vec![rows, width], vec![1.0; rows * width]);
    let narrow = Tensor::f32(vec![2, 3], vec![1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
    let nan = Tensor::f32(vec![2, 3], vec![1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0]);
    for (name, tensor, says) in [
        ("head_mask", array(3, 4), "3 rows, but 2 groups of heads"),
        ("head_mask", narrow, "3 entries, the layer 4 heads"),
        (
            "head_mask",
            array(2, 4),
            "entry 2 is not 0, but the layer has only 2 heads",
        ),
        ("neuron_mask", array(2, 2), "2 entries, the layer 3 neurons"),
        ("neuron_mask", nan, "row 1, column 1 is NaN"),
        (
            "neuron_mask",
            Tensor::f32(vec![6], vec![1.0; 6]),
            "layers x neurons",
        ),
        (
            "masks",
            array(2, 4),
            "no array head_mask or neuron_mask, only: masks",
        ),
    ] {
        let message = refused(&folder.arrays(&[(name, tensor)]), &analysis);
        assert!(message.contains(says), "{says}: {message}");
    }
}

#[test]
fn layers_of_different_widths_are_padded_with_zeros() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 5), (4, 3)]));
    let heads = Tensor::f32(vec![2, 4], vec![0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
    let path = folder.arrays(&[("head_mask", heads)]);
    let (mask, _) = read_all(&path, &analysis).expect("read");
    assert_eq!(mask.kept.get(&GroupId(0)), Some(&vec![false, true]));
    assert_eq!(mask.kept.get(&GroupId(2)), Some(&vec![true, true, false, true]));
    let notes = write(&folder.path("out.npz"), &analysis, &mask).expect("written");
    assert!(notes.iter().any(|n| n.contains("filled with 0")), "{notes:?}");
    let (again, _) = read_all(&folder.path("out.npz"), &analysis).expect("read");
    assert_eq!(again, mask);
}

#[test]
fn what_may_not_be_pruned_is_said() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 3)]));
    let path = folder.text(
        r#"{"schema": 1, "groups": [{"name": "layer.0.attention", "units": 2, "kept": []},
            {"name": "layer.0.mlp", "units": 3, "kept": [1]}]}"#,
    );
    let (mask, notes) = read(&path, &analysis, &BTreeMap::from([(GroupId(1), 1)])).expect("read");
    assert_eq!(
        mask.kept,
        BTreeMap::from([(GroupId(1), vec![false, true, false])])
    );
    assert!(
        notes.iter().any(|n| n.contains("'layer.0.attention'")),
        "{notes:?}"
    );
    let error = read(
        &path,
        &analysis,
        &BTreeMap::from([(GroupId(0), 1), (GroupId(1), 1)]),
    )
    .expect_err("too few");
    let message = error.chain();
    assert!(
        message.contains("0 of the 2 heads of 'layer.0.attention'"),
        "{message}"
    );
    let (mask, notes) = read(&path, &analysis, &BTreeMap::new()).expect("read");
    assert_eq!(mask, Mask::default());
    assert!(notes.iter().any(|n| n.contains("prunes nothing")), "{notes:?}");
}

#[test]
fn the_form_follows_the_path() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 3)]));
    for (name, says) in [
        ("mask.pt", "numpy.savez"),
        ("mask", "a mask is a .json, .npz or .npy file"),
        ("mask.npy", "head_mask.npy or neuron_mask.npy"),
        ("missing.json", "cannot read the mask"),
    ] {
        let error = read_all(&folder.path(name), &analysis).expect_err(name);
        assert!(error.chain().contains(says), "{}", error.chain());
    }
    let inner = folder.path("inner");
    std::fs::create_dir(&inner).expect("made");
    assert!(refused(&inner, &analysis).contains("neither head_mask.npy nor"));
}

#[test]
fn a_form_that_cannot_hold_the_mask_is_an_error() {
    let (folder, mut analysis) = (Folder::new(), analysis(&[(2, 3)]));
    let both = Mask {
        kept: BTreeMap::from([
            (GroupId(0), vec![true, false]),
            (GroupId(1), vec![true, false, true]),
        ]),
    };
    let error = write(&folder.path("head_mask.npy"), &analysis, &both).expect_err("neurons are lost");
    assert!(error.chain().contains("'layer.0.mlp'"), "{}", error.chain());
    assert!(!folder.path("head_mask.npy").exists());
    if let Some(group) = analysis.groups.first_mut() {
        group.kind = Kind::ValueDims;
    }
    let error = write(&folder.path("mask.npz"), &analysis, &both).expect_err("value dims are lost");
    assert!(error.chain().contains("write a .json file"), "{}", error.chain());
    write(&folder.path("mask.json"), &analysis, &both).expect("holds everything");
    assert_eq!(
        read_all(&folder.path("mask.json"), &analysis).expect("read").0,
        both
    );
    let wrong = Mask {
        kept: BTreeMap::from([(GroupId(0), vec![true])]),
    };
    assert!(write(&folder.path("wrong.json"), &analysis, &wrong).is_err());
}

#[test]
fn damaged_arrays_are_refused() {
    let (folder, analysis) = (Folder::new(), analysis(&[(2, 3)]));
    let path = folder.path("head_mask.npy");
    npz::write_npy(&path, &Tensor::f32(vec![1, 2], vec![0.0, 1.0])).expect("written");
    let whole = std::fs::read(&path).expect("read");
    for (bytes, says) in [
        (whole[..whole.len() - 1].to_vec(), "cut short"),
        ([whole.as_slice(), &[0]].concat(), "more than its shape"),
        (b"PK\x03\x04 and so on".to_vec(), "magic"),
        (Vec::new(), "cut short"),
    ] {
        std::fs::write(&path, bytes).expect("written");
        let message = refused(&path, &analysis);
        assert!(message.contains(says), "{says}: {message}");
    }
}

proptest! {
    /// Every form gives back what was written, for layers of any widths.
    #[test]
    fn written_masks_read_back(
        layers in proptest::collection::vec((1usize..6, 1usize..9), 1..5),
        seed in any::<u64>(),
    ) {
        let analysis = analysis(&layers);
        let mut bits = seed;
        let mut mask = Mask::default();
        for (at, group) in analysis.groups.iter().enumerate() {
            let flags: Vec<bool> = (0..group.units).map(|_| {
                bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bits >> 63 == 0
            }).collect();
            if flags.contains(&false) {
                mask.kept.insert(GroupId(at), flags);
            }
        }
        let folder = Folder::new();
        let arrays = folder.path("arrays");
        std::fs::create_dir(&arrays).expect("made");
        for path in [folder.path("m.json"), folder.path("m.npz"), arrays] {
            write(&path, &analysis, &mask).expect("written");
            let (read, _) = read_all(&path, &analysis).expect("read");
            prop_assert_eq!(&read, &mask, "{}", path.display());
        }
        // One kind alone, in a file of its own.
        mask.kept.retain(|at, _| at.0 % 2 == 0);
        let path = folder.path("head_mask.npy");
        write(&path, &analysis, &mask).expect("written");
        prop_assert_eq!(&read_all(&path, &analysis).expect("read").0, &mask);
    }

    /// No text whatever makes the reader panic.
    #[test]
    fn any_text_is_answered(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (folder, analysis) = (Folder::new(), analysis(&[(2, 3)]));
        let _ = read_all(&folder.text(&text), &analysis);
        let path = folder.path("head_mask.npy");
        std::fs::write(&path, [b"\x93NUMPY\x01\x00".as_slice(), &bytes].concat()).expect("written");
        let _ = read_all(&path, &analysis);
    }
}
