//! Damage curves, re-fitting, divergence by budget. Lines are inline SVG that is
//! stretched to its box; points and words are placed by percentages, so that they
//! keep their size on any screen.

use maud::{Markup, html};

use super::{css, percent, short};
use crate::axes::Kind;
use crate::report::layers::layers;
use crate::report::terminal::tail;
use crate::report::{DamageCurve, DamageKind, GroupReport, Report};
use crate::verify::divergence;

/// A vertical axis in powers of ten; what lies below its foot is on the foot.
struct Decades {
    low: f64,
    high: f64,
}

impl Decades {
    /// Holds the values above zero, over at most `most` powers of ten.
    fn of(values: impl Iterator<Item = f64>, most: f64) -> Option<Self> {
        let positive: Vec<f64> = values.filter(|v| v.is_finite() && *v > 0.0).collect();
        let top = positive.iter().copied().reduce(f64::max)?;
        let least = positive.iter().copied().reduce(f64::min)?;
        let high = top.log10().ceil().max(top.log10() + 1e-9);
        let low = least.log10().floor().max(high - most).min(high - 1.0);
        Some(Decades { low, high })
    }

    /// From 0 at the foot to 1.
    fn share(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return 0.0;
        }
        ((value.log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// The powers of ten, foot and top among them.
    fn ticks(&self) -> Vec<i32> {
        (self.low.ceil() as i32..=self.high.floor() as i32).collect()
    }
}

/// Points of a polyline in a box of 100 by 100.
fn points(line: &[(f64, f64)]) -> String {
    let point = |(x, y): &(f64, f64)| format!("{:.2},{:.2}", 100.0 * x, 100.0 * (1.0 - y));
    line.iter().map(point).collect::<Vec<_>>().join(" ")
}

/// A line with the area below it, and grid lines.
fn drawn(line: &[(f64, f64)], grid: &[f64], label: &str) -> Markup {
    let ends = line.first().zip(line.last());
    let area = ends.map(|(a, b)| format!("{:.2},100 {} {:.2},100", 100.0 * a.0, points(line), 100.0 * b.0));
    html! {
        svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label=(label) {
            @for y in grid {
                line.grid x1="0" x2="100" y1=(format!("{:.2}", 100.0 * (1.0 - y))) y2=(format!("{:.2}", 100.0 * (1.0 - y))) {}
            }
            @if let Some(area) = area { polygon points=(area) {} }
            polyline points=(points(line)) {}
        }
    }
}

fn kind_class(kind: Kind) -> &'static str {
    match kind {
        Kind::Heads => "heads",
        _ => "neurons",
    }
}

/// The damage curve of each group with the point that was chosen.
pub(super) fn damage(r: &Report) -> Markup {
    // What was chosen is seen, and the top; most of a curve's start need not be.
    let telling = |g: &GroupReport| {
        let curve = g.curve.as_ref()?;
        Some([chosen(g, curve), curve.damage.last().copied().unwrap_or(0.0)])
    };
    let values = r.groups.iter().filter_map(telling).flatten();
    let Some(axis) = Decades::of(values, 7.0) else {
        return html! {};
    };
    let (what, unit) = match r.damage {
        DamageKind::Outputs => (
            "What removing units does to the outputs, measured with forward passes of the re-fitted part",
            "divergence",
        ),
        DamageKind::Sink => ("The relative squared error at the group's own sink", "error"),
        DamageKind::Score => ("The sum of the scores that go", "score"),
    };
    html! {
        section {
            h2 { "What each group could lose, and what it lost" }
            p.why {
                (what) ". The dot is what was chosen: dynamic programming buys the most for the budget. "
                "All pictures have one vertical axis, in powers of ten, so that they can be compared; what lies below its foot is on it."
            }
            p.legend {
                @if r.groups.iter().any(|g| g.kind == Kind::Heads) { span { i.h {} "attention heads" } }
                @if r.groups.iter().any(|g| g.kind != Kind::Heads) { span { i.n {} "feed-forward neurons" } }
            }
            div.curves {
                @for layer in layers(&r.groups) {
                    @for group in layer.heads.iter().chain(&layer.neurons) {
                        (one_curve(group, &layer.label, &axis, unit))
                    }
                }
            }
        }
    }
}

/// The damage at the chosen number of units.
fn chosen(group: &GroupReport, curve: &DamageCurve) -> f64 {
    let removed = group.units - group.kept.len();
    let own = curve.removed.iter().position(|k| *k == removed);
    own.and_then(|at| curve.damage.get(at))
        .copied()
        .unwrap_or(group.damage)
}

fn one_curve(group: &GroupReport, layer: &str, axis: &Decades, unit: &str) -> Markup {
    let Some(curve) = &group.curve else {
        return html! {};
    };
    let units = group.units.max(1) as f64;
    let line: Vec<(f64, f64)> = (curve.removed.iter().zip(&curve.damage))
        .map(|(k, d)| (*k as f64 / units, axis.share(*d)))
        .collect();
    let removed = group.units - group.kept.len();
    let value = chosen(group, curve);
    let grid: Vec<f64> = axis.ticks().iter().map(|t| axis.share(10f64.powi(*t))).collect();
    let dot = format!(
        "{};{}",
        css("left", removed as f64 / units),
        css("bottom", axis.share(value))
    );
    let label = format!("{} of {}: {unit} by units removed", group.kind.noun(), group.name);
    html! {
        div class=(kind_class(group.kind)) title=(group.name) {
            h3 { "layer " (layer) " · " (group.kind.noun()) }
            div.plot {
                (drawn(&line, &grid, &label))
                span.top { "10" sup { (axis.high.round() as i64) } }
                span.foot { "10" sup { (axis.low.round() as i64) } }
                span.dot style=(dot) {}
            }
            div.axis { span { "0" } span { "removed" } span { "100%" } }
            p.cap { (percent(removed as f64 / units)) " removed · " (short(value)) }
        }
    }
}

/// The error of each re-fitted layer, before and after.
pub(super) fn fits(r: &Report) -> Markup {
    let both = r.fitted.iter().flat_map(|f| [f.before, f.after]);
    let Some(axis) = Decades::of(both, 6.0) else {
        return html! {};
    };
    let name = |site: &str| {
        let layer = layers(&r.groups).into_iter().find_map(|l| {
            let mut groups = l.heads.iter().chain(&l.neurons);
            let found = groups.find(|g| site == g.name || site.starts_with(&format!("{}#", g.name)))?;
            Some(format!("layer {} · {}", l.label, found.kind.noun()))
        });
        layer.unwrap_or_else(|| short_label(site))
    };
    html! {
        section {
            h2 { "What re-fitting mends" }
            p.why {
                "Relative squared error of each layer's output with the old weights and with the new ones, in powers of ten. "
                "Layers that keep all their inputs are re-fitted where what arrives there has drifted."
            }
            p.legend { span { i.b {} "as sliced" } span { i.n {} "re-fitted" } }
            div.fits {
                @for f in &r.fitted {
                    div.fit title=(f.site) {
                        span.label { (name(&f.site)) }
                        div.rail {
                            u style=(between(&axis, f.before, f.after)) {}
                            i.b style=(css("left", axis.share(f.before))) {}
                            i.n style=(css("left", axis.share(f.after))) {}
                        }
                        span.num { (short(f.before)) " → " (short(f.after)) }
                    }
                }
            }
        }
    }
}

/// The telling end of a node's label, `'/encoder/layer.0/query/MatMul' (MatMul #3)`.
fn short_label(label: &str) -> String {
    let name = label.split('\'').nth(1).unwrap_or(label).trim_start_matches('/');
    let operator = label
        .rsplit_once('(')
        .and_then(|(_, rest)| rest.split(' ').next());
    let plain = match name.rsplit_once('/') {
        Some((path, last)) if operator.is_some_and(|op| last.starts_with(op)) => path,
        _ => name,
    };
    tail(plain, 25)
}

fn between(axis: &Decades, a: f64, b: f64) -> String {
    let (a, b) = (axis.share(a), axis.share(b));
    format!("{};{}", css("left", a.min(b)), css("width", (a - b).abs()))
}

/// Divergence by what is kept, for a sweep.
pub(super) fn pareto(reports: &[Report]) -> Markup {
    let of = |r: &Report| Some((r.budget.got, divergence(r.held_out.as_ref()?)));
    let found: Vec<(f64, f64)> = reports.iter().filter_map(of).collect();
    front(
        "What is kept against what it costs",
        "Divergence from the dense model on held-out samples, by the share of the blocks' work that is kept. Left and low is good.",
        &found,
    )
}

/// The budgets that a search tried.
pub(super) fn tried(r: &Report) -> Markup {
    let found: Vec<(f64, f64)> = r.tried.iter().map(|p| (p.fraction, p.divergence)).collect();
    front(
        "What the search tried",
        "What was measured for each budget that was tried; the smallest within the bound was taken.",
        &found,
    )
}

fn front(title: &str, why: &str, found: &[(f64, f64)]) -> Markup {
    let mut found: Vec<(f64, f64)> = found.to_vec();
    found.retain(|(x, y)| x.is_finite() && y.is_finite());
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some(axis) = Decades::of(found.iter().map(|(_, y)| *y), 8.0) else {
        return html! {};
    };
    let line: Vec<(f64, f64)> = found.iter().map(|(x, y)| (*x, axis.share(*y))).collect();
    let ticks = axis.ticks();
    let grid: Vec<f64> = ticks.iter().map(|t| axis.share(10f64.powi(*t))).collect();
    html! {
        section {
            h2 { (title) }
            p.why { (why) }
            div.big.neurons {
                div.plot {
                    (drawn(&line, &grid, title))
                    @for (tick, y) in ticks.iter().zip(&grid) {
                        span.y style=(css("bottom", *y)) { "10" sup { (tick) } }
                    }
                    @for ((x, value), (_, y)) in found.iter().zip(&line) {
                        span.dot style={ (css("left", *x)) ";" (css("bottom", *y)) } title={ (percent(*x)) ": " (short(*value)) } {}
                        span.at style={ (css("left", *x)) ";" (css("bottom", *y)) ";transform:translate(9px,-5px)" } { (short(*value)) }
                    }
                }
                div.axis {
                    @for tick in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
                        span style=(css("left", tick)) { (format!("{:.0}%", 100.0 * tick)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_by_their_end() {
        assert_eq!(
            short_label("'/bert/layer.0/query/MatMul' (MatMul #3)"),
            "bert/layer.0/query"
        );
        assert_eq!(short_label("'node_MatMul_128' (MatMul #84)"), "node_MatMul_128");
        assert_eq!(short_label("MatMul #84"), "MatMul #84");
    }

    #[test]
    fn an_axis_holds_all_values_and_zero_lies_on_its_foot() {
        let axis = Decades::of([0.0, 2e-4, 0.3, f64::NAN].into_iter(), 5.0).unwrap();
        assert_eq!((axis.low, axis.high), (-4.0, 0.0));
        assert_eq!(axis.share(0.0), 0.0);
        assert!((axis.share(1e-2) - 0.5).abs() < 1e-12);
        assert_eq!(axis.ticks(), [-4, -3, -2, -1, 0]);
        assert!(Decades::of([0.0, f64::NAN].into_iter(), 5.0).is_none());
        // One value alone still has room.
        let one = Decades::of([1.0].into_iter(), 5.0).unwrap();
        assert!(one.high > one.low && (0.0..=1.0).contains(&one.share(1.0)));
    }
}
