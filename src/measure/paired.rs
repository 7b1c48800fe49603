//! Latency, measured so that two models can be compared on a busy machine.
//!
//! Two models run in turns, a pair after a pair, and every second pair in the
//! other order: what slows the machine for a while slows both. The speed-up is
//! the median of the pairs' ratios, and its quartiles say how sure it is.

use std::time::Instant;

use crate::engine::{Engine, Session, SessionOptions};
use crate::onnx::proto;
use crate::tensor::Feeds;
use crate::{Error, Result};

/// Runs that are not counted: caches fill, clocks rise, memory is laid out.
const WARM_UP: usize = 3;

/// The middle of some measurements and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    /// A quarter lies below.
    pub lower: f64,
    /// The median.
    pub median: f64,
    /// A quarter lies above.
    pub upper: f64,
    /// The least.
    pub least: f64,
}

impl Spread {
    /// Of at least one measurement; zeros of none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| -> f64 {
            let Some(last) = sorted.len().checked_sub(1) else {
                return 0.0;
            };
            let place = share * last as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            let (a, b) = (sorted[low.min(last)], sorted[high.min(last)]);
            a + (b - a) * (place - place.floor())
        };
        Spread {
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
            least: at(0.0),
        }
    }

    /// How uncertain the median is, as a fraction of it: its standard error,
    /// from the quartiles of `runs` measurements, taken as normal.
    pub fn noise(&self, runs: usize) -> f64 {
        // Quartiles of a normal distribution are 1.349 deviations apart, and
        // the median scatters 1.2533 times as much as the mean.
        let deviation = (self.upper - self.lower) / 1.349;
        if self.median > 0.0 {
            1.2533 * deviation / (runs.max(1) as f64).sqrt() / self.median
        } else {
            0.0
        }
    }
}

/// Latency of one model, or of two side by side.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Timing {
    /// Runs of each model.
    pub runs: usize,
    /// Milliseconds of the first.
    pub a: Spread,
    /// Milliseconds of the second.
    pub b: Option<Spread>,
    /// How many times as long the second takes as the first, pair by pair:
    /// above 1 where the first is faster.
    pub speedup: Option<Spread>,
    /// Uncertainty of the median of `speedup` (of `a` where there is no
    /// second), as a fraction.
    pub noise: f64,
}

/// Times `model_a`, and `model_b` in turns with it, on the same inputs.
///
/// # Errors
/// The engine's; no runs.
pub fn paired(
    engine: &dyn Engine,
    model_a: &proto::ModelProto,
    model_b: Option<&proto::ModelProto>,
    inputs: &Feeds,
    runs: usize,
) -> Result<Timing> {
    let options = SessionOptions::default();
    let mut a = engine.session(model_a, &options)?;
    let mut b = match model_b {
        Some(model) => Some(engine.session(model, &options)?),
        None => None,
    };
    sessions(a.as_mut(), b.as_mut().map(|b| b.as_mut()), inputs, runs)
}

