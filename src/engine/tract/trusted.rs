//! What tract may be trusted with.
//!
//! tract ignores the domain of an operator, so that `com.microsoft::Attention`
//! is taken for ONNX's and panics; and it runs some operators wrongly, without
//! a word (opset-23 Attention with a mask). So nothing runs that has not been
//! checked: an operator is on the list when each of ONNX's node tests that
//! ONNX Runtime passes, each model of the zoo, and variants for older opsets,
//! float16 and the operators of ONNX Runtime are computed rightly by tract, with
//! and without its optimisations, or refused by itself. What fails only in a
//! form that the file shows is on the list with that form excluded.
//! `tests/it/engines.rs` repeats the checks. NaN is left out of them: tract loses it
//! in `Max`, `Min`, `Clip`, `Relu`, `Sigmoid` and `Tanh`.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{INSTALL, NAME};
use crate::engine::operators::{for_each_node, operator, spelling};
use crate::error::{Error, Result};
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::tensor::Elem;

/// The versions of the default domain that the checks cover.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=28;

/// Operators of the default domain, sorted. `SimplifiedLayerNormalization` is
/// one of ONNX Runtime's that lives there.
#[rustfmt::skip]
const DEFAULT: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear",
    "Div", "Dropout", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "MatMulInteger", "Max",
    "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg",
    "NonZero", "Not", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QuantizeLinear",
    "RMSNormalization", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu",
    "Reshape", "Resize", "RotaryEmbedding", "Round", "ScatterElements", "ScatterND", "Selu",
    "Shape", "Shrink", "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Where", "Xor",
];

/// Operators of `com.microsoft`, sorted.
const MICROSOFT: &[&str] = &[
    "BiasGelu",
    "FastGelu",
    "Gelu",
    "QuickGelu",
    "SkipLayerNormalization",
];

/// Fails, naming operator and node, when `model` holds anything that is not
/// trusted.
pub(super) fn check(model: &ModelProto) -> Result<()> {
    let Some(graph) = &model.graph else {
        return Ok(());
    };
    let opset = model
        .opset_import
        .iter()
        .find(|import| spelling(import.domain()).is_empty())
        .map_or(0, |import| import.version());
    if !OPSETS.contains(&opset) {
        return Err(Error::engine(format!(
            "{NAME} is checked for opsets {} to {}, and the model is written in opset {opset}; \
             {INSTALL}",
            OPSETS.start(),
            OPSETS.end()
        )));
    }
    let functions: HashSet<(&str, &str)> = model
        .functions
        .iter()
        .map(|f| (spelling(f.domain()), f.name()))
        .collect();
    let file = TrustedFile::read(graph);
    if let Some(tensor) = file.bfloat16 {
        return Err(super::no_bfloat16().context(format!("tensor `{}`", tensor.name())));
    }
    let mut refused: Option<(String, &NodeProto)> = None;
    let mut others = BTreeSet::new();
    for_each_node(graph, &mut |node| {
        let is_function = functions.contains(&(spelling(node.domain()), node.op_type()));
        let Some(reason) = file.objection(node, is_function) else {
            return;
        };
        let what = format!("`{}`{reason}", operator(node));
        match &refused {
            None => refused = Some((what, node)),
            Some((first, _)) if *first == what => {}
            Some(_) => {
                others.insert(what);
            }
        }
    });
    let Some((what, node)) = refused else {
        return Ok(());
    };
    let also = if others.is_empty() {
        String::new()
    } else {
        format!("; nor {}", others.into_iter().collect::<Vec<_>>().join(", "))
    };
    Err(Error::engine(format!(
        "{NAME} cannot be trusted with {what}, node `{}`{also}; {INSTALL}",
        name(node)
    )))
}

/// The name of a node, or of its first result.
fn name(node: &NodeProto) -> &str {
    match node.name() {
        "" => node.output.first().map_or("", String::as_str),
        name => name,
    }
}

