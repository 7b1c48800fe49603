//! Arguments of `calibrate` and `merge`.

use std::path::PathBuf;

use clap::Args;

use super::{AxesArgs, DataArgs, EngineArgs, TalkArgs};
use crate::Result;
use crate::options::Options;

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The trained model.
    #[arg(value_name = "MODEL.onnx")]
    pub input: PathBuf,
    /// Where the statistics go. Until all samples are done they are in FILE.partial
    /// beside it: a run that was stopped goes on from there when it is started again
    /// with the same model, samples and options.
    #[arg(short, long, value_name = "FILE.safetensors")]
    pub output: PathBuf,
    /// How axes may shrink, as it will be asked for when pruning.
    #[command(flatten)]
    pub axes: AxesArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How much is said.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// Inputs.
    #[command(flatten)]
    pub data: DataArgs,
    /// Engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl CalibrateArgs {
    /// Checked.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn options(&self) -> Result<Options> {
        Ok(Options {
            axes: self.axes.options(),
            data: self.data.options()?,
            engine: self.engine.options(),
            ..Options::default()
        })
    }
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Files of statistics of one model.
    #[arg(required = true, value_name = "FILE.safetensors")]
    pub inputs: Vec<PathBuf>,
    /// Where the sum goes.
    #[arg(short, long, value_name = "FILE.safetensors")]
    pub output: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
