//! Weights that are quantised in blocks of four or eight bits: `MatMulNBits`.
//!
//! Each column of the weight is cut along its inputs into blocks with a scale, and a zero
//! point or the middle of the range. Packed, a block of `block_size` entries takes
//! `block_size * bits / 8` bytes, the even entry of two four-bit ones in the lower half.

use std::collections::HashMap;

use crate::onnx::{self, proto};
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// A product with such a weight.
pub(super) struct BlockProduct {
    /// Its place among the nodes.
    pub(super) at: usize,
    /// The name of the float weight.
    pub(super) weight: String,
    node: proto::NodeProto,
    layout: BlockLayout,
    /// The weight as it came.
    floats: Vec<f32>,
    packed: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

/// How a weight is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlockLayout {
    /// Inputs.
    k: usize,
    /// Columns.
    n: usize,
    block: usize,
    bits: usize,
}

impl BlockLayout {
    /// Of a node; `None` for what is not understood.
    fn of(node: &proto::NodeProto) -> Option<Self> {
        let int = |name: &str| {
            let found = node.attribute.iter().find(|a| a.name() == name)?;
            usize::try_from(found.i()).ok()
        };
        let layout = BlockLayout {
            k: int("K")?,
            n: int("N")?,
            block: int("block_size")?,
            bits: int("bits").unwrap_or(4),
        };
        let fits = [4, 8].contains(&layout.bits) && layout.block.is_power_of_two() && layout.block >= 16;
        (fits && layout.k > 0 && layout.n > 0).then_some(layout)
    }

    fn blocks(self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Bytes of a packed block.
    fn bytes(self) -> usize {
        self.block * self.bits / 8
    }

    /// Bytes of the zero points of a column.
    fn zero_bytes(self) -> usize {
        (self.blocks() * self.bits).div_ceil(8)
    }

    fn most(self) -> u8 {
        if self.bits == 4 { 15 } else { 255 }
    }

    /// The zero point where none is stored.
    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The entry of a packed row of numbers.
    fn entry(self, packed: &[u8], at: usize) -> u8 {
        match self.bits {
            4 => packed.get(at / 2).map_or(0, |byte| byte >> (4 * (at % 2)) & 15),
            _ => packed.get(at).copied().unwrap_or(0),
        }
    }

    /// Sets one that is zero.
    fn put(self, packed: &mut [u8], at: usize, value: u8) {
        let (byte, shift) = if self.bits == 4 {
            (at / 2, 4 * (at % 2))
        } else {
            (at, 0)
        };
        if let Some(byte) = packed.get_mut(byte) {
            *byte |= value << shift;
        }
    }
}

fn bytes(tensor: &Tensor) -> Option<&[u8]> {
    match &tensor.data {
        Data::U8(values) => Some(values),
        _ => None,
    }
}

/// All of them whose constants are at hand.
pub(super) fn find(
    graph: &proto::GraphProto,
    constants: &HashMap<&str, &proto::TensorProto>,
) -> Result<Vec<BlockProduct>> {
    let mut found = Vec::new();
    for (at, node) in graph.node.iter().enumerate() {
        if (node.domain(), node.op_type()) != ("com.microsoft", "MatMulNBits") {
            continue;
        }
        let input = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
        // An order of its own for the inputs, or a bias, is of another kind.
        let plain = input(4).is_none() && input(5).is_none();
        let (Some(layout), true, Some(output)) = (BlockLayout::of(node), plain, node.output.first()) else {
            continue;
        };
        let read = |at: usize| -> Result<Option<Tensor>> {
            let held = input(at).and_then(|name| constants.get(name));
            held.map(|t| onnx::tensor(t)).transpose()
        };
        let (Some(packed), Some(scales)) = (read(1)?, read(2)?) else {
            continue;
        };
        let zeros = read(3)?;
        if input(3).is_some() != zeros.is_some() {
            continue;
        }
        let blocks = layout.blocks().saturating_mul(layout.n);
        let fits = packed.elem() == Elem::U8
            && packed.len() == blocks.saturating_mul(layout.bytes())
            && scales.elem().is_float()
            && scales.len() == blocks
            && zeros
                .as_ref()
                .is_none_or(|z| z.elem() == Elem::U8 && z.len() == layout.n * layout.zero_bytes());
        if !fits {
            continue;
        }
        let mut product = BlockProduct {
            at,
            weight: format!("{output}_opened"),
            node: node.clone(),
            layout,
            floats: Vec::new(),
            packed,
            scales,
            zeros,
        };
        product.floats = product.dequantised()?;
        found.push(product);
    }
    Ok(found)
}

impl BlockProduct {
    /// The weight, inputs by columns.
    fn dequantised(&self) -> Result<Vec<f32>> {
        let wrong = || {
            Error::input(format!(
                "the weight of '{}' is not packed into bytes",
                self.node.name()
            ))
        };
        let BlockLayout { k, n, block, .. } = self.layout;
        let packed = bytes(&self.packed).ok_or_else(wrong)?;
        let scales = self.scales.to_f32();
        let blocks = self.layout.blocks();
        let mut floats = vec![0.0f32; k * n];
        for column in 0..n {
            for at in 0..blocks {
                let index = column * blocks + at;
                let (scale, zero) = (scales[index], self.zero(column, at));
                let own = &packed[index * self.layout.bytes()..(index + 1) * self.layout.bytes()];
                for row in at * block..((at + 1) * block).min(k) {
                    let value = self.layout.entry(own, row - at * block);
                    floats[row * n + column] = (f32::from(value) - f32::from(zero)) * scale;
                }
            }
        }
        Ok(floats)
    }

