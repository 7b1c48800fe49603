//! What is left, layer by layer.

use maud::{Markup, html};

use super::css;
use crate::axes::Kind;
use crate::channels::ChannelSummary;
use crate::report::layers::{kept_of, layers};
use crate::report::{GroupReport, Report};

/// More heads than this are a bar, not squares.
const SQUARES: usize = 32;

/// Bars of heads and neurons per layer; sublayers that are gone are hatched.
pub(super) fn picture(r: &Report) -> Markup {
    let layers = layers(&r.groups);
    let gone = r.groups.iter().filter(|g| g.kept.is_empty()).count();
    let any = |kind: fn(&GroupReport) -> bool| r.groups.iter().any(kind);
    let heads = any(|g| g.kind == Kind::Heads);
    let narrowed = !r.channels.is_empty();
    let neurons = any(|g| g.kind != Kind::Heads);
    html! {
        section {
            h2 { "What is left, layer by layer" }
            p.why {
                "Filled is kept. "
                @if heads { "Each cell is one head, in its own place" @if narrowed { ", filled as far as it keeps its channels" } ". " }
                @match gone {
                    0 => { "No sublayer went as a whole." }
                    1 => { "One sublayer is gone as a whole (hatched)." }
                    n => { (n) " sublayers are gone as a whole (hatched)." }
                }
            }
            p.legend {
                @if heads { span { i.h {} "attention heads" } }
                @if neurons { span { i.n {} "feed-forward neurons" } }
                span { i.t {} "removed" }
            }
            div.layers {
                span.title {} span.title { @if heads { "heads" } } span.title { @if neurons { "neurons" } }
                @for layer in &layers {
                    div.label.single[layer.heads.is_empty() || layer.neurons.is_empty()] { (layer.label) }
                    (half(&layer.heads, &r.channels))
                    (half(&layer.neurons, &r.channels))
                }
            }
        }
    }
}

/// The groups of one kind in one layer.
fn half(groups: &[&GroupReport], channels: &[ChannelSummary]) -> Markup {
    if groups.is_empty() {
        return html! { div.nothing {} };
    }
    let names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
    let (kept, units) = kept_of(groups);
    html! {
        div.part.gone[kept == 0] title=(names.join("\n")) {
            div {
                @for group in groups { (bar(group, share(group, channels))) }
            }
            span.count {
                @if kept == 0 { "removed (" (units) ")" } @else {
                    (kept) " of " (units)
                    @for own in channels.iter().filter(|c| groups.iter().any(|g| g.name == c.group)) {
                        br; (own.after) " of " (own.before) " for " (own.channels.word())
                    }
                }
            }
        }
    }
}

/// The share of the channels of a group's heads that stay: of values, and of queries and
/// keys, half each.
fn share(group: &GroupReport, channels: &[ChannelSummary]) -> f64 {
    let gone = channels.iter().filter(|c| c.group == group.name);
    1.0 - gone
        .map(|c| 0.5 * (1.0 - c.after as f64 / c.before.max(1) as f64))
        .sum::<f64>()
}

fn bar(group: &GroupReport, filled: f64) -> Markup {
    if group.kind == Kind::Heads && group.units <= SQUARES {
        let filled = (filled < 1.0).then(|| css("--filled", filled));
        return html! {
            div.units style=[filled] {
                @for unit in 0..group.units { i.on[group.kept.contains(&unit)] {} }
            }
        };
    }
    let share = group.kept.len() as f64 / group.units.max(1) as f64;
    let colour = if group.kind == Kind::Heads { "h" } else { "n" };
    html! { div.bar { i class=(colour) style=(css("width", share)) {} } }
}
