//! What operators are, whatever is done with them.

/// Operators of ONNX Runtime.
const MS: &str = "com.microsoft";

/// Whether an operator computes each entry of its output from that of its first
/// input alone.
pub fn is_unary(domain: &str, op: &str) -> bool {
    matches!(
        (domain, op),
        (
            "",
            "Abs"
                | "Acos"
                | "Acosh"
                | "Asin"
                | "Asinh"
                | "Atan"
                | "Atanh"
                | "BitwiseNot"
                | "Cast"
                | "CastLike"
                | "Ceil"
                | "Celu"
                | "Clip"
                | "Cos"
                | "Cosh"
                | "Elu"
                | "Erf"
                | "Exp"
                | "Floor"
                | "Gelu"
                | "HardSigmoid"
                | "HardSwish"
                | "Identity"
                | "IsInf"
                | "IsNaN"
                | "LeakyRelu"
                | "Log"
                | "Mish"
                | "Neg"
                | "Not"
                | "Reciprocal"
                | "Relu"
                | "Round"
                | "Selu"
                | "Shrink"
                | "Sigmoid"
                | "Sign"
                | "Sin"
                | "Sinh"
                | "Softplus"
                | "Softsign"
                | "Sqrt"
                | "Swish"
                | "Tan"
                | "Tanh"
                | "ThresholdedRelu",
        ) | (MS, "Gelu" | "QuickGelu")
    )
}

/// Whether an operator computes each entry of its output from those of its inputs
/// at the same place, with axes of size 1 repeated.
pub fn is_broadcast(domain: &str, op: &str) -> bool {
    domain.is_empty()
        && matches!(
            op,
            "Add"
                | "Sub"
                | "Mul"
                | "Div"
                | "Pow"
                | "Min"
                | "Max"
                | "Mean"
                | "Sum"
                | "Mod"
                | "And"
                | "Or"
                | "Xor"
                | "Equal"
                | "Greater"
                | "GreaterOrEqual"
                | "Less"
                | "LessOrEqual"
                | "BitwiseAnd"
                | "BitwiseOr"
                | "BitwiseXor"
                | "BitShift"
                | "PRelu"
                | "Where"
        )
}

/// An axis that may be negative.
pub fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    (0..rank).contains(&axis).then_some(axis as usize)
}

/// An operator that adds, possibly before it normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addition {
    /// How many of the first inputs are summands of equal standing; none is all of them.
    pub summands: Option<usize>,
    /// The input that is a bias of the sum.
    pub bias: Option<usize>,
    /// The output that is the sum itself.
    pub sum: usize,
}

/// The addition that an operator makes: a residual sum, where one of its summands is what
/// the other was computed from.
pub fn addition(domain: &str, op: &str) -> Option<Addition> {
    let fused = |bias: usize| Addition {
        summands: Some(2),
        bias: Some(bias),
        sum: 3,
    };
    Some(match (domain, op) {
        ("", "Add" | "Sum") => Addition {
            summands: None,
            bias: None,
            sum: 0,
        },
        (MS, "SkipLayerNormalization") => fused(4),
        (MS, "SkipSimplifiedLayerNormalization") => fused(3),
        _ => return None,
    })
}

/// Whether an operator hands on its first input with nothing but its shape changed.
pub fn is_view(domain: &str, op: &str) -> bool {
    domain.is_empty() && matches!(op, "Reshape" | "Identity" | "Dropout")
}

/// Whether an operator hands on a constant as another view of it: transposed, or in
/// another type.
pub fn is_view_of_constant(domain: &str, op: &str) -> bool {
    domain.is_empty() && matches!(op, "Transpose" | "Identity" | "Cast")
}
