//! Models to bytes, without a buffer for the whole model.
//!
//! Messages are encoded by prost into a small buffer; only those that may hold
//! large tensors are taken apart here, so that `raw_data` goes straight from the
//! memory map to the output. Fields come in the order of their numbers, as prost
//! and Google's implementation write them, so the bytes are the same.
//!
//! Each message is destructured without `..`: a field that is new in the schema
//! does not compile until it is written.

use std::io::{self, Write};

use prost::Message;

use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::error::{Error, Result};

/// Messages shorter than this are encoded in one piece, and the buffer is
/// written when it is longer.
const PIECE: usize = 1 << 16;

/// Writes a model; the bytes are the same as [`encode`]'s. Returns how many.
pub fn write_to(proto: &ModelProto, out: &mut impl Write) -> Result<u64> {
    write(proto, out).map_err(|source| Error::Io {
        context: "cannot write the model".into(),
        source,
    })
}

/// The model's bytes, in one buffer.
pub fn encode(proto: &ModelProto) -> Vec<u8> {
    proto.encode_to_vec()
}

pub(super) fn write(proto: &ModelProto, out: &mut dyn Write) -> io::Result<u64> {
    let mut stream = WireStream {
        out,
        buffer: Vec::with_capacity(2 * PIECE),
        written: 0,
    };
    stream.model(proto)?;
    stream.flush()?;
    Ok(stream.written)
}

struct WireStream<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    written: u64,
}

