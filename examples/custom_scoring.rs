//! Rank units by a score of one's own, and leave the rest of the run as it is.
//!
//!     cargo run --example custom_scoring -- [OUT.onnx]
//!
//! The score here: how much a unit's inputs vary, times the energy of its weights.
//! Units that hardly vary cost nothing, because the bias takes up their mean.
//!
//! Another engine is plugged in at the same place: anything that implements
//! `onnx_prune::engine::Engine` goes to `pruner.source()?.with_engine(...)`.

use std::path::Path;
use std::process::ExitCode;

use onnx_prune::budget::Goal;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::pipeline::{Planner, Ranked, calibrate, rank, search};
use onnx_prune::rank::Method;
use onnx_prune::refit::Reconstruct;
use onnx_prune::{Error, Pruner, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits-vit");
    let output = std::env::args().nth(1).unwrap_or_else(|| "small.onnx".into());
    let pruner = Pruner::new(fixtures.join("model.onnx"))
        .data([fixtures.join("calibration.npz")])
        // A method whose own scores are cheap, as they are replaced; wanda keeps
        // statistics, which are needed here.
        .method(Method::Wanda)
        .reconstruct(Reconstruct::Local)
        .sample_count(96);

    // The stages of a run, one by one: each takes what the one before it gives.
    let ranked = rank(calibrate(pruner.source()?)?)?;
    let rankings = scores(&ranked)?;
    let ranked = ranked.with_rankings(rankings);
    let output = Path::new(&output);
    let found = search(&Planner::of(&ranked)?, &Goal::flops(0.5), &[output])?;
    let report = found.only(&ranked)?.write(output)?;

    println!(
        "{:.1}% of the work of the blocks is left",
        100.0 * report.budget.got
    );
    for output in report.held_out.iter().flat_map(|h| &h.outputs) {
        println!("'{}': relative error {:.4}", output.name, output.relative_squared);
    }
    Ok(())
}

/// One score per unit; groups are compared, so each is taken by its own mean.
fn scores(ranked: &Ranked) -> Result<Vec<Ranking>> {
    let mut rankings = Vec::new();
    for target in ranked.targets() {
        // A group has one sink in most models: the layer that contracts its axis.
        let site = &target.sites[0];
        let statistics = ranked
            .calibrated
            .statistics
            .sites
            .get(&site.name)
            .ok_or_else(|| Error::input(format!("no statistics of '{}'", site.name)))?;
        let weight = match &site.weight {
            Some(weight) => weight.read(ranked.network())?,
            None => {
                return Err(Error::input(format!(
                    "the weight of '{}' is quantised",
                    site.name
                )));
            }
        };
        let (covariance, tokens) = (statistics.covariance(), statistics.total());
        let of_row = |row: &usize| {
            let energy: f64 = weight.row(*row).iter().map(|w| w * w).sum();
            covariance[(*row, *row)] / tokens * energy
        };
        // A head is several rows of its sink's weight, a neuron is one.
        let units = target.units.rows.iter();
        let raw: Vec<f64> = units.map(|rows| rows.iter().map(of_row).sum()).collect();
        let mean = raw.iter().sum::<f64>() / raw.len().max(1) as f64;
        rankings.push(Ranking::Scores(
            raw.iter().map(|s| s / mean.max(f64::MIN_POSITIVE)).collect(),
        ));
    }
    Ok(rankings)
}
