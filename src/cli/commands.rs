//! Pruning and the other things to do, with their arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::options::{args, named, read};
use super::output::Talk;
use crate::pipeline::{Options, Topic};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  onnx-prune bert.onnx small.onnx --flops 0.6 --data texts.txt --tokenizer tokenizer.json
      keep 60% of the work of the prunable blocks, calibrated on unlabelled texts
  onnx-prune vit.onnx small.onnx --flops 0.5 --data images.npz
      arrays by the names of the graph's inputs, samples along the first axis
  onnx-prune model.onnx small.onnx --flops 0.7
      without data: synthetic inputs, at some cost in quality
  onnx-prune minilm/ small/ --flops 0.6 --data texts.txt
      a folder as its loader reads it, for the same loader
  onnx-prune inspect model.onnx
      what can be pruned, what cannot, and why
  onnx-prune compare small.onnx model.onnx --data images.npz
      how far apart two models are
  onnx-prune bench small.onnx model.onnx --batch 8 --seq 128
      how much faster one is than the other, measured in alternation
  onnx-prune model.onnx small.onnx --report report.html
      an HTML report: the goal, the result, and what is left in each layer

Exit codes: 0 written; 1 the budget or a verification was not met; 2 bad input
or usage; 3 nothing can be pruned; 4 an engine or device is missing or refuses
the model; 5 reading or writing failed; 6 a warning under --strict; 130 interrupted.";

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// What one starts with.
    Help,
    /// Prune.
    Prune(Box<Prune>),
    /// Show what can be pruned.
    Inspect(Inspect),
    /// Run two models on the same inputs.
    Compare(Compare),
    /// Measure latency.
    Bench(Bench),
    /// Write the statistics of some inputs.
    Calibrate(Calibrate),
    /// Add up statistics.
    Merge(Merge),
    /// Print shell completions.
    Completions(clap_complete::Shell),
    /// Print the manual page.
    Man,
}

/// What `prune` is told.
#[derive(Debug)]
pub struct Prune {
    /// Input and output, or inputs.
    pub files: Vec<PathBuf>,
    /// Where several models go.
    pub out_dir: Option<PathBuf>,
    /// Several budgets from one calibration.
    pub sweep: Vec<f64>,
    /// Where a machine-readable report goes; `-` is standard output.
    pub json: Option<PathBuf>,
    /// Where a page to look at goes.
    pub report: Option<PathBuf>,
    /// How much is said.
    pub talk: Talk,
    /// The options.
    pub options: Options,
}

/// What `inspect` is told.
#[derive(Debug)]
pub struct Inspect {
    /// The model.
    pub input: PathBuf,
    /// Print JSON.
    pub json: bool,
    /// The options.
    pub options: Options,
}

/// What `compare` is told.
#[derive(Debug)]
pub struct Compare {
    /// The model to judge.
    pub a: PathBuf,
    /// The model to judge it by.
    pub b: PathBuf,
    /// Print JSON.
    pub json: bool,
    /// The options.
    pub options: Options,
}

/// What `bench` is told.
#[derive(Debug)]
pub struct Bench {
    /// The model.
    pub a: PathBuf,
    /// The model that it is compared with; both run in turns.
    pub b: Option<PathBuf>,
    /// Number of timed runs per model.
    pub runs: usize,
    /// Print JSON.
    pub json: bool,
    /// The options.
    pub options: Options,
}

/// What `calibrate` is told.
#[derive(Debug)]
pub struct Calibrate {
    /// Samples that go into the file.
    pub keep_samples: usize,
    /// The trained model.
    pub input: PathBuf,
    /// Where the statistics go.
    pub output: PathBuf,
    /// Print JSON.
    pub json: bool,
    /// How much is said.
    pub talk: Talk,
    /// The options.
    pub options: Options,
}

/// What `merge` is told.
#[derive(Debug)]
pub struct Merge {
    /// Files of statistics of one model.
    pub inputs: Vec<PathBuf>,
    /// Where the sum goes.
    pub output: PathBuf,
    /// Print JSON.
    pub json: bool,
}

