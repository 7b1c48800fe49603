//! Prune with inputs that the program makes or holds itself, instead of files.
//!
//!     cargo run --example prune_with_custom_data -- [OUT.onnx]
//!
//! Any source will do (a database, a camera, a simulator): what is needed is one set
//! of input tensors per sample, without labels.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use onnx_prune::data::Samples;
use onnx_prune::progress::Bars;
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{Pruner, Result, report};

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
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits-vit/model.onnx");
    let output = std::env::args().nth(1).unwrap_or_else(|| "small.onnx".into());

    // One sample is one row of every input. The model's `pixel_values` are images of
    // 1 x 8 x 8 between -1 and 1: here, discs of all sizes and places.
    let samples = (0..96).map(|seed| {
        let image = Tensor::f32(vec![1, 1, 8, 8], disc(seed));
        Feeds::from([("pixel_values".to_string(), image)])
    });

    let report = Pruner::new(model)
        .samples(Samples::of_feeds(samples))
        .flops(0.5)
        // Leave the first layer alone: names are those of `onnx-prune inspect`.
        .exclude("layer/0")
        .progress(Arc::new(Bars::new()))
        .prune(&output)?;

    // The report is plain data ...
    for group in &report.groups {
        println!("{:>4} of {:>4} of {}", group.kept.len(), group.units, group.name);
    }
    // ... and has the pictures of the command line, too.
    report::html::write(&Path::new(&output).with_extension("html"), &[report])
}

fn disc(seed: usize) -> Vec<f32> {
    let (x, y) = ((seed % 8) as f32, (seed / 8 % 8) as f32);
    let radius = 1.0 + (seed % 5) as f32;
    let inside = |at: usize| {
        let (dx, dy) = ((at % 8) as f32 - x, (at / 8) as f32 - y);
        (dx * dx + dy * dy).sqrt() < radius
    };
    (0..64).map(|at| if inside(at) { 1.0 } else { -1.0 }).collect()
}
