//! Every method at several budgets, measured on a labelled test set.
//!
//! ```text
//! cargo run --release --example quality -- --model model.onnx \
//!     --data train.tsv --tokenizer tokenizer.json --test test.tsv --label-column label
//! cargo run --release --example quality -- --model fixtures/digits-vit/model.onnx \
//!     --data fixtures/digits-vit/calibration.npz --test fixtures/digits-vit/test.npz --label-column labels
//! ```
//!
//! Calibration inputs are used without labels. `--draws N` repeats everything
//! with the seeds 0 to N - 1 and shows mean and standard deviation (which is 0
//! where there are no more inputs than `--samples` takes). The table goes
//! to standard output, and to `PREFIX.md` and `PREFIX.json` with `--out PREFIX`;
//! both are brought up to date after each run, so that nothing is lost when a long
//! one is stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::Parser;
use onnx_prune::budget::{Demand, Goal};
use onnx_prune::data::{DataOptions, Samples, batches, input_specs, read_samples};
use onnx_prune::engine::{self, Engine, EngineChoice, EngineInfo, EngineOptions, Session, SessionOptions};
use onnx_prune::io::npz;
use onnx_prune::onnx::{self, proto};
use onnx_prune::pipeline::{self, Options, Planner, Source};
use onnx_prune::progress::Quiet;
use onnx_prune::rank::{Method, RankOptions};
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::verify::{self, Comparison};
use onnx_prune::{Error, Result, ResultExt};

/// Accuracy, agreement, divergence, size and time of every method at several
/// budgets.
#[derive(Debug, Parser)]
struct Args {
    /// The trained model.
    #[arg(long, value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Calibration inputs, as `onnx-prune --data` takes them; their labels are not
    /// read. Without it, synthetic inputs are made.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// The labelled test set: .tsv, .csv or .npz.
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// The column, or the array of the .npz, that holds the labels: class numbers
    /// from 0, or numbers to correlate with.
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    /// tokenizer.json, for texts.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// One or two columns with text.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    text_column: Vec<String>,
    /// The two text columns of the test set are embedded one by one, and the
    /// labels are compared with the cosines.
    #[arg(long)]
    similarity: bool,
    /// The output that answers; the first one when not given.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Budgets: fractions of the prunable blocks' multiply-accumulates.
    #[arg(long, value_delimiter = ',', default_values_t = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3])]
    budgets: Vec<f64>,
    /// Methods; all when not given.
    #[arg(long, value_delimiter = ',')]
    methods: Vec<Method>,
    /// How many draws of calibration inputs, with the seeds 0, 1, ...
    #[arg(long, value_name = "N", default_value_t = 1)]
    draws: u64,
    /// Calibration samples; as many as the program takes by itself where none is given.
    #[arg(long)]
    samples: Option<usize>,
    /// Texts are cut to this many tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_length: usize,
    /// Sequence length that costs are computed for.
    #[arg(long, value_name = "N", default_value_t = 128)]
    seq: usize,
    /// Which engine.
    #[arg(long, default_value_t = EngineChoice::Auto)]
    engine: EngineChoice,
    /// Threads; all cores when not given.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write PREFIX.md and PREFIX.json.
    #[arg(long, value_name = "PREFIX")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.draws == 0 || args.budgets.is_empty() {
        return Err(Error::input("nothing to do: --draws is 0 or --budgets is empty"));
    }
    let all: Vec<Method> = Method::WORDS
        .iter()
        .filter_map(|word| word.parse().ok())
        .collect();
    let methods = match args.methods.as_slice() {
        [] => &all[..],
        given => given,
    };
    let dense = onnx::load(&args.model)?;
    let options = args.options(0, Method::default(), 1.0);
    let engine = engine::choose(&options.engine)?;
    let test = TestSet::read(args, &dense.proto)?;
    let judge = Judge::new(engine.as_ref(), &dense.proto, test, args)?;
    let mut table = Table::new(args, &judge, engine.info());
    println!("{}", table.title());
    println!("{}", table.head());

    let folder =
        tempfile::tempdir().map_err(|e| Error::io("cannot make a folder in", &std::env::temp_dir(), e))?;
    let pruned = folder.path().join("pruned.onnx");
    let cancelled = AtomicBool::new(false);
    for method in methods {
        let mut rows: Vec<Row> = args
            .budgets
            .iter()
            .map(|budget| Row {
                method: method.name(),
                budget: *budget,
                runs: Vec::new(),
            })
            .collect();
        for seed in 0..args.draws {
            let options = args.options(seed, *method, 1.0);
            let started = Instant::now();
            let source = Source::read(&args.model, &options, &Quiet, &cancelled)?;
            let ranked = pipeline::rank(pipeline::calibrate(source)?)?;
            let planner = Planner::of(&ranked)?;
            // All budgets share the calibration: each is charged the whole of it.
            let calibration = started.elapsed().as_secs_f64();
            for row in &mut rows {
                let started = Instant::now();
                let goal = Goal::flops(row.budget);
                let found = pipeline::search(&planner, &goal, &[&pruned]);
                let report = found.and_then(|found| found.only(&ranked)?.write(&pruned));
                let seconds = calibration + started.elapsed().as_secs_f64();
                row.runs.push(match report {
                    Ok(report) => {
                        let model = onnx::load(&pruned)?;
                        let verdict = judge.judge(engine.as_ref(), &model.proto)?;
                        Outcome::Pruned(Box::new(Run {
                            metric: verdict.metric,
                            agreement: verdict.agreement,
                            divergence: verdict.divergence,
                            calibration_samples: report.calibration.map_or(0, |c| c.samples),
                            flops: report.budget.got,
                            parameters: report.size.parameters_after as f64,
                            bytes: report.size.bytes_after.unwrap_or(0) as f64,
                            seconds,
                        }))
                    }
                    // A method that leaves heads alone cannot reach every budget.
                    Err(error) if error.exit_code() == 1 => Outcome::Unmet(error.chain()),
                    Err(error) => {
                        return Err(error).context(|| format!("{} at {}", method.name(), row.budget));
                    }
                });
            }
        }
        for row in rows {
            println!("{}", table.line(&row));
            table.rows.push(row);
        }
        table.save(args)?;
    }
    Ok(())
}