    fn zero(&self, column: usize, block: usize) -> u8 {
        let per_column = self.layout.zero_bytes();
        match self.zeros.as_ref().and_then(bytes) {
            Some(zeros) => self
                .layout
                .entry(&zeros[column * per_column..(column + 1) * per_column], block),
            None => self.layout.middle(),
        }
    }

    /// The float weight, in the type of the scales.
    pub(super) fn tensor(&self) -> Tensor {
        let shape = vec![self.layout.k, self.layout.n];
        let values: Vec<f64> = self.floats.iter().map(|v| f64::from(*v)).collect();
        Tensor::rounded(shape, &values, self.scales.elem())
    }

    /// The float product.
    pub(super) fn open(&self) -> proto::NodeProto {
        proto::NodeProto {
            name: self.node.name.clone(),
            op_type: Some("MatMul".into()),
            input: vec![
                self.node.input.first().cloned().unwrap_or_default(),
                self.weight.clone(),
            ],
            output: self.node.output.clone(),
            ..Default::default()
        }
    }

    /// Whether a node is the float product.
    pub(super) fn is(&self, node: &proto::NodeProto) -> bool {
        node.op_type() == "MatMul"
            && node.output == self.node.output
            && node.input.get(1) == Some(&self.weight)
    }

    /// The product with another weight, which reads `x`, and its constants.
    pub(super) fn close(
        &self,
        x: &str,
        weight: &Tensor,
    ) -> Result<(proto::NodeProto, Vec<proto::TensorProto>)> {
        let [k, n] = weight.shape[..] else {
            return Err(Error::input(format!("the weight '{}' is no matrix", self.weight)));
        };
        let layout = BlockLayout { k, n, ..self.layout };
        let values = weight.to_f32();
        let old = self.columns();
        let blocks = layout.blocks();
        let mut packed = vec![0u8; n * blocks * layout.bytes()];
        let mut scales = vec![0.0f32; n * blocks];
        let mut zeros = vec![0u8; n * layout.zero_bytes()];
        let (old_scales, old_packed) = (self.scales.to_f32(), bytes(&self.packed).unwrap_or_default());
        for column in 0..n {
            let own: Vec<f32> = (0..k).map(|row| values[row * n + column]).collect();
            // A column that was left alone keeps what it had.
            let same = (k == self.layout.k)
                .then(|| old.get(&key(&own)))
                .flatten()
                .copied();
            for at in 0..blocks {
                let index = column * blocks + at;
                let out = &mut packed[index * layout.bytes()..(index + 1) * layout.bytes()];
                let zero_row = &mut zeros[column * layout.zero_bytes()..(column + 1) * layout.zero_bytes()];
                if let Some(from) = same {
                    let from_index = from * blocks + at;
                    out.copy_from_slice(
                        &old_packed[from_index * layout.bytes()..(from_index + 1) * layout.bytes()],
                    );
                    scales[index] = old_scales[from_index];
                    layout.put(zero_row, at, self.zero(from, at));
                    continue;
                }
                let entries = &own[at * layout.block..((at + 1) * layout.block).min(k)];
                let (scale, zero) = self.range(entries);
                scales[index] = scale;
                layout.put(zero_row, at, zero);
                for (i, value) in entries.iter().enumerate() {
                    let quantised = (value / scale + f32::from(zero)).round();
                    layout.put(out, i, quantised.clamp(0.0, f32::from(layout.most())) as u8);
                }
            }
        }
        let names = ["_quantised", "_scales", "_zero_points"].map(|end| format!("{}{end}", self.weight));
        // Older exporters write the scales and zero points as one row, newer ones by column.
        let by_column = |old: &Tensor, per: usize| match old.shape.len() {
            2 => vec![n, per],
            _ => vec![n * per],
        };
        let scale_values: Vec<f64> = scales.iter().map(|s| f64::from(*s)).collect();
        let new_scales = Tensor::rounded(by_column(&self.scales, blocks), &scale_values, self.scales.elem());
        let mut made = vec![
            onnx::tensor_proto(
                &names[0],
                &Tensor::new(vec![n, blocks, layout.bytes()], Data::U8(packed)),
            ),
            onnx::tensor_proto(&names[1], &new_scales),
        ];
        let mut input = vec![x.to_owned(), names[0].clone(), names[1].clone()];
        if let Some(old) = &self.zeros {
            let shape = by_column(old, layout.zero_bytes());
            made.push(onnx::tensor_proto(
                &names[2],
                &Tensor::new(shape, Data::U8(zeros)),
            ));
            input.push(names[2].clone());
        }
        let mut node = proto::NodeProto {
            input,
            ..self.node.clone()
        };
        for attribute in &mut node.attribute {
            match attribute.name() {
                "K" => attribute.i = Some(k as i64),
                "N" => attribute.i = Some(n as i64),
                _ => {}
            }
        }
        Ok((node, made))
    }

