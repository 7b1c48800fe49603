//! What a rule sees of its node, and what it may say.

use super::algebra::dim::{Dim, Term};
use super::algebra::elements::Elements;
use super::algebra::int::Int;
use super::facts::{Analysis, AttrUse, Contraction, IntUse, Link};
use crate::graph::{Graph, Node, NodeId, ValueId};

/// The type of a rule.
pub type Rule = fn(&mut Op) -> Option<()>;

/// A rule that a program which uses the library adds, for operators of its own.
#[derive(Debug, Clone, Copy)]
pub struct OwnRule {
    /// The operator's domain; empty for ONNX itself.
    pub domain: &'static str,
    /// The operator.
    pub op: &'static str,
    /// How its axes relate.
    pub rule: Rule,
}

/// The rules of an analysis. They travel with the node, so that the rule of an operator
/// with a body can follow it.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// Rules that come before the built-in ones.
    pub(super) own: &'static [OwnRule],
    /// The built-in rule of an operator, by domain and name.
    pub(super) built_in: fn(&str, &str) -> Option<Rule>,
}

impl Rules {
    fn of(self, domain: &str, op: &str) -> Option<Rule> {
        let own = self.own.iter().find(|own| own.domain == domain && own.op == op);
        own.map(|own| own.rule).or_else(|| (self.built_in)(domain, op))
    }
}

/// Applies the rules in topological order.
pub(super) fn follow(analysis: &mut Analysis, graph: &Graph, rules: Rules) {
    for &id in &graph.order {
        if graph.node(id).is("", "Constant") {
            continue;
        }
        apply(&mut Op {
            a: &mut *analysis,
            graph,
            rules,
            id,
        });
        analysis.after(graph, id);
    }
}

/// Applies the rule of a node, or freezes what the node touches.
fn apply(op: &mut Op) {
    let node = op.node();
    let name = match node.domain.as_str() {
        "" => node.op.clone(),
        domain => format!("{domain}::{}", node.op),
    };
    match op.rules.of(&node.domain, &node.op) {
        None => {
            *op.a.unsupported.entry(name.clone()).or_insert(0) += 1;
            op.give_up(&format!("the operator {name} has no rule"));
        }
        Some(rule) => {
            if rule(op).is_none() {
                op.give_up(&format!("this use of {name} is not followed"));
            }
        }
    }
}

impl Analysis {
    /// Derived flags of the outputs, and integers that no rule followed.
    fn after(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        let reads: Vec<ValueId> = node
            .inputs
            .iter()
            .flatten()
            .chain(&node.captures)
            .copied()
            .collect();
        let constant = reads.iter().all(|v| self.facts(*v).constant) && !reads.is_empty();
        let projects = self
            .contractions
            .iter()
            .rev()
            .take_while(|c| c.node == id)
            .any(|c| c.inner || c.constant != [false, false] && !constant);
        let shape = matches!(node.op.as_str(), "Shape" | "Size") && node.domain.is_empty();
        let table = shape || !projects && reads.iter().all(|v| self.facts(*v).table);
        for output in node.outputs.iter().flatten() {
            let facts = &mut self.facts[output.0 as usize];
            facts.constant = constant;
            facts.table = table;
        }
        for input in 0..node.inputs.len() + node.captures.len() {
            if self.followed.contains(&(id, input)) {
                continue;
            }
            let Some(value) = graph.input(id, input) else {
                continue;
            };
            if let Some(ints) = self.facts(value).ints.clone() {
                for int in ints {
                    let why = "a number computed from its size enters other arithmetic";
                    self.space.freeze_int(&int, Some(id), why);
                }
            }
        }
    }
}

/// One node under a rule.
pub struct Op<'a> {
    pub(super) a: &'a mut Analysis,
    pub(super) graph: &'a Graph,
    rules: Rules,
    /// The node's id.
    pub id: NodeId,
}

impl<'a> Op<'a> {
    /// Follows the body of a subgraph with the rules of this graph.
    pub(super) fn follow(&self, body: &Graph, inner: &mut Analysis) {
        follow(inner, body, self.rules);
    }

