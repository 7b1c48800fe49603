//! A model as ONNX Runtime takes it: bytes, or a file with a side file when
//! the bytes would be too many for one protobuf message.
//!
//! Weights that lie in a side file already stay there, and the runtime maps that file
//! itself: a session of a part of a large model then takes milliseconds and next to no
//! memory, where a copy of the bytes takes four times the size of the weights.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use prost::Message;

use crate::error::{Error, Result};
use crate::io::scratch::ScratchFolder;
use crate::onnx::origin;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};

/// Protobuf's limit for one message.
pub(super) const LIMIT: usize = i32::MAX as usize;

/// Initializers from this size on go to the side file.
const OUTSIDE_FROM: usize = 1024;

/// Where a tensor may start in a file that is mapped: at whole elements of any type.
const ELEMENT: u64 = 8;

/// Where tensors start in the side file: at pages, so that they can be mapped.
const ALIGNMENT: u64 = 4096;

/// The name of the side file.
const DATA: &str = "weights.bin";

/// A serialised model.
pub(super) enum Serialised {
    /// In memory.
    Bytes(Vec<u8>),
    /// In memory, some weights in files of a folder.
    Beside {
        /// The model.
        bytes: Vec<u8>,
        /// Where the files are.
        folder: PathBuf,
        /// Bytes of weights in them.
        outside: u64,
    },
    /// In a file of a temporary folder, which lives as long as this value.
    File {
        /// The file.
        path: PathBuf,
        /// Removes the folder.
        _folder: ScratchFolder,
    },
}

/// Serialises `model`, whose data must be inside; at more than `limit` bytes
/// the large initializers of the outermost graph go to a side file.
pub(super) fn serialise(mut model: ModelProto, limit: usize) -> Result<Serialised> {
    if model.encoded_len() <= limit {
        return Ok(Serialised::Bytes(model.encode_to_vec()));
    }
    let folder = ScratchFolder::new()?;
    let data = folder.path().join(DATA);
    if let Some(graph) = &mut model.graph {
        File::create(&data)
            .and_then(|file| move_out(graph, BufWriter::new(file)))
            .map_err(|e| Error::io("cannot write", &data, e))?;
    }
    let size = model.encoded_len();
    if size > limit {
        return Err(Error::engine(format!(
            "the model takes {size} bytes without its large initializers; \
             an engine loads at most {limit}"
        )));
    }
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).map_err(|e| Error::io("cannot write", &path, e))?;
    Ok(Serialised::File {
        path,
        _folder: folder,
    })
}

/// The same with the large initializers left in the files that they were mapped from,
/// as far as these are in one folder; `None` where there are none or where what is left
/// takes more than `limit` bytes.
pub(super) fn beside(mut model: ModelProto, limit: usize) -> Option<Serialised> {
    let graph = model.graph.as_mut()?;
    let mut folder: Option<PathBuf> = None;
    let mut outside = 0u64;
    for tensor in &mut graph.initializer {
        let Some(raw) = tensor.raw_data.as_ref().filter(|raw| raw.len() >= OUTSIDE_FROM) else {
            continue;
        };
        let Some(place) = origin(raw).filter(|o| o.offset.is_multiple_of(ELEMENT)) else {
            continue;
        };
        let (Some(own), Some(file)) = (
            place.path.parent(),
            place.path.file_name().and_then(|n| n.to_str()),
        ) else {
            continue;
        };
        if folder.get_or_insert_with(|| own.to_owned()) != own {
            continue;
        }
        let length = raw.len();
        outside += length as u64;
        mark(tensor, file, place.offset, length);
        tensor.raw_data = None;
    }
    let folder = folder?;
    (model.encoded_len() <= limit).then(|| Serialised::Beside {
        bytes: model.encode_to_vec(),
        folder,
        outside,
    })
}

/// Writes the data of the large initializers to `data` and leaves their place.
fn move_out(graph: &mut GraphProto, mut data: BufWriter<File>) -> std::io::Result<()> {
    let mut end = 0u64;
    for tensor in &mut graph.initializer {
        let Some(bytes) = tensor.raw_data.take_if(|raw| raw.len() >= OUTSIDE_FROM) else {
            continue;
        };
        let start = end.next_multiple_of(ALIGNMENT);
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(0), start - end),
            &mut data,
        )?;
        data.write_all(&bytes)?;
        end = start + bytes.len() as u64;
        mark(tensor, DATA, start, bytes.len());
    }
    data.flush()
}

/// Says where in which file the data of `tensor` are.
fn mark(tensor: &mut TensorProto, file: &str, offset: u64, length: usize) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", file.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(sizes: &[usize]) -> ModelProto {
        let initializer = sizes
            .iter()
            .zip(1u8..)
            .map(|(&size, fill)| TensorProto {
                raw_data: Some(vec![fill; size].into()),
                ..TensorProto::default()
            })
            .collect();
        ModelProto {
            graph: Some(GraphProto {
                initializer,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    #[test]
    fn a_small_model_stays_in_memory() {
        let model = model(&[5000]);
        let Ok(Serialised::Bytes(bytes)) = serialise(model.clone(), LIMIT) else {
            panic!("it went to a file");
        };
        assert_eq!(ModelProto::decode(bytes.as_slice()).unwrap(), model);
    }

    #[test]
    fn a_large_model_goes_to_a_file_with_its_data_beside_it() {
        let Ok(Serialised::File { path, _folder }) = serialise(model(&[5000, 10, 3000]), 1000) else {
            panic!("it stayed in memory");
        };
        let written = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
        let data = std::fs::read(path.with_file_name(DATA)).unwrap();
        let tensors = written.graph.unwrap().initializer;
        assert_eq!(tensors[1].raw_data.as_deref(), Some([2; 10].as_slice()));
        let place = |t: &TensorProto| -> (usize, usize) {
            let number = |i: usize| t.external_data[i].value().parse().unwrap();
            (number(1), number(2))
        };
        for (tensor, fill, size) in [(&tensors[0], 1, 5000), (&tensors[2], 3, 3000)] {
            let (offset, length) = place(tensor);
            assert_eq!((offset % 4096, length), (0, size));
            assert!(data[offset..offset + length].iter().all(|&b| b == fill));
            assert!(tensor.raw_data.is_none());
        }
    }

    #[test]
    fn what_is_too_large_even_so_is_refused() {
        assert!(serialise(model(&[900, 900]), 1000).is_err());
    }
}