impl Args {
    fn options(&self, seed: u64, method: Method, flops: f64) -> Options {
        Options {
            rank: RankOptions {
                method,
                ..Options::default().rank
            },
            demands: vec![Demand::Flops(flops)],
            data: DataOptions {
                data: self.data.clone(),
                tokenizer: self.tokenizer.clone(),
                text_columns: self.text_column.clone(),
                max_length: self.max_length,
                join: true,
                samples: self.samples,
                seed,
                batch: 1,
                seq: Some(self.seq),
                ..DataOptions::default()
            },
            engine: EngineOptions {
                engine: self.engine,
                threads: self.threads,
                ..EngineOptions::default()
            },
            ..Options::default()
        }
    }

    /// How the test set is read: all of it, in its order.
    fn test_options(&self, columns: &[String]) -> DataOptions {
        DataOptions {
            data: vec![self.test.clone()],
            text_columns: columns.to_vec(),
            samples: Some(usize::MAX >> 1),
            join: false,
            ..self.options(0, Method::default(), 1.0).data
        }
    }
}

/// Inputs with labels.
struct TestSet {
    /// One set of inputs, or two whose outputs are compared with each other.
    inputs: Vec<Samples>,
    labels: Vec<f64>,
}

impl TestSet {
    fn read(args: &Args, model: &proto::ModelProto) -> Result<Self> {
        let columns: Vec<Vec<String>> = match (args.similarity, args.text_column.as_slice()) {
            (false, columns) => vec![columns.to_vec()],
            (true, [first, second]) => vec![vec![first.clone()], vec![second.clone()]],
            (true, _) => {
                return Err(Error::input(
                    "--similarity needs the two columns: --text-column FIRST,SECOND",
                ));
            }
        };
        let inputs = columns
            .iter()
            .map(|columns| read_samples(model, &args.test_options(columns)))
            .collect::<Result<Vec<_>>>()?;
        let labels = match extension(&args.test).as_str() {
            "npz" => labels_of_arrays(&args.test, &args.label_column)?,
            "tsv" => labels_of_table(&args.test, &args.label_column, b'\t', false)?,
            "csv" => labels_of_table(&args.test, &args.label_column, b',', true)?,
            _ => return Err(Error::input("--test is a .tsv, .csv or .npz file with labels")),
        };
        for samples in &inputs {
            if samples.samples.len() != labels.len() {
                return Err(Error::input(format!(
                    "{} has {} labels for {} inputs: are there empty lines or texts?",
                    args.test.display(),
                    labels.len(),
                    samples.samples.len()
                )));
            }
        }
        if labels.is_empty() {
            return Err(Error::input(format!("{} is empty", args.test.display())));
        }
        Ok(TestSet { inputs, labels })
    }
}

fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default()
}

fn labels_of_arrays(path: &Path, name: &str) -> Result<Vec<f64>> {
    let array = npz::Archive::open(path)?.read(name)?;
    Ok(array.to_f32().into_iter().map(f64::from).collect())
}

fn labels_of_table(path: &Path, column: &str, delimiter: u8, quoting: bool) -> Result<Vec<f64>> {
    let bad = |what: String| Error::input(format!("{}: {what}", path.display()));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(quoting)
        .flexible(true)
        .from_path(path)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    let header = reader
        .headers()
        .map_err(|e| bad(format!("its first line cannot be read: {e}")))?
        .clone();
    let at = header
        .iter()
        .position(|name| name.trim() == column)
        .ok_or_else(|| {
            let names: Vec<&str> = header.iter().collect();
            bad(format!(
                "no column '{column}'; there are: {}. Choose with --label-column",
                names.join(", ")
            ))
        })?;
    let mut labels = Vec::new();
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(|e| bad(e.to_string()))?;
        let text = record.get(at).unwrap_or_default().trim();
        let label: f64 = text
            .parse()
            .map_err(|_| bad(format!("record {}: the label '{text}' is not a number", row + 1)))?;
        labels.push(label);
    }
    Ok(labels)
}

/// What is measured on the test set.
struct Judge {
    model: proto::ModelProto,
    test: TestSet,
    output: String,
    task: Task,
    dense: Vec<Vec<Vec<Tensor>>>,
    metric: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// The largest entry is the answer.
    Classes,
    /// The only entry is the answer.
    Regression,
    /// The cosine of two rows is the answer.
    Similarity,
}

impl Task {
    fn metric(self) -> &'static str {
        match self {
            Task::Classes => "accuracy",
            Task::Regression | Task::Similarity => "Spearman",
        }
    }
}

struct Verdict {
    metric: f64,
    agreement: Option<f64>,
    divergence: f64,
}

impl Judge {
    fn new(engine: &dyn Engine, model: &proto::ModelProto, test: TestSet, args: &Args) -> Result<Self> {
        let outputs = model.graph.as_ref().map_or(&[][..], |g| &g.output);
        let names: Vec<&str> = outputs.iter().map(|o| o.name()).collect();
        let output = match &args.output {
            Some(name) if names.contains(&name.as_str()) => name.clone(),
            Some(name) => {
                return Err(Error::input(format!(
                    "no output '{name}'; there are: {}",
                    names.join(", ")
                )));
            }
            None => names
                .first()
                .map(|name| (*name).to_owned())
                .ok_or_else(|| Error::input("the model has no output"))?,
        };
        let mut judge = Judge {
            model: model.clone(),
            test,
            output,
            task: Task::Similarity,
            dense: Vec::new(),
            metric: f64::NAN,
        };
        judge.dense = judge.record(engine, model)?;
        if !args.similarity {
            let first = judge.dense.first().and_then(|runs| runs.first()?.first());
            let shape = first.map_or(&[][..], |t| &t.shape);
            judge.task = match shape {
                [_] | [_, 1] => Task::Regression,
                [_, _] => Task::Classes,
                _ => {
                    return Err(Error::input(format!(
                        "the output '{}' has the shape {shape:?}: one row of classes, or one number, per \
                         input is expected (--output, --similarity)",
                        judge.output
                    )));
                }
            };
        }
        judge.metric = judge.metric_of(&judge.dense)?;
        Ok(judge)
    }

