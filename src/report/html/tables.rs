//! Sizes, outputs, what keeps its size, how to repeat the run.

use maud::{Markup, html};

use super::{css, file_name, percent, short};
use crate::report::Report;
use crate::report::terminal::human;
use crate::verify::divergence;

/// What a newcomer wants to know first.
pub(super) fn tiles(r: &Report) -> Markup {
    let share = |before: u64, after: u64| percent(after as f64 / before.max(1) as f64);
    let tile = |what: &str, value: String, more: String| {
        html! { div.tile { span.what { (what) } b { (value) } span { (more) } } }
    };
    let held = r.held_out.as_ref();
    let agreement = held.and_then(|h| h.outputs.iter().find_map(|o| o.agreement));
    html! {
        div.tiles {
            (tile("work of the blocks", percent(r.budget.got), asked(r)))
            (tile(
                "parameters",
                share(r.size.parameters_before, r.size.parameters_after),
                format!("{} of {}", human(r.size.parameters_after), human(r.size.parameters_before)),
            ))
            @if let Some(after) = r.size.bytes_after {
                (tile("file", share(r.size.bytes_before, after), format!("{}B of {}B", human(after), human(r.size.bytes_before))))
            }
            @if let Some(speedup) = r.latency.as_ref().and_then(|l| l.timing.speedup) {
                (tile("speed", format!("{:.2}×", speedup.median), "measured in turns with the dense model".into()))
            }
            @if let (Some(agreement), Some(held)) = (agreement, held) {
                (tile("same answer", percent(agreement), format!("on {} held-out samples", held.samples)))
            } @else if let Some(held) = held {
                (tile("divergence", short(divergence(held)), format!("on {} held-out samples", held.samples)))
            }
        }
    }
}

/// What was asked for.
fn asked(r: &Report) -> String {
    if !r.limits.is_empty() {
        let all: Vec<String> = r.limits.iter().map(|l| l.asked.to_string()).collect();
        return format!("asked: {}", all.join(", "));
    }
    match r.options.get("max_drop").and_then(serde_json::Value::as_f64) {
        Some(bound) => format!("asked: a drop of at most {bound}"),
        None if r.options.get("mask").is_some_and(|m| !m.is_null()) => "as the mask says".into(),
        None => format!("asked: at most {}", percent(r.budget.asked)),
    }
}

