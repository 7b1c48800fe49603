//! Runs with some inputs bound once: on a device, they are copied there once and not
//! with every run.

use std::collections::BTreeSet;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session as OrtSession};
use ort::value::{DynValue, Tensor as OrtTensor};

use super::failed;
use super::values::from_engine;
use crate::error::{Error, Result, ResultExt};
use crate::tensor::{Data, Feeds, Tensor};

/// Inputs that stay where the session wants them.
pub(super) struct Bound {
    binding: IoBinding,
    names: BTreeSet<String>,
    /// The outputs of the graph, in order.
    outputs: Vec<String>,
    /// Where they are wanted: in the host's memory.
    host: MemoryInfo<'static>,
}

impl Bound {
    /// Binds `constants`.
    pub(super) fn new(session: &OrtSession, constants: &Feeds) -> Result<Self> {
        let host = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        );
        let mut bound = Self {
            binding: session.create_binding().map_err(|e| failed(&e))?,
            names: constants.keys().cloned().collect(),
            outputs: session.outputs().iter().map(|o| o.name().to_owned()).collect(),
            host: host.map_err(|e| failed(&e))?,
        };
        bound.bind(constants)?;
        Ok(bound)
    }

    /// Whether an input is bound for all runs.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    fn bind(&mut self, feeds: &Feeds) -> Result<()> {
        for (name, tensor) in feeds {
            owned(tensor)
                .and_then(|value| self.binding.bind_input(name, &value))
                .map_err(|e| failed(&e))
                .context(|| format!("input `{name}`"))?;
        }
        self.binding.synchronize_inputs().map_err(|e| failed(&e))
    }

    /// Runs with the other inputs; `positions` of the graph's outputs are returned,
    /// called `names` in messages.
    pub(super) fn run(
        &mut self,
        session: &mut OrtSession,
        feeds: &Feeds,
        positions: &[usize],
        names: &[String],
    ) -> Result<Vec<Tensor>> {
        let other: Option<&String> = feeds.keys().find(|name| self.holds(name));
        if let Some(name) = other {
            return Err(Error::input(format!("input `{name}` is held and given too")));
        }
        self.bind(feeds)?;
        // Outputs of the last run would be written over, and may have other shapes.
        self.binding.clear_outputs();
        for name in &self.outputs {
            self.binding
                .bind_output_to_device(name, &self.host)
                .map_err(|e| failed(&e))?;
        }
        let values = session.run_binding(&self.binding).map_err(|e| failed(&e))?;
        self.binding.synchronize_outputs().map_err(|e| failed(&e))?;
        let fetched = positions.iter().zip(names).map(|(&position, name)| {
            let of_graph = self.outputs.get(position).map(String::as_str).unwrap_or_default();
            let value = values
                .get(of_graph)
                .ok_or_else(|| Error::engine("it is not returned"));
            value.and_then(from_engine).context(|| format!("output `{name}`"))
        });
        fetched.collect()
    }
}

/// A copy of `tensor` that the binding keeps: a borrowed one would be copied by the
/// library's own means, which wait for each other for ever (ort 2.0.0-rc.15).
fn owned(tensor: &Tensor) -> ::ort::Result<DynValue> {
    macro_rules! copy {
        ($($kind:ident),*) => {
            match &tensor.data {
                $(Data::$kind(v) => OrtTensor::from_array((tensor.shape.clone(), v.clone()))?.into_dyn(),)*
            }
        };
    }
    Ok(copy!(
        F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ort::OnnxRuntime;
    use crate::engine::{EngineOptions, Session, SessionOptions};
    use crate::onnx::{proto, tensor_proto};
    use crate::tensor::Elem;

    fn info(name: &str) -> proto::ValueInfoProto {
        use proto::type_proto::{Tensor, Value};
        let tensor = Tensor {
            elem_type: Some(Elem::F32.to_onnx()),
            shape: None,
        };
        proto::ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(proto::TypeProto {
                value: Some(Value::TensorType(tensor)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// `y = x w + b`, `z = x w`, where b is a constant.
    fn model() -> proto::ModelProto {
        let node = |op: &str, inputs: [&str; 2], output: &str| proto::NodeProto {
            op_type: Some(op.into()),
            input: inputs.map(String::from).to_vec(),
            output: vec![output.into()],
            ..Default::default()
        };
        proto::ModelProto {
            ir_version: Some(8),
            opset_import: vec![proto::OperatorSetIdProto {
                version: Some(17),
                ..Default::default()
            }],
            graph: Some(proto::GraphProto {
                name: Some("affine".into()),
                node: vec![node("MatMul", ["x", "w"], "z"), node("Add", ["z", "b"], "y")],
                initializer: vec![tensor_proto("b", &Tensor::f32([1], vec![0.5]))],
                input: vec![info("x"), info("w")],
                output: vec![info("y")],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A session on the CPU that binds all the same, and one that does not.
    fn sessions() -> Option<[Box<dyn Session>; 2]> {
        let mut engine = match OnnxRuntime::load(&EngineOptions::default(), 1) {
            Ok(engine) => engine,
            Err(error) => {
                eprintln!("skipped: {}", error.chain());
                return None;
            }
        };
        let options = SessionOptions {
            optimise: true,
            outputs: Some(["y", "z", "y"].map(String::from).to_vec()),
        };
        let mut open = |binds: bool| {
            engine.binds = binds;
            let open = crate::engine::Engine::session(&engine, &model(), &options);
            open.expect("a session")
        };
        Some([open(true), open(false)])
    }

    #[test]
    fn held_inputs_are_given_once() {
        let Some([mut bound, mut plain]) = sessions() else {
            return;
        };
        let x = |rows: usize, scale: f32| {
            let values = (0..2 * rows).map(|i| scale * i as f32).collect();
            Feeds::from([("x".to_owned(), Tensor::f32([rows, 2], values))])
        };
        let w = |scale: f32| Feeds::from([("w".to_owned(), Tensor::f32([2, 1], vec![scale, 2.0]))]);
        assert_eq!(plain.hold(&w(1.0)).ok(), Some(false));
        for scale in [1.0, -3.0] {
            assert_eq!(bound.hold(&w(scale)).ok(), Some(true));
            // Shapes change from run to run, and results stay what they were.
            let mut kept = Vec::new();
            for rows in [2, 5, 1] {
                let own = x(rows, scale);
                let both = own.clone().into_iter().chain(w(scale)).collect();
                let expected = plain.run(&both).expect("a run");
                assert_eq!(expected[0].shape, [rows, 1]);
                kept.push((bound.run(&own).expect("a run"), expected));
            }
            for (given, expected) in kept {
                assert_eq!(given, expected);
            }
        }
        let told = |session: &mut Box<dyn Session>, feeds: &Feeds| {
            let error = session.run(feeds).err().map(|e| e.chain());
            error.unwrap_or_default()
        };
        assert!(told(&mut bound, &Feeds::new()).contains("`x` is missing"));
        let twice: Feeds = x(1, 1.0).into_iter().chain(w(1.0)).collect();
        assert!(told(&mut bound, &twice).contains("`w` is held"));
        assert!(
            bound
                .hold(&Feeds::from([("v".to_owned(), Tensor::f32([1], vec![0.0]))]))
                .is_err()
        );
        // A refused one leaves nothing held.
        assert!(told(&mut bound, &x(1, 1.0)).contains("`w` is missing"));
        assert_eq!(bound.hold(&Feeds::new()).ok(), Some(false));
        assert_eq!(bound.run(&twice).ok(), plain.run(&twice).ok());
    }
}
