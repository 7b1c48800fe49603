//! NumPy's `.npz` archives: a zip of `.npy` files, read row by row, so that a
//! few samples of a large archive need little memory; and single `.npy` files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use zip::ZipArchive;
use zip::write::SimpleFileOptions;

use crate::error::{Error, Result, ResultExt};
use crate::io::staged::{self, Staged};
use crate::tensor::{Data, Elem, Tensor, ops};

/// Longest header of an array that is read; NumPy's own are below 1 KiB.
const MAX_HEADER: usize = 64 * 1024;

/// An array of this size is read whatever it was packed into, ...
const LARGE: u64 = 1 << 28;
/// ... a larger one only if it is at most this many times as large as that; deflate
/// reaches 1032.
const MAX_RATIO: u64 = 100;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// What the header of an array says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub elem: Elem,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    big_endian: bool,
    fortran_order: bool,
}

impl Header {
    fn bytes(&self) -> Result<u64> {
        let n = self
            .shape
            .iter()
            .try_fold(self.elem.size(), |n, &d| n.checked_mul(d));
        n.and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| Error::input(format!("shape {:?} is too large", self.shape)))
    }
}

/// An open archive.
pub struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    headers: BTreeMap<String, (String, Header)>,
}

impl Archive {
    /// Opens the archive and reads the headers of its arrays.
    pub fn open(path: &Path) -> Result<Self> {
        let file = staged::open(path)?;
        let zip = ZipArchive::new(BufReader::new(file))
            .map_err(|e| Error::input(format!("{} is not a readable .npz archive: {e}", path.display())))?;
        let mut archive = Self {
            path: path.to_owned(),
            zip,
            headers: BTreeMap::new(),
        };
        let entries: Vec<String> = archive
            .zip
            .file_names()
            .filter_map(|name| name.ok().map(|name| name.into_owned()))
            .collect();
        for entry in entries {
            if let Some(name) = entry.strip_suffix(".npy") {
                let header = archive.header_of(name, &entry)?;
                archive.headers.insert(name.to_owned(), (entry.clone(), header));
            }
        }
        if archive.headers.is_empty() {
            return Err(Error::input(format!("{} holds no arrays", path.display())));
        }
        Ok(archive)
    }

    /// The arrays by name.
    pub fn arrays(&self) -> impl Iterator<Item = (&str, &Header)> {
        self.headers
            .iter()
            .map(|(name, (_, header))| (name.as_str(), header))
    }

    /// The header of the array `name`.
    pub fn header(&self, name: &str) -> Option<&Header> {
        self.headers.get(name).map(|(_, header)| header)
    }

