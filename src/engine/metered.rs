//! An engine that tells how long it took.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Engine, EngineInfo, Session, SessionOptions};
use crate::Result;
use crate::onnx::proto;
use crate::tensor::{Feeds, Tensor};

/// Seconds that went into the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct EngineSeconds {
    /// Preparing sessions: reading, optimising and laying out models.
    pub start_up: f64,
    /// How many sessions were prepared.
    pub sessions: u64,
    /// Running them.
    pub running: f64,
}

#[derive(Default)]
struct Meters {
    start_up: AtomicU64,
    sessions: AtomicU64,
    running: AtomicU64,
}

/// Counts the time of another engine.
pub struct Metered {
    inner: Box<dyn Engine>,
    meters: Arc<Meters>,
}

impl Metered {
    /// Nothing counted yet.
    pub fn new(inner: Box<dyn Engine>) -> Self {
        Self {
            inner,
            meters: Arc::default(),
        }
    }

    /// What was counted up to now.
    pub fn seconds(&self) -> EngineSeconds {
        let read = |meter: &AtomicU64| meter.load(Ordering::Relaxed);
        EngineSeconds {
            start_up: read(&self.meters.start_up) as f64 / 1e9,
            sessions: read(&self.meters.sessions),
            running: read(&self.meters.running) as f64 / 1e9,
        }
    }
}

fn timed<T>(meter: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    meter.fetch_add(nanoseconds, Ordering::Relaxed);
    done
}

impl Engine for Metered {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn session(&self, model: &proto::ModelProto, options: &SessionOptions) -> Result<Box<dyn Session>> {
        self.meters.sessions.fetch_add(1, Ordering::Relaxed);
        let inner = timed(&self.meters.start_up, || self.inner.session(model, options))?;
        Ok(Box::new(MeteredSession {
            inner,
            meters: Arc::clone(&self.meters),
        }))
    }

    fn reduces(&self) -> bool {
        self.inner.reduces()
    }

    fn widens(&self) -> bool {
        self.inner.widens()
    }

    fn optimised_operators(&self, model: &proto::ModelProto) -> Result<Option<BTreeMap<String, usize>>> {
        timed(&self.meters.start_up, || self.inner.optimised_operators(model))
    }

    fn placement(&self, model: &proto::ModelProto, feeds: &Feeds) -> Result<Option<BTreeMap<String, usize>>> {
        self.inner.placement(model, feeds)
    }
}

struct MeteredSession {
    inner: Box<dyn Session>,
    meters: Arc<Meters>,
}

impl Session for MeteredSession {
    fn outputs(&self) -> &[String] {
        self.inner.outputs()
    }

    fn hold(&mut self, constants: &Feeds) -> Result<bool> {
        timed(&self.meters.running, || self.inner.hold(constants))
    }

    fn run(&mut self, feeds: &Feeds) -> Result<Vec<Tensor>> {
        timed(&self.meters.running, || self.inner.run(feeds))
    }
}
