//! Several models that hold the same weights: one plan for what they share.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::calibrated::{Calibrated, calibrate};
use super::options::Options;
use super::paths;
use super::plan::{Planner, search};
use super::ranked::{Ranked, rank};
use super::recorded::words;
use super::shards;
use super::source::Source;
use super::write::Finished;
use crate::budget::Goal;
use crate::budget::shared::{self, FileClass, SharedFile};
use crate::channels::{ChannelBlock, ChannelKind};
use crate::mask::Pattern;
use crate::numerics::Statistics;
use crate::progress::Progress;
use crate::refit::Reconstruct;
use crate::report::Report;
use crate::report::command::{Output, command};
use crate::{Error, Result, ResultExt};

/// Prunes several models that hold the same weights (an encoder and decoders) with
/// one plan for what they share; each goes to `folder` under its own name.
///
/// The goal is over all of them together. What they share is re-fitted on the
/// statistics of all, locally: so its new weights are the same in all files. `beside`
/// are files that the caller writes about them, which must be none of the inputs.
///
/// # Errors
/// As [`prune`](super::prune); two files of one name.
pub fn joint(
    inputs: &[PathBuf],
    folder: (&Path, &[(&str, &Path)]),
    options: &Options,
    progress: &dyn Progress,
    cancelled: &AtomicBool,
) -> Result<Vec<Report>> {
    if options.vocabulary.is_asked() {
        return Err(Error::input(
            "--vocab takes one model at a time: files that share a tokenizer would get one each",
        ));
    }
    let (folder, beside) = folder;
    let outputs = outputs(inputs, folder)?;
    let given: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let made = outputs.iter().map(|o| ("the output", o.as_path()));
    let made: Vec<(&str, &Path)> = made.chain(beside.iter().copied()).collect();
    let is_new = !options.dry_run && !folder.exists();
    if !options.dry_run {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
    }
    // A folder that was made for nothing goes; one with files in it cannot.
    let made_for_nothing = |result: Result<Vec<Report>>| {
        if is_new && result.is_err() {
            let _in_use = std::fs::remove_dir(folder);
        }
        result
    };
    if let Err(error) = paths::before(&given, &made, options) {
        return made_for_nothing(Err(error));
    }
    let run = JointRun {
        options: (inputs.iter())
            .map(|input| Ok(shards::with_samples(input, options)?.into_owned()))
            .collect::<Result<_>>()?,
        outputs: &outputs,
        made: &made,
        line: &command(&given, &Output::Folder(folder), &words(options, &options.goal())),
        variants: false,
    };
    made_for_nothing(run.run(inputs, progress, cancelled).map(|(reports, _)| reports))
}

/// Several files that are pruned with one plan.
pub(super) struct JointRun<'a> {
    /// Where they go.
    pub(super) outputs: &'a [PathBuf],
    /// The options of each, which differ in their data only.
    pub(super) options: Vec<Options>,
    /// Everything that is written, with what it is.
    pub(super) made: &'a [(&'a str, &'a Path)],
    /// The command line that does the same again.
    pub(super) line: &'a str,
    /// Whether other forms of them are to follow.
    pub(super) variants: bool,
}

impl JointRun<'_> {
    /// Reports, and what stays of each where heads keep their channels, if other forms are to
    /// follow.
    pub(super) fn run(
        mut self,
        inputs: &[PathBuf],
        progress: &dyn Progress,
        cancelled: &AtomicBool,
    ) -> Result<(Vec<Report>, Vec<Pattern>)> {
        for options in &mut self.options {
            if options.reconstruction() == Reconstruct::Sequential {
                options.refit.reconstruct = Reconstruct::Local;
            }
        }
        let mut calibrated = Vec::with_capacity(inputs.len());
        for (input, options) in inputs.iter().zip(&self.options) {
            let name = || input.file_name().unwrap_or_default().display().to_string();
            let source = Source::read(input, options, progress, cancelled).context(name)?;
            paths::side_files(&source.loaded, self.made, options)?;
            calibrated.push(calibrate(source).context(name)?);
        }
        let (calibrated, classes) = pooled(calibrated)?;
        let mut ranked = calibrated.into_iter().map(rank).collect::<Result<Vec<_>>>()?;
        share_channels(&mut ranked, &classes);
        let tied = classes.iter().filter(|c| c.is_tied()).count();
        let planner = Planner::joint(ranked.iter().collect(), classes)?;
        let goal = self
            .options
            .first()
            .map(Options::goal)
            .unwrap_or(Goal::flops(1.0));
        let paths: Vec<&Path> = self.outputs.iter().map(PathBuf::as_path).collect();
        let found = search(&planner, &goal, &paths)?;
        let got = together(&found.plans);
        let mut reports = Vec::new();
        let each = found.plans.iter().zip(found.pruned).zip(found.measured);
        for (((plan, pruned), measured), (ranked, output)) in each.zip(ranked.iter().zip(self.outputs)) {
            let finished = Finished {
                ranked,
                plan,
                pruned,
                measured,
            };
            let (mut report, staged) = finished.stage(output, self.line.to_owned())?;
            staged.commit()?;
            report.tried.clone_from(&found.tried);
            report.notes.push(format!(
                "{} files were pruned together: {tied} groups are shared, and all keep {got:.4} of their prunable blocks",
                inputs.len(),
            ));
            reports.push(report);
        }
        let patterns = match self.variants {
            // Heads alone may not reach what they reach with their channels.
            true => planner.patterns(got).unwrap_or_default(),
            false => Vec::new(),
        };
        Ok((reports, patterns))
    }
}

