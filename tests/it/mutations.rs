//! Verification can fail: a pruned model with one thing wrong in it never passes.
//!
//! Each case is pruned as it should be, which passes; then one constant or one
//! attribute at a time is replaced by what a defect would have left there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use onnx_prune::axes::{self, Analysis};
use onnx_prune::data::{DataOptions, Samples};
use onnx_prune::engine::{self, Engine, EngineChoice, EngineOptions};
use onnx_prune::mask::{Kept, Mask};
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use onnx_prune::sites::Selection;
use onnx_prune::sites::{self, PruneTarget};
use onnx_prune::tensor::Elem;
use onnx_prune::{onnx, rewrite, verify};

use crate::common::quiet;

/// Mutants of one kind that are tried per case, spread over all there are.
const MOST: usize = 6;

struct Case {
    name: String,
    network: Network,
    targets: Vec<PruneTarget>,
    samples: Samples,
    mask: Mask,
    sliced: ModelProto,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
        .join("model.onnx")
}

fn graph_of(model: &ModelProto) -> &GraphProto {
    model.graph.as_ref().unwrap()
}

/// Exported models with random weights have biases of zeros and scales of ones:
/// a wrong slice of those is a right one. So they get values of their own.
fn varied(mut model: ModelProto) -> ModelProto {
    let mut state = 1u32;
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        if tensor.data_type() != Elem::F32.to_onnx() || tensor.dims.len() != 1 {
            continue;
        }
        let values = onnx::tensor(tensor).unwrap().to_f32();
        if values.len() < 2 || values.windows(2).any(|w| w[0] != w[1]) {
            continue;
        }
        let other = values.iter().map(|v| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            v + (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        });
        tensor.raw_data = Some(other.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into());
        tensor.float_data.clear();
    }
    model
}

/// Units that stay: not every third one of each group, starting at `from`.
fn mask(chosen: &[PruneTarget], analysis: &Analysis, from: usize) -> Mask {
    let mut mask = Mask::default();
    for c in chosen {
        let units = analysis.group(c.group).units;
        if units > 1 {
            // As many stay wherever it starts.
            let gone: BTreeSet<usize> = (0..units.div_ceil(3)).map(|i| (from + 3 * i) % units).collect();
            mask.kept
                .insert(c.group, (0..units).map(|u| !gone.contains(&u)).collect());
        }
    }
    mask
}

fn case(name: &str) -> Case {
    let model = varied(onnx::inline_functions(&onnx::load(&path(name)).unwrap().proto).unwrap());
    let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
    let targets = sites::choose(&network, &Selection::default()).unwrap();
    let options = DataOptions {
        samples: Some(3),
        seq: Some(8),
        ..DataOptions::default()
    };
    let samples = onnx_prune::data::read_samples(&model, &options).unwrap();
    let mask = mask(&targets, &network.axes, 1);
    let sliced = rewrite::prune(&network, &mask).unwrap();
    Case {
        name: name.into(),
        network,
        targets,
        samples,
        mask,
        sliced,
    }
}

impl Case {
    /// What verification says to `sliced`: `None` when it passes.
    fn objection(&self, engine: &dyn Engine, sliced: &ModelProto) -> Option<String> {
        let watched: Vec<_> = self.targets.iter().map(|t| t.group).collect();
        let found = verify::sliced_equals_masked(
            quiet(engine),
            &self.network,
            &watched,
            &self.mask,
            sliced,
            &self.samples,
        );
        match found.and_then(|equality| equality.require()) {
            Ok(()) => None,
            Err(error) => Some(error.chain()),
        }
    }

    /// The pruned model with another tensor of this name.
    fn with(&self, tensor: TensorProto) -> ModelProto {
        let mut model = self.sliced.clone();
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let place = tensors.iter_mut().find(|t| t.name() == tensor.name()).unwrap();
        *place = tensor;
        model
    }
}

/// A defect, in words, and the model that has it.
type Mutant = (String, ModelProto);

fn tensors(model: &ModelProto) -> BTreeMap<&str, &TensorProto> {
    let all = &graph_of(model).initializer;
    all.iter().map(|t| (t.name(), t)).collect()
}

/// Each float constant in turn holds the rows of other units than those that stay:
/// biases "sliced at the wrong places" among them.
fn wrong_rows(case: &Case) -> Vec<Mutant> {
    let other = mask(&case.targets, &case.network.axes, 2);
    let other = rewrite::prune(&case.network, &other).unwrap();
    let other = tensors(&other);
    tensors(&case.sliced)
        .into_iter()
        .filter_map(|(name, right)| {
            let wrong = other.get(name)?;
            let float = Elem::from_onnx(right.data_type()).is_some_and(Elem::is_float);
            (float && wrong.dims == right.dims && wrong.raw_data != right.raw_data)
                .then(|| (format!("other rows in '{name}'"), case.with((*wrong).clone())))
        })
        .collect()
}

