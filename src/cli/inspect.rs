//! Arguments of `inspect`, `compare` and `bench`.

use std::path::PathBuf;

use clap::Args;

use super::{AxesArgs, DataArgs, EngineArgs, shapes};
use crate::Result;

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    pub input: PathBuf,
    /// How axes may shrink.
    #[command(flatten)]
    pub axes: AxesArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Batch size that costs are computed for.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Sequence length that costs are computed for.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub seq: usize,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The model to judge.
    #[arg(value_name = "A.onnx")]
    pub a: PathBuf,
    /// The model to judge it by.
    #[arg(value_name = "B.onnx")]
    pub b: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Inputs.
    #[command(flatten)]
    pub data: DataArgs,
    /// Engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model.
    #[arg(value_name = "A.onnx")]
    pub a: PathBuf,
    /// The model that it is compared with; both run in turns.
    #[arg(value_name = "B.onnx")]
    pub b: Option<PathBuf>,
    /// Rows of a batch.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Tokens per row, where the model takes tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub seq: usize,
    /// Runs of each model that are counted.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub runs: usize,
    /// Shape of an input whose axes the graph leaves open, as in
    /// pixel_values=1,3,224,224.
    #[arg(long, value_name = "NAME=DIMS")]
    pub shape: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl BenchArgs {
    /// The shapes of inputs.
    ///
    /// # Errors
    /// A `--shape` that is not `name=d,d,...`.
    pub fn shapes(&self) -> Result<Vec<(String, Vec<usize>)>> {
        shapes(&self.shape)
    }
}
