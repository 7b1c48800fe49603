//! Files that hold the same weights get one mask.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use onnx_prune::axes::{self, Kind};
use onnx_prune::budget::shared::{self, FileClass, Member, SharedFile};
use onnx_prune::budget::{self, Align, Budget, Cost, Demand, Limit, Prices, Sizes};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::numerics::score::Curve;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::numerics::{SiteStatistics, Statistics};
use onnx_prune::onnx::{self, proto};
use onnx_prune::sites::{self, PruneTarget, Selection, UnitKind};
use onnx_prune::tensor::{Data, Tensor};

struct Loaded {
    name: String,
    network: Network,
    targets: Vec<PruneTarget>,
}

impl Loaded {
    fn of(name: &str, model: proto::ModelProto) -> Self {
        Self::with(name, model, &Selection::default())
    }

    fn with(name: &str, model: proto::ModelProto, selection: &Selection) -> Self {
        let network = Network::of(model, axes::AnalysisOptions::default()).unwrap();
        let targets = sites::choose(&network, selection).unwrap();
        Loaded {
            name: name.to_owned(),
            network,
            targets,
        }
    }

    fn file(&self) -> SharedFile<'_> {
        SharedFile {
            name: &self.name,
            network: &self.network,
            targets: &self.targets,
        }
    }

    fn cost(&self) -> Cost<'_> {
        let sizes = Sizes {
            batch: 1,
            seq: 16,
            shapes: Default::default(),
        };
        Cost::new(&self.network, &sizes)
    }

    /// The initializer that a chosen group's sink reads.
    fn sink_weight(&mut self, chosen: usize) -> &mut proto::TensorProto {
        let place = self.targets[chosen].sites[0].weight.as_ref().unwrap().place.value;
        let name = self.network.graph.value(place).name.clone();
        let proto = self.network.proto.graph.as_mut().unwrap();
        proto.initializer.iter_mut().find(|t| t.name() == name).unwrap()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
        .join("model.onnx")
}

fn text() -> proto::ModelProto {
    onnx::load(&fixture("text-language")).unwrap().proto
}

fn tie(files: &[&Loaded]) -> onnx_prune::Result<Vec<FileClass>> {
    let files: Vec<SharedFile<'_>> = files.iter().map(|f| f.file()).collect();
    shared::tie(&files)
}

fn member(file: usize, target: usize) -> Member {
    Member { file, target }
}

/// Every chosen group is in exactly one class.
fn check_partition(files: &[&Loaded], classes: &[FileClass]) {
    let all: Vec<Member> = classes.iter().flat_map(|c| c.members.iter().copied()).collect();
    let distinct: BTreeSet<Member> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len());
    assert_eq!(all.len(), files.iter().map(|f| f.targets.len()).sum::<usize>());
}

#[test]
fn copies_are_tied_group_by_group() {
    let (a, b) = (Loaded::of("a.onnx", text()), Loaded::of("b.onnx", text()));
    let classes = tie(&[&a, &b]).unwrap();
    check_partition(&[&a, &b], &classes);
    assert_eq!(classes.len(), a.targets.len());
    for (at, class) in classes.iter().enumerate() {
        assert_eq!(class.members, [member(0, at), member(1, at)]);
        assert_eq!(class.units, a.network.axes.group(a.targets[at].group).units);
    }
}

#[test]
fn one_file_alone_has_a_class_per_group() {
    let a = Loaded::of("a.onnx", text());
    let classes = tie(&[&a]).unwrap();
    check_partition(&[&a], &classes);
    assert!(classes.iter().all(|c| !c.is_tied()));
}

#[test]
fn what_one_file_leaves_alone_is_not_tied() {
    let neurons = Selection {
        targets: vec![UnitKind::Neurons],
        min_units: 3,
        ..Selection::default()
    };
    let a = Loaded::of("a.onnx", text());
    let b = Loaded::with("b.onnx", text(), &neurons);
    let classes = tie(&[&a, &b]).unwrap();
    check_partition(&[&a, &b], &classes);
    for class in &classes {
        let first = class.members[0];
        let kind = a.network.axes.group(a.targets[first.target].group).kind;
        assert_eq!(class.is_tied(), kind == Kind::Neurons);
        assert_eq!(class.least, if class.is_tied() { 3 } else { 0 });
    }
}

#[test]
fn other_weights_and_weights_of_equal_entries_are_not_tied() {
    let a = Loaded::of("a.onnx", text());
    let mut b = Loaded::of("b.onnx", text());
    let weight = b.sink_weight(0);
    let mut tensor = onnx::tensor(weight).unwrap();
    if let Data::F32(values) = &mut tensor.data {
        values[7] += 0.5;
    }
    *weight = onnx::tensor_proto(weight.name(), &tensor);
    let b = Loaded::of("b.onnx", b.network.proto);
    let classes = tie(&[&a, &b]).unwrap();
    check_partition(&[&a, &b], &classes);
    let tied = classes.iter().filter(|c| c.is_tied()).count();
    assert_eq!(tied, a.targets.len() - 1);

    // All zeros in both: nothing is known to be the same.
    let zeroed = |name: &str| {
        let mut file = Loaded::of(name, text());
        let weight = file.sink_weight(0);
        let tensor = onnx::tensor(weight).unwrap();
        let zeros = Tensor::f32(tensor.shape.clone(), vec![0.0; tensor.len()]);
        *weight = onnx::tensor_proto(weight.name(), &zeros);
        Loaded::of(name, file.network.proto)
    };
    let (a, b) = (zeroed("a.onnx"), zeroed("b.onnx"));
    let classes = tie(&[&a, &b]).unwrap();
    let tied = classes.iter().filter(|c| c.is_tied()).count();
    assert_eq!(tied, a.targets.len() - 1);
}

