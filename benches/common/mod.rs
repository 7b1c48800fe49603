//! What the benches print besides criterion's times: a ratio to something that any
//! machine can measure, with the bar that it should keep to.
#![allow(dead_code)]

use std::time::Instant;

/// Seconds that `f` takes.
pub fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// The best of several runs of both, in turns, so that a busy machine slows both.
pub fn best(runs: usize, mut own: impl FnMut() -> f64, mut other: impl FnMut() -> f64) -> (f64, f64) {
    (0..runs).fold((f64::INFINITY, f64::INFINITY), |(a, b), _| {
        (a.min(own()), b.min(other()))
    })
}

/// Prints a ratio; `bar` says which side of it is good, as in `at most 2.00`.
pub fn say(what: &str, ratio: f64, bar: &str) {
    println!("{what}; ratio: {ratio:.2} (bar {bar})");
}
