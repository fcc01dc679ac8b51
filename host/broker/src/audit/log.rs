//! The handle of the audit log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_model::bounds::{AUDIT_QUEUED_MAX, AUDIT_WAIT_MS_MAX};
use millrace_model::{Clock, TopicName};
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::audit::record::{AuditRecord, AuditResult};
use crate::audit::refusals::Refusals;
use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::ground::own_topics::AUDIT_LOG;
use crate::hosts::base::Base;
use crate::messages::handle::Messages;

/// The audit log. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) catalogue: Catalogue,
    pub(super) messages: Messages,
    /// Whether this host keeps it.
    is_kept: AtomicBool,
    queue: mpsc::Sender<Queued>,
    pub(super) refusals: Mutex<Refusals>,
}

/// A record on its way, and whom to tell that it is durable.
pub(crate) struct Queued {
    pub(super) record: AuditRecord,
    pub(super) written: oneshot::Sender<()>,
}

/// Where the writer takes records from.
pub(crate) type Outlet = Arc<tokio::sync::Mutex<mpsc::Receiver<Queued>>>;

impl AuditLog {
    pub(crate) fn new(base: &Base, catalogue: Catalogue, messages: Messages) -> (Self, Outlet) {
        let (queue, outlet) = mpsc::channel(AUDIT_QUEUED_MAX);
        let inner = Inner {
            clock: Arc::clone(&base.clock),
            catalogue,
            messages,
            is_kept: AtomicBool::new(false),
            queue,
            refusals: Mutex::default(),
        };
        let log = Self {
            inner: Arc::new(inner),
            caller: Caller::default(),
        };
        (log, Arc::new(tokio::sync::Mutex::new(outlet)))
    }

    /// The same handle for a caller.
    #[must_use]
    pub fn called_by(&self, caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            ..self.clone()
        }
    }

    /// For the writer, which ends with the broker.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    /// From now on this host keeps the log.
    pub fn begin(&self) {
        self.inner.is_kept.store(true, Ordering::Relaxed);
    }

    /// Whether this host keeps it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.inner.is_kept.load(Ordering::Relaxed)
    }

    /// Records what became of the caller's request, if it is one to be recorded. Returns when the record is durable; refusals are
    /// collected, and durable about a second later. While the store takes nothing, a caller waits [`AUDIT_WAIT_MS_MAX`]; its record
    /// waits on.
    pub async fn answered(&self, result: AuditResult, code: Option<&str>) {
        if !self.is_kept() {
            return;
        }
        let note = self.caller.noted();
        if note.is_none() && result != AuditResult::Refused {
            return;
        }
        // What was allowed, and refused only in the end, may have been done: the caller's credentials ended meanwhile.
        let result = match &note {
            Some(note) if note.is_allowed && result == AuditResult::Refused => {
                AuditResult::Unanswered
            }
            _ => result,
        };
        if result == AuditResult::Refused {
            let now = self.inner.clock.wall();
            let record = AuditRecord::of(now, &self.caller, note, result, code);
            self.inner.refusals.lock().add(record);
            return;
        }
        let record = AuditRecord::of(self.inner.clock.wall(), &self.caller, note, result, code);
        let (written, is_written) = oneshot::channel();
        let subject = (record.verb.clone(), record.on.clone());
        let recorded = async {
            if self
                .inner
                .queue
                .send(Queued { record, written })
                .await
                .is_ok()
            {
                let _ = is_written.await;
            }
        };
        let patience = Duration::from_millis(AUDIT_WAIT_MS_MAX);
        if tokio::time::timeout(patience, recorded).await.is_err() {
            let (verb, on) = subject;
            metrics::counter!("millrace_audit_late_total").increment(1);
            tracing::warn!(
                verb,
                on,
                "the audit log took no record of this in time; the request is answered"
            );
        }
    }

    /// Records that the caller left before its request was answered.
    pub fn unanswered(&self) {
        let Some(note) = self.caller.noted().filter(|_| self.is_kept()) else {
            return;
        };
        let now = self.inner.clock.wall();
        let record = AuditRecord::of(now, &self.caller, Some(note), AuditResult::Unanswered, None);
        let (written, _) = oneshot::channel();
        // Without room for it, it is collected like refusals: it counts, and may be one of several.
        if let Err(error) = self.inner.queue.try_send(Queued { record, written }) {
            let (TrySendError::Full(queued) | TrySendError::Closed(queued)) = error;
            self.inner.refusals.lock().add(queued.record);
        }
    }
}

/// The topic of the log. It has that name in every store.
pub(super) fn topic() -> Option<TopicName> {
    TopicName::parse(AUDIT_LOG).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_topic_has_a_name() {
        assert!(super::topic().is_some());
    }
}