#[test]
fn rows_in_another_order_are_a_conflict_that_names_both() {
    let a = Loaded::of("a.onnx", text());
    let at = a
        .targets
        .iter()
        .position(|c| a.network.axes.group(c.group).kind == Kind::Neurons)
        .unwrap();
    let mut b = Loaded::of("b.onnx", text());
    let weight = b.sink_weight(at);
    let tensor = onnx::tensor(weight).unwrap();
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    assert!(rows > columns, "rows are the pruned axis");
    let mut values = tensor.to_f32();
    values.rotate_left(columns);
    *weight = onnx::tensor_proto(weight.name(), &Tensor::f32(vec![rows, columns], values));
    let b = Loaded::of("b.onnx", b.network.proto);
    let error = tie(&[&a, &b]).unwrap_err();
    let message = error.chain();
    let name = &a.network.axes.group(a.targets[at].group).name;
    assert_eq!(error.exit_code(), 2);
    for part in [
        "different orders",
        &format!("'{name}' of a.onnx"),
        &format!("'{name}' of b.onnx"),
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn other_numbers_of_units_are_a_conflict() {
    let a = Loaded::of("a.onnx", text());
    let mut b = Loaded::of("b.onnx", text());
    let at = b.targets.iter().position(|c| c.units.len() == 4).unwrap();
    let rows: Vec<usize> = b.targets[at].units.rows.concat();
    b.targets[at].units.rows = rows.chunks(rows.len() / 2).map(<[usize]>::to_vec).collect();
    let error = tie(&[&a, &b]).unwrap_err();
    assert!(
        error.chain().contains("one has 4 units and the other 2"),
        "{}",
        error.chain()
    );
}

#[test]
fn exports_of_one_model_are_tied_however_they_store_it() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/zoo");
    for (a, b) in [
        ("bert-ts17-eager", "bert-ort-extended"),
        ("bert-ts17-eager", "bert-ort-fused-mha"),
        ("gpt2-ts17-eager", "gpt2-ort-extended"),
        ("llama-ts17-eager", "llama-ort-extended"),
        ("vit-ts17-eager", "vit-ort-fused"),
    ] {
        let paths = [a, b].map(|name| zoo.join(name).join("model.onnx"));
        if !paths.iter().all(|p| p.exists()) {
            println!("skipped: {a} or {b} is not in {}", zoo.display());
            continue;
        }
        let [x, y] = paths.map(|p| Loaded::of(&p.display().to_string(), onnx::load(&p).unwrap().proto));
        let classes = tie(&[&x, &y]).unwrap();
        check_partition(&[&x, &y], &classes);
        for class in &classes {
            assert_eq!(class.members.len(), 2, "{a} and {b}: {class:?}");
        }
    }
}

#[test]
fn pooled_statistics_are_the_sum_and_the_same_in_all_files() {
    let (a, b) = (Loaded::of("a.onnx", text()), Loaded::of("b.onnx", text()));
    let files = [a.file(), b.file()];
    let classes = shared::tie(&files).unwrap();
    let gather = |file: &Loaded, seed: f32| {
        let mut statistics = Statistics::default();
        for site in file.targets.iter().flat_map(|c| &c.sites) {
            let width = site.weight.as_ref().unwrap().rows;
            let x: Vec<f32> = (0..3 * width).map(|i| (i as f32 * seed).sin() + seed).collect();
            let mut own = SiteStatistics::new(width);
            own.add(&x, 3, None);
            statistics.sites.insert(site.name.clone(), own);
        }
        statistics
    };
    let (first, second) = (gather(&a, 0.3), gather(&b, 1.7));
    let mut pooled = vec![first.clone(), second.clone()];
    shared::pool(&files, &classes, &mut pooled).unwrap();
    assert_eq!(pooled[0], pooled[1]);
    for (name, sum) in &pooled[0].sites {
        assert_eq!(sum.tokens(), 6);
        let expected = first.sites[name].gram() + second.sites[name].gram();
        let scale = expected.norm_max();
        assert!((sum.gram() - &expected).norm_max() < 1e-9 * scale, "{name}");
    }
    // Without ties nothing moves.
    let mut alone = vec![first.clone()];
    shared::pool(&files[..1], &shared::tie(&files[..1]).unwrap(), &mut alone).unwrap();
    assert_eq!(alone, [first]);
}

/// A convex curve whose steepness depends on the group.
fn curves(file: &Loaded, scale: f64) -> Vec<Ranking> {
    let of = |(at, c): (usize, &PruneTarget)| {
        let n = c.units.len();
        Ranking::Curve(Curve {
            order: (0..n).collect(),
            error: (0..=n)
                .map(|k| scale * (k as f64 / n as f64).powi(2 + (at % 3) as i32) * (1.0 + at as f64))
                .collect(),
        })
    };
    file.targets.iter().enumerate().map(of).collect()
}

/// The masks of several files from one knapsack, and what they cost together.
fn allocate(
    files: &[SharedFile<'_>],
    costs: &[Cost<'_>],
    rankings: &[Vec<Ranking>],
    asked: f64,
) -> onnx_prune::Result<(Vec<Mask>, Budget)> {
    let classes = shared::tie(files)?;
    let rankings: Vec<&[Ranking]> = rankings.iter().map(Vec::as_slice).collect();
    let items = shared::items(files, &classes, &rankings)?;
    let own: Vec<Prices> = (costs.iter().zip(files))
        .map(|(cost, file)| Prices::macs(cost, file.targets))
        .collect();
    let members = classes
        .iter()
        .map(|c| c.members.iter().map(|m| (m.file, m.target)).collect());
    let prices = Prices::joint(&own, &members.collect::<Vec<_>>()).unwrap();
    let limits = [Limit::new(Demand::Flops(asked), prices)];
    let picked = budget::allocate(
        &limits,
        &items,
        &shared::tied(files, &classes),
        Align::exactly(1),
        "obs",
    )?;
    let mut masks = vec![Mask::default(); files.len()];
    for ((class, item), kept) in classes.iter().zip(&items).zip(&picked.kept) {
        for member in class.members.iter().filter(|_| *kept < item.units) {
            let group = files[member.file].targets[member.target].group;
            masks[member.file].kept.insert(group, item.flags(*kept));
        }
    }
    let each: Vec<_> = (costs.iter().zip(files).zip(&masks))
        .map(|((cost, file), mask)| (cost, file.targets, mask))
        .collect();
    let budget = Budget::of(&each);
    Ok((masks, budget))
}

#[test]
fn one_knapsack_over_copies_is_that_of_one_file() {
    let (a, b) = (Loaded::of("a.onnx", text()), Loaded::of("b.onnx", text()));
    let files = [a.file(), b.file()];
    let costs = [a.cost(), b.cost()];
    let rankings = [curves(&a, 1.0), curves(&b, 3.0)];
    for asked in [0.9, 0.6, 0.35] {
        let (masks, budget) = allocate(&files, &costs, &rankings, asked).unwrap();
        let (alone, whole) = allocate(&files[..1], &costs[..1], &rankings[..1], asked).unwrap();
        assert_eq!(masks[0], alone[0]);
        assert_eq!(masks[1], alone[0]);
        assert!(budget.got <= asked && budget.got > asked - 0.05);
        assert_eq!(budget.whole_after, 2 * whole.whole_after);
    }
}

#[test]
fn files_without_anything_in_common_share_one_budget() {
    let text = Loaded::of("text.onnx", text());
    let digits = onnx::load(&fixture("digits-vit")).unwrap().proto;
    let digits = onnx::inline_functions(&digits).unwrap();
    let digits = Loaded::of("digits.onnx", digits);
    let files = [text.file(), digits.file()];
    let classes = shared::tie(&files).unwrap();
    check_partition(&[&text, &digits], &classes);
    assert!(classes.iter().all(|c| !c.is_tied()));
    // What is removed from the digits costs next to nothing: they pay.
    let rankings = [curves(&text, 1.0), curves(&digits, 1e-6)];
    let costs = [text.cost(), digits.cost()];
    let (masks, budget) = allocate(&files, &costs, &rankings, 0.5).unwrap();
    assert!(budget.got <= 0.5);
    let own = |at: usize| Budget::of(&[(&costs[at], files[at].targets, &masks[at])]).got;
    assert!(own(1) < 0.3 && own(0) > 0.7);
    let error = allocate(&files, &costs, &rankings[..1], 0.5).unwrap_err();
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn tied_groups_that_are_ranked_differently_are_an_error() {
    let (a, b) = (Loaded::of("a.onnx", text()), Loaded::of("b.onnx", text()));
    let files = [a.file(), b.file()];
    let mut rankings = [curves(&a, 1.0), curves(&b, 1.0)];
    rankings[1][0] = Ranking::Scores(vec![1.0; b.targets[0].units.len()]);
    let costs = [a.cost(), b.cost()];
    let error = allocate(&files, &costs, &rankings, 0.5).unwrap_err();
    assert!(
        error.chain().contains("of b.onnx is ranked in another way"),
        "{}",
        error.chain()
    );
    // A group that one file keeps whole stays whole in all.
    rankings[1][0] = Ranking::Whole;
    let (masks, _) = allocate(&files, &costs, &rankings, 0.5).unwrap();
    for (mask, loaded) in masks.iter().zip([&a, &b]) {
        assert!(!mask.kept.contains_key(&loaded.targets[0].group));
    }
}
