//! What the analysis knows of a graph.

use std::collections::{BTreeMap, BTreeSet};

use super::algebra::dim::{Dim, FactorId};
use super::algebra::int::Int;
use super::algebra::space::{Freeze, Space};
use super::group::{FrozenAxis, GroupId, Kind, PruneGroup};
use crate::graph::{DeclaredShape, Graph, NodeId, Role, ValueId};

/// What is known about one value.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The dimensions; `None` when not even the rank is known.
    pub dims: Option<Vec<Dim>>,
    /// The elements of a small integer tensor, row-major.
    pub ints: Option<Vec<Int>>,
    /// The dimensions of each tensor, where it is a sequence of tensors.
    pub sequence: Option<Vec<Vec<Dim>>>,
    /// Computed from constants only.
    pub constant: bool,
    /// Computed from constants and integers without a projection: masks,
    /// position biases. Such a table may be broadcast into several layers.
    pub table: bool,
}

/// A sum of products over shared axes: MatMul, Gemm, Conv, Einsum, and the
/// inner products of fused operators.
#[derive(Debug, Clone)]
pub struct Contraction {
    /// The node.
    pub node: NodeId,
    /// The inputs of the node that are multiplied.
    pub inputs: [usize; 2],
    /// Whether each operand is a constant.
    pub constant: [bool; 2],
    /// Contracted axes: in the first operand, in the second, the dimension.
    pub contracted: Vec<(usize, usize, Dim)>,
    /// Axes that both operands and the output have.
    pub batch: Vec<Dim>,
    /// Axes that one operand and the output have.
    pub free: [Vec<Dim>; 2],
    /// Input that the operator adds to the result (Gemm's C).
    pub bias: Option<usize>,
    /// Inside a fused operator: no input of the node is an operand as it is.
    pub inner: bool,
}

/// An integer that a node reads and that depends on sizes.
#[derive(Debug, Clone)]
pub struct IntUse {
    /// The reading node.
    pub node: NodeId,
    /// Its input.
    pub input: usize,
    /// Index of the entry in that input.
    pub entry: usize,
    /// What the graph computes there.
    pub actual: Int,
    /// What the node needs there.
    pub needed: Int,
}

/// An attribute that holds a size.
#[derive(Debug, Clone)]
pub struct AttrUse {
    /// The node.
    pub node: NodeId,
    /// The attribute.
    pub name: &'static str,
    /// Index for list attributes.
    pub entry: Option<usize>,
    /// What the node needs there.
    pub needed: Int,
}

/// Constant indices that pick neighbours: a Gather that is a slice.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// The Gather.
    pub node: NodeId,
    /// What lies before the first that is picked.
    pub before: Dim,
    /// What is picked.
    pub part: Dim,
}

/// A table axis broadcast into an activation: it does not couple the layers
/// that read it; each takes its own slice.
#[derive(Debug, Clone)]
pub struct Link {
    /// The node that combines the two.
    pub node: NodeId,
    /// Its input that is the table.
    pub input: usize,
    /// The axis of the table.
    pub axis: usize,
    /// The axis there.
    pub table: Dim,
    /// The axis of the activation.
    pub other: Dim,
}

/// The result of the analysis.
#[derive(Debug, Clone, Default)]
pub struct Analysis {
    /// All factors and symbols.
    pub space: Space,
    /// Per value of the graph.
    pub facts: Vec<Facts>,
    /// Dimensions of constants that have no unit identity, per use.
    pub uniform_uses: BTreeMap<(NodeId, usize), Vec<Dim>>,
    /// All contractions, in topological order.
    pub contractions: Vec<Contraction>,
    /// Integers that nodes read.
    pub int_uses: Vec<IntUse>,
    /// Attributes that hold sizes.
    pub attr_uses: Vec<AttrUse>,
    /// Equal splits without sizes: the node and its parts.
    pub even_splits: Vec<(NodeId, Vec<Dim>)>,
    /// Gathers of neighbours.
    pub runs: Vec<RunFacts>,
    /// Tables that each layer slices for itself.
    pub links: Vec<Link>,
    /// Operators without a rule that touch a float axis, with how often.
    pub unsupported: BTreeMap<String, usize>,
    /// What can be pruned, in topological order of the first sink.
    pub groups: Vec<PruneGroup>,
    /// Groups, by their index, that are to keep the same number of units; which
    /// ones is each group's own affair.
    pub even: Vec<Vec<GroupId>>,
    /// Axes that would be a group, and why they are not.
    pub frozen: Vec<FrozenAxis>,
    /// Nodes that were not followed.
    pub(super) lost: BTreeSet<NodeId>,
    pub(super) unknowns: u32,
    pub(super) followed: BTreeSet<(NodeId, usize)>,
}

impl Analysis {
    /// The index of the group that is the same in another model: of this name, kind and
    /// number of units.
    pub fn find_group(&self, name: &str, kind: Kind, units: usize) -> Option<GroupId> {
        let same = |g: &PruneGroup| g.name == name && g.kind == kind && g.units == units;
        self.groups.iter().position(same).map(GroupId)
    }

