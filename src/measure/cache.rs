//! Tables of earlier runs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::latency::{LatencyOptions, LatencyTable};
use crate::engine::EngineInfo;
use crate::io::staged::{self, Staged};
use crate::tensor::Feeds;
use crate::{Error, Result};

/// Far more than tables of many models take.
const MOST: u64 = 1 << 26;

/// What a table belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey(String);

impl CacheKey {
    /// All that latency depends on: the model (its SHA-256 and how it was
    /// changed before it was timed), engine, device, threads, shapes of the
    /// inputs, how it was measured.
    pub fn new(
        sha256: &str,
        changes: &str,
        engine: &EngineInfo,
        inputs: &Feeds,
        options: LatencyOptions,
    ) -> Self {
        let shapes: Vec<String> = inputs
            .iter()
            .map(|(name, t)| format!("{name}{:?}", t.shape))
            .collect();
        CacheKey(format!(
            "{sha256} {changes} {} {} {} threads={} {} runs={} align={}",
            engine.name,
            engine.version,
            engine.device,
            engine.threads,
            shapes.join(" "),
            options.runs,
            options.align,
        ))
    }
}

/// A file with tables. One that cannot be read counts as empty: it is only a
/// cache.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    tables: BTreeMap<String, LatencyTable>,
}

impl Cache {
    /// Reads the file, if there is one.
    pub fn open(path: &Path) -> Self {
        let bytes = staged::read(path, MOST).unwrap_or_default();
        Cache {
            path: path.to_path_buf(),
            tables: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    /// The usual place: `onnx-prune/latency.json` in the user's cache folder;
    /// `None` where there is no such folder.
    pub fn usual_path() -> Option<PathBuf> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let folder = set("XDG_CACHE_HOME")
            .or_else(|| set("LOCALAPPDATA"))
            .or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(folder.join("onnx-prune").join("latency.json"))
    }

    /// The table of a key.
    pub fn get(&self, key: &CacheKey) -> Option<&LatencyTable> {
        self.tables.get(&key.0)
    }

    /// Keeps a table, in the file too, which appears whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn put(&mut self, key: &CacheKey, table: LatencyTable) -> Result<()> {
        // Another run may have added to the file meanwhile.
        let mut all = Cache::open(&self.path).tables;
        all.append(&mut self.tables);
        all.insert(key.0.clone(), table);
        self.tables = all;
        let text = serde_json::to_string_pretty(&self.tables)
            .map_err(|e| Error::input(format!("the latency table cannot be written: {e}")))?;
        std::fs::create_dir_all(staged::folder_of(&self.path))
            .map_err(|e| Error::io("cannot write", &self.path, e))?;
        let mut staged = Staged::default();
        // Not to a pipe, which might wait for a reader.
        staged.file(&self.path, |file| file.write_all(text.as_bytes()))?;
        staged.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::latency::TimedPart;
    use crate::measure::paired::Spread;

    #[test]
    fn tables_are_found_again_by_their_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper").join("latency.json");
        let engine = |threads| EngineInfo {
            name: "onnxruntime",
            version: "1".into(),
            device: "cpu".into(),
            threads,
            library: None,
            note: None,
        };
        let key = |threads| {
            CacheKey::new(
                "ab",
                "",
                &engine(threads),
                &Feeds::new(),
                LatencyOptions::default(),
            )
        };
        let table = LatencyTable {
            whole: Spread::of(&[1.0]),
            parts: BTreeMap::from([("g".to_string(), TimedPart::new(vec![(0, 0.0), (4, 0.25)]))]),
            channels: Vec::new(),
        };
        let mut cache = Cache::open(&path);
        assert_eq!(cache.get(&key(1)), None);
        cache.put(&key(1), table.clone()).unwrap();
        let again = Cache::open(&path);
        assert_eq!(again.get(&key(1)), Some(&table));
        assert_eq!(again.get(&key(2)), None);
        std::fs::write(&path, "no json").unwrap();
        assert_eq!(Cache::open(&path).get(&key(1)), None);
    }
}
