//! The run-time sizes of a run: those of its samples, and what one run of the model shows.

use crate::budget::Sizes;
use crate::data::{self, DataOptions, SeenSizes};
use crate::engine::{Engine, SessionOptions};
use crate::network::Network;
use crate::{Error, Result};

/// Sizes that costs are computed for. Where a run has to show some, `engine` does it; why
/// it cannot comes back beside what is known without it.
///
/// # Errors
/// Sizes that the model does not take.
pub fn sizes<'e>(
    network: &Network,
    options: &DataOptions,
    seen: &SeenSizes,
    engine: impl FnOnce() -> Result<&'e dyn Engine>,
) -> Result<(Sizes, Option<Error>)> {
    let batch = data::exact_batch(&network.proto, &options.exact(seen))?;
    let seq = batch.seq.unwrap_or_else(|| options.seq());
    let mut sizes = Sizes::of(batch.batch, seq, &batch.feeds);
    let names = sizes.unknown(network);
    if names.is_empty() {
        return Ok((sizes, None));
    }
    let wanted = SessionOptions {
        optimise: false,
        outputs: Some(names.clone()),
    };
    let run = engine().and_then(|engine| engine.session(&network.proto, &wanted)?.run(&batch.feeds));
    let why = match run {
        Ok(tensors) => {
            let shapes = tensors.into_iter().map(|t| t.shape);
            sizes.shapes.extend(names.into_iter().zip(shapes));
            None
        }
        Err(error) => Some(error),
    };
    Ok((sizes, why))
}
