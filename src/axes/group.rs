//! Axes that must shrink together, and what their units are.

use super::algebra::dim::FactorId;
use crate::graph::{NodeId, ValueId};

/// Index of a group in [`Analysis::groups`](super::Analysis::groups).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct GroupId(pub usize);

/// A contraction of the pruned axis with a constant weight.
#[derive(Debug, Clone)]
pub struct Sink {
    /// Index in [`Analysis::contractions`](super::Analysis::contractions).
    pub contraction: usize,
    /// The node.
    pub node: NodeId,
    /// Its input that is the activation.
    pub activation_input: usize,
    /// The activation.
    pub activation: ValueId,
    /// Contracted axes of the activation.
    pub activation_axes: Vec<usize>,
    /// Its input that is the weight.
    pub weight_input: usize,
    /// The weight (an initializer, or computed from some).
    pub weight: ValueId,
    /// Contracted axes of the weight, in the order of `activation_axes`.
    pub weight_axes: Vec<usize>,
    /// Whether the output reaches a residual addition.
    pub residual: bool,
}

/// Axes that must shrink together: one class of the factor union-find.
#[derive(Debug, Clone)]
pub struct PruneGroup {
    /// From the nodes' common prefix; unique.
    pub name: String,
    /// What the units are.
    pub kind: Kind,
    /// Where in the network it is, for heads, what is inside of heads, and neurons.
    pub place: Option<Place>,
    /// The factor.
    pub leaf: FactorId,
    /// Number of units.
    pub units: usize,
    /// Where the axis is contracted, in topological order.
    pub sinks: Vec<Sink>,
    /// Constants that make the axis.
    pub sources: Vec<ValueId>,
}

/// A part of a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockPart {
    /// Attention of a sequence to itself.
    Attention,
    /// Attention to another sequence, as a decoder's to an encoder.
    CrossAttention,
    /// The feed-forward part.
    FeedForward,
}

impl BlockPart {
    /// As people say it.
    pub fn word(self) -> &'static str {
        match self {
            BlockPart::Attention => "attention",
            BlockPart::CrossAttention => "cross-attention",
            BlockPart::FeedForward => "feed-forward",
        }
    }
}

/// Where in the network a group is: `block 3 attention`, with blocks counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The block.
    pub block: usize,
    /// The part of it.
    pub part: BlockPart,
    /// Which of the same kind in this block, from 1.
    pub nth: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {} {}", self.block, self.part.word())?;
        match self.nth {
            1 => Ok(()),
            nth => write!(f, " {nth}"),
        }
    }
}

impl serde::Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An axis that has a source and a sink but must keep its size.
#[derive(Debug, Clone)]
pub struct FrozenAxis {
    /// From the nodes' common prefix.
    pub name: String,
    /// Number of units.
    pub units: usize,
    /// Why, with the node.
    pub why: String,
}

/// What the units of a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Attention heads; with grouped queries, a key/value head with its query
    /// heads: a batch axis of a product of activations.
    Heads,
    /// Feed-forward neurons: elementwise from source to sink, and the sink's
    /// output reaches a residual addition.
    Neurons,
    /// Channels inside a head's values.
    ValueDims,
    /// Channels that queries and keys are multiplied along.
    QueryDims,
    /// Query heads within each key/value group.
    Repeats,
    /// Anything else, as a pooler's neurons.
    Other,
}

impl Kind {
    /// Whether it is pruned when nothing is said.
    pub fn is_default(self) -> bool {
        matches!(self, Kind::Heads | Kind::Neurons)
    }

    /// The plural noun for tables.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Heads => "heads",
            Kind::Neurons => "neurons",
            Kind::ValueDims => "value-dims",
            Kind::QueryDims => "query-dims",
            Kind::Repeats => "repeats",
            Kind::Other => "other",
        }
    }
}
