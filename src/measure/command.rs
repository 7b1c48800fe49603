//! A user's own measure: a shell command that prints a number for a file.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Stands for the candidate's path in a command.
pub const PLACEHOLDER: &str = "{}";

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long output may still come after the command has ended (from processes
/// that it left behind).
const LINGER: Duration = Duration::from_secs(1);
/// What is kept of each stream: its end.
const TAIL: usize = 64 << 10;
/// What an error shows of standard error.
const SHOWN: usize = 2000;

/// Runs `command` in the shell for the file `candidate` and returns the last
/// number that it prints on standard output.
///
/// Every `{}` in the command becomes the path, quoted for the shell; without one
/// the path is appended. The number may stand in any text (`accuracy = 87.6%` is
/// 87.6), but not inside a word (`sst2` has none); `nan` and `inf` are numbers.
/// The command reads nothing from standard input. Where `cancelled` is set or
/// `timeout` is over, the command and what it started are ended.
///
/// # Errors
/// A command that cannot be started, ends with an error, prints no number or
/// takes too long (each with what was run and the end of its standard error);
/// [`Error::Interrupted`].
pub fn evaluate(
    command: &str,
    candidate: &Path,
    timeout: Option<Duration>,
    cancelled: &AtomicBool,
) -> Result<f64> {
    let line = line(command, candidate)?;
    let mut running = Running::start(&line)?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = running.ended(&line)? {
            break status;
        }
        if cancelled.load(Ordering::Relaxed) {
            running.end();
            return Err(Error::Interrupted);
        }
        if let Some(limit) = timeout.filter(|limit| started.elapsed() >= *limit) {
            running.end();
            let (_, errors) = running.output();
            return Err(failed(
                &line,
                &format!("took longer than {} s", limit.as_secs_f64()),
                &errors,
            ));
        }
        thread::sleep(POLL);
    };
    let (output, errors) = running.output();
    if !status.success() {
        return Err(failed(&line, &format!("ended with {status}"), &errors));
    }
    last_number(&output).ok_or_else(|| {
        let what = match output.trim() {
            "" => "printed nothing on standard output; a number is expected".to_owned(),
            text => format!(
                "printed no number on standard output, but: {}",
                end_of(text, SHOWN / 10)
            ),
        };
        failed(&line, &what, &errors)
    })
}

/// The command with the path in it.
fn line(command: &str, candidate: &Path) -> Result<String> {
    if command.trim().is_empty() {
        return Err(Error::input("--eval is empty: give a command"));
    }
    let path = candidate.to_str().ok_or_else(|| {
        Error::input(format!(
            "the path {} is not valid Unicode and cannot be put into a command",
            candidate.display()
        ))
    })?;
    let path = quoted(path);
    Ok(if command.contains(PLACEHOLDER) {
        command.replace(PLACEHOLDER, &path)
    } else {
        format!("{command} {path}")
    })
}

#[cfg(unix)]
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

#[cfg(not(unix))]
fn quoted(path: &str) -> String {
    // A path on Windows holds no quotation mark.
    format!("\"{path}\"")
}

#[cfg(unix)]
fn shell(line: &str) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut shell = Command::new("sh");
    // A group of its own, so that what the shell starts can be ended with it.
    shell.arg("-c").arg(line).process_group(0);
    shell
}

#[cfg(windows)]
fn shell(line: &str) -> Command {
    use std::os::windows::process::CommandExt as _;
    let mut shell = Command::new("cmd");
    // cmd has its own rules for quotation marks: it strips the outer pair.
    shell.arg("/C").raw_arg(format!("\"{line}\""));
    shell
}

/// The end of a stream, read by a thread.
struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(VecDeque::new()));
        let shared = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend(buffer.iter().take(count));
                let excess = bytes.len().saturating_sub(TAIL);
                bytes.drain(..excess);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = bytes.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A command on its way; dropping it ends it.
struct Running {
    child: Child,
    output: Option<Tail>,
    errors: Option<Tail>,
    done: bool,
}

impl Running {
    fn start(line: &str) -> Result<Self> {
        let mut child = shell(line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::input(format!("the shell for --eval cannot be started: {e}")))?;
        Ok(Self {
            output: child.stdout.take().map(Tail::of),
            errors: child.stderr.take().map(Tail::of),
            child,
            done: false,
        })
    }

    fn ended(&mut self, line: &str) -> Result<Option<ExitStatus>> {
        let status = self
            .child
            .try_wait()
            .map_err(|e| failed(line, &format!("cannot be waited for: {e}"), ""))?;
        self.done |= status.is_some();
        Ok(status)
    }

