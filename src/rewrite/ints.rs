//! Shape entries: where the graph computes another number than its consumer
//! needs after pruning, that consumer gets its own vector.

use std::collections::BTreeMap;

use super::draft::Draft;
use super::reads::{self, concat, pick};
use crate::axes::{Int, Mono, Poly};
use crate::graph::{NodeId, ValueId};
use crate::onnx::proto;
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

pub(super) fn mend(draft: &mut Draft) -> Result<()> {
    let mut wrong: BTreeMap<(NodeId, usize), BTreeMap<usize, (Poly, Poly)>> = BTreeMap::new();
    for entry in &draft.analysis.int_uses {
        if !draft.live[entry.node.0 as usize] {
            continue;
        }
        let (actual, needed) = (draft.eval(&entry.actual), draft.eval(&entry.needed));
        let space = &draft.analysis.space;
        // Two run-time sizes that the file itself takes for one stay as they are.
        let unchanged = actual == space.value(&entry.actual) && needed == space.value(&entry.needed);
        if actual != needed && !unchanged {
            wrong
                .entry((entry.node, entry.input))
                .or_default()
                .insert(entry.entry, (actual, needed));
        }
    }
    for ((node, input), entries) in wrong {
        consumer(draft, node, input, entries)?;
    }
    Ok(())
}

fn consumer(
    draft: &mut Draft,
    node: NodeId,
    input: usize,
    entries: BTreeMap<usize, (Poly, Poly)>,
) -> Result<()> {
    let graph = draft.graph;
    let Some(value) = graph.input(node, input) else {
        // A shape in an attribute (Reshape before opset 5).
        return in_attribute(draft, node, &entries);
    };
    let mut constants = BTreeMap::new();
    let mut scaled = Vec::new();
    let mut read = Vec::new();
    for (at, (actual, needed)) in entries {
        match (needed.as_const(), ratio(&actual, &needed)) {
            (Some(n), _) => {
                constants.insert(at, n);
            }
            (None, Some(by)) => scaled.push((at, by)),
            (None, None) => read.push((at, needed)),
        }
    }
    let mut name = draft.reads(node, input).unwrap_or_default();
    if !constants.is_empty() {
        name = patch(draft, value, &constants)?;
    }
    if !scaled.is_empty() {
        let length = draft.analysis.facts(value).ints.as_ref().map_or(0, Vec::len);
        name = scale(draft, &name, length, &scaled, graph.value(value).elem);
    }
    if !read.is_empty() {
        let length = draft.analysis.facts(value).ints.as_ref().map_or(0, Vec::len);
        name = reread(draft, node, &name, length, &read)?;
    }
    reads::rewire(draft, node, input, &graph.value(value).name.clone(), &name);
    Ok(())
}

/// A vector like `name` with some entries read from the shapes of other values.
fn reread(
    draft: &mut Draft,
    node: NodeId,
    name: &str,
    length: usize,
    entries: &[(usize, Poly)],
) -> Result<String> {
    let rank = reads::ranks(draft);
    let mut parts = Vec::with_capacity(length);
    for at in 0..length {
        parts.push(match entries.iter().find(|(entry, _)| *entry == at) {
            Some((_, size)) => reads::vector(draft, name, std::slice::from_ref(size), None, node, &rank)
                .map_err(|_| unsolved(draft, node, at))?,
            None => pick(draft, name, at as i64),
        });
    }
    Ok(concat(draft, name, &parts))
}

fn unsolved(draft: &Draft, node: NodeId, at: usize) -> Error {
    Error::input(format!(
        "entry {at} of the shape of node {} depends on sizes in a way that cannot be rewritten",
        draft.graph.label(node)
    ))
}

/// `needed / actual` as numerator and denominator.
fn ratio(actual: &Poly, needed: &Poly) -> Option<(i64, i64)> {
    let (a, n) = (actual.monomial(), needed.monomial());
    let bare = |m: &Mono| m.atoms.clone();
    (bare(&a) == bare(&n) && a.coefficient != 0).then_some((n.coefficient, a.coefficient))
}

fn in_attribute(draft: &mut Draft, node: NodeId, entries: &BTreeMap<usize, (Poly, Poly)>) -> Result<()> {
    let mut body = draft.body(node);
    for (at, (_, needed)) in entries {
        let value = needed.as_const().ok_or_else(|| unsolved(draft, node, *at))?;
        let shape = body.attribute.iter_mut().find(|a| a.name() == "shape");
        if let Some(entry) = shape.and_then(|a| a.ints.get_mut(*at)) {
            *entry = value;
        }
    }
    draft.changed.insert(node, body);
    Ok(())
}