/// Each float constant that was sliced is whole in turn.
fn unsliced(case: &Case, vectors: bool) -> Vec<Mutant> {
    let dense = tensors(&case.network.proto);
    tensors(&case.sliced)
        .into_iter()
        .filter_map(|(name, right)| {
            let whole = dense.get(name)?;
            (whole.dims != right.dims && (whole.dims.len() == 1) == vectors)
                .then(|| (format!("all of '{name}'"), case.with((*whole).clone())))
        })
        .collect()
}

/// The nodes of the pruned model beside those of the dense one that make the same
/// values.
fn pairs(case: &Case) -> Vec<(usize, &NodeProto, &NodeProto)> {
    let dense: BTreeMap<&[String], &NodeProto> = graph_of(&case.network.proto)
        .node
        .iter()
        .map(|n| (n.output.as_slice(), n))
        .collect();
    graph_of(&case.sliced)
        .node
        .iter()
        .enumerate()
        .filter_map(|(at, node)| Some((at, node, *dense.get(node.output.as_slice())?)))
        .collect()
}

/// An integer constant, by initializer or `Constant` node.
fn integers<'a>(model: &'a ModelProto, name: &str) -> Option<&'a TensorProto> {
    let graph = graph_of(model);
    let tensor = graph.initializer.iter().find(|t| t.name() == name).or_else(|| {
        let node = graph
            .node
            .iter()
            .find(|n| n.op_type() == "Constant" && n.output.iter().any(|o| o == name))?;
        node.attribute.iter().find_map(|a| a.t.as_ref())
    })?;
    let elem = Elem::from_onnx(tensor.data_type())?;
    (!elem.is_float()).then_some(tensor)
}

/// Each integer constant that the rewrite changed keeps its old value at one use
/// in turn, and so does each attribute.
fn stale(case: &Case) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (at, new, old) in pairs(case) {
        for (input, (now, before)) in new.input.iter().zip(&old.input).enumerate() {
            let (Some(is), Some(was)) = (integers(&case.sliced, now), integers(&case.network.proto, before))
            else {
                continue;
            };
            let (is, was) = (onnx::tensor(is).unwrap(), onnx::tensor(was).unwrap());
            if is == was {
                continue;
            }
            let mut model = case.sliced.clone();
            let graph = model.graph.as_mut().unwrap();
            let name = format!("stale_{at}_{input}");
            graph.initializer.push(onnx::tensor_proto(&name, &was));
            graph.node[at].input[input] = name;
            mutants.push((
                format!(
                    "input {input} of '{}' ({}) is {:?} where {:?} is right",
                    new.name(),
                    new.op_type(),
                    was.to_i64(),
                    is.to_i64()
                ),
                model,
            ));
        }
        for attribute in &new.attribute {
            let was = old.attribute.iter().find(|a| a.name() == attribute.name());
            let Some(was) = was.filter(|was| *was != attribute && attribute.g.is_none()) else {
                continue;
            };
            // Read only where its input has three axes; the heads of these have one of
            // their own.
            if new.op_type() == "RotaryEmbedding" && attribute.name() == "num_heads" {
                continue;
            }
            let mut model = case.sliced.clone();
            let node = &mut model.graph.as_mut().unwrap().node[at];
            let place = node
                .attribute
                .iter_mut()
                .find(|a| a.name() == attribute.name())
                .unwrap();
            *place = was.clone();
            mutants.push((
                format!(
                    "attribute {} of '{}' ({}) is old",
                    attribute.name(),
                    new.name(),
                    new.op_type()
                ),
                model,
            ));
        }
    }
    mutants
}

/// Two units that stay change places, in one constant at a time.
fn swapped(case: &Case) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for c in &case.targets {
        let group = &case.network.axes.group(c.group);
        let Some(flags) = case.mask.kept.get(&c.group) else {
            continue;
        };
        let stay: Vec<usize> = (0..flags.len()).filter(|u| flags[*u]).collect();
        let [first, .., last] = stay[..] else { continue };
        for tensor in &graph_of(&case.sliced).initializer {
            let Some(value) = case.network.graph.find(tensor.name()) else {
                continue;
            };
            let Some(dims) = &case.network.axes.facts(value).dims else {
                continue;
            };
            for (axis, dim) in dims.iter().enumerate() {
                let space = &case.network.axes.space;
                if !space.leaves(dim).contains(&group.leaf) {
                    continue;
                }
                let Some(units) = Kept::unit_of_index(space, dim, group.leaf) else {
                    continue;
                };
                // The units along the axis of the pruned tensor.
                let left: Vec<Option<usize>> =
                    units.into_iter().filter(|u| u.is_none_or(|u| flags[u])).collect();
                if left.len() as i64 != tensor.dims[axis] {
                    continue;
                }
                let of = |unit: usize| -> Vec<usize> {
                    (0..left.len()).filter(|i| left[*i] == Some(unit)).collect()
                };
                let mut order: Vec<usize> = (0..left.len()).collect();
                for (a, b) in of(first).into_iter().zip(of(last)) {
                    order.swap(a, b);
                }
                let Some(wrong) = reordered(tensor, axis, &order) else {
                    continue;
                };
                if wrong.raw_data != tensor.raw_data {
                    mutants.push((
                        format!(
                            "{} {first} and {last} of '{}' swapped along axis {axis} of '{}'",
                            group.kind.noun(),
                            group.name,
                            tensor.name()
                        ),
                        case.with(wrong),
                    ));
                }
            }
        }
    }
    mutants
}

