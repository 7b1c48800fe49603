//! Disjoint sets of indices.

/// The root of a set is its least member.
pub(crate) struct Disjoint {
    parent: Vec<usize>,
}

impl Disjoint {
    /// Each index alone.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            parent: (0..count).collect(),
        }
    }

    pub(crate) fn root(&self, mut at: usize) -> usize {
        while let Some(&up) = self.parent.get(at).filter(|up| **up != at) {
            at = up;
        }
        at
    }

    pub(crate) fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(slot) = self.parent.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
    }
}
