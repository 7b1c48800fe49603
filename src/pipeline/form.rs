//! The form that weights have in the file, where it is not the one in which they are pruned.

use crate::engine::{Engine, SessionOptions};
use crate::network::Network;
use crate::onnx::proto::ModelProto;
use crate::rewrite::computed::{self, Computed, Written};
use crate::rewrite::dequantise::{self, Closed};
use crate::tensor::Feeds;
use crate::{Result, axes};

/// How to get back to the form of the file.
pub(super) struct Form {
    /// The model as it was read.
    pub(super) read: ModelProto,
    quantised: Option<Closed>,
    computed: Option<Computed>,
}

impl Form {
    /// The network with one float constant in place of each weight that is quantised or
    /// computed from constants; nothing where there is none. What `engine` gives computes
    /// them.
    ///
    /// # Errors
    /// Constants whose data does not match their shape; the engine's.
    pub(super) fn open(
        network: &Network,
        axes: axes::AnalysisOptions,
        engine: impl FnOnce() -> Result<Box<dyn Engine>>,
    ) -> Result<Option<(Network, Self)>> {
        let read = &network.proto;
        let (model, quantised) = match dequantise::open(read)? {
            Some((model, closed)) => (model, Some(closed)),
            None => (read.clone(), None),
        };
        let evaluate = |model: &ModelProto, names: &[String]| {
            let wanted = SessionOptions {
                optimise: false,
                outputs: Some(names.to_vec()),
            };
            engine()?.session(model, &wanted)?.run(&Feeds::new())
        };
        let (model, computed) = match computed::open(&model, evaluate) {
            Ok(Some((model, computed))) => (model, Some(computed)),
            Ok(None) => (model, None),
            Err(error) if error.is_interrupt() => return Err(error),
            // What the engine cannot compute is left as it is: not ranked.
            Err(_) => (model, None),
        };
        if quantised.is_none() && computed.is_none() {
            return Ok(None);
        }
        let form = Form {
            read: read.clone(),
            quantised,
            computed,
        };
        Ok(Some((Network::of(model, axes)?, form)))
    }

    /// What the user should know.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let quantised = self.quantised.as_ref().map(|_| {
            "quantised weights are pruned and re-fitted as floats and quantised again, with new scales where \
             they changed"
        });
        let computed = (self.computed.as_ref()).map(
            |_| "weights that are computed from constants are pruned and re-fitted as one constant each",
        );
        quantised.into_iter().chain(computed).map(str::to_owned)
    }

    /// A result in the form of the file, and how weights that were computed are written.
    ///
    /// # Errors
    /// Constants whose data does not match their shape.
    pub(super) fn close(&self, model: ModelProto) -> Result<(ModelProto, Written)> {
        let (model, written) = match &self.computed {
            Some(computed) => computed.close(&model)?,
            None => (model, Written::default()),
        };
        let model = match &self.quantised {
            Some(closed) => closed.close(&model)?,
            None => model,
        };
        Ok((model, written))
    }
}
