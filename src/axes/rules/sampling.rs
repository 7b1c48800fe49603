//! Operators that make or rearrange entries in a way that only their ranks are
//! followed: the axes they work along keep their sizes, the others pass.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::op::Op;

/// Freezes an axis and makes one of unknown size in its place.
fn renewed(op: &mut Op, dim: &Dim, why: &str) -> Dim {
    op.freeze(dim, why);
    op.a.space.unknown()
}

/// `Resize`, `Upsample`: axes whose scale or size is 1 to 1 pass.
pub(super) fn resize(op: &mut Op) -> Option<()> {
    const WHY: &str = "it is resampled";
    let x = op.dims(0)?;
    let sizes = if op.has(3) { op.ints(3) } else { None };
    let axes: Vec<usize> = match op.node().ints("axes") {
        Some(axes) => axes.iter().map(|a| op.axis(*a, x.len())).collect::<Option<_>>()?,
        None => (0..x.len()).collect(),
    };
    let mut out = x.clone();
    for (k, axis) in axes.iter().enumerate() {
        let dim = &x[*axis];
        let wanted = sizes.as_ref().and_then(|s| s.get(k).cloned());
        let same = |op: &Op, int: &Int| op.a.space.value(int) == op.a.space.value(&Int::Dim(dim.clone()));
        match wanted {
            Some(int) if same(op, &int) => op.needs(3, k, int, Int::Dim(dim.clone())),
            Some(int) => {
                op.freeze(dim, WHY);
                out[*axis] = op.a.space.dim_of(&int);
                op.freeze(&out[*axis].clone(), WHY);
            }
            // Images are resampled over their last axes only.
            None if *axis < 2 && x.len() >= 3 => op.freeze(dim, WHY),
            None => out[*axis] = renewed(op, dim, WHY),
        }
    }
    op.set(0, out);
    Some(())
}

/// `MaxPool`, `AveragePool`, `LpPool` and their global forms.
pub(super) fn pool(op: &mut Op) -> Option<()> {
    const WHY: &str = "it is pooled over";
    let mut x = op.dims(0)?;
    let global = op.node().op.starts_with("Global");
    for dim in x.iter_mut().skip(2) {
        op.freeze(dim, WHY);
        *dim = if global { Dim::one() } else { op.a.space.unknown() };
    }
    for output in 0..op.node().outputs.len() {
        op.set(output, x.clone());
    }
    Some(())
}

/// `BatchNormalization` at inference: a scale and a shift per channel.
pub(super) fn batch_norm(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    if op.node().int("training_mode", 0) != 0 {
        return None;
    }
    let channels = x.get(1).or(x.first())?.clone();
    for input in 1..5 {
        op.join_input(input, 0, &channels);
    }
    op.set(0, x);
    Some(())
}

/// `InstanceNormalization`, `GroupNormalization`, `MeanVarianceNormalization`,
/// `LRN`: everything but the batch is normalised over.
pub(super) fn normalised(op: &mut Op) -> Option<()> {
    const WHY: &str = "it is normalised over";
    let x = op.dims(0)?;
    for dim in &x {
        op.freeze(dim, WHY);
    }
    for input in 1..op.node().inputs.len() {
        op.freeze_input(input, WHY);
    }
    op.set(0, x);
    Some(())
}

/// `DepthToSpace`, `SpaceToDepth`: only the batch passes.
pub(super) fn blocks(op: &mut Op) -> Option<()> {
    let mut x = op.dims(0)?;
    for dim in x.iter_mut().skip(1) {
        *dim = renewed(op, dim, "it is dealt out to blocks");
    }
    op.set(0, x);
    Some(())
}

/// `OneHot`: one more axis.
pub(super) fn one_hot(op: &mut Op) -> Option<()> {
    let mut x = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", -1), x.len() + 1)?;
    let depth = op.ints(1).and_then(|v| v.into_iter().next());
    let dim = match depth {
        Some(int) => op.a.space.dim_of(&int),
        None => op.a.space.unknown(),
    };
    op.freeze(&dim, "it counts classes");
    x.insert(axis, dim);
    op.set(0, x);
    Some(())
}

