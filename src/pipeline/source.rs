//! A network with the groups that may be pruned, inputs, and an engine.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::form::Form;
use super::journal::Journal;
use super::loaded::{Loaded, Opened, open};
use super::options::Options;
use super::simplified::Simplified;
use super::sizes;
use super::vocabulary;
use crate::budget::{Cost, Sizes};
use crate::calibrate::{self, SiteProbe};
use crate::data::{self, Samples, SeenSizes, split};
use crate::engine::{self, Ctx, Engine, Metered};
use crate::graph::ValueId;
use crate::network::Network;
use crate::onnx::proto;
use crate::progress::Progress;
use crate::rank::Method;
use crate::refit::Reconstruct;
use crate::rewrite::heads::OutputHead;
use crate::sites::{self, PruneTarget};
use crate::{Error, Result, axes};

/// Samples on which sliced and masked are compared, and the tokens that are enough.
const EQUALITY_SAMPLES: std::ops::RangeInclusive<usize> = 2..=8;
const EQUALITY_TOKENS: usize = 512;

/// What calibration watches.
///
/// # Errors
/// [`Error::NothingPrunable`] where there is nothing to watch.
pub(super) fn probes(targets: &[PruneTarget]) -> Result<Vec<SiteProbe>> {
    let sites = targets.iter().flat_map(|t| &t.sites);
    let probes: Vec<SiteProbe> = sites.filter_map(|s| s.probe.clone()).collect();
    if probes.is_empty() {
        return Err(Error::NothingPrunable(
            "nothing in this model can be ranked: the weights behind all heads and neurons are quantised in blocks or computed (--mask with --reconstruct none can still remove some)"
                .into(),
        ));
    }
    Ok(probes)
}

/// What a run starts from.
pub struct Source<'a> {
    /// What was read.
    pub loaded: Loaded,
    /// What was asked.
    pub options: &'a Options,
    /// What runs models.
    pub engine: Metered,
    /// The groups that may be pruned.
    pub targets: Vec<PruneTarget>,
    /// What the lossless rewrites make of the network.
    pub simplified: Option<Simplified>,
    /// Samples that statistics are taken of.
    pub samples: Samples,
    /// Samples kept apart for measuring.
    pub held_out: Samples,
    /// Sizes that costs are computed for.
    pub sizes: Sizes,
    /// What the inputs of the samples have.
    pub(super) seen: SeenSizes,
    /// SHA-256 of the input, side files included.
    pub sha256: String,
    /// How weights come in the file, where that is not how they are pruned.
    pub(super) form: Option<Form>,
    pub(super) journal: Journal,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancelled: &'a AtomicBool,
}

impl<'a> Source<'a> {
    /// Reads the model and the samples.
    ///
    /// # Errors
    /// Bad input, an engine that is not there, nothing that can be pruned.
    pub fn read(
        input: &Path,
        options: &'a Options,
        progress: &'a dyn Progress,
        cancelled: &'a AtomicBool,
    ) -> Result<Self> {
        options.check()?;
        let mut journal = Journal::new(options.strict);
        let Opened {
            loaded,
            unknown,
            form,
            targets,
        } = open(input, options)?;
        if let Some(text) = unknown {
            journal.warn("operators", text)?;
        }
        for pattern in &options.selection.exclude {
            let named = |g: &axes::PruneGroup| sites::is_named(g, pattern);
            if !loaded.network.axes.groups.iter().any(named) {
                journal.notes.push(format!(
                    "--exclude '{pattern}' matches no group: `inspect` lists their names and places"
                ));
            }
        }
        let sha256 = loaded.file.sha256()?;
        journal.notes.extend(loaded.notes.iter().cloned());
        journal.lap("analysis");
        let engine = Metered::new(engine::choose(&options.engine)?);
        let model = &loaded.network.proto;
        let mut wanted = split::with_held_out(&options.data);
        if let Some(trimmed) = &loaded.vocabulary {
            if let Some(why) = vocabulary::check(&engine, trimmed, options)? {
                journal.warn(
                    "vocabulary",
                    format!("the model with fewer tokens was not compared with the whole one: {why}"),
                )?;
            }
            if options.vocabulary.chosen.is_none()
                && let Some(text) = vocabulary::too_few(&trimmed.tokens)
            {
                journal.warn("few-texts", text)?;
            }
            if !trimmed.drop_in {
                wanted.tokenizer = Some(trimmed.tokenizer_path());
            }
        }
        let all = data::read_samples(model, &wanted)?;
        let (mut samples, mut held_out) = split::split(all);
        // An engine that cannot run the model tells so where it matters.
        if calibrate::try_padding(&engine, model, &mut samples).is_ok() {
            held_out.padding = samples.padding;
        }
        let mut seen = SeenSizes::of(model, &samples)?;
        let run = |seen: &SeenSizes| sizes::sizes(&loaded.network, &options.data, seen, || Ok(&engine));
        let (sizes, why) = match run(&seen) {
            // Samples of a size that the model does not take fail where they are run.
            Err(_) if seen != SeenSizes::default() => {
                seen = SeenSizes::default();
                run(&seen)?
            }
            found => found?,
        };
        if let Some(error) = why {
            journal.warn(
                "sizes",
                format!(
                    "some run-time sizes are not known, since the model cannot be run ({error}); costs \
                     count them as --seq"
                ),
            )?;
        }
        journal.lap("inputs");
        let mut source = Source {
            loaded,
            options,
            engine,
            targets,
            simplified: None,
            samples,
            held_out,
            sizes,
            seen,
            sha256,
            form,
            journal,
            progress,
            cancelled,
        };
        source.check_outputs()?;
        if options.lossless {
            source.simplify()?;
        }
        Ok(source)
    }

