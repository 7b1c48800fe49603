//! Texts of different lengths share a batch where that changes nothing.

use std::collections::BTreeMap;

use onnx_prune::calibrate::{self, SiteProbe, try_padding};
use onnx_prune::data::{DataOptions, Padding, Samples, batches, input_specs, read_samples};
use onnx_prune::engine::{self, Engine, EngineChoice, EngineOptions};
use onnx_prune::network::Network;
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::sites::Selection;
use onnx_prune::{axes, onnx, sites};

use crate::common::quiet;

fn tract() -> Box<dyn Engine> {
    let options = EngineOptions {
        engine: EngineChoice::Tract,
        ..EngineOptions::default()
    };
    engine::choose(&options).expect("tract is built in")
}

fn language() -> (ModelProto, Samples) {
    let model = onnx::load(&crate::common::fixture("text-language/model.onnx"))
        .expect("a model")
        .proto;
    let options = DataOptions {
        data: vec![crate::common::fixture("text-language/calibration.txt")],
        tokenizer: Some(crate::common::fixture("text-language/tokenizer.json")),
        samples: Some(48),
        ..DataOptions::default()
    };
    let samples = read_samples(&model, &options).expect("texts");
    (model, samples)
}

#[test]
fn padding_that_changes_nothing_is_found_and_batches_are_fewer() {
    let (model, mut samples) = language();
    assert!(
        matches!(samples.padding, Padding::Untried(_)),
        "{:?}",
        samples.padding
    );
    let specs = input_specs(&model).expect("inputs");
    let apart: Vec<_> = batches(&samples, &specs, 8)
        .expect("batches")
        .map(|b| b.expect("a batch"))
        .collect();
    try_padding(tract().as_ref(), &model, &mut samples).expect("a run");
    assert!(
        matches!(samples.padding, Padding::Harmless(_)),
        "{:?}",
        samples.padding
    );
    let together: Vec<_> = batches(&samples, &specs, 8)
        .expect("batches")
        .map(|b| b.expect("a batch"))
        .collect();
    assert!(
        together.len() * 2 <= apart.len(),
        "{} {}",
        together.len(),
        apart.len()
    );
    // Every sample once, with all its tokens; padding is an eighth of a batch at most.
    let mut rows: Vec<usize> = together.iter().flat_map(|b| b.rows.clone()).collect();
    rows.sort_unstable();
    assert_eq!(rows, (0..samples.samples.len()).collect::<Vec<_>>());
    for batch in &together {
        let all = (batch.size * batch.tokens.expect("tokens")) as u64;
        assert!(
            batch.real_tokens() * 8 >= all * 7,
            "{} of {all}",
            batch.real_tokens()
        );
        // What the mask of the graph says is what counts as real.
        let real = batch.feeds["attention_mask"].to_i64().expect("integers");
        let own = batch.token_mask.clone().unwrap_or_else(|| vec![true; real.len()]);
        assert_eq!(real, own.iter().map(|r| i64::from(*r)).collect::<Vec<_>>());
    }
    let tokens =
        |all: &[onnx_prune::data::Batch]| all.iter().map(onnx_prune::data::Batch::real_tokens).sum::<u64>();
    assert_eq!(tokens(&apart), tokens(&together));
}

#[test]
fn statistics_are_those_of_the_texts_alone() {
    let (model, mut samples) = language();
    let engine = tract();
    let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
    let chosen = sites::choose(&network, &Selection::default()).expect("groups");
    let probes: Vec<SiteProbe> = chosen
        .into_iter()
        .flat_map(|c| c.sites)
        .filter_map(|s| s.probe)
        .collect();
    assert!(probes.len() >= 4);
    let collect = |samples: &Samples| {
        let watched = calibrate::Watched {
            probes: &probes,
            weights: &BTreeMap::new(),
        };
        calibrate::collect(quiet(engine.as_ref()), &model, watched, samples, 8)
            .expect("statistics")
            .0
    };
    let apart = collect(&samples);
    try_padding(engine.as_ref(), &model, &mut samples).expect("a run");
    assert!(matches!(samples.padding, Padding::Harmless(_)));
    let together = collect(&samples);
    assert_eq!(apart.tokens, together.tokens);
    for (site, a) in &apart.sites {
        let b = &together.sites[site];
        assert_eq!(a.tokens(), b.tokens(), "{site}");
        let (x, y) = (a.covariance(), b.covariance());
        let off = (&x - &y).norm_max();
        assert!(off < 1e-4 * x.norm_max(), "{site}: {off}");
    }
}

#[test]
fn a_model_that_minds_padding_gets_none() {
    let (mut model, mut samples) = language();
    // An output that counts the tokens, padding too.
    let graph = model.graph.as_mut().expect("a graph");
    graph
        .node
        .push(crate::models::node("Shape", "count", &["input_ids"], &["tokens"]));
    graph.output.push(crate::models::value("tokens"));
    try_padding(tract().as_ref(), &model, &mut samples).expect("a run");
    assert_eq!(samples.padding, Padding::No);
}
