//! What is no model that is pruned: copied, brought up to date, or left out.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::super::loaded::with_vocabulary;
use super::super::vocabulary;
use super::{FolderRun, REPORT};
use crate::folder::{CacheSize, Changes, ConfigEdit, FolderModel, MAX_CONFIG, ModelFolder, edited};
use crate::io::new_folder::folder_within;
use crate::io::staged;
use crate::onnx::{self, proto};
use crate::{Error, Result, data, engine};

impl FolderRun<'_> {
    /// Notes the side files of a model, which are written with it.
    pub(super) fn hold(&mut self, model: &Path) -> Result<()> {
        let file = onnx::load(&self.found.root.join(model))?;
        let root = &self.found.root;
        let own = file.notes.external_files.iter();
        self.held.extend(own.filter_map(|path| {
            let within = path.strip_prefix(root).ok();
            let within = within.map(Path::to_owned).or_else(|| {
                let path = path.canonicalize().ok()?;
                Some(path.strip_prefix(root.canonicalize().ok()?).ok()?.to_owned())
            });
            within.or_else(|| Some(model.parent()?.join(path.file_name()?)))
        }));
        Ok(())
    }

    /// A model with nothing to prune, and its other forms: with fewer tokens, where it has
    /// some.
    pub(super) fn as_it_is(&mut self, model: &FolderModel, why: &str) -> Result<()> {
        for file in std::iter::once(&model.file)
            .chain(&model.variants)
            .chain(&model.copies)
        {
            let shown = file.display();
            if self.only_fewer_tokens(file)? {
                self.notes.push(format!(
                    "{shown} has a smaller vocabulary, and that is all: {why}"
                ));
            } else {
                self.saved(&self.found.root.join(file), file)?;
                self.notes.push(format!("{shown} is copied as it is: {why}"));
            }
        }
        Ok(())
    }

    /// Writes a model of which nothing goes but tokens; `false` where it has none.
    fn only_fewer_tokens(&self, file: &Path) -> Result<bool> {
        if !self.options.vocabulary.is_asked() {
            return Ok(false);
        }
        let path = self.found.root.join(file);
        let loaded = with_vocabulary(&path, &self.options)?;
        let Some(trimmed) = &loaded.vocabulary else {
            return Ok(false);
        };
        let engine = engine::choose(&self.options.engine)?;
        let _unchecked = vocabulary::check(engine.as_ref(), trimmed, &self.options)?;
        if !self.options.dry_run {
            let model = loaded.with_fewer_tokens(trimmed)?;
            let save = onnx::SaveOptions::for_model(&loaded.file);
            onnx::save(&model, &self.made.join(file), &save)?;
        }
        Ok(true)
    }

    pub(super) fn copied(&self, model: &Path, copy: &Path) -> Result<()> {
        match self.options.dry_run {
            true => Ok(()),
            false => self.saved(&self.made.join(model), copy),
        }
    }

    pub(super) fn saved(&self, from: &Path, to: &Path) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let file = onnx::load(from)?;
        onnx::save(
            &file.proto,
            &self.made.join(to),
            &onnx::SaveOptions::for_model(&file),
        )?;
        Ok(())
    }

    pub(super) fn note_caches(&mut self, file: &Path) -> Result<()> {
        if self.options.dry_run || !self.options.axes.change_interface {
            return Ok(());
        }
        for (root, sizes) in [self.found.root.as_path(), self.made]
            .into_iter()
            .zip(&mut self.caches)
        {
            sizes.extend(caches(&onnx::load(&root.join(file))?.proto));
        }
        Ok(())
    }

    /// Copies what is no model, brought up to date.
    pub(super) fn others(&mut self) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let [before, after] = &self.caches;
        if let (true, Some(size)) = (after.len() == 1 && before != after, after.first()) {
            self.changes.caches = Some(*size);
        }
        let models = self.found.models.iter().flat_map(|m| {
            let own = std::iter::once(&m.file);
            own.chain(&m.variants).chain(&m.copies)
        });
        let models: BTreeSet<&PathBuf> = models.collect();
        let tokenizer = &self.places.tokenizer;
        if let Some(vocabulary) = &self.changes.vocabulary
            && !self.found.files.contains(tokenizer)
        {
            staged::write(&self.made.join(tokenizer), &vocabulary.tokenizer)?;
        }
        let unchanged = Changes::default();
        for file in &self.found.files {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if models.contains(file) || self.held.contains(file) || file == Path::new(REPORT) {
                continue;
            }
            let (from, to) = (self.found.root.join(file), self.made.join(file));
            if to.symlink_metadata().is_ok() {
                self.notes.push(format!(
                    "{} is left out: the weights of a model have its name now",
                    file.display()
                ));
                continue;
            }
            folder_within(self.made, file.parent().unwrap_or(Path::new("")))?;
            let size = from
                .metadata()
                .map_err(|e| Error::io("cannot read", &from, e))?
                .len();
            let changes = match self.places.concern(file) {
                true => &self.changes,
                false => &unchanged,
            };
            let edit = match size <= MAX_CONFIG {
                true => edited(file, &staged::read(&from, MAX_CONFIG)?, changes)?,
                false => edited(file, &[], changes)?,
            };
            match edit {
                ConfigEdit::Changed(bytes) => staged::write(&to, &bytes)?,
                ConfigEdit::LeftOut(why) => self.notes.push(format!("{} is left out: {why}", file.display())),
                ConfigEdit::Same => {
                    copy(&from, &to).map_err(|e| Error::io("cannot copy", &from, e))?;
                }
            }
        }
        Ok(())
    }
}

/// Copies what a file holds; who may read it is as for any new file.
fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    std::io::copy(&mut File::open(from)?, &mut File::create_new(to)?)
}

/// Whether a configuration has a place for the size of a cache.
pub(super) fn states_caches(found: &ModelFolder) -> bool {
    let stated = |file: &&PathBuf| {
        let name = file.file_name().and_then(|n| n.to_str());
        matches!(name, Some("config.json" | "genai_config.json"))
    };
    let has = |file: &PathBuf| {
        let bytes = staged::read(&found.root.join(file), MAX_CONFIG).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains("\"num_key_value_heads\"")
    };
    found.files.iter().filter(stated).any(has)
}

/// The sizes of the caches that a model reads.
fn caches(model: &proto::ModelProto) -> BTreeSet<CacheSize> {
    let specs = data::input_specs(model).unwrap_or_default();
    let size = |spec: &data::InputSpec| match (&spec.dims[..], spec.name.starts_with("past")) {
        ([_, heads, _, channels], true) => Some(CacheSize {
            heads: heads.fixed()?,
            channels: channels.fixed()?,
        }),
        _ => None,
    };
    specs.iter().filter_map(size).collect()
}
