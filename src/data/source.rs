//! Samples from files of arrays: `.npz` archives and ONNX test data sets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::layout::{InputRole, Layout, LayoutInput};
use super::spec::InputDim;
use super::testset;
use crate::error::{Error, Result, ResultExt};
use crate::io::npz;
use crate::tensor::{Elem, Feeds, Tensor, ops};

/// A file or folder with arrays for the inputs of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DataSource {
    /// An archive.
    Npz(PathBuf),
    /// One ONNX test data set.
    TestSet(PathBuf),
}

/// How the samples lie in an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SourceRows {
    /// Along this axis of the input.
    Axis(usize),
    /// Along an axis in front of those of the input.
    Extra,
    /// The array is the same for all samples.
    Shared,
    /// It is one sample, without the axis of samples that the input has here.
    Bare(usize),
}

/// Which arrays of a source feed which inputs.
pub(crate) struct ReadPlan {
    source: DataSource,
    /// Input, array, rows.
    arrays: Vec<(LayoutInput, String, SourceRows)>,
    /// The number of samples.
    pub(crate) samples: usize,
    /// Arrays that feed no input.
    pub(crate) unused: Vec<String>,
    /// What looks odd about them.
    pub(crate) told: Vec<String>,
}

impl DataSource {
    fn path(&self) -> &Path {
        match self {
            DataSource::Npz(path) | DataSource::TestSet(path) => path,
        }
    }

    /// Finds out what the source holds for `layout`, reading as little as possible.
    pub(crate) fn plan(self, layout: &Layout) -> Result<ReadPlan> {
        let place = self.path().display().to_string();
        self.plan_inner(layout).context(|| place)
    }

    fn plan_inner(self, layout: &Layout) -> Result<ReadPlan> {
        let mut bytes = BTreeSet::new();
        let mut of_bytes = |name: &str, elem: Elem| {
            if elem == Elem::U8 {
                bytes.insert(name.to_owned());
            }
        };
        let shapes: Vec<(String, Vec<usize>)> = match &self {
            DataSource::Npz(path) => npz::Archive::open(path)?
                .arrays()
                .map(|(name, header)| {
                    of_bytes(name, header.elem);
                    (name.to_owned(), header.shape.clone())
                })
                .collect(),
            DataSource::TestSet(path) => test_set(path, layout)?
                .into_iter()
                .map(|(name, tensor)| (name, tensor.shape))
                .collect(),
        };
        let mut told = Vec::new();
        let mut found = Vec::new();
        let mut counts: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        let lone = lone_pair(layout, &shapes);
        for input in &layout.inputs {
            let name = &input.spec.name;
            let array = shapes.iter().find(|(array, _)| array == name).or(lone);
            let Some((array, shape)) = array else {
                continue;
            };
            let (rows, count) = arrange(input, shape)?;
            if array != name {
                told.push(format!(
                    "the only array '{array}' was taken for the only input '{name}'"
                ));
            }
            if bytes.contains(array) && input.spec.elem.is_float() && input.role == InputRole::Image {
                told.push(format!(
                    "'{array}' holds bytes from 0 to 255 and '{name}' takes real numbers: they are fed as they are, \
                     which is wrong where the model was trained on images that were scaled before"
                ));
            }
            if let Some(count) = count {
                counts.entry(count).or_default().push(name);
            }
            found.push((input.clone(), array.clone(), rows));
        }
        if found.is_empty() {
            let held: Vec<String> = shapes.iter().map(|(n, s)| format!("{n}{s:?}")).collect();
            return Err(Error::input(format!(
                "no array is named like an input: it holds {}; the graph wants {}",
                held.join(", "),
                layout.describe()
            )));
        }
        if counts.len() > 1 {
            let said: Vec<String> = counts
                .iter()
                .map(|(n, names)| format!("{n} in {}", names.join(", ")))
                .collect();
            return Err(Error::input(format!(
                "the number of samples differs between inputs: {}",
                said.join("; ")
            )));
        }
        let used: BTreeSet<&str> = found.iter().map(|(_, array, _)| array.as_str()).collect();
        let unused = shapes
            .iter()
            .map(|(n, _)| n.clone())
            .filter(|n| !used.contains(n.as_str()))
            .collect();
        let samples = counts.keys().next().copied().unwrap_or(1);
        Ok(ReadPlan {
            arrays: found,
            samples,
            unused,
            told,
            source: self,
        })
    }
}

/// One array and one input belong together whatever they are called.
fn lone_pair<'a>(layout: &Layout, shapes: &'a [(String, Vec<usize>)]) -> Option<&'a (String, Vec<usize>)> {
    match shapes {
        [only] if layout.inputs.len() == 1 => Some(only),
        _ => None,
    }
}

/// Test data are matched by name, or where they carry no known name by order.
fn test_set(path: &Path, layout: &Layout) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = testset::read(path)?;
    if tensors.len() > layout.inputs.len() {
        return Err(Error::input(format!(
            "it has {} inputs, the graph {}: {}",
            tensors.len(),
            layout.inputs.len(),
            layout.describe()
        )));
    }
    let known = |name: &str| layout.inputs.iter().any(|i| i.spec.name == name);
    if !tensors.iter().all(|(name, _)| known(name)) {
        for ((name, _), input) in tensors.iter_mut().zip(&layout.inputs) {
            name.clone_from(&input.spec.name);
        }
    }
    Ok(tensors)
}

