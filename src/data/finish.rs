//! The final form of samples: padding cut off, inputs that are missing filled in, ids checked.

use std::collections::{BTreeMap, BTreeSet};

use super::draw::{Purpose, Random};
use super::fill::Filler;
use super::layout::InputRole;
use super::reader::{DataReader, ReadParts};
use super::samples::Sample;
use super::trim::trim;
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Feeds, Tensor};

/// Brings samples to their final form and counts what was done to them.
pub(super) struct FinishReading<'a, 'p, 't, 'f> {
    reader: &'a DataReader<'a>,
    filler: Filler<'a>,
    random: Random,
    parts: &'p mut ReadParts<'t, 'f>,
    made: BTreeSet<String>,
    removed: usize,
    empty: usize,
    masked: usize,
}

impl<'a, 'p, 't, 'f> FinishReading<'a, 'p, 't, 'f> {
    pub(super) fn new(
        reader: &'a DataReader<'a>,
        filler: Filler<'a>,
        parts: &'p mut ReadParts<'t, 'f>,
    ) -> Self {
        Self {
            reader,
            filler,
            random: Random::new(reader.options.seed, Purpose::Values),
            parts,
            made: BTreeSet::new(),
            removed: 0,
            empty: 0,
            masked: 0,
        }
    }

    /// Takes one more sample: its inputs, and which tokens are real where that
    /// is known already.
    pub(super) fn add(&mut self, mut feeds: Feeds, token_mask: Option<Vec<bool>>) -> Result<()> {
        let number = self.parts.count + self.empty;
        let place = || format!("sample {number}");
        if feeds.is_empty() {
            self.empty += 1;
            return Ok(());
        }
        let layout = &self.reader.layout;
        let trimmed = trim(layout, &mut feeds).context(place)?;
        if trimmed.empty {
            self.empty += 1;
            return Ok(());
        }
        self.removed += trimmed.removed;
        self.made.extend(
            self.filler
                .complete(&mut feeds, &mut self.random)
                .context(place)?,
        );
        self.check_ids(&feeds).context(place)?;
        let token_mask = trimmed.token_mask.or(token_mask);
        self.masked += usize::from(token_mask.is_some());
        self.parts.push(Sample { feeds, token_mask })
    }

    /// Ids outside the table would fail in the engine with a poorer message.
    fn check_ids(&self, feeds: &Feeds) -> Result<()> {
        for input in &self.reader.layout.inputs {
            let (InputRole::TokenIds | InputRole::TokenTypes) = input.role else {
                continue;
            };
            let name = &input.spec.name;
            let Some(rows) = self.reader.tables.rows(name) else {
                continue;
            };
            let ids = feeds.get(name).and_then(Tensor::to_i64).unwrap_or_default();
            if let Some(id) = ids
                .iter()
                .find(|id| !usize::try_from(**id).is_ok_and(|i| i < rows))
            {
                return Err(Error::input(format!(
                    "'{name}' holds id {id}, but the model's table has {rows} rows: does the \
                     tokenizer (or the data) belong to this model?"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn into_notes(self, mut notes: Vec<String>) -> Vec<String> {
        let mut filled: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in &self.made {
            let input = self.reader.layout.inputs.iter().find(|i| i.spec.name == *name);
            let with = match input.map(|i| i.role) {
                Some(InputRole::Mask) => "ones",
                Some(InputRole::Positions) => "0, 1, 2, ...",
                Some(InputRole::Past) => "nothing (no earlier tokens)",
                _ => "zeros",
            };
            filled.entry(with).or_default().push(name);
        }
        for (with, names) in filled {
            notes.push(match names[..] {
                [name] => format!("graph input '{name}' is not in the data and was filled with {with}"),
                [name, ref more @ ..] => format!(
                    "graph input '{name}' and {} more like it are not in the data and were filled with {with}",
                    more.len()
                ),
                [] => continue,
            });
        }
        if self.removed > 0 {
            notes.push(format!("{} positions of padding were cut off", self.removed));
        }
        if self.masked > 0 {
            notes.push(format!(
                "{} samples keep padding (the graph's length is fixed, or it lies inside); it is \
                 left out of the statistics",
                self.masked
            ));
        }
        if self.empty > 0 {
            notes.push(format!(
                "{} samples without a real token were left out",
                self.empty
            ));
        }
        notes
    }
}
