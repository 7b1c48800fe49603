//! Products of dynamically quantised activations with quantised weights.

use std::collections::HashMap;

use super::integers::{Integers, QuantisedNames};
use crate::Result;
use crate::onnx::{self, proto};

/// `DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(scale of x * scale of w)`.
pub(super) struct Product {
    /// The product's place among the nodes.
    pub(super) at: usize,
    /// Places of the cast and of the scaling.
    pub(super) gone: [usize; 2],
    /// The name of the float weight.
    pub(super) weight: String,
    pub(super) integers: Integers,
    /// What is quantised.
    x: String,
    product: proto::NodeProto,
    cast: proto::NodeProto,
    scales: proto::NodeProto,
    scale: proto::NodeProto,
}

/// All of them.
pub(super) fn find(
    graph: &proto::GraphProto,
    constants: &HashMap<&str, &proto::TensorProto>,
) -> Result<Vec<Product>> {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, node) in graph.node.iter().enumerate() {
        makers.extend(node.output.iter().map(|o| (o.as_str(), at)));
        for input in &node.input {
            readers.entry(input).or_default().push(at);
        }
    }
    let made_by = |name: Option<&String>| makers.get(name?.as_str()).map(|at| &graph.node[*at]);
    let only_reader = |name: Option<&String>| -> Option<usize> {
        let name = name?;
        if graph.output.iter().any(|o| o.name() == name) {
            return None;
        }
        match &readers.get(name.as_str())?[..] {
            [one] => Some(*one),
            _ => None,
        }
    };
    let mut found = Vec::new();
    for (at, node) in graph.node.iter().enumerate() {
        if node.op_type() != "MatMulInteger" {
            continue;
        }
        let parts = || -> Option<_> {
            let quantiser = made_by(node.input.first())?;
            if quantiser.op_type() != "DynamicQuantizeLinear" || node.input.get(2) != quantiser.output.get(2)
            {
                return None;
            }
            let cast = only_reader(node.output.first())?;
            let scale = only_reader(graph.node[cast].output.first())?;
            let (c, s) = (&graph.node[cast], &graph.node[scale]);
            if c.op_type() != "Cast" || s.op_type() != "Mul" {
                return None;
            }
            let factor = s.input.iter().find(|i| Some(*i) != c.output.first());
            let scales = made_by(factor)?;
            if scales.op_type() != "Mul" {
                return None;
            }
            let own = scales
                .input
                .iter()
                .find(|i| Some(*i) != quantiser.output.get(1))?;
            let weight = constants.get(node.input.get(1)?.as_str())?;
            let own = constants.get(own.as_str())?;
            let zero = match node.input.get(3).filter(|z| !z.is_empty()) {
                Some(zero) => Some(constants.get(zero.as_str())?),
                None => None,
            };
            Some((quantiser, cast, scale, scales, *weight, *own, zero))
        };
        let Some((quantiser, cast, scale, scales, weight, own, zero)) = parts() else {
            continue;
        };
        let zero = zero.map(|z| onnx::tensor(z)).transpose()?;
        let Some(integers) = Integers::new(onnx::tensor(weight)?, onnx::tensor(own)?, zero, -1) else {
            continue;
        };
        if integers.scale.elem() != crate::tensor::Elem::F32 {
            continue;
        }
        found.push(Product {
            at,
            gone: [cast, scale],
            weight: format!("{}_float", graph.node[scale].output[0]),
            integers,
            x: quantiser.input.first().cloned().unwrap_or_default(),
            product: node.clone(),
            cast: graph.node[cast].clone(),
            scales: scales.clone(),
            scale: graph.node[scale].clone(),
        });
    }
    Ok(found)
}

impl Product {
    /// The float product.
    pub(super) fn open(&self) -> proto::NodeProto {
        proto::NodeProto {
            name: self.product.name.clone(),
            op_type: Some("MatMul".into()),
            input: vec![self.x.clone(), self.weight.clone()],
            output: self.scale.output.clone(),
            ..Default::default()
        }
    }

    /// Whether a node is the float product.
    pub(super) fn is(&self, node: &proto::NodeProto) -> bool {
        node.op_type() == "MatMul"
            && node.output == self.scale.output
            && node.input.get(1) == Some(&self.weight)
    }

    /// The nodes and constants of the product with other integers, of `x`.
    pub(super) fn close(
        &self,
        x: &str,
        quantiser: Option<&proto::NodeProto>,
        integers: &Integers,
        nodes: &mut Vec<proto::NodeProto>,
        made: &mut Vec<proto::TensorProto>,
    ) {
        let names: QuantisedNames =
            ["_quantised", "_scale", "_zero_point"].map(|s| format!("{}{s}", self.weight));
        made.extend(integers.constants(&names));
        let quantiser = quantiser.cloned().unwrap_or_else(|| proto::NodeProto {
            name: Some(format!("{x}_quantiser")),
            op_type: Some("DynamicQuantizeLinear".into()),
            input: vec![x.to_string()],
            output: ["_int", "_int_scale", "_int_zero"]
                .map(|s| format!("{x}{s}"))
                .to_vec(),
            ..Default::default()
        });
        let [int, scale, zero] = [0, 1, 2].map(|i| quantiser.output.get(i).cloned().unwrap_or_default());
        let mut input = vec![int, names[0].clone(), zero];
        if integers.zero.is_some() {
            input.push(names[2].clone());
        }
        nodes.push(quantiser);
        nodes.push(proto::NodeProto {
            input: vec![scale, names[1].clone()],
            ..self.scales.clone()
        });
        nodes.push(proto::NodeProto {
            input,
            ..self.product.clone()
        });
        nodes.push(self.cast.clone());
        nodes.push(self.scale.clone());
    }
}
