//! Samples to calibrate on: from the user's files, or made up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::draw::subset;
use super::fill::Template;
use super::finish::FinishReading;
use super::layout::{InputRole, Layout};
use super::padding::Padding;
use super::reader::{DataReader, ReadParts, Take, checked_shapes};
use super::samples::{DataOptions, DataOrigin, Samples};
use super::seen::SeenSizes;
use super::source::DataSource;
use super::spec::input_specs;
use super::tables::Tables;
use super::testset;
use super::text;
use crate::error::{Error, Result};
use crate::onnx::proto;
use crate::tensor::Feeds;

/// Reads the samples that `options` ask for, as `model` wants them.
///
/// # Errors
/// Files that cannot be read or that do not fit the model, no samples at all.
pub fn read_samples(model: &proto::ModelProto, options: &DataOptions) -> Result<Samples> {
    if let Some(given) = &options.given
        && !given.samples.is_empty()
    {
        return Ok(Samples::clone(given));
    }
    let mut samples = Vec::new();
    let read = read_parts(model, options, usize::MAX, &mut |part| {
        samples.extend(part);
        Ok(())
    })?;
    Ok(Samples { samples, ..read })
}

/// The same samples in the same order, so many at a time: `take` gets them, and no
/// more are in memory at once. Their origin and what there is to say about them
/// comes back.
///
/// # Errors
/// As [`read_samples`], and those of `take`.
pub fn read_parts(
    model: &proto::ModelProto,
    options: &DataOptions,
    most: usize,
    take: &mut Take<'_>,
) -> Result<Samples> {
    let most = most.max(1);
    if let Some(given) = &options.given {
        if given.samples.is_empty() {
            return Err(Error::input("there are no samples among those that were given"));
        }
        for part in given.samples.chunks(most) {
            take(part.to_vec())?;
        }
        return Ok(Samples {
            samples: Vec::new(),
            origin: given.origin.clone(),
            notes: given.notes.clone(),
            padding: given.padding,
        });
    }
    let specs = input_specs(model)?;
    let layout = Layout::new(&specs);
    let tables = Tables::find(model);
    let shapes = checked_shapes(&layout, &options.shapes)?;
    if options.samples == Some(0) {
        return Err(Error::input("at least one calibration sample is needed"));
    }
    let reader = DataReader {
        layout,
        tables,
        shapes,
        options,
        seen: SeenSizes::default(),
    };
    let mut parts = ReadParts {
        waiting: Vec::new(),
        most,
        count: 0,
        take,
    };
    let (origin, (notes, padding)) = if options.data.is_empty() {
        let notes = reader.synthetic(&mut parts)?;
        (DataOrigin::Synthetic { seed: options.seed }, (notes, Padding::No))
    } else {
        let (texts, sources) = find_data(&options.data)?;
        let read = match (texts.as_slice(), sources.as_slice()) {
            ([], _) => (reader.read_arrays(sources, &mut parts)?, Padding::No),
            (_, []) => reader.read_texts(&texts, &mut parts)?,
            ([text, ..], _) => {
                return Err(Error::input(format!(
                    "texts ({}) and arrays cannot be mixed in --data",
                    text.display()
                )));
            }
        };
        let paths = options.data.clone();
        (DataOrigin::Files { paths }, read)
    };
    if parts.end()? == 0 {
        return Err(Error::input(format!(
            "there are no samples in {}",
            options
                .data
                .iter()
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    let mut said = BTreeSet::new();
    let notes = notes.into_iter().filter(|note| said.insert(note.clone()));
    Ok(Samples {
        samples: Vec::new(),
        origin,
        notes: notes.collect(),
        padding,
    })
}

/// Samples of inputs that something else made: those that `model` does not have are left
/// out, those that follow from the others (masks, positions, empty caches) are made.
///
/// # Errors
/// Inputs that only the caller can give, ids that the model does not have.
pub fn completed(
    model: &proto::ModelProto,
    feeds: impl IntoIterator<Item = Feeds>,
    options: &DataOptions,
) -> Result<Samples> {
    let layout = Layout::new(&input_specs(model)?);
    let known: BTreeSet<String> = layout.inputs.iter().map(|i| i.spec.name.clone()).collect();
    let reader = DataReader {
        layout,
        tables: Tables::find(model),
        shapes: BTreeMap::new(),
        options,
        seen: SeenSizes::default(),
    };
    let mut samples = Vec::new();
    let mut parts = ReadParts {
        waiting: Vec::new(),
        most: usize::MAX,
        count: 0,
        take: &mut |part| {
            samples.extend(part);
            Ok(())
        },
    };
    let template = Template::default();
    let mut finish = FinishReading::new(&reader, reader.filler(&template), &mut parts);
    for mut feeds in feeds {
        feeds.retain(|name, _| known.contains(name));
        finish.add(feeds, None)?;
    }
    drop(finish);
    parts.end()?;
    Ok(Samples {
        samples,
        origin: DataOrigin::Given,
        notes: Vec::new(),
        padding: Padding::No,
    })
}

/// The inputs of a model that are ids of tokens.
pub fn token_inputs(model: &proto::ModelProto) -> Vec<String> {
    let specs = input_specs(model).unwrap_or_default();
    let inputs = Layout::new(&specs).inputs.into_iter();
    let tokens = inputs.filter(|input| input.role == InputRole::TokenIds);
    tokens.map(|input| input.spec.name).collect()
}

/// Sorts what was given into files of text and sources of arrays.
fn find_data(paths: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<DataSource>)> {
    let mut texts = Vec::new();
    let mut sources = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::input(format!("--data: there is no file {}", path.display()))
            }
            _ => Error::io("cannot read", path, e),
        })?;
        let is_npz = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"));
        if metadata.is_dir() {
            let mut archives = Vec::new();
            for entry in std::fs::read_dir(path).map_err(|e| Error::io("cannot list", path, e))? {
                let entry = entry.map_err(|e| Error::io("cannot list", path, e))?.path();
                if is_npz(&entry) {
                    archives.push(entry);
                }
            }
            archives.sort();
            let sets = testset::folders(path)?;
            if archives.is_empty() && sets.is_empty() {
                return Err(Error::input(format!(
                    "{} holds neither .npz files nor input_0.pb nor test_data_set_* folders",
                    path.display()
                )));
            }
            sources.extend(archives.into_iter().map(DataSource::Npz));
            sources.extend(sets.into_iter().map(DataSource::TestSet));
        } else if is_npz(path) {
            sources.push(DataSource::Npz(path.clone()));
        } else if text::is_text(path) {
            texts.push(path.clone());
        } else {
            return Err(Error::input(format!(
                "{}: --data takes .npz files, folders of them, folders with ONNX test data, and \
                 .txt, .jsonl, .tsv and .csv files of text",
                path.display()
            )));
        }
    }
    Ok((texts, sources))
}

