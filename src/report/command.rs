//! The command line that repeats a run.

use std::ffi::OsString;
use std::path::Path;

/// Where the result goes.
#[derive(Debug, Clone, Copy)]
pub enum Output<'a> {
    /// One file.
    File(&'a Path),
    /// `--out-dir`.
    Folder(&'a Path),
}

/// The command for these files with these words after them.
pub fn command(inputs: &[&Path], output: &Output, words: &[OsString]) -> String {
    let mut line = vec!["onnx-prune".to_owned()];
    line.extend(inputs.iter().map(|p| quoted(&p.display().to_string())));
    match output {
        Output::File(path) => line.push(quoted(&path.display().to_string())),
        Output::Folder(path) => {
            line.push("--out-dir".to_owned());
            line.push(quoted(&path.display().to_string()));
        }
    }
    line.extend(words.iter().map(|word| quoted(&word.to_string_lossy())));
    line.join(" ")
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

    #[test]
    fn words_are_quoted_as_a_shell_reads_them() {
        let words = ["--exclude", "layer\\.(0|1)$", "it's"].map(OsString::from);
        let inputs: [&Path; 1] = ["my model.onnx".as_ref()];
        let line = command(&inputs, &Output::File("small.onnx".as_ref()), &words);
        assert_eq!(
            line,
            r"onnx-prune 'my model.onnx' small.onnx --exclude 'layer\.(0|1)$' 'it'\''s'"
        );
    }
}
