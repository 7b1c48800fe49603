//! What an error at a site does to the outputs.
//!
//! Equal errors at two sites are not equally harmful, so the harm is measured:
//! for each group and some levels the locally re-fitted group is put into the
//! full model, a probe set is run, and the change of the outputs is recorded.
//! Forward passes only. Between the levels the damage follows the local error
//! curve of the group.

use std::sync::atomic::AtomicBool;

use crate::axes::Analysis;
use crate::calibrate::{Samples, Statistics};
use crate::graph::Graph;
use crate::mask::Mask;
use crate::onnx::proto;
use crate::options::Options;
use crate::progress::Progress;
use crate::runtime::{Engine, SessionOptions};
use crate::score::Curve;
use crate::sites::Chosen;
use crate::verify::{Comparison, Replay, compare};
use crate::{Error, Result, rebuild, rewrite};

/// Fractions of a group's units that are removed to measure it.
const LEVELS: [f64; 6] = [0.17, 0.34, 0.5, 0.67, 0.84, 1.0];

/// A model with what belongs to it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Runs it.
    pub engine: &'a dyn Engine,
    /// With local functions inlined.
    pub model: &'a proto::ModelProto,
    /// Its graph.
    pub graph: &'a Graph,
    /// Its axes.
    pub analysis: &'a Analysis,
}

/// Replaces the local errors of the curves by measured damage.
///
/// # Errors
/// The engine's; an interrupt.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    subject: Subject,
    chosen: &[Chosen],
    curves: Vec<Option<Curve>>,
    statistics: &Statistics,
    options: &Options,
    probe: &Samples,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Option<Curve>>> {
    let Subject {
        engine,
        model,
        graph,
        analysis,
    } = subject;
    let session_options = SessionOptions {
        optimise: true,
        outputs: None,
    };
    let mut dense = Replay::record(engine.session(model, &session_options)?, model, probe)?;
    progress.start("damage", (chosen.len() * LEVELS.len()) as u64);
    let mut out = Vec::with_capacity(curves.len());
    for (c, curve) in chosen.iter().zip(curves) {
        let Some(mut curve) = curve else {
            out.push(None);
            progress.step(LEVELS.len() as u64);
            continue;
        };
        let units = analysis.groups[c.group].units;
        let mut points = vec![(0usize, 0.0f64)];
        for level in LEVELS {
            progress.step(1);
            let removed = ((level * units as f64).round() as usize).min(units - c.least.min(units));
            if points.iter().any(|(k, _)| *k >= removed) {
                continue;
            }
            let mut mask = Mask::default();
            mask.kept.insert(c.group, curve.kept(removed));
            let mut pruned = rewrite::prune(model, graph, analysis, &mask)?;
            let one = std::slice::from_ref(c);
            rebuild::local(
                model,
                graph,
                analysis,
                one,
                &mask,
                statistics,
                &mut pruned,
                options,
            )?;
            let mut session = engine.session(&pruned, &session_options)?;
            let comparison = compare(session.as_mut(), &mut dense, model, probe, cancelled)?;
            points.push((removed, damage(&comparison)));
        }
        follow(&mut curve, points)?;
        out.push(Some(curve));
    }
    progress.finish();
    Ok(out)
}

/// One number for all outputs: divergence for class-like ones, else the mean
/// squared change by the variance.
pub fn damage(comparison: &Comparison) -> f64 {
    comparison
        .outputs
        .iter()
        .map(|o| o.kl.unwrap_or(o.relative_squared))
        .filter(|d| d.is_finite())
        .sum()
}

/// Puts measured points into a curve: in between, damage rises as the local
/// error does; it never falls.
fn follow(curve: &mut Curve, mut points: Vec<(usize, f64)>) -> Result<()> {
    let mut top = 0.0f64;
    for (_, value) in &mut points {
        top = top.max(*value);
        *value = top;
    }
    let error = curve.error.clone();
    for pair in points.windows(2) {
        let ((from, low), (to, high)) = (pair[0], pair[1]);
        let (Some(a), Some(b)) = (error.get(from), error.get(to)) else {
            return Err(Error::input("a damage level lies outside its curve"));
        };
        for (k, slot) in curve.error.iter_mut().enumerate().take(to + 1).skip(from) {
            let share = if b > a {
                (error[k] - a) / (b - a)
            } else {
                (k - from) as f64 / (to - from).max(1) as f64
            };
            *slot = low + (high - low) * share.clamp(0.0, 1.0);
        }
    }
    let (last, value) = points.last().copied().unwrap_or((0, 0.0));
    for k in last + 1..curve.error.len() {
        curve.error[k] = value * error[k] / error[last].max(f64::MIN_POSITIVE);
    }
    Ok(())
}
