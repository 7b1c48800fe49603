//! What has become constant once some groups have no units.

use std::collections::BTreeMap;

use super::constants::source;
use super::draft::Draft;
use crate::axes::{Dim, Int, Poly};
use crate::graph::{NodeId, ValueId};
use crate::onnx;
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};

/// What has become constant while the pass runs. Each constant broadcasts to
/// the value's shape.
pub(crate) struct Known<'d, 'm> {
    pub(crate) draft: &'d mut Draft<'m>,
    pub(crate) values: BTreeMap<ValueId, Tensor>,
}

impl Known<'_, '_> {
    /// What an input has become, or the constant that it is in the file.
    pub(crate) fn constant(&self, node: NodeId, input: usize) -> Option<Tensor> {
        let value = self.draft.graph.input(node, input)?;
        match self.values.get(&value) {
            Some(tensor) => Some(tensor.clone()),
            None => self.stored(value),
        }
    }

    /// A float constant of the file.
    pub(crate) fn stored(&self, value: ValueId) -> Option<Tensor> {
        self.draft.graph.value(value).constant.as_ref()?;
        let tensor = onnx::tensor(&source(self.draft, value).ok()?).ok()?;
        tensor.elem().is_float().then_some(tensor)
    }

    /// Says that a value has become constant.
    pub(crate) fn set(&mut self, value: ValueId, constant: Tensor) -> Result<()> {
        let v = self.draft.graph.value(value);
        if v.is_output {
            return Err(Error::input(format!(
                "the graph output '{}' would be constant",
                v.name
            )));
        }
        self.values.insert(value, constant);
        Ok(())
    }

    /// Whether a value has the whole shape of another by itself.
    pub(crate) fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |v: ValueId| -> Option<Vec<Poly>> {
            let dims = self.draft.analysis.facts(v).dims.as_ref()?;
            let space = &self.draft.analysis.space;
            Some(dims.iter().map(|d| space.value(&Int::Dim(d.clone()))).collect())
        };
        shape(a).is_some() && shape(a) == shape(b)
    }

    /// The dimensions of a value in terms of leaves.
    pub(crate) fn dims(&self, value: ValueId) -> Option<Vec<Dim>> {
        let dims = self.draft.analysis.facts(value).dims.as_ref()?;
        Some(
            dims.iter()
                .map(|d| self.draft.analysis.space.resolve(d))
                .collect(),
        )
    }

    /// Lets a running node read the constant, expanded.
    pub(crate) fn feed(&mut self, node: NodeId, input: usize, wanted: &mut Vec<Wanted>) {
        let Some(value) = self.draft.graph.input(node, input) else {
            return;
        };
        let Some(constant) = self.values.get(&value).cloned() else {
            return;
        };
        let name = self.draft.fresh(&self.draft.graph.value(value).name);
        self.draft.inputs.insert((node, input), name.clone());
        wanted.push(Wanted {
            node,
            value,
            constant,
            name,
        });
    }
}

pub(crate) fn refuse(draft: &Draft, node: NodeId) -> Error {
    Error::input(format!(
        "a constant cannot be folded into node {}",
        draft.graph.label(node)
    ))
}

/// The element type of the sums of a sink.
pub(crate) fn sum_type(known: &Known, sink: &crate::axes::Sink) -> Elem {
    match known.draft.graph.node(sink.node).op.as_str() {
        "MatMulInteger" => Elem::I32,
        _ => super::masked::float_type(known.draft.graph, sink),
    }
}

/// A use of a vanished value that wants it in its whole shape.
pub(crate) struct Wanted {
    pub(crate) node: NodeId,
    pub(crate) value: ValueId,
    pub(crate) constant: Tensor,
    /// The name that the use reads now.
    pub(crate) name: String,
}

/// The constant on an input.
pub(crate) fn input(known: &Known, node: NodeId, input: usize) -> Result<Tensor> {
    known
        .constant(node, input)
        .ok_or_else(|| refuse(known.draft, node))
}

pub(crate) fn output(known: &Known, node: NodeId) -> Result<ValueId> {
    let output = known.draft.graph.node(node).outputs.first().copied().flatten();
    output.ok_or_else(|| refuse(known.draft, node))
}
