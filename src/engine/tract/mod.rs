//! tract, the engine that is built in.
//!
//! tract plans for fixed shapes: a plan with symbolic batch *and* sequence
//! fails for most exports of transformers. So a session keeps the parsed model
//! and makes one plan for each set of input shapes that comes along.

mod trusted;

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue,
    TypedSimplePlan,
};

use super::guard::guard;
use super::prepare::{Prepared, prepare};
use super::signature::Signature;
use super::{Engine, EngineInfo, INSTALL, Session, SessionOptions};
use crate::error::{Error, Result, ResultExt};
use crate::onnx::proto::ModelProto;
use crate::tensor::{Data, Elem, Feeds, Tensor};

/// How the engine is called in messages.
const NAME: &str = "the built-in engine (tract)";

/// The version in `Cargo.toml`; the library does not tell its own.
const VERSION: &str = "0.23.9";

/// Plans a session keeps, at most.
const PLANS: usize = 16;

/// Bytes that the plans of a session may take, counting one model's bytes for
/// each, since each packs the weights its own way.
const PLAN_BYTES: usize = 1 << 30;

/// The engine.
pub(super) struct Tract {
    info: EngineInfo,
    executor: Executor,
}

impl Tract {
    /// An engine with its own pool of `threads`.
    pub(super) fn new(threads: usize, note: Option<String>) -> Result<Self> {
        let executor = guard(NAME, || {
            Ok(match threads {
                1 => Executor::SingleThread,
                _ => Executor::multithread(threads),
            })
        })?;
        Ok(Tract {
            info: EngineInfo {
                name: "tract",
                version: VERSION.into(),
                device: "cpu".into(),
                threads,
                library: None,
                note,
            },
            executor,
        })
    }
}

impl Engine for Tract {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn session(&self, model: &ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        let Prepared {
            model,
            signature,
            outputs,
            positions,
        } = prepare(model, options.outputs.as_deref())?;
        trusted::check(&model)?;
        for input in signature.inputs() {
            datum_type(input.elem).context(|| format!("input `{}`", input.name))?;
        }
        let bytes = model.encode_to_vec();
        let size = bytes.len();
        drop(model);
        let parsed = guard(NAME, || {
            tract_onnx::onnx()
                .with_ignore_value_info(true)
                .model_for_read(&mut bytes.as_slice())
                .map_err(|e| refused(&e))
        })?;
        Ok(Box::new(TractRun {
            parsed,
            signature,
            outputs,
            positions,
            optimise: options.optimise,
            executor: self.executor.clone(),
            plans: Vec::new(),
            capacity: (PLAN_BYTES / size.max(1)).clamp(1, PLANS),
        }))
    }

    fn optimised_operators(&self, _: &ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        // Its own operators have no ONNX names.
        Ok(None)
    }
}

/// The shapes of the inputs, in the order of the parsed model.
type InputShapes = Vec<Vec<usize>>;

/// A parsed model with its plans.
struct TractRun {
    parsed: InferenceModel,
    signature: Signature,
    outputs: Vec<String>,
    positions: Vec<usize>,
    optimise: bool,
    executor: Executor,
    /// The most recently used last.
    plans: Vec<(InputShapes, Arc<TypedSimplePlan>)>,
    capacity: usize,
}

impl Session for TractRun {
    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        self.signature.check(feeds)?;
        let fixed = self.signature.inputs().iter().find(|i| i.has_default);
        if let Some(input) = fixed.filter(|i| feeds.contains_key(&i.name)) {
            return Err(Error::engine(format!(
                "{NAME} cannot replace the value that the file holds for input `{}`; {INSTALL}",
                input.name
            )));
        }
        let executor = self.executor.clone();
        // The guard is inside, so that the scope is left in order after a panic.
        multithread_tract_scope(executor, || guard(NAME, || self.run_in_scope(feeds)))
    }
}

impl TractRun {
    fn run_in_scope(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        let inputs: Vec<&Tensor> = self
            .signature
            .inputs()
            .iter()
            .filter_map(|input| feeds.get(&input.name))
            .collect();
        let plan = self.plan(&inputs)?;
        let values = inputs
            .into_iter()
            .map(|tensor| Ok(TValue::from(to_engine(tensor)?)))
            .collect::<Result<_>>()?;
        let results = plan.run(values).map_err(|e| refused(&e))?;
        self.positions
            .iter()
            .zip(&self.outputs)
            .map(|(&position, name)| {
                results
                    .get(position)
                    .ok_or_else(|| Error::engine(format!("{NAME} left it out")))
                    .and_then(|value| from_engine(value))
                    .context(|| format!("output `{name}`"))
            })
            .collect()
    }

