//! The summary of a run on one screen.

use super::layers::{LayerRow, kept_of, layers};
use super::style::{Ink, Style};
use super::{GroupReport, Report};
use crate::Warning;
use crate::axes::Kind;
use crate::channels::{ChannelKind, ChannelSummary};

/// Where the lines after the first one of a long text begin.
const INDENT: usize = 20;

/// Most layers that get a line each; of more, each gets a column.
const LINES: usize = 14;

/// A table a newcomer understands.
pub fn summary(report: &Report, style: Style, verbose: bool) -> String {
    let mut page = Page {
        out: String::new(),
        style,
    };
    page.head(report);
    page.vocabulary(report);
    page.line(String::new());
    page.sizes(report, verbose);
    page.line(String::new());
    match (verbose, layers(&report.groups)) {
        (true, _) => page.groups(&report.groups),
        (false, layers) if layers.len() <= LINES => page.rows(&layers),
        (false, layers) => page.columns(&layers),
    }
    page.line(String::new());
    page.measured(report, verbose);
    for note in &report.notes {
        let note = format!("  {} {note}", style.paint(Ink::Dim, "note:"));
        page.out += &(style.wrap(&note, 8) + "\n");
    }
    if !report.warnings.is_empty() {
        page.line(warnings(&report.warnings, style));
    }
    page.out
}

