//! A report to be looked at: one HTML file that needs nothing else and no network, in the
//! reader's light or dark colours, wide or narrow. Its script sorts tables, and that is all.
//!
//! ```text
//! mod      the page and its order
//! tables   sizes, outputs, what keeps its size, how to repeat it
//! layers   what is left, layer by layer
//! charts   damage curves, re-fitting, divergence by budget
//! ```
//!
//! Everything in it is in the JSON report too: this module computes nothing.

mod charts;
mod layers;
mod tables;

use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Report;
use super::terminal::human;
use crate::Result;
use crate::io::staged;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Writes the page of one report or of several (a sweep over budgets, files that
/// were pruned together).
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, reports: &[Report]) -> Result<()> {
    staged::write(path, page(reports).as_bytes())
}

/// The page as text.
pub fn page(reports: &[Report]) -> String {
    let title = reports.first().map_or("nothing", |r| file_name(&r.input));
    let body = match reports {
        [one] => html! {
            (header(one))
            (tables::tiles(one))
            (sections(one))
        },
        several => overview(several),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · onnx-prune" }
                style { (PreEscaped(STYLE)) }
            }
            body { main {
                (body)
                footer { "Every number here is in the JSON report of the same run (" code { "--json" } ")." }
                script { (PreEscaped(SCRIPT)) }
            } }
        }
    };
    page.into_string()
}

fn header(r: &Report) -> Markup {
    html! {
        header {
            p.brand { (r.tool) " · report" }
            h1 {
                (file_name(&r.input)) " "
                span.arrow { "→" } " "
                @match &r.output {
                    Some(path) => (file_name(path)),
                    None => { "nothing written (dry run)" }
                }
            }
            p.lead { (told(r)) }
        }
    }
}

/// What was done, in a sentence.
fn told(r: &Report) -> String {
    let option = |name: &str| {
        let value = r.options.get(name).and_then(serde_json::Value::as_str);
        value.unwrap_or("?").to_owned()
    };
    let mut text = match option("mask").as_str() {
        "?" => format!("Ranked by {}", option("method")),
        mask => format!("Masked by {mask}"),
    };
    text += &match option("reconstruct").as_str() {
        "none" => ", weights left as they were".to_owned(),
        how => format!(", re-fitted ({how})"),
    };
    if let Some(c) = &r.calibration {
        text += &format!(
            ", from {} samples {}",
            c.samples,
            match &c.origin {
                crate::data::DataOrigin::Synthetic { .. } => "that were made up".to_owned(),
                crate::data::DataOrigin::Given => "without labels".to_owned(),
                crate::data::DataOrigin::Files { paths } => {
                    let names: Vec<_> = paths
                        .iter()
                        .map(|p| file_name(&p.to_string_lossy()).to_owned())
                        .collect();
                    format!("of {} without labels", names.join(", "))
                }
            }
        );
    }
    if let Some(e) = &r.engine {
        text += &format!(", on {} {} ({})", e.name, e.version, e.device);
    }
    text + "."
}

fn sections(r: &Report) -> Markup {
    html! {
        (tables::sizes(r))
        (layers::picture(r))
        (tables::held_out(r))
        (charts::tried(r))
        (charts::damage(r))
        (charts::fits(r))
        (tables::frozen(r))
        (tables::warnings(r))
        (tables::notes(r))
        (tables::again(r))
    }
}

fn overview(reports: &[Report]) -> Markup {
    let one_input = reports.windows(2).all(|p| p[0].input == p[1].input);
    let title = reports.first().map_or("", |r| file_name(&r.input));
    html! {
        header {
            p.brand { (reports.first().map_or("", |r| r.tool.as_str())) " · report" }
            @if one_input {
                h1 { (title) " " span.arrow { "→" } " " (reports.len()) " budgets" }
                p.lead { "One calibration, several budgets: what each keeps and what it costs." }
            } @else {
                h1 { (reports.len()) " files, one mask" }
                p.lead { "Files that hold the same weights, pruned together." }
            }
        }
        @if one_input { (charts::pareto(reports)) }
        (tables::several(reports))
        @for r in reports {
            details.one {
                summary {
                    (r.output.as_deref().map_or("not written", file_name)) " "
                    span { "· " (percent(r.budget.got)) " of the blocks, " (human(r.size.parameters_after)) " parameters" }
                }
                (sections(r))
            }
        }
    }
}

/// The last part of a path.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// A small number as a person writes it.
fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "not a number".into(),
        0.0 => "0".into(),
        v if v < 1e-3 => format!("{value:.1e}"),
        v if v < 1.0 => format!("{value:.4}"),
        _ => format!("{value:.2}"),
    }
}

/// A position or a length within its box, for a style attribute.
fn css(name: &str, share: f64) -> String {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    format!("{name}:{:.2}%", 100.0 * share)
}
