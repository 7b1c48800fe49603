//! What no run can do is told before anything is read.

use super::declared::DECLARED;
use super::options::Options;
use crate::budget::Demand;
use crate::rank::Method;
use crate::sites::UnitKind;
use crate::{Error, Result};

impl Options {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        for demand in &self.demands {
            if let Demand::Flops(fraction) = demand
                && !(*fraction > 0.0 && *fraction <= 1.0)
            {
                return Err(Error::input(format!(
                    "--flops is {fraction}: it is the fraction to keep, above 0 and at most 1"
                )));
            }
        }
        let targets = &self.selection.targets;
        if targets.is_empty() {
            return Err(Error::input("--targets is empty: give heads, neurons or both"));
        }
        if targets.contains(&UnitKind::Heads) && targets.contains(&UnitKind::Queries) {
            return Err(Error::input(
                "--targets: heads (whole key/value groups) and queries (query heads within each group) cannot both be pruned in one run; run twice",
            ));
        }
        if self.rank.method == Method::Kcm && !targets.contains(&UnitKind::Neurons) {
            return Err(Error::input(
                "kcm ranks feed-forward neurons only, as published; for heads use --method obs",
            ));
        }
        if self.eval.is_some() && self.max_drop.is_none() {
            return Err(Error::input(
                "--eval needs --max-drop: the largest number that the command may print",
            ));
        }
        if self.data.batch == 0 || self.data.seq == Some(0) {
            return Err(Error::input("--batch and --seq must be at least 1"));
        }
        self.check_conflicts()
    }

    /// No two options are given that exclude each other.
    fn check_conflicts(&self) -> Result<()> {
        let given: Vec<_> = DECLARED.iter().filter(|option| option.is_given(self)).collect();
        for option in &given {
            if let Some(other) = given.iter().find(|other| option.excludes(other)) {
                return Err(Error::input(format!(
                    "--{} and --{} exclude each other",
                    option.name, other.name
                )));
            }
        }
        Ok(())
    }
}