/// What a run could not do, one line each; these are its last words.
pub fn warnings(warnings: &[Warning], style: Style) -> String {
    let lines = warnings.iter().map(|warning| {
        let name = format!("warning[{}]:", warning.name);
        style.wrap(
            &format!("  {} {}", style.paint(Ink::Warning, &name), warning.text),
            4,
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

struct Page {
    out: String,
    style: Style,
}

impl Page {
    fn line(&mut self, text: String) {
        self.out.push_str(&self.style.wrap(text.trim_end(), INDENT));
        self.out.push('\n');
    }

    fn head(&mut self, report: &Report) {
        let title = match &report.output {
            Some(path) => format!("{} -> {path}", report.input),
            None => format!("{} (dry run, nothing written)", report.input),
        };
        self.line(self.style.paint(Ink::Strong, &title));
        if let Some(engine) = &report.engine {
            self.line(format!(
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
            self.line(format!(
                "  calibration  {} samples, {} tokens; {} more held out",
                c.samples, c.tokens, c.held_out
            ));
        }
    }

    /// What costs nothing: told before what does.
    fn vocabulary(&mut self, report: &Report) {
        let Some(v) = &report.vocabulary else { return };
        self.line(format!(
            "  vocabulary   {} of {} tokens stay: {}B instead of {}B,",
            v.after,
            v.before,
            human(v.bytes_after),
            human(v.bytes_before)
        ));
        let all = report.groups.iter().all(|g| g.kept.len() == g.units);
        let enough = match !report.limits.is_empty() && all && report.channels.is_empty() {
            true => "; it is enough for the budget",
            false => "",
        };
        self.line(format!(
            "               lossless on texts whose tokens all stay{enough}"
        ));
        if let Some(path) = &v.tokenizer {
            self.line(format!("               its tokenizer: {path}"));
        }
    }

    fn sizes(&mut self, report: &Report, verbose: bool) {
        let b = &report.budget;
        let head = format!("  {:<26}{:>11}{:>11}{:>8}", "", "before", "after", "kept");
        self.line(self.style.paint(Ink::Dim, &head));
        let row = |name: &str, before: u64, after: u64| {
            format!(
                "  {name:<26}{:>11}{:>11}{:>7.1}%",
                human(before),
                human(after),
                100.0 * after as f64 / before.max(1) as f64
            )
        };
        let blocks_after = (b.got * b.prunable as f64).round() as u64;
        let blocks = row("multiply-adds, blocks", b.prunable, blocks_after);
        let asked = match report.goal.as_flops() {
            Some(_) => format!("   asked for {:.1}%", 100.0 * b.asked),
            None => String::new(),
        };
        self.line(blocks + &asked);
        self.line(row("multiply-adds, whole model", b.whole_before, b.whole_after));
        let size = &report.size;
        self.line(row("parameters", size.parameters_before, size.parameters_after));
        if let Some(bytes) = size.bytes_after {
            self.line(row("bytes", size.bytes_before, bytes));
        }
        if let Some(latency) = &report.latency
            && let (Some(dense), Some(speedup)) = (&latency.timing.b, &latency.timing.speedup)
        {
            let ms = |v: f64| format!("{v:.2} ms");
            self.line(format!(
                "  {:<26}{:>11}{:>11}{:>8}   give or take {:.0}%",
                "latency",
                ms(dense.median),
                ms(latency.timing.a.median),
                format!("{:.2}x", speedup.median),
                100.0 * latency.timing.noise
            ));
        }
        if verbose {
            for (name, part) in report.parts.after.named() {
                let before = report.parts.before.named().into_iter().find(|(n, _)| *n == name);
                let before = before.map_or(0, |(_, part)| part.bytes);
                if before > 0 {
                    self.line(row(&format!("bytes, {name}"), before, part.bytes));
                }
            }
            self.line(format!(
                "  asked for {:.4} of the blocks, got {:.4}; the least is {:.4}",
                b.asked, b.got, b.floor
            ));
        }
        for limit in &report.limits {
            self.line(format!(
                "  asked for {}, got {}, least {}",
                limit.asked.amount(),
                limit.got.amount(),
                limit.least.amount()
            ));
        }
    }

    /// A line per group with its name.
    fn groups(&mut self, groups: &[GroupReport]) {
        for group in groups {
            let (noun, ink) = match group.kind {
                Kind::Heads => ("heads  ", Ink::Heads),
                _ => ("neurons", Ink::Neurons),
            };
            let gone = if group.kept.is_empty() { "  removed" } else { "" };
            self.line(format!(
                "  {} {:>5} of {:<5} {noun} {}{gone}",
                self.bar(ink, group.kept.len(), group.units, 24),
                group.kept.len(),
                group.units,
                tail(&group.name, 40)
            ));
        }
    }

    /// A line per layer.
    fn rows(&mut self, layers: &[LayerRow]) {
        let width = layers.iter().map(|l| l.label.len()).max().unwrap_or(0).max(5) + 2;
        let head = format!("  {:<width$}{:<30}{}", "layer", "heads", "neurons");
        self.line(self.style.paint(Ink::Dim, &head));
        for layer in layers {
            let half = |groups: &[&GroupReport], ink: Ink| {
                let (kept, units) = kept_of(groups);
                if groups.is_empty() {
                    return " ".repeat(30);
                }
                let count = match kept {
                    0 => "removed".to_string(),
                    _ => format!("{kept} of {units}"),
                };
                format!("{} {count:<13}", self.bar(ink, kept, units, 16))
            };
            self.line(format!(
                "  {:<width$}{}{}",
                layer.label,
                half(&layer.heads, Ink::Heads),
                half(&layer.neurons, Ink::Neurons)
            ));
        }
    }

    /// A column per layer: its height is what stays.
    fn columns(&mut self, layers: &[LayerRow]) {
        for (name, ink) in [("heads", Ink::Heads), ("neurons", Ink::Neurons)] {
            let of = |layer: &LayerRow| match ink {
                Ink::Heads => kept_of(&layer.heads),
                _ => kept_of(&layer.neurons),
            };
            let counts: Vec<(usize, usize)> = layers.iter().map(of).collect();
            let (kept, units) = counts.iter().fold((0, 0), |(a, b), (k, u)| (a + k, b + u));
            if units == 0 {
                continue;
            }
            let column = |(kept, units): &(usize, usize)| match (kept, units) {
                (_, 0) => ' ',
                (0, _) => '×',
                (kept, units) => {
                    let eighth = (8 * kept).div_ceil(*units).clamp(1, 8);
                    ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][eighth - 1]
                }
            };
            let text: String = counts.iter().map(column).collect();
            let gone = counts.iter().filter(|(k, u)| *k == 0 && *u > 0).count();
            let gone = match gone {
                0 => String::new(),
                n => format!(", {n} removed (×)"),
            };
            self.line(format!(
                "  {name:<9}{}  {kept} of {units} in {} layers{gone}",
                self.style.paint(ink, &text),
                layers.len()
            ));
        }
    }

    fn bar(&self, ink: Ink, kept: usize, units: usize, width: usize) -> String {
        let full = (kept * width).div_ceil(units.max(1)).min(width);
        let rest = self.style.paint(Ink::Dim, &"░".repeat(width - full));
        self.style.paint(ink, &"█".repeat(full)) + &rest
    }

    /// The channels of all layers in a line.
    fn channels(&mut self, all: &[ChannelSummary]) {
        let of = |kind: ChannelKind| {
            let own = || all.iter().filter(move |c| c.channels == kind);
            let (least, most) = (own().map(|c| c.after).min()?, own().map(|c| c.after).max()?);
            let range = match least == most {
                true => least.to_string(),
                false => format!("{least} to {most}"),
            };
            let before = own().map(|c| c.before).max()?;
            Some(format!(
                "{range} of {before} for {} in {} layers",
                kind.word(),
                own().count()
            ))
        };
        let told: Vec<String> = [ChannelKind::Values, ChannelKind::QueriesAndKeys]
            .into_iter()
            .filter_map(of)
            .collect();
        if !told.is_empty() {
            self.line(format!("  channels          {}", told.join("; ")));
        }
    }

    fn measured(&mut self, report: &Report, verbose: bool) {
        if let Some(e) = &report.equality {
            self.line(format!(
                "  sliced = masked   largest difference {:.1e} (accepted {:.1e}), {} samples",
                e.worst(),
                e.tolerance,
                e.samples
            ));
            if let Some(nudge) = e.sensitivity {
                self.line(format!(
                    "                    (a change of the weights by 1e-7 makes {nudge:.1e} of the outputs)"
                ));
            }
        }
        if let Some(held) = &report.held_out {
            /// A decoder has two outputs per layer besides the one that counts.
            const SHOWN: usize = 3;
            let shown = if verbose { held.outputs.len() } else { SHOWN };
            for o in held.outputs.iter().take(shown) {
                let answers = match o.agreement {
                    Some(share) => format!("same answer {:.1}%, ", 100.0 * share),
                    None => String::new(),
                };
                self.line(format!(
                    "  against dense     '{}': {answers}{} {:.4} ({} held-out samples)",
                    tail(&o.name, 30),
                    o.measure,
                    o.divergence,
                    held.samples
                ));
            }
            if held.outputs.len() > shown {
                self.line(format!(
                    "                    and {} more outputs (-v shows them)",
                    held.outputs.len() - shown
                ));
            }
        }
        match verbose {
            true => {
                (report.channels.iter()).for_each(|told| self.line(format!("  channels          {told}")))
            }
            false => self.channels(&report.channels),
        }
        let kernels = match &report.kernels {
            Some(k) if k.more.is_empty() => "the runtime fuses the pruned model like the dense one".into(),
            Some(k) => format!("more than before: {}", k.more.join(", ")),
            None => "not checked (needs onnxruntime)".to_string(),
        };
        self.line(format!("  kernels           {kernels}"));
        let total: f64 = report.seconds.iter().map(|(_, s)| s).sum();
        let least = if verbose { 0.0 } else { 0.05 };
        let stages: Vec<String> = report
            .seconds
            .iter()
            .filter(|(_, s)| *s >= least)
            .map(|(n, s)| format!("{n} {s:.1}"))
            .collect();
        self.line(format!("  {total:.1} s: {}", stages.join(", ")));
        if verbose {
            let e = &report.engine_seconds;
            self.line(format!(
                "  of these, the engine ran for {:.1} s and took {:.1} s to prepare {} models",
                e.running, e.start_up, e.sessions
            ));
        }
        if let (Some(c), true) = (&report.calibration, verbose) {
            self.line(format!(
                "  the dense model's own passes over the samples took {:.1} s",
                c.dense_seconds
            ));
        }
        for pass in &report.lossless {
            self.line(format!("  lossless: {}", pass.what));
        }
        for point in &report.tried {
            self.line(format!(
                "  tried {:.3} of the blocks: {:.5}",
                point.fraction, point.divergence
            ));
        }
        if verbose {
            self.line(format!("  again: {}", report.command));
        }
    }
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
/// What could not be done comes last, and once where it is the same for all.
pub fn table(reports: &[Report], style: Style) -> String {
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
    for r in reports {
        let speedup = r.latency.as_ref().and_then(|l| l.timing.speedup);
        if let (Some(speedup), Some(path)) = (speedup, &r.output) {
            let line = format!(
                "  speed        {:.2}x of the dense model's: {path}",
                speedup.median
            );
            out += &(style.wrap(&line, 15) + "\n");
        }
    }
    if let Some(v) = reports.iter().find_map(|r| r.vocabulary.as_ref()) {
        out += &format!("  vocabulary   {} of {} tokens stay, ", v.after, v.before);
        out += "lossless on texts whose tokens all stay\n";
    }
    let mut notes: Vec<&String> = Vec::new();
    for note in reports.iter().flat_map(|r| &r.notes) {
        if !notes.contains(&note) {
            notes.push(note);
            let line = format!("  {} {note}", style.paint(Ink::Dim, "note:"));
            out += &(style.wrap(&line, 8) + "\n");
        }
    }
    let mut told: Vec<Warning> = Vec::new();
    for warning in reports.iter().flat_map(|r| &r.warnings) {
        if !told.contains(warning) {
            told.push(warning.clone());
        }
    }
    if !told.is_empty() {
        out += &warnings(&told, style);
        out.push('\n');
    }
    out
}
