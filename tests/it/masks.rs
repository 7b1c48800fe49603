//! `--mask`: masks of other tools fit real models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_prune::axes::{self, Analysis, GroupId, Kind};
use onnx_prune::io::npz;
use onnx_prune::mask::{Mask, file};
use onnx_prune::tensor::{Data, Tensor};
use onnx_prune::{graph, onnx};

fn analysis(path: &Path) -> Analysis {
    let model = onnx::load(path).unwrap().proto;
    let model = onnx::inline_functions(&model).unwrap();
    axes::analyse(&graph::build(&model).unwrap(), axes::AnalysisOptions::default())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
        .join("model.onnx")
}

fn zoo(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/zoo")
        .join(name)
        .join("model.onnx");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {}", path.display());
    None
}

fn of(analysis: &Analysis, kind: Kind) -> Vec<GroupId> {
    let groups = analysis.indexed();
    groups.filter(|(_, g)| g.kind == kind).map(|(at, _)| at).collect()
}

fn open(analysis: &Analysis) -> BTreeMap<GroupId, usize> {
    analysis.indexed().map(|(at, _)| (at, 0)).collect()
}

/// Writes one array and reads it as a mask.
fn from_array(analysis: &Analysis, name: &str, rows: &[&[u8]]) -> onnx_prune::Result<(Mask, Vec<String>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.npy"));
    let shape = vec![rows.len(), rows.first().map_or(0, |r| r.len())];
    npz::write_npy(&path, &Tensor::new(shape, Data::U8(rows.concat()))).unwrap();
    file::read(&path, analysis, &open(analysis))
}

#[test]
fn layers_are_the_groups_in_the_order_of_the_graph() {
    let analysis = analysis(&fixture("text-language"));
    let heads = of(&analysis, Kind::Heads);
    assert_eq!(heads.len(), 3);
    for (row, group) in heads.iter().enumerate() {
        let name = &analysis.group(*group).name;
        assert!(name.contains(&format!(".{row}")), "row {row} is {name}");
    }
    let (mask, _) = from_array(
        &analysis,
        "head_mask",
        &[&[1, 1, 1, 1], &[1, 0, 1, 1], &[0, 0, 1, 1]],
    )
    .unwrap();
    let expected = BTreeMap::from([
        (heads[1], vec![true, false, true, true]),
        (heads[2], vec![false, false, true, true]),
    ]);
    assert_eq!(mask.kept, expected);
}

#[test]
fn masks_of_real_models_go_through_every_form() {
    for name in ["text-language", "digits-vit"] {
        let analysis = analysis(&fixture(name));
        let mut mask = Mask::default();
        for (at, group) in analysis.indexed().filter(|(_, g)| g.kind.is_default()) {
            mask.kept
                .insert(at, (0..group.units).map(|u| (u + at.0) % 3 != 0).collect());
        }
        let folder = tempfile::tempdir().unwrap();
        for form in ["mask.json", "mask.npz", ""] {
            let path = folder.path().join(form);
            let notes = file::write(&path, &analysis, &mask).unwrap();
            assert_eq!(notes, Vec::<String>::new(), "{name} {form}");
            let (read, _) = file::read(&path, &analysis, &open(&analysis)).unwrap();
            assert_eq!(read, mask, "{name} {form}");
        }
    }
}

#[test]
fn rows_for_each_use_of_a_shared_layer_must_agree() {
    // One set of weights, used by three layers.
    let analysis = analysis(&fixture("zoo/albert-ts17-eager"));
    let heads = of(&analysis, Kind::Heads);
    assert_eq!((heads.len(), analysis.group(heads[0]).sinks.len()), (1, 3));
    let expected = BTreeMap::from([(heads[0], vec![true, false, true, true])]);
    let row: &[u8] = &[1, 0, 1, 1];
    for rows in [&[row][..], &[row, row, row]] {
        let (mask, _) = from_array(&analysis, "head_mask", rows).unwrap();
        assert_eq!(mask.kept, expected);
    }
    let error = from_array(&analysis, "head_mask", &[row, row, &[1, 1, 1, 1]]).unwrap_err();
    assert!(error.chain().contains("rows 0 and 2 differ"), "{}", error.chain());
    let error = from_array(&analysis, "head_mask", &[row, row]).unwrap_err();
    assert!(
        error.chain().contains("3 with one row for each use"),
        "{}",
        error.chain()
    );
}

#[test]
fn query_heads_keep_their_key_value_head() {
    // Two key/value heads with three query heads each.
    for name in ["llama-ts17-sdpa", "llama-dyn20-sdpa", "llamapos-dyn23-sdpa"] {
        let Some(path) = zoo(name) else { return };
        let analysis = analysis(&path);
        let heads = of(&analysis, Kind::Heads);
        assert_eq!(heads.len(), 2, "{name}");
        assert!(heads.iter().all(|h| analysis.group(*h).units == 2), "{name}");
        let expected = BTreeMap::from([(heads[0], vec![false, true])]);

        let by_query: [&[u8]; 2] = [&[0, 0, 0, 0, 1, 0], &[0, 0, 1, 1, 1, 1]];
        let (mask, notes) = from_array(&analysis, "head_mask", &by_query).unwrap();
        assert_eq!(mask.kept, expected, "{name}");
        assert!(notes.iter().any(|n| n.contains("by query head")), "{notes:?}");

        // By key/value head, alone or padded.
        for rows in [[&[0u8, 1][..], &[1, 1]], [&[0, 1, 0, 0], &[1, 1, 0, 0]]] {
            let (mask, _) = from_array(&analysis, "head_mask", &rows).unwrap();
            assert_eq!(mask.kept, expected, "{name}");
        }
        let error = from_array(&analysis, "head_mask", &[&[0, 1, 0, 1], &[1, 1, 0, 0]]).unwrap_err();
        assert!(error.chain().contains("entry 3 is not 0"), "{}", error.chain());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head_mask.npy");
        file::write(&path, &analysis, &mask).unwrap();
        let written = npz::read_npy(&path).unwrap();
        assert_eq!(written.shape, [2, 6], "{name}");
        let values = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1].map(|x: u8| f32::from(x));
        assert_eq!(written.to_f32(), values, "{name}");
        let (read, _) = file::read(&path, &analysis, &open(&analysis)).unwrap();
        assert_eq!(read, mask, "{name}");
    }
}