fn path(id: &'static str, name: &'static str, help: &'static str) -> Arg {
    Arg::new(id)
        .value_name(name)
        .value_parser(value_parser!(PathBuf))
        .help(help)
}

fn json() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON")
}

/// The whole command line.
pub fn command() -> clap::Command {
    let budgets = ["params", "size", "latency", "speedup"];
    let prune = clap::Command::new("onnx-prune")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Prune a trained transformer in an ONNX file: no labels, no gradients, no training framework")
        .after_long_help(EXAMPLES)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(
            Arg::new("files")
                .value_names(["IN.onnx", "OUT.onnx"])
                .value_parser(value_parser!(PathBuf))
                .required(true)
                .num_args(1..)
                .help("The trained model and where the smaller one goes")
                .long_help(
                    "The trained model and where the smaller one goes, or the folder that a loader reads (Optimum, \
                     sentence-transformers, transformers.js, onnxruntime-genai) and a new one: every model in it is \
                     pruned, configurations are brought up to date, all else is copied. The input is never changed; \
                     the output appears whole or not at all. With --out-dir, all of them are models that share weights.",
                ),
        )
        .args(args(&[Topic::Budget]))
        .arg(
            Arg::new("sweep")
                .long("sweep")
                .value_name("FRACTION")
                .value_delimiter(',')
                .value_parser(value_parser!(f64))
                .conflicts_with_all(["flops", "max-drop", "mask", "out-dir"])
                .conflicts_with_all(budgets)
                .help_heading(Topic::Budget.title())
                .help("Several budgets from one calibration: OUT.onnx becomes OUT-0.9.onnx and so on"),
        )
        .args(args(&[Topic::Pruning, Topic::Data, Topic::Engine, Topic::Output]))
        .arg(
            path("out-dir", "FOLDER", "Prune several models that hold the same weights into this folder")
                .long("out-dir")
                .long_help(
                    "Prune several models that hold the same weights (encoder, decoder, decoder with past) with one \
                     plan for what they share, into this folder.",
                )
                .conflicts_with_all(["mask", "export-mask"])
                .help_heading(Topic::Output.title()),
        )
        .arg(
            path("json", "FILE", "Write a machine-readable report (`-`: standard output)")
                .long("json")
                .long_help(
                    "Write a machine-readable report of everything here (`-`: standard output, and the summary goes to \
                     standard error).",
                )
                .help_heading(Topic::Output.title()),
        )
        .arg(
            path("report", "FILE.html", "Write an HTML report: one self-contained page with pictures")
                .long("report")
                .help_heading(Topic::Output.title()),
        )
        .args(Talk::args().map(|arg| arg.help_heading(Topic::Output.title())))
        .args(args(&[Topic::Tuning]));
    prune.subcommands(others())
}