impl WireStream<'_> {
    fn model(&mut self, model: &ModelProto) -> io::Result<()> {
        let ModelProto {
            ir_version,
            opset_import,
            producer_name,
            producer_version,
            domain,
            model_version,
            doc_string,
            graph,
            metadata_props,
            training_info,
            functions,
            configuration,
        } = model;
        self.fields(&ModelProto {
            ir_version: *ir_version,
            producer_name: producer_name.clone(),
            producer_version: producer_version.clone(),
            domain: domain.clone(),
            model_version: *model_version,
            doc_string: doc_string.clone(),
            ..ModelProto::default()
        })?;
        self.nested(7, graph, Self::graph)?;
        self.messages(8, opset_import)?;
        self.messages(14, metadata_props)?;
        self.messages(20, training_info)?;
        self.nested(25, functions, Self::function)?;
        self.messages(26, configuration)
    }

    fn graph(&mut self, graph: &GraphProto) -> io::Result<()> {
        let GraphProto {
            node,
            name,
            initializer,
            sparse_initializer,
            doc_string,
            input,
            output,
            value_info,
            quantization_annotation,
            metadata_props,
        } = graph;
        self.nested(1, node, Self::node)?;
        self.fields(&GraphProto {
            name: name.clone(),
            ..GraphProto::default()
        })?;
        self.nested(5, initializer, Self::tensor)?;
        self.fields(&GraphProto {
            doc_string: doc_string.clone(),
            ..GraphProto::default()
        })?;
        self.messages(11, input)?;
        self.messages(12, output)?;
        self.messages(13, value_info)?;
        self.messages(14, quantization_annotation)?;
        self.messages(15, sparse_initializer)?;
        self.messages(16, metadata_props)
    }

    fn function(&mut self, function: &FunctionProto) -> io::Result<()> {
        let FunctionProto {
            name,
            input,
            output,
            attribute,
            attribute_proto,
            node,
            doc_string,
            opset_import,
            domain,
            overload,
            value_info,
            metadata_props,
        } = function;
        self.fields(&FunctionProto {
            name: name.clone(),
            input: input.clone(),
            output: output.clone(),
            attribute: attribute.clone(),
            ..FunctionProto::default()
        })?;
        self.nested(7, node, Self::node)?;
        self.fields(&FunctionProto {
            doc_string: doc_string.clone(),
            opset_import: opset_import.clone(),
            domain: domain.clone(),
            ..FunctionProto::default()
        })?;
        self.nested(11, attribute_proto, Self::attribute)?;
        self.messages(12, value_info)?;
        self.fields(&FunctionProto {
            overload: overload.clone(),
            metadata_props: metadata_props.clone(),
            ..FunctionProto::default()
        })
    }

    fn node(&mut self, node: &NodeProto) -> io::Result<()> {
        let NodeProto {
            input,
            output,
            name,
            op_type,
            domain,
            overload,
            attribute,
            doc_string,
            metadata_props,
            device_configurations,
        } = node;
        self.fields(&NodeProto {
            input: input.clone(),
            output: output.clone(),
            name: name.clone(),
            op_type: op_type.clone(),
            ..NodeProto::default()
        })?;
        self.nested(5, attribute, Self::attribute)?;
        self.fields(&NodeProto {
            doc_string: doc_string.clone(),
            domain: domain.clone(),
            overload: overload.clone(),
            metadata_props: metadata_props.clone(),
            device_configurations: device_configurations.clone(),
            ..NodeProto::default()
        })
    }

    fn attribute(&mut self, attribute: &AttributeProto) -> io::Result<()> {
        let AttributeProto {
            name,
            ref_attr_name,
            doc_string,
            r#type,
            f,
            i,
            s,
            t,
            g,
            sparse_tensor,
            tp,
            floats,
            ints,
            strings,
            tensors,
            graphs,
            sparse_tensors,
            type_protos,
        } = attribute;
        self.fields(&AttributeProto {
            name: name.clone(),
            f: *f,
            i: *i,
            s: s.clone(),
            ..AttributeProto::default()
        })?;
        self.nested(5, t, Self::tensor)?;
        self.nested(6, g, Self::graph)?;
        self.fields(&AttributeProto {
            floats: floats.clone(),
            ints: ints.clone(),
            strings: strings.clone(),
            ..AttributeProto::default()
        })?;
        self.nested(10, tensors, Self::tensor)?;
        self.nested(11, graphs, Self::graph)?;
        self.fields(&AttributeProto {
            doc_string: doc_string.clone(),
            tp: tp.clone(),
            type_protos: type_protos.clone(),
            r#type: *r#type,
            ref_attr_name: ref_attr_name.clone(),
            sparse_tensor: sparse_tensor.clone(),
            sparse_tensors: sparse_tensors.clone(),
            ..AttributeProto::default()
        })
    }

    fn tensor(&mut self, tensor: &TensorProto) -> io::Result<()> {
        let TensorProto {
            dims,
            data_type,
            segment,
            float_data,
            int32_data,
            string_data,
            int64_data,
            name,
            doc_string,
            raw_data,
            external_data,
            data_location,
            double_data,
            uint64_data,
            metadata_props,
        } = tensor;
        let Some(raw) = raw_data else {
            return self.fields(tensor);
        };
        self.fields(&TensorProto {
            dims: dims.clone(),
            data_type: *data_type,
            segment: *segment,
            float_data: float_data.clone(),
            int32_data: int32_data.clone(),
            string_data: string_data.clone(),
            int64_data: int64_data.clone(),
            name: name.clone(),
            ..TensorProto::default()
        })?;
        self.key(9, raw.len())?;
        self.raw(raw)?;
        self.fields(&TensorProto {
            double_data: double_data.clone(),
            uint64_data: uint64_data.clone(),
            doc_string: doc_string.clone(),
            external_data: external_data.clone(),
            data_location: *data_location,
            metadata_props: metadata_props.clone(),
            ..TensorProto::default()
        })
    }

    /// Fields of the current message.
    fn fields(&mut self, message: &impl Message) -> io::Result<()> {
        message.encode(&mut self.buffer)?;
        self.drain()
    }

    /// Nested messages that cannot hold large tensors.
    fn messages<M: Message>(&mut self, number: u32, messages: &[M]) -> io::Result<()> {
        for message in messages {
            self.key(number, message.encoded_len())?;
            self.fields(message)?;
        }
        Ok(())
    }

    /// Nested messages that may: short ones whole, long ones by `parts`.
    fn nested<'m, M: Message + 'm>(
        &mut self,
        number: u32,
        messages: impl IntoIterator<Item = &'m M>,
        parts: impl Fn(&mut Self, &M) -> io::Result<()>,
    ) -> io::Result<()> {
        for message in messages {
            let length = message.encoded_len();
            self.key(number, length)?;
            if length < PIECE {
                self.fields(message)?;
            } else {
                parts(self, message)?;
            }
        }
        Ok(())
    }

    /// The key of a length-delimited field, and the length.
    fn key(&mut self, number: u32, length: usize) -> io::Result<()> {
        const LENGTH_DELIMITED: usize = 2;
        prost::encode_length_delimiter((number as usize) << 3 | LENGTH_DELIMITED, &mut self.buffer)?;
        prost::encode_length_delimiter(length, &mut self.buffer)?;
        self.drain()
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < PIECE {
            self.buffer.extend_from_slice(bytes);
            return self.drain();
        }
        self.flush()?;
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        if self.buffer.len() < PIECE {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
