//! The command line, made of the declared options.
//!
//! ```text
//! options    the declared options as arguments, and arguments as options
//! commands   pruning and the other things to do, with their arguments
//! output     what is said while it works and when it is done
//! ```

mod commands;
mod options;
mod output;

pub use commands::{
    Bench, Calibrate, Command, Compare, Inspect, Merge, Prune, SHORT_HELP, Wrong, command, meant, parse,
};
pub use options::python;
pub use output::Talk;
