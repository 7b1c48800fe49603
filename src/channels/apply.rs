//! The model with fewer channels in its heads.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use faer::Mat;

use super::projection::read;
use super::{How, Narrower, rotate, side_bases};
use crate::axes::{Analysis, analyse, analyse_open};
use crate::data::Samples;
use crate::graph::{self, Graph};
use crate::mask::{Mask, Narrowing};
use crate::numerics::{SiteStatistics, Statistics, solve};
use crate::onnx::proto;
use crate::options::Options;
use crate::rank::probe::Subject;
use crate::sites::{self, Chosen, parts};
use crate::verify::{self, Equality};
use crate::{Error, Result, rewrite};

/// A model with fewer channels, ready to be pruned.
pub struct Narrowed {
    /// The model.
    pub model: proto::ModelProto,
    /// Its graph.
    pub graph: Graph,
    /// Its axes.
    pub analysis: Analysis,
    /// The chosen groups in it, in the same order.
    pub chosen: Vec<Chosen>,
    /// Statistics of the sites that are narrower than before.
    pub statistics: BTreeMap<String, SiteStatistics>,
    /// Narrowed against channels that are zero.
    pub equality: Equality,
}

impl Narrowed {
    /// A mask of the model as it was, in the groups of this one. `chosen` are the groups
    /// there.
    pub fn mask(&self, chosen: &[Chosen], mask: &Mask) -> Mask {
        let mut own = Mask::default();
        for (there, here) in chosen.iter().zip(&self.chosen) {
            if let Some(kept) = mask.kept.get(&there.group) {
                own.kept.insert(here.group, kept.clone());
            }
        }
        own
    }
}

impl Narrower {
    /// The model with fewer channels; output projections are re-fitted to them on
    /// `statistics`.
    ///
    /// # Errors
    /// The engine's; [`Error::Unmet`] where the result is not what the model with
    /// channels of zero computes.
    #[allow(clippy::too_many_arguments)]
    pub fn apply(
        &self,
        subject: Subject,
        chosen: &[Chosen],
        statistics: &Statistics,
        narrowing: &Narrowing,
        few: &Samples,
        options: &Options,
        cancelled: &AtomicBool,
    ) -> Result<Narrowed> {
        let (model, graph) = (subject.model, subject.graph);
        let mut turned = model.clone();
        let mut narrower = BTreeMap::new();
        let mut watched = Vec::new();
        for (at, kept) in &narrowing.kept {
            let Some(turn) = self.turns.get(*at) else { continue };
            for maker in &turn.channels.makers {
                let mut bases = side_bases(&turn.how, maker.side);
                if let How::Queries(_) = turn.how {
                    // No sink tells that these are gone.
                    bases.values_mut().for_each(|basis| forget(basis, *kept));
                }
                let tensor = rotate::constant(model, graph, maker, &bases)?;
                rotate::put(&mut turned, graph, maker, &tensor)?;
            }
            let How::Values(bases) = &turn.how else { continue };
            let c = &chosen[turn.at];
            let Some(whole) = read(subject, c, statistics)? else {
                continue;
            };
            let own = whole.turned(&turn.rows, bases);
            let rows = rotate::kept_of(&turn.rows, *kept);
            let site = own.site(&turn.rows, turn.channels.count);
            let refit = solve::local(&site, &rows, options.damp, own.with_bias)?;
            let parts = parts(model, graph, &c.sites)?;
            if let Some(part) = parts.first() {
                part.fit(&rows, refit).put(&mut turned, graph)?;
            }
            for site in &c.sites {
                if let Some(old) = statistics.sites.get(&site.name) {
                    let new = rotate::statistics(old, &turn.rows, bases, *kept)?;
                    narrower.insert(site.name.clone(), new);
                }
            }
            watched.push(Chosen {
                group: turn.channels.group,
                ..c.clone()
            });
        }
        let graph = graph::build(&turned)?;
        let open = analyse_open(&graph, options.axes);
        let changed = || Error::input("the groups of the model change with its basis");
        if !open.has_groups_of(&self.open.analysis) {
            return Err(changed());
        }
        let mask = self.open.mask(narrowing);
        let model = rewrite::prune(&turned, &graph, &open, &mask)?;
        let engine = subject.engine;
        let equality = verify::sliced_equals_masked(
            engine, &turned, &graph, &open, &watched, &mask, &model, few, cancelled,
        )?;
        equality.require()?;
        drop(turned);
        let graph = graph::build(&model)?;
        let analysis = analyse(&graph, options.axes);
        let found = sites::choose(&model, &graph, &analysis, options)?;
        let here = |c: &Chosen| {
            let old = &subject.analysis.groups[c.group];
            let group = analysis.find_group(&old.name, old.kind, old.units)?;
            found.iter().find(|n| n.group == group).cloned()
        };
        Ok(Narrowed {
            chosen: chosen
                .iter()
                .map(here)
                .collect::<Option<_>>()
                .ok_or_else(changed)?,
            model,
            graph,
            analysis,
            statistics: narrower,
            equality,
        })
    }
}

/// A basis without the channels from `kept` on.
fn forget(basis: &mut Mat<f64>, kept: usize) {
    for j in kept..basis.ncols() {
        basis.col_mut(j).fill(0.0);
    }
}