    /// The plan for inputs of these shapes, made when it is not there.
    fn plan(&mut self, inputs: &[&Tensor]) -> Result<Arc<TypedSimplePlan>> {
        let shapes: InputShapes = inputs.iter().map(|t| t.shape.clone()).collect();
        let entry = match self.plans.iter().position(|(known, _)| *known == shapes) {
            Some(place) => self.plans.remove(place),
            None => (shapes, self.make_plan(inputs)?),
        };
        let plan = Arc::clone(&entry.1);
        if self.plans.len() >= self.capacity {
            self.plans.remove(0);
        }
        self.plans.push(entry);
        Ok(plan)
    }

    fn make_plan(&self, inputs: &[&Tensor]) -> Result<Arc<TypedSimplePlan>> {
        let mut model = self.parsed.clone();
        for (place, tensor) in inputs.iter().enumerate() {
            let fact = InferenceFact::dt_shape(datum_type(tensor.elem())?, &tensor.shape);
            model.set_input_fact(place, fact).map_err(|e| refused(&e))?;
        }
        let model = model.into_typed().map_err(|e| refused(&e))?;
        let model = if self.optimise {
            model.into_optimized().map_err(|e| refused(&e))?
        } else {
            model
        };
        model.into_runnable().map_err(|e| refused(&e))
    }
}

fn failed(error: &tract_onnx::prelude::TractError) -> Error {
    Error::engine(format!("{NAME}: {error:#}"))
}

fn refused(error: &tract_onnx::prelude::TractError) -> Error {
    Error::engine(format!("{NAME} cannot run this model: {error:#}; {INSTALL}"))
}

/// tract's name for an element type; it has no bfloat16.
fn datum_type(elem: Elem) -> Result<DatumType> {
    Ok(match elem {
        Elem::F32 => DatumType::F32,
        Elem::F64 => DatumType::F64,
        Elem::F16 => DatumType::F16,
        Elem::BF16 => return Err(no_bfloat16()),
        Elem::I8 => DatumType::I8,
        Elem::I16 => DatumType::I16,
        Elem::I32 => DatumType::I32,
        Elem::I64 => DatumType::I64,
        Elem::U8 => DatumType::U8,
        Elem::U16 => DatumType::U16,
        Elem::U32 => DatumType::U32,
        Elem::U64 => DatumType::U64,
        Elem::Bool => DatumType::Bool,
    })
}

fn no_bfloat16() -> Error {
    Error::engine(format!("{NAME} has no bfloat16; {INSTALL}"))
}

/// A copy of `tensor` for tract.
fn to_engine(tensor: &Tensor) -> Result<tract_onnx::prelude::Tensor> {
    macro_rules! copy {
        ($($kind:ident),*) => {
            match &tensor.data {
                $(Data::$kind(v) => tract_onnx::prelude::Tensor::from_shape(&tensor.shape, v),)*
                Data::BF16(_) => return Err(no_bfloat16()),
            }
        };
    }
    copy!(F32, F64, F16, I8, I16, I32, I64, U8, U16, U32, U64, Bool).map_err(|e| failed(&e))
}

/// A copy of a value of tract.
fn from_engine(value: &tract_onnx::prelude::Tensor) -> Result<Tensor> {
    // Shape arithmetic is done in a type of its own.
    let value = match value.datum_type() {
        DatumType::TDim => value.cast_to::<i64>().map_err(|e| failed(&e))?,
        _ => std::borrow::Cow::Borrowed(value),
    };
    macro_rules! copy {
        ($($kind:ident),*) => {
            match value.datum_type() {
                $(DatumType::$kind => value
                    .try_as_plain_ram()
                    .and_then(|plain| Ok(Data::$kind(plain.as_slice()?.to_vec()))),)*
                other => {
                    return Err(Error::engine(format!("element type {other:?} is not supported")));
                }
            }
        };
    }
    let data = copy!(F32, F64, F16, I8, I16, I32, I64, U8, U16, U32, U64, Bool);
    Ok(Tensor {
        shape: value.shape().to_vec(),
        data: data.map_err(|e| failed(&e))?,
    })
}
