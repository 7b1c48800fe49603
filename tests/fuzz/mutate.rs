//! Models with things wrong in them: small exported ones, changed as bytes say.

use std::sync::OnceLock;

use onnx_prune::axes::{self, Analysis, GroupId};
use onnx_prune::budget::{Align, Cost, Demand, Limit, Prices, Sizes, shared};
use onnx_prune::data::DataOptions;
use onnx_prune::graph;
use onnx_prune::mask::{self, Mask};
use onnx_prune::network::Network;
use onnx_prune::numerics::Statistics;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::onnx::{self, proto};
use onnx_prune::pipeline::Options;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::refit::{Reconstruct, RefitOptions};
use onnx_prune::rewrite::{self, dequantise, lossless, segment};
use onnx_prune::sites::{self, PruneTarget, Selection};
use onnx_prune::verify::Interface;
use onnx_prune::{rank, refit, report};

use super::within;

use proto::attribute_proto::AttributeType;
use proto::tensor_shape_proto::dimension::Value;

/// Most changes to one model.
const MOST: usize = 12;

/// How many models of the zoo only cases from [`LATER`] on take, so that a stored
/// case keeps the model that it was found with.
const MORE: usize = 5;
const LATER: u8 = 192;

macro_rules! zoo {
    ($($name:literal),*) => {
        [$(include_bytes!(concat!("../../fixtures/zoo/", $name, "/model.onnx")) as &[u8]),*]
    };
}

/// The small exported models; the last [`MORE`] came later.
fn zoo() -> &'static [proto::ModelProto] {
    static MODELS: OnceLock<Vec<proto::ModelProto>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let files = zoo![
            "whisperenc-dyn18",
            "convnext-ts17",
            "falcon-dyn18",
            "swin-dyn18",
            "modernbert-dyn18",
            "qwen3-dyn23",
            "phi3-dyn18",
            "torchenc-fixed-ts17",
            "qwen3past-dyn18",
            "minilm-ort-fused",
            "gpt2-dynquant",
            "roberta-qdq",
            "bert-dyn23-sdpa",
            "debertav2-ts17",
            "t5dec-ts17"
        ];
        files
            .iter()
            .map(|bytes| onnx::from_bytes((*bytes).into()).expect("a fixture").proto)
            .collect()
    })
}

/// Operators that nodes are turned into.
const OPERATORS: [&str; 64] = [
    "Add",
    "Mul",
    "MatMul",
    "Gemm",
    "Reshape",
    "Transpose",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "Shape",
    "Expand",
    "Tile",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Softmax",
    "LayerNormalization",
    "ReduceMean",
    "ReduceSum",
    "Cast",
    "Constant",
    "ConstantOfShape",
    "Identity",
    "Where",
    "Range",
    "If",
    "Loop",
    "Scan",
    "Einsum",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Pad",
    "Resize",
    "GatherElements",
    "GatherND",
    "ScatterND",
    "ScatterElements",
    "TopK",
    "CumSum",
    "OneHot",
    "EyeLike",
    "DepthToSpace",
    "SpaceToDepth",
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "SkipLayerNormalization",
    "RotaryEmbedding",
    "EmbedLayerNormalization",
    "BiasGelu",
    "Trilu",
    "Size",
    "NonZero",
    "Compress",
    "Split",
    "Range",
];

/// The case's bytes as choices; zeros once they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// An index below `count`, which is not zero.
    fn below(&mut self, count: usize) -> usize {
        let wide = usize::from(self.byte()) | usize::from(self.byte()) << 8;
        wide % count.max(1)
    }

    /// A number that is often near a limit.
    fn number(&mut self) -> i64 {
        let byte = self.byte();
        match byte % 16 {
            0 => 0,
            1 => -1,
            2 => 1,
            3 => i64::MAX,
            4 => i64::MIN,
            5 => 1 << 31,
            6 => -(1 << 31),
            7 => 1 << 40,
            8 => i64::from(self.byte()) << 24,
            _ => i64::from(self.byte() as i8),
        }
    }
}

/// A model of the zoo, changed, through all stages that need no engine.
pub fn mutated(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let which = choices.byte();
    let (first, more) = zoo().split_at(zoo().len() - MORE);
    // The two odd ones were stored before there were more.
    let models = if (LATER..254).contains(&which) {
        more
    } else {
        first
    };
    let mut model = models[usize::from(which) % models.len()].clone();
    for _ in 0..MOST {
        if choices.0.is_empty() {
            break;
        }
        change(&mut model, &mut choices);
    }
    if onnx::validate(&model).is_ok() {
        all_stages(&model, which);
    }
}

