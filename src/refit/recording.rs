//! What the dense model computes at some values, kept from the pass that calibrates
//! until layers are re-fitted: in memory, or beyond [`HELD`] bytes in a file without
//! a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use half::{bf16, f16};

use crate::tensor::{Data, Elem, Tensor};
use crate::{Error, Result};

/// Bytes that are held in memory.
const HELD: usize = 1 << 28;

/// Values by batch.
pub struct Recording {
    values: BTreeSet<String>,
    /// Every n-th batch is kept.
    step: usize,
    /// Batches so far, those that are not kept among them.
    seen: usize,
    batches: Vec<BTreeMap<String, KeptRows>>,
    /// Bytes of what is in memory.
    held: usize,
    /// What does not fit there.
    file: Option<File>,
}

/// Where a tensor is.
enum KeptRows {
    Held(Tensor),
    Written(RecordedAt),
}

/// Where a tensor lies in the file.
struct RecordedAt {
    start: u64,
    length: usize,
    shape: Vec<usize>,
    elem: Elem,
}

impl Recording {
    /// Nothing yet, of the values with these names, in each `step`-th batch.
    pub fn new(values: impl IntoIterator<Item = String>, step: usize) -> Self {
        Self {
            values: values.into_iter().collect(),
            step: step.max(1),
            seen: 0,
            batches: Vec::new(),
            held: 0,
            file: None,
        }
    }

    /// The batches that are kept.
    pub fn kept<T>(&self, batches: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        batches.step_by(self.step)
    }

    /// The values, ascending.
    pub fn values(&self) -> impl Iterator<Item = &String> {
        self.values.iter()
    }

    /// Whether a value is recorded.
    pub fn holds(&self, value: &str) -> bool {
        self.values.contains(value)
    }

    /// Adds the next batch, its tensors in the order of [`Recording::values`], where it is
    /// one that is kept.
    ///
    /// # Errors
    /// A tensor that is not of floats.
    pub fn push(&mut self, tensors: &[&Tensor]) -> Result<()> {
        self.seen += 1;
        if !(self.seen - 1).is_multiple_of(self.step) {
            return Ok(());
        }
        let mut batch = BTreeMap::new();
        for (value, tensor) in self.values.iter().zip(tensors) {
            if !matches!(tensor.data, Data::F32(_) | Data::F16(_) | Data::BF16(_)) {
                return Err(Error::engine(format!("a layer's output is {:?}", tensor.elem())));
            }
            // Once there is a file, all goes there.
            let place = self.file.as_mut().and_then(|file| write(file, tensor));
            let kept = place.map_or_else(|| KeptRows::Held(Tensor::clone(tensor)), KeptRows::Written);
            if let KeptRows::Held(tensor) = &kept {
                self.held += tensor.len() * tensor.elem().size();
            }
            batch.insert(value.clone(), kept);
        }
        self.batches.push(batch);
        if self.held > HELD {
            self.spill();
        }
        Ok(())
    }

    /// Writes what is in memory to the file. What cannot be written stays.
    fn spill(&mut self) {
        if self.file.is_none() {
            self.file = tempfile::tempfile().ok();
        }
        let Some(file) = &mut self.file else { return };
        for kept in self.batches.iter_mut().flat_map(BTreeMap::values_mut) {
            let KeptRows::Held(tensor) = kept else { continue };
            match write(file, tensor) {
                Some(place) => {
                    self.held = self.held.saturating_sub(place.length);
                    *kept = KeptRows::Written(place);
                }
                None => return,
            }
        }
    }