fn others() -> [clap::Command; 7] {
    [
        clap::Command::new("inspect")
            .about("Show what can be pruned in a model, what cannot, and why")
            .arg(path("input", "MODEL.onnx", "The model").required(true))
            .args(named(&["change-interface", "uniform-kv"]))
            .args(args(&[Topic::Data, Topic::Engine]).filter(|a| a.get_id() != "stats"))
            .arg(json()),
        clap::Command::new("compare")
            .about("Run two models on the same inputs and show how far apart they are")
            .arg(path("a", "A.onnx", "The model to judge").required(true))
            .arg(path("b", "B.onnx", "The model to judge it by").required(true))
            .args(args(&[Topic::Data, Topic::Engine]).filter(|a| a.get_id() != "stats"))
            .arg(json()),
        clap::Command::new("bench")
            .about("Measure the latency of a model, or compare two")
            .arg(path("a", "A.onnx", "The model").required(true))
            .arg(path("b", "B.onnx", "The model that it is compared with; both run in turns"))
            .arg(
                Arg::new("runs")
                    .long("runs")
                    .value_name("N")
                    .default_value("50")
                    .value_parser(value_parser!(usize))
                    .help("Number of timed runs per model"),
            )
            .args(named(&["batch", "seq", "shape"]))
            .args(args(&[Topic::Engine]))
            .arg(json()),
        clap::Command::new("calibrate")
            .about("Write calibration statistics to a file, to be merged and used with --stats")
            .arg(path("input", "MODEL.onnx", "The trained model").required(true))
            .arg(output().long_help(
                "Where the statistics go. Until all samples are done they are in FILE.partial beside it: a run that \
                 was stopped resumes there when it is started again with the same model, samples and options.",
            ))
            .arg(
                Arg::new("keep-samples")
                    .long("keep-samples")
                    .value_name("N")
                    .default_value("288")
                    .value_parser(value_parser!(usize))
                    .help("Samples that go into the file, for what sums do not tell")
                    .long_help(
                        "Samples that go into the file, drawn at random: a run with --stats alone measures damage \
                         and re-fits layers in order on them. Merged files hold those of all, at most 576. With 0 \
                         such a run is much worse.",
                    ),
            )
            .args(named(&["change-interface", "uniform-kv"]))
            .args(args(&[Topic::Data, Topic::Engine]).filter(|a| a.get_id() != "stats"))
            .args(Talk::args())
            .arg(json()),
        clap::Command::new("merge")
            .about("Merge statistics files of one model")
            .arg(
                path("inputs", "FILE.safetensors", "Files of statistics of one model")
                    .required(true)
                    .num_args(1..),
            )
            .arg(output())
            .arg(json()),
        clap::Command::new("completions")
            .about("Print shell completions")
            .arg(
                Arg::new("shell")
                    .required(true)
                    .value_parser(value_parser!(clap_complete::Shell)),
            ),
        clap::Command::new("man").about("Print the manual page"),
    ]
}

fn output() -> Arg {
    path("output", "FILE.safetensors", "Where the statistics go")
        .short('o')
        .long("output")
        .required(true)
}

