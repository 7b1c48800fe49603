//! The command line that repeats a run.

use std::path::{Path, PathBuf};

use crate::budget::Target;
use crate::engine::{Device, EngineChoice};
use crate::options::Options;

/// The command that does what `options` say: only what differs from the defaults
/// is in it, except for the budget. `budget` is the fraction of multiply-adds
/// that the run was asked for, where there is one.
pub fn command(inputs: &[&Path], output: Output, options: &Options, budget: Option<f64>) -> String {
    let mut words = vec!["onnx-prune".to_owned()];
    words.extend(inputs.iter().map(|p| quoted(&p.display().to_string())));
    let mut line = Line {
        words,
        defaults: Options::default(),
    };
    match output {
        Output::File(path) => line.word(&path.display().to_string()),
        Output::Folder(path) => line.path("--out-dir", Some(path)),
    }
    line.budget(options, budget);
    line.method(options);
    line.data(options);
    line.engine(options);
    line.words.join(" ")
}

/// Where the result goes.
#[derive(Debug, Clone, Copy)]
pub enum Output<'a> {
    /// One file.
    File(&'a Path),
    /// `--out-dir`.
    Folder(&'a Path),
}

struct Line {
    words: Vec<String>,
    defaults: Options,
}

impl Line {
    fn word(&mut self, word: &str) {
        self.words.push(quoted(word));
    }

    fn flag(&mut self, name: &str, set: bool) {
        if set {
            self.words.push(name.to_owned());
        }
    }

    fn value(&mut self, name: &str, value: impl ToString, default: impl ToString) {
        let value = value.to_string();
        if value != default.to_string() {
            self.words.push(name.to_owned());
            self.word(&value);
        }
    }

    fn path(&mut self, name: &str, path: Option<&Path>) {
        if let Some(path) = path {
            self.value(name, path.display(), "");
        }
    }

    fn list(&mut self, name: &str, values: &[String]) {
        self.value(name, values.join(","), "");
    }

    fn budget(&mut self, options: &Options, budget: Option<f64>) {
        for limit in &options.limits {
            let amount = match limit {
                // The amount that is shown is rounded.
                Target::Size(bytes) => format!("--size {bytes}"),
                other => other.to_string(),
            };
            self.words.push(amount);
        }
        if let (Some(budget), true) = (budget, options.limits.is_empty()) {
            self.value("--flops", budget, "");
        }
        if let Some(bound) = options.max_drop {
            self.value("--max-drop", bound, "");
        }
        if let Some(command) = &options.eval {
            self.value("--eval", command, "");
        }
        self.path("--mask", options.mask.as_deref());
        if let Some(align) = options.align {
            self.value("--align", align, "");
        }
        self.flag("--no-lossless", !options.lossless);
        self.flag("--no-narrow", !options.narrow);
        self.flag("--fold-constant", options.fold_constant);
        self.flag("--no-timing", !options.timing);
        self.path("--latency-cache", options.latency_cache.as_deref());
    }

    fn method(&mut self, options: &Options) {
        let defaults = self.defaults.clone();
        self.value("--method", options.method.name(), defaults.method.name());
        let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        self.value(
            "--reconstruct",
            word(&options.reconstruct),
            word(&defaults.reconstruct),
        );
        self.value("--effort", word(&options.effort), word(&defaults.effort));
        let targets =
            |o: &Options| -> String { o.targets.iter().map(|t| word(t)).collect::<Vec<_>>().join(",") };
        self.value("--targets", targets(options), targets(&defaults));
        for exclude in &options.exclude {
            self.value("--exclude", exclude, "");
        }
        self.value("--min-units", options.min_units, defaults.min_units);
        self.list("--outputs", &options.outputs);
        self.flag("--change-interface", options.axes.change_interface);
        self.flag("--uniform-kv", options.axes.uniform_kv);
        self.flag("--external-data", options.external_data);
        self.value("--damp", options.damp, defaults.damp);
        if let Some(probe) = options.probe {
            self.value("--probe", probe, 0);
        }
        self.flag("--refit-sinks-only", !options.refit_all);
        self.value("--kcm-sigma", options.kcm_sigma, defaults.kcm_sigma);
        self.value("--kcm-alpha", options.kcm_alpha, defaults.kcm_alpha);
        self.value(
            "--kcm-iterations",
            options.kcm_iterations,
            defaults.kcm_iterations,
        );
        self.value(
            "--kcm-normalise",
            word(&options.kcm_normalise),
            word(&defaults.kcm_normalise),
        );
    }

    fn data(&mut self, options: &Options) {
        let (data, defaults) = (&options.data, crate::cli::data_defaults());
        self.path("--stats", options.stats.as_deref());
        if !data.data.is_empty() {
            self.words.push("--data".to_owned());
            let paths: Vec<PathBuf> = data.data.clone();
            for path in paths {
                self.word(&path.display().to_string());
            }
        }
        self.path("--tokenizer", data.tokenizer.as_deref());
        self.list("--text-column", &data.text_columns);
        self.value("--max-length", data.max_length, defaults.max_length);
        self.value("--samples", data.samples, defaults.samples);
        self.value("--seed", data.seed, defaults.seed);
        self.flag("--no-join", !data.join);
        for (name, shape) in &data.shapes {
            let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
            self.value("--shape", format!("{name}={}", dims.join(",")), "");
        }
        self.value("--batch", data.batch, defaults.batch);
        self.value("--seq", data.seq, defaults.seq);
    }

    fn engine(&mut self, options: &Options) {
        let engine = &options.engine;
        self.value("--engine", engine.engine, EngineChoice::default());
        self.value("--device", engine.device, Device::default());
        if let Some(threads) = engine.threads {
            self.value("--threads", threads, "");
        }
        self.path("--ort-lib", engine.ort_lib.as_deref());
    }
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// The options that a command line gives, told again as a command line.
    fn again(line: &[&str]) -> String {
        let cli = Cli::try_parse_from(line).expect("parses");
        let options = cli.prune.options().expect("valid");
        let budget = (options.max_drop.is_none() && options.mask.is_none()).then_some(options.flops);
        let [input, output] = &cli.prune.files[..] else {
            panic!("two files");
        };
        command(&[input], Output::File(output), &options, budget)
    }

    #[test]
    fn only_what_differs_from_the_defaults_is_told() {
        let line = ["onnx-prune", "in.onnx", "out.onnx"];
        assert_eq!(again(&line), "onnx-prune in.onnx out.onnx --flops 0.6");
    }

    #[test]
    fn what_is_told_parses_to_the_same_options() {
        let line = [
            "onnx-prune",
            "my model.onnx",
            "it's.onnx",
            "--params",
            "0.5",
            "--size",
            "123456",
            "--flops",
            "0.7",
            "--speedup",
            "1.5x",
            "--no-lossless",
            "--no-timing",
            "--align",
            "8",
            "--method",
            "wanda",
            "--reconstruct",
            "local",
            "--targets",
            "neurons",
            "--exclude",
            "layer\\.(0|1)$",
            "--min-units",
            "2",
            "--outputs",
            "a,b",
            "--change-interface",
            "--external-data",
            "--probe",
            "7",
            "--refit-sinks-only",
            "--data",
            "x y.tsv",
            "--tokenizer",
            "t.json",
            "--text-column",
            "a,b",
            "--samples",
            "9",
            "--seed",
            "3",
            "--no-join",
            "--shape",
            "x=1,3,8",
            "--seq",
            "64",
            "--engine",
            "tract",
            "--threads",
            "2",
        ];
        let told = again(&line);
        assert!(told.contains("'my model.onnx' 'it'\\''s.onnx'"), "{told}");
        // A shell would take the quotes away.
        let words = split(&told);
        let parsed = |words: &[String]| {
            let cli = Cli::try_parse_from(words).expect("parses");
            format!("{:?}", cli.prune.options().expect("valid"))
        };
        let given: Vec<String> = line.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(parsed(&words), parsed(&given));
    }

    fn split(line: &str) -> Vec<String> {
        let (mut words, mut word, mut inside) = (Vec::new(), String::new(), false);
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                '\'' => inside = !inside,
                '\\' if !inside => word.extend(chars.next()),
                ' ' if !inside => words.push(std::mem::take(&mut word)),
                c => word.push(c),
            }
        }
        words.push(word);
        words
    }
}