    /// Whether the groups are those of `other`, in the same order.
    pub fn has_groups_of(&self, other: &Self) -> bool {
        self.groups.len() == other.groups.len()
            && (self.groups.iter().zip(&other.groups)).all(|(a, b)| a.name == b.name && a.units == b.units)
    }

    /// A group.
    pub fn group(&self, id: GroupId) -> &PruneGroup {
        &self.groups[id.0]
    }

    /// All groups with their indices.
    pub fn indexed(&self) -> impl Iterator<Item = (GroupId, &PruneGroup)> {
        let indexed = self.groups.iter().enumerate();
        indexed.map(|(at, group)| (GroupId(at), group))
    }

    /// The group of this kind that a node contracts on one of its inputs.
    pub fn group_of_sink(&self, kind: Kind, node: NodeId, input: usize) -> Option<GroupId> {
        let own = |g: &PruneGroup| {
            g.sinks
                .iter()
                .any(|s| s.node == node && s.activation_input == input)
        };
        let mut found = self.indexed().filter(|(_, g)| g.kind == kind && own(g));
        found.next().map(|(id, _)| id)
    }

    /// The facts of a value.
    pub fn facts(&self, value: ValueId) -> &Facts {
        &self.facts[value.0 as usize]
    }

    /// The dimensions of what a node reads on an input.
    pub fn operand(&self, graph: &Graph, node: NodeId, input: usize) -> Option<&Vec<Dim>> {
        if let Some(dims) = self.uniform_uses.get(&(node, input)) {
            return Some(dims);
        }
        self.facts(graph.input(node, input)?).dims.as_ref()
    }

    /// Whether a leaf may shrink.
    pub fn is_free(&self, leaf: FactorId) -> bool {
        self.space.frozen(leaf).is_none()
    }

    /// Nothing but the constants of a graph.
    pub(super) fn empty(graph: &Graph) -> Self {
        let mut analysis = Analysis {
            facts: vec![Facts::default(); graph.values.len()],
            ..Analysis::default()
        };
        analysis.seed_constants(graph);
        analysis
    }

    fn seed_constants(&mut self, graph: &Graph) {
        for (at, value) in graph.values.iter().enumerate() {
            let facts = match value.role {
                Role::Inner | Role::Input => continue,
                Role::Constant => match &value.constant {
                    Some(constant) => Facts {
                        dims: Some(constant.shape.iter().map(|n| self.space.fresh(*n)).collect()),
                        ints: constant
                            .ints
                            .as_ref()
                            .map(|v| v.iter().map(|x| Int::Const(*x)).collect()),
                        constant: true,
                        table: true,
                        ..Facts::default()
                    },
                    None => Facts {
                        dims: self.declared_dims(
                            graph,
                            ValueId(at as u32),
                            "it is a constant of a kind that is not read",
                        ),
                        constant: true,
                        table: true,
                        ..Facts::default()
                    },
                },
            };
            // Packed into less than a byte, or no number at all.
            if value.constant.is_some() && value.elem.is_none() {
                for dim in facts.dims.iter().flatten() {
                    self.space
                        .freeze(dim, None, "it is an axis of numbers of a type that is not cut");
                }
            }
            self.facts[at] = facts;
        }
    }

    /// Dimensions of a value as the file declares them, frozen.
    pub(super) fn declared_dims(&mut self, graph: &Graph, value: ValueId, why: &str) -> Option<Vec<Dim>> {
        let dims = self.open_dims(graph, value)?;
        let node = graph.value(value).producer.map(|(n, _)| n);
        for dim in &dims {
            self.space.freeze(dim, node, why);
        }
        Some(dims)
    }

    pub(super) fn open_dims(&mut self, graph: &Graph, value: ValueId) -> Option<Vec<Dim>> {
        let declared = graph.value(value).declared.as_ref()?;
        Some(
            declared
                .iter()
                .map(|d| match d {
                    DeclaredShape::Size(n) => self.space.fresh(*n),
                    DeclaredShape::Symbol(name) => self.space.named(name),
                    DeclaredShape::Unknown => self.space.unknown(),
                })
                .collect(),
        )
    }

    /// Multiply-accumulates of one contraction as a product of dimensions.
    pub fn macs(&self, contraction: &Contraction) -> Dim {
        let mut total = Dim::one();
        let dims = contraction
            .batch
            .iter()
            .chain(&contraction.free[0])
            .chain(&contraction.free[1])
            .chain(contraction.contracted.iter().map(|(_, _, d)| d));
        for dim in dims {
            total = total.times(dim.clone());
        }
        total
    }
}

impl Freeze {
    /// The reason with the node's name.
    pub fn describe(&self, graph: &Graph) -> String {
        match self.node {
            Some(node) => format!("{} (at {})", self.why, graph.label(node)),
            None => self.why.clone(),
        }
    }
}
