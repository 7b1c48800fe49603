//! Statistics on disk: a safetensors file, with what does not fit a tensor as
//! JSON in its metadata.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use prost::Message as _;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::data::Sample;
use crate::error::{Error, Result, ResultExt};
use crate::io::staged::{self, Staged};
use crate::numerics::{SiteStatistics, Statistics};
use crate::onnx;
use crate::onnx::proto::GraphProto;
use crate::tensor::{Data, Feeds, Tensor};

/// The version that is written; others are refused.
const VERSION: u32 = 2;

/// The entry of the file's metadata that holds [`Head`].
const HEAD: &str = "onnx-prune statistics";

/// Longest header that is read, as in the safetensors library.
const MAX_HEADER: u64 = 100_000_000;

/// The tensor with samples, and the input that tells which of their tokens are real.
const SAMPLES: &str = "onnx-prune samples";
const MASK: &str = "onnx-prune token mask";

/// The parts of a site, in the names of tensors.
const PARTS: [&str; 3] = ["pilot", "sum", "gram"];

/// What the metadata say.
#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    version: u32,
    model: String,
    samples: usize,
    tokens: u64,
    /// Tokens per site, and the sum of their weights.
    sites: BTreeMap<String, (u64, f64)>,
}

/// Statistics and the model they are of.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Names the model, as a hash of its file does.
    pub model: String,
    /// The statistics.
    pub statistics: Statistics,
    /// Some of the samples, for what sums do not tell: what a loss does to the outputs.
    pub samples: Vec<Sample>,
}

/// Samples that a file holds at most, however many files were added up.
pub const MOST_SAMPLES: usize = 576;

impl Stored {
    /// Adds those of other samples; they must be of the same model. All samples that both
    /// hold stay.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.model != other.model {
            return Err(Error::input(format!(
                "statistics of different models cannot be merged ({} and {})",
                self.model, other.model
            )));
        }
        self.statistics.merge(&other.statistics)?;
        self.samples.extend(other.samples.iter().cloned());
        Ok(())
    }
}

/// Writes `statistics` of the model called `model` to `path`, without samples; the file
/// appears whole or not at all.
pub fn save(path: &Path, model: &str, statistics: &Statistics) -> Result<()> {
    write(path, (model, statistics), &[])
}

impl Stored {
    /// Writes all of it; the file appears whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, (&self.model, &self.statistics), &self.samples)
    }
}

fn write(path: &Path, (model, statistics): (&str, &Statistics), samples: &[Sample]) -> Result<()> {
    let samples = encoded(samples);
    let head = Head {
        version: VERSION,
        model: model.to_owned(),
        samples: statistics.samples,
        tokens: statistics.tokens,
        sites: statistics
            .sites
            .iter()
            .map(|(name, s)| (name.clone(), (s.tokens(), s.total())))
            .collect(),
    };
    let head = serde_json::to_string(&head)
        .map_err(|e| Error::input(format!("the statistics cannot be described: {e}")))?;
    // One entry: the library writes several in no fixed order.
    let metadata = [(HEAD.to_owned(), head)].into_iter().collect();
    let mut infos = Vec::new();
    let mut end = 0;
    for (name, site) in &statistics.sites {
        let (pilot, sum) = site.parts();
        let lengths = [pilot.len(), sum.len(), site.packed_len()];
        for (part, length) in PARTS.into_iter().zip(lengths) {
            let start = end;
            end += length * size_of::<f64>();
            let info = TensorInfo {
                dtype: Dtype::F64,
                shape: vec![length],
                data_offsets: (start, end),
            };
            infos.push((format!("{name}.{part}"), info));
        }
    }
    if !samples.is_empty() {
        let info = TensorInfo {
            dtype: Dtype::U8,
            shape: vec![samples.len()],
            data_offsets: (end, end + samples.len()),
        };
        infos.push((SAMPLES.to_owned(), info));
    }
    let damaged = |e: String| Error::input(format!("the statistics cannot be described: {e}"));
    let header = Metadata::new(Some(metadata), infos).map_err(|e| damaged(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| damaged(e.to_string()))?;
    // The values are read in place by others: they begin at a multiple of their size.
    header.resize(header.len().next_multiple_of(size_of::<f64>()), b' ');
    let mut staged = Staged::default();
    staged.file(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for site in statistics.sites.values() {
            let (pilot, sum) = site.parts();
            // One site at a time: tokens that were kept become sums here.
            let gram = site.packed();
            for value in pilot.iter().chain(sum).chain(gram.iter()) {
                file.write_all(&value.to_le_bytes())?;
            }
        }
        file.write_all(&samples)?;
        file.flush()
    })?;
    staged.commit()
}

