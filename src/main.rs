//! Parses, calls the library, prints the error chain, sets the exit code.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onnx_prune::budget::Cost;
use onnx_prune::cli::{self, Bench, Calibrate, Command, Compare, Inspect, Merge, Prune, Talk, Wrong};
use onnx_prune::data::{self, SeenSizes};
use onnx_prune::io::scratch;
use onnx_prune::measure::paired::{self, BenchReport};
use onnx_prune::report::style::Style;
use onnx_prune::report::{self, Report};
use onnx_prune::{Error, Result, engine, onnx, pipeline};

/// How long a run may take to stop after an interrupt.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(Wrong::Usage(told)) => told.exit(),
        Err(Wrong::Option(error)) => return failed(&error),
    };
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    // The first interrupt asks the run to stop at the next batch. A batch may take long, so
    // the process ends by itself soon after, and at once at a second interrupt.
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            scratch::end(Error::Interrupted.exit_code());
        }
        std::thread::spawn(|| {
            std::thread::sleep(PATIENCE);
            complain(&format!("error: {}\n", Error::Interrupted.chain()));
            scratch::end(Error::Interrupted.exit_code())
        });
    });
    if let Err(error) = handler {
        complain(&format!("warning: interrupts are not handled: {error}\n"));
    }
    match run(command, &cancelled) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    let style = Style::of(std::io::stderr().is_terminal());
    complain(&format!(
        "{}\n",
        style.wrap(&format!("error: {}", error.chain()), 7)
    ));
    ExitCode::from(error.exit_code())
}

fn run(command: Command, cancelled: &AtomicBool) -> Result<()> {
    match command {
        Command::Help => print(cli::SHORT_HELP),
        Command::Inspect(args) => args.options.in_pool(|| inspect(&args)),
        Command::Compare(args) => args.options.in_pool(|| compare(&args, cancelled)),
        Command::Bench(args) => args.options.in_pool(|| measure(&args)),
        Command::Calibrate(args) => args.options.in_pool(|| calibrate(&args, cancelled)),
        Command::Merge(args) => merge(&args),
        Command::Completions(shell) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "onnx-prune", &mut text);
            print(&text)
        }
        Command::Man => {
            let mut text = Vec::new();
            let page = clap_mangen::Man::new(cli::command());
            let failed = |e| Error::io("cannot make", Path::new("the manual page"), e);
            page.render(&mut text).map_err(failed)?;
            print(&text)
        }
        Command::Prune(args) => args.options.in_pool(|| prune(&args, cancelled)),
    }
}

/// What the engine says goes to standard error with `-vv`, or as `RUST_LOG` asks.
fn listen(talk: &Talk) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(asked) => asked,
        Err(_) if talk.verbose > 1 => "onnx_prune=trace".to_owned(),
        Err(_) => return,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        eprintln!("warning: messages of the engine cannot be shown");
    }
}

fn prune(args: &Prune, cancelled: &AtomicBool) -> Result<()> {
    listen(&args.talk);
    let options = &args.options;
    if let Some((first, command)) = args.files.first().and_then(|f| Some((f, cli::meant(f)?))) {
        return Err(Error::input(format!(
            "there is no file '{}'; did you mean `onnx-prune {command}`?",
            first.display()
        )));
    }
    let progress = args.talk.progress();
    let to_output = args.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let json = args.json.as_ref().filter(|_| !to_output);
    let one = |reports: &[Report]| match reports {
        [report] => report::json(report),
        several => report::json(&several),
    };
    let all = |reports: &[Report]| report::json(&reports);
    let page = |reports: &[Report]| Ok(report::html::page(reports));
    let page = args.report.iter().map(|path| pipeline::Beside {
        what: "--report",
        path,
        content: &page,
    });
    let paths = json.iter().map(|path| ("--json", path.as_path()));
    let paths: Vec<(&str, &Path)> = paths
        .chain(page.clone().map(|page| (page.what, page.path)))
        .collect();
    let with = |content| -> Vec<pipeline::Beside> {
        let json = json.iter().map(|path| pipeline::Beside {
            what: "--json",
            path,
            content,
        });
        json.chain(page.clone()).collect()
    };
    if let ([input, output], None) = (&args.files[..], &args.out_dir)
        && input.is_dir()
    {
        if !args.sweep.is_empty() {
            return Err(Error::input(
                "--sweep is for one file; name the folder's model itself",
            ));
        }
        let progress = progress.as_ref();
        let beside = with(&all);
        let reports = pipeline::folder(input, output, &beside, options, progress, cancelled)?;
        if to_output {
            report::write_json("-".as_ref(), &reports)?;
        }
        return list(args, &reports);
    }
    if let Some(folder) = &args.out_dir {
        let progress = progress.as_ref();
        let reports = pipeline::joint(&args.files, (folder, &paths), options, progress, cancelled)?;
        return tell_all(args, &reports);
    }
    let [input, output] = &args.files[..] else {
        let given = match args.files.len() {
            0 | 1 => "the output is missing".to_string(),
            n => format!("{n} files are given"),
        };
        return Err(Error::input(format!(
            "{given}: name the input and the output (onnx-prune IN.onnx OUT.onnx), or several inputs with --out-dir"
        )));
    };
    if !args.sweep.is_empty() {
        let progress = progress.as_ref();
        let reports = pipeline::sweep(input, (output, &paths), &args.sweep, options, progress, cancelled)?;
        return tell_all(args, &reports);
    }
    let beside = with(&one);
    let report = pipeline::prune(input, output, &beside, options, progress.as_ref(), cancelled)?;
    if to_output {
        report::write_json("-".as_ref(), &report)?;
    }
    say(args, |style| {
        report::terminal::summary(&report, style, args.talk.verbose > 0)
    })
}