/// Before and after.
pub(super) fn sizes(r: &Report) -> Markup {
    let b = &r.budget;
    let blocks = (b.got * b.prunable as f64).round() as u64;
    let row = |name: &str, before: String, after: String, share: f64| {
        html! {
            tr {
                td { (name) }
                td.num { (before) }
                td.num { (after) }
                td.num { (percent(share)) }
                td.grow { div.meter { i style=(css("width", share)) {} } }
            }
        }
    };
    let count = |name: &str, before: u64, after: u64| {
        row(
            name,
            human(before),
            human(after),
            after as f64 / before.max(1) as f64,
        )
    };
    html! {
        section {
            h2 { "Before and after" }
            p.why {
                "The blocks are what vanishes when every group is empty: attention and feed-forward sublayers. "
                "Costs are those of batch " (number(r, "batch"))
                // Without one where no length was asked for.
                @if let Some(seq) = r.options.get("seq").and_then(serde_json::Value::as_u64) { " and sequence length " (seq) }
                "."
            }
            div.scroll { table {
                tr { th { "" } th.num { "dense" } th.num { "pruned" } th.num { "kept" } th.grow { "" } }
                (count("multiply-adds, blocks", b.prunable, blocks))
                (count("multiply-adds, whole model", b.whole_before, b.whole_after))
                (count("parameters", r.size.parameters_before, r.size.parameters_after))
                @if let Some(after) = r.size.bytes_after { (count("bytes", r.size.bytes_before, after)) }
                @for ((name, before), (_, after)) in r.parts.before.named().iter().zip(r.parts.after.named()) {
                    @if before.bytes > 0 { (count(&format!("bytes, {name}"), before.bytes, after.bytes)) }
                }
                @if let Some(latency) = &r.latency {
                    @if let Some(dense) = &latency.timing.b {
                        (row(
                            "latency (median)",
                            format!("{:.2} ms", dense.median),
                            format!("{:.2} ms", latency.timing.a.median),
                            latency.timing.a.median / dense.median.max(1e-9),
                        ))
                    }
                }
            } }
            @if !r.limits.is_empty() {
                br;
                div.scroll { table {
                    tr { th { "limit" } th.num { "asked" } th.num { "got" } th.num { "the least possible" } }
                    @for limit in &r.limits {
                        tr {
                            td { code { "--" (limit.asked.option()) } }
                            td.num { (limit.asked.amount()) }
                            td.num { (limit.got.amount()) }
                            td.num { (limit.least.amount()) }
                        }
                    }
                } }
            }
            @if !r.channels.is_empty() {
                p.cap style="margin-top:10px" {
                    "Channels that are left inside heads: "
                    (r.channels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")) "."
                }
            }
            @for pass in &r.lossless {
                p.cap style="margin-top:10px" { "The same outputs for less work: " (pass.what) "." }
            }
            @if let Some(latency) = &r.latency {
                p.cap style="margin-top:10px" {
                    "Latency at batch " (latency.batch)
                    @if let Some(seq) = latency.seq { ", " (seq) " tokens" }
                    ": " (latency.timing.runs) " runs of each model in turns; the median speed-up is known to "
                    (format!("{:.1}%", 100.0 * latency.timing.noise)) "."
                }
            }
        }
    }
}

fn number(r: &Report, option: &str) -> String {
    r.options
        .get(option)
        .map_or_else(String::new, ToString::to_string)
}

/// How far the outputs are from the dense model's.
pub(super) fn held_out(r: &Report) -> Markup {
    let Some(held) = &r.held_out else {
        return html! {};
    };
    let text = |value: Option<f64>, how: fn(f64) -> String| value.map_or_else(|| "–".into(), how);
    html! {
        section {
            h2 { "Against the dense model" }
            p.why {
                "Both models on " (held.samples) " samples that were kept apart. Same answer and KL divergence (in nats) "
                "where an output looks like classes; the relative squared error is the mean squared difference by the variance."
            }
            div.scroll { table.sortable {
                thead { tr {
                    th { "output" } th.num { "same answer" } th.num { "KL" } th.num { "cosine" }
                    th.num { "relative squared error" } th.num { "largest difference" }
                } }
                tbody { @for o in &held.outputs {
                    tr {
                        td.name { code { (o.name) } }
                        td.num { (text(o.agreement, percent)) }
                        td.num { (text(o.kl, short)) }
                        td.num { (text(o.cosine, |c| format!("{c:.4}"))) }
                        td.num { (short(o.relative_squared)) }
                        td.num { (short(o.max)) }
                    }
                } }
            } }
            @if let Some(e) = &r.equality {
                p.cap style="margin-top:10px" {
                    "Sliced equals masked: the file computes what the masked model computes, to "
                    (short(e.worst())) " (accepted " (short(e.tolerance)) ", " (e.samples) " samples). "
                    @match &r.kernels {
                        Some(k) if k.more.is_empty() => { "The runtime fuses the pruned model like the dense one." }
                        Some(k) => { "After the runtime's optimisations there are more of: " (k.more.join(", ")) "." }
                        None => { "The runtime's fusions were not checked (needs onnxruntime)." }
                    }
                }
            }
        }
    }
}

/// What could not be pruned.
pub(super) fn frozen(r: &Report) -> Markup {
    html! {
        section {
            h2 { "What was not pruned, and why" }
            @if r.frozen.is_empty() && r.unsupported.is_empty() {
                p.why style="margin:0" { "Every axis with a weight on both sides could be pruned." }
            } @else {
                p.why { "Axes that have weights on both sides and keep their size all the same." }
                div.scroll { table.sortable {
                    thead { tr { th { "axis" } th.num { "units" } th { "reason" } } }
                    tbody { @for f in &r.frozen {
                        tr { td.name { code { (f.name) } } td.num { (f.units) } td { (f.why) } }
                    }
                    @for (op, count) in &r.unsupported {
                        tr {
                            td.name { code { (op) } } td.num { (count) "×" }
                            td { "an operator without a rule: what it touches keeps its size" }
                        }
                    } }
                } }
            }
        }
    }
}

/// What the user should know.
pub(super) fn notes(r: &Report) -> Markup {
    html! {
        @if !r.notes.is_empty() {
            section {
                h2 { "Good to know" }
                @for note in &r.notes { p.note { (note) } }
            }
        }
    }
}

/// What the run could not do, and what that costs.
pub(super) fn warnings(r: &Report) -> Markup {
    html! {
        @if !r.warnings.is_empty() {
            section {
                h2 { "What could not be done" }
                @for warning in &r.warnings {
                    p.note { strong { (warning.name) } ": " (warning.text) }
                }
            }
        }
    }
}

/// How to repeat the run.
pub(super) fn again(r: &Report) -> Markup {
    let total: f64 = r.seconds.iter().map(|(_, s)| s).sum();
    let stages: Vec<String> = r
        .seconds
        .iter()
        .filter(|(_, s)| *s >= 0.05)
        .map(|(name, s)| format!("{name} {s:.1}"))
        .collect();
    html! {
        section {
            h2 { "The same again" }
            p.why {
                "The same input, options, seed, engine version and number of threads give the same bytes. "
                "The file itself holds its mask: " code { "--mask" } " takes a pruned model."
            }
            pre { (r.command) }
            dl {
                dt { "tool" } dd { (r.tool) }
                @if let Some(e) = &r.engine {
                    dt { "engine" }
                    dd { (e.name) " " (e.version) " on " (e.device) ", " (e.threads) " threads" }
                }
                dt { "seed" } dd { (number(r, "seed")) }
                dt { "input" } dd { (r.input) br; code { (r.input_sha256) } }
                @if let Some(c) = &r.calibration {
                    @for file in &c.files {
                        dt { "data" } dd { (file.path.display()) br; code { (file.sha256) } }
                    }
                    dt { "samples" } dd { (c.samples) " (" (c.tokens) " tokens or rows), " (c.held_out) " more held out" }
                }
                dt { "time" } dd { (format!("{total:.1} s: ")) (stages.join(", ")) }
                dt { "options" }
                dd.mono {
                    @for (name, value) in r.options.iter().filter(|(_, v)| !v.is_null()) {
                        (name) "=" (value.as_str().map_or_else(|| value.to_string(), str::to_owned)) " "
                    }
                }
            }
        }
    }
}

/// A line per report.
pub(super) fn several(reports: &[Report]) -> Markup {
    let agreement = |r: &Report| {
        let outputs = r.held_out.iter().flat_map(|h| &h.outputs);
        outputs.into_iter().find_map(|o| o.agreement)
    };
    html! {
        section {
            h2 { "All of them" }
            p.why { "Divergence and agreement are on held-out samples, against the dense model." }
            div.scroll { table.sortable {
                thead { tr {
                    th { "file" } th.num { "asked" } th.num { "got" } th.num { "parameters" } th.num { "bytes" }
                    th.num { "speed" } th.num { "same answer" } th.num { "divergence" }
                } }
                tbody { @for r in reports {
                    tr {
                        td.name { (r.output.as_deref().map_or("(not written)", file_name)) }
                        td.num { (percent(r.budget.asked)) }
                        td.num { (percent(r.budget.got)) }
                        td.num { (human(r.size.parameters_after)) }
                        td.num { (r.size.bytes_after.map_or_else(|| "–".into(), human)) }
                        td.num {
                            (r.latency.as_ref().and_then(|l| l.timing.speedup)
                                .map_or_else(|| "–".into(), |s| format!("{:.2}×", s.median)))
                        }
                        td.num { (agreement(r).map_or_else(|| "–".into(), percent)) }
                        td.num { (r.held_out.as_ref().map_or_else(|| "–".into(), |h| short(divergence(h)))) }
                    }
                } }
            } }
        }
    }
}
