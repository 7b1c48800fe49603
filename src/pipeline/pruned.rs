//! From a plan to a smaller model: re-fitted, sliced, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::branch;
use super::journal::Journal;
use super::plan::Plan;
use super::ranked::Ranked;
use super::recorded::described;
use crate::data::{self, Samples, split};
use crate::engine::{Engine as _, Session, SessionOptions};
use crate::graph::{ValueId, ancestors};
use crate::mask::{self, Mask};
use crate::network::Network;
use crate::numerics::SiteStatistics;
use crate::onnx::{proto, provenance};
use crate::refit::{self, InOrder, Layers, Local, Passes, Reconstruct};
use crate::rewrite::heads::OutputHead;
use crate::rewrite::lossless::{self, LosslessPass};
use crate::rewrite::{self, Sliced};
use crate::sites::{Fit, Fitted, PruneTarget};
use crate::tensor::{Feeds, Tensor};
use crate::verify::{self, Comparison, Equality, Interface};
use crate::{Error, Result};

/// What a fallback to local fits costs, measured on a six-layer BERT.
const LOCAL_COSTS: &str = "the local fits stay; on a six-layer BERT that made the divergence a tenth larger at 60% and four fifths larger at 30%";

/// A smaller model and what is known about it.
#[derive(Clone)]
pub struct Pruned {
    /// The model.
    pub model: proto::ModelProto,
    /// Decoders that share its weights, where it is inside of a node with them.
    pub(super) others: Vec<proto::ModelProto>,
    /// What re-fitting did.
    pub fitted: Vec<Fitted>,
    /// Sliced against masked.
    pub equality: Equality,
    /// What it has of the dense model's inputs and outputs.
    pub interface: Interface,
    /// Lossless rewrites that it went through.
    pub passes: Vec<LosslessPass>,
    pub(super) journal: Journal,
}

/// A smaller model against the dense one on samples kept apart.
pub struct HeldOut {
    /// The comparison.
    pub comparison: Comparison,
    /// Seconds that the dense model's own passes over all samples take, by those over
    /// these.
    pub dense_seconds: f64,
}

/// What is pruned: the network as it was read, or with fewer channels in its heads.
struct Subject<'s> {
    network: Network,
    targets: &'s [PruneTarget],
    mask: Mask,
    /// Statistics of the sites that are narrower than before.
    narrower: &'s BTreeMap<String, SiteStatistics>,
}