    /// The columns as they came, by their values.
    fn columns(&self) -> HashMap<Vec<u32>, usize> {
        let BlockLayout { k, n, .. } = self.layout;
        let tensor = self.tensor().to_f32();
        let column = |at: usize| (0..k).map(|row| tensor[row * n + at]).collect::<Vec<f32>>();
        (0..n).map(|at| (key(&column(at)), at)).collect()
    }

    /// A scale and a zero point for some values, of the kind of the old ones.
    fn range(&self, values: &[f32]) -> (f32, u8) {
        let least = values.iter().fold(0.0f32, |m, v| m.min(*v));
        let most = values.iter().fold(0.0f32, |m, v| m.max(*v));
        let finite = |scale: f32| if scale.is_normal() { scale } else { 1.0 };
        if self.zeros.is_none() {
            // The larger side has one step more.
            let middle = f32::from(self.layout.middle());
            let scale = if -least > most {
                least / -middle
            } else {
                most / -middle
            };
            return (finite(scale), self.layout.middle());
        }
        let steps = f32::from(self.layout.most());
        let scale = finite((most - least) / steps);
        let zero = (-least / scale).round().clamp(0.0, steps);
        (scale, zero as u8)
    }
}

fn key(column: &[f32]) -> Vec<u32> {
    column.iter().map(|v| v.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(name: &str, i: i64) -> proto::AttributeProto {
        proto::AttributeProto {
            name: Some(name.into()),
            i: Some(i),
            ..Default::default()
        }
    }

    fn product(bits: i64, zero_points: bool) -> BlockProduct {
        let (k, n, block) = (40usize, 3usize, 16usize);
        let node = proto::NodeProto {
            op_type: Some("MatMulNBits".into()),
            domain: Some("com.microsoft".into()),
            input: ["x", "b", "s", "z"][..3 + usize::from(zero_points)].map_to_strings(),
            output: vec!["y".into()],
            attribute: vec![
                int("K", k as i64),
                int("N", n as i64),
                int("block_size", block as i64),
                int("bits", bits),
            ],
            ..Default::default()
        };
        let layout = BlockLayout::of(&node).unwrap();
        let bytes: Vec<u8> = (0..n * layout.blocks() * layout.bytes())
            .map(|i| (i * 37 % 251) as u8)
            .collect();
        let scales: Vec<f32> = (0..n * layout.blocks())
            .map(|i| 0.01 + 0.003 * i as f32)
            .collect();
        let zeros: Vec<u8> = (0..n * layout.zero_bytes())
            .map(|i| (i * 91 % 256) as u8)
            .collect();
        let tensors = [
            onnx::tensor_proto(
                "b",
                &Tensor::new(vec![n, layout.blocks(), layout.bytes()], Data::U8(bytes)),
            ),
            onnx::tensor_proto("s", &Tensor::f32(vec![n * layout.blocks()], scales)),
            onnx::tensor_proto("z", &Tensor::new(vec![n * layout.zero_bytes()], Data::U8(zeros))),
        ];
        let constants = tensors.iter().map(|t| (t.name(), t)).collect();
        let graph = proto::GraphProto {
            node: vec![node],
            ..Default::default()
        };
        find(&graph, &constants).unwrap().remove(0)
    }

    trait Strings {
        fn map_to_strings(&self) -> Vec<String>;
    }

    impl Strings for [&str] {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    /// The weight of a product that was closed.
    fn again(of: &BlockProduct, closed: (proto::NodeProto, Vec<proto::TensorProto>)) -> BlockProduct {
        let (node, made) = closed;
        let constants = made.iter().map(|t| (t.name(), t)).collect();
        let graph = proto::GraphProto {
            node: vec![node],
            ..Default::default()
        };
        let found = find(&graph, &constants).unwrap().remove(0);
        assert_eq!(found.zeros.is_some(), of.zeros.is_some());
        found
    }

    #[test]
    fn columns_that_were_left_alone_keep_their_numbers() {
        for (bits, zero_points) in [(4, false), (4, true), (8, false), (8, true)] {
            let all = product(bits, zero_points);
            let whole = all.tensor();
            let same = again(&all, all.close("x", &whole).unwrap());
            assert_eq!(same.floats, all.floats);
            assert_eq!(same.packed, all.packed);
            // The first and the last column.
            let values = whole.to_f32();
            let some: Vec<f32> = values.chunks(3).flat_map(|row| [row[0], row[2]]).collect();
            let some = Tensor::f32(vec![40, 2], some);
            assert_eq!(again(&all, all.close("x", &some).unwrap()).floats, some.to_f32());
        }
    }

    #[test]
    fn inputs_that_went_are_cut_into_new_blocks() {
        for (bits, steps) in [(4, 15.0), (8, 255.0)] {
            for zero_points in [false, true] {
                let all = product(bits, zero_points);
                let values: Vec<f32> = (0..24 * 3)
                    .map(|i| ((i * 29 % 47) as f32 - 20.0) / 31.0)
                    .collect();
                let few = Tensor::f32(vec![24, 3], values.clone());
                let found = again(&all, all.close("x", &few).unwrap());
                let reach = 27.0 / 31.0 * 2.0;
                let wrong = found.floats.iter().zip(&values).map(|(a, b)| (a - b).abs());
                let worst = wrong.fold(0.0, f32::max);
                assert!(worst <= reach / steps + 1e-6, "{bits} {zero_points}: {worst}");
            }
        }
    }
}