/// [`paired`] for sessions that are open already.
///
/// # Errors
/// The engine's; no runs.
pub fn sessions(
    a: &mut dyn Session,
    b: Option<&mut (dyn Session + '_)>,
    inputs: &Feeds,
    runs: usize,
) -> Result<Timing> {
    sessions_on(a, inputs, b.map(|b| (b, inputs)), runs)
}

/// [`sessions`] with inputs for each: of models whose interfaces differ.
///
/// # Errors
/// The engine's; no runs.
pub fn sessions_on(
    a: &mut dyn Session,
    inputs: &Feeds,
    mut b: Option<(&mut (dyn Session + '_), &Feeds)>,
    runs: usize,
) -> Result<Timing> {
    if runs == 0 {
        return Err(Error::input("--runs must be at least 1"));
    }
    for _ in 0..WARM_UP {
        one(a, inputs)?;
        if let Some((b, inputs)) = &mut b {
            one(*b, inputs)?;
        }
    }
    let (mut of_a, mut of_b) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    for run in 0..runs {
        match &mut b {
            None => of_a.push(one(a, inputs)?),
            Some((b, own)) if run % 2 == 0 => {
                of_a.push(one(a, inputs)?);
                of_b.push(one(*b, own)?);
            }
            Some((b, own)) => {
                of_b.push(one(*b, own)?);
                of_a.push(one(a, inputs)?);
            }
        }
    }
    let ratios: Vec<f64> = of_a.iter().zip(&of_b).map(|(a, b)| b / a.max(1e-9)).collect();
    let a = Spread::of(&of_a);
    let speedup = (!ratios.is_empty()).then(|| Spread::of(&ratios));
    Ok(Timing {
        runs,
        a,
        b: (!of_b.is_empty()).then(|| Spread::of(&of_b)),
        speedup,
        noise: speedup.unwrap_or(a).noise(runs),
    })
}

/// Milliseconds of one run.
fn one(session: &mut dyn Session, inputs: &Feeds) -> Result<f64> {
    let start = Instant::now();
    let outputs = session.run(inputs)?;
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    drop(outputs);
    Ok(elapsed)
}

/// What `bench` prints.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BenchReport {
    /// The first model.
    pub a: String,
    /// The second.
    pub b: Option<String>,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens per row, where the model takes tokens.
    pub seq: Option<usize>,
    /// Engine, device, threads.
    pub engine: crate::engine::EngineInfo,
    /// Milliseconds.
    pub timing: Timing,
}

impl BenchReport {
    /// For the terminal.
    pub fn text(&self) -> String {
        let seq = self.seq.map_or(String::new(), |s| format!(" x {s}"));
        let mut text = format!(
            "{} {} on {}, {} threads, batch {}{seq}, {} runs{}\n",
            self.engine.name,
            self.engine.version,
            self.engine.device,
            self.engine.threads,
            self.batch,
            self.timing.runs,
            if self.b.is_some() { " in turns" } else { "" },
        );
        let line = |name: &str, s: &Spread| {
            format!(
                "{name}: {:.3} ms (quartiles {:.3} to {:.3}, least {:.3})\n",
                s.median, s.lower, s.upper, s.least
            )
        };
        text += &line(&self.a, &self.timing.a);
        if let (Some(name), Some(b), Some(speedup)) = (&self.b, &self.timing.b, &self.timing.speedup) {
            text += &line(name, b);
            text += &format!(
                "{} is {:.3} times as fast (quartiles of the pairs {:.3} to {:.3}; the median is known to {:.1}%)\n",
                self.a,
                speedup.median,
                speedup.lower,
                speedup.upper,
                100.0 * self.timing.noise,
            );
        }
        text
    }
}

/// The result timed in turns with the dense model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// Rows per run.
    pub batch: usize,
    /// Tokens per row, where the model takes tokens.
    pub seq: Option<usize>,
    /// The pruned model is `a`, the dense one `b`.
    #[serde(flatten)]
    pub timing: Timing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn quartiles_are_interpolated() {
        let s = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.lower, s.median, s.upper, s.least), (1.75, 2.5, 3.25, 1.0));
        assert_eq!(Spread::of(&[]).median, 0.0);
    }

    /// Sleeps, and a pause of the whole machine hits both of a pair.
    struct Sleeper(u64);

    impl Session for Sleeper {
        fn outputs(&self) -> &[String] {
            &[]
        }

        fn run(&mut self, _: &Feeds) -> Result<Vec<Tensor>> {
            std::thread::sleep(std::time::Duration::from_millis(self.0));
            Ok(Vec::new())
        }
    }

    #[test]
    fn the_faster_one_is_found() {
        let (mut a, mut b) = (Sleeper(2), Sleeper(6));
        let timing = sessions(&mut a, Some(&mut b), &Feeds::new(), 7).unwrap();
        let speedup = timing.speedup.unwrap().median;
        // Sleeps get longer on a busy machine, never shorter.
        assert!(speedup > 1.2, "{speedup}");
        assert!(timing.a.least >= 2.0 && timing.b.unwrap().least >= 6.0);
        assert!(sessions(&mut Sleeper(0), None, &Feeds::new(), 0).is_err());
    }
}
