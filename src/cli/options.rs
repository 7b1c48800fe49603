//! The declared options as arguments of the command line and of the Python function.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::pipeline::{DECLARED, Declared, Options, Takes, Topic};
use crate::{Error, Result};

/// The arguments of the options about some topics.
pub(super) fn args(topics: &[Topic]) -> impl Iterator<Item = Arg> {
    DECLARED.iter().filter(|o| topics.contains(&o.topic)).map(arg)
}

/// The arguments of some options.
pub(super) fn named(names: &[&str]) -> impl Iterator<Item = Arg> {
    DECLARED.iter().filter(|o| names.contains(&o.name)).map(arg)
}

fn arg(option: &'static Declared) -> Arg {
    let default = (option.tell)(&Options::default());
    let help = match &default[..] {
        [value] if option.takes != Takes::Nothing => {
            format!("{} [default: {}]", option.help, value.to_string_lossy())
        }
        _ => option.help.to_owned(),
    };
    let short = option.help.split(". ").next().unwrap_or(option.help);
    let arg = Arg::new(option.name)
        .long(option.name)
        .help(short.trim_end_matches('.').to_owned())
        .long_help(help)
        .help_heading(option.topic.title())
        .hide_short_help(option.topic == Topic::Tuning || option.name == "no-timing")
        .conflicts_with_all(option.conflicts);
    let arg = match option.takes {
        Takes::Nothing => return arg.action(ArgAction::SetTrue),
        Takes::One(name) => arg.value_name(name).action(ArgAction::Set),
        Takes::Each(name) => arg.value_name(name).action(ArgAction::Append),
        Takes::Several(name) => arg.value_name(name).action(ArgAction::Append).num_args(1..),
        Takes::List(name) => arg
            .value_name(name)
            .action(ArgAction::Append)
            .value_delimiter(','),
    };
    match option.words {
        [] => arg.value_parser(value_parser!(OsString)),
        words => arg
            .value_parser(PossibleValuesParser::new(words))
            .ignore_case(true),
    }
}

/// Takes what was given.
pub(super) fn read(matches: &ArgMatches) -> Result<Options> {
    let mut options = Options::default();
    for option in DECLARED {
        let known = matches.try_contains_id(option.name).unwrap_or(false);
        if !known || matches.value_source(option.name) != Some(ValueSource::CommandLine) {
            continue;
        }
        let words: Vec<OsString> = matches
            .get_raw(option.name)
            .into_iter()
            .flatten()
            .map(OsString::from)
            .collect();
        if option.takes == Takes::Nothing && !matches.get_flag(option.name) {
            continue;
        }
        let taken = (option.read)(&mut options, &words);
        taken.map_err(|why| Error::input(format!("--{}: {why}", option.name)))?;
    }
    options.check()?;
    Ok(options)
}

/// The Python module with the options of `prune`: their types, words and help.
pub fn python() -> String {
    let mut out = String::from(
        "\"\"\"The options of `prune`. Made from the program's own declarations by a test; do not edit.\"\"\"\n\n\
         from __future__ import annotations\n\n\
         import os\n\
         from collections.abc import Mapping, Sequence\n\
         from typing import Literal, TypedDict, Union\n\n\
         Path = Union[str, \"os.PathLike[str]\"]\n\n\n\
         class PruneOptions(TypedDict, total=False):\n    \"\"\"Every option of the command line.\"\"\"\n\n",
    );
    for option in DECLARED.iter().filter(|o| o.name != "data") {
        let (name, kind) = spelled(option);
        let _ = writeln!(
            out,
            "    {name}: {kind}\n    \"\"\"{}\"\"\"",
            option.help.replace('\\', "\\\\")
        );
    }
    out += "\n\n#: How each option is written on the command line: its flag and what follows it.\nFLAGS: dict[str, tuple[str, str]] = {\n";
    for option in DECLARED.iter().filter(|o| o.name != "data") {
        let (name, _) = spelled(option);
        let takes = match option.takes {
            Takes::Nothing if option.name.starts_with("no-") => "unless",
            Takes::Nothing => "switch",
            Takes::One(_) => "one",
            Takes::Each(_) if option.name == "shape" => "shapes",
            Takes::Each(_) | Takes::Several(_) => "each",
            Takes::List(_) => "list",
        };
        let _ = writeln!(out, "    \"{name}\": (\"--{}\", \"{takes}\"),", option.name);
    }
    out += "}\n\n#: What each option is, in one line.\nHELP: dict[str, str] = {\n";
    for option in DECLARED.iter().filter(|o| o.name != "data") {
        let (name, _) = spelled(option);
        let first = option.help.split(". ").next().unwrap_or(option.help);
        let first = first
            .trim_end_matches('.')
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        let off = if option.name.starts_with("no-") {
            "False: "
        } else {
            ""
        };
        let _ = writeln!(out, "    \"{name}\": \"{off}{first}\",");
    }
    out += "}\n";
    out
}

/// The name of an option in Python, and its type.
fn spelled(option: &Declared) -> (String, String) {
    let name = match option.name {
        "shape" => "shapes".to_owned(),
        // A switch that turns off is a switch that is on.
        name => name.strip_prefix("no-").unwrap_or(name).replace('-', "_"),
    };
    let words = |words: &[&str]| {
        let quoted: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
        format!("Literal[{}]", quoted.join(", "))
    };
    let of = |value: &str| match value {
        _ if !option.words.is_empty() => words(option.words),
        "N" => "int".into(),
        "FRACTION" | "X" => "float".into(),
        "FRACTION|TIME" | "TIMES" => "Union[str, float]".into(),
        "N|KIND=N" => "Union[str, int]".into(),
        "BYTES" => "Union[str, int]".into(),
        "FILE" | "PATH" | "FILE.safetensors" => "Path".into(),
        _ => "str".into(),
    };
    let kind: String = match option.takes {
        Takes::Nothing => "bool".into(),
        Takes::One(value) => of(value),
        Takes::Each(_) if option.name == "shape" => "Mapping[str, Sequence[int]]".into(),
        Takes::Each(value) | Takes::Several(value) | Takes::List(value) => {
            let one: String = of(value);
            format!("Union[{one}, Sequence[{one}]]")
        }
    };
    (name, kind)
}
