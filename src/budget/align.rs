//! To what multiples numbers of neurons are kept.

/// Matrix products run in tiles: a number of neurons that is no multiple of a
/// tile costs as much as the next one that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Align {
    most: usize,
    adaptive: bool,
}

impl Align {
    /// A multiple of `n`, or all units.
    pub const fn exactly(n: usize) -> Self {
        Self {
            most: n,
            adaptive: false,
        }
    }

    /// A multiple of `n` where a group has many units, of a smaller power of two
    /// where it has few: so that there are always enough levels to choose from.
    pub const fn up_to(n: usize) -> Self {
        Self {
            most: n,
            adaptive: true,
        }
    }

    /// The multiple for a group.
    pub fn of(self, units: usize) -> usize {
        /// Least number of levels.
        const LEVELS: usize = 16;
        let most = self.most.max(1);
        if !self.adaptive || units >= LEVELS * most {
            return most;
        }
        let small = (units / LEVELS).max(1);
        1 << small.ilog2()
    }

    /// Whether all numbers are alike.
    pub fn is_none(self) -> bool {
        self.most <= 1
    }
}

impl From<usize> for Align {
    fn from(n: usize) -> Self {
        Self::exactly(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_units_keep_enough_levels() {
        assert_eq!(Align::up_to(8).of(1536), 8);
        assert_eq!(Align::up_to(8).of(100), 4);
        assert_eq!(Align::up_to(8).of(20), 1);
        assert_eq!(Align::up_to(64).of(1000), 32);
        assert_eq!(Align::exactly(8).of(20), 8);
        assert!(Align::exactly(0).is_none());
    }
}
