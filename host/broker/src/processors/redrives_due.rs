//! Dead letters that the host sends again by itself: those of a revision that it has taken back. That they are due is written in the commit
//! of the rollback and stays until it is done, so that neither a start of the host nor an error makes anybody forget it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_engine::CommitError;
use millrace_model::{Processor, ProcessorName, RedriveDue};

use crate::broker::{Broker, Inner};
use crate::dead_letters::{DeadLetterError, DeadLetterFilter, RedriveRequest};
use crate::handler::Cause;
use crate::history::HOST;

/// How long it waits after an error; twice as long after each further one.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest wait before what is due is sent again.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);

impl Broker {
    /// Sends again what is due, of all processors.
    pub(super) fn redrive_what_is_due(&self) {
        let due: Vec<ProcessorName> = {
            let all = self.inner.processors.read();
            let due = all.values().map(|known| &known.processor);
            let due = due.filter(|processor| due_of(processor).is_some());
            due.map(|processor| processor.name.clone()).collect()
        };
        due.into_iter()
            .for_each(|name| self.redrive_by_itself(name));
    }

    /// Sends again what is due of a processor, beside whatever else there is to do.
    pub(super) fn redrive_by_itself(&self, name: ProcessorName) {
        tokio::spawn(send_again(Arc::downgrade(&self.inner), name));
    }

    /// Sends again what is due of one revision; whether there was anything.
    async fn redrive_of_one(&self, name: &ProcessorName) -> Result<bool, DeadLetterError> {
        let known = self.deployed(name).map(|known| known.processor);
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
        let request = RedriveRequest::matching(filter, HOST);
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
        self.decide(|| self.redriven_now(name, revision)).await
    }

    async fn redriven_now(&self, name: &ProcessorName, revision: u32) -> Result<(), CommitError> {
        let Some(known) = self.deployed(name) else {
            return Ok(());
        };
        let mut processor = known.processor;
        for sent in processor.revisions.iter_mut() {
            if sent.number == revision {
                sent.redrive_due = None;
            }
        }
        let version = self.keep(&processor).await?;
        self.know_with(processor, version, known.problem, known.trial_problem);
        Ok(())
    }
}

/// What is due of a processor, and up to which revision.
fn due_of(processor: &Processor) -> Option<(u32, RedriveDue)> {
    let mut revisions = processor.revisions.iter();
    revisions.find_map(|revision| Some((revision.number, revision.redrive_due?)))
}

async fn send_again(broker: Weak<Inner>, name: ProcessorName) {
    let mut wait = AGAIN_AFTER;
    loop {
        let Some(inner) = broker.upgrade() else {
            return;
        };
        let done = {
            let broker = Broker { inner, by: None }.by_itself();
            broker.redrive_of_one(&name).await
        };
        match done {
            Ok(true) => wait = AGAIN_AFTER,
            Ok(false)
            | Err(
                DeadLetterError::UnknownProcessor(_)
                | DeadLetterError::Deleted(_)
                | DeadLetterError::Commit(CommitError::Closed),
            ) => return,
            Err(error) => {
                tracing::error!(processor = %name, %error, "what was given up by revisions that were taken back could not be sent again; it is tried again in {} s", wait.as_secs());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_AFTER_MAX);
            }
        }
    }
}
