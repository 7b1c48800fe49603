//! What a run says while it works and when it is done.

use clap::{ArgAction, Args, ValueEnum};

use crate::progress::{Bars, JsonLines, Progress, Quiet};

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    /// A bar with the time left where standard error is a terminal.
    #[default]
    Auto,
    /// A line of JSON on standard error for every step, for programs.
    Json,
    /// None.
    None,
}

/// How much is said.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct TalkArgs {
    /// No summary and no progress; errors are still told.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: every group, tolerances, time of every stage. Twice: what the
    /// engine says, too.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// How progress is shown on standard error.
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value_t,
        hide_short_help = true
    )]
    pub progress: ProgressKind,
}

impl TalkArgs {
    /// What shows progress.
    pub fn progress(&self) -> Box<dyn Progress> {
        match (self.progress, self.quiet) {
            (ProgressKind::Json, _) => Box::new(JsonLines::new()),
            (ProgressKind::None, _) | (_, true) => Box::new(Quiet),
            (ProgressKind::Auto, false) => Box::new(Bars::new()),
        }
    }
}