    /// Ends the shell and what it started.
    fn end(&mut self) {
        if self.done {
            return;
        }
        self.done = true;
        end_group(self.child.id());
        // Where the group is gone already, this finds nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What came on standard output and standard error.
    fn output(&self) -> (String, String) {
        let deadline = Instant::now() + LINGER;
        for tail in [&self.output, &self.errors].into_iter().flatten() {
            while !tail.reader.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let text = |tail: &Option<Tail>| tail.as_ref().map(Tail::text).unwrap_or_default();
        (text(&self.output), text(&self.errors))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends all processes of the group that a shell leads.
#[cfg(unix)]
fn end_group(leader: u32) {
    let kill = format!("kill -s KILL -- -{leader}");
    let quiet = Command::new("sh")
        .args(["-c", &kill])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // The caller ends the leader itself in any case.
    drop(quiet);
}

#[cfg(not(unix))]
fn end_group(leader: u32) {
    let quiet = Command::new("taskkill")
        .args(["/T", "/F", "/PID", &leader.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    drop(quiet);
}

fn failed(line: &str, what: &str, errors: &str) -> Error {
    let errors = errors.trim();
    let tail = if errors.is_empty() {
        "it printed nothing on standard error".to_owned()
    } else {
        format!("the end of its standard error: {}", end_of(errors, SHOWN))
    };
    Error::input(format!("the command of --eval {what}; run was: {line}; {tail}"))
}

/// The last `count` bytes of a text, or a little less.
fn end_of(text: &str, count: usize) -> &str {
    let start = text.ceil_char_boundary(text.len().saturating_sub(count));
    text.get(start..).unwrap_or(text)
}

/// The last number in a text that is a word of its own.
fn last_number(text: &str) -> Option<f64> {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
    text.rsplit(|c: char| !inside(c))
        .filter(|word| !word.is_empty())
        .find_map(number)
}

fn number(word: &str) -> Option<f64> {
    // A number may end a sentence.
    let word = word.trim_end_matches('.');
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_a_word_of_its_own() {
        for (text, expected) in [
            ("0.876\n", Some(0.876)),
            ("epoch 3\naccuracy = 87.6%\n", Some(87.6)),
            ("{\"f1\": -1.5e-3}", Some(-1.5e-3)),
            ("accuracy=0.91, done in sst2_v3", Some(0.91)),
            ("it is 5.", Some(5.0)),
            ("(.5)", Some(0.5)),
            ("loss: nan", None),
            ("inf", Some(f64::INFINITY)),
            ("on 2026-11-24: 7 ok", Some(7.0)),
            ("on 2026-11-24", None),
            ("no number - here +", None),
            ("", None),
        ] {
            let found = last_number(text);
            match expected {
                None if text.contains("nan") => assert!(found.is_some_and(f64::is_nan), "{text}"),
                expected => assert_eq!(found, expected, "{text}"),
            }
        }
    }

    #[test]
    fn an_empty_command_is_an_error_of_usage() {
        let error = evaluate("  ", Path::new("a.onnx"), None, &AtomicBool::new(false));
        assert_eq!(error.map_err(|e| e.exit_code()), Err(2));
    }

    #[cfg(unix)]
    mod shell {
        use super::*;

        fn run(command: &str, path: &str) -> Result<f64> {
            evaluate(command, Path::new(path), None, &AtomicBool::new(false))
        }

        #[test]
        fn the_path_is_appended_or_put_in_place_and_quoted() {
            let name = "it's a \"$HOME\" `file`; echo 9 *.onnx";
            // printf shows the arguments, so the number in the path is printed.
            let count = "for f in \"$@\"; do n=$((n + ${#f})); done; echo $n";
            let expected = name.len() as f64;
            let appended = run(&format!("f() {{ {count}; }}; f"), name).expect("runs");
            assert_eq!(appended, expected);
            let placed = run(&format!("f() {{ {count}; }}; f {{}} {{}} ''"), name).expect("runs");
            assert_eq!(placed, 2.0 * expected);
        }

        #[test]
        fn failures_say_what_was_run_and_the_end_of_standard_error() {
            let error = run("echo 1; echo 'no such data' >&2; exit 3; :", "x.onnx").expect_err("fails");
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2);
            for part in ["exit status: 3", "exit 3; : 'x.onnx'", "no such data"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            let error = run("echo nothing here; :", "x.onnx").expect_err("no number");
            assert!(error.to_string().contains("nothing here"), "{error}");
            assert!(run("no-such-command-at-all", "x.onnx").is_err());
        }

        #[test]
        fn much_output_does_not_block() {
            let found = run(
                "yes 'line 1' | head -n 200000; yes oops | head -n 100000 >&2; echo 42; :",
                "x",
            );
            assert_eq!(found.expect("runs"), 42.0);
        }

        #[test]
        fn a_command_that_takes_too_long_is_ended() {
            let started = Instant::now();
            let limit = Some(Duration::from_millis(200));
            let error = evaluate(
                "echo 1; sleep 30; :",
                Path::new("x"),
                limit,
                &AtomicBool::new(false),
            )
            .expect_err("too long");
            assert!(error.to_string().contains("longer than 0.2 s"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(10));
        }

        #[test]
        fn an_interrupt_ends_the_command_and_what_it_started() {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("alive");
            let cancelled = AtomicBool::new(false);
            let started = Instant::now();
            let result = thread::scope(|scope| {
                scope.spawn(|| {
                    while !file.exists() && started.elapsed() < Duration::from_secs(20) {
                        thread::sleep(POLL);
                    }
                    cancelled.store(true, Ordering::Relaxed);
                });
                // A grandchild writes for as long as it lives.
                let command = "sh -c 'while :; do echo x >> \"$1\"; sleep 0.05; done' - {} & wait; :";
                evaluate(command, &file, None, &cancelled)
            });
            assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
            assert!(started.elapsed() < Duration::from_secs(25));
            let size = || std::fs::metadata(&file).map_or(0, |m| m.len());
            let before = size();
            assert!(before > 0);
            thread::sleep(Duration::from_millis(400));
            assert_eq!(size(), before, "the grandchild still runs");
        }

        #[test]
        fn a_process_left_behind_does_not_hold_the_result_back() {
            let started = Instant::now();
            // It ends by itself soon after the test.
            let found = run("sleep 5 & echo 3; :", "x").expect("runs");
            assert_eq!(found, 3.0);
            assert!(started.elapsed() < Duration::from_secs(4));
        }
    }
}
