//! The values at a cut for every batch, carried from piece to piece.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::data::Batch;
use crate::engine::{Engine, Session, SessionOptions};
use crate::graph::{Graph, ValueId};
use crate::network::Network;
use crate::onnx::proto;
use crate::rewrite::segment::{Boundary, piece};
use crate::tensor::{Feeds, Tensor};
use crate::{Error, Result};

/// Tensors by value, one map per batch.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Per batch.
    pub tensors: Vec<BTreeMap<ValueId, Tensor>>,
}

impl Stream {
    /// The graph inputs of every batch.
    pub fn start(graph: &Graph, batches: &[Batch]) -> Self {
        let tensors = batches
            .iter()
            .map(|batch| {
                let feed = |v: &ValueId| Some((*v, batch.feeds.get(&graph.value(*v).name)?.clone()));
                graph.inputs.iter().filter_map(feed).collect()
            })
            .collect();
        Self { tensors }
    }

    /// Types and ranks of what is held, as the pieces behind need them.
    pub fn boundary(&self, values: &[ValueId]) -> Result<Vec<Boundary>> {
        let first = self
            .tensors
            .first()
            .ok_or_else(|| Error::input("there are no batches to run"))?;
        values
            .iter()
            .map(|v| {
                let tensor = first
                    .get(v)
                    .ok_or_else(|| Error::input("a value is read before it is computed"))?;
                Ok(Boundary::of(*v, tensor))
            })
            .collect()
    }
}

/// A piece with its session.
pub struct Runner {
    session: Box<dyn Session>,
    reads: Vec<(ValueId, String)>,
    gives: Vec<ValueId>,
    /// The inputs of the next run: constants stay from run to run.
    feeds: Feeds,
    /// Whether the session was not yet asked to hold the constants.
    new: bool,
    /// What is given beside the stream, batch by batch.
    beside: Feeds,
}

impl Runner {
    /// Makes the piece from `reads` to `gives`.
    ///
    /// # Errors
    /// The engine's; a piece that reads something else.
    pub fn new(
        engine: &dyn Engine,
        network: &Network,
        reads: &[Boundary],
        gives: &[ValueId],
    ) -> Result<Self> {
        Self::of(
            engine,
            &piece(network, reads, gives)?,
            &network.graph,
            reads,
            gives,
        )
    }

    /// Runs a piece that was made, or what stands for it.
    ///
    /// # Errors
    /// The engine's.
    pub fn of(
        engine: &dyn Engine,
        part: &proto::ModelProto,
        graph: &Graph,
        reads: &[Boundary],
        gives: &[ValueId],
    ) -> Result<Self> {
        let options = SessionOptions {
            optimise: true,
            outputs: Some(gives.iter().map(|v| graph.value(*v).name.clone()).collect()),
        };
        Ok(Self {
            session: engine.session(part, &options)?,
            reads: reads
                .iter()
                .map(|b| (b.value, graph.value(b.value).name.clone()))
                .collect(),
            gives: gives.to_vec(),
            feeds: Feeds::new(),
            new: false,
            beside: Feeds::new(),
        })
    }

    /// Gives the constants that are inputs, for all runs until the next call.
    pub fn feed(&mut self, constants: Feeds) {
        self.feeds = constants;
        self.new = true;
    }

    /// Gives an input of the next runs that is no value of the graph.
    pub fn give(&mut self, name: &str, tensor: Tensor) {
        self.beside.insert(name.into(), tensor);
    }

    /// Runs one batch.
    ///
    /// # Errors
    /// The engine's.
    pub fn run(&mut self, tensors: &BTreeMap<ValueId, Tensor>) -> Result<Vec<Tensor>> {
        if std::mem::take(&mut self.new) && self.session.hold(&self.feeds)? {
            self.feeds.clear();
        }
        for (value, name) in &self.reads {
            let tensor = tensors
                .get(value)
                .ok_or_else(|| Error::input(format!("the value '{name}' is read before it is computed")))?;
            self.feeds.insert(name.clone(), tensor.clone());
        }
        self.feeds.extend(self.beside.clone());
        self.session.run(&self.feeds)
    }

    /// Carries a stream through the piece; afterwards it holds what the piece
    /// gives and those of the old values that are in `keep`.
    ///
    /// # Errors
    /// The engine's, an interrupt.
    pub fn advance(
        &mut self,
        stream: &mut Stream,
        keep: &BTreeSet<ValueId>,
        cancelled: &AtomicBool,
    ) -> Result<()> {
        for tensors in &mut stream.tensors {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let given = self.run(tensors)?;
            tensors.retain(|v, _| keep.contains(v));
            tensors.extend(self.gives.iter().copied().zip(given));
        }
        Ok(())
    }
}