/// A value like `value` with some entries replaced by numbers. Follows the
/// nodes that lay the vector together, so that what is computed stays computed;
/// nothing that others read is changed.
fn patch(draft: &mut Draft, value: ValueId, entries: &BTreeMap<usize, i64>) -> Result<String> {
    let graph = draft.graph;
    let v = graph.value(value);
    let ints: Vec<Int> = draft.analysis.facts(value).ints.clone().unwrap_or_default();
    let vector = draft
        .analysis
        .facts(value)
        .dims
        .as_ref()
        .is_none_or(|d| !d.is_empty());
    let elem = v.elem.filter(|e| *e == Elem::I32).unwrap_or(Elem::I64);
    // Everything is a number now: a constant.
    let numbers: Option<Vec<i64>> = ints
        .iter()
        .enumerate()
        .map(|(at, int)| match (entries.get(&at), int) {
            (Some(n), _) => Some(*n),
            (None, Int::Const(n)) => Some(*n),
            _ => None,
        })
        .collect();
    if let Some(numbers) = numbers {
        let shape = if vector { vec![numbers.len()] } else { vec![] };
        return Ok(draft.constant(&v.name, &integers(shape, numbers, elem)));
    }
    if let Some((node, _)) = v.producer {
        let n = graph.node(node);
        match (n.domain.as_str(), n.op.as_str()) {
            ("", "Concat") => {
                let mut body = draft.body(node);
                let mut offset = 0;
                for (input, slot) in n.inputs.iter().enumerate() {
                    let Some(part) = slot else { continue };
                    let length = draft.analysis.facts(*part).ints.as_ref().map_or(1, Vec::len);
                    let inner: BTreeMap<usize, i64> = entries
                        .range(offset..offset + length)
                        .map(|(at, n)| (at - offset, *n))
                        .collect();
                    body.input[input] = draft.reads(node, input).unwrap_or_default();
                    if !inner.is_empty() {
                        body.input[input] = patch(draft, *part, &inner)?;
                    }
                    offset += length;
                }
                return Ok(copy(draft, body, &v.name));
            }
            ("", "Unsqueeze" | "Squeeze" | "Identity" | "Reshape" | "Cast") => {
                if let Some(inner) = graph.input(node, 0)
                    && draft
                        .analysis
                        .facts(inner)
                        .ints
                        .as_ref()
                        .is_some_and(|i| i.len() == ints.len())
                {
                    let mut body = draft.body(node);
                    body.input[0] = patch(draft, inner, entries)?;
                    return Ok(copy(draft, body, &v.name));
                }
            }
            _ => {}
        }
    }
    // Laid together anew from single entries.
    let reads = draft.follow(&v.name).to_string();
    let mut parts: Vec<String> = Vec::with_capacity(ints.len());
    for at in 0..ints.len() {
        parts.push(match entries.get(&at) {
            Some(n) => draft.constant(&v.name, &integers(vec![1], vec![*n], elem)),
            None => pick(draft, &reads, at as i64),
        });
    }
    Ok(concat(draft, &v.name, &parts))
}

fn integers(shape: Vec<usize>, numbers: Vec<i64>, elem: Elem) -> Tensor {
    match elem {
        Elem::I32 => Tensor::new(
            shape,
            Data::I32(
                numbers
                    .iter()
                    .map(|n| i32::try_from(*n).unwrap_or(i32::MAX))
                    .collect(),
            ),
        ),
        _ => Tensor::i64(shape, numbers),
    }
}

/// Adds a copy of a node under new names; returns its output.
fn copy(draft: &mut Draft, mut body: proto::NodeProto, base: &str) -> String {
    let output = draft.fresh(base);
    body.name = Some(format!("{output}_{}", body.op_type()));
    body.output = vec![output.clone()];
    draft.added.push(body);
    output
}

/// Multiplies entries by ratios: sizes that are symbols times pruned factors.
fn scale(
    draft: &mut Draft,
    name: &str,
    length: usize,
    entries: &[(usize, (i64, i64))],
    elem: Option<Elem>,
) -> String {
    let elem = elem.filter(|e| *e == Elem::I32).unwrap_or(Elem::I64);
    let mut up = vec![1; length];
    let mut down = vec![1; length];
    for (at, (numerator, denominator)) in entries {
        if *at < length {
            (up[*at], down[*at]) = (*numerator, *denominator);
        }
    }
    let up = draft.constant(&format!("{name}_times"), &integers(vec![length], up, elem));
    let down = draft.constant(&format!("{name}_over"), &integers(vec![length], down, elem));
    let product = draft.node("Mul", name, &[name, &up], vec![]);
    draft.node("Div", name, &[&product, &down], vec![])
}
