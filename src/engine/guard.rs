//! A panic inside an engine is an error of that engine.

use crate::error::{Error, Result};
use crate::io::unwind::caught;

/// Runs `f`, which calls into `engine`.
///
/// What `f` was changing when it panicked must not be used again, or must be
/// sound in any state: the callers rebuild it or drop it.
pub(super) fn guard<T>(engine: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(f).unwrap_or_else(|message| Err(Error::engine(format!("{engine} panicked: {message}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let number = 7;
        let error = guard::<()>("the engine", || panic!("broken {number}"));
        let text = error.err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("the engine panicked: broken 7"));
        assert_eq!(guard("the engine", || Ok(number)).ok(), Some(7));
    }
}
