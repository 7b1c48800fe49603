//! The summary of a run on one screen.

use super::Report;
use crate::axes::Kind;

/// A table a newcomer understands.
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    let b = &report.budget;
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    match &report.output {
        Some(path) => line(format!("{} -> {path}", report.input)),
        None => line(format!("{} (dry run, nothing written)", report.input)),
    }
    if let Some(engine) = &report.engine {
        line(format!(
            "  engine       {} {} on {}, {} thread{}{}",
            engine.name,
            engine.version,
            engine.device,
            engine.threads,
            if engine.threads == 1 { "" } else { "s" },
            engine.note.as_ref().map_or(String::new(), |n| format!(" ({n})"))
        ));
    }
    if let Some(c) = &report.calibration {
        line(format!(
            "  calibration  {} samples, {} tokens; {} more held out",
            c.samples, c.tokens, c.held_out
        ));
    }
    line(String::new());
    line(format!(
        "  {:<26}{:>14}{:>14}{:>9}",
        "", "before", "after", "kept"
    ));
    let row = |name: &str, before: u64, after: u64| {
        format!(
            "  {name:<26}{:>14}{:>14}{:>8.1}%",
            human(before),
            human(after),
            100.0 * after as f64 / before.max(1) as f64
        )
    };
    let blocks_after = (b.got * b.prunable as f64).round() as u64;
    line(row("multiply-adds, blocks", b.prunable, blocks_after));
    line(row("multiply-adds, whole model", b.whole_before, b.whole_after));
    line(row(
        "parameters",
        report.size.parameters_before,
        report.size.parameters_after,
    ));
    if let Some(bytes) = report.size.bytes_after {
        line(row("bytes", report.size.bytes_before, bytes));
    }
    line(format!(
        "  asked for {:.4} of the blocks, got {:.4}",
        b.asked, b.got
    ));
    line(String::new());
    for group in &report.groups {
        let width = 24;
        let full = (group.kept.len() * width).div_ceil(group.units.max(1));
        let bar: String = "█".repeat(full.min(width)) + &"░".repeat(width - full.min(width));
        let noun = if group.kind == Kind::Heads {
            "heads  "
        } else {
            "neurons"
        };
        let gone = if group.kept.is_empty() { "  removed" } else { "" };
        line(format!(
            "  {bar} {:>5} of {:<5} {noun} {}{gone}",
            group.kept.len(),
            group.units,
            tail(&group.name, 40)
        ));
    }
    line(String::new());
    if let Some(e) = &report.equality {
        line(format!(
            "  sliced = masked   largest difference {:.1e} (accepted {:.1e}), {} samples",
            e.worst(),
            e.tolerance,
            e.samples
        ));
    }
    if let Some(held) = &report.held_out {
        for o in &held.outputs {
            let classes = match (o.agreement, o.kl) {
                (Some(a), Some(kl)) => format!("same answer {:.1}%, KL {kl:.4}, ", 100.0 * a),
                _ => String::new(),
            };
            line(format!(
                "  against dense     '{}': {classes}relative error {:.4} ({} held-out samples)",
                tail(&o.name, 30),
                o.relative_squared,
                held.samples
            ));
        }
    }
    match &report.kernels {
        Some(k) if k.more.is_empty() => {
            line("  kernels           the runtime fuses the pruned model like the dense one".into())
        }
        Some(k) => line(format!(
            "  kernels           more than before: {}",
            k.more.join(", ")
        )),
        None => line("  kernels           not checked (needs onnxruntime)".into()),
    }
    if let Some(m) = &report.latency
        && let (Some(dense), Some(speedup)) = (&m.timing.b, &m.timing.speedup)
    {
        let seq = m.seq.map_or(String::new(), |s| format!(" x {s}"));
        line(format!(
            "  latency           {:.3} ms, dense {:.3} ms at {}{seq}: {:.2} times as fast (known to {:.0}%)",
            m.timing.a.median,
            dense.median,
            m.batch,
            speedup.median,
            100.0 * m.timing.noise
        ));
    }
    let total: f64 = report.seconds.iter().map(|(_, s)| s).sum();
    let stages: Vec<String> = report
        .seconds
        .iter()
        .filter(|(_, s)| *s >= 0.05)
        .map(|(n, s)| format!("{n} {s:.1}"))
        .collect();
    line(format!("  {total:.1} s: {}", stages.join(", ")));
    let e = &report.engine_seconds;
    line(format!(
        "  of these, the engine ran for {:.1} s and took {:.1} s to prepare {} models",
        e.running, e.start_up, e.sessions
    ));
    if let Some(c) = &report.calibration {
        line(format!(
            "  the dense model's own passes over the samples took {:.1} s",
            c.dense_seconds
        ));
    }
    for limit in &report.limits {
        line(format!(
            "  asked for {}, got {}, least {}",
            limit.asked.amount(),
            limit.got.amount(),
            limit.least.amount()
        ));
    }
    for pass in &report.lossless {
        line(format!("  lossless: {}", pass.what));
    }
    for point in &report.tried {
        line(format!(
            "  tried {:.3} of the blocks: {:.5}",
            point.fraction, point.divergence
        ));
    }
    for note in &report.notes {
        line(format!("  note: {note}"));
    }
    out
}

/// The end of a long name.
pub(super) fn tail(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_string();
    }
    let end: String = name.chars().skip(count + 1 - width).collect();
    format!("…{end}")
}

/// A number with three digits and a unit.
pub(super) fn human(value: u64) -> String {
    let v = value as f64;
    match value {
        0..=9_999 => value.to_string(),
        10_000..=999_999 => format!("{:.1} k", v / 1e3),
        1_000_000..=999_999_999 => format!("{:.2} M", v / 1e6),
        _ => format!("{:.2} G", v / 1e9),
    }
}

/// One line per report: what was asked, what was got, what it costs.
pub fn table(reports: &[Report]) -> String {
    let mut out =
        String::from("  FLOPs asked     got    parameters         bytes  divergence  same answer  file\n");
    for r in reports {
        let held = r.held_out.as_ref();
        let divergence = held.map_or(f64::NAN, crate::verify::divergence);
        let agreement = held
            .and_then(|h| h.outputs.iter().find_map(|o| o.agreement))
            .map_or_else(|| "-".to_string(), |a| format!("{:.2}%", 100.0 * a));
        out += &format!(
            "{:>13.3} {:>7.4} {:>13} {:>13} {:>11.5} {:>12}  {}\n",
            r.budget.asked,
            r.budget.got,
            r.size.parameters_after,
            r.size
                .bytes_after
                .map_or_else(|| "-".to_string(), |b| b.to_string()),
            divergence,
            agreement,
            r.output.as_deref().unwrap_or("(not written)")
        );
    }
    out
}