/// Inlining, analysis, pruning with several masks; what comes out must be sound.
pub fn all_stages(model: &proto::ModelProto, seed: u8) {
    let Ok(model) = onnx::inline_functions(model) else {
        return;
    };
    let options = axes::AnalysisOptions {
        change_interface: seed & 16 != 0,
        uniform_kv: seed & 32 != 0,
        ..axes::AnalysisOptions::default()
    };
    let Ok(network) = Network::of(model, options) else {
        return;
    };
    let (model, analysis) = (&network.proto, &network.axes);
    let cost = Cost::new(&network, &sizes());
    let _ = report::inspect::inspect("it", &network, &cost, Vec::new())
        .text(onnx_prune::report::style::Style::plain());
    for third in 0..2 {
        sliced(&network, &a_mask(analysis, third, seed));
    }
    chosen(&network);
    quantised(model, options, seed);
    if let Ok((cheaper, _)) = lossless::apply(model) {
        onnx::validate(&cheaper).expect("a cheaper model is sound");
        let other = Network::of(cheaper, options).expect("a cheaper model has a graph");
        let same: Option<Vec<GroupId>> = (analysis.groups.iter())
            .map(|group| other.axes.find_group(&group.name, group.kind, group.units))
            .collect();
        if let Some(same) = same {
            let cost = cost.after(&other, &same, &sizes());
            let mask = a_mask(analysis, 0, seed);
            let _ = (cost.macs(&mask), cost.parameters(&mask));
        }
    }
    let data = DataOptions {
        samples: Some(2),
        seq: Some(8),
        ..DataOptions::default()
    };
    let _ = onnx_prune::data::read_samples(model, &data);
}

fn sizes() -> Sizes {
    Sizes {
        batch: 1,
        seq: 8,
        shapes: Default::default(),
    }
}

/// Two thirds of each group, and in the second mask nothing of one.
fn a_mask(analysis: &Analysis, third: usize, seed: u8) -> Mask {
    let mut mask = Mask::default();
    for (at, group) in analysis.indexed() {
        let empty = third == 1 && at.0 == usize::from(seed & 7);
        mask.kept.insert(
            at,
            (0..group.units).map(|unit| !empty && unit % 3 != third).collect(),
        );
    }
    mask
}

/// The smaller model, where the mask can be carried out; it must be sound.
fn sliced(network: &Network, mask: &Mask) -> Option<proto::ModelProto> {
    let cost = Cost::new(network, &sizes());
    let _ = (cost.macs(mask), cost.parameters(mask));
    let _ = (
        rewrite::interface_changes(network, mask),
        Interface::new(network, mask),
    );
    if let Ok(text) = mask::file::json(&network.axes, mask) {
        assert!(text.contains("groups"), "a mask is written with its groups");
    }
    if let Ok(masked) = rewrite::masked(network, mask) {
        onnx::validate(&masked).expect("a masked model is sound");
    }
    let small = rewrite::prune(network, mask).ok()?;
    onnx::validate(&small).expect("a pruned model is sound");
    graph::build(&small).expect("a pruned model has a graph");
    Some(small)
}

/// What follows the choice of groups and needs no engine: ranking by the weights,
/// budgets, re-fitting with statistics that are missing, cuts that are timed.
fn chosen(network: &Network) {
    let Ok(targets) = sites::choose(network, &Selection::default()) else {
        return;
    };
    if let Ok(Some(own)) = sites::own_biases(network, &targets) {
        onnx::validate(&own).expect("a model with biases of its own is sound");
    }
    for target in &targets {
        let _ = segment::group::cut(&network.proto, network, target.group);
    }
    let file = shared::SharedFile {
        name: "it",
        network,
        targets: &targets,
    };
    let _ = shared::tie(&[file, file]);
    let none = Statistics::default();
    let options = RankOptions {
        method: Method::Magnitude,
        ..Options::default().rank
    };
    let Ok(ranked) = rank::rank(network, &targets, &none, &options, true) else {
        return;
    };
    let cost = Cost::new(network, &sizes());
    let limits = [Limit::new(Demand::Flops(0.5), Prices::macs(&cost, &targets))];
    let found = within(&limits, network, &targets, &ranked.rankings, Align::exactly(1));
    let Ok((mask, picked)) = found else { return };
    assert!(
        matches!(picked.got[0].got, Demand::Flops(got) if got <= 0.5),
        "a budget that is not met is an error"
    );
    let _ = sliced(network, &mask);
    let local = refit::Local {
        network,
        targets: &targets,
        mask: &mask,
        options: RefitOptions {
            reconstruct: Reconstruct::Local,
            ..Options::default().refitting()
        },
    };
    let _ = local.fits(&none);
    aligned(&cost, network, &targets, &ranked.rankings);
}