    /// The outputs that are asked for are those of the model.
    fn check_outputs(&self) -> Result<()> {
        let graph = &self.network().graph;
        let known: Vec<&str> = graph
            .outputs
            .iter()
            .map(|o| graph.value(*o).name.as_str())
            .collect();
        match self
            .options
            .outputs
            .iter()
            .find(|name| !known.contains(&name.as_str()))
        {
            None => Ok(()),
            Some(name) => Err(Error::input(format!(
                "--outputs {name}: the model has no such output, it has {}",
                known.join(", ")
            ))),
        }
    }

    /// Applies the lossless rewrites where they help.
    fn simplify(&mut self) -> Result<()> {
        let found = Simplified::choose(
            &self.engine,
            self.dense(),
            (self.network(), self.options.axes),
            || self.timed_inputs(),
        );
        let found = self.journal.attempt(
            found,
            "lossless",
            "the lossless rewrites could not be made",
            "the model keeps work that changes no output",
        )?;
        if let Some((simplified, note)) = found {
            self.journal.notes.extend(note);
            self.simplified = simplified;
        }
        self.journal.lap("lossless");
        Ok(())
    }

    /// Another engine in place of the chosen one.
    #[must_use]
    pub fn with_engine(self, engine: Box<dyn Engine>) -> Self {
        Source {
            engine: Metered::new(engine),
            ..self
        }
    }

    /// The network that is pruned.
    pub fn network(&self) -> &Network {
        &self.loaded.network
    }

    /// What every stage that runs a model needs.
    pub fn ctx(&self) -> Ctx<'_> {
        Ctx {
            engine: &self.engine,
            progress: self.progress,
            cancelled: self.cancelled,
        }
    }

    /// The model as it was read, with quantised weights where it has some: what the
    /// result is judged by.
    pub fn dense(&self) -> &proto::ModelProto {
        match &self.form {
            Some(form) => &form.read,
            None => &self.network().proto,
        }
    }

    /// Costs of the model.
    pub fn cost(&self) -> Cost<'_> {
        let cost = Cost::new(self.network(), &self.sizes);
        match &self.simplified {
            Some(s) => cost.after(&s.network, &s.groups, &self.sizes),
            None => cost,
        }
    }

    /// Whether statistics from files are all there is.
    pub(super) fn without_samples(&self) -> bool {
        !self.options.stats.is_empty() && self.options.data.is_empty()
    }

    /// Whether damage is measured.
    pub(super) fn measures(&self) -> bool {
        let options = self.options;
        options.rank.method == Method::Obs && !options.has_mask() && !self.without_samples()
    }

    /// Whether anything is calibrated at all.
    pub fn needs_data(&self) -> bool {
        let options = self.options;
        let ranked = !options.has_mask() && options.rank.method != Method::Magnitude;
        ranked || options.reconstruction() != Reconstruct::None
    }

    /// Whether channels may go. A mask that is exported says nothing of them, and is to
    /// make the same model again.
    pub(super) fn narrows(&self) -> bool {
        let options = self.options;
        let fits = matches!(
            options.reconstruction(),
            Reconstruct::Sequential | Reconstruct::Local
        );
        let told = options.export_mask.is_none();
        options.narrow
            && told
            && fits
            && options.rank.method == Method::Obs
            && self.form.is_none()
            && self.loaded.inner.is_none()
    }

    /// The outputs that are compared: those asked for that keep their shape.
    pub(super) fn outputs(&self) -> Vec<ValueId> {
        let Network { graph, axes, .. } = self.network();
        let leaves: Vec<_> = self.targets.iter().map(|t| axes.group(t.group).leaf).collect();
        let whole = |v: &ValueId| {
            let dims = axes.facts(*v).dims.iter().flatten();
            !dims
                .flat_map(|d| axes.space.leaves(d))
                .any(|l| leaves.contains(&l))
        };
        let asked = &self.options.outputs;
        let is_asked = |v: &ValueId| asked.is_empty() || asked.contains(&graph.value(*v).name);
        graph
            .outputs
            .iter()
            .copied()
            .filter(is_asked)
            .filter(whole)
            .collect()
    }

    /// How many samples a check of equal outputs runs: a few, of which long ones have as
    /// many rows as all others together.
    ///
    /// # Errors
    /// Samples that do not fit the model.
    pub(super) fn equality_samples(&self) -> Result<usize> {
        let specs = data::input_specs(&self.network().proto)?;
        let count = self.samples.samples.len().max(1);
        let tokens = data::real_tokens(&self.samples, &specs) as usize / count;
        Ok((EQUALITY_TOKENS / tokens.max(1)).clamp(*EQUALITY_SAMPLES.start(), *EQUALITY_SAMPLES.end()))
    }

    /// How many samples a measurement of all groups runs: `asked`, or as many as
    /// make `passes` dense passes over all samples, within bounds. Each of its `changes`
    /// runs half of the network on average.
    pub(super) fn probed(
        &self,
        asked: Option<usize>,
        changes: usize,
        passes: f64,
        bounds: std::ops::RangeInclusive<usize>,
    ) -> usize {
        asked.unwrap_or_else(|| {
            let per_sample = 0.5 * changes as f64;
            let within = passes * self.samples.samples.len() as f64 / per_sample.max(1.0);
            // A sample of a language model is many answers, one per position.
            let least = match OutputHead::of(self.network(), &self.outputs()) {
                Some(_) => bounds.start().div_ceil(2),
                None => *bounds.start(),
            };
            let count = (within as usize).clamp(least, *bounds.end());
            count * self.options.effort.samples()
        })
    }
}