    /// The whole array `name`.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        self.read_some(name, None)
    }

    /// The rows `wanted` (increasing) along the first axis of the array `name`,
    /// joined along that axis. The rest is skipped, not kept.
    pub fn read_rows(&mut self, name: &str, wanted: &[usize]) -> Result<Tensor> {
        self.read_some(name, Some(wanted))
    }

    fn place(&self, name: &str) -> String {
        format!("array '{name}' of {}", self.path.display())
    }

    fn entry(&mut self, name: &str, entry: &str) -> Result<zip::read::ZipFile<'_, BufReader<File>>> {
        let place = self.place(name);
        self.zip
            .by_name(entry)
            .map_err(|e| Error::input(format!("{place} cannot be read: {e}")))
    }

    fn header_of(&mut self, name: &str, entry: &str) -> Result<Header> {
        let place = self.place(name);
        let mut file = self.entry(name, entry)?;
        let size = file.size();
        let (header, header_bytes) = read_header(&mut file).context(|| place.clone())?;
        let expected = header.bytes().context(|| place.clone())?;
        let held = size.saturating_sub(header_bytes);
        if held != expected {
            return Err(Error::input(format!(
                "{place} is damaged: shape {:?} of {:?} takes {expected} bytes, the file has {held}",
                header.shape, header.elem
            )));
        }
        Ok(header)
    }

    fn read_some(&mut self, name: &str, wanted: Option<&[usize]>) -> Result<Tensor> {
        let place = self.place(name);
        let Some((entry, header)) = self.headers.get(name).cloned() else {
            return Err(Error::input(format!(
                "{} has no array '{name}'",
                self.path.display()
            )));
        };
        let mut file = self.entry(name, &entry)?;
        let packed = file.compressed_size();
        let kept = match (wanted, header.shape.first()) {
            (Some(wanted), Some(total)) if !header.fortran_order => {
                let row = header.bytes()? / (*total as u64).max(1);
                row.saturating_mul(wanted.len() as u64)
            }
            _ => header.bytes()?,
        };
        if kept > LARGE.max(packed.saturating_mul(MAX_RATIO)) {
            return Err(Error::input(format!(
                "{place} has {packed} bytes and would take {kept}: it looks made to exhaust memory"
            )));
        }
        read_header(&mut file).context(|| place.clone())?;
        let tensor = match wanted {
            Some(wanted) if !header.fortran_order && !header.shape.is_empty() => {
                rows(&mut file, &header, wanted)
            }
            Some(wanted) => whole(&mut file, &header).and_then(|all| {
                let rows: Vec<Tensor> = wanted.iter().map(|&r| ops::slice(&all, 0, r..r + 1)).collect();
                ops::concat(&rows.iter().collect::<Vec<_>>(), 0)
            }),
            None => whole(&mut file, &header),
        };
        tensor.context(|| place)
    }
}

/// All arrays of the archive at `path`.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = Archive::open(path)?;
    let names: Vec<String> = archive.arrays().map(|(name, _)| name.to_owned()).collect();
    names
        .into_iter()
        .map(|name| Ok((name.clone(), archive.read(&name)?)))
        .collect()
}

/// The array in the `.npy` file at `path`.
pub fn read_npy(path: &Path) -> Result<Tensor> {
    let file = staged::open(path)?;
    let mut reader = BufReader::new(file);
    let (header, _) = read_header(&mut reader).context(|| path.display().to_string())?;
    let tensor = whole(&mut reader, &header).context(|| path.display().to_string())?;
    match read_bytes(&mut reader, 1) {
        Ok(_) => Err(Error::input(format!(
            "{} holds more than its shape {:?} says",
            path.display(),
            header.shape
        ))),
        Err(_) => Ok(tensor),
    }
}

/// Writes one array to the `.npy` file at `path`, as [`write()`] does.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<()> {
    let mut staged = Staged::default();
    staged.file(path, |file| write_npy_to(file, tensor))?;
    staged.commit()
}

pub(crate) fn write_npy_to(file: &mut File, tensor: &Tensor) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    write_array(&mut file, tensor)?;
    file.flush()
}

/// Writes `arrays` to `path` uncompressed, as `numpy.savez` does; the file appears
/// whole or not at all. bfloat16, which NumPy does not have, is written as float32.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let mut staged = Staged::default();
    staged.file(path, |file| write_to(file, arrays))?;
    staged.commit()
}

pub(crate) fn write_to<'a>(
    file: &mut File,
    arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> std::io::Result<()> {
    let mut zip = zip::ZipWriter::new(BufWriter::new(file));
    // The same arrays give the same bytes: no time stamps.
    let options = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .large_file(true);
    for (name, tensor) in arrays {
        zip.start_file(format!("{name}.npy"), options)?;
        write_array(&mut zip, tensor)?;
    }
    zip.finish()?.flush()
}

fn cut_short(e: std::io::Error) -> Error {
    Error::input(format!("the data are cut short or damaged: {e}"))
}

fn read_bytes(reader: &mut impl Read, n: u64) -> Result<Vec<u8>> {
    // Grows with what is really there, not with what is claimed.
    let mut bytes = Vec::new();
    reader.take(n).read_to_end(&mut bytes).map_err(cut_short)?;
    if bytes.len() as u64 == n {
        Ok(bytes)
    } else {
        Err(cut_short(std::io::ErrorKind::UnexpectedEof.into()))
    }
}