impl<'a> Ranked<'a> {
    /// The model that a plan makes: re-fitted, sliced, and checked against the
    /// masked one.
    ///
    /// # Errors
    /// The engine's; [`Error::Unmet`] when sliced and masked differ.
    pub fn build(&self, plan: &Plan) -> Result<Pruned> {
        let source = self.source();
        let mut journal = Journal::new(source.options.strict);
        let none = BTreeMap::new();
        let mut subject = match &plan.narrowed {
            Some(n) => Subject {
                network: n.network.clone(),
                targets: &n.targets,
                mask: n.mask(self.targets(), &plan.allocation.mask),
                narrower: &n.statistics,
            },
            None => Subject {
                network: self.network().clone(),
                targets: self.targets(),
                mask: plan.allocation.mask.clone(),
                narrower: &none,
            },
        };
        let how = source.options.reconstruction();
        let mut fits = match how {
            Reconstruct::None => Vec::new(),
            _ => self.local_fits(&subject, &mut journal)?,
        };
        let sequential = how == Reconstruct::Sequential && self.calibrated.guarded && !fits.is_empty();
        if how == Reconstruct::Sequential && !self.calibrated.guarded && !source.without_samples() {
            journal.warn(
                "refit-local",
                format!(
                    "{} samples are too few to re-fit layers in order; {LOCAL_COSTS}",
                    source.samples.samples.len()
                ),
            )?;
        }
        let layers = Layers::masked(&subject.network, subject.targets, &subject.mask);
        let interface = Interface::new(&subject.network, &subject.mask);
        // What is sliced first runs faster, where it takes what the dense model takes.
        let sliced_first =
            sequential && interface.is_same() && layers.are_recorded(&self.calibrated.recording);
        if sequential && !sliced_first {
            let made = self.in_order(&layers, fits.clone());
            if let Some(better) = or_local(made, &mut journal)? {
                fits = vec![better];
            }
        }
        journal.lap("re-fitting");
        let mut told: Vec<Fitted> = fits.iter().flatten().map(|f| f.told.clone()).collect();
        for fit in fits.iter().flatten() {
            fit.put(&mut subject.network)?;
        }
        let Subject {
            network,
            targets,
            mask,
            ..
        } = subject;
        let mut sliced = rewrite::slice(&network, &mask, source.options.axes)?;
        let few = split::spread(&source.samples, source.equality_samples()?);
        let groups: Vec<_> = targets.iter().map(|t| t.group).collect();
        let proto = &sliced.network.proto;
        let mut equality = verify::sliced_equals_masked(source.ctx(), &network, &groups, &mask, proto, &few)?;
        equality.require()?;
        journal.lap("equality");
        if sliced_first {
            let made = self.in_order_sliced(&sliced, &network, targets, &mask, &fits);
            if let Some(better) = or_local(made, &mut journal)? {
                for fit in &better {
                    fit.put(&mut sliced.network)?;
                }
                told = better.into_iter().map(|f| f.told).collect();
            }
            journal.lap("re-fitting");
        }
        let others = source.loaded.inner.iter().flat_map(|inner| &inner.others);
        let others = others.map(|(_, other)| {
            let pruned = &sliced.network.proto;
            branch::follow(
                source.ctx(),
                other,
                (&network, targets, &mask),
                pruned,
                source.options,
            )
        });
        let others = others.collect::<Result<Vec<_>>>()?;
        drop(network);
        let model = match &source.form {
            Some(form) => {
                let (model, written) = form.close(sliced.network.proto)?;
                if let [first, rest @ ..] = &written.constants[..] {
                    let more = match rest.len() {
                        0 => String::new(),
                        n => format!(" and {n} more"),
                    };
                    journal.notes.push(format!(
                        "weights that were computed are one constant each now: '{first}'{more}"
                    ));
                }
                model
            }
            None => sliced.network.proto,
        };
        let (mut model, mut passes) =
            self.last_passes(model, &few, &interface, &mut equality, &mut journal)?;
        // Inside of a node the other decoders read the copy, too.
        if source.options.lossless
            && source.loaded.inner.is_none()
            && let Some((shared, copies)) = lossless::share(&model)
        {
            model = shared;
            passes.extend(copies);
        }
        journal.lap("equality");
        self.stamp(&mut model, plan)?;
        Ok(Pruned {
            model,
            others,
            fitted: told,
            equality,
            interface,
            passes,
            journal,
        })
    }

    /// Fits on the dense model's statistics, per target.
    fn local_fits(&self, subject: &Subject, journal: &mut Journal) -> Result<Vec<Vec<Fit>>> {
        let local = Local {
            network: &subject.network,
            targets: subject.targets,
            mask: &subject.mask,
            options: self.source().options.refitting(),
        };
        let fits = local.fits((&self.calibrated.statistics, subject.narrower));
        let fits = journal.attempt(
            fits,
            "refit-none",
            "the weights that stay could not be re-fitted",
            "they stay as they are, which made the divergence of a six-layer BERT 30 times as large",
        )?;
        Ok(fits.unwrap_or_default())
    }

    /// Fits in order, of a network that has the mask still before it or behind it.
    fn in_order(&self, layers: &Layers, priors: Vec<Vec<Fit>>) -> Result<InOrder> {
        let (calibrated, source) = (&self.calibrated, self.source());
        let passes = Passes {
            samples: &source.samples,
            recording: &calibrated.recording,
            is_ridge_holdout: split::is_ridge_holdout,
            positions: &calibrated.positions,
        };
        let others = source.options.refit.others;
        refit::sequential(source.ctx(), self.network(), layers, priors, passes, others)
    }