    /// The node: attributes, operator, arity.
    pub fn node(&self) -> &'a Node {
        self.graph.node(self.id)
    }

    /// The value on an input, if it is given.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        *self.node().inputs.get(index)?
    }

    /// Whether an input is given.
    pub fn has(&self, index: usize) -> bool {
        self.input(index).is_some()
    }

    /// Dimensions of an input. A constant without unit identity that several
    /// nodes share gets its own at each use.
    pub fn dims(&mut self, index: usize) -> Option<Vec<Dim>> {
        let id = self.input(index)?;
        if let Some(dims) = self.a.uniform_uses.get(&(self.id, index)) {
            return Some(dims.clone());
        }
        let value = self.graph.value(id);
        if let Some(constant) = &value.constant
            && constant.uniform
            && value.consumers.len() > 1
        {
            let dims: Vec<Dim> = constant.shape.iter().map(|n| self.a.space.fresh(*n)).collect();
            self.a.uniform_uses.insert((self.id, index), dims.clone());
            return Some(dims);
        }
        self.a.facts(id).dims.clone()
    }

    /// The tracked integers of an input. The rule takes over the care for them.
    pub fn ints(&mut self, index: usize) -> Option<Vec<Int>> {
        let id = self.input(index)?;
        self.a.followed.insert((self.id, index));
        self.a.facts(id).ints.clone()
    }

    /// The tracked integers of an input with their shape.
    pub(super) fn elements(&mut self, index: usize) -> Option<Elements> {
        let ints = self.ints(index)?;
        let dims = self.a.facts(self.input(index)?).dims.clone();
        let shape: Option<Vec<usize>> = match &dims {
            Some(dims) => dims
                .iter()
                .map(|d| self.a.space.value(&Int::Dim(d.clone())).as_const())
                .map(|n| usize::try_from(n?).ok())
                .collect(),
            None => None,
        };
        Elements::new(shape?, ints)
    }

    /// Sets the tracked integers of an output to `made`; where they could not be
    /// made, input 0 is not followed any further.
    pub(super) fn set_elements(&mut self, index: usize, made: Option<Elements>) {
        match made {
            Some(made) => self.set_ints(index, made.ints),
            None => {
                for int in self.ints(0).unwrap_or_default() {
                    self.drop_int(&int);
                }
            }
        }
    }

    /// The integers of an input where all have one value in the file.
    pub fn values(&mut self, index: usize) -> Option<Vec<i64>> {
        let ints = self.ints(index)?;
        ints.iter().map(|i| self.a.space.value(i).as_const()).collect()
    }

    /// Integers from an attribute (older operator sets) or an input (newer).
    pub fn attr_or_input(&mut self, name: &str, index: usize) -> Option<Vec<i64>> {
        match self.node().ints(name) {
            Some(v) => Some(v.to_vec()),
            None => self.values(index),
        }
    }

    /// Whether an input is computed from constants only.
    pub fn is_constant(&self, index: usize) -> bool {
        self.input(index).is_some_and(|v| self.a.facts(v).constant)
    }

    /// Whether an input is a table or mask: no activation.
    pub fn is_table(&self, index: usize) -> bool {
        self.input(index).is_some_and(|v| self.a.facts(v).table)
    }

    /// Sets the dimensions of an output; those of more axes than any real tensor has
    /// are not followed.
    pub fn set(&mut self, index: usize, dims: Vec<Dim>) {
        const MOST_AXES: usize = 64;
        if dims.len() > MOST_AXES {
            for dim in &dims {
                self.freeze(dim, "it is one of too many axes");
            }
            return;
        }
        if let Some(Some(id)) = self.node().outputs.get(index) {
            self.a.facts[id.0 as usize].dims = Some(dims);
        }
    }

    /// Sets the tracked integers of an output; expressions that grow out of
    /// hand are dropped and what they read is frozen.
    pub fn set_ints(&mut self, index: usize, ints: Vec<Int>) {
        const HEAVY: usize = 64;
        let ints = ints
            .into_iter()
            .map(|int| {
                if int.weight(HEAVY) >= HEAVY {
                    self.drop_int(&int)
                } else {
                    int
                }
            })
            .collect();
        if let Some(Some(id)) = self.node().outputs.get(index) {
            self.a.facts[id.0 as usize].ints = Some(ints);
        }
    }

    /// The tensors of an input that is a sequence.
    pub(super) fn sequence(&self, index: usize) -> Option<Vec<Vec<Dim>>> {
        self.a.facts(self.input(index)?).sequence.clone()
    }

    /// Makes the first output a sequence of tensors with these dimensions.
    pub(super) fn set_sequence(&mut self, elements: Vec<Vec<Dim>>) {
        if let Some(Some(id)) = self.node().outputs.first() {
            self.a.facts[id.0 as usize].sequence = Some(elements);
        }
    }

    /// Stops following an integer.
    pub fn drop_int(&mut self, int: &Int) -> Int {
        let why = "a number computed from its size enters other arithmetic";
        self.a.space.freeze_int(int, Some(self.id), why);
        self.a.unknowns += 1;
        Int::Unknown(self.a.unknowns)
    }

    /// Freezes a dimension at this node.
    pub fn freeze(&mut self, dim: &Dim, why: &str) {
        self.a.space.freeze(dim, Some(self.id), why);
    }

    /// Freezes all dimensions of an input.
    pub fn freeze_input(&mut self, index: usize, why: &str) {
        for dim in self.dims(index).unwrap_or_default() {
            self.freeze(&dim, why);
        }
    }

    /// Makes two dimensions the same, unless one is the size 1 (broadcast).
    /// Returns what the output has.
    pub fn join(&mut self, a: &Dim, b: &Dim) -> Dim {
        let (ra, rb) = (self.a.space.resolve(a), self.a.space.resolve(b));
        match (ra.is_one(), rb.is_one()) {
            (true, _) => return rb,
            (_, true) => return ra,
            _ => {}
        }
        let symbol = |t: &Term| matches!(t, Term::Symbol(_));
        let symbolic = |d: &Dim| d.0.iter().all(symbol);
        let mixed = |d: &Dim| d.0.iter().any(symbol);
        match (symbolic(&ra), symbolic(&rb)) {
            // A size known at run time may be 1 there.
            (true, false) => {
                self.freeze(&rb, "it meets an axis whose size is known at run time only");
                if mixed(&rb) { ra } else { rb }
            }
            (false, true) => {
                self.freeze(&ra, "it meets an axis whose size is known at run time only");
                if mixed(&ra) { rb } else { ra }
            }
            (true, true) => self.same_symbol(ra, rb),
            (false, false) => {
                self.a.space.unify(&ra, &rb, self.id);
                ra
            }
        }
    }

    /// Of two symbols that must agree, the one that is known better.
    fn same_symbol(&self, a: Dim, b: Dim) -> Dim {
        let named = |d: &Dim| match d.0[..] {
            [Term::Symbol(s)] => {
                self.a.space.definition(s).is_none() && !self.a.space.symbol_name(s).starts_with('?')
            }
            _ => false,
        };
        let simpler = b.0.len() < a.0.len();
        if !named(&a) && (named(&b) || simpler) {
            b
        } else {
            a
        }
    }

    /// Makes two dimensions the same.
    pub fn unify(&mut self, a: &Dim, b: &Dim) {
        self.join(a, b);
    }

    /// Joins axis `axis` of input `index` with `dim`; a table is only linked.
    pub fn join_input(&mut self, index: usize, axis: usize, dim: &Dim) -> Dim {
        let Some(mut dims) = self.dims(index) else {
            return dim.clone();
        };
        if axis >= dims.len() {
            return dim.clone();
        }
        let own = dims.swap_remove(axis);
        self.join_operand(index, axis, &own, dim)
    }

    fn join_operand(&mut self, index: usize, axis: usize, own: &Dim, dim: &Dim) -> Dim {
        let (table, other) = (self.a.space.resolve(own), self.a.space.resolve(dim));
        let value = |op: &Self, dim: &Dim| op.a.space.value(&Int::Dim(dim.clone()));
        let linked = self.is_shared_table(index)
            && table != other
            && !table.is_one()
            && !other.is_one()
            && !self.a.space.leaves(&table).is_empty()
            && !self.a.space.leaves(&other).is_empty()
            && value(self, &table) == value(self, &other);
        if !linked {
            return self.join(dim, own);
        }
        self.a.links.push(Link {
            node: self.id,
            input: index,
            axis,
            table,
            other: other.clone(),
        });
        other
    }

    /// Whether an input is a table in the sense of [`Link`]: computed without a
    /// projection, with more than one axis (a bias vector belongs to its layer).
    fn is_shared_table(&mut self, index: usize) -> bool {
        if !self.is_table(index) {
            return false;
        }
        let Some(dims) = self.dims(index) else {
            return false;
        };
        !self.is_constant(index) || dims.iter().filter(|d| !self.a.space.resolve(d).is_one()).count() > 1
    }

    /// Elementwise combination with broadcasting over `inputs`: the output's
    /// dimensions. `None` when a rank is unknown.
    pub fn broadcast(&mut self, inputs: &[usize]) -> Option<Vec<Dim>> {
        let mut operands = Vec::with_capacity(inputs.len());
        for &index in inputs {
            let dims = self.dims(index)?;
            operands.push((self.is_shared_table(index), index, dims));
        }
        // Activations first: tables are linked to what they are added to.
        let all_tables = operands.iter().all(|(table, ..)| *table);
        operands.sort_by_key(|(table, index, _)| (*table, *index));
        let rank = operands.iter().map(|(_, _, d)| d.len()).max().unwrap_or(0);
        let mut out = vec![Dim::one(); rank];
        for (table, index, dims) in operands {
            let shift = rank - dims.len();
            for (axis, own) in dims.iter().enumerate() {
                let so_far = out[axis + shift].clone();
                out[axis + shift] = if table && !all_tables {
                    self.join_operand(index, axis, own, &so_far)
                } else {
                    self.join(&so_far, own)
                };
            }
        }
        Some(out)
    }

    /// Says that the node needs `needed` as entry `entry` of input `input`.
    pub fn needs(&mut self, input: usize, entry: usize, actual: Int, needed: Int) {
        self.a.followed.insert((self.id, input));
        self.a.int_uses.push(IntUse {
            node: self.id,
            input,
            entry,
            actual,
            needed,
        });
    }

    /// Says that an attribute holds a size.
    pub fn needs_attr(&mut self, name: &'static str, entry: Option<usize>, needed: Int) {
        self.a.attr_uses.push(AttrUse {
            node: self.id,
            name,
            entry,
            needed,
        });
    }

    /// Records a contraction of two inputs.
    pub fn contract(&mut self, contraction: Contraction) {
        self.a.contractions.push(contraction);
    }

    /// An axis index that may be negative.
    pub fn axis(&self, axis: i64, rank: usize) -> Option<usize> {
        let rank = i64::try_from(rank).ok()?;
        let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
        (0..rank).contains(&axis).then_some(axis as usize)
    }

    /// What is not followed: everything it touches keeps its size; the outputs
    /// are as the file declares them.
    pub fn give_up(&mut self, why: &str) {
        self.give_up_on(why, None);
    }

    /// As [`Op::give_up`], where the node reads only values of these names.
    pub(super) fn give_up_on(&mut self, why: &str, names: Option<&[&str]>) {
        self.a.lost.insert(self.id);
        for index in 0..self.node().inputs.len() + self.node().captures.len() {
            let Some(id) = self.graph.input(self.id, index) else {
                continue;
            };
            self.a.followed.insert((self.id, index));
            if names.is_some_and(|names| !names.contains(&self.graph.value(id).name.as_str())) {
                continue;
            }
            let facts = self.a.facts(id).clone();
            for dim in facts.dims.iter().flatten() {
                self.freeze(dim, why);
            }
            for dim in facts.sequence.iter().flatten().flatten() {
                self.freeze(dim, why);
            }
            for int in facts.ints.iter().flatten() {
                self.a.space.freeze_int(int, Some(self.id), why);
            }
        }
        for output in self.node().outputs.iter().flatten().copied() {
            let dims = self.a.declared_dims(self.graph, output, why);
            self.a.facts[output.0 as usize].dims = dims;
        }
    }
}