    /// A value of a batch, counted among those that are kept; `None` where it was not
    /// recorded.
    ///
    /// # Errors
    /// The file's.
    pub fn get(&self, batch: usize, value: &str) -> Result<Option<Tensor>> {
        let place = match self.batches.get(batch).and_then(|b| b.get(value)) {
            None => return Ok(None),
            Some(KeptRows::Held(tensor)) => return Ok(Some(tensor.clone())),
            Some(KeptRows::Written(place)) => place,
        };
        let io = |e| Error::io("cannot read what was kept in", &std::env::temp_dir(), e);
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| io(std::io::ErrorKind::NotFound.into()))?;
        let data = read(file, place).map_err(io)?;
        let data = match place.elem {
            Elem::F16 => Data::F16(numbers(&data, f16::from_le_bytes)),
            Elem::BF16 => Data::BF16(numbers(&data, bf16::from_le_bytes)),
            _ => Data::F32(numbers(&data, f32::from_le_bytes)),
        };
        Ok(Some(Tensor::new(place.shape.clone(), data)))
    }
}

/// Appends a tensor; `None` where that failed.
fn write(file: &mut File, tensor: &Tensor) -> Option<RecordedAt> {
    let start = file.seek(SeekFrom::End(0)).ok()?;
    match &tensor.data {
        Data::F32(v) => write_all(file, v, f32::to_le_bytes),
        Data::F16(v) => write_all(file, v, f16::to_le_bytes),
        Data::BF16(v) => write_all(file, v, bf16::to_le_bytes),
        _ => return None,
    }
    .ok()?;
    Some(RecordedAt {
        start,
        length: tensor.len() * tensor.elem().size(),
        shape: tensor.shape.clone(),
        elem: tensor.elem(),
    })
}

fn read(mut file: &File, place: &RecordedAt) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(place.start))?;
    let mut bytes = vec![0; place.length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes little-endian numbers, as many at a time as stay in the cache.
fn write_all<T: Copy, const N: usize>(
    file: &mut File,
    values: &[T],
    bytes: fn(T) -> [u8; N],
) -> std::io::Result<()> {
    const AT_ONCE: usize = 1 << 16;
    let mut buffer = vec![0u8; N * AT_ONCE.min(values.len())];
    for values in values.chunks(AT_ONCE) {
        let own = &mut buffer[..N * values.len()];
        let slots = own.as_chunks_mut().0.iter_mut();
        slots.zip(values).for_each(|(slot, value)| *slot = bytes(*value));
        file.write_all(own)?;
    }
    Ok(())
}

fn numbers<T, const N: usize>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|b| of(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_batch_is_kept() {
        let mut recording = Recording::new(["a".to_string()], 2);
        for k in 0..5 {
            recording.push(&[&Tensor::f32([1], vec![k as f32])]).unwrap();
        }
        let kept: Vec<usize> = recording.kept(0..5).collect();
        assert_eq!(kept, [0, 2, 4]);
        for (at, batch) in kept.into_iter().enumerate() {
            let value = recording.get(at, "a").unwrap().unwrap();
            assert_eq!(value.to_f32(), [batch as f32]);
        }
        assert_eq!(recording.get(3, "a").unwrap(), None);
    }

    #[test]
    fn values_come_back_from_memory_and_from_the_file() {
        let mut recording = Recording::new(["c", "a"].map(String::from), 1);
        let tensor = |k: usize, n: usize| {
            let data = (0..n).map(|i| (i * 7 + k) as f32 * 0.25).collect();
            Tensor::f32([n / 2, 2], data)
        };
        // The third batch passes what is held.
        let sizes = [4, 10, HELD / 4, 6];
        for (k, n) in sizes.into_iter().enumerate() {
            let second = Tensor::new(vec![2], Data::F16(vec![f16::from_f32(k as f32), f16::ONE]));
            recording.push(&[&second, &tensor(k, n)]).unwrap();
            assert_eq!(recording.file.is_some(), k >= 2);
        }
        for (k, n) in sizes.into_iter().enumerate() {
            assert_eq!(recording.get(k, "c").unwrap(), Some(tensor(k, n)));
            let second = recording.get(k, "a").unwrap().unwrap();
            assert_eq!(second.to_f32(), [k as f32, 1.0]);
        }
        assert_eq!(recording.get(0, "b").unwrap(), None);
        assert_eq!(recording.get(9, "a").unwrap(), None);
        let integers = Tensor::i64([1], vec![1]);
        assert!(recording.push(&[&integers, &integers]).is_err());
    }
}