/// The tensor with the entries of one axis in another order.
fn reordered(tensor: &TensorProto, axis: usize, order: &[usize]) -> Option<TensorProto> {
    let size = Elem::from_onnx(tensor.data_type())?.size();
    let raw = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty())?;
    let shape: Vec<usize> = tensor.dims.iter().map(|d| *d as usize).collect();
    let inner = shape[axis + 1..].iter().product::<usize>() * size;
    let outer = shape[..axis].iter().product::<usize>();
    let mut out = Vec::with_capacity(raw.len());
    for o in 0..outer {
        for i in order {
            let at = (o * order.len() + i) * inner;
            out.extend_from_slice(&raw[at..at + inner]);
        }
    }
    let mut wrong = tensor.clone();
    wrong.raw_data = Some(out.into());
    Some(wrong)
}

/// Some of many, evenly.
fn spread(mutants: Vec<Mutant>) -> Vec<Mutant> {
    let every = mutants.len().div_ceil(MOST).max(1);
    let all = std::env::var_os("MUTANTS").is_some();
    mutants
        .into_iter()
        .enumerate()
        .filter(|(i, _)| all || i % every == 0)
        .map(|(_, m)| m)
        .collect()
}

/// ONNX Runtime where it is there, else the built-in engine.
fn engine() -> Box<dyn Engine> {
    crate::common::engine().unwrap_or_else(|| {
        let options = EngineOptions {
            engine: EngineChoice::Tract,
            threads: Some(1),
            ..EngineOptions::default()
        };
        engine::choose(&options).unwrap()
    })
}

/// Mutants that every one is caught; how many there were.
fn all_caught(engine: &dyn Engine, case: &Case, kind: &str, mutants: Vec<Mutant>) -> usize {
    let mutants = spread(mutants);
    let passed: Vec<&str> = mutants
        .iter()
        .filter(|(_, model)| case.objection(engine, model).is_none())
        .map(|(what, _)| what.as_str())
        .collect();
    assert!(
        passed.is_empty(),
        "{}: {kind}: verification lets pass:\n{}",
        case.name,
        passed.join("\n")
    );
    mutants.len()
}

/// Adding a bias to all keys adds the same to all scores of a query, which softmax
/// takes away again: a wrong one computes the same.
fn of_keys(what: &str) -> bool {
    ["key.bias", "k_proj.bias", "attn.k.bias"]
        .iter()
        .any(|n| what.contains(n))
}

/// `stale` is the number of constants and attributes that a rewrite of this case
/// changes, at least; of the other defects there are some in every case.
fn check(name: &str, stale_ones: usize) {
    let engine = engine();
    let case = case(name);
    assert_eq!(
        case.objection(engine.as_ref(), &case.sliced),
        None,
        "{name}: what is right passes"
    );
    let mut wrong = wrong_rows(&case);
    wrong.retain(|(what, _)| !of_keys(what));
    let mut order = swapped(&case);
    order.retain(|(what, _)| !of_keys(what));
    let weights = unsliced(&case, false);
    let stale = stale(&case);
    assert!(
        stale.len() >= stale_ones,
        "{name}: {} stale constants",
        stale.len()
    );
    assert!(
        !wrong.is_empty() && !order.is_empty() && !weights.is_empty(),
        "{name}: nothing to get wrong"
    );
    let counts = [
        ("wrong slices", wrong),
        ("unsliced biases", unsliced(&case, true)),
        ("unsliced weights", weights),
        ("stale constants", stale),
        ("swapped order", order),
    ]
    .map(|(kind, mutants)| format!("{} {kind}", all_caught(engine.as_ref(), &case, kind, mutants)));
    println!("{name}: {} are caught", counts.join(", "));
}

#[test]
fn defects_of_a_vision_transformer() {
    check("digits-vit", 16);
    check("zoo/siglipvision-ts17", 0);
}

#[test]
fn defects_of_a_text_model() {
    check("text-language", 0);
    check("zoo/bert-dyn23-sdpa", 0);
}

#[test]
fn defects_of_fixed_shapes() {
    check("zoo/torchenc-fixed-ts17", 18);
    check("zoo/gptj-ts14", 0);
}

#[test]
fn defects_of_fused_attention() {
    check("zoo/bert-ort-fused-mha", 2);
    check("zoo/minilm-ort-fused", 3);
}

#[test]
fn defects_of_shared_layers() {
    check("zoo/albert-ts17-eager", 0);
}

#[test]
fn defects_of_grouped_queries() {
    check("zoo/qwen3-dyn23", 0);
    check("zoo/phi3-dyn18", 8);
}

#[test]
fn defects_of_packed_projections() {
    check("zoo/neox-ts17", 0);
    check("zoo/bloom-ts17", 0);
}

#[test]
fn defects_of_a_decoder() {
    check("zoo/t5dec-ts17", 0);
}

#[test]
fn defects_of_convolutions() {
    check("zoo/convnext-ts17", 0);
    check("zoo/squeezebert-ts17", 0);
}
