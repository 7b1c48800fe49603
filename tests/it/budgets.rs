//! Budgets are kept: in the file that is written, one at a time and together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_prune::axes::{self};
use onnx_prune::budget::{Align, Cost, Demand, Limit, Measure, Picked, Prices, Sizes, levels};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::numerics::score::Curve;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::onnx::{self, External, SaveOptions};
use onnx_prune::rewrite;
use onnx_prune::sites::Selection;
use onnx_prune::sites::{self, PruneTarget};

use crate::corpus::within;

struct Case {
    name: String,
    network: Network,
    targets: Vec<PruneTarget>,
}

fn cases() -> Vec<Case> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![
        root.join("fixtures/digits-vit/model.onnx"),
        root.join("fixtures/text-language/model.onnx"),
    ];
    for zoo in crate::common::zoos() {
        let entries = std::fs::read_dir(zoo).unwrap();
        paths.extend(entries.map(|e| e.unwrap().path().join("model.onnx")));
    }
    paths.sort();
    paths
        .iter()
        .filter(|p| p.is_file())
        .filter_map(|p| load(p))
        .collect()
}

fn load(path: &Path) -> Option<Case> {
    let file = onnx::load(path).unwrap();
    let model = onnx::inline_functions(&file.proto).unwrap();
    let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
    let targets = sites::choose(&network, &Selection::default()).ok()?;
    Some(Case {
        name: path.display().to_string(),
        network,
        targets,
    })
}

impl Case {
    fn cost(&self) -> Cost<'_> {
        let sizes = Sizes {
            batch: 2,
            seq: 16,
            shapes: BTreeMap::new(),
        };
        Cost::new(&self.network, &sizes)
    }

    /// Curves that bend, each its own way.
    fn rankings(&self) -> Vec<Ranking> {
        self.targets
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let units = self.network.axes.group(c.group).units;
                let power = 1.0 + i as f64 % 3.0;
                Ranking::Curve(Curve {
                    order: (0..units).rev().collect(),
                    error: (0..=units)
                        .map(|k| (k as f64 / units as f64).powf(power) * (1.0 + i as f64))
                        .collect(),
                })
            })
            .collect()
    }

    fn pruned(&self, mask: &Mask) -> ModelProto {
        rewrite::prune(&self.network, mask).unwrap()
    }

    fn allocate(&self, limits: &[Limit], align: usize) -> onnx_prune::Result<(Mask, Picked)> {
        let (network, targets) = (&self.network, &self.targets);
        within(limits, network, targets, &self.rankings(), Align::exactly(align))
    }
}

/// Bytes of all files in a folder after the model is saved there.
fn saved(model: &ModelProto, folder: &Path, options: &SaveOptions) -> u64 {
    let path = folder.join("model.onnx");
    let told: u64 = onnx::save(model, &path, options)
        .unwrap()
        .files
        .iter()
        .map(|f| f.1)
        .sum();
    let found: u64 = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(told, found);
    found
}