/// What the objections look up: all graphs of the file taken together.
struct TrustedFile<'a> {
    constants: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, &'a NodeProto>,
    bfloat16: Option<&'a TensorProto>,
}

impl<'a> TrustedFile<'a> {
    fn read(graph: &'a GraphProto) -> Self {
        let mut file = TrustedFile {
            constants: HashMap::new(),
            producers: HashMap::new(),
            bfloat16: None,
        };
        file.initializers(graph);
        for_each_node(graph, &mut |node| {
            for output in &node.output {
                file.producers.insert(output, node);
            }
            for attribute in &node.attribute {
                if let Some(tensor) = &attribute.t {
                    file.add(node.output.first().map_or("", String::as_str), tensor);
                }
                for inner in attribute.g.iter().chain(&attribute.graphs) {
                    file.initializers(inner);
                }
            }
        });
        file
    }

    fn initializers(&mut self, graph: &'a GraphProto) {
        for tensor in &graph.initializer {
            self.add(tensor.name(), tensor);
        }
    }

    fn add(&mut self, name: &'a str, tensor: &'a TensorProto) {
        self.constants.insert(name, tensor);
        if Elem::from_onnx(tensor.data_type()) == Some(Elem::BF16) {
            self.bfloat16.get_or_insert(tensor);
        }
    }

    /// Why `node` may not run, as it goes on after the operator's name.
    fn objection(&self, node: &NodeProto, is_function: bool) -> Option<&'static str> {
        let trusted = match spelling(node.domain()) {
            "" => DEFAULT,
            "com.microsoft" => MICROSOFT,
            _ => &[],
        };
        if is_function || trusted.binary_search(&node.op_type()).is_err() {
            return Some("");
        }
        let input = |place: usize| node.input.get(place).map_or("", String::as_str);
        match node.op_type() {
            // Its fusion of per-channel products is wrong.
            "QuantizeLinear" | "DequantizeLinear" => match self.constants.get(input(1)) {
                None => Some(" with a computed scale"),
                Some(scale) if scale.dims.iter().any(|&d| d != 1) => Some(" with one scale per channel"),
                Some(_) => None,
            },
            // A cast to int64 is taken for shape arithmetic, which it cannot sum.
            "CumSum" => {
                let producer = self.producers.get(input(0))?;
                (producer.op_type() == "Cast" && casts_to(producer, Elem::I64))
                    .then_some(" of a Cast to int64")
            }
            "Cast" => casts_to(node, Elem::BF16).then_some(" to bfloat16"),
            // It computes a float32 result.
            "Gemm" => node
                .input
                .iter()
                .filter_map(|name| self.constants.get(name.as_str()))
                .any(|t| Elem::from_onnx(t.data_type()) == Some(Elem::F16))
                .then_some(" in float16"),
            // It panics.
            "SkipLayerNormalization" => {
                (input(3).is_empty() && !input(4).is_empty()).then_some(" with bias but no beta")
            }
            _ => None,
        }
    }
}

