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

/// The multiples that a user asks for: of neurons, and of the channels of a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Multiples {
    /// Of the neurons of a group.
    pub neurons: Option<usize>,
    /// Of the channels of a head.
    pub heads: Option<usize>,
}

impl std::fmt::Display for Multiples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.heads, self.neurons) {
            (Some(heads), Some(neurons)) if heads == neurons => write!(f, "{heads}"),
            (Some(heads), Some(neurons)) => write!(f, "heads={heads},neurons={neurons}"),
            (Some(heads), None) => write!(f, "heads={heads}"),
            (None, Some(neurons)) => write!(f, "neurons={neurons}"),
            (None, None) => Ok(()),
        }
    }
}

impl std::str::FromStr for Multiples {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let n = text.trim().parse().map_err(|e| format!("'{text}': {e}"))?;
            match n {
                0 => Err(format!("'{text}': a multiple is at least 1")),
                n => Ok(n),
            }
        };
        if !text.contains('=') {
            let n = Some(number(text)?);
            return Ok(Multiples { neurons: n, heads: n });
        }
        let mut multiples = Multiples::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("neurons", n)) => multiples.neurons = Some(number(n)?),
                Some(("heads", n)) => multiples.heads = Some(number(n)?),
                _ => return Err(format!("'{part}': expected a number, or heads=N,neurons=N")),
            }
        }
        Ok(multiples)
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
    fn multiples_are_read_and_written_back() {
        for text in ["8", "heads=8,neurons=64", "neurons=32", "heads=16"] {
            let read: Multiples = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        for wrong in ["0", "heads", "heads=0", "head=8", "8,9", ""] {
            assert!(wrong.parse::<Multiples>().is_err(), "{wrong}");
        }
    }

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
