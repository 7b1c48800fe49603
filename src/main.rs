//! Parses, calls the library, prints the error chain, sets the exit code.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use onnx_prune::bench::{self, BenchReport};
use onnx_prune::budget::{Cost, Sizes};
use onnx_prune::cli::{BenchArgs, Cli, Command, CompareArgs, InspectArgs, PruneArgs};
use onnx_prune::options::Options;
use onnx_prune::progress::{Bars, Progress, Quiet};
use onnx_prune::{Error, Result, calibrate, onnx, pipeline, report, runtime};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    // The first interrupt asks the run to stop at the next batch, a second one
    // ends the process: no file is half-written, a temporary one may stay until the
    // next run.
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        complain(&format!("warning: interrupts are not handled: {error}\n"));
    }
    match run(cli, &cancelled) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {}\n", error.chain()));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli, cancelled: &AtomicBool) -> Result<()> {
    match cli.command {
        Some(Command::Inspect(args)) => inspect(&args),
        Some(Command::Compare(args)) => compare(&args, cancelled),
        Some(Command::Bench(args)) => measure(&args),
        None => prune(&cli.prune, cancelled),
    }
}

fn prune(args: &PruneArgs, cancelled: &AtomicBool) -> Result<()> {
    let options = args.options()?;
    let progress: Box<dyn Progress> = if args.quiet {
        Box::new(Quiet)
    } else {
        Box::new(Bars::new())
    };
    if let Some(folder) = &args.out_dir {
        let reports = pipeline::several(&args.files, folder, &options, progress.as_ref(), cancelled)?;
        return tell_all(args, &reports);
    }
    let [input, output] = &args.files[..] else {
        return Err(Error::input(format!(
            "{} files are given: name the input and the output (onnx-prune IN.onnx OUT.onnx), or several inputs with --out-dir",
            args.files.len()
        )));
    };
    if !args.sweep.is_empty() {
        let reports = pipeline::sweep(input, output, &args.sweep, &options, progress.as_ref(), cancelled)?;
        return tell_all(args, &reports);
    }
    let to_output = args.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let json = args.json.as_ref().filter(|_| !to_output);
    let beside: Vec<_> = json
        .map(|path| pipeline::Beside {
            what: "--json",
            path,
            content: &report::json,
        })
        .into_iter()
        .collect();
    let report = pipeline::prune_beside(input, output, &beside, &options, progress.as_ref(), cancelled)?;
    if to_output {
        report::write_json("-".as_ref(), &report)?;
    }
    say(args, &report::terminal::summary(&report))
}

/// Several reports: a JSON array, a table.
fn tell_all(args: &PruneArgs, reports: &[report::Report]) -> Result<()> {
    if let Some(path) = &args.json {
        report::write_json(path, &reports)?;
    }
    say(args, &report::terminal::table(reports))
}

/// Prints what is for people, beside JSON that may go to standard output.
fn say(args: &PruneArgs, text: &str) -> Result<()> {
    match (&args.json, args.quiet) {
        (_, true) => {}
        (Some(path), _) if path.as_os_str() == "-" => complain(text),
        _ => print(text)?,
    }
    Ok(())
}

/// Prints to standard output. A reader that has seen enough, as `head` has, is no
/// error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
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

fn inspect(args: &InspectArgs) -> Result<()> {
    let loaded = pipeline::load(&args.input, args.axes.options())?;
    let sizes = Sizes {
        batch: args.batch,
        seq: args.seq,
        named: Default::default(),
    };
    let cost = Cost::new(&loaded.graph, &loaded.analysis, &sizes);
    let name = args.input.display().to_string();
    let found = report::inspect::inspect(&name, &loaded.graph, &loaded.analysis, &cost, loaded.notes);
    if args.json {
        report::write_json("-".as_ref(), &found)
    } else {
        print(&found.text())
    }
}

fn compare(args: &CompareArgs, cancelled: &AtomicBool) -> Result<()> {
    let options = Options {
        data: args.data.options()?,
        engine: args.engine.options(),
        ..Options::default()
    };
    let comparison = pipeline::compare(&args.a, &args.b, &options, cancelled)?;
    if args.json {
        return report::write_json("-".as_ref(), &comparison);
    }
    let mut text = String::new();
    for o in &comparison.outputs {
        let classes = match (o.agreement, o.kl) {
            (Some(a), Some(kl)) => format!("  same answer {:.2}%  KL {kl:.5}", 100.0 * a),
            _ => String::new(),
        };
        text += &format!(
            "{}: largest difference {:.3e} ({:.2e} of the largest value)  relative squared error {:.5}{classes}\n",
            o.name, o.max, o.relative_max, o.relative_squared
        );
    }
    print(&format!("{text}{} samples\n", comparison.samples))
}

fn measure(args: &BenchArgs) -> Result<()> {
    let a = onnx::load(&args.a)?;
    let b = args.b.as_deref().map(onnx::load).transpose()?;
    let engine = runtime::choose(&args.engine.options())?;
    let inputs = calibrate::exact_batch(&a.proto, args.batch, args.seq, &args.shapes()?)?;
    let other = b.as_ref().map(|b| &b.proto);
    let found = BenchReport {
        a: args.a.display().to_string(),
        b: args.b.as_ref().map(|b| b.display().to_string()),
        batch: inputs.batch,
        seq: inputs.seq,
        timing: bench::paired(engine.as_ref(), &a.proto, other, &inputs.feeds, args.runs)?,
        engine: engine.info().clone(),
    };
    if args.json {
        return report::write_json("-".as_ref(), &found);
    }
    print(&found.text())
}
