//! One rule per operator: how the terms of its inputs and outputs relate.
//!
//! A rule reads the dimensions of its inputs from an [`Op`](super::op::Op), joins what must
//! agree, freezes what must keep its size and sets the dimensions of its
//! outputs. It returns `None` when it cannot follow the node; then everything
//! the node touches is frozen, which is always safe.
//!
//! A new operator is one rule in one of these files (or a new one) and one line
//! in [`find`].

mod attention;
mod attention_std;
mod contraction;
mod control;
mod convolution;
mod einsum;
mod elementwise;
mod indexing;
mod layout;
mod normalisation;
mod packed;
mod parts;
mod quantised;
mod sampling;
mod sequences;
mod shapes;

use super::op::Rule;
use crate::graph::operators::{is_broadcast, is_unary};

const MS: &str = "com.microsoft";
/// Layouts that ONNX Runtime writes for one kind of processor.
const NCHWC: &str = "com.microsoft.nchwc";

/// The rule of an operator.
pub fn find(domain: &str, op: &str) -> Option<Rule> {
    Some(match (domain, op) {
        ("", "SwiGLU") => elementwise::broadcast,
        (domain, op) if is_broadcast(domain, op) => elementwise::broadcast,
        ("", "BitCast" | "Dropout") => elementwise::unary,
        (domain, op) if is_unary(domain, op) => elementwise::unary,
        (MS, "BiasGelu" | "FastGelu" | "BiasAdd") => elementwise::with_bias,
        ("", "MatMul" | "MatMulInteger") | (MS, "FusedMatMul" | "TransposeMatMul") => contraction::matmul,
        ("", "Gemm") | (MS, "FusedGemm") => contraction::gemm,
        (MS, "GemmFastGelu") => contraction::with_bias,
        ("", "Einsum") => einsum::einsum,
        ("", "Conv") | (MS, "FusedConv") => convolution::conv,
        ("", "Reshape") => layout::reshape,
        ("", "Flatten") => layout::flatten,
        ("", "Transpose") => layout::transpose,
        ("", "Unsqueeze") => layout::unsqueeze,
        ("", "Squeeze") => layout::squeeze,
        ("", "Expand") => layout::expand,
        ("", "Tile") => layout::tile,
        ("", "Concat") => parts::concat,
        ("", "Split") => parts::split,
        ("", "Slice") => parts::slice,
        ("", "SplitToSequence") => sequences::split,
        ("", "SequenceConstruct") => sequences::construct,
        ("", "SequenceAt") => sequences::at,
        ("", "SequenceLength") => sequences::length,
        ("", "ConcatFromSequence") => sequences::concat,
        ("", "Pad") => parts::pad,
        ("", "Gather") => indexing::gather,
        ("", "GatherElements") => indexing::gather_elements,
        ("", "GatherND") => indexing::gather_nd,
        ("", "Scatter" | "ScatterElements" | "ScatterND") => indexing::scatter,
        ("", "CumSum" | "CumProd" | "Trilu") => indexing::along_axes,
        ("", "ArgMax" | "ArgMin") => indexing::arg,
        ("", "Shape") => shapes::shape,
        ("", "Size") => shapes::size,
        ("", "ConstantOfShape") => shapes::constant_of_shape,
        ("", "Range") => shapes::range,
        (
            "",
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
            | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare",
        ) => normalisation::reduce,
        ("", "If") => control::branches,
        ("", "Loop") => control::repeat,
        ("", "Scan") => control::scan,
        ("", "Resize" | "Upsample") => sampling::resize,
        (
            "",
            "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool",
        ) => sampling::pool,
        ("", "BatchNormalization") => sampling::batch_norm,
        ("", "InstanceNormalization" | "GroupNormalization" | "MeanVarianceNormalization" | "LRN")
        | (MS, "GroupNorm") => sampling::normalised,
        ("", "DepthToSpace" | "SpaceToDepth") => sampling::blocks,
        ("", "OneHot") => sampling::one_hot,
        ("", "TopK") => sampling::top_k,
        ("", "NonZero") => sampling::non_zero,
        ("", "Compress") => sampling::compress,
        ("", "Unique") => sampling::unique,
        ("", "EyeLike" | "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" | "ReverseSequence")
        | (MS, "MoE" | "QMoE") => sampling::alike,
        ("", "ConvTranspose" | "ConvInteger" | "QLinearConv" | "DeformConv") => sampling::convolution,
        ("", "Softmax" | "LogSoftmax" | "Hardmax") => normalisation::softmax,
        ("", "LpNormalization") => normalisation::one_axis,
        ("", "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization")
        | (MS, "SimplifiedLayerNormalization" | "LayerNormalization") => normalisation::layer_norm,
        (MS, "SkipLayerNormalization") => normalisation::skip_layer_norm,
        (MS, "SkipSimplifiedLayerNormalization") => normalisation::skip_simplified,
        (MS, "EmbedLayerNormalization") => normalisation::embed,
        (MS, "Attention" | "DecoderMaskedSelfAttention") => attention::packed,
        (MS, "QAttention") => packed::quantised,
        (MS, "PackedAttention") => packed::attention,
        (MS, "PackedMultiHeadAttention") => packed::multi_head,
        (MS, "DecoderMaskedMultiHeadAttention") => packed::decoder,
        (MS, "RelativePositionBias") => packed::relative_bias,
        (MS, "RemovePadding") => packed::remove_padding,
        (MS, "RestorePadding") => packed::restore_padding,
        ("", "TensorScatter") => packed::write_rows,
        (MS, "MultiHeadAttention") => attention::multi_head,
        (MS, "GroupQueryAttention") => attention::grouped,
        (MS, "RotaryEmbedding") => attention::rotary,
        ("", "Attention") => attention_std::attention,
        ("", "RotaryEmbedding") => attention_std::rotary,
        ("", "DequantizeLinear" | "QuantizeLinear") | (MS, "DequantizeLinear" | "QuantizeLinear") => {
            quantised::linear
        }
        ("", "DynamicQuantizeLinear") => quantised::dynamic,
        (MS, "MatMulIntegerToFloat" | "DynamicQuantizeMatMul") => quantised::matmul,
        (MS, "MatMulNBits") => quantised::blocks,
        (MS, "GatherBlockQuantized") => quantised::embedding,
        ("", "QLinearMatMul") => quantised::integer_product,
        (MS, "QGemm") => quantised::integer_product,
        (MS, "QLinearAdd" | "QLinearMul") => quantised::integer_sum,
        (MS, "QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearSoftmax") => sampling::alike,
        (MS, "BiasSoftmax") => normalisation::bias_softmax,
        (MS, "BiasDropout") => elementwise::with_bias_and_residual,
        (MS, "Trilu") => indexing::along_axes,
        (NCHWC, "Conv" | "MaxPool" | "AveragePool" | "ReorderInput" | "ReorderOutput" | "Upsample") => {
            sampling::convolution
        }
        ("", "DFT") => sampling::fourier,
        _ => return None,
    })
}
