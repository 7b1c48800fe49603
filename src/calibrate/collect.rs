//! Runs a model over samples and adds up the statistics of its sites.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::batch::{Batch, batches};
use super::samples::Samples;
use super::spec::input_specs;
use super::statistics::{BLOCK, SiteStatistics, Statistics};
use crate::error::{Error, Result, ResultExt};
use crate::onnx::proto;
use crate::progress::Progress;
use crate::runtime::{Engine, SessionOptions};
use crate::tensor::Tensor;

/// Where the input of a site can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteProbe {
    /// The site's name.
    pub site: String,
    /// The value that is the sink's input.
    pub value: String,
    /// Its axis that the sink contracts.
    pub axis: usize,
    /// The size of that axis.
    pub width: usize,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Timings {
    /// Seconds in the engine, preparation included.
    pub engine_seconds: f64,
    /// Seconds for the sums.
    pub statistics_seconds: f64,
    /// Runs of the model.
    pub runs: usize,
}

/// What is summed for one value; sites with the same input share it.
struct Collector<'a> {
    site: &'a str,
    value: &'a str,
    axis: usize,
    statistics: SiteStatistics,
    /// Rows that wait for a full block.
    rows: Vec<f32>,
}

/// Runs `samples` through `model`, in batches of up to `max_rows` rows as
/// [`batches`] makes them, and sums the statistics of `probes`.
///
/// Memory is that of the sums, one batch and one block of rows per site: it does
/// not grow with the number of samples. Padding and rows that fill a batch are
/// left out. `progress` counts samples.
pub fn collect(
    engine: &dyn Engine,
    model: &proto::ModelProto,
    probes: &[SiteProbe],
    samples: &Samples,
    max_rows: usize,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<(Statistics, Timings)> {
    let specs = input_specs(model)?;
    let mut timings = Timings::default();

    // Values in the order they are fetched, and the collectors on each.
    let mut values: Vec<String> = Vec::new();
    let mut collectors: Vec<Collector<'_>> = Vec::new();
    let mut of_probe = Vec::with_capacity(probes.len());
    for probe in probes {
        if !values.contains(&probe.value) {
            values.push(probe.value.clone());
        }
        let known = collectors.iter().position(|c| {
            c.value == probe.value && c.axis == probe.axis && c.statistics.width() == probe.width
        });
        of_probe.push(known.unwrap_or(collectors.len()));
        if known.is_none() {
            collectors.push(Collector {
                site: &probe.site,
                value: &probe.value,
                axis: probe.axis,
                statistics: SiteStatistics::new(probe.width),
                rows: Vec::new(),
            });
        }
    }

    let started = Instant::now();
    let options = SessionOptions {
        optimise: true,
        outputs: Some(values),
    };
    let mut session = engine.session(model, &options)?;
    timings.engine_seconds += started.elapsed().as_secs_f64();

    progress.start("calibrating", samples.samples.len() as u64);
    let _finish = Finish(progress);
    let mut tokens = 0u64;
    for batch in batches(samples, &specs, max_rows)? {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        let started = Instant::now();
        let fetched = session
            .run(&batch.feeds)
            .context(|| format!("running {}", describe(&batch)))?;
        timings.engine_seconds += started.elapsed().as_secs_f64();
        timings.runs += 1;

        let started = Instant::now();
        let fetched: BTreeMap<&str, &Tensor> = session
            .outputs()
            .iter()
            .map(String::as_str)
            .zip(&fetched)
            .collect();
        for collector in &mut collectors {
            let tensor = fetched.get(collector.value).copied().ok_or_else(|| {
                Error::engine(format!("the engine did not return value '{}'", collector.value))
            })?;
            collector.take(tensor, &batch)?;
        }
        timings.statistics_seconds += started.elapsed().as_secs_f64();
        tokens = tokens.saturating_add(batch.real_tokens());
        progress.step(batch.rows.len() as u64);
    }
    let started = Instant::now();
    for collector in &mut collectors {
        collector.flush();
        collector.check()?;
    }
    timings.statistics_seconds += started.elapsed().as_secs_f64();

    // The last site of a value takes the sums, the ones before copy them.
    let mut sites = BTreeMap::new();
    for (i, (probe, &at)) in probes.iter().zip(&of_probe).enumerate() {
        let Some(collector) = collectors.get_mut(at) else {
            continue;
        };
        let shared = of_probe.iter().skip(i + 1).any(|&later| later == at);
        let own = if shared {
            collector.statistics.clone()
        } else {
            std::mem::replace(&mut collector.statistics, SiteStatistics::new(0))
        };
        if sites.insert(probe.site.clone(), own).is_some() {
            return Err(Error::input(format!("two probes are named '{}'", probe.site)));
        }
    }
    let statistics = Statistics {
        sites,
        samples: samples.samples.len(),
        tokens,
    };
    Ok((statistics, timings))
}

/// Ends the progress on errors too.
struct Finish<'a>(&'a dyn Progress);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn describe(batch: &Batch) -> String {
    let inputs: Vec<String> = batch
        .feeds
        .iter()
        .map(|(name, t)| format!("{name}{:?}", t.shape))
        .collect();
    let first = batch.rows.first().copied().unwrap_or(0);
    format!(
        "a batch of {} from sample {first} on ({})",
        batch.rows.len(),
        inputs.join(", ")
    )
}

