//! Automatic redrives: after a rollback, the host redrives what the failed revision gave up. The due redrive is stored in the commit of
//! the rollback until it is done, so it survives restarts and errors. The host that rolled back does it at once. If it is still due
//! later, another host does it, because the first may be gone; if two hosts work on it, each dead letter is still sent once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::{PartitionId, Processor, ProcessorName, RedriveDue, TopicId, TopicPartition};

use crate::dead_letters::filter::DeadLetterFilter;
use crate::dead_letters::handle::{DeadLetters, Inner};
use crate::dead_letters::letters::DeadLetterError;
use crate::dead_letters::redrive::RedriveRequest;
use crate::handler::Cause;
use crate::processors::handle::SendsAgain;

/// First delay after an error; doubles each time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest delay before a due redrive is done.
pub(super) const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);

impl DeadLetters {
    /// Does the due redrives of all processors.
    pub(crate) fn redrive_what_is_due(&self) {
        for name in self.with_redrives_due() {
            self.redrive_by_itself(name, Duration::ZERO);
        }
    }

    /// The same for redrives that another host should have done, if this host is the one to check: it acts after the other one has had
    /// its time.
    pub(crate) fn redrive_what_was_left(&self) {
        for name in self.with_redrives_due() {
            self.redrive_if_left(name);
        }
    }

    /// Like [`redrive_what_was_left`](Self::redrive_what_was_left), for one processor.
    pub(crate) fn redrive_if_left(&self, name: ProcessorName) {
        let hosts = &self.inner.hosts;
        // Any partition will do: all hosts agree on it.
        let anywhere = TopicPartition {
            topic: TopicId(0),
            partition: PartitionId(0),
        };
        if self.is_due(&name) && hosts.wanted_elsewhere(&name.group(), anywhere).is_none() {
            self.redrive_by_itself(name, hosts.moved_after());
        }
    }

    fn is_due(&self, name: &ProcessorName) -> bool {
        let known = self.inner.catalogue.deployed(name);
        known.is_some_and(|known| due_of(&known.processor).is_some())
    }

    fn with_redrives_due(&self) -> Vec<ProcessorName> {
        let all = self.inner.catalogue.processors();
        let due = all.values().map(|known| &known.processor);
        let due = due.filter(|processor| due_of(processor).is_some());
        due.map(|processor| processor.name.clone()).collect()
    }

    /// Does the due redrives of a processor in the background, after a delay.
    pub(super) fn redrive_by_itself(&self, name: ProcessorName, after: Duration) {
        if let Some(at_it) = AtIt::begin(&self.inner, name) {
            tokio::spawn(send_again(at_it, after));
        }
    }

    /// Does the due redrive of one revision; returns whether there was any.
    async fn redrive_of_one(&self, name: &ProcessorName) -> Result<bool, DeadLetterError> {
        let known = self
            .inner
            .catalogue
            .deployed(name)
            .map(|known| known.processor);
        let due = known
            .as_ref()
            .and_then(|known| Some((known.current, due_of(known)?)));
        let Some((current, (revision, due))) = due else {
            return Ok(false);
        };
        if current == revision {
            // Someone has made it current again: it would give the messages up once more.
            self.redriven(name, revision).await?;
            return Ok(true);
        }
        // Nor does a revision redrive to itself.
        let from = match (due.from..revision).contains(&current) {
            true => current + 1,
            false => due.from,
        };
        let filter = DeadLetterFilter {
            revisions: Some(from..=revision),
            since: Some(due.since),
            // Messages that ended the host may not be the revision's fault; the others were an operator's decision.
            other_causes: vec![
                Cause::HostDied.as_str().to_owned(),
                Cause::GivenUp.as_str().to_owned(),
            ],
            ..DeadLetterFilter::default()
        };
        let request = RedriveRequest::matching(filter);
        let sent = match self.redrive(name, request).await {
            Ok(done) => done.sent,
            // They wait for a revision that reads their topic.
            Err(DeadLetterError::NotAnInput { .. }) => 0,
            Err(error) => return Err(error),
        };
        tracing::info!(processor = %name, from = due.from, revision, sent, "redrove what rolled-back revisions gave up");
        self.redriven(name, revision).await?;
        Ok(true)
    }

    /// Stores that nothing of the revision is due any more.
    async fn redriven(&self, name: &ProcessorName, revision: u32) -> Result<(), CommitError> {
        self.inner
            .catalogue
            .decide(|| self.redriven_now(name, revision))
            .await
    }

    async fn redriven_now(&self, name: &ProcessorName, revision: u32) -> Result<(), CommitError> {
        let Some(known) = self.inner.catalogue.deployed(name) else {
            return Ok(());
        };
        let mut processor = known.processor;
        for sent in processor.revisions.iter_mut() {
            if sent.number == revision {
                sent.redrive_due = None;
            }
        }
        let version = self.inner.processors.keep(&processor).await?;
        self.inner
            .processors
            .know_with(processor, version, known.problem, known.trial_problem);
        Ok(())
    }
}

/// A processor's due redrives, and up to which revision.
fn due_of(processor: &Processor) -> Option<(u32, RedriveDue)> {
    let mut revisions = processor.revisions.iter();
    revisions.find_map(|revision| Some((revision.number, revision.redrive_due?)))
}

impl SendsAgain for DeadLetters {
    fn send_what_is_due(&self, name: &ProcessorName) {
        self.redrive_by_itself(name.clone(), Duration::ZERO);
    }

    fn send_what_was_left(&self, name: &ProcessorName) {
        self.redrive_if_left(name.clone());
    }
}

/// Marks that this host redrives for a processor, until dropped.
struct AtIt {
    room: Weak<Inner>,
    name: ProcessorName,
}

impl AtIt {
    /// `None` if it already does.
    fn begin(inner: &Arc<Inner>, name: ProcessorName) -> Option<Self> {
        let is_new = inner.redriving.lock().insert(name.clone());
        let room = Arc::downgrade(inner);
        is_new.then_some(Self { room, name })
    }
}

impl Drop for AtIt {
    fn drop(&mut self) {
        if let Some(inner) = self.room.upgrade() {
            inner.redriving.lock().remove(&self.name);
        }
    }
}

async fn send_again(mut at_it: AtIt, after: Duration) {
    tokio::time::sleep(after).await;
    let mut wait = AGAIN_AFTER;
    loop {
        let name = at_it.name.clone();
        let Some(inner) = at_it.room.upgrade() else {
            return;
        };
        let letters = DeadLetters::of(inner).by_itself();
        match letters.redrive_of_one(&name).await {
            Ok(true) => wait = AGAIN_AFTER,
            Ok(false) => {
                // A request that arrived too late for the running redrive is not forgotten.
                drop(at_it);
                let again = AtIt::begin(&letters.inner, name);
                match again.filter(|again| letters.is_due(&again.name)) {
                    Some(again) => at_it = again,
                    None => return,
                }
            }
            Err(
                DeadLetterError::UnknownProcessor(_)
                | DeadLetterError::Deleted(_)
                | DeadLetterError::Commit(CommitError::Closed),
            ) => return,
            Err(error) => {
                drop(letters);
                tracing::error!(processor = %name, %error, "what rolled-back revisions gave up could not be redriven; trying again in {} s", wait.as_secs());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_AFTER_MAX);
            }
        }
    }
}
