//! Texts from `.txt`, `.jsonl`, `.tsv` and `.csv` files, one at a time: a file
//! of any size needs the memory of one line.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::io::staged;

/// Longest line that is read.
const MAX_LINE: usize = 16 << 20;

/// Columns that hold text in well-known data sets; a pair comes before its parts.
const TEXT_COLUMNS: [&[&str]; 16] = [
    &["sentence1", "sentence2"],
    &["question1", "question2"],
    &["premise", "hypothesis"],
    &["question", "sentence"],
    &["question", "context"],
    &["query", "passage"],
    &["#1 string", "#2 string"],
    &["sentence"],
    &["text"],
    &["content"],
    &["review"],
    &["document"],
    &["question"],
    &["query"],
    &["title"],
    &["prompt"],
];

/// Columns that show that a first line is a header, besides those of texts.
const OTHER_COLUMNS: [&str; 10] = [
    "label",
    "labels",
    "index",
    "idx",
    "id",
    "gold_label",
    "genre",
    "score",
    "quality",
    "is_duplicate",
];

/// One text, or a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) first: String,
    pub(crate) second: Option<String>,
}

/// Whether `path` is named like a file of texts.
pub(crate) fn is_text(path: &Path) -> bool {
    matches!(
        extension(path).as_str(),
        "txt" | "jsonl" | "ndjson" | "tsv" | "csv"
    )
}

fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default()
}

/// Calls `each` with every text of the file; empty ones are left out. `columns`
/// are names (or numbers from 0) of one or two columns; none means that they
/// are found by their usual names. Returns a note where lines were skipped.
pub(crate) fn for_each(
    path: &Path,
    columns: &[String],
    each: &mut dyn FnMut(Text),
) -> Result<Option<String>> {
    let file = staged::open(path)?;
    match extension(path).as_str() {
        "txt" => {
            lines(path, file, |_, line| {
                push(each, line, None);
                Ok(())
            })?;
            Ok(None)
        }
        "jsonl" | "ndjson" => json_lines(path, file, columns, each).map(|()| None),
        "tsv" => {
            let mut table = TextTable::new(path, columns);
            lines(path, file, |number, line| {
                let cells: Vec<&str> = line.split('\t').collect();
                let cells: Vec<String> = cells.into_iter().map(unquoted).collect();
                table.record(number, &cells, each)
            })?;
            table.finish()
        }
        "csv" => comma_separated(path, file, columns, each),
        _ => Err(Error::input(format!(
            "{} is no .txt, .jsonl, .tsv or .csv file",
            path.display()
        ))),
    }
}

fn push(each: &mut dyn FnMut(Text), first: &str, second: Option<&str>) {
    let first = first.trim();
    let second = second.map(str::trim).filter(|s| !s.is_empty());
    if !first.is_empty() {
        each(Text {
            first: first.to_owned(),
            second: second.map(str::to_owned),
        });
    }
}

/// Calls `each` with the number (from 1) and text of every line that is not empty.
fn lines(path: &Path, file: File, mut each: impl FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = (&mut reader)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::io("cannot read", path, e))?;
        if read == 0 {
            break;
        }
        let at = || format!("{}, line {number}", path.display());
        if read > MAX_LINE {
            return Err(Error::input(format!("{}: longer than {MAX_LINE} bytes", at())));
        }
        let text =
            std::str::from_utf8(&line).map_err(|e| Error::input(format!("{}: not UTF-8 ({e})", at())))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let text = if number == 1 {
            text.strip_prefix('\u{feff}').unwrap_or(text)
        } else {
            text
        };
        if !text.trim().is_empty() {
            each(number, text)?;
        }
    }
    Ok(())
}

