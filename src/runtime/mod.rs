//! One trait for the engines that run models.

use crate::error::Result;
use crate::onnx::proto;
use crate::tensor::{Feeds, Tensor};

/// Makes sessions of models.
pub trait Engine: Send + Sync {
    /// Prepares `model` for runs.
    fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>>;
}

/// How a session is prepared.
pub struct SessionOptions {
    /// Whether the engine may optimise the graph.
    pub optimise: bool,
    /// Graph outputs or inner values, in the order wanted; `None` is all graph outputs.
    pub outputs: Option<Vec<String>>,
}

/// A model ready to run.
pub trait Session: Send {
    /// The names of what [`Session::run`] returns.
    fn outputs(&self) -> &[String];
    /// Runs once.
    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>>;
}