#[test]
fn the_predicted_size_is_the_size_on_disk() {
    for (at, case) in cases().into_iter().enumerate() {
        let mut mask = Mask::default();
        for c in &case.targets {
            let units = case.network.axes.group(c.group).units;
            mask.kept
                .insert(c.group, (0..units).map(|u| u % 3 != 1).collect());
        }
        let pruned = case.pruned(&mask);
        // A side file for every second case: each save waits for the disk.
        let external = if at % 2 == 0 {
            External::Auto
        } else {
            External::Always
        };
        let options = SaveOptions {
            external,
            inputs: Vec::new(),
            ..SaveOptions::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let predicted = onnx::written_size(&pruned, &path, &options).unwrap();
        let written = saved(&pruned, folder.path(), &options);
        assert_eq!(predicted, written, "{} {external:?}", case.name);
    }
}

/// The additive costs that allocation works with are those of the pruned file:
/// parameters and multiply-accumulates exactly, bytes but for names and shapes.
#[test]
fn additive_costs_are_those_of_the_pruned_model() {
    for case in cases() {
        let cost = case.cost();
        let path = Path::new("model.onnx");
        let written = |m: &ModelProto| onnx::written_size(m, path, &SaveOptions::default()).unwrap();
        let dense = written(&case.network.proto);
        let half: Vec<usize> = case
            .targets
            .iter()
            .map(|c| case.network.axes.group(c.group).units.div_ceil(2))
            .collect();
        let mut mask = Mask::default();
        for (c, kept) in case.targets.iter().zip(&half) {
            let units = case.network.axes.group(c.group).units;
            mask.kept.insert(c.group, (0..units).map(|u| u < *kept).collect());
        }
        let macs = Prices::macs(&cost, &case.targets);
        assert_eq!(macs.total(&half), cost.macs(&mask), "{}", case.name);
        let parameters = Prices::parameters(&cost, &case.targets);
        assert_eq!(parameters.total(&half), cost.parameters(&mask), "{}", case.name);
        let bytes = Prices::bytes(&cost, &case.targets, dense);
        assert_eq!(bytes.measure, Measure::Bytes);
        let (predicted, got) = (bytes.total(&half), written(&case.pruned(&mask)));
        let off = predicted.abs_diff(got);
        // A table that several layers share is sliced for each of them: what that
        // takes is known only once it is written.
        if !case.network.axes.links.is_empty() {
            continue;
        }
        // Shape constants of their own and longer names: some hundred bytes a
        // group; never weights.
        assert!(
            off < 1500 * case.targets.len() as u64,
            "{}: {predicted} predicted, {got} written",
            case.name
        );
    }
}

#[test]
fn several_budgets_hold_together() {
    let mut binding = [0usize; 3];
    for case in cases() {
        let cost = case.cost();
        let path = Path::new("model.onnx");
        let written = |m: &ModelProto| onnx::written_size(m, path, &SaveOptions::default()).unwrap();
        let bytes = Prices::bytes(&cost, &case.targets, written(&case.network.proto));
        for (flops, params, size, align) in [(0.7, 0.5, 0.8, 1), (0.5, 0.9, 0.5, 8), (0.9, 0.9, 0.6, 16)] {
            let prunable = (bytes.full - bytes.base) as f64;
            let target = bytes.base + (size * prunable) as u64;
            let mut limits = vec![
                Limit::new(Demand::Flops(flops), Prices::macs(&cost, &case.targets)),
                Limit::new(
                    Demand::Parameters(params),
                    Prices::parameters(&cost, &case.targets),
                ),
                Limit::new(Demand::Size(target), bytes.clone()),
            ];
            // What is written decides: asked again for as much less as it is over.
            let (found, model) = loop {
                let (mask, found) = match case.allocate(&limits, align) {
                    Ok(found) => found,
                    Err(error) => panic!("{}: {}", case.name, error.chain()),
                };
                let model = case.pruned(&mask);
                match written(&model).saturating_sub(target) {
                    0 => break (found, model),
                    over => limits[2].tighten(over),
                }
            };
            for (at, got) in found.got.iter().enumerate() {
                assert!(
                    got.got.value() <= got.asked.value(),
                    "{}: {} for {}",
                    case.name,
                    got.got,
                    got.asked
                );
                binding[at] += usize::from(got.got.value() > 0.97 * got.asked.value());
            }
            assert!(written(&model) <= target);
            for (c, kept) in case.targets.iter().zip(&found.kept) {
                let group = &case.network.axes.group(c.group);
                assert!(levels(group.kind, group.units, c.least, align).contains(kept));
            }
        }
    }
    println!(
        "within 3% of the budget: flops {}, params {}, size {}",
        binding[0], binding[1], binding[2]
    );
    assert!(binding.iter().all(|n| *n > 0), "{binding:?}");
}

#[test]
fn what_cannot_be_reached_says_what_can() {
    for case in cases().into_iter().take(3) {
        let cost = case.cost();
        let written =
            onnx::written_size(&case.network.proto, Path::new("m.onnx"), &SaveOptions::default()).unwrap();
        let bytes = Prices::bytes(&cost, &case.targets, written);
        let error = case
            .allocate(&[Limit::new(Demand::Size(1000), bytes.clone())], 1)
            .unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        let suggested = text.rsplit("ask for --size ").next().unwrap();
        let (suggested, _) = suggested.split_once(',').unwrap();
        let target = Demand::size(suggested).unwrap();
        case.allocate(&[Limit::new(target, bytes)], 1)
            .unwrap_or_else(|e| panic!("{text}: {}", e.chain()));
    }
}
