//! Quantised weights: pruned and re-fitted as floats, written as they came.
//!
//! ```text
//! weight -> DequantizeLinear -> reader            float weight -> reader
//! x -> DynamicQuantizeLinear -> MatMulInteger     x -> MatMul(float weight)
//!        -> Cast -> Mul(scales)
//! ```
//!
//! [`open`] makes the model on the right, which a run ranks, fits and slices like
//! any other; [`Closed::close`] puts the integers back. A weight whose values the
//! old scales still hold exactly (it was only sliced) keeps them, so with
//! `--reconstruct none` all values are the old ones; a re-fitted one gets new
//! scales of the same kind, per tensor or per axis, symmetric or not.
//!
//! Weights in blocks (`MatMulNBits`, `DequantizeLinear` with a block size) become float
//! weights, and are cut into blocks again. Those inside of fused operators are left as they are.

mod blocks;
mod dynamic;
mod grids;
mod integers;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::graph::node_reads;
use crate::graph::sweep::{Swept, sweep};
use crate::onnx::{self, proto};
use crate::tensor::{Elem, Tensor};
use crate::{Error, Result};
use blocks::BlockProduct;
use dynamic::Product;
use grids::BlockedWeight;
pub(super) use integers::Integers;

/// What the closed form of an opened model needs.
pub struct Closed {
    weights: Vec<IntegerWeight>,
    products: Vec<Product>,
    blocks: Vec<BlockProduct>,
    grids: Vec<BlockedWeight>,
    /// The `DynamicQuantizeLinear` nodes, by what they read.
    quantisers: BTreeMap<String, proto::NodeProto>,
}

/// A constant that was dequantised.
struct IntegerWeight {
    node: proto::NodeProto,
    integers: Integers,
}

/// The model with float weights in place of quantised ones; `None` where there are
/// none that can be opened.
///
/// # Errors
/// Constants whose data does not match their shape.
pub fn open(model: &proto::ModelProto) -> Result<Option<(proto::ModelProto, Closed)>> {
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| Error::input("the model has no graph"))?;
    let constants: HashMap<&str, &proto::TensorProto> =
        graph.initializer.iter().map(|t| (t.name(), t)).collect();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    let read =
        |name: &str| -> Result<Option<Tensor>> { constants.get(name).map(|t| onnx::tensor(t)).transpose() };
    let mut opened = graph.clone();
    let mut closed = Closed {
        weights: Vec::new(),
        products: dynamic::find(graph, &constants)?,
        blocks: blocks::find(graph, &constants)?,
        grids: Vec::new(),
        quantisers: BTreeMap::new(),
    };
    let mut nodes = Vec::with_capacity(graph.node.len());
    let gone: HashSet<usize> = closed
        .products
        .iter()
        .flat_map(|p| p.gone.iter().copied())
        .collect();
    for (at, node) in graph.node.iter().enumerate() {
        if node.op_type() == "DynamicQuantizeLinear"
            && let Some(x) = node.input.first()
        {
            closed.quantisers.insert(x.clone(), node.clone());
        }
        if let Some(product) = closed.products.iter().find(|p| p.at == at) {
            opened
                .initializer
                .push(onnx::tensor_proto(&product.weight, &product.integers.floats()?));
            nodes.push(product.open());
            continue;
        }
        if gone.contains(&at) {
            continue;
        }
        if let Some(product) = closed.blocks.iter().find(|p| p.at == at) {
            let weight = onnx::tensor_proto(&product.weight, &product.tensor());
            opened.initializer.push(weight);
            nodes.push(product.open());
            continue;
        }
        let dequantised = (node.output.first())
            .filter(|o| node.op_type() == "DequantizeLinear" && !outputs.contains(o.as_str()));
        if let Some(output) = dequantised
            && let Some(weight) = BlockedWeight::of(node, &constants)?
        {
            opened
                .initializer
                .push(onnx::tensor_proto(output, &weight.floats()));
            closed.grids.push(weight);
            continue;
        }
        let folded = match dequantised {
            Some(_) => Integers::of(node, &read)?,
            None => None,
        };
        match (folded, node.output.first()) {
            (Some(integers), Some(output)) => {
                opened
                    .initializer
                    .push(onnx::tensor_proto(output, &integers.floats()?));
                closed.weights.push(IntegerWeight {
                    node: node.clone(),
                    integers,
                });
            }
            _ => nodes.push(node.clone()),
        }
    }
    if closed.is_empty() {
        return Ok(None);
    }
    // What only quantised weights were made of is not counted beside them.
    let reads =
        |nodes: &[proto::NodeProto]| -> HashSet<String> { nodes.iter().flat_map(node_reads).collect() };
    let (before, after) = (reads(&opened.node), reads(&nodes));
    opened.initializer.retain(|t| {
        let name = t.name();
        after.contains(name) || !before.contains(name) || outputs.contains(name)
    });
    opened.node = nodes;
    let opened = proto::ModelProto {
        graph: Some(opened),
        ..model.clone()
    };
    Ok(Some((opened, closed)))
}

