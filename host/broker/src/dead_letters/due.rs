//! Dead letters that the host sends again by itself: those of a revision that it has taken back. That they are due is written in the commit
//! of the rollback and stays until it is done, so that neither a start of the host nor an error makes anybody forget it. The host that rolled back does it
//! at once. If it is due a while later still, another one does it, for that host may be gone; two that are at it send each letter once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::{PartitionId, Processor, ProcessorName, RedriveDue, TopicId, TopicPartition};

use crate::dead_letters::filter::DeadLetterFilter;
use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::handle::Inner;
use crate::dead_letters::letters::DeadLetterError;
use crate::dead_letters::redrive::RedriveRequest;
use crate::handler::Cause;
use crate::processors::handle::SendsAgain;

/// How long it waits after an error; twice as long after each further one.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest wait before what is due is sent again.
pub(super) const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);

impl DeadLetters {
    /// Sends again what is due, of all processors.
    pub(crate) fn redrive_what_is_due(&self) {
        for name in self.with_redrives_due() {
            self.redrive_by_itself(name, Duration::ZERO);
        }
    }

    /// The same for what another host was to do and may have left, where this host is the one that is to look: what it does it does when that one has had
    /// its time.
    pub(crate) fn redrive_what_was_left(&self) {
        for name in self.with_redrives_due() {
            self.redrive_if_left(name);
        }
    }

    /// As [`redrive_what_was_left`](Self::redrive_what_was_left), of one processor.
    pub(crate) fn redrive_if_left(&self, name: ProcessorName) {
        let hosts = &self.inner.hosts;
        // Any place does: all hosts come to the same one.
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

    /// Sends again what is due of a processor, after a while, beside whatever else there is to do.
    pub(super) fn redrive_by_itself(&self, name: ProcessorName, after: Duration) {
        if let Some(at_it) = AtIt::begin(&self.inner, name) {
            tokio::spawn(send_again(at_it, after));
        }
    }

    /// Sends again what is due of one revision; whether there was anything.
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
            // Somebody has made it current again: it would give them up once more.
            self.redriven(name, revision).await?;
            return Ok(true);
        }
        // Nor does one of those before it take its own again.
        let from = match (due.from..revision).contains(&current) {
            true => current + 1,
            false => due.from,
        };
        let filter = DeadLetterFilter {
            revisions: Some(from..=revision),
            since: Some(due.since),
            // Of the one nobody knows whose fault it was; the other is what an operator decided.
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
        tracing::info!(processor = %name, from = due.from, revision, sent, "what was given up by revisions that were taken back is sent again");
        self.redriven(name, revision).await?;
        Ok(true)
    }

    /// Writes down that nothing of the revision is due any more.
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

/// What is due of a processor, and up to which revision.
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

/// That this host sends again what is due of a processor, until it is dropped.
struct AtIt {
    room: Weak<Inner>,
    name: ProcessorName,
}

impl AtIt {
    /// `None` if it is at it already.
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
                // Whoever was told that it is being done, and came too late for that, is not forgotten.
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
                tracing::error!(processor = %name, %error, "what was given up by revisions that were taken back could not be sent again; it is tried again in {} s", wait.as_secs());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_AFTER_MAX);
            }
        }
    }
}