    /// The same of a network that is sliced and has the local fits in it. `network`,
    /// `targets` and `mask` are those before it was.
    fn in_order_sliced(
        &self,
        sliced: &Sliced,
        network: &Network,
        targets: &[PruneTarget],
        mask: &Mask,
        fits: &[Vec<Fit>],
    ) -> Result<InOrder> {
        let layers = Layers::sliced(sliced, network, targets, mask);
        let priors = layers.parts()?.into_iter().zip(fits).map(|(parts, fits)| {
            let prior = |part: &crate::sites::Part| {
                let mut prior = part.unchanged();
                let site = part.sites.first().map(|s| &s.name);
                if let Some(fit) = fits.iter().find(|f| Some(&f.told.site) == site) {
                    prior.told.clone_from(&fit.told);
                }
                prior
            };
            parts.iter().map(prior).collect()
        });
        self.in_order(&layers, priors.collect())
    }

    /// The sliced model after the lossless rewrites, checked against itself; as it is,
    /// where these fail.
    fn last_passes(
        &self,
        sliced: proto::ModelProto,
        samples: &Samples,
        interface: &Interface,
        equality: &mut Equality,
        journal: &mut Journal,
    ) -> Result<(proto::ModelProto, Vec<LosslessPass>)> {
        if self.source().simplified.is_none() {
            return Ok((sliced, Vec::new()));
        }
        let made = self.simplified(&sliced, samples, interface, equality);
        let made = journal.attempt(
            made,
            "lossless",
            "the lossless rewrites could not be made on the pruned model",
            "it keeps work that changes no output, and costs more than was planned",
        )?;
        Ok(match made.flatten() {
            Some(made) => made,
            None => (sliced, Vec::new()),
        })
    }

    fn simplified(
        &self,
        sliced: &proto::ModelProto,
        samples: &Samples,
        interface: &Interface,
        equality: &mut Equality,
    ) -> Result<Option<(proto::ModelProto, Vec<LosslessPass>)>> {
        let source = self.source();
        let (model, passes) = lossless::apply(sliced)?;
        if passes.is_empty() {
            return Ok(None);
        }
        let options = SessionOptions::default();
        let mut a = source.engine.session(&model, &options)?;
        let mut b = source.engine.session(sliced, &options)?;
        let dense = &self.network().proto;
        let (a, b) = (a.as_mut(), b.as_mut());
        let compared = verify::compare_alike(a, b, dense, samples, interface, source.cancelled)?;
        let worst = compared.worst();
        if worst.is_nan() || worst > equality.tolerance {
            return Err(Error::Unmet(format!(
                "they change the outputs by {worst:.2e}, accepted is {:.2e}: please report the model",
                equality.tolerance
            )));
        }
        equality.lossless = Some(worst);
        Ok(Some((model, passes)))
    }

    /// Writes into the model where it comes from.
    fn stamp(&self, model: &mut proto::ModelProto, plan: &Plan) -> Result<()> {
        let source = self.source();
        let mut options = described(source.options, &plan.goal);
        let channels = serde_json::to_value(self.summaries(plan)).unwrap_or_default();
        options.insert(provenance::CHANNELS.into(), channels);
        let mask = mask::file::json(&self.network().axes, &plan.allocation.mask)?;
        provenance::stamp(model, &source.sha256, &options, &mask)
    }

