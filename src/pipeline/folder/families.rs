//! Models of a folder that hold the same matrices.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::FolderRun;
use crate::Result;
use crate::folder::FolderModel;
use crate::onnx::{self, proto};
use crate::pipeline::decoder_inputs;

/// Matrices of more numbers tell models apart.
const TELLING: i64 = 256;

/// Models that hold the same matrices.
pub(super) struct Family<'a> {
    pub(super) models: Vec<&'a FolderModel>,
    matrices: BTreeSet<[u8; 32]>,
    pub(super) reads_encoder: bool,
}

impl<'a> FolderRun<'a> {
    /// Models by the matrices that they share; those that read what another one makes come
    /// last.
    pub(super) fn families(&mut self) -> Result<Vec<Family<'a>>> {
        let mut families: Vec<Family> = Vec::new();
        for model in &self.found.models {
            let path = self.found.root.join(&model.file);
            let file = onnx::load(&path)?;
            let mut own = Family {
                models: vec![model],
                matrices: matrices(&file.proto),
                reads_encoder: decoder_inputs::reads_encoder(&file.proto),
            };
            let mut rest = Vec::new();
            for family in families {
                match family.matrices.is_disjoint(&own.matrices) {
                    true => rest.push(family),
                    false => {
                        own.models.splice(0..0, family.models);
                        own.matrices.extend(family.matrices);
                        own.reads_encoder |= family.reads_encoder;
                    }
                }
            }
            rest.push(own);
            families = rest;
        }
        families.sort_by_key(|family| family.reads_encoder);
        Ok(families)
    }
}

/// The matrices of a model that are no tables: a hash of each.
fn matrices(model: &proto::ModelProto) -> BTreeSet<[u8; 32]> {
    /// Bytes that tell matrices apart.
    const BYTES: usize = 1 << 16;
    let Some(graph) = &model.graph else {
        return BTreeSet::new();
    };
    let nodes = graph.node.iter().filter(|n| n.op_type() != "Gather");
    let read: BTreeSet<String> = nodes.flat_map(crate::graph::node_reads).collect();
    let held = graph.initializer.iter().filter(|t| {
        let numbers = t.dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d));
        t.dims.len() >= 2 && numbers.is_some_and(|n| n >= TELLING) && read.contains(t.name())
    });
    let hashed = held.filter_map(|tensor| {
        let bytes = tensor.raw_data.as_deref()?;
        let bytes = &bytes[..bytes.len().min(BYTES)];
        let first = bytes.first()?;
        // Equal numbers tell nothing.
        if bytes.iter().all(|b| b == first) {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}", tensor.data_type, tensor.dims));
        hash.update(bytes);
        Some(hash.finalize().into())
    });
    hashed.collect()
}
