//! Cuts for latency tables: each computes what its part of the model computes,
//! and a table can be measured and used.

use std::path::{Path, PathBuf};

use onnx_prune::budget::{Demand, Limit};
use onnx_prune::engine::{Engine, SessionOptions};
use onnx_prune::mask::Mask;
use onnx_prune::measure::latency;
use onnx_prune::network::Network;
use onnx_prune::sites::{self, Selection};
use onnx_prune::tensor::{Feeds, Tensor};
use onnx_prune::{axes, onnx, rewrite};

use crate::common::{cases, engine, exact, feeds, quiet};

fn run(
    engine: &dyn Engine,
    model: &onnx::proto::ModelProto,
    feeds: &Feeds,
    names: &[String],
) -> Result<Vec<Tensor>, String> {
    let options = SessionOptions {
        optimise: false,
        outputs: Some(names.to_vec()),
    };
    let mut session = engine.session(model, &options).map_err(|e| e.chain())?;
    session.run(feeds).map_err(|e| e.chain())
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    if a.shape != b.shape {
        return f32::INFINITY;
    }
    let (a, b) = (a.to_f32(), b.to_f32());
    let scale = b.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0f32, |worst, (x, y)| {
        let d = if x == y { 0.0 } else { (x - y).abs() / scale };
        if d.is_nan() { f32::INFINITY } else { worst.max(d) }
    })
}

fn check(engine: &dyn Engine, path: &Path) -> Result<usize, String> {
    let file = onnx::load(&path.join("model.onnx")).unwrap();
    let model = onnx::inline_functions(&file.proto).unwrap();
    let network = Network::of(model.clone(), axes::AnalysisOptions::default()).unwrap();
    let inputs = feeds(path, 1);
    let mut checked = 0;
    for (at, group) in network.axes.indexed() {
        if !group.kind.is_default() {
            continue;
        }
        for kept in [group.units, group.units.div_ceil(2)] {
            let mut mask = Mask::default();
            mask.kept.insert(at, (0..group.units).map(|u| u < kept).collect());
            let pruned = rewrite::prune(&network, &mask).map_err(|e| e.chain())?;
            let cut =
                onnx_prune::rewrite::segment::group::cut(&pruned, &network, at).map_err(|e| e.chain())?;
            let wanted: Vec<String> = cut
                .inputs
                .iter()
                .filter(|n| !inputs.contains_key(*n))
                .cloned()
                .collect();
            let mut known = inputs.clone();
            if !wanted.is_empty() {
                // The border does not depend on what is cut.
                let tensors = run(engine, &model, &inputs, &wanted)?;
                known.extend(wanted.into_iter().zip(tensors));
            }
            let own = cut.feeds(&known).map_err(|e| e.chain())?;
            let nodes = |m: &onnx::proto::ModelProto| m.graph.as_ref().map_or(0, |g| g.node.len());
            let small = cut.model(&own);
            if 2 * nodes(&small) > nodes(&pruned) + 40 {
                return Err(format!(
                    "'{}': {} of {} nodes",
                    group.name,
                    nodes(&small),
                    nodes(&pruned)
                ));
            }
            let got =
                run(engine, &small, &own, &cut.outputs).map_err(|e| format!("'{}': {e}", group.name))?;
            // A group with sinks in several layers feeds itself: there the dense
            // values at its border are not those of the pruned model.
            if kept == group.units || group.sinks.len() == 1 {
                let want = run(engine, &pruned, &inputs, &cut.outputs)?;
                for ((name, a), b) in cut.outputs.iter().zip(&got).zip(&want) {
                    let worst = difference(a, b);
                    // Half precision is kept between fewer casts in a cut.
                    let close = if path.to_string_lossy().contains("fp16") {
                        2e-3
                    } else {
                        1e-5
                    };
                    if worst > close {
                        return Err(format!("'{name}' differs by {worst:e} with {kept} units"));
                    }
                }
            }
            checked += 1;
        }
    }
    Ok(checked)
}

#[test]
fn every_cut_computes_its_part() {
    let Some(engine) = engine() else { return };
    let mut failures = Vec::new();
    let mut checked = 0;
    for path in cases() {
        match check(engine.as_ref(), &path) {
            Ok(n) => checked += n,
            Err(text) => failures.push(format!("{}: {text}", path.display())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(checked > 0 || std::env::var("CASE").is_ok());
    println!("{checked} cuts");
}

/// A table of a real model: rises with the units, alike layers are alike, and a
/// speed-up can be asked of it.
#[test]
fn a_table_buys_a_speed_up() {
    let Some(engine) = engine() else { return };
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let file = onnx::load(&root.join("fixtures/text-language/model.onnx")).unwrap();
    let network = Network::of(file.proto.clone(), axes::AnalysisOptions::default()).unwrap();
    let chosen = sites::choose(&network, &Selection::default()).unwrap();
    let inputs = exact(&file.proto, 32, 48);
    assert_eq!((inputs.batch, inputs.seq), (32, Some(48)));
    let options = latency::LatencyOptions { runs: 9, align: 16 };
    let table = latency::measure(
        quiet(engine.as_ref()),
        &network,
        &chosen,
        None,
        &inputs.feeds,
        options,
    )
    .unwrap();
    println!("{}", serde_json::to_string_pretty(&table).unwrap());
    assert_eq!(table.parts.len(), chosen.len());
    for part in table.parts.values() {
        assert!(part.points.windows(2).all(|p| p[0].1 <= p[1].1));
        assert!(part.points.last().unwrap().1 > 0.0);
    }
    let prices = table.prices(&network, &chosen).unwrap();
    assert!(prices.base < prices.full);
    let limit = Limit::new(Demand::Speedup(1.2), prices);
    assert!(limit.most < limit.prices.full);
}
