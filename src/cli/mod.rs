//! Arguments of the command line, turned into [`Options`].

mod calibrate;
mod inspect;
mod output;

use std::path::PathBuf;

pub use calibrate::{CalibrateArgs, MergeArgs};
pub use inspect::{BenchArgs, CompareArgs, InspectArgs};
pub use output::{ProgressKind, TalkArgs};

use clap::{Args, Parser, Subcommand};

use crate::budget::Target;
use crate::data::DataOptions;
use crate::engine::{Device, EngineChoice, EngineOptions};
use crate::numerics::score::kcm::Normalise;
use crate::options::{DEFAULT_FLOPS, Effort, Method, Options, Reconstruct, Target as Kind};
use crate::{Error, Result};

/// Prune a trained transformer in an ONNX file: no labels, no gradients, no
/// training framework.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-prune",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = "\
Examples:
  onnx-prune bert.onnx small.onnx --flops 0.6 --data texts.txt --tokenizer tokenizer.json
      keeps 60% of the work of the prunable blocks; texts without labels calibrate it
  onnx-prune vit.onnx small.onnx --flops 0.5 --data images.npz
      arrays by the names of the graph's inputs, samples along the first axis
  onnx-prune model.onnx small.onnx --flops 0.7
      no data at all: synthetic inputs (a little worse, not much)
  onnx-prune inspect model.onnx
      what can be pruned, what cannot, and why
  onnx-prune compare small.onnx model.onnx --data images.npz
      how far apart two models are
  onnx-prune bench small.onnx model.onnx --batch 8 --seq 128
      how much faster one is, measured in turns
  onnx-prune model.onnx small.onnx --report report.html
      one file to look at: what was asked, what was got, what is left where

