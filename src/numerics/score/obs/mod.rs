//! `obs`: greedy structured optimal-brain-surgeon elimination, closed form.
//!
//! On `H = Sigma + lambda I` the error of removing unit u with everything else
//! re-fitted is `tr(W_u^T ([H^-1]_uu)^-1 W_u)`. Remove the cheapest, update W
//! and `H^-1`, repeat (module `elimination`). Sigma is centred: the mean part costs
//! nothing, the bias absorbs it.
//!
//! Units of one row (neurons) go in blocks of about n/32 per step, which turns
//! the updates into matrix products. Taking the k cheapest by their scores alone
//! would take both of two units that stand in for each other: each is cheap only
//! while the other stays. So a block is chosen one by one from a pool of the
//! cheapest, with the scores inside the pool kept current (module `pool`).
//!
//! Units of several rows (heads, KV groups) go one per step.

mod blocks;
mod elimination;
mod pool;

use faer::Mat;

use self::blocks::Blocks;
pub use self::elimination::Elimination;
use super::curve::Curve;
use super::site::{DEFAULT_DAMP, ScoredSite, Units};
use crate::error::Result;

/// No step takes more than this fraction of what is left.
const TAPER: usize = 4;
/// The error is made exact whenever this fraction of the removed units waits for it.
const DUE: usize = 4;
/// Numbers that the widest instructions take.
const VECTOR: usize = 16;

/// Options of [`obs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObsOptions {
    /// lambda as a fraction of the mean diagonal of Sigma.
    pub damp: f64,
    /// Units of one row removed per step; by default a 32nd of them, in whole vectors.
    pub step: Option<usize>,
    /// Candidates per unit of a step: 1 takes the cheapest as they stand.
    pub pool: f64,
    /// Whether errors are exact after each step, not only at intervals.
    pub exact: bool,
}

impl Default for ObsOptions {
    fn default() -> Self {
        Self {
            damp: DEFAULT_DAMP,
            step: None,
            pool: 1.25,
            exact: false,
        }
    }
}

/// Which unit goes first, second, ... and the error after each.
///
/// The order is found in single precision from a factor in double precision.
/// Errors are exact at intervals of about a quarter of what is gone by then, unless they
/// are to be exact after each step, and after each unit of several rows; between two exact
/// values they follow the objective (error plus ridge).
///
/// # Errors
/// Bad shapes, units, or numbers in `site` ([`ScoredSite::check`]).
pub fn obs(site: &ScoredSite, options: &ObsOptions) -> Result<Curve> {
    Ok(obs_at(site, options, &[])?.0)
}

/// What W has become when some units are gone.
#[derive(Clone, Debug)]
pub struct ObsLevel {
    /// How many units are gone.
    pub removed: usize,
    /// The re-fitted rows of those left, ascending: the local fit of
    /// [`crate::numerics::solve::local`] in single precision, which costs nothing here.
    pub weight: Mat<f64>,
}

/// [`obs`], and W after each number of removed units in `levels` (ascending).
///
/// # Errors
/// As [`obs`].
pub fn obs_at(site: &ScoredSite, options: &ObsOptions, levels: &[usize]) -> Result<(Curve, Vec<ObsLevel>)> {
    site.check()?;
    let elimination = Elimination::new(site, options.damp)?;
    Ok(run(elimination, &site.units, options, levels))
}

/// The elimination alone, from a prepared state; `units` are those of its site.
pub fn eliminate(state: Elimination, units: &Units, options: &ObsOptions) -> Curve {
    run(state, units, options, &[]).0
}