fn whole(reader: &mut impl Read, header: &Header) -> Result<Tensor> {
    ops::elements(&header.shape)?;
    let bytes = read_bytes(reader, header.bytes()?)?;
    if header.fortran_order {
        let stored = header.shape.iter().rev().copied().collect();
        Ok(ops::reversed_axes(&decode(header, stored, &bytes)))
    } else {
        Ok(decode(header, header.shape.clone(), &bytes))
    }
}

fn rows(reader: &mut impl Read, header: &Header, wanted: &[usize]) -> Result<Tensor> {
    let total = header.shape.first().copied().unwrap_or(0);
    let mut shape = header.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = wanted.len();
    }
    ops::elements(&shape)?;
    let row = header.bytes()?.checked_div(total as u64).unwrap_or(0);
    let mut bytes = Vec::new();
    let mut next = 0u64;
    for &index in wanted {
        let index = index as u64;
        if index < next || index >= total as u64 {
            return Err(Error::input(format!("row {index} of {total} is out of order")));
        }
        let skipped =
            std::io::copy(&mut reader.take((index - next) * row), &mut std::io::sink()).map_err(cut_short)?;
        if skipped < (index - next) * row {
            return Err(cut_short(std::io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend(read_bytes(reader, row)?);
        next = index + 1;
    }
    Ok(decode(header, shape, &bytes))
}

fn decode(header: &Header, shape: Vec<usize>, bytes: &[u8]) -> Tensor {
    macro_rules! numbers {
        ($variant:ident, $type:ty) => {
            Data::$variant(
                bytes
                    .chunks_exact(size_of::<$type>())
                    .filter_map(|b| b.try_into().ok())
                    .map(|b| {
                        if header.big_endian {
                            <$type>::from_be_bytes(b)
                        } else {
                            <$type>::from_le_bytes(b)
                        }
                    })
                    .collect(),
            )
        };
    }
    let data = match header.elem {
        Elem::F32 => numbers!(F32, f32),
        Elem::F64 => numbers!(F64, f64),
        Elem::F16 => numbers!(F16, f16),
        Elem::BF16 => numbers!(BF16, bf16),
        Elem::I8 => numbers!(I8, i8),
        Elem::I16 => numbers!(I16, i16),
        Elem::I32 => numbers!(I32, i32),
        Elem::I64 => numbers!(I64, i64),
        Elem::U8 => numbers!(U8, u8),
        Elem::U16 => numbers!(U16, u16),
        Elem::U32 => numbers!(U32, u32),
        Elem::U64 => numbers!(U64, u64),
        Elem::Bool => Data::Bool(bytes.iter().map(|b| *b != 0).collect()),
    };
    Tensor { shape, data }
}

/// Reads the header of an array; returns it and the bytes it took.
fn read_header(reader: &mut impl Read) -> Result<(Header, u64)> {
    let start = read_bytes(reader, 8)?;
    let (magic, version) = start.split_at(6);
    if magic != MAGIC {
        return Err(Error::input(
            "it is not an array: NumPy's magic bytes are missing",
        ));
    }
    let (length, before) = match version {
        [1, _] => match read_bytes(reader, 2)?[..] {
            [a, b] => (usize::from(u16::from_le_bytes([a, b])), 10),
            _ => (0, 10),
        },
        [2 | 3, _] => match read_bytes(reader, 4)?[..] {
            [a, b, c, d] => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
            _ => (0, 12),
        },
        _ => {
            return Err(Error::input(format!(
                "array format version {version:?} is not known"
            )));
        }
    };
    if length > MAX_HEADER {
        return Err(Error::input(format!("its header claims {length} bytes")));
    }
    let text = read_bytes(reader, length as u64)?;
    let text = String::from_utf8_lossy(&text);
    let header = parse_header(&text)
        .ok_or_else(|| Error::input(format!("its header cannot be read: {}", text.trim())))??;
    Ok((header, before + length as u64))
}

/// Reads a header such as `{'descr': '<i8', 'fortran_order': False, 'shape': (3, 4), }`.
/// `None` when it is not of this form, an error when the element type is not supported.
fn parse_header(text: &str) -> Option<Result<Header>> {
    let value = |key: &str| {
        let quoted = [format!("'{key}'"), format!("\"{key}\"")];
        let after = quoted
            .iter()
            .find_map(|q| text.find(q.as_str()).map(|at| at + q.len()))?;
        Some(text.get(after..)?.trim_start().strip_prefix(':')?.trim_start())
    };
    let descr = value("descr")?;
    let descr = match descr.chars().next()? {
        quote @ ('\'' | '"') => descr.get(1..)?.split(quote).next()?,
        '[' => return Some(Err(Error::input("structured arrays are not supported"))),
        _ => return None,
    };
    let order = value("fortran_order")?;
    let fortran_order = if order.starts_with("True") {
        true
    } else if order.starts_with("False") {
        false
    } else {
        return None;
    };
    let shape = value("shape")?.strip_prefix('(')?.split(')').next()?;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse::<usize>().ok())
        .collect::<Option<Vec<_>>>()?;
    let (order, kind) = descr.split_at_checked(1)?;
    let elem = match kind {
        "f2" => Elem::F16,
        "f4" => Elem::F32,
        "f8" => Elem::F64,
        "i1" => Elem::I8,
        "i2" => Elem::I16,
        "i4" => Elem::I32,
        "i8" => Elem::I64,
        "u1" => Elem::U8,
        "u2" => Elem::U16,
        "u4" => Elem::U32,
        "u8" => Elem::U64,
        "b1" => Elem::Bool,
        _ if kind.starts_with(['U', 'S', 'O']) => {
            return Some(Err(Error::input(
                "it holds text or objects; give texts as .txt, .jsonl, .tsv or .csv with --tokenizer",
            )));
        }
        _ => {
            return Some(Err(Error::input(format!(
                "element type '{descr}' is not supported"
            ))));
        }
    };
    Some(Ok(Header {
        elem,
        shape,
        big_endian: order == ">",
        fortran_order,
    }))
}

fn write_array(writer: &mut impl Write, tensor: &Tensor) -> std::io::Result<()> {
    let descr = match tensor.elem() {
        Elem::F16 => "<f2",
        Elem::F32 | Elem::BF16 => "<f4",
        Elem::F64 => "<f8",
        Elem::I8 => "|i1",
        Elem::I16 => "<i2",
        Elem::I32 => "<i4",
        Elem::I64 => "<i8",
        Elem::U8 => "|u1",
        Elem::U16 => "<u2",
        Elem::U32 => "<u4",
        Elem::U64 => "<u8",
        Elem::Bool => "|b1",
    };
    let sizes: String = tensor.shape.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // The data start at a multiple of 64 bytes.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length =
        u16::try_from(header.len()).map_err(|_| std::io::Error::other("the array has too many axes"))?;
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;

    macro_rules! numbers {
        ($v:expr) => {{
            for x in $v {
                writer.write_all(&x.to_le_bytes())?;
            }
        }};
    }
    match &tensor.data {
        Data::F32(v) => numbers!(v),
        Data::F64(v) => numbers!(v),
        Data::F16(v) => numbers!(v),
        Data::BF16(v) => numbers!(v.iter().map(|x| x.to_f32())),
        Data::I8(v) => numbers!(v),
        Data::I16(v) => numbers!(v),
        Data::I32(v) => numbers!(v),
        Data::I64(v) => numbers!(v),
        Data::U8(v) => numbers!(v),
        Data::U16(v) => numbers!(v),
        Data::U32(v) => numbers!(v),
        Data::U64(v) => numbers!(v),
        Data::Bool(v) => numbers!(v.iter().map(|&x| u8::from(x))),
    }
    Ok(())
}