/// `TopK`: values and indices.
pub(super) fn top_k(op: &mut Op) -> Option<()> {
    const WHY: &str = "the largest entries along it are sought";
    let mut x = op.dims(0)?;
    let axis = op.axis(op.node().int("axis", -1), x.len())?;
    let count = match op.node().attrs.contains_key("k") {
        true => Some(Int::Const(op.node().int("k", 1))),
        false => op.ints(1).and_then(|v| v.into_iter().next()),
    };
    op.freeze(&x[axis], WHY);
    x[axis] = match count {
        Some(int) => op.a.space.dim_of(&int),
        None => op.a.space.unknown(),
    };
    op.freeze(&x[axis].clone(), WHY);
    op.set(0, x.clone());
    op.set(1, x);
    Some(())
}

/// `NonZero`: one row of indices per axis.
pub(super) fn non_zero(op: &mut Op) -> Option<()> {
    let rank = op.dims(0)?.len();
    op.freeze_input(0, "its entries that are not zero are sought");
    let axes = op.a.space.fresh(rank);
    op.freeze(&axes, "it counts axes");
    let found = op.a.space.unknown();
    op.set(0, vec![axes, found]);
    Some(())
}

/// `Compress`: picked along an axis, or of all entries in a row.
pub(super) fn compress(op: &mut Op) -> Option<()> {
    const WHY: &str = "some of its entries are picked";
    let mut x = op.dims(0)?;
    if op.node().attrs.contains_key("axis") {
        let axis = op.axis(op.node().int("axis", 0), x.len())?;
        x[axis] = renewed(op, &x[axis].clone(), WHY);
    } else {
        op.freeze_input(0, WHY);
        x = vec![op.a.space.unknown()];
    }
    op.set(0, x);
    Some(())
}

/// Outputs of the shape of input 0, everything frozen: `EyeLike`, random
/// numbers, `ReverseSequence`, layers of experts.
pub(super) fn alike(op: &mut Op) -> Option<()> {
    let x = op.dims(0)?;
    let why = match op.node().op.as_str() {
        "MoE" | "QMoE" => "it is inside a fused layer of experts, which is not pruned",
        _ => "its entries are told apart",
    };
    op.give_up(why);
    op.set(0, x);
    Some(())
}

/// `ConvTranspose`, `ConvInteger`, `QLinearConv`, `DeformConv`: filters and
/// channels keep their sizes; the rank passes.
pub(super) fn convolution(op: &mut Op) -> Option<()> {
    const WHY: &str = "it is an axis of a convolution that is not followed";
    let mut x = op.dims(0)?;
    op.give_up(WHY);
    for dim in x.iter_mut().skip(1) {
        *dim = op.a.space.unknown();
    }
    op.set(0, x);
    Some(())
}

/// `Unique`: values in a row, or slices along an axis, with what belongs to them.
pub(super) fn unique(op: &mut Op) -> Option<()> {
    const WHY: &str = "its entries are compared with each other";
    let mut x = op.dims(0)?;
    let axis = op.node().attrs.contains_key("axis");
    op.freeze_input(0, WHY);
    let found = op.a.space.unknown();
    if axis {
        let axis = op.axis(op.node().int("axis", 0), x.len())?;
        x[axis] = found.clone();
    } else {
        x = vec![found.clone()];
    }
    op.set(0, x);
    op.set(1, vec![found.clone()]);
    let all = op.a.space.unknown();
    op.set(2, vec![all]);
    op.set(3, vec![found]);
    Some(())
}

/// `DFT`: of real or complex numbers, to either.
pub(super) fn fourier(op: &mut Op) -> Option<()> {
    let mut x = op.dims(0)?;
    op.give_up("a Fourier transform runs over it");
    for dim in x.iter_mut().skip(1) {
        *dim = op.a.space.unknown();
    }
    op.set(0, x);
    Some(())
}