fn casts_to(node: &NodeProto, elem: Elem) -> bool {
    node.attribute
        .iter()
        .find(|a| a.name() == "to")
        .map(AttributeProto::i)
        == Some(i64::from(elem.to_onnx()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{FunctionProto, OperatorSetIdProto};

    fn node(domain: &str, op: &str, inputs: &[&str]) -> NodeProto {
        NodeProto {
            domain: Some(domain.into()),
            op_type: Some(op.into()),
            name: Some(format!("the_{op}")),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![format!("{op}_out")],
            ..NodeProto::default()
        }
    }

    fn model(nodes: &[NodeProto], constants: &[(&str, Elem, &[i64])]) -> ModelProto {
        let initializer = constants
            .iter()
            .map(|(name, elem, dims)| TensorProto {
                name: Some((*name).into()),
                data_type: Some(elem.to_onnx()),
                dims: dims.to_vec(),
                ..TensorProto::default()
            })
            .collect();
        ModelProto {
            opset_import: vec![OperatorSetIdProto {
                version: Some(17),
                ..OperatorSetIdProto::default()
            }],
            graph: Some(GraphProto {
                node: nodes.to_vec(),
                initializer,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn refusal(model: &ModelProto) -> Option<String> {
        check(model).err().map(|e| e.to_string())
    }

    #[test]
    fn the_lists_are_sorted() {
        assert!(DEFAULT.is_sorted() && MICROSOFT.is_sorted());
    }

    #[test]
    fn an_operator_is_known_by_its_domain() {
        assert_eq!(refusal(&model(&[node("ai.onnx", "Add", &["a", "b"])], &[])), None);
        let text = refusal(&model(&[node("com.microsoft", "Add", &[])], &[])).unwrap();
        assert!(text.contains("`com.microsoft::Add`, node `the_Add`"), "{text}");
        assert!(text.contains("pip install onnxruntime"), "{text}");
    }

    #[test]
    fn everything_that_is_refused_is_named() {
        let nodes = [
            node("", "Attention", &[]),
            node("", "Attention", &[]),
            node("x", "Y", &[]),
        ];
        let text = refusal(&model(&nodes, &[])).unwrap();
        assert!(
            text.contains("with `Attention`, node `the_Attention`; nor `x::Y`;"),
            "{text}"
        );
    }

    #[test]
    fn forms_that_go_wrong_are_refused() {
        let mut cast = node("", "Cast", &["x"]);
        cast.attribute = vec![AttributeProto {
            name: Some("to".into()),
            i: Some(i64::from(Elem::I64.to_onnx())),
            ..AttributeProto::default()
        }];
        let sum = |of: &str| node("", "CumSum", &[of, "axis"]);
        assert!(refusal(&model(&[cast.clone(), sum("Cast_out")], &[])).is_some());
        assert!(refusal(&model(&[cast, sum("x")], &[])).is_none());

        let skip = |inputs: &[&str]| node("com.microsoft", "SkipLayerNormalization", inputs);
        assert!(refusal(&model(&[skip(&["x", "y", "g", "", "bias"])], &[])).is_some());
        assert!(refusal(&model(&[skip(&["x", "y", "g", "b", "bias"])], &[])).is_none());

        let scaled = node("", "DequantizeLinear", &["x", "s"]);
        for (dims, fits) in [(&[][..], true), (&[1], true), (&[8], false)] {
            let model = model(std::slice::from_ref(&scaled), &[("s", Elem::F32, dims)]);
            assert_eq!(refusal(&model).is_none(), fits);
        }

        let gemm = node("", "Gemm", &["x", "w"]);
        for (elem, fits) in [(Elem::F32, true), (Elem::F16, false), (Elem::BF16, false)] {
            let model = model(std::slice::from_ref(&gemm), &[("w", elem, &[2, 2])]);
            assert_eq!(refusal(&model).is_none(), fits);
        }
    }

    #[test]
    fn local_functions_and_unchecked_opsets_are_refused() {
        let mut local = model(&[node("", "Gelu", &["x"])], &[]);
        assert!(refusal(&local).is_none());
        local.functions = vec![FunctionProto {
            name: Some("Gelu".into()),
            domain: Some(String::new()),
            ..FunctionProto::default()
        }];
        assert!(refusal(&local).is_some());

        let mut old = model(&[], &[]);
        old.opset_import[0].version = Some(8);
        assert!(refusal(&old).unwrap().contains("opset 8"));
    }

    #[test]
    fn inner_graphs_are_looked_into() {
        let mut outer = node("", "If", &["c"]);
        outer.attribute = vec![AttributeProto {
            g: model(&[node("", "Loop", &[])], &[]).graph,
            ..AttributeProto::default()
        }];
        assert!(refusal(&model(&[outer], &[])).unwrap().contains("`Loop`"));
    }
}