fn run(
    mut state: Elimination,
    units: &Units,
    options: &ObsOptions,
    levels: &[usize],
) -> (Curve, Vec<ObsLevel>) {
    let mut trace = Trace::new(&state);
    let mut levels = levels.iter().copied().peekable();
    let mut reached = Vec::new();
    let mut reach = |state: &Elimination, removed: usize| {
        while let Some(level) = levels.next_if(|level| *level <= removed) {
            if level == removed {
                let weight = state.fitted();
                reached.push(ObsLevel { removed, weight });
            }
        }
        // How many more until the next one.
        levels.peek().map_or(usize::MAX, |level| level - removed)
    };
    if units.are_single() {
        let unit_of_row = unit_of_row(units);
        let step = options.step.unwrap_or(default_step(units.len())).max(1);
        while state.live() > 0 {
            let until = reach(&state, units.len() - state.live());
            // Near the end each unit weighs more, and small steps cost nothing.
            let step = step.min(state.live().div_ceil(TAPER)).min(until);
            let candidates = (step as f64 * options.pool.max(1.0)).ceil() as usize;
            let (rows, lower) = pool::choose(&mut state, step, candidates);
            let lost = state.remove(&lower);
            let units = rows.iter().map(|&row| unit_of_row[row]);
            trace.record(units.zip(lost));
            if options.exact || state.live() == 0 || trace.is_due() {
                trace.settle(&state);
            }
        }
    } else {
        let mut blocks = Blocks::new(&state, units);
        while let Some(unit) = blocks.cheapest(&state) {
            reach(&state, trace.order.len());
            let rows = &units.rows[unit];
            state.move_to_end(rows);
            let mut lower = state.z_of_last(rows.len());
            pool::factor(&mut lower);
            let lost = state.remove(&lower).iter().sum();
            blocks.remove(unit, rows.len(), &state);
            trace.record(std::iter::once((unit, lost)));
            trace.settle(&state);
        }
    }
    reach(&state, units.len());
    (trace.into_curve(), reached)
}

/// A 32nd of the units, in whole vectors where it has one.
fn default_step(units: usize) -> usize {
    let step = units / 32;
    match step >= VECTOR {
        true => step / VECTOR * VECTOR,
        false => step.max(1),
    }
}

/// The unit of each row, where each unit is one row.
fn unit_of_row(units: &Units) -> Vec<usize> {
    let mut unit_of_row = vec![0; units.len()];
    for (unit, rows) in units.rows.iter().enumerate() {
        for &row in rows {
            unit_of_row[row] = unit;
        }
    }
    unit_of_row
}

/// The order so far and its errors, `tr(D^T Sigma D)` for the change D of W.
struct Trace {
    order: Vec<usize>,
    /// Errors up to `settled`, after that the objective.
    error: Vec<f64>,
    /// `tr(D^T H D)`.
    objective: f64,
    /// How many units were gone when the error was last made exact, and the objective
    /// then.
    settled: usize,
    start: f64,
}

impl Trace {
    fn new(elimination: &Elimination) -> Self {
        let n = elimination.live();
        let mut error = Vec::with_capacity(n + 1);
        error.push(0.0);
        Self {
            order: Vec::with_capacity(n),
            error,
            objective: 0.0,
            settled: 0,
            start: 0.0,
        }
    }

    /// Adds the units of one step, each with what its removal added to the
    /// objective given those before it.
    fn record(&mut self, step: impl Iterator<Item = (usize, f64)>) {
        for (unit, lost) in step {
            self.order.push(unit);
            self.objective += lost;
            self.error.push(self.objective);
        }
    }

    /// Whether the error is to be made exact: more often early, where the ridge is most of
    /// the objective. In between it is off by 1% (1536 neurons of a BERT), and each time
    /// takes as long as a third of a step.
    fn is_due(&self) -> bool {
        (self.order.len() - self.settled) * DUE >= self.order.len()
    }

    /// Takes the ridge out of the objective: exactly for what is gone now, and in between
    /// by what each unit added.
    fn settle(&mut self, state: &Elimination) {
        let before = self.error[self.settled];
        let after = self.objective - state.ridge() * state.drift();
        let gained = self.objective - self.start;
        for error in &mut self.error[self.settled + 1..] {
            let share = if gained > 0.0 {
                (*error - self.start) / gained
            } else {
                1.0
            };
            *error = before + share * (after - before);
        }
        self.settled = self.order.len();
        self.start = self.objective;
    }

    /// With all units gone the error is the output's energy. Where it is nothing
    /// but the rounding of the objective the output is constant.
    fn into_curve(self) -> Curve {
        let last = self.error.last().copied().unwrap_or(0.0);
        let energy = if last > 1e-6 * self.objective { last } else { 0.0 };
        Curve::new(self.order, self.error, energy)
    }
}