/// Where each file goes.
fn outputs(inputs: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let mut outputs: Vec<PathBuf> = Vec::new();
    for input in inputs {
        let name = input
            .file_name()
            .ok_or_else(|| Error::input(format!("{} is no file", input.display())))?;
        let output = folder.join(name);
        if outputs.contains(&output) {
            return Err(Error::input(format!(
                "two of the files are named {}: they would overwrite each other in --out-dir",
                name.to_string_lossy()
            )));
        }
        outputs.push(output);
    }
    Ok(outputs)
}

/// The fraction of the prunable blocks of all files that stays.
fn together(plans: &[super::Plan]) -> f64 {
    let mut spent = 0.0;
    let mut all = 0.0;
    for plan in plans {
        let budget = &plan.allocation.budget;
        spent += budget.got * budget.prunable as f64;
        all += budget.prunable as f64;
    }
    spent / f64::max(all, 1.0)
}

/// What the files share, with the statistics of all inputs of each shared weight.
fn pooled(mut calibrated: Vec<Calibrated>) -> Result<(Vec<Calibrated>, Vec<FileClass>)> {
    let taken = calibrated.iter_mut().map(|c| std::mem::take(&mut c.statistics));
    let mut statistics: Vec<Statistics> = taken.collect();
    let classes = {
        let files: Vec<SharedFile> = calibrated.iter().map(|c| of(&c.source)).collect();
        let classes = shared::tie(&files)?;
        shared::pool(&files, &classes, &mut statistics)?;
        classes
    };
    let pairs = calibrated.into_iter().zip(statistics);
    let calibrated = pairs.map(|(c, statistics)| c.with_statistics(statistics));
    Ok((calibrated.collect(), classes))
}

fn of<'s>(source: &'s Source) -> SharedFile<'s> {
    SharedFile {
        name: source
            .loaded
            .file
            .path
            .as_deref()
            .and_then(|p| p.to_str())
            .unwrap_or("a file"),
        network: source.network(),
        targets: &source.targets,
    }
}

/// Gives the heads that files share one basis, so that they stay one model; channels that
/// are not alike in all files stay.
fn share_channels(ranked: &mut [Ranked], classes: &[FileClass]) {
    for class in classes.iter().filter(|c| c.is_tied()) {
        for kind in [ChannelKind::Values, ChannelKind::QueriesAndKeys] {
            let find = |ranked: &[Ranked], member: &shared::Member| -> Option<usize> {
                let blocks = ranked[member.file].channels.as_ref()?.narrower.blocks();
                let own = |b: &ChannelBlock| b.at == member.target && b.kind() == kind;
                blocks.iter().position(own)
            };
            let found: Vec<Option<usize>> = class.members.iter().map(|m| find(ranked, m)).collect();
            let mut alike = found.iter().all(Option::is_some);
            if let (true, Some(first), Some(Some(at))) = (alike, class.members.first(), found.first()) {
                let block = ranked[first.file]
                    .channels
                    .as_ref()
                    .and_then(|c| c.narrower.blocks().get(*at));
                let block = block.cloned();
                for (member, at) in class.members.iter().zip(&found).skip(1) {
                    let channels = ranked[member.file].channels.as_mut();
                    let adopted = match (channels, at, &block) {
                        (Some(channels), Some(at), Some(block)) => channels.narrower.adopt(*at, block),
                        _ => false,
                    };
                    alike &= adopted;
                }
            }
            if !alike {
                for member in &class.members {
                    if let Some(at) = find(ranked, member)
                        && let Some(channels) = ranked[member.file].channels.as_mut()
                    {
                        channels.drop_block(at);
                    }
                }
            }
        }
    }
}