/// The same budget in multiples of four neurons, and in parameters.
fn aligned(cost: &Cost, network: &Network, targets: &[PruneTarget], rankings: &[Ranking]) {
    let limits = [
        Limit::new(Demand::Flops(0.6), Prices::macs(cost, targets)),
        Limit::new(Demand::Parameters(0.7), Prices::parameters(cost, targets)),
    ];
    let _ = within(&limits, network, targets, rankings, Align::exactly(4));
}

/// Quantised weights as floats and back, whole and pruned.
fn quantised(model: &proto::ModelProto, options: axes::AnalysisOptions, seed: u8) {
    let Ok(Some((opened, closed))) = dequantise::open(model) else {
        return;
    };
    if onnx::validate(&opened).is_err() {
        return;
    }
    if let Ok(back) = closed.close(&opened) {
        onnx::validate(&back).expect("a closed model is sound");
    }
    let Ok(network) = Network::of(opened, options) else {
        return;
    };
    chosen(&network);
    for third in 0..2 {
        if let Some(small) = sliced(&network, &a_mask(&network.axes, third, seed))
            && let Ok(back) = closed.close(&small)
        {
            onnx::validate(&back).expect("a pruned and closed model is sound");
            graph::build(&back).expect("a pruned and closed model has a graph");
        }
    }
}

fn names(graph: &proto::GraphProto) -> Vec<String> {
    let inputs = graph.input.iter().map(|i| i.name().to_owned());
    let tensors = graph.initializer.iter().map(|t| t.name().to_owned());
    let nodes = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    inputs.chain(tensors).chain(nodes).collect()
}

/// One change.
fn change(model: &mut proto::ModelProto, choices: &mut Choices) {
    let Some(graph) = &mut model.graph else { return };
    match choices.byte() % 20 {
        0 | 1 => resized(graph, choices),
        2 | 3 => constant(graph, choices),
        4 => {
            let op = OPERATORS[choices.below(OPERATORS.len())];
            if let Some(node) = one(&mut graph.node, choices) {
                node.op_type = Some(op.into());
            }
        }
        5 | 6 => {
            let names = names(graph);
            let name = names.get(choices.below(names.len())).cloned().unwrap_or_default();
            if let Some(node) = one(&mut graph.node, choices)
                && let Some(input) = one(&mut node.input, choices)
            {
                *input = name;
            }
        }
        7 => {
            if let Some(node) = one(&mut graph.node, choices) {
                let left = choices.below(node.input.len() + 1);
                node.input.truncate(left);
            }
        }
        8 => {
            let names = names(graph);
            let name = names.get(choices.below(names.len())).cloned().unwrap_or_default();
            if let Some(node) = one(&mut graph.node, choices) {
                node.input.push(name);
            }
        }
        9 | 10 => attribute(graph, choices),
        11 => {
            let other = one(&mut graph.node, choices).and_then(|n| n.attribute.first().cloned());
            if let Some(node) = one(&mut graph.node, choices) {
                match (other, choices.byte() % 2) {
                    (Some(other), 0) => node.attribute.push(other),
                    _ => drop(node.attribute.pop()),
                }
            }
        }
        12 => {
            let at = choices.below(graph.node.len());
            if at < graph.node.len() {
                let gone = graph.node.remove(at);
                // What it made comes from its first input now.
                let from = gone.input.first().cloned().unwrap_or_default();
                for node in &mut graph.node {
                    for input in &mut node.input {
                        if gone.output.contains(input) {
                            input.clone_from(&from);
                        }
                    }
                }
            }
        }
        13 => {
            if let Some(node) = one(&mut graph.node, choices) {
                let mut copy = node.clone();
                for output in &mut copy.output {
                    output.push_str("_copy");
                }
                let shown = copy.output.first().cloned();
                graph.node.push(copy);
                graph.output.push(proto::ValueInfoProto {
                    name: shown,
                    ..Default::default()
                });
            }
        }
        14 => {
            let code = i32::from(choices.byte() % 26);
            if let Some(tensor) = one(&mut graph.initializer, choices) {
                tensor.data_type = Some(code);
                if let Some(size) = onnx_prune::tensor::Elem::from_onnx(code).map(|e| e.size()) {
                    let count = tensor.dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d));
                    let count = count.unwrap_or(0).clamp(0, 1 << 16) as usize;
                    tensor.raw_data = Some(vec![1; count * size].into());
                }
            }
        }
        15 | 16 => declared(graph, choices),
        17 => {
            let names = names(graph);
            graph.output.push(proto::ValueInfoProto {
                name: names.get(choices.below(names.len())).cloned(),
                ..Default::default()
            });
        }
        18 => {
            let (a, b) = (choices.below(graph.node.len()), choices.below(graph.node.len()));
            if a != b && a < graph.node.len() && b < graph.node.len() {
                let output = graph.node[a].output.clone();
                graph.node[a].output = std::mem::replace(&mut graph.node[b].output, output);
            }
        }
        _ => {
            let version = choices.number();
            if let Some(set) = one(&mut model.opset_import, choices) {
                set.version = Some(version);
            }
        }
    }
}