impl Closed {
    fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.products.is_empty() && self.blocks.is_empty() && self.grids.is_empty()
    }

    /// The model with integers again: `model` comes from the opened one, pruned or
    /// not.
    ///
    /// # Errors
    /// Constants whose data does not match their shape.
    pub fn close(&self, model: &proto::ModelProto) -> Result<proto::ModelProto> {
        let mut graph = model
            .graph
            .clone()
            .ok_or_else(|| Error::input("the model has no graph"))?;
        let held: HashMap<String, Tensor> = {
            let names = self.weights.iter().filter_map(|w| w.node.output.first());
            let products = self.products.iter().map(|p| &p.weight);
            let blocks = self.blocks.iter().map(|p| &p.weight);
            let grids = self.grids.iter().filter_map(|w| w.node.output.first());
            let names: HashSet<&String> = names.chain(products).chain(blocks).chain(grids).collect();
            graph
                .initializer
                .iter()
                .filter(|t| names.contains(&t.name().to_string()))
                .map(|t| Ok((t.name().to_string(), onnx::tensor(t)?)))
                .collect::<Result<_>>()?
        };
        let mut made: Vec<proto::TensorProto> = Vec::new();
        let mut nodes = Vec::new();
        let mut replaced: HashSet<String> = HashSet::new();
        let mut again = Vec::with_capacity(self.weights.len());
        for weight in &self.weights {
            if let Some((output, tensor)) = weight.node.output.first().and_then(|o| held.get_key_value(o)) {
                again.push((weight, output, weight.integers.again(tensor)?));
            }
        }
        // An engine that fuses a product takes an int32 bias to have the scale of
        // activation times weight, whatever its own says: it cannot stay where a
        // weight has a new scale.
        let rescaled = again.iter().any(|(_, _, integers)| integers.rescaled);
        for (weight, output, integers) in again {
            if rescaled && integers.values.elem() == Elem::I32 {
                continue;
            }
            let names = integers.names(&weight.node);
            made.extend(integers.constants(&names));
            nodes.push(integers.node(&weight.node, &names));
            replaced.insert(output.clone());
        }
        for weight in &self.grids {
            if let Some((output, tensor)) = weight.node.output.first().and_then(|o| held.get_key_value(o)) {
                let (node, constants) = weight.again(tensor)?;
                made.extend(constants);
                nodes.push(node);
                replaced.insert(output.clone());
            }
        }
        for node in std::mem::take(&mut graph.node) {
            let block = self.blocks.iter().find(|p| p.is(&node));
            if let Some((block, tensor)) = block.and_then(|p| Some((p, held.get(&p.weight)?))) {
                let x = node.input.first().cloned().unwrap_or_default();
                let (node, constants) = block.close(&x, tensor)?;
                nodes.push(node);
                made.extend(constants);
                replaced.insert(block.weight.clone());
                continue;
            }
            let product = self.products.iter().find(|p| p.is(&node));
            match product.and_then(|p| Some((p, held.get(&p.weight)?))) {
                Some((product, tensor)) => {
                    let integers = product.integers.again(tensor)?;
                    let x = node.input.first().cloned().unwrap_or_default();
                    let quantiser = self.quantisers.get(&x);
                    product.close(&x, quantiser, &integers, &mut nodes, &mut made);
                    replaced.insert(product.weight.clone());
                }
                None => nodes.push(node),
            }
        }
        // A quantiser that several products read comes once.
        let mut seen = HashSet::new();
        nodes.retain(|n| {
            n.output
                .first()
                .is_none_or(|o| o.is_empty() || seen.insert(o.clone()))
        });
        let outputs = graph.output.iter().map(|o| o.name().to_string()).collect();
        let Swept { nodes, used, .. } = sweep(nodes, outputs)?;
        graph.node = nodes;
        let new: HashSet<&str> = made.iter().map(|t| t.name()).collect();
        graph
            .initializer
            .retain(|t| !replaced.contains(t.name()) && !new.contains(t.name()) && used.contains(t.name()));
        let mut once = HashSet::new();
        let made = made
            .iter()
            .filter(|t| used.contains(t.name()) && once.insert(t.name()));
        graph.initializer.extend(made.cloned());
        let known: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        graph
            .value_info
            .retain(|i| used.contains(i.name()) && !known.contains(i.name()));
        Ok(proto::ModelProto {
            graph: Some(graph),
            ..model.clone()
        })
    }
}