    /// The answering output for every batch of every set of inputs.
    fn record(&self, engine: &dyn Engine, model: &proto::ModelProto) -> Result<Vec<Vec<Vec<Tensor>>>> {
        let options = SessionOptions {
            optimise: true,
            outputs: Some(vec![self.output.clone()]),
        };
        let specs = input_specs(&self.model)?;
        let mut session = engine.session(model, &options)?;
        self.test
            .inputs
            .iter()
            .map(|samples| {
                batches(samples, &specs, verify::ROWS)?
                    .map(|batch| session.run(&batch?.feeds))
                    .collect()
            })
            .collect()
    }

    fn judge(&self, engine: &dyn Engine, model: &proto::ModelProto) -> Result<Verdict> {
        let pruned = self.record(engine, model)?;
        let mut agreement = None;
        let mut divergence = 0.0;
        for ((samples, a), b) in self.test.inputs.iter().zip(&pruned).zip(&self.dense) {
            let mut played = [a, b].map(|runs| Played {
                names: vec![self.output.clone()],
                runs: runs.iter(),
            });
            let [a, b] = &mut played;
            let comparison: Comparison = verify::compare(
                a,
                b,
                &self.model,
                samples,
                &verify::Interface::default(),
                &AtomicBool::new(false),
            )?;
            divergence += verify::divergence(&comparison) / self.test.inputs.len() as f64;
            agreement = comparison.outputs.first().and_then(|o| o.agreement);
        }
        Ok(Verdict {
            metric: self.metric_of(&pruned)?,
            agreement,
            divergence,
        })
    }

    fn metric_of(&self, outputs: &[Vec<Vec<Tensor>>]) -> Result<f64> {
        let rows = self
            .test
            .inputs
            .iter()
            .zip(outputs)
            .map(|(samples, runs)| self.rows(samples, runs))
            .collect::<Result<Vec<_>>>()?;
        let labels = &self.test.labels;
        match (self.task, rows.as_slice()) {
            (Task::Classes, [rows]) => {
                let right = rows
                    .iter()
                    .zip(labels)
                    .filter(|(row, label)| largest(row).map(|class| class as f64) == Some(**label))
                    .count();
                Ok(right as f64 / labels.len() as f64)
            }
            (Task::Regression, [rows]) => {
                let answers: Vec<f64> = rows.iter().filter_map(|row| row.first().copied()).collect();
                Ok(spearman(&answers, labels))
            }
            (Task::Similarity, [a, b]) => {
                let answers: Vec<f64> = a.iter().zip(b).map(|(a, b)| cosine(a, b)).collect();
                Ok(spearman(&answers, labels))
            }
            _ => Err(Error::input("the test set does not fit the task")),
        }
    }

    /// The answer for every sample, in the order of the test set; vectors of
    /// tokens are averaged over the real ones.
    fn rows(&self, samples: &Samples, runs: &[Vec<Tensor>]) -> Result<Vec<Vec<f64>>> {
        let mut rows = vec![Vec::new(); samples.samples.len()];
        let specs = input_specs(&self.model)?;
        for (batch, run) in batches(samples, &specs, verify::ROWS)?.zip(runs) {
            let batch = batch?;
            let Some(tensor) = run.first().filter(|t| t.shape.first() == Some(&batch.size)) else {
                return Err(Error::input(format!(
                    "the output '{}' has no row for each input",
                    self.output
                )));
            };
            let values = tensor.to_f32();
            let each = values.len() / batch.size.max(1);
            for (row, sample) in batch.rows.iter().enumerate() {
                let own = values.get(row * each..(row + 1) * each).unwrap_or_default();
                let answer = match tensor.shape[..] {
                    [_, tokens, width] => {
                        let real = |token: usize| {
                            let mask = batch.token_mask.as_ref();
                            mask.and_then(|m| m.get(row * tokens + token))
                                .copied()
                                .unwrap_or(true)
                        };
                        mean(own, width, real)
                    }
                    _ => own.iter().map(|x| f64::from(*x)).collect(),
                };
                if let Some(slot) = rows.get_mut(*sample) {
                    *slot = answer;
                }
            }
        }
        Ok(rows)
    }
}

