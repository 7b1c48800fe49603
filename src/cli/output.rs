//! What a run says while it works and when it is done.

use std::io::IsTerminal as _;

use clap::{Arg, ArgAction, ArgMatches};

use crate::progress::{Bars, JsonLines, LogLines, Progress, Quiet};

/// How much is said, and how progress is shown.
#[derive(Debug, Clone, Default)]
pub struct Talk {
    /// No summary and no progress; errors are still shown.
    pub quiet: bool,
    /// How much more is said.
    pub verbose: u8,
    progress: String,
}

impl Talk {
    /// Its arguments.
    pub(super) fn args() -> [Arg; 3] {
        [
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .action(ArgAction::SetTrue)
                .conflicts_with("verbose")
                .help("No summary and no progress; errors are still shown"),
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::Count)
                .help(
                    "Show more: every group, tolerances, the time of every stage. Twice: engine messages too",
                ),
            Arg::new("progress")
                .long("progress")
                .value_name("KIND")
                .default_value("auto")
                .value_parser(["auto", "json", "none"])
                .hide_short_help(true)
                .help("Progress on standard error. auto: a bar on a terminal, elsewhere a line every half a minute; json: a line of JSON per step"),
        ]
    }

    /// What they say.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        Talk {
            quiet: matches.get_flag("quiet"),
            verbose: matches.get_count("verbose"),
            progress: matches.get_one::<String>("progress").cloned().unwrap_or_default(),
        }
    }

    /// What shows progress.
    pub fn progress(&self) -> Box<dyn Progress> {
        match (self.progress.as_str(), self.quiet) {
            ("json", _) => Box::new(JsonLines::new()),
            ("none", _) | (_, true) => Box::new(Quiet),
            _ if std::io::stderr().is_terminal() => Box::new(Bars::new()),
            _ => Box::new(LogLines::default()),
        }
    }
}
