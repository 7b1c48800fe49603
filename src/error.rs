//! One error type for the whole crate, with the exit code of each kind.

use std::path::Path;

/// What went wrong, in words a user can act on: the node or the tensor, what
/// was expected, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A budget or a verification was not met (exit code 1).
    #[error("{0}")]
    Unmet(String),
    /// A bad input file or a wrong use of an option (exit code 2).
    #[error("{0}")]
    Input(String),
    /// The model has nothing that can be pruned (exit code 3).
    #[error("{0}")]
    NothingPrunable(String),
    /// An engine or a device is missing or refuses the model (exit code 4).
    #[error("{0}")]
    Engine(String),
    /// Reading or writing failed (exit code 5).
    #[error("{context}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A warning where every warning is an error (exit code 6).
    #[error("--strict: {0}")]
    Strict(Warning),
    /// Stopped by the user (exit code 130).
    #[error("interrupted")]
    Interrupted,
    /// Another error with the place where it happened put in front.
    #[error("{context}")]
    Context {
        /// The place: a file, a node, a tensor.
        context: String,
        /// The cause.
        #[source]
        source: Box<Error>,
    },
}

/// Something that a run could not do. It made a model all the same, and says what that
/// costs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// What it is about, for programs: `refit-local`, `timing`, ...
    pub name: &'static str,
    /// What happened, and what it costs.
    pub text: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.text)
    }
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A bad input or usage.
    pub fn input(message: impl Into<String>) -> Self {
        Error::Input(message.into())
    }

    /// A missing or refusing engine.
    pub fn engine(message: impl Into<String>) -> Self {
        Error::Engine(message.into())
    }

    /// An I/O failure at `path` while doing `what` (as in `"cannot read"`).
    pub fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        Error::Io {
            context: format!("{what} {}", path.display()),
            source,
        }
    }

    /// Puts the place in front.
    pub fn context(self, context: impl Into<String>) -> Self {
        Error::Context {
            context: context.into(),
            source: Box::new(self),
        }
    }

    /// The exit code of the command line for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Unmet(_) => 1,
            Error::Input(_) => 2,
            Error::NothingPrunable(_) => 3,
            Error::Engine(_) => 4,
            Error::Io { .. } => 5,
            Error::Strict(_) => 6,
            Error::Interrupted => 130,
            Error::Context { source, .. } => source.exit_code(),
        }
    }

    /// Whether the user has stopped the run.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Error::Interrupted)
            || matches!(self, Error::Context { source, .. } if source.is_interrupt())
    }

    /// The whole chain on one line, outermost first.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// Adds a place to an error in passing.
pub trait ResultExt<T> {
    /// Puts `context()` in front of the error, if there is one.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}
