//! What positions count: measured for neurons, taken over by the heads before them.

use onnx_prune::axes::Kind;
use onnx_prune::data::{DataOptions, PositionWeights};
use onnx_prune::network::Network;
use onnx_prune::onnx;
use onnx_prune::pipeline::Options;
use onnx_prune::rank::positions::{self, Weights};
use onnx_prune::rank::probe::Probe;
use onnx_prune::sites::Selection;
use onnx_prune::sites::{self, PruneTarget};

#[test]
fn heads_take_the_positions_of_the_neurons_after_them() {
    let Some(engine) = crate::common::engine() else {
        return;
    };
    let path = crate::common::fixture("text-language/model.onnx");
    let model = onnx::load(&path).unwrap().proto;
    let network = Network::of(model.clone(), Options::default().axes).unwrap();
    let chosen = sites::choose(&network, &Selection::default()).unwrap();
    let data = DataOptions {
        data: vec![crate::common::fixture("text-language/calibration.txt")],
        tokenizer: Some(crate::common::fixture("text-language/tokenizer.json")),
        samples: Some(6),
        ..DataOptions::default()
    };
    let samples = onnx_prune::data::read_samples(&model, &data).unwrap();
    let ctx = crate::common::quiet(engine.as_ref());
    let measure = |chosen: &[PruneTarget]| -> Weights {
        let mut probe = Probe::new(ctx, &network, &samples, &network.graph.outputs).unwrap();
        positions::measure(&mut probe, chosen).unwrap()
    };
    let kind = |c: &PruneTarget| network.group(c.group).kind;
    let site = |c: &PruneTarget| c.sites[0].name.clone();
    let only = |of: Kind| -> Vec<PruneTarget> { chosen.iter().filter(|c| kind(c) == of).cloned().collect() };
    let neurons = only(Kind::Neurons);

    let weights = measure(&chosen);
    // Heads cost no run of their own, and change nothing for the neurons.
    assert_eq!(positions::changes(&chosen), 3 * neurons.len());
    let alone = measure(&neurons);
    assert!(neurons.iter().all(|c| weights[&site(c)] == alone[&site(c)]));
    assert!(weights.values().any(|w| *w != PositionWeights::EVEN));
    let pairs: Vec<_> = chosen
        .windows(2)
        .filter(|pair| kind(&pair[0]) == Kind::Heads)
        .collect();
    assert_eq!(pairs.len(), neurons.len());
    for pair in pairs {
        assert_eq!(weights[&site(&pair[0])], weights[&site(&pair[1])]);
    }
    // Heads with nothing after them are measured themselves.
    let heads = only(Kind::Heads);
    let own = measure(&heads);
    assert_eq!(own.len(), heads.len());
    assert!(heads.iter().any(|c| own[&site(c)] != weights[&site(c)]));
}