fn json_lines(path: &Path, file: File, columns: &[String], each: &mut dyn FnMut(Text)) -> Result<()> {
    let mut columns = columns.to_vec();
    lines(path, file, |number, line| {
        let at = |what: String| Error::input(format!("{}, line {number}: {what}", path.display()));
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| at(format!("not valid JSON: {e}")))?;
        let object = match &value {
            serde_json::Value::String(text) => {
                push(each, text, None);
                return Ok(());
            }
            serde_json::Value::Object(object) => object,
            _ => return Err(at("a JSON object or string is expected".to_owned())),
        };
        if columns.is_empty() {
            let keys: Vec<&str> = object.keys().map(String::as_str).collect();
            let found = usual_columns(&keys).ok_or_else(|| {
                at(format!(
                    "no key is known to hold text; choose one or two with --text-column from: {}",
                    keys.join(", ")
                ))
            })?;
            columns = found
                .iter()
                .filter_map(|&i| keys.get(i).map(|k| (*k).to_owned()))
                .collect();
        }
        let mut texts = Vec::new();
        for column in &columns {
            match object.get(column) {
                Some(serde_json::Value::String(text)) => texts.push(text.as_str()),
                Some(serde_json::Value::Null) => return Ok(()),
                Some(_) => return Err(at(format!("'{column}' is not a string"))),
                None => {
                    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                    return Err(at(format!("no key '{column}'; there are: {}", keys.join(", "))));
                }
            }
        }
        if let [first, rest @ ..] = texts.as_slice() {
            push(each, first, rest.first().copied());
        }
        Ok(())
    })
}

/// A cell as it was before it was quoted. GLUE's files hold quotation marks that
/// quote nothing, so only a cell with doubled ones inside counts as quoted.
fn unquoted(cell: &str) -> String {
    let inner = cell.strip_prefix('"').and_then(|c| c.strip_suffix('"'));
    match inner {
        Some(inner) if inner.contains("\"\"") && !inner.replace("\"\"", "").contains('"') => {
            inner.replace("\"\"", "\"")
        }
        _ => cell.to_owned(),
    }
}

fn comma_separated(
    path: &Path,
    file: File,
    columns: &[String],
    each: &mut dyn FnMut(Text),
) -> Result<Option<String>> {
    let read = Rc::new(Cell::new(0));
    let bounded = Bounded {
        inner: file,
        read: Rc::clone(&read),
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(bounded);
    let mut table = TextTable::new(path, columns);
    let mut record = csv::ByteRecord::new();
    loop {
        let number = reader.position().line();
        let more = reader
            .read_byte_record(&mut record)
            .map_err(|e| match e.into_kind() {
                csv::ErrorKind::Io(e) if e.kind() != std::io::ErrorKind::FileTooLarge => {
                    Error::io("cannot read", path, e)
                }
                _ => Error::input(format!(
                    "{}, line {number}: a record is longer than {MAX_LINE} bytes; is a quotation mark \
                 left open?",
                    path.display()
                )),
            })?;
        read.set(0);
        if !more {
            break;
        }
        let mut cells = Vec::with_capacity(record.len());
        for (i, cell) in record.iter().enumerate() {
            let cell = std::str::from_utf8(cell)
                .map_err(|e| Error::input(format!("{}, line {number}: not UTF-8 ({e})", path.display())))?;
            let bom = if number == 1 && i == 0 { '\u{feff}' } else { '\0' };
            cells.push(cell.strip_prefix(bom).unwrap_or(cell).to_owned());
        }
        table.record(number, &cells, each)?;
    }
    table.finish()
}

/// Stops a record that never ends, as after an unclosed quotation mark.
struct Bounded {
    inner: File,
    read: Rc<Cell<usize>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.read.get() > MAX_LINE {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let n = self.inner.read(buffer)?;
        self.read.set(self.read.get() + n);
        Ok(n)
    }
}

/// Picks the columns of a table whose first line may be a header.
struct TextTable<'a> {
    path: &'a Path,
    wanted: &'a [String],
    columns: Option<Vec<usize>>,
    used: u64,
    skipped: u64,
    first_skipped: u64,
}