Exit codes: 0 written; 1 the budget or a verification was not met; 2 bad input
or usage; 3 nothing can be pruned; 4 an engine or device is missing or refuses
the model; 5 reading or writing failed; 130 interrupted."
)]
pub struct Cli {
    /// What to do instead of pruning.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Pruning.
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// Other things to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what can be pruned in a model, what cannot, and why.
    Inspect(InspectArgs),
    /// Run two models on the same inputs and show how far apart they are.
    Compare(CompareArgs),
    /// Measure the latency of a model, or of two in turns.
    Bench(BenchArgs),
    /// Write the statistics of some inputs to a file, to be added up with others
    /// (`merge`) and used with --stats.
    Calibrate(CalibrateArgs),
    /// Add up files of statistics of one model.
    Merge(MergeArgs),
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Arguments of pruning.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The trained model and where the smaller one goes. The model is never
    /// changed; the output appears whole or not at all. With --out-dir, all of
    /// them are models that share weights.
    #[arg(required = true, num_args = 1.., value_names = ["IN.onnx", "OUT.onnx"])]
    pub files: Vec<PathBuf>,
    /// Prune several models that hold the same weights (encoder, decoder, decoder
    /// with past) with one mask for what they share, into this folder.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["sweep", "max_drop", "mask", "export_mask"])]
    pub out_dir: Option<PathBuf>,
    /// Several budgets from one calibration: OUT.onnx becomes OUT-0.9.onnx and so
    /// on.
    #[arg(long, value_name = "FRACTION", value_delimiter = ',', conflicts_with_all = ["flops", "max_drop", "mask"])]
    pub sweep: Vec<f64>,
    /// Instead of a budget: the smallest model whose divergence from the dense one
    /// on held-out samples stays within this (KL in nats for classes, 1 - cosine
    /// for embeddings, else the relative squared error).
    #[arg(long, value_name = "X", conflicts_with = "flops")]
    pub max_drop: Option<f64>,
    /// A shell command that prints a number for a candidate file ({} is its path),
    /// in place of the divergence: less is better, --max-drop is the most.
    #[arg(long, value_name = "COMMAND", requires = "max_drop")]
    pub eval: Option<String>,
    /// Instead of a ranking: a mask from elsewhere (.json, or .npz / .npy with
    /// head_mask and neuron_mask of layers x units, or the .onnx that an earlier
    /// run wrote).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["flops", "max_drop"])]
    pub mask: Option<PathBuf>,
    /// Write the mask (.json, .npz). Heads then keep all their channels, of which a mask
    /// says nothing.
    #[arg(long, value_name = "FILE")]
    pub export_mask: Option<PathBuf>,
    /// Graph outputs that count when damage is measured; all when not given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub outputs: Vec<String>,
    /// How much time measurements may take: `high` runs eight times the samples.
    #[arg(long, value_enum, default_value_t = Effort::Normal)]
    pub effort: Effort,
    /// Fraction of the prunable blocks' multiply-accumulates to keep (0.6 when
    /// nothing else is asked for). The prunable blocks are what vanishes when all
    /// groups are empty: attention and feed-forward sublayers.
    #[arg(long, value_name = "FRACTION")]
    pub flops: Option<f64>,
    /// Fraction of the prunable blocks' parameters to keep. With other budgets:
    /// all must hold.
    #[arg(long, value_name = "FRACTION", value_parser = Target::parameters, conflicts_with_all = ["sweep", "max_drop", "mask", "out_dir"])]
    pub params: Option<Target>,
    /// Most bytes of the written file, as in 25MB or 24MiB. With other budgets:
    /// all must hold.
    #[arg(long, value_name = "BYTES", value_parser = Target::size, conflicts_with_all = ["sweep", "max_drop", "mask", "out_dir"])]
    pub size: Option<Target>,
    /// Most latency of the result at --batch and --seq: a fraction of the dense
    /// model's, or a time as in 12ms. Measured with the chosen engine, device and
    /// threads. With other budgets: all must hold.
    #[arg(long, value_name = "FRACTION|TIME", value_parser = Target::latency, conflicts_with_all = ["sweep", "max_drop", "mask", "out_dir", "speedup"])]
    pub latency: Option<Target>,
    /// The same as a speed-up: 2x is half of the latency.
    #[arg(long, value_name = "TIMES", value_parser = Target::speedup, conflicts_with_all = ["sweep", "max_drop", "mask", "out_dir"])]
    pub speedup: Option<Target>,
    /// The file that keeps tables of measured latencies.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub latency_cache: Option<PathBuf>,
    /// Keep neurons in multiples of this (or all of a group). Without it: of 8 on
    /// a CPU, of 64 on CUDA, of less where a group has few.
    #[arg(long, value_name = "N", conflicts_with_all = ["mask", "out_dir"])]
    pub align: Option<usize>,
    /// Leave out the passes that change what a model costs and not what it
    /// computes: work for positions that no output reads, dead branches.
    #[arg(long, overrides_with = "lossless")]
    pub no_lossless: bool,
    /// Have these passes (the default).
    #[arg(long, hide = true)]
    pub lossless: bool,
    /// Keep all channels inside attention heads. Otherwise heads lose some, of values and
    /// of queries with their keys, where that does less harm than units do.
    #[arg(long, conflicts_with_all = ["mask", "out_dir"])]
    pub no_narrow: bool,
    /// Also remove units that are constant on all calibration inputs; a bias
    /// takes up what they add.
    #[arg(long, conflicts_with_all = ["mask", "out_dir"])]
    pub fold_constant: bool,
    /// Do not time the result against the dense model.
    #[arg(long, hide_short_help = true)]
    pub no_timing: bool,
    /// How units are ranked.
    #[arg(long, value_enum, default_value_t = Method::Obs)]
    pub method: Method,
    /// How the remaining weights are re-fitted.
    #[arg(long, value_enum, default_value_t = Reconstruct::Auto)]
    pub reconstruct: Reconstruct,
    /// What may be pruned.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Heads, Kind::Neurons])]
    pub targets: Vec<Kind>,
    /// Leave groups alone whose name matches (regular expression; see `inspect`).
    #[arg(long, value_name = "REGEX")]
    pub exclude: Vec<String>,
    /// Every group keeps at least this many units; with 0, whole sublayers may go.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_units: usize,
    /// How axes may shrink.
    #[command(flatten)]
    pub axes: AxesArgs,
    /// Tell what would be done; write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Put tensors into a side file beside the model.
    #[arg(long)]
    pub external_data: bool,
    /// Write a machine-readable report of everything here (`-`: standard output,
    /// and the summary goes to standard error).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report to be looked at: one HTML file with pictures, readable
    /// without a network.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Instead of calibrating: statistics of this model that `calibrate` or
    /// `merge` wrote. With --data too (best other inputs than those), damage is
    /// measured and weights are re-fitted layer after layer as ever; without,
    /// local errors stand in.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "out_dir")]
    pub stats: Option<PathBuf>,
    /// Ridge of obs and re-fitting, as a fraction of the mean variance.
    #[arg(long, value_name = "X", default_value_t = crate::numerics::score::DEFAULT_DAMP, hide_short_help = true)]
    pub damp: f64,
    /// Samples that damage is measured on. Without it: as many as take a few dense
    /// passes over all samples, 8 to 128.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub probe: Option<usize>,
    /// Re-fit only the layers that lose inputs, not the ones between them.
    #[arg(long, hide_short_help = true)]
    pub refit_sinks_only: bool,
    /// kcm: width of the Gaussian kernel.
    #[arg(long, value_name = "X", default_value_t = 1.0, hide_short_help = true)]
    pub kcm_sigma: f64,
    /// kcm: stop when the coefficients change by less than this fraction.
    #[arg(long, value_name = "X", default_value_t = 0.01, hide_short_help = true)]
    pub kcm_alpha: f64,
    /// kcm: most iterations.
    #[arg(long, value_name = "N", default_value_t = 100, hide_short_help = true)]
    pub kcm_iterations: usize,
    /// kcm: how the two scores are made comparable.
    #[arg(long, value_enum, default_value_t = Normalise::default(), hide_short_help = true)]
    pub kcm_normalise: Normalise,
    /// How much is said.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// Calibration inputs.
    #[command(flatten)]
    pub data: DataArgs,
    /// Engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What may become of the model's interface.
#[derive(Debug, Clone, Copy, Args)]
pub struct AxesArgs {
    /// Let inputs and outputs shrink too (the caches of a decoder); without it,
    /// the output file is a drop-in replacement.
    #[arg(long)]
    pub change_interface: bool,
    /// Keep the same number of key/value heads in every layer, as runtimes with
    /// one cache size want; which ones is up to each layer.
    #[arg(long)]
    pub uniform_kv: bool,
}

impl AxesArgs {
    /// As the analysis takes them.
    pub fn options(self) -> crate::axes::Options {
        crate::axes::Options {
            change_interface: self.change_interface,
            uniform_kv: self.uniform_kv,
            own_rules: &[],
        }
    }
}

/// Where inputs come from.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Inputs without labels: .npz files (arrays by input name), a folder of
    /// them, ONNX test data sets, or texts (.txt, .jsonl, .tsv, .csv) together
    /// with --tokenizer. Without it, synthetic inputs are made.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// tokenizer.json (or the folder with it), for texts.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// One or two columns with text, by name or number from 0.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub text_column: Vec<String>,
    /// Texts are cut to this many tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_length: usize,
    /// How many samples to take.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub samples: usize,
    /// Seed of sampling and of synthetic inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Leave texts as they are. Otherwise two thirds of them are joined with one or
    /// two others, where all together have at most --max-length tokens.
    #[arg(long)]
    pub no_join: bool,
    /// Shape of an input whose axes the graph leaves open, as in
    /// pixel_values=1,3,224,224.
    #[arg(long, value_name = "NAME=DIMS")]
    pub shape: Vec<String>,
    /// Batch size that costs are computed for.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Sequence length that costs are computed for, and the longest synthetic
    /// sequence.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub seq: usize,
}

