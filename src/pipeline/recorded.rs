//! What was asked for, as reports, metadata and the repeated command line have it.

use std::collections::BTreeMap;

use super::declared::{DECLARED, Takes};
use super::options::Options;
use crate::budget::Goal;

/// What decides the result: the goal, and every option with its value.
pub(super) fn described(options: &Options, goal: &Goal) -> BTreeMap<String, serde_json::Value> {
    let mut out = BTreeMap::new();
    out.insert("goal".to_owned(), goal.to_string().into());
    let budgets = [
        "flops", "params", "size", "latency", "speedup", "max-drop", "eval", "mask",
    ];
    for option in DECLARED
        .iter()
        .filter(|o| o.is_recorded() && !budgets.contains(&o.name))
    {
        let words = (option.tell)(options);
        let words: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        let value = match (option.takes, &words[..]) {
            (Takes::Nothing, words) => (!words.is_empty()).into(),
            (Takes::One(_), [word]) => value_of(word),
            (Takes::One(_), _) => serde_json::Value::Null,
            (Takes::List(_), [words]) => words.split(',').collect(),
            (_, words) => words.to_vec().into(),
        };
        out.insert(option.name.replace('-', "_"), value);
    }
    out
}

/// A number, or the word itself.
fn value_of(word: &str) -> serde_json::Value {
    match word.parse::<serde_json::Number>() {
        Ok(number) => number.into(),
        Err(_) => word.into(),
    }
}

/// The words of the command line that ask for the same, less files.
pub(super) fn words(options: &Options, goal: &Goal) -> Vec<std::ffi::OsString> {
    let mut asked = options.clone();
    if let Goal::Limits(demands) = goal {
        asked.demands.clone_from(demands);
    }
    DECLARED.iter().flat_map(|option| option.words(&asked)).collect()
}