impl<'a> TextTable<'a> {
    fn new(path: &'a Path, wanted: &'a [String]) -> Self {
        Self {
            path,
            wanted,
            columns: None,
            used: 0,
            skipped: 0,
            first_skipped: 0,
        }
    }

    fn record(&mut self, number: u64, cells: &[String], each: &mut dyn FnMut(Text)) -> Result<()> {
        if self.columns.is_none() {
            let (columns, header) = self.choose(cells)?;
            self.columns = Some(columns);
            if header {
                return Ok(());
            }
        }
        let columns = self.columns.as_deref().unwrap_or_default();
        let texts: Option<Vec<&str>> = columns
            .iter()
            .map(|&i| cells.get(i).map(String::as_str))
            .collect();
        match texts.as_deref() {
            Some([first, rest @ ..]) => {
                self.used += 1;
                push(each, first, rest.first().copied());
            }
            _ => {
                self.skipped += 1;
                if self.first_skipped == 0 {
                    self.first_skipped = number;
                }
            }
        }
        Ok(())
    }

    /// The columns, and whether the first line, `cells`, names them.
    fn choose(&self, cells: &[String]) -> Result<(Vec<usize>, bool)> {
        let names: Vec<String> = cells.iter().map(|c| c.trim().to_lowercase()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let known =
            |name: &&str| OTHER_COLUMNS.contains(name) || TEXT_COLUMNS.iter().any(|set| set.contains(name));
        let looks_like_header = names.iter().any(known);
        if self.wanted.is_empty() {
            if let Some(columns) = usual_columns(&names) {
                return Ok((columns, true));
            }
            // Text, or text and label, without a header.
            if !looks_like_header && names.len() <= 2 {
                return Ok((vec![0], false));
            }
        } else {
            let by_name: Option<Vec<usize>> = (self.wanted.iter())
                .map(|w| names.iter().position(|name| *name == w.trim().to_lowercase()))
                .collect();
            if let Some(columns) = by_name {
                return Ok((columns, true));
            }
            let by_number: Option<Vec<usize>> = (self.wanted.iter())
                .map(|w| w.trim().parse().ok().filter(|&i| i < names.len()))
                .collect();
            if let Some(columns) = by_number {
                return Ok((columns, looks_like_header));
            }
        }
        let asked = match self.wanted {
            [] => "no column is known to hold text".to_owned(),
            wanted => format!("no column '{}'", wanted.join("' or '")),
        };
        Err(Error::input(format!(
            "{}: {asked}; the first line has {} columns: {}. Choose with --text-column, by name or \
             by number from 0",
            self.path.display(),
            cells.len(),
            shortened(&cells.join(" | "))
        )))
    }

    fn finish(self) -> Result<Option<String>> {
        if self.skipped == 0 {
            return Ok(None);
        }
        let what = format!(
            "{}: {} lines have fewer columns than the first (line {} is the first such)",
            self.path.display(),
            self.skipped,
            self.first_skipped
        );
        if self.skipped > self.used / 10 {
            return Err(Error::input(what));
        }
        Ok(Some(format!("{what} and were skipped")))
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// The columns of `names` that usually hold text.
fn usual_columns(names: &[&str]) -> Option<Vec<usize>> {
    TEXT_COLUMNS.iter().find_map(|set| {
        set.iter()
            .map(|column| names.iter().position(|name| name == column))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotation_marks() {
        assert_eq!(unquoted("\"a \"\"b\"\"\""), "a \"b\"");
        // As they stand in GLUE.
        assert_eq!(unquoted("\"a\" b"), "\"a\" b");
        assert_eq!(unquoted("\"a\" and \"b\""), "\"a\" and \"b\"");
        assert_eq!(unquoted("\"a\""), "\"a\"");
        assert_eq!(unquoted("\""), "\"");
    }
}
