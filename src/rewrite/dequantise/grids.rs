//! Weights that are quantised in blocks along an axis: `DequantizeLinear` with a
//! `block_size`, of four or eight bits.
//!
//! The lines of a weight along that axis are cut into blocks with a scale, and a zero point
//! or none. Two four-bit entries share a byte, the first one in its lower half.

use std::collections::HashMap;

use crate::onnx::{self, proto};
use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// The values that an entry can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EntryType {
    bits: usize,
    signed: bool,
}

impl EntryType {
    const ALL: [(i32, Self); 4] = [
        (
            proto::tensor_proto::DataType::Int4 as i32,
            Self {
                bits: 4,
                signed: true,
            },
        ),
        (
            proto::tensor_proto::DataType::Uint4 as i32,
            Self {
                bits: 4,
                signed: false,
            },
        ),
        (
            proto::tensor_proto::DataType::Int8 as i32,
            Self {
                bits: 8,
                signed: true,
            },
        ),
        (
            proto::tensor_proto::DataType::Uint8 as i32,
            Self {
                bits: 8,
                signed: false,
            },
        ),
    ];

    fn of(code: i32) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(own, _)| *own == code)
            .map(|(_, kind)| *kind)
    }

    fn code(self) -> i32 {
        let own = Self::ALL.iter().find(|(_, kind)| *kind == self);
        own.map_or(0, |(code, _)| *code)
    }

    /// The least and the greatest value.
    fn limits(self) -> (i16, i16) {
        match self.signed {
            true => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
            false => (0, (1 << self.bits) - 1),
        }
    }

    /// The entries of a tensor of this type.
    fn read(self, tensor: &proto::TensorProto) -> Result<Vec<i16>> {
        if self.bits == 8 {
            return Ok(match onnx::tensor(tensor)?.data {
                Data::I8(values) => values.iter().map(|v| i16::from(*v)).collect(),
                Data::U8(values) => values.iter().map(|v| i16::from(*v)).collect(),
                _ => Vec::new(),
            });
        }
        let bytes: Vec<u8> = match &tensor.raw_data {
            Some(raw) if !raw.is_empty() => raw.to_vec(),
            _ => tensor.int32_data.iter().map(|v| *v as u8).collect(),
        };
        let count: i64 = tensor.dims.iter().product();
        let halves = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let signed = |v: u8| match self.signed && v > 7 {
            true => i16::from(v) - 16,
            false => i16::from(v),
        };
        Ok(halves
            .take(usize::try_from(count).unwrap_or(0))
            .map(signed)
            .collect())
    }

    fn write(self, name: &str, shape: &[usize], values: &[i16]) -> proto::TensorProto {
        let raw: Vec<u8> = match self.bits {
            8 => values.iter().map(|v| *v as u8).collect(),
            _ => values
                .chunks(2)
                .map(|pair| (pair[0] as u8 & 15) | (pair.get(1).map_or(0, |v| *v as u8 & 15) << 4))
                .collect(),
        };
        proto::TensorProto {
            name: Some(name.to_owned()),
            dims: shape
                .iter()
                .map(|d| i64::try_from(*d).unwrap_or(i64::MAX))
                .collect(),
            data_type: Some(self.code()),
            raw_data: Some(raw.into()),
            ..Default::default()
        }
    }
}

/// A constant that was dequantised block by block.
pub(super) struct BlockedWeight {
    pub(super) node: proto::NodeProto,
    entry: EntryType,
    shape: Vec<usize>,
    axis: usize,
    block: usize,
    values: Vec<i16>,
    scales: Tensor,
    zeros: Option<Vec<i16>>,
}

/// The lines of a tensor along an axis.
struct LinesAlong {
    count: usize,
    size: usize,
    inner: usize,
}

impl LinesAlong {
    fn of(shape: &[usize], axis: usize) -> Self {
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        Self {
            count: outer * inner,
            size: shape[axis],
            inner,
        }
    }

    /// Where an entry of a line lies.
    fn at(&self, line: usize, entry: usize) -> usize {
        (line / self.inner * self.size + entry) * self.inner + line % self.inner
    }
}

