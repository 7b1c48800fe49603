//! What the dense model computes at some values, kept from the pass that calibrates
//! until layers are re-fitted: in memory, or beyond [`HELD`] bytes in a file without
//! a name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use half::{bf16, f16};

use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// Bytes that are held in memory.
const HELD: usize = 1 << 26;

/// Values by batch.
#[derive(Default)]
pub struct Recording {
    values: BTreeSet<String>,
    batches: Vec<BTreeMap<String, Place>>,
    /// What is held in memory; empty once there is a file.
    held: Vec<u8>,
    file: Option<File>,
    end: u64,
}

/// Where a tensor lies.
struct Place {
    start: u64,
    length: usize,
    shape: Vec<usize>,
    elem: Elem,
}

impl Recording {
    /// Nothing yet, of the values with these names.
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        Self {
            values: values.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The values, ascending.
    pub fn values(&self) -> impl Iterator<Item = &String> {
        self.values.iter()
    }

    /// Whether a value is recorded.
    pub fn holds(&self, value: &str) -> bool {
        self.values.contains(value)
    }

    /// Adds the next batch, its tensors in the order of [`Recording::values`].
    ///
    /// # Errors
    /// A tensor that is not of floats.
    pub fn push(&mut self, tensors: &[&Tensor]) -> Result<()> {
        let values: Vec<String> = self.values().cloned().collect();
        let mut batch = BTreeMap::new();
        for (value, tensor) in values.into_iter().zip(tensors) {
            let bytes = bytes(tensor)
                .ok_or_else(|| Error::engine(format!("a layer's output is {:?}", tensor.elem())))?;
            let start = self.write(&bytes);
            let (shape, elem) = (tensor.shape.clone(), tensor.elem());
            batch.insert(
                value,
                Place {
                    start,
                    length: bytes.len(),
                    shape,
                    elem,
                },
            );
        }
        self.batches.push(batch);
        Ok(())
    }

    /// A value of a batch; `None` where it was not recorded.
    ///
    /// # Errors
    /// The file's.
    pub fn get(&self, batch: usize, value: &str) -> Result<Option<Tensor>> {
        let Some(place) = self.batches.get(batch).and_then(|b| b.get(value)) else {
            return Ok(None);
        };
        let data: Cow<[u8]> = match &self.file {
            Some(file) => read(file, place)
                .map_err(|e| Error::io("cannot read what was kept in", &std::env::temp_dir(), e))?
                .into(),
            None => {
                let start = usize::try_from(place.start).unwrap_or(usize::MAX);
                let held = self.held.get(start..).and_then(|h| h.get(..place.length));
                held.unwrap_or_default().into()
            }
        };
        let data = match place.elem {
            Elem::F16 => Data::F16(numbers(&data, f16::from_le_bytes)),
            Elem::BF16 => Data::BF16(numbers(&data, bf16::from_le_bytes)),
            _ => Data::F32(numbers(&data, f32::from_le_bytes)),
        };
        Ok(Some(Tensor::new(place.shape.clone(), data)))
    }

    /// Appends bytes and returns where they start. A file that cannot be made or
    /// written leaves all of it in memory.
    fn write(&mut self, bytes: &[u8]) -> u64 {
        let start = self.end;
        self.end += bytes.len() as u64;
        if let Some(file) = &mut self.file {
            if file.write_all(bytes).is_ok() {
                return start;
            }
            let mut all = Vec::new();
            let back = file
                .seek(SeekFrom::Start(0))
                .and_then(|_| file.take(start).read_to_end(&mut all));
            self.file = None;
            if back.is_ok() {
                self.held = all;
            }
        }
        self.held.extend(bytes);
        if self.held.len() > HELD && start < HELD as u64 {
            let file = tempfile::tempfile().and_then(|mut file| {
                file.write_all(&self.held)?;
                Ok(file)
            });
            if let Ok(file) = file {
                self.file = Some(file);
                self.held = Vec::new();
            }
        }
        start
    }
}

fn read(mut file: &File, place: &Place) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(place.start))?;
    let mut bytes = vec![0; place.length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Little-endian; `None` for what is not a float of up to 32 bits.
fn bytes(tensor: &Tensor) -> Option<Vec<u8>> {
    fn of<T: Copy, const N: usize>(values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
        let mut out = vec![0; N * values.len()];
        let slots = out.as_chunks_mut().0.iter_mut();
        slots.zip(values).for_each(|(slot, value)| *slot = bytes(*value));
        out
    }
    Some(match &tensor.data {
        Data::F32(v) => of(v, f32::to_le_bytes),
        Data::F16(v) => of(v, f16::to_le_bytes),
        Data::BF16(v) => of(v, bf16::to_le_bytes),
        _ => return None,
    })
}

fn numbers<T, const N: usize>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|b| of(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_memory_and_from_the_file() {
        let mut recording = Recording::new(["c", "a"].map(String::from));
        let tensor = |k: usize, n: usize| {
            let data = (0..n).map(|i| (i * 7 + k) as f32 * 0.25).collect();
            Tensor::f32([n / 2, 2], data)
        };
        // The third batch passes what is held.
        let sizes = [4, 10, HELD / 8, 6];
        for (k, n) in sizes.into_iter().enumerate() {
            let second = Tensor::new(vec![2], Data::F16(vec![f16::from_f32(k as f32), f16::ONE]));
            recording.push(&[&tensor(k, n), &second]).unwrap();
            assert_eq!(recording.file.is_some(), recording.end > HELD as u64);
        }
        for (k, n) in sizes.into_iter().enumerate() {
            assert_eq!(recording.get(k, "a").unwrap(), Some(tensor(k, n)));
            let second = recording.get(k, "c").unwrap().unwrap();
            assert_eq!(second.to_f32(), [k as f32, 1.0]);
        }
        assert_eq!(recording.get(0, "b").unwrap(), None);
        assert_eq!(recording.get(9, "a").unwrap(), None);
        let integers = Tensor::i64([1], vec![1]);
        assert!(recording.push(&[&integers, &integers]).is_err());
    }
}