/// What runs the model.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// Which engine: onnxruntime where it is found, else the built-in tract.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// Where it runs; cuda is an error where CUDA does not really work.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Threads; all cores when not given.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// The onnxruntime library, or a folder that holds it.
    #[arg(long, value_name = "PATH")]
    pub ort_lib: Option<PathBuf>,
}

fn shapes(texts: &[String]) -> Result<Vec<(String, Vec<usize>)>> {
    let mut shapes = Vec::new();
    for text in texts {
        let bad = || {
            Error::input(format!(
                "--shape '{text}': expected NAME=D,D,... as in pixel_values=1,3,224,224"
            ))
        };
        let (name, dims) = text.split_once('=').ok_or_else(bad)?;
        let dims: std::result::Result<Vec<usize>, _> =
            dims.split([',', 'x']).map(|d| d.trim().parse()).collect();
        shapes.push((name.to_string(), dims.map_err(|_| bad())?));
    }
    Ok(shapes)
}

/// What the command line asks for where it says nothing about inputs.
pub fn data_defaults() -> DataOptions {
    DataOptions {
        batch: 1,
        join: true,
        ..DataOptions::default()
    }
}

impl DataArgs {
    /// Checked.
    ///
    /// # Errors
    /// A `--shape` that is not `name=d,d,...`.
    pub fn options(&self) -> Result<DataOptions> {
        Ok(DataOptions {
            given: None,
            data: self.data.clone(),
            tokenizer: self.tokenizer.clone(),
            text_columns: self.text_column.clone(),
            max_length: self.max_length,
            samples: self.samples,
            seed: self.seed,
            shapes: shapes(&self.shape)?,
            batch: self.batch,
            seq: self.seq,
            join: !self.no_join,
        })
    }
}