/// Reads what [`save`] wrote.
pub fn load(path: &Path) -> Result<Stored> {
    load_inner(path).context(|| format!("cannot use the statistics in {}", path.display()))
}

fn load_inner(path: &Path) -> Result<Stored> {
    let io = |e| Error::io("cannot read", path, e);
    let mut file = BufReader::new(staged::open(path)?);
    let size = file.get_ref().metadata().map_err(io)?.len();
    let foreign = || Error::input("it is not a file of statistics");

    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|_| foreign())?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size.saturating_sub(8) {
        return Err(foreign());
    }
    let mut header = Vec::new();
    (&mut file).take(length).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|_| foreign())?;
    let head = metadata
        .metadata()
        .as_ref()
        .and_then(|m| m.get(HEAD))
        .ok_or_else(foreign)?;
    let version: serde_json::Value = serde_json::from_str(head).map_err(|_| foreign())?;
    if version.get("version").and_then(serde_json::Value::as_u64) != Some(u64::from(VERSION)) {
        return Err(Error::input(format!(
            "it is of another version of the format; this program reads version {VERSION}"
        )));
    }
    let head: Head = serde_json::from_value(version)
        .map_err(|e| Error::input(format!("its metadata are damaged: {e}")))?;
    if size - 8 - length != metadata.data_len() as u64 {
        return Err(Error::input("it is cut short or damaged"));
    }

    let samples = match metadata.info(SAMPLES).filter(|info| info.dtype == Dtype::U8) {
        Some(info) => {
            let (start, end) = info.data_offsets;
            let from = (start as u64).saturating_add(8 + length);
            file.seek(SeekFrom::Start(from)).map_err(io)?;
            let mut bytes = Vec::new();
            (&mut file)
                .take(end.saturating_sub(start) as u64)
                .read_to_end(&mut bytes)
                .map_err(io)?;
            decoded(bytes)?
        }
        None => Vec::new(),
    };
    let mut sites = BTreeMap::new();
    for (name, (tokens, total)) in head.sites {
        let mut part = |part: &str| -> Result<Vec<f64>> {
            let info = metadata
                .info(&format!("{name}.{part}"))
                .filter(|info| info.dtype == Dtype::F64)
                .ok_or_else(|| Error::input(format!("it has no {part} of site '{name}'")))?;
            let (start, end) = info.data_offsets;
            let start = (start as u64).saturating_add(8 + length);
            file.seek(SeekFrom::Start(start)).map_err(io)?;
            let bytes = (end as u64).saturating_add(8 + length).saturating_sub(start);
            let mut data = Vec::new();
            (&mut file).take(bytes).read_to_end(&mut data).map_err(io)?;
            Ok(data
                .chunks_exact(8)
                .filter_map(|b| b.try_into().ok())
                .map(f64::from_le_bytes)
                .collect())
        };
        let [pilot, sum, gram] = PARTS;
        let site = SiteStatistics::from_parts(tokens, total, part(pilot)?, part(sum)?, part(gram)?)
            .context(|| format!("site '{name}'"))?;
        sites.insert(name, site);
    }
    let statistics = Statistics {
        sites,
        samples: head.samples,
        tokens: head.tokens,
    };
    Ok(Stored {
        model: head.model,
        statistics,
        samples,
    })
}

/// Samples, one after the other: each a graph whose constants are its inputs.
fn encoded(samples: &[Sample]) -> Vec<u8> {
    let mut out = Vec::new();
    for sample in samples {
        let inputs = sample
            .feeds
            .iter()
            .map(|(name, tensor)| onnx::tensor_proto(name, tensor));
        let mask = sample.token_mask.as_ref().map(|mask| {
            let mask = Tensor::new(vec![mask.len()], Data::Bool(mask.clone()));
            onnx::tensor_proto(MASK, &mask)
        });
        let graph = GraphProto {
            initializer: inputs.chain(mask).collect(),
            ..Default::default()
        };
        out.extend(graph.encode_length_delimited_to_vec());
    }
    out
}

fn decoded(bytes: Vec<u8>) -> Result<Vec<Sample>> {
    let mut bytes = bytes::Bytes::from(bytes);
    let mut samples = Vec::new();
    while !bytes.is_empty() {
        let graph = GraphProto::decode_length_delimited(&mut bytes)
            .map_err(|e| Error::input(format!("its samples are damaged: {e}")))?;
        let mut sample = Sample {
            feeds: Feeds::new(),
            token_mask: None,
        };
        for input in &graph.initializer {
            let tensor = onnx::tensor(input)?;
            match (input.name(), &tensor.data) {
                (MASK, Data::Bool(mask)) => sample.token_mask = Some(mask.clone()),
                (name, _) => _ = sample.feeds.insert(name.to_owned(), tensor),
            }
        }
        samples.push(sample);
    }
    Ok(samples)
}