/// How samples lie in an array of `shape` for `input`, and how many there are.
fn arrange(input: &LayoutInput, shape: &[usize]) -> Result<(SourceRows, Option<usize>)> {
    let wrong = || {
        Error::input(format!(
            "the array for graph input '{}' has shape {shape:?}; wanted is {}, with samples along \
             {}",
            input.spec.name,
            input.spec,
            match input.batch_axis() {
                Some(axis) => format!("axis {axis}"),
                None => "an axis in front".to_owned(),
            }
        ))
    };
    let fits = |own: &[usize]| {
        (input.spec.dims.iter().zip(own).enumerate()).all(|(axis, (dim, &size))| match dim {
            InputDim::Fixed(fixed) => input.batch_axis() == Some(axis) || *fixed == size,
            _ => true,
        })
    };
    let rank = input.spec.dims.len();
    if shape.len() == rank {
        if !fits(shape) {
            return Err(wrong());
        }
        return Ok(match input.batch_axis() {
            Some(axis) => (SourceRows::Axis(axis), shape.get(axis).copied()),
            None => (SourceRows::Shared, None),
        });
    }
    if let Some(axis) = input.batch_axis()
        && shape.len() + 1 == rank
    {
        let mut own = shape.to_vec();
        own.insert(axis, 1);
        return match fits(&own) {
            true => Ok((SourceRows::Bare(axis), Some(1))),
            false => Err(wrong()),
        };
    }
    match shape.split_first() {
        Some((&count, own)) if own.len() == rank && fits(own) => {
            let one_each = input.batch_axis().is_none_or(|axis| own.get(axis) == Some(&1));
            one_each
                .then_some((SourceRows::Extra, Some(count)))
                .ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// A NaN in the data would be one in every activation. Infinities are let pass: masks
/// that are added are made of them.
fn without_nan(tensor: Tensor) -> Result<Tensor> {
    let nan = match tensor.elem().is_float() {
        true => tensor.to_f32().iter().position(|v| v.is_nan()),
        false => None,
    };
    match nan {
        Some(at) => Err(Error::input(format!(
            "it holds NaN, first in value {at} of what is read: leave such samples out"
        ))),
        None => Ok(tensor),
    }
}

/// Reads one array of a source.
type Load<'a> = Box<dyn FnMut(&str, SourceRows) -> Result<Tensor> + 'a>;

impl ReadPlan {
    /// The samples `wanted` (increasing), as the graph's element types.
    pub(crate) fn load(&self, layout: &Layout, wanted: &[usize]) -> Result<Vec<Feeds>> {
        self.load_inner(layout, wanted)
            .context(|| self.source.path().display().to_string())
    }

    fn load_inner(&self, layout: &Layout, wanted: &[usize]) -> Result<Vec<Feeds>> {
        let mut samples = vec![Feeds::new(); wanted.len()];
        let mut load: Load = match &self.source {
            DataSource::Npz(path) => {
                let mut archive = npz::Archive::open(path)?;
                Box::new(move |name, rows| match rows {
                    SourceRows::Axis(0) | SourceRows::Extra => archive.read_rows(name, wanted),
                    _ => archive.read(name),
                })
            }
            DataSource::TestSet(path) => {
                let set: BTreeMap<String, Tensor> = test_set(path, layout)?.into_iter().collect();
                Box::new(move |name, rows| {
                    let tensor = set
                        .get(name)
                        .ok_or_else(|| Error::input(format!("no tensor for '{name}'")))?;
                    Ok(match rows {
                        SourceRows::Axis(0) | SourceRows::Extra => {
                            let taken: Vec<Tensor> =
                                wanted.iter().map(|&r| ops::slice(tensor, 0, r..r + 1)).collect();
                            ops::concat(&taken.iter().collect::<Vec<_>>(), 0)?
                        }
                        _ => tensor.clone(),
                    })
                })
            }
        };
        for (input, array, rows) in &self.arrays {
            let name = &input.spec.name;
            let tensor = load(array, *rows)
                .and_then(|tensor| ops::cast(tensor, input.spec.elem))
                .and_then(without_nan)
                .context(|| format!("array '{array}' for graph input '{name}'"))?;
            for (i, (sample, &row)) in samples.iter_mut().zip(wanted).enumerate() {
                let own = match rows {
                    SourceRows::Axis(0) => ops::slice(&tensor, 0, i..i + 1),
                    SourceRows::Axis(axis) => ops::slice(&tensor, *axis, row..row + 1),
                    SourceRows::Extra => {
                        let mut own = ops::slice(&tensor, 0, i..i + 1);
                        own.shape.remove(0);
                        own
                    }
                    SourceRows::Shared => tensor.clone(),
                    SourceRows::Bare(axis) => {
                        let mut own = tensor.clone();
                        own.shape.insert(*axis, 1);
                        own
                    }
                };
                sample.insert(name.clone(), own);
            }
        }
        Ok(samples)
    }
}
