//! Rolls back to a revision that worked: on an operator's request, or automatically after a bad
//! deploy or a bad canary.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Weak;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use metrics::counter;
use millrace_model::{Processor, ProcessorName};
use tokio::sync::mpsc;

use crate::dispatch::gate::{Alarm, Wanted};
use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::{Inner, Processors};
use crate::processors::loaded::Loaded;
use crate::processors::revisions::{Asks, roll_back, take_back};
use crate::processors::turns::TurnError;

/// Carries out the alarms of gates until the broker is dropped. A processor whose components load
/// slowly delays no other one.
pub(crate) async fn heed_alarms(processors: Weak<Inner>, mut alarms: mpsc::Receiver<Alarm>) {
    let mut under_way = FuturesUnordered::new();
    // One alarm of each kind is being handled. The latest one that arrives meanwhile waits for it.
    let mut waiting: HashMap<Kind, Option<Alarm>> = HashMap::new();
    loop {
        let alarm = tokio::select! {
            Some(done) = under_way.next() => match waiting.remove(&done).flatten() {
                Some(next) => next,
                None => continue,
            },
            alarm = alarms.recv() => match alarm {
                Some(alarm) => alarm,
                None => break,
            },
        };
        let Some(inner) = processors.upgrade() else {
            break;
        };
        let kind = kind_of(&alarm);
        match waiting.entry(kind.clone()) {
            Entry::Occupied(mut entry) => {
                entry.insert(Some(alarm));
            }
            Entry::Vacant(entry) => {
                entry.insert(None);
                let processors = Processors::of(inner).by_itself();
                under_way.push(async move {
                    processors.heed(alarm).await;
                    kind
                });
            }
        }
    }
    while under_way.next().await.is_some() {}
}

/// The kind of an alarm. With a revision: store its record. Without: roll the processor back or
/// withdraw its canary.
type Kind = (ProcessorName, Option<u32>);

fn kind_of(alarm: &Alarm) -> Kind {
    let noted = match alarm.wanted {
        Wanted::Note => Some(alarm.revision),
        Wanted::TakeBack { .. } | Wanted::Withdraw { .. } => None,
    };
    (alarm.processor.clone(), noted)
}

impl Processors {
    async fn heed(&self, alarm: Alarm) {
        let (name, revision) = (&alarm.processor, alarm.revision);
        let (done, is_new) = match alarm.wanted {
            Wanted::TakeBack { to, why } => {
                let done = self.roll_back_by_itself(name, revision, to, why).await;
                let is_new = self.note_way_back_problem(name, revision, done.as_ref().err());
                (done, is_new)
            }
            Wanted::Withdraw { why } => (self.withdraw_by_itself(name, revision, why).await, true),
            Wanted::Note => (self.note_record(name, revision).await, true),
        };
        // The next failed probe tries the rollback again, and the status shows the problem, so it
        // is logged once.
        if let Err(error) = done
            && is_new
        {
            tracing::error!(processor = %name, revision, %error, "an action on a revision failed; trying again");
        }
    }

    /// Rolls back to `revision`, or to the last one that worked. Without a number, or with that of
    /// the current one, it withdraws a revision on trial, and the current one stays.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn rollback(
        &self,
        name: &ProcessorName,
        revision: Option<u32>,
    ) -> Result<Processor, ProcessorError> {
        self.rollback_expecting(name, revision, None).await
    }

    /// Like [`rollback`](Self::rollback), but refused unless this revision would be taken back: the
    /// one on trial if there is one, otherwise the current one. So a repeated request rolls back
    /// only once.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn rollback_expecting(
        &self,
        name: &ProcessorName,
        revision: Option<u32>,
        expected: Option<u32>,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::RollBackProcessor, name.as_str())?;
        let asks = Asks {
            to: revision,
            from: expected,
        };
        self.decide(name, async |loaded| {
            self.roll_back_now(name, asks, &loaded).await
        })
        .await
    }

    async fn roll_back_now(
        &self,
        name: &ProcessorName,
        asks: Asks,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let known = self.known(name)?;
        let mut processor = known.processor.clone();
        let can_run = |revision: &_| self.inner.catalogue.can_run(revision);
        roll_back(
            &mut processor,
            self.asked(),
            self.seen(&known),
            asks,
            &can_run,
        )?;
        if processor == known.processor {
            return Ok(processor);
        }
        // A withdrawal only removes a path of messages, so it cannot create a cycle.
        if processor.current != known.processor.current {
            if let Some(now) = processor.current() {
                let before = known.processor.current().map(|before| &before.spec);
                self.check_further_rights(before, &now.spec)?;
            }
            self.check_chains(&processor)?;
        }
        self.change(processor, loaded).await
    }

    /// Rolls back a bad deploy, if it is still current.
    async fn roll_back_by_itself(
        &self,
        name: &ProcessorName,
        bad: u32,
        back_to: u32,
        why: String,
    ) -> Result<(), ProcessorError> {
        self.decide(name, async |loaded| {
            let which = (bad, back_to);
            self.roll_back_by_itself_now(name, which, &why, &loaded)
                .await
        })
        .await
    }

    async fn roll_back_by_itself_now(
        &self,
        name: &ProcessorName,
        which: (u32, u32),
        why: &str,
        loaded: &Loaded,
    ) -> Result<(), TurnError> {
        let known = self.known(name)?;
        let mut processor = known.processor.clone();
        let can_run = |revision: &_| self.inner.catalogue.can_run(revision);
        let (asked, seen) = (self.asked(), self.seen(&known));
        let Some(taken_back) = take_back(&mut processor, asked, seen, which, why, &can_run)? else {
            return Ok(());
        };
        self.check_chains(&processor)?;
        self.change(processor, loaded).await?;
        counter!("millrace_auto_rollbacks_total", "processor" => name.to_string()).increment(1);
        if taken_back.redrives {
            self.have_sent_what_is_due(name);
        }
        let (bad, back_to) = (which.0, taken_back.to);
        tracing::error!(processor = %name, revision = bad, back_to, why, "a bad deploy was rolled back; `millrace dlq redrive {name} --failed-revision {bad}` sends again what it gave up");
        Ok(())
    }

    /// Records why the revision could not be rolled back, or clears the problem; returns whether
    /// that is new.
    fn note_way_back_problem(
        &self,
        name: &ProcessorName,
        revision: u32,
        problem: Option<&ProcessorError>,
    ) -> bool {
        let problem = problem.map(ToString::to_string);
        let amended = self.inner.catalogue.amend(name, |known| {
            if known.processor.current != revision {
                return true;
            }
            let is_new = known.way_back_problem != problem;
            known.way_back_problem = problem;
            is_new
        });
        amended.unwrap_or(true)
    }
}
