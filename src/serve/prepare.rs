//! A request before its turn: its model and adapter are brought into memory, its prompts become
//! tokens. On a thread of its own, so that texts of other models go on meanwhile.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::answer::Answer;
use super::bases::Bases;
use super::events::{Event, EventSender};
use super::loaded::LoadedBase;
use super::statistics::Statistics;
use super::worker::Work;
use super::{ModelSource, Request, ServeError};
use crate::train::engine::AttachedAdapter;

/// An adapter beside its model.
#[derive(Clone)]
pub(super) struct NamedAdapter {
    /// The fine-tuned model's or checkpoint's name.
    pub id: String,
    pub attached: Arc<AttachedAdapter>,
}

/// A request whose turn may come.
pub(super) struct Prepared {
    pub base: Arc<LoadedBase>,
    pub adapter: Option<NamedAdapter>,
    pub answers: Vec<Answer>,
}

/// Prepares requests, several at once.
pub(super) struct Preparer {
    bases: Arc<Bases>,
    runtime: Handle,
    done: mpsc::UnboundedSender<Option<Prepared>>,
    statistics: Arc<Statistics>,
}

impl Preparer {
    /// Each request comes out at `done`, as nothing where it cannot be answered, of which its client
    /// knows then.
    pub fn new(
        bases: Arc<Bases>,
        runtime: Handle,
        done: mpsc::UnboundedSender<Option<Prepared>>,
        statistics: Arc<Statistics>,
    ) -> Self {
        Self { bases, runtime, done, statistics }
    }

    /// Begins with a request.
    pub fn start(&self, work: Work) {
        let Work { source, request, events } = work;
        let (bases, runtime) = (Arc::clone(&self.bases), self.runtime.clone());
        let (done, statistics) = (self.done.clone(), Arc::clone(&self.statistics));
        statistics.requested();
        self.runtime.spawn_blocking(move || {
            let mut prepared = Sent { done, prepared: None };
            if !events.is_wanted() {
                return;
            }
            match prepare(&bases, &runtime, source, request, &events) {
                Ok(made) => prepared.prepared = Some(made),
                Err(error) => {
                    statistics.failed();
                    events.send(Event::Failed(error));
                }
            }
        });
    }
}

/// Reports at its end, also when the preparation panics: otherwise the request would count as being
/// prepared for ever.
struct Sent {
    done: mpsc::UnboundedSender<Option<Prepared>>,
    prepared: Option<Prepared>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let _ended = self.done.send(self.prepared.take());
    }
}

fn prepare(
    bases: &Bases,
    runtime: &Handle,
    source: ModelSource,
    request: Request,
    events: &EventSender,
) -> Result<Prepared, ServeError> {
    let base = bases.find_or_load(source.base, runtime)?;
    let adapter = match source.adapter {
        Some(adapter) => {
            let id = adapter.id.clone();
            Some(NamedAdapter { id, attached: base.attach(adapter, runtime)? })
        }
        None => None,
    };
    let answers = base.answers(request, events)?;
    Ok(Prepared { base, adapter, answers })
}
