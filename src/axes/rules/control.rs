//! If, Loop and Scan: what their bodies read keeps its size; the ranks and fixed
//! sizes of what they make follow from the bodies, so that the rest of the graph
//! can still be followed.

use crate::axes::algebra::dim::Dim;
use crate::axes::algebra::int::Int;
use crate::axes::facts::{Analysis, Facts};
use crate::axes::op::Op;
use crate::graph::{Attr, Graph};

/// Sizes of one value, `None` where a size is not fixed.
type KnownSizes = Vec<Option<usize>>;

pub(super) fn branches(op: &mut Op) -> Option<()> {
    let branch = |op: &mut Op, name: &str| -> Option<Vec<Option<KnownSizes>>> {
        let body = body(op, name)?;
        Some(run(op, body, &[]))
    };
    let condition = op.ints(0).and_then(|v| op.a.space.value(v.first()?).as_const());
    let taken = match condition {
        Some(0) => Some("else_branch"),
        Some(_) => Some("then_branch"),
        None => None,
    };
    let made = match taken {
        Some(name) => branch(op, name)?,
        None => {
            let (yes, no) = (branch(op, "then_branch")?, branch(op, "else_branch")?);
            yes.into_iter().zip(no).map(|(a, b)| common(a?, b?)).collect()
        }
    };
    // What only the other branch reads is never read.
    let read: Option<Vec<&str>> = match taken {
        Some(name) => {
            let body = body(op, name)?;
            Some(body.inputs.iter().map(|v| body.value(*v).name.as_str()).collect())
        }
        None => None,
    };
    settle(op, made, read.as_deref());
    Some(())
}

/// `Loop`: trip count, condition and carried values in; carried values and
/// stacked outputs out.
pub(super) fn repeat(op: &mut Op) -> Option<()> {
    let carried = op.node().inputs.len().checked_sub(2)?;
    let mut formal = vec![Some(vec![]), Some(vec![])];
    for k in 0..carried {
        formal.push(op.dims(k + 2).map(|d| vec![None; d.len()]));
    }
    let body = body(op, "body")?;
    let mut made = run(op, body, &formal);
    if made.is_empty() {
        return None;
    }
    made.remove(0);
    for (k, out) in made.iter_mut().enumerate() {
        if let Some(sizes) = out
            && k >= carried
        {
            sizes.insert(0, None);
        }
    }
    settle(op, made, None);
    Some(())
}

/// `Scan`: states and scanned inputs in; states and stacked outputs out.
pub(super) fn scan(op: &mut Op) -> Option<()> {
    // Before operator set 9, there was a batch axis and an input more.
    if op.graph.opset < 9 {
        return None;
    }
    let scanned = usize::try_from(op.node().int("num_scan_inputs", 0)).ok()?;
    let states = op.node().inputs.len().checked_sub(scanned)?;
    let mut formal = Vec::new();
    for k in 0..states + scanned {
        let rank = op.dims(k).map(|d| d.len());
        formal.push(rank.and_then(|r| Some(vec![None; r.checked_sub(usize::from(k >= states))?])));
    }
    let body = body(op, "body")?;
    let mut made = run(op, body, &formal);
    let axes = op
        .node()
        .ints("scan_output_axes")
        .map(<[i64]>::to_vec)
        .unwrap_or_default();
    for (k, out) in made.iter_mut().enumerate().skip(states) {
        if let Some(sizes) = out {
            let axis = axes.get(k - states).copied().unwrap_or(0);
            let at = op.axis(axis, sizes.len() + 1)?;
            sizes.insert(at, None);
        }
    }
    settle(op, made, None);
    Some(())
}

fn body<'g>(op: &Op<'g>, name: &str) -> Option<&'g Graph> {
    match op.node().attrs.get(name)? {
        Attr::Graph(graph) => Some(graph),
        _ => None,
    }
}

/// Follows a body with nothing but ranks, fixed sizes and numbers of what it
/// captures; the sizes of its outputs.
fn run(op: &mut Op, body: &Graph, formal: &[Option<KnownSizes>]) -> Vec<Option<KnownSizes>> {
    let mut inner = Analysis::empty(body);
    for (at, input) in body.inputs.iter().enumerate() {
        let facts = match formal.get(at) {
            Some(sizes) => Facts {
                dims: sizes.as_ref().map(|s| dims(&mut inner, s)),
                ..Facts::default()
            },
            None => captured(op, &mut inner, &body.value(*input).name),
        };
        inner.facts[input.0 as usize] = facts;
    }
    op.follow(body, &mut inner);
    body.outputs
        .iter()
        .map(|o| {
            let dims = inner.facts(*o).dims.as_ref()?;
            Some(dims.iter().map(|d| inner.space.size(d)).collect())
        })
        .collect()
}

fn dims(inner: &mut Analysis, sizes: &KnownSizes) -> Vec<Dim> {
    let dim = |size: &Option<usize>| match size {
        Some(n) => inner.space.fresh(*n),
        None => inner.space.unknown(),
    };
    sizes.iter().map(dim).collect()
}

/// What the outer graph knows about a captured value.
fn captured(op: &Op, inner: &mut Analysis, name: &str) -> Facts {
    let node = op.node();
    let mut reads = node.captures.iter().chain(node.inputs.iter().flatten());
    let Some(value) = reads.find(|v| op.graph.value(**v).name == name) else {
        return Facts::default();
    };
    let outer = op.a.facts(*value);
    let sizes: Option<KnownSizes> = outer
        .dims
        .as_ref()
        .map(|dims| dims.iter().map(|d| op.a.space.size(d)).collect());
    let ints: Option<Vec<Int>> = outer.ints.as_ref().and_then(|ints| {
        ints.iter()
            .map(|i| op.a.space.value(i).as_const().map(Int::Const))
            .collect()
    });
    Facts {
        dims: sizes.map(|s| dims(inner, &s)),
        ints,
        constant: outer.constant,
        table: outer.table,
        ..Facts::default()
    }
}

/// What two branches have in common.
fn common(a: KnownSizes, b: KnownSizes) -> Option<KnownSizes> {
    (a.len() == b.len()).then(|| a.into_iter().zip(b).map(|(x, y)| x.filter(|_| x == y)).collect())
}

/// Freezes what the node reads (all of it, or the values of these names) and
/// gives its outputs their sizes.
fn settle(op: &mut Op, made: Vec<Option<KnownSizes>>, read: Option<&[&str]>) {
    let why = format!("the body of {} reads it", op.node().op);
    op.give_up_on(&why, read);
    for (output, sizes) in made.into_iter().enumerate() {
        let Some(sizes) = sizes else { continue };
        let made: Vec<Dim> = sizes
            .iter()
            .map(|size| match size {
                Some(n) => op.a.space.fresh(*n),
                None => op.a.space.unknown(),
            })
            .collect();
        for dim in &made {
            op.freeze(dim, &why);
        }
        op.set(output, made);
    }
}