impl EngineArgs {
    /// As the runtime takes them.
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            engine: self.engine,
            device: self.device,
            threads: self.threads,
            ort_lib: self.ort_lib.clone(),
        }
    }
}

impl PruneArgs {
    /// The budgets, where there is more to them than one fraction of the
    /// multiply-accumulates.
    fn limits(&self) -> Vec<Target> {
        let others = [self.params, self.size, self.latency, self.speedup];
        let others: Vec<Target> = others.into_iter().flatten().collect();
        match others.is_empty() {
            true => Vec::new(),
            false => others.into_iter().chain(self.flops.map(Target::Flops)).collect(),
        }
    }

    /// Checked.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub fn options(&self) -> Result<Options> {
        let exclude = self
            .exclude
            .iter()
            .map(|text| regex::Regex::new(text).map_err(|e| Error::input(format!("--exclude '{text}': {e}"))))
            .collect::<Result<Vec<_>>>()?;
        let options = Options {
            method: self.method,
            flops: self.flops.unwrap_or(DEFAULT_FLOPS),
            limits: self.limits(),
            align: self.align,
            lossless: !self.no_lossless,
            narrow: !self.no_narrow,
            fold_constant: self.fold_constant,
            latency_cache: self.latency_cache.clone(),
            timing: !self.no_timing,
            reconstruct: self.reconstruct,
            targets: self.targets.clone(),
            exclude,
            min_units: self.min_units,
            axes: self.axes.options(),
            data: self.data.options()?,
            engine: self.engine.options(),
            dry_run: self.dry_run,
            external_data: self.external_data,
            damp: self.damp,
            probe: self.probe,
            refit_all: !self.refit_sinks_only,
            kcm_sigma: self.kcm_sigma,
            kcm_alpha: self.kcm_alpha,
            kcm_iterations: self.kcm_iterations,
            kcm_normalise: self.kcm_normalise,
            max_drop: self.max_drop,
            eval: self.eval.clone(),
            mask: self.mask.clone(),
            stats: self.stats.clone(),
            export_mask: self.export_mask.clone(),
            outputs: self.outputs.clone(),
            effort: self.effort,
        };
        options.check()?;
        Ok(options)
    }
}