fn one<'a, T>(all: &'a mut [T], choices: &mut Choices) -> Option<&'a mut T> {
    let at = choices.below(all.len());
    all.get_mut(at)
}

/// Other sizes of a constant, with as many bytes as they need where that is few.
fn resized(graph: &mut proto::GraphProto, choices: &mut Choices) {
    let Some(tensor) = one(&mut graph.initializer, choices) else {
        return;
    };
    match choices.byte() % 4 {
        0 => {
            let (a, b) = (choices.below(tensor.dims.len()), choices.below(tensor.dims.len()));
            if a < tensor.dims.len() && b < tensor.dims.len() {
                tensor.dims.swap(a, b);
            }
        }
        1 => tensor.dims.push(1),
        2 => drop(tensor.dims.pop()),
        _ => {
            let number = choices.number();
            if let Some(dim) = one(&mut tensor.dims, choices) {
                *dim = number;
            }
        }
    }
    let size = onnx_prune::tensor::Elem::from_onnx(tensor.data_type()).map_or(1, |e| e.size() as i64);
    let bytes = tensor.dims.iter().try_fold(size, |n, d| n.checked_mul(*d));
    if let Some(bytes @ 0..=0x10_0000) = bytes {
        let mut raw = tensor.raw_data.take().map(|raw| raw.to_vec()).unwrap_or_default();
        raw.resize(bytes as usize, 1);
        tensor.raw_data = Some(raw.into());
    }
}

/// Another value in an integer constant.
fn constant(graph: &mut proto::GraphProto, choices: &mut Choices) {
    let integers =
        graph
            .initializer
            .iter_mut()
            .filter(|t| t.data_type() == 7)
            .chain(graph.node.iter_mut().flat_map(|n| {
                n.attribute
                    .iter_mut()
                    .filter_map(|a| a.t.as_mut())
                    .filter(|t| t.data_type() == 7)
            }));
    let mut integers: Vec<&mut proto::TensorProto> = integers.collect();
    let number = choices.number();
    let at = choices.below(integers.len());
    let Some(tensor) = integers.get_mut(at) else {
        return;
    };
    match &tensor.raw_data {
        Some(raw) if raw.len() >= 8 => {
            let mut raw = raw.to_vec();
            let at = choices.below(raw.len() / 8) * 8;
            raw[at..at + 8].copy_from_slice(&number.to_le_bytes());
            tensor.raw_data = Some(raw.into());
        }
        _ => {
            if let Some(value) = one(&mut tensor.int64_data, choices) {
                *value = number;
            }
        }
    }
}

fn attribute(graph: &mut proto::GraphProto, choices: &mut Choices) {
    let number = choices.number();
    let mut nodes: Vec<&mut proto::NodeProto> = graph
        .node
        .iter_mut()
        .filter(|n| !n.attribute.is_empty())
        .collect();
    let at = choices.below(nodes.len());
    let Some(node) = nodes.get_mut(at) else { return };
    let Some(attribute) = one(&mut node.attribute, choices) else {
        return;
    };
    match choices.byte() % 4 {
        0 | 1 => match attribute.ints.is_empty() {
            true => attribute.i = Some(number),
            false => {
                if let Some(value) = one(&mut attribute.ints, choices) {
                    *value = number;
                }
            }
        },
        2 => {
            attribute.r#type = Some(AttributeType::Ints as i32);
            attribute.ints.push(number);
        }
        _ => drop(attribute.ints.pop()),
    }
}

/// Another declared size.
fn declared(graph: &mut proto::GraphProto, choices: &mut Choices) {
    let number = choices.number();
    let infos = graph
        .input
        .iter_mut()
        .chain(&mut graph.output)
        .chain(&mut graph.value_info);
    let mut infos: Vec<&mut proto::ValueInfoProto> = infos.collect();
    let at = choices.below(infos.len());
    let Some(info) = infos.get_mut(at) else { return };
    let Some(proto::type_proto::Value::TensorType(tensor)) =
        info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return;
    };
    match choices.byte() % 8 {
        0 => tensor.elem_type = Some((number & 31) as i32),
        1 => tensor.shape = None,
        2 => {
            if let Some(shape) = &mut tensor.shape {
                shape.dim.pop();
            }
        }
        3 => {
            if let Some(dim) = tensor.shape.as_mut().and_then(|s| one(&mut s.dim, choices)) {
                dim.value = Some(Value::DimParam("batch".into()));
            }
        }
        _ => {
            if let Some(dim) = tensor.shape.as_mut().and_then(|s| one(&mut s.dim, choices)) {
                dim.value = Some(Value::DimValue(number));
            }
        }
    }
}