impl BlockedWeight {
    /// Of a `DequantizeLinear` node that reads constants only; `None` for another kind.
    pub(super) fn of(
        node: &proto::NodeProto,
        constants: &HashMap<&str, &proto::TensorProto>,
    ) -> Result<Option<Self>> {
        let int = |name: &str, default: i64| {
            let found = node.attribute.iter().find(|a| a.name() == name);
            found.map_or(default, |a| a.i())
        };
        let name = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
        let held = |at: usize| name(at).and_then(|n| constants.get(n).copied());
        let block = usize::try_from(int("block_size", 0)).unwrap_or(0);
        let (Some(values), Some(scales), true) = (held(0), held(1), block > 0) else {
            return Ok(None);
        };
        if name(2).is_some() != held(2).is_some() {
            return Ok(None);
        }
        let Some(entry) = EntryType::of(values.data_type()) else {
            return Ok(None);
        };
        let shape: Option<Vec<usize>> = values.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let Some(shape) = shape else { return Ok(None) };
        let axis = int("axis", 1);
        let axis = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis });
        let Some(axis) = axis.ok().filter(|a| *a < shape.len()) else {
            return Ok(None);
        };
        let scales = onnx::tensor(scales)?;
        let zeros = match held(2) {
            Some(zeros) if zeros.data_type() == values.data_type() => Some(entry.read(zeros)?),
            Some(_) => return Ok(None),
            None => None,
        };
        let found = Self {
            node: node.clone(),
            entry,
            axis,
            block,
            values: entry.read(values)?,
            scales,
            zeros,
            shape,
        };
        let blocks = found.blocked(&found.shape);
        let whole = |shape: &[usize]| shape.iter().product::<usize>();
        let fits = found.scales.shape == blocks
            && found.scales.elem().is_float()
            && found.values.len() == whole(&found.shape)
            && found.zeros.as_ref().is_none_or(|z| z.len() == whole(&blocks));
        Ok(fits.then_some(found))
    }

    /// The shape of the scales of a weight.
    fn blocked(&self, shape: &[usize]) -> Vec<usize> {
        let mut blocks = shape.to_vec();
        blocks[self.axis] = shape[self.axis].div_ceil(self.block);
        blocks
    }

    /// The float weight, in the type of the scales.
    pub(super) fn floats(&self) -> Tensor {
        let (lines, grid) = (
            LinesAlong::of(&self.shape, self.axis),
            LinesAlong::of(&self.scales.shape, self.axis),
        );
        let scales = self.scales.to_f32();
        let mut floats = vec![0.0f64; self.values.len()];
        for line in 0..lines.count {
            for at in 0..lines.size {
                let (own, block) = (lines.at(line, at), grid.at(line, at / self.block));
                let zero = self.zeros.as_ref().map_or(0, |z| z[block]);
                floats[own] = f64::from(f32::from(self.values[own] - zero) * scales[block]);
            }
        }
        Tensor::rounded(self.shape.clone(), &floats, self.scales.elem())
    }

    /// The node that makes other values, a slice or a re-fit of these, and its constants.
    pub(super) fn again(&self, floats: &Tensor) -> Result<(proto::NodeProto, Vec<proto::TensorProto>)> {
        let output = self.node.output.first().cloned().unwrap_or_default();
        if floats.shape.len() != self.shape.len() {
            return Err(Error::input(format!("the weight '{output}' has other axes now")));
        }
        let blocks = self.blocked(&floats.shape);
        let (old_lines, old_grid) = (
            LinesAlong::of(&self.shape, self.axis),
            LinesAlong::of(&self.scales.shape, self.axis),
        );
        let (lines, grid) = (
            LinesAlong::of(&floats.shape, self.axis),
            LinesAlong::of(&blocks, self.axis),
        );
        // A line that was left alone keeps what it had.
        let before = self.floats().to_f32();
        let key = |values: &[f32], lines: &LinesAlong, line: usize| -> Vec<u32> {
            (0..lines.size)
                .map(|at| values[lines.at(line, at)].to_bits())
                .collect()
        };
        let known: HashMap<Vec<u32>, usize> = match old_lines.size == lines.size {
            true => (0..old_lines.count)
                .map(|line| (key(&before, &old_lines, line), line))
                .collect(),
            false => HashMap::new(),
        };
        let (values, old_scales) = (floats.to_f32(), self.scales.to_f32());
        let (low, high) = self.entry.limits();
        let mut made = vec![0i16; values.len()];
        let mut scales = vec![0.0f64; grid.count * grid.size];
        let mut zeros = vec![0i16; scales.len()];
        for line in 0..lines.count {
            let same = known.get(&key(&values, &lines, line)).copied();
            for block in 0..grid.size {
                let entries = block * self.block..((block + 1) * self.block).min(lines.size);
                let slot = grid.at(line, block);
                if let Some(from) = same {
                    let old = old_grid.at(from, block);
                    scales[slot] = f64::from(old_scales[old]);
                    zeros[slot] = self.zeros.as_ref().map_or(0, |z| z[old]);
                    for at in entries {
                        made[lines.at(line, at)] = self.values[old_lines.at(from, at)];
                    }
                    continue;
                }
                let own: Vec<f32> = entries.clone().map(|at| values[lines.at(line, at)]).collect();
                let (scale, zero) = self.range(&own);
                (scales[slot], zeros[slot]) = (f64::from(scale), zero);
                for (at, value) in entries.zip(own) {
                    let entry = (value / scale).round() + f32::from(zero);
                    made[lines.at(line, at)] = entry.clamp(f32::from(low), f32::from(high)) as i16;
                }
            }
        }
        let names = ["_quantised", "_scale", "_zero_point"].map(|end| format!("{output}{end}"));
        let mut constants = vec![
            self.entry.write(&names[0], &floats.shape, &made),
            onnx::tensor_proto(
                &names[1],
                &Tensor::rounded(blocks.clone(), &scales, self.scales.elem()),
            ),
        ];
        if self.zeros.is_some() {
            constants.push(self.entry.write(&names[2], &blocks, &zeros));
        }
        let node = proto::NodeProto {
            input: names[..constants.len()].to_vec(),
            ..self.node.clone()
        };
        Ok((node, constants))
    }

    /// A scale and a zero point for some values, of the kind of the old ones.
    fn range(&self, values: &[f32]) -> (f32, i16) {
        let least = values.iter().fold(0.0f32, |m, v| m.min(*v));
        let most = values.iter().fold(0.0f32, |m, v| m.max(*v));
        let (low, high) = self.entry.limits();
        let usable = |scale: f32| match self.scales.elem() {
            // What rounds to nothing divides by nothing.
            Elem::F16 if half::f16::from_f32(scale).to_f32() == 0.0 => 1.0,
            _ if scale.is_normal() => scale,
            _ => 1.0,
        };
        let middle = if self.entry.signed {
            0
        } else {
            1 << (self.entry.bits - 1)
        };
        let centred = self.zeros.as_ref().is_none_or(|z| z.iter().all(|z| *z == middle));
        if !centred {
            let scale = usable((most - least) / f32::from(high - low));
            let zero = (f32::from(low) - least / scale).round();
            return (scale, zero.clamp(f32::from(low), f32::from(high)) as i16);
        }
        // Without a zero point, entries without a sign hold nothing below zero.
        let zero = self.zeros.as_ref().map_or(0, |_| middle);
        let up = most / f32::from(high - zero).max(1.0);
        let down = match low == zero {
            true => 0.0,
            false => -least / f32::from(zero - low),
        };
        (usable(up.max(down)), zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(code: i32, axis: i64, zero_points: bool) -> BlockedWeight {
        let entry = EntryType::of(code).unwrap();
        let (low, high) = entry.limits();
        let span = i32::from(high - low) + 1;
        let entries = |count: usize, step: i32| -> Vec<i16> {
            (0..count as i32)
                .map(|i| low + ((i * step) % span) as i16)
                .collect()
        };
        // Blocks of 16 along an axis of 40: the last one is not full.
        let (shape, blocks) = match axis {
            0 => (vec![40, 3], vec![3, 3]),
            _ => (vec![3, 40], vec![3, 3]),
        };
        let int = |name: &str, i: i64| proto::AttributeProto {
            name: Some(name.into()),
            i: Some(i),
            ..Default::default()
        };
        let scales = Tensor::f32(
            blocks.clone(),
            (0..9).map(|i| 0.01 + 0.003 * i as f32).collect::<Vec<_>>(),
        );
        let tensors = [
            entry.write("q", &shape, &entries(120, 37)),
            onnx::tensor_proto("s", &scales),
            entry.write("z", &blocks, &entries(9, 5)),
        ];
        let inputs: Vec<String> = ["q", "s", "z"].map(String::from)[..2 + usize::from(zero_points)].to_vec();
        let node = proto::NodeProto {
            op_type: Some("DequantizeLinear".into()),
            input: inputs,
            output: vec!["w".into()],
            attribute: vec![int("axis", axis), int("block_size", 16)],
            ..Default::default()
        };
        of(&node, &tensors)
    }

    fn of(node: &proto::NodeProto, tensors: &[proto::TensorProto]) -> BlockedWeight {
        let constants = tensors.iter().map(|t| (t.name(), t)).collect();
        BlockedWeight::of(node, &constants).unwrap().unwrap()
    }

    #[test]
    fn what_was_left_alone_keeps_its_numbers() {
        for (code, _) in EntryType::ALL {
            for (axis, zero_points) in [(0, false), (0, true), (1, false), (1, true)] {
                let all = weight(code, axis, zero_points);
                let (node, made) = all.again(&all.floats()).unwrap();
                let same = of(&node, &made);
                assert_eq!((&same.values, &same.zeros), (&all.values, &all.zeros));
                assert_eq!(same.scales, all.scales);
            }
        }
    }

    #[test]
    fn an_axis_that_is_shorter_is_cut_into_new_blocks() {
        for (code, entry) in EntryType::ALL {
            for (axis, zero_points) in [(0, false), (0, true), (1, false), (1, true)] {
                if !entry.signed && !zero_points {
                    continue;
                }
                let all = weight(code, axis, zero_points);
                let values: Vec<f32> = (0..24 * 3)
                    .map(|i| ((i * 29 % 47) as f32 - 20.0) / 31.0)
                    .collect();
                let shape = if axis == 0 { vec![24, 3] } else { vec![3, 24] };
                let (node, made) = all.again(&Tensor::f32(shape, values.clone())).unwrap();
                let found = of(&node, &made);
                let wrong = found
                    .floats()
                    .to_f32()
                    .into_iter()
                    .zip(values)
                    .map(|(a, b)| (a - b).abs());
                let worst = wrong.fold(0.0, f32::max);
                let step = 2.0 * 27.0 / 31.0 / f32::from(entry.limits().1 - entry.limits().0);
                assert!(worst <= step, "{entry:?} {axis} {zero_points}: {worst} of {step}");
            }
        }
    }
}