impl DataReader<'_> {
    fn read_arrays(&self, sources: Vec<DataSource>, parts: &mut ReadParts) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let mut plans = Vec::new();
        let mut total = 0u64;
        for source in sources {
            let plan = source.plan(&self.layout)?;
            let start = total;
            total = total.saturating_add(plan.samples as u64);
            notes.extend(plan.told.iter().cloned());
            if !plan.unused.is_empty() {
                notes.push(format!(
                    "arrays that are no input were ignored: {}",
                    plan.unused.join(", ")
                ));
            }
            plans.push((start, plan));
        }
        let wanted = subset(total, self.options.count() as u64, self.options.seed);
        if (wanted.len() as u64) < total {
            notes.push(format!(
                "{} of {total} samples were taken at random (seed {})",
                wanted.len(),
                self.options.seed
            ));
        }
        let template = Template::default();
        let most = parts.most;
        let mut finish = FinishReading::new(self, self.filler(&template), parts);
        for (start, plan) in &plans {
            let own: Vec<usize> = wanted
                .iter()
                .filter_map(|w| usize::try_from(w.checked_sub(*start)?).ok())
                .filter(|&row| row < plan.samples)
                .collect();
            for rows in own.chunks(most) {
                for feeds in plan.load(&self.layout, rows)? {
                    finish.add(feeds, None)?;
                }
            }
        }
        Ok(finish.into_notes(notes))
    }
}