/// What the words of a command line ask for.
///
/// # Errors
/// As clap tells them; options that cannot be, by [`Error`].
pub fn parse(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, Wrong> {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    if matches!(&words[..], [_, only] if only == "-h") {
        return Ok(Command::Help);
    }
    let matches = command().try_get_matches_from(words).map_err(Wrong::Usage)?;
    asked(&matches).map_err(Wrong::Option)
}

/// What `-h` alone prints: what one starts with, on one screen.
pub const SHORT_HELP: &str = "\
Make a trained transformer smaller and faster, from its ONNX file alone.

Usage: onnx-prune IN.onnx OUT.onnx [OPTIONS]
       onnx-prune FOLDER OUT_FOLDER [OPTIONS]
       onnx-prune COMMAND ...

How small (several are limits that all hold; 0.6 of the FLOPs if none is given):
  --flops FRACTION       of the multiply-adds of the prunable blocks
  --params FRACTION      of their parameters
  --size BYTES           of the written file, such as 25MB
  --speedup TIMES        such as 2x, measured here (--latency TIME or FRACTION)
  --max-drop X           instead: as small as this divergence from dense allows
  --sweep FRACTIONS      several files from one calibration, such as 0.8,0.6,0.4

Inputs without labels, which make a far better model than none:
  --data PATH...         .npz by input name, or .txt, .tsv, .csv, .jsonl texts
  --tokenizer PATH       for texts: tokenizer.json, or the folder that holds it
  --text-column NAME     for tables: the column of texts

What is pruned:
  --exclude REGEX        leave these alone, such as 'block 0 '
  --align N              keep multiples of N, for kernels that like them
  --effort high          measure longer, for a somewhat better model

Where, and what is told:
  --engine, --device     auto, ort or tract; auto, cpu or cuda
  --threads N            threads that compute
  --json, --report FILE  a report for programs, a page to look at
  --dry-run              write nothing
  -v, -q                 say more, say nothing

Commands:
  inspect MODEL.onnx     what can be pruned, what cannot, and why
  compare A.onnx B.onnx  how far apart two models are on the same inputs
  bench A.onnx [B.onnx]  how fast a model is, or how much faster than another

All options and commands, with examples: onnx-prune --help
";

/// What is wrong with a command line.
#[derive(Debug)]
pub enum Wrong {
    /// Its words; help and version are told so too.
    Usage(clap::Error),
    /// What they ask for.
    Option(Error),
}

fn asked(matches: &ArgMatches) -> Result<Command> {
    let one = |m: &ArgMatches, id: &str| m.get_one::<PathBuf>(id).cloned();
    let need = |m: &ArgMatches, id: &str| one(m, id).ok_or_else(|| Error::input(format!("{id} is missing")));
    let all = |m: &ArgMatches, id: &str| m.get_many(id).into_iter().flatten().cloned().collect();
    Ok(match matches.subcommand() {
        Some(("inspect", m)) => Command::Inspect(Inspect {
            input: need(m, "input")?,
            json: m.get_flag("json"),
            options: read(m)?,
        }),
        Some(("compare", m)) => Command::Compare(Compare {
            a: need(m, "a")?,
            b: need(m, "b")?,
            json: m.get_flag("json"),
            options: read(m)?,
        }),
        Some(("bench", m)) => Command::Bench(Bench {
            a: need(m, "a")?,
            b: one(m, "b"),
            runs: m.get_one("runs").copied().unwrap_or(50),
            json: m.get_flag("json"),
            options: read(m)?,
        }),
        Some(("calibrate", m)) => Command::Calibrate(Calibrate {
            keep_samples: m.get_one("keep-samples").copied().unwrap_or_default(),
            input: need(m, "input")?,
            output: need(m, "output")?,
            json: m.get_flag("json"),
            talk: Talk::of(m),
            options: read(m)?,
        }),
        Some(("merge", m)) => Command::Merge(Merge {
            inputs: all(m, "inputs"),
            output: need(m, "output")?,
            json: m.get_flag("json"),
        }),
        Some(("completions", m)) => {
            let shell = m.get_one("shell").copied();
            Command::Completions(shell.ok_or_else(|| Error::input("the shell is missing"))?)
        }
        Some(("man", _)) => Command::Man,
        _ => Command::Prune(Box::new(Prune {
            files: all(matches, "files"),
            out_dir: one(matches, "out-dir"),
            sweep: matches.get_many("sweep").into_iter().flatten().copied().collect(),
            json: one(matches, "json"),
            report: one(matches, "report"),
            talk: Talk::of(matches),
            options: read(matches)?,
        })),
    })
}

/// The command that is meant by a word that is neither a command nor a file.
pub fn meant(word: &Path) -> Option<String> {
    /// Letters that may be wrong.
    const SLIPS: usize = 2;
    let word = word.to_str().filter(|_| !word.exists())?;
    let command = command();
    let names = command.get_subcommands().map(clap::Command::get_name);
    let near = names.map(|name| (strsim::damerau_levenshtein(name, word), name));
    let (slips, name) = near.min()?;
    (slips <= SLIPS).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_help_fits_on_a_screen_and_names_what_there_is() {
        assert!(SHORT_HELP.lines().count() <= 40);
        assert!(SHORT_HELP.lines().all(|line| line.chars().count() <= 80));
        let command = command();
        let known: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
        for word in SHORT_HELP.split(|c: char| !(c.is_ascii_lowercase() || c == '-')) {
            let Some(option) = word.strip_prefix("--") else {
                continue;
            };
            assert!(option == "help" || known.contains(&option), "{option}");
        }
        let asked = parse(["onnx-prune", "-h"]);
        assert!(matches!(asked, Ok(Command::Help)));
        assert!(matches!(
            parse(["onnx-prune", "inspect", "-h"]),
            Err(Wrong::Usage(_))
        ));
    }

    #[test]
    fn a_slip_in_a_command_is_seen() {
        let meant = |word: &str| meant(Path::new(word));
        assert_eq!(meant("inspec").as_deref(), Some("inspect"));
        assert_eq!(meant("becnh").as_deref(), Some("bench"));
        assert_eq!(meant("model.onnx"), None);
    }
}
