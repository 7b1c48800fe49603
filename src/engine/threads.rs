//! How many threads work on one operator.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// The number asked for, or one per physical core this process may use.
pub(super) fn resolve(asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(0) => Err(Error::input("--threads must be at least 1")),
        Some(threads) => Ok(threads),
        None => Ok(default()),
    }
}

/// One per physical core, since two threads of one core share its multipliers,
/// and never more than the process may use (affinity and container limits).
fn default() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let physical = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| physical_cores(&text));
    physical.map_or(available, |cores| cores.min(available))
}

/// Distinct pairs of socket and core in the text of Linux's `/proc/cpuinfo`;
/// `None` where it does not say.
fn physical_cores(cpuinfo: &str) -> Option<usize> {
    let mut cores = BTreeSet::new();
    let mut socket = None;
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key.trim() {
            "physical id" => socket = Some(value.trim()),
            "core id" => {
                cores.insert((socket?, value.trim()));
            }
            _ => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperthreads_count_once() {
        let text = "processor\t: 0\nphysical id\t: 0\ncore id\t\t: 0\n\n\
                    processor\t: 1\nphysical id\t: 0\ncore id\t\t: 0\n\n\
                    processor\t: 2\nphysical id\t: 1\ncore id\t\t: 0\n";
        assert_eq!(physical_cores(text), Some(2));
        assert_eq!(physical_cores("processor : 0\nmodel name : x\n"), None);
    }

    #[test]
    fn there_is_always_a_thread() {
        assert!(default() >= 1);
        assert_eq!(resolve(Some(3)).ok(), Some(3));
    }
}