/// What a model has said before, once more.
struct Played<'a> {
    names: Vec<String>,
    runs: std::slice::Iter<'a, Vec<Tensor>>,
}

impl Session for Played<'_> {
    fn outputs(&self) -> &[String] {
        &self.names
    }

    fn run(&mut self, _: &Feeds) -> Result<Vec<Tensor>> {
        let run = self.runs.next();
        run.cloned()
            .ok_or_else(|| Error::input("there are more batches than runs"))
    }
}

fn largest(row: &[f64]) -> Option<usize> {
    let best = row
        .iter()
        .enumerate()
        .reduce(|a, b| if b.1 > a.1 { b } else { a });
    best.map(|(at, _)| at)
}

fn mean(tokens: &[f32], width: usize, real: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    let mut count = 0.0f64;
    for (at, token) in tokens.chunks(width.max(1)).enumerate() {
        if real(at) {
            count += 1.0;
            sum.iter_mut().zip(token).for_each(|(s, x)| *s += f64::from(*x));
        }
    }
    sum.iter().map(|s| s / count.max(1.0)).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the
/// mean of theirs.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let centre = (a.len() as f64 - 1.0) / 2.0;
    let of =
        |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x - centre) * (y - centre)).sum() };
    of(&a, &b) / (of(&a, &a) * of(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let before = order.partition_point(|at| values[*at].total_cmp(&values[equal[0]]).is_lt());
        for at in equal {
            ranks[*at] = before as f64 + (equal.len() as f64 - 1.0) / 2.0;
        }
    }
    ranks
}

/// One run, measured.
#[derive(Debug, Clone, serde::Serialize)]
struct Run {
    metric: f64,
    agreement: Option<f64>,
    divergence: f64,
    /// Samples that were really used.
    calibration_samples: usize,
    flops: f64,
    parameters: f64,
    bytes: f64,
    seconds: f64,
}

#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Pruned(Box<Run>),
    /// The method cannot reach the budget.
    Unmet(String),
}

/// All draws of one method at one budget.
#[derive(Debug, serde::Serialize)]
struct Row {
    method: &'static str,
    budget: f64,
    runs: Vec<Outcome>,
}

impl Row {
    /// Mean and standard deviation over the draws that reached the budget.
    fn of(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<(f64, f64)> {
        let values: Vec<f64> = self
            .runs
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Pruned(run) => value(run),
                Outcome::Unmet(_) => None,
            })
            .collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (n > 0.0).then(|| (mean, (squares / (n - 1.0).max(1.0)).sqrt()))
    }
}

/// The result.
#[derive(Debug, serde::Serialize)]
struct Table {
    model: String,
    test: String,
    test_samples: usize,
    calibration_samples: usize,
    draws: u64,
    seq: usize,
    engine: String,
    metric: &'static str,
    divergence: &'static str,
    dense: BTreeMap<&'static str, f64>,
    rows: Vec<Row>,
}

impl Table {
    fn new(args: &Args, judge: &Judge, engine: &EngineInfo) -> Self {
        let bytes = std::fs::metadata(&args.model).map_or(0, |m| m.len());
        let name = |path: &Path| {
            let parts: Vec<_> = path.components().rev().take(2).collect();
            let parts: PathBuf = parts.into_iter().rev().collect();
            parts.display().to_string()
        };
        Table {
            model: name(&args.model),
            test: name(&args.test),
            test_samples: judge.test.labels.len(),
            calibration_samples: 0,
            draws: args.draws,
            seq: args.seq,
            engine: format!(
                "{} {} on {}, {} threads",
                engine.name, engine.version, engine.device, engine.threads
            ),
            metric: judge.task.metric(),
            divergence: match judge.task {
                Task::Classes => "KL",
                Task::Regression => "relative squared error",
                Task::Similarity => "1 - cosine",
            },
            dense: BTreeMap::from([(judge.task.metric(), judge.metric), ("bytes", bytes as f64)]),
            rows: Vec::new(),
        }
    }

