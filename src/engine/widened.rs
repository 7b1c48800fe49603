//! An engine for types that another one has no kernels for: models in bfloat16 or float16
//! that it refuses run on a copy in float32.
//!
//! Only what is measured is another copy; models are written in their own types.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Engine, EngineInfo, Session, SessionOptions};
use crate::Result;
use crate::onnx;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, type_proto};
use crate::tensor::{Elem, Feeds, Tensor};

/// Widens what `inner` refuses.
pub(super) struct Widened {
    inner: Box<dyn Engine>,
    /// Whether a model was refused and its copy was not: the next ones are not tried.
    needed: AtomicBool,
}

impl Widened {
    pub(super) fn new(inner: Box<dyn Engine>) -> Self {
        Self {
            inner,
            needed: AtomicBool::new(false),
        }
    }

    /// What `work` makes of the model, or of its copy where it fails on the model.
    fn either<T>(&self, model: &ModelProto, work: impl Fn(&ModelProto) -> Result<T>) -> Result<(T, bool)> {
        let narrow = is_narrow(model);
        if !narrow || !self.needed.load(Ordering::Relaxed) {
            match work(model) {
                Ok(done) => return Ok((done, false)),
                Err(error) if !narrow || error.is_interrupt() => return Err(error),
                Err(error) => {
                    let copy = widened(model)?;
                    let done = work(&copy).map_err(|_| error)?;
                    self.needed.store(true, Ordering::Relaxed);
                    return Ok((done, true));
                }
            }
        }
        Ok((work(&widened(model)?)?, true))
    }
}

impl Engine for Widened {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn widens(&self) -> bool {
        self.needed.load(Ordering::Relaxed)
    }

    fn session(&self, model: &ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        let (session, wide) = self.either(model, |model| self.inner.session(model, options))?;
        Ok(match wide {
            true => Box::new(WidenedSession(session)),
            false => session,
        })
    }

    fn reduces(&self) -> bool {
        self.inner.reduces()
    }

    fn optimised_operators(&self, model: &ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        Ok(self
            .either(model, |model| self.inner.optimised_operators(model))?
            .0)
    }

    fn placement(&self, model: &ModelProto, feeds: &Feeds) -> Result<Option<BTreeMap<String, usize>>> {
        if !self.widens() {
            return self.inner.placement(model, feeds);
        }
        self.inner.placement(&widened(model)?, &wide(feeds))
    }
}

/// A session of a copy.
struct WidenedSession(Box<dyn Session>);

impl Session for WidenedSession {
    fn outputs(&self) -> &[String] {
        self.0.outputs()
    }

    fn hold(&mut self, constants: &Feeds) -> Result<bool> {
        self.0.hold(&wide(constants))
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        self.0.run(&wide(feeds))
    }
}

fn is_half(code: i32) -> bool {
    matches!(Elem::from_onnx(code), Some(Elem::F16 | Elem::BF16))
}

fn wide(feeds: &Feeds) -> Feeds {
    let each = |tensor: &Tensor| match tensor.elem() {
        Elem::F16 | Elem::BF16 => Tensor::f32(tensor.shape.clone(), tensor.to_f32()),
        _ => tensor.clone(),
    };
    feeds.iter().map(|(name, t)| (name.clone(), each(t))).collect()
}

/// Whether anything in a model has half of a float32.
fn is_narrow(model: &ModelProto) -> bool {
    fn in_graph(graph: &GraphProto) -> bool {
        let infos = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        graph.initializer.iter().any(|t| is_half(t.data_type()))
            || infos
                .into_iter()
                .any(|info| onnx::element_type(info).is_some_and(is_half))
            || graph.node.iter().flat_map(|n| &n.attribute).any(in_attribute)
    }
    fn in_attribute(attribute: &AttributeProto) -> bool {
        attribute.g.iter().chain(&attribute.graphs).any(in_graph)
            || attribute.t.iter().any(|t| is_half(t.data_type()))
            || names_type(attribute.name()) && i32::try_from(attribute.i()).is_ok_and(is_half)
    }
    model.graph.as_ref().is_some_and(in_graph)
}

/// Attributes that are the code of an element type.
fn names_type(attribute: &str) -> bool {
    ["to", "dtype", "output_dtype"].contains(&attribute)
}

/// The model in float32.
fn widened(model: &ModelProto) -> Result<ModelProto> {
    let mut model = model.clone();
    if let Some(graph) = &mut model.graph {
        widen_graph(graph)?;
    }
    for function in &mut model.functions {
        function.node.iter_mut().try_for_each(widen_node)?;
    }
    Ok(model)
}

fn widen_graph(graph: &mut GraphProto) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(widen_tensor)?;
    let GraphProto {
        input,
        output,
        value_info,
        ..
    } = graph;
    for info in input.iter_mut().chain(output).chain(value_info) {
        if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && t.elem_type.is_some_and(is_half)
        {
            t.elem_type = Some(Elem::F32.to_onnx());
        }
    }
    graph.node.iter_mut().try_for_each(widen_node)
}

fn widen_node(node: &mut NodeProto) -> Result<()> {
    for attribute in &mut node.attribute {
        attribute.t.iter_mut().try_for_each(widen_tensor)?;
        attribute.tensors.iter_mut().try_for_each(widen_tensor)?;
        attribute.g.iter_mut().try_for_each(widen_graph)?;
        attribute.graphs.iter_mut().try_for_each(widen_graph)?;
        if names_type(attribute.name()) && i32::try_from(attribute.i()).is_ok_and(is_half) {
            attribute.i = Some(Elem::F32.to_onnx().into());
        }
    }
    Ok(())
}

fn widen_tensor(tensor: &mut TensorProto) -> Result<()> {
    if is_half(tensor.data_type()) {
        let values = onnx::tensor(tensor)?;
        *tensor = onnx::tensor_proto(tensor.name(), &Tensor::f32(values.shape.clone(), values.to_f32()));
    }
    Ok(())
}
