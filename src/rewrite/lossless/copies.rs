//! A table that is stored twice, the second time transposed: an exporter has folded the
//! transposition of a tied output layer. It is stored once, and engines transpose it when
//! they load the model.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::LosslessPass;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{ModelProto, NodeProto, TensorProto};
use crate::rewrite::reads::ints_attribute;
use crate::tensor::Elem;

/// Smaller ones are not worth a node.
const LEAST_BYTES: usize = 1 << 16;
/// `Transpose` takes all types from this opset on.
const OPSET: i64 = 7;

/// A constant matrix whose bytes are at hand.
struct Matrix<'m> {
    at: usize,
    rows: usize,
    columns: usize,
    /// Bytes of an element.
    size: usize,
    bytes: &'m [u8],
}

impl<'m> Matrix<'m> {
    fn of((at, tensor): (usize, &'m TensorProto)) -> Option<Self> {
        let elem = Elem::from_onnx(tensor.data_type()).filter(|e| e.is_float())?;
        let [rows, columns] = tensor.dims[..] else {
            return None;
        };
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        let bytes = tensor.raw_data.as_deref()?;
        let inside = tensor.data_location() != DataLocation::External;
        let whole = rows.checked_mul(columns)?.checked_mul(elem.size())? == bytes.len();
        (inside && whole && bytes.len() >= LEAST_BYTES).then_some(Matrix {
            at,
            rows,
            columns,
            size: elem.size(),
            bytes,
        })
    }

    fn element(&self, row: usize, column: usize) -> Option<&[u8]> {
        let start = (row * self.columns + column) * self.size;
        self.bytes.get(start..start + self.size)
    }

    fn is_transpose_of(&self, other: &Matrix) -> bool {
        let equal = |row: usize, column: usize| self.element(row, column) == other.element(column, row);
        // The first row and the diagonal tell nearly all apart.
        (self.rows, self.columns, self.size) == (other.columns, other.rows, other.size)
            && (0..self.columns).all(|column| equal(0, column))
            && (0..self.rows.min(self.columns)).all(|at| equal(at, at))
            && (0..self.rows).all(|row| (0..self.columns).all(|column| equal(row, column)))
    }
}

/// The model with such tables stored once; nothing where there are none.
pub fn share(model: &ModelProto) -> Option<(ModelProto, Vec<LosslessPass>)> {
    let graph = model.graph.as_ref()?;
    let opset = model
        .opset_import
        .iter()
        .find(|o| ["", "ai.onnx"].contains(&o.domain()))?;
    if opset.version() < OPSET {
        return None;
    }
    let taken: HashSet<&str> = (graph.input.iter().map(|i| i.name()))
        .chain(graph.output.iter().map(|o| o.name()))
        .collect();
    let tensors = graph.initializer.iter().enumerate();
    let matrices: Vec<Matrix> = tensors
        .filter(|(_, t)| !taken.contains(t.name()))
        .filter_map(Matrix::of)
        .collect();
    let mut by_shape: HashMap<(usize, usize), Vec<&Matrix>> = HashMap::new();
    for matrix in &matrices {
        by_shape
            .entry((matrix.rows, matrix.columns))
            .or_default()
            .push(matrix);
    }
    // The copy, and what it is a copy of: the one with more rows, which a lookup reads.
    let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
    for matrix in matrices.iter().filter(|m| m.rows < m.columns) {
        let others = by_shape.get(&(matrix.columns, matrix.rows)).into_iter().flatten();
        let of = others.into_iter().find(|other| matrix.is_transpose_of(other));
        copies.extend(of.map(|of| (matrix.at, of.at)));
    }
    if copies.is_empty() {
        return None;
    }
    let mut passes = Vec::new();
    let mut nodes = Vec::new();
    for (copy, of) in &copies {
        let (copy, of) = (&graph.initializer[*copy], &graph.initializer[*of]);
        nodes.push(NodeProto {
            name: Some(format!("{}_transposed", copy.name())),
            op_type: Some("Transpose".to_owned()),
            input: vec![of.name().to_owned()],
            output: vec![copy.name().to_owned()],
            attribute: vec![ints_attribute("perm", vec![1, 0])],
            ..NodeProto::default()
        });
        let bytes = copy.raw_data.as_ref().map_or(0, |b| b.len());
        passes.push(LosslessPass {
            name: "copies",
            what: format!(
                "'{}' is '{}' transposed and is stored once: {} kB less",
                copy.name(),
                of.name(),
                bytes / 1000
            ),
            nodes: 0,
            contractions: 0,
        });
    }
    let mut model = model.clone();
    let own = model.graph.as_mut()?;
    let mut at = 0;
    own.initializer.retain(|_| {
        at += 1;
        !copies.contains_key(&(at - 1))
    });
    nodes.append(&mut own.node);
    own.node = nodes;
    Some((model, passes))
}