impl Collector<'_> {
    /// Takes the real rows of `tensor`.
    fn take(&mut self, tensor: &Tensor, batch: &Batch) -> Result<()> {
        let width = self.statistics.width();
        let shape = &tensor.shape;
        if shape.get(self.axis) != Some(&width) || !tensor.elem().is_float() {
            return Err(Error::engine(format!(
                "site '{}': value '{}' is {:?}{shape:?}, floats with {width} along axis {} are \
                 expected",
                self.site,
                self.value,
                tensor.elem(),
                self.axis
            )));
        }
        let rows = Rows::new(shape, self.axis, batch);
        let converted;
        let data = match tensor.as_f32() {
            Some(data) => data,
            None => {
                converted = tensor.to_f32();
                &converted
            }
        };
        let inner: usize = shape.iter().skip(self.axis + 1).product();
        for row in 0..rows.count {
            let Some(sample) = rows.sample(row) else {
                continue;
            };
            // With the contracted axis moved last, row = outer x inner.
            let start = row / inner * inner * width + row % inner;
            let from = self.rows.len();
            if inner == 1 {
                self.rows.extend(data.iter().skip(start).take(width));
            } else {
                self.rows
                    .extend(data.iter().skip(start).step_by(inner).take(width));
            }
            let own = self.rows.get(from..).unwrap_or_default();
            if let Some(at) = own.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!(
                    "site '{}': value '{}' is {} at index {at} of axis {} for calibration sample \
                     {sample}; the model overflows on it or is damaged",
                    self.site,
                    self.value,
                    own.get(at).copied().unwrap_or(f32::NAN),
                    self.axis
                )));
            }
            if self.rows.len() == BLOCK * width {
                self.flush();
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        let width = self.statistics.width();
        let rows = self.rows.len().checked_div(width).unwrap_or(0);
        self.statistics.add(&self.rows, rows, None);
        self.rows.clear();
    }

    fn check(&self) -> Result<()> {
        if self.statistics.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!(
            "site '{}': the squares of value '{}' overflow float32",
            self.site, self.value
        )))
    }
}

/// Which rows of a value are real, and of which sample.
struct Rows<'a> {
    batch: &'a Batch,
    /// The number of rows.
    count: usize,
    /// Divisor and size by which a row's index gives its row of the batch.
    sample: Option<(usize, usize)>,
    /// The same for its token position.
    token: Option<(usize, usize)>,
}

impl<'a> Rows<'a> {
    /// The rows of a value of `shape` once `axis` is moved last.
    ///
    /// The leading axes are, in this order of preference: the batch and the
    /// tokens as axes of their own, both in one, the batch and something else in
    /// one.
    fn new(shape: &[usize], axis: usize, batch: &'a Batch) -> Self {
        let mut leading = shape.to_vec();
        leading.remove(axis);
        let count = leading.iter().product();
        let strided = |at: usize| {
            let after: usize = leading.iter().skip(at + 1).product();
            (after.max(1), leading.get(at).copied().unwrap_or(1).max(1))
        };
        let find = |size: usize, not: Option<usize>| {
            leading
                .iter()
                .enumerate()
                .position(|(i, &d)| d == size && Some(i) != not)
        };
        let (size, tokens) = (batch.size, batch.tokens.unwrap_or(1));
        let mut rows = Self {
            batch,
            count,
            sample: None,
            token: None,
        };
        if leading.len() == 1 {
            // One axis for everything: rows of a sample lie together.
            if count == size.saturating_mul(tokens) {
                rows.sample = Some((tokens.max(1), size.max(1)));
                rows.token = Some((1, tokens.max(1)));
            } else if count.checked_rem(size) == Some(0) {
                rows.sample = Some(((count / size).max(1), size.max(1)));
            }
            return rows;
        }
        let batch_axis = find(size, None).or_else(|| {
            // The batch and something else, such as windows, in the first axis.
            leading
                .first()
                .filter(|d| d.checked_rem(size) == Some(0))
                .map(|_| 0)
        });
        if let Some(at) = batch_axis {
            let (divisor, on) = strided(at);
            let together = on / size.max(1);
            rows.sample = Some((divisor.saturating_mul(together.max(1)), size.max(1)));
            if batch.tokens.is_some() {
                rows.token = find(tokens, Some(at)).map(strided);
            }
        }
        rows
    }

    /// The sample that row `row` belongs to, if the row is real.
    fn sample(&self, row: usize) -> Option<usize> {
        let Some((divisor, size)) = self.sample else {
            // Rows that are not of a sample, as in a value that does not
            // depend on the batch.
            return self.batch.rows.first().copied();
        };
        let batch_row = row / divisor % size;
        let sample = self.batch.rows.get(batch_row).copied()?;
        if let (Some((divisor, size)), Some(mask)) = (self.token, &self.batch.token_mask) {
            let token = row / divisor % size;
            let real = mask.get(batch_row * size + token).copied().unwrap_or(false);
            return real.then_some(sample);
        }
        Some(sample)
    }
}