    fn title(&self) -> String {
        let dense = self.dense.get(self.metric).copied().unwrap_or(f64::NAN);
        let draws = match self.draws {
            1 => "one draw".to_owned(),
            n => format!("mean and standard deviation of {n} draws"),
        };
        format!(
            "{}: dense {} {:.2}% on {} test samples of {}; up to {} calibration samples, {draws}; costs at \
             sequence length {}\n",
            self.model,
            self.metric,
            100.0 * dense,
            self.test_samples,
            self.test,
            self.calibration_samples,
            self.seq
        )
    }

    fn head(&self) -> String {
        format!(
            "| method | budget | {} % | agreement % | {} | FLOPs | parameters (M) | MB | seconds |\n\
             |---|---|---|---|---|---|---|---|---|",
            self.metric, self.divergence
        )
    }

    fn line(&self, row: &Row) -> String {
        let several = self.draws > 1;
        let cell = |value: Option<(f64, f64)>, scale: f64, digits: usize, spread: bool| match value {
            Some((mean, deviation)) if several && spread => {
                format!("{:.digits$} ± {:.digits$}", mean * scale, deviation * scale)
            }
            Some((mean, _)) => format!("{:.digits$}", mean * scale),
            None => "–".to_owned(),
        };
        let unmet = row.runs.iter().filter(|o| matches!(o, Outcome::Unmet(_))).count();
        let mut line = format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.method,
            row.budget,
            cell(row.of(|r| Some(r.metric)), 100.0, 2, true),
            cell(row.of(|r| r.agreement), 100.0, 2, true),
            cell(row.of(|r| Some(r.divergence)), 1.0, 5, true),
            cell(row.of(|r| Some(r.flops)), 1.0, 3, false),
            cell(row.of(|r| Some(r.parameters)), 1e-6, 3, false),
            cell(row.of(|r| Some(r.bytes)), 1e-6, 2, false),
            cell(row.of(|r| Some(r.seconds)), 1.0, 1, false),
        );
        if unmet > 0 {
            line += &format!(" <!-- {unmet} of {} draws cannot reach it -->", row.runs.len());
        }
        line
    }

    fn save(&self, args: &Args) -> Result<()> {
        let Some(prefix) = &args.out else {
            return Ok(());
        };
        let with = |extension: &str| {
            let mut path = prefix.clone().into_os_string();
            path.push(extension);
            PathBuf::from(path)
        };
        let lines: Vec<String> = self.rows.iter().map(|row| self.line(row)).collect();
        let text = format!("{}\n{}\n{}\n", self.title(), self.head(), lines.join("\n"));
        let path = with(".md");
        std::fs::write(&path, text).map_err(|e| Error::io("cannot write", &path, e))?;
        onnx_prune::report::write_json(&with(".json"), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_is_the_correlation_of_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        let rising = [0.1, 0.2, 5.0, 100.0];
        assert!((spearman(&rising, &[1.0, 2.0, 3.0, 4.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&rising, &[4.0, 3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // SciPy's spearmanr gives 0.5 for the first and 0.9486832980505138 for the second.
        assert!((spearman(&[1.0, 2.0, 3.0], &[2.0, 1.0, 3.0]) - 0.5).abs() < 1e-12);
        let ties = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]);
        assert!((ties - 0.948_683_298_050_513_8).abs() < 1e-12);
    }

    #[test]
    fn tokens_are_averaged_over_the_real_ones() {
        let found = mean(&[1.0, 2.0, 3.0, 4.0, 9.0, 9.0], 2, |token| token < 2);
        assert_eq!(found, [2.0, 3.0]);
    }

    #[test]
    fn a_row_has_the_mean_and_the_deviation_of_its_draws() {
        let run = |metric| {
            Outcome::Pruned(Box::new(Run {
                metric,
                agreement: None,
                divergence: 0.0,
                calibration_samples: 8,
                flops: 0.5,
                parameters: 1.0,
                bytes: 1.0,
                seconds: 1.0,
            }))
        };
        let row = Row {
            method: "obs",
            budget: 0.5,
            runs: vec![run(1.0), Outcome::Unmet("no".into()), run(3.0)],
        };
        assert_eq!(row.of(|r| Some(r.metric)), Some((2.0, 2.0f64.sqrt())));
        assert_eq!(row.of(|r| r.agreement), None);
    }
}
