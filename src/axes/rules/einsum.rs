//! Einsum: equal letters are equal dimensions.

use std::collections::BTreeMap;

use crate::axes::algebra::dim::Dim;
use crate::axes::facts::Contraction;
use crate::axes::op::Op;

/// One axis in an equation: a letter, or the k-th axis from the right of `...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Letter(char),
    Dots(usize),
}

pub(super) fn einsum(op: &mut Op) -> Option<()> {
    let equation: String = op
        .node()
        .text("equation")?
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_string(), Some(r.to_string())),
        None => (equation, None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    let count = op.node().inputs.len();
    if terms.len() != count || count == 0 {
        return None;
    }
    let mut known: BTreeMap<Label, Dim> = BTreeMap::new();
    let mut labels: Vec<Vec<Label>> = Vec::with_capacity(count);
    for (index, term) in terms.iter().enumerate() {
        let dims = op.dims(index)?;
        let own = expand(term, dims.len())?;
        for (label, dim) in own.iter().zip(&dims) {
            let so_far = known.get(label).cloned().unwrap_or_default();
            let joined = op.join(&so_far, dim);
            known.insert(*label, joined);
        }
        labels.push(own);
    }
    let output = match right {
        Some(text) => {
            let dots = known.keys().filter(|l| matches!(l, Label::Dots(_))).count();
            let letters = text.replace("...", "").chars().count();
            expand(&text, letters + if text.contains("...") { dots } else { 0 })?
        }
        None => implicit(&labels, &known),
    };
    let dims: Option<Vec<Dim>> = output.iter().map(|l| known.get(l).cloned()).collect();
    let dims = dims?;
    record(op, &labels, &output, &known)?;
    op.set(0, dims);
    Some(())
}

/// The labels of one term for a tensor of this rank.
fn expand(term: &str, rank: usize) -> Option<Vec<Label>> {
    let letters = |text: &str| text.chars().map(Label::Letter).collect::<Vec<_>>();
    let labels = match term.split_once("...") {
        Some((before, after)) => {
            let (mut out, after) = (letters(before), letters(after));
            let dots = rank.checked_sub(out.len() + after.len())?;
            out.extend((0..dots).rev().map(Label::Dots));
            out.extend(after);
            out
        }
        None => letters(term),
    };
    (labels.len() == rank).then_some(labels)
}

/// The output of an equation without `->`: dots, then letters that occur once.
fn implicit(labels: &[Vec<Label>], known: &BTreeMap<Label, Dim>) -> Vec<Label> {
    let mut out: Vec<Label> = known
        .keys()
        .filter(|l| matches!(l, Label::Dots(_)))
        .rev()
        .copied()
        .collect();
    out.extend(known.keys().filter(|l| {
        matches!(l, Label::Letter(_)) && labels.iter().flatten().filter(|x| x == l).count() == 1
    }));
    out
}

fn record(op: &mut Op, labels: &[Vec<Label>], output: &[Label], known: &BTreeMap<Label, Dim>) -> Option<()> {
    // Repeated letters in one operand are a diagonal.
    for side in labels {
        for (at, label) in side.iter().enumerate() {
            if side[..at].contains(label) {
                op.freeze(&known[label], "a diagonal is taken along it");
            }
        }
    }
    let [a, b] = labels else {
        // One operand: sums freeze; of three and more, each entry of the result
        // still needs only the entries of the operands at its own place.
        let why = match labels.len() {
            1 => "it is summed over",
            _ => "a product of several values is summed over it",
        };
        for (_, dim) in known.iter().filter(|(label, _)| !output.contains(label)) {
            op.freeze(dim, why);
        }
        return Some(());
    };
    let mut contraction = Contraction {
        node: op.id,
        inputs: [0, 1],
        constant: [op.is_constant(0), op.is_constant(1)],
        contracted: Vec::new(),
        batch: Vec::new(),
        free: [Vec::new(), Vec::new()],
        bias: None,
        inner: false,
    };
    for (label, dim) in known {
        let places = [a, b].map(|side| side.iter().position(|l| l == label));
        match (places, output.contains(label)) {
            ([Some(x), Some(y)], false) => contraction.contracted.push((x, y, dim.clone())),
            ([Some(_), Some(_)], true) => contraction.batch.push(dim.clone()),
            ([Some(_), None], true) => contraction.free[0].push(dim.clone()),
            ([None, Some(_)], true) => contraction.free[1].push(dim.clone()),
            _ => op.freeze(dim, "it is summed over"),
        }
    }
    op.contract(contraction);
    Some(())
}
