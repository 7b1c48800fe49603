//! One network's mask from its rankings.

use onnx_prune::Result;
use onnx_prune::budget::{Align, Item, Limit, Picked, Tied, allocate};
use onnx_prune::mask::Mask;
use onnx_prune::network::Network;
use onnx_prune::numerics::score::Ranking;
use onnx_prune::sites::PruneTarget;

/// The best mask of these targets that meets all limits, and what it costs.
pub fn within(
    limits: &[Limit],
    network: &Network,
    targets: &[PruneTarget],
    rankings: &[Ranking],
    align: Align,
) -> Result<(Mask, Picked)> {
    let items: Vec<Item> = (targets.iter().zip(rankings))
        .map(|(target, ranking)| Item {
            kind: target.kind,
            units: target.units.len(),
            least: target.least,
            ranking: ranking.clone(),
        })
        .collect();
    let tied = Tied::of(&network.axes, targets);
    let picked = allocate(limits, &items, &tied, align, "obs")?;
    let mut mask = Mask::default();
    for ((target, item), kept) in targets.iter().zip(&items).zip(&picked.kept) {
        if *kept < item.units {
            mask.kept.insert(target.group, item.flags(*kept));
        }
    }
    Ok((mask, picked))
}
