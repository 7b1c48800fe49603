//! Where each tensor lies in a new side file.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};

use bytes::Bytes;

use super::external;
use super::label::quoted;
use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, StringStringEntryProto, TensorProto};
use super::visit::{self, NameRole};
use crate::error::{Error, Result};

/// Smaller tensors stay in the model file.
const SMALLEST: usize = 1 << 10;
/// Tensors of this size and more begin on a page, so that runtimes can map them.
const PAGED: usize = 1 << 16;
const PAGE: u64 = 1 << 12;
/// Alignment of smaller tensors: a cache line.
const LINE: u64 = 1 << 6;

/// The content of a side file: tensors at increasing offsets, zeros between.
#[derive(Default)]
pub(super) struct FileLayout {
    parts: Vec<(u64, Bytes)>,
    length: u64,
    /// Offsets by address and length in memory: tensors that share their bytes
    /// in the input share them in the output.
    shared: HashMap<(usize, usize), u64>,
}

impl FileLayout {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Moves the `raw_data` of the tensors of one role here. Their location is
    /// empty until [`FileLayout::name`] is called.
    pub(super) fn take(&mut self, model: &mut ModelProto, role: NameRole) -> Result<()> {
        visit::tensors(model, |tensor, found| {
            if found == role
                && let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= SMALLEST)
            {
                let length = raw.len();
                let offset = self.place(raw)?;
                refer(tensor, offset, length);
            }
            Ok(())
        })
    }

    fn place(&mut self, raw: Bytes) -> Result<u64> {
        let key = (raw.as_ptr() as usize, raw.len());
        if let Some(offset) = self.shared.get(&key) {
            return Ok(*offset);
        }
        let alignment = if raw.len() < PAGED { LINE } else { PAGE };
        let offset = self.length.checked_next_multiple_of(alignment);
        let end = offset.and_then(|offset| offset.checked_add(raw.len() as u64));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(Error::input("the weights are too large for one file"));
        };
        self.length = end;
        self.parts.push((offset, raw));
        self.shared.insert(key, offset);
        Ok(offset)
    }

    /// Completes the references of the tensors that were taken.
    pub(super) fn name(&self, model: &mut ModelProto, location: &str) -> Result<()> {
        if !external::stays_inside(location) {
            return Err(Error::input(format!(
                "{} cannot be the name of a side file",
                quoted(location)
            )));
        }
        visit::tensors(model, |tensor, _| {
            if tensor.data_location() == DataLocation::External
                && let Some(entry) = tensor.external_data.first_mut()
            {
                entry.value = Some(location.to_owned());
            }
            Ok(())
        })
    }

    /// Writes the content of the file.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut out = BufWriter::new(out);
        let mut at = 0;
        for (offset, raw) in &self.parts {
            io::copy(&mut io::Read::take(io::repeat(0), offset - at), &mut out)?;
            out.write_all(raw)?;
            at = offset + raw.len() as u64;
        }
        out.flush()
    }

    /// Whether a file has this content.
    pub(super) fn equals(&self, file: &[u8]) -> bool {
        let mut rest = file;
        let mut at = 0;
        for (offset, raw) in &self.parts {
            let Some((gap, tail)) = usize::try_from(offset - at)
                .ok()
                .and_then(|n| rest.split_at_checked(n))
            else {
                return false;
            };
            let Some(tail) = tail.strip_prefix(&raw[..]) else {
                return false;
            };
            if gap.iter().any(|byte| *byte != 0) {
                return false;
            }
            rest = tail;
            at = offset + raw.len() as u64;
        }
        rest.is_empty()
    }
}

fn refer(tensor: &mut TensorProto, offset: u64, length: usize) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", String::new()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
}