/// Several reports: a JSON array, a table.
fn tell_all(args: &Prune, reports: &[Report]) -> Result<()> {
    if let Some(path) = &args.json {
        report::write_json(path, &reports)?;
    }
    if let Some(path) = &args.report {
        report::html::write(path, reports)?;
    }
    list(args, reports)
}

/// Prints several reports.
fn list(args: &Prune, reports: &[Report]) -> Result<()> {
    say(args, |style| match args.talk.verbose {
        0 => report::terminal::table(reports, style),
        _ => reports
            .iter()
            .map(|r| report::terminal::summary(r, style, true) + "\n")
            .collect(),
    })
}

/// Prints what is for people, beside JSON that may go to standard output.
fn say(args: &Prune, text: impl Fn(Style) -> String) -> Result<()> {
    match (&args.json, args.talk.quiet) {
        (_, true) => {}
        (Some(path), _) if path.as_os_str() == "-" => {
            complain(&text(Style::of(std::io::stderr().is_terminal())));
        }
        _ => print(text(Style::of(std::io::stdout().is_terminal())))?,
    }
    Ok(())
}

/// Prints to standard output. A reader that has seen enough, as `head` has, is no
/// error.
fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write", "standard output".as_ref(), e))
        }
        _ => Ok(()),
    }
}

/// Prints to standard error, if that takes anything.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn calibrate(args: &Calibrate, cancelled: &AtomicBool) -> Result<()> {
    listen(&args.talk);
    let progress = args.talk.progress();
    let progress = progress.as_ref();
    let told = pipeline::collect(
        &args.input,
        &args.output,
        (&args.options, args.keep_samples),
        progress,
        cancelled,
    )?;
    match (args.json, args.talk.quiet) {
        (true, _) => report::write_json("-".as_ref(), &told),
        (_, true) => Ok(()),
        _ => print(told.text()),
    }
}

fn merge(args: &Merge) -> Result<()> {
    let told = pipeline::merge(&args.inputs, &args.output)?;
    if args.json {
        return report::write_json("-".as_ref(), &told);
    }
    print(told.text())
}

fn inspect(args: &Inspect) -> Result<()> {
    let options = &args.options;
    let mut loaded = pipeline::load(&args.input, options.axes, &options.data.data)?;
    let model = &loaded.network.proto;
    let seen = match options.data.is_empty() {
        true => SeenSizes::default(),
        false => SeenSizes::of(model, &data::read_samples(model, &options.data)?)?,
    };
    let engine = std::cell::OnceCell::new();
    let chosen = || match engine::choose(&options.engine) {
        Ok(found) => Ok(engine.get_or_init(|| found).as_ref()),
        Err(error) => Err(error),
    };
    let (sizes, why) = pipeline::sizes(&loaded.network, &options.data, &seen, chosen)?;
    if let Some(error) = why {
        loaded.notes.push(format!(
            "some run-time sizes are not known and count as --seq, since the model cannot be run: {error}"
        ));
    }
    let cost = Cost::new(&loaded.network, &sizes);
    let name = args.input.display().to_string();
    let found = report::inspect::inspect(&name, &loaded.network, &cost, loaded.notes);
    if args.json {
        report::write_json("-".as_ref(), &found)
    } else {
        print(found.text(Style::of(std::io::stdout().is_terminal())))
    }
}

fn compare(args: &Compare, cancelled: &AtomicBool) -> Result<()> {
    let comparison = pipeline::compare(&args.a, &args.b, &args.options, cancelled)?;
    if args.json {
        return report::write_json("-".as_ref(), &comparison);
    }
    let mut text = String::new();
    for o in &comparison.outputs {
        let answers = match o.agreement {
            Some(share) => format!("  same answer {:.2}%", 100.0 * share),
            None => String::new(),
        };
        text += &format!(
            "{}: largest difference {:.3e} ({:.2e} of the largest value){answers}  {} {:.5}\n",
            o.name, o.max, o.relative_max, o.measure, o.divergence
        );
    }
    text += &format!("{} samples\n", comparison.samples);
    print(&text)
}

fn measure(args: &Bench) -> Result<()> {
    let a = onnx::load(&args.a)?;
    let b = args.b.as_deref().map(onnx::load).transpose()?;
    let engine = engine::choose(&args.options.engine)?;
    let wanted = &args.options.data;
    let inputs = data::exact_batch(&a.proto, &wanted.exact(&SeenSizes::default()))?;
    let other = b.as_ref().map(|b| &b.proto);
    let found = BenchReport {
        a: args.a.display().to_string(),
        b: args.b.as_ref().map(|b| b.display().to_string()),
        batch: inputs.batch,
        seq: inputs.seq,
        timing: paired::paired(engine.as_ref(), &a.proto, other, &inputs.feeds, args.runs)?,
        engine: engine.info().clone(),
    };
    if args.json {
        return report::write_json("-".as_ref(), &found);
    }
    print(found.text())
}
