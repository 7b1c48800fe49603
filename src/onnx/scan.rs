//! A walk over the protobuf wire format before anything is decoded.
//!
//! It counts what the decoder would drop (unknown fields), and refuses files
//! that would decode into far more memory than they occupy: an empty node takes
//! two bytes in a file and 240 in memory, an empty attribute a thousand. Field
//! numbers and wire types come from a table that `build.rs` makes from the
//! schema. The walk skips over `raw_data`, so it takes milliseconds.

use super::proto;
use crate::error::{Error, Result};

/// What one message type looks like on the wire and in memory.
struct Message {
    name: &'static str,
    /// Bytes of the decoded struct.
    size: usize,
    /// Field number, whether it is repeated, and how it is encoded.
    fields: &'static [(u32, bool, Wire)],
}

#[derive(Clone, Copy)]
enum Wire {
    Varint,
    Fixed32,
    Fixed64,
    String,
    Bytes,
    /// A nested message: its index in `MESSAGES`.
    Message(usize),
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// Nested messages, as many as prost decodes.
const MAX_DEPTH: usize = 100;
/// Memory that decoded messages may take, whatever the size of the file.
const MEMORY: u64 = 1 << 30;
/// Memory that they may take per byte of the file.
const MEMORY_PER_BYTE: u64 = 4;
/// What a string or a `Bytes` occupies besides its content: the struct, and
/// the allocator's overhead.
const HANDLE: u64 = 40;

/// Walks over an encoded `ModelProto`. Returns how many of its bytes belong to
/// fields that the schema does not know.
pub(super) fn scan(bytes: &[u8]) -> Result<u64> {
    let mut reader = WireReader { bytes, at: 0 };
    let mut unknown = 0u64;
    let mut memory = 0u64;
    let allowed = MEMORY + MEMORY_PER_BYTE.saturating_mul(bytes.len() as u64);
    // Enclosing messages: index into MESSAGES and where they end.
    let mut open: Vec<(usize, usize)> = vec![(0, bytes.len())];
    while let Some(&(index, end)) = open.last() {
        if reader.at == end {
            open.pop();
            continue;
        }
        let Some(message) = MESSAGES.get(index) else {
            return Err(malformed(reader.at, "unknown message type"));
        };
        let start = reader.at;
        let (number, wire_type) = reader.key(end)?;
        let field = message.fields.iter().find(|f| f.0 == number);
        let Some(&(_, repeated, wire)) = field else {
            reader.skip(number, wire_type, end)?;
            unknown += (reader.at - start) as u64;
            continue;
        };
        memory += match (wire, wire_type) {
            (Wire::Varint, 0) => reader.varint(end).map(|_| 8)?,
            (Wire::Fixed32, 5) => reader.take(4, end).map(|_| 4)?,
            (Wire::Fixed64, 1) => reader.take(8, end).map(|_| 8)?,
            (Wire::Varint, 2) if repeated => {
                let packed = reader.delimited(end)?;
                8 * packed.iter().filter(|b| **b < 0x80).count() as u64
            }
            (Wire::Fixed32 | Wire::Fixed64, 2) if repeated => reader.delimited(end)?.len() as u64,
            (Wire::String, 2) => HANDLE + reader.delimited(end)?.len() as u64,
            // A slice of the file, not a copy.
            (Wire::Bytes, 2) => reader.delimited(end).map(|_| HANDLE)?,
            (Wire::Message(inner), 2) => {
                let length = reader.length(end)?;
                if open.len() > MAX_DEPTH {
                    return Err(malformed(start, "messages nest too deeply"));
                }
                open.push((inner, reader.at + length));
                MESSAGES.get(inner).map_or(0, |m| m.size) as u64
            }
            _ => {
                let what = format!("field {number} of {} has wire type {wire_type}", message.name);
                return Err(malformed(start, &what));
            }
        };
        if memory > allowed {
            return Err(Error::input(format!(
                "the model would take more than {} MiB of memory besides its weights, {} times the \
                 size of the file: it looks made to exhaust memory",
                allowed >> 20,
                allowed / (bytes.len() as u64).max(1),
            )));
        }
    }
    Ok(unknown)
}

fn malformed(at: usize, what: &str) -> Error {
    Error::input(format!(
        "not an ONNX file, or a damaged one: {what} at byte {at} of the protobuf"
    ))
}

/// A cursor; every read is bounded by the end of the enclosing message.
struct WireReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> WireReader<'a> {
    fn take(&mut self, count: usize, end: usize) -> Result<&'a [u8]> {
        let stop = self.at.checked_add(count).filter(|stop| *stop <= end);
        match stop.and_then(|stop| self.bytes.get(self.at..stop)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Err(malformed(
                self.at,
                &format!("{count} bytes expected, the message ends"),
            )),
        }
    }

    fn varint(&mut self, end: usize) -> Result<u64> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1, end)?.first().copied().unwrap_or_default();
            // The tenth byte holds one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed(start, "invalid varint"))
    }

    /// Field number and wire type.
    fn key(&mut self, end: usize) -> Result<(u32, u8)> {
        let start = self.at;
        let key = u32::try_from(self.varint(end)?);
        match key {
            Ok(key) if key >> 3 != 0 => Ok((key >> 3, (key & 7) as u8)),
            _ => Err(malformed(start, "invalid field number")),
        }
    }

    /// A length that fits what is left.
    fn length(&mut self, end: usize) -> Result<usize> {
        let start = self.at;
        let length = self.varint(end)?;
        usize::try_from(length)
            .ok()
            .filter(|n| *n <= end - self.at)
            .ok_or_else(|| {
                malformed(
                    start,
                    &format!("{length} bytes expected, the message ends (is the file cut off?)"),
                )
            })
    }

    fn delimited(&mut self, end: usize) -> Result<&'a [u8]> {
        let length = self.length(end)?;
        self.take(length, end)
    }

    /// Steps over the value of an unknown field.
    fn skip(&mut self, number: u32, wire_type: u8, end: usize) -> Result<()> {
        let start = self.at;
        match wire_type {
            0 => self.varint(end).map(drop),
            1 => self.take(8, end).map(drop),
            2 => self.delimited(end).map(drop),
            5 => self.take(4, end).map(drop),
            3 => {
                let mut groups = vec![number];
                while let Some(&group) = groups.last() {
                    match self.key(end)? {
                        (inner, 3) if groups.len() < MAX_DEPTH => groups.push(inner),
                        (inner, 4) if inner == group => drop(groups.pop()),
                        (_, 3 | 4) => return Err(malformed(start, "invalid group")),
                        (inner, wire_type) => self.skip(inner, wire_type, end)?,
                    }
                }
                Ok(())
            }
            _ => Err(malformed(start, &format!("wire type {wire_type}"))),
        }
    }
}
