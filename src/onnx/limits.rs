//! How much a file may grow while it is read.

use crate::{Error, Result};

/// What expansion may still cost.
pub(super) struct Growth {
    pub(super) nodes: u64,
    pub(super) bytes: u64,
}

impl Growth {
    /// Pays for `nodes` nodes and for messages of `bytes` bytes in all.
    pub(super) fn spend(&mut self, nodes: u64, bytes: usize) -> Result<()> {
        let left = |have: u64, cost: u64| {
            have.checked_sub(cost).ok_or_else(|| {
                Error::input("the local functions expand to more nodes or bytes than any real model has")
            })
        };
        self.nodes = left(self.nodes, nodes)?;
        self.bytes = left(self.bytes, bytes as u64)?;
        Ok(())
    }
}