    /// A smaller model against the dense one on samples kept apart.
    ///
    /// # Errors
    /// The engine's.
    pub fn held_out(&self, pruned: &Pruned) -> Result<HeldOut> {
        let source = self.source();
        let options = SessionOptions::default();
        let (model, held_out) = (source.dense(), &source.held_out);
        let specs = data::input_specs(&self.network().proto)?;
        let tokens = |samples: &Samples| data::real_tokens(samples, &specs) as f64;
        // All logits of a language model are more than one may want to hold, and so are two
        // models at a time.
        let (mut comparison, seconds, ran) = match self.sampled(&pruned.model)? {
            Some([smaller, dense]) => {
                let interface = pruned.interface.at_positions();
                let pair = [(&smaller, &options), (&dense, &options)];
                let compared = verify::compare_in_turn(source.ctx(), pair, model, held_out, &interface)?;
                drop((smaller, dense));
                let one = split::spread(held_out, 1);
                let mut dense = Clocked::new(source.engine.session(model, &options)?);
                for batch in data::batches(&one, &specs, 1)? {
                    dense.run(&batch?.feeds)?;
                }
                (compared, dense.seconds, tokens(&one))
            }
            None => {
                let mut smaller = source.engine.session(&pruned.model, &options)?;
                let mut dense = Clocked::new(source.engine.session(model, &options)?);
                let (a, b) = (smaller.as_mut(), &mut dense);
                let compared = verify::compare(a, b, model, held_out, &pruned.interface, source.cancelled)?;
                (compared, dense.seconds, tokens(held_out))
            }
        };
        let reached = self.reached();
        comparison.outputs.sort_by_key(|o| !reached.contains(&o.name));
        Ok(HeldOut {
            comparison,
            dense_seconds: seconds * tokens(&source.samples) / ran.max(1.0),
        })
    }

    /// A smaller model and the dense one with their output over a vocabulary at some
    /// positions; `None` where there is no such output.
    fn sampled(&self, smaller: &proto::ModelProto) -> Result<Option<[proto::ModelProto; 2]>> {
        let source = self.source();
        let specs = data::input_specs(&self.network().proto)?;
        let first = data::batches(&source.held_out, &specs, verify::ROWS)?
            .next()
            .transpose()?;
        let has_tokens = first.is_some_and(|batch| batch.tokens.is_some());
        let head = OutputHead::of(self.network(), &self.network().graph.outputs).filter(|_| has_tokens);
        let both = |head: OutputHead| Some([head.sampled(smaller)?, head.sampled(source.dense())?]);
        Ok(head.and_then(both))
    }
}

impl Ranked<'_> {
    /// The names of the outputs that something prunable comes before.
    fn reached(&self) -> BTreeSet<String> {
        let graph = &self.network().graph;
        let sites = self.targets().iter().flat_map(|t| &t.sites);
        let sinks: Vec<ValueId> = sites
            .filter_map(|s| graph.node(s.sink.node).outputs.first().copied().flatten())
            .collect();
        let reached = |output: &&ValueId| {
            let before = ancestors(graph, **output);
            sinks.iter().any(|s| before[s.0 as usize])
        };
        let outputs = graph.outputs.iter().filter(reached);
        outputs.map(|o| graph.value(*o).name.clone()).collect()
    }
}

/// The fits in order, or none and a warning; single layers that keep their local fit are
/// warned of, too.
fn or_local(made: Result<InOrder>, journal: &mut Journal) -> Result<Option<Vec<Fit>>> {
    let what = "layers could not be re-fitted in order";
    let Some(made) = journal.attempt(made, "refit-local", what, LOCAL_COSTS)? else {
        return Ok(None);
    };
    let told = || {
        made.fits
            .iter()
            .map(|fit| &fit.told)
            .filter(|t| !t.tried.is_empty())
    };
    if told().next().is_some() && told().all(|t| t.ridge.is_none()) {
        let text = format!(
            "no layer was better re-fitted in order than by itself, for which there may be too few samples; {LOCAL_COSTS}"
        );
        journal.warn("local-fits", text)?;
    }
    if made.kept_local.is_empty() {
        return Ok(Some(made.fits));
    }
    let sites = made.kept_local.join("', '");
    journal.warn(
        "refit-local",
        format!(
            "'{sites}' could not be re-fitted in order, because what goes in and what comes out have no rows in common; {LOCAL_COSTS}"
        ),
    )?;
    Ok(Some(made.fits))
}

/// A session that knows how long it ran.
struct Clocked {
    inner: Box<dyn Session>,
    seconds: f64,
}

impl Clocked {
    fn new(inner: Box<dyn Session>) -> Self {
        Self { inner, seconds: 0.0 }
    }
}

impl Session for Clocked {
    fn outputs(&self) -> &[String] {
        self.inner.outputs()
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        let started = Instant::now();
        let given = self.inner.run(feeds);
        self.seconds += started.elapsed().as_secs_f64();
        given
    }
}
