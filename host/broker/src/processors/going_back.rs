//! Going back to a revision that worked: on an operator's request, or automatically after a bad deploy or a bad canary.

use std::sync::Weak;
use std::time::Duration;

use metrics::counter;
use millrace_model::bounds::CHANGE_TEXT_BYTES_MAX;
use millrace_model::{
    Change, ChangeKind, Processor, ProcessorName, RedriveDue, Revision, Timestamp,
};
use tokio::sync::mpsc;

use crate::dispatch::gate::{Alarm, Wanted};
use crate::ground::caller::HOST;
use crate::ground::text::cut;
use crate::processors::error::ProcessorError;
use crate::processors::handle::{Inner, Processors};
use crate::processors::revisions::{
    begin_anew, end_trials, kept, make_void, on_trial, unproven_run,
};

/// For this long after an automatic rollback, a rollback must name its target.
const ASKED_AFTER_HOST: Duration = Duration::from_secs(60 * 60);
/// Groups of revisions named when a rollback skips them.
const PASSED_GROUPS_MAX: usize = 4;

/// Rolls bad deploys back if they ask for it, while the broker exists.
pub(crate) async fn take_back(processors: Weak<Inner>, mut alarms: mpsc::Receiver<Alarm>) {
    while let Some(alarm) = alarms.recv().await {
        let Some(inner) = processors.upgrade() else {
            return;
        };
        let processors = Processors::of(inner).by_itself();
        let (name, revision) = (&alarm.processor, alarm.revision);
        let (done, is_new) = match alarm.wanted {
            Wanted::TakeBack { to, why } => {
                let done = processors
                    .roll_back_by_itself(name, revision, to, why)
                    .await;
                let is_new = processors.note_way_back_problem(name, revision, done.as_ref().err());
                (done, is_new)
            }
            Wanted::Withdraw { why } => (
                processors.withdraw_by_itself(name, revision, why).await,
                true,
            ),
            Wanted::Note => (processors.note_record(name, revision).await, true),
        };
        // A rollback is tried again with each failed probe, and the status shows its problem.
        if let Err(error) = done
            && is_new
        {
            tracing::error!(processor = %name, revision, %error, "an action on a revision failed; trying again");
        }
    }
}

impl Processors {
    /// Rolls back to `revision`, or to the last one that worked. Without a number, or with that of the current one, it withdraws a
    /// revision on trial, and the current one stays.
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

    /// Like [`rollback`](Self::rollback), but refused unless this is the revision that it takes back: the one on trial if there is one,
    /// otherwise the current one. So a repeated request rolls back once.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn rollback_expecting(
        &self,
        name: &ProcessorName,
        revision: Option<u32>,
        expected: Option<u32>,
    ) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.roll_back_now(name, revision, expected))
            .await
    }

    async fn roll_back_now(
        &self,
        name: &ProcessorName,
        revision: Option<u32>,
        expected: Option<u32>,
    ) -> Result<Processor, ProcessorError> {
        let known = self.known(name)?;
        let mut processor = known.processor;
        let trial = on_trial(&processor);
        let current = trial.unwrap_or(processor.current);
        if let Some(expected) = expected.filter(|&expected| expected != current) {
            return Err(ProcessorError::OtherRevision {
                name: name.clone(),
                expected,
                current,
            });
        }
        let is_current = |number| number == processor.current;
        // If the current one cannot be loaded, it does not stay.
        if revision.is_none_or(is_current) && trial.is_some() && known.problem.is_none() {
            self.withdraw(&mut processor, None);
            return self.change(processor).await;
        }
        let target = match revision {
            Some(number) if is_current(number) => return Ok(processor),
            Some(number) => kept(&processor, number)?.number,
            None => self.one_step_back(&processor)?,
        };
        self.go_back(&mut processor, target, None);
        self.check_chains(&processor)?;
        self.change(processor).await
    }

    /// The target of a rollback without a number.
    fn one_step_back(&self, processor: &Processor) -> Result<u32, ProcessorError> {
        let before = self.revision_before(processor);
        match done_last_by_host(processor, self.inner.clock.wall()) {
            Some((from, withdrawn)) if !withdrawn || before.is_some() => {
                Err(ProcessorError::RolledBackAlready {
                    name: processor.name.clone(),
                    current: processor.current,
                    from,
                    withdrawn,
                    further: before,
                })
            }
            _ => before.ok_or_else(|| self.nowhere(processor)),
        }
    }

    /// The last revision before the current one that worked; if none did, the one that it replaced, or else the last one that was
    /// current.
    fn revision_before(&self, processor: &Processor) -> Option<u32> {
        let back = self
            .inner
            .catalogue
            .way_back(processor)
            .map(|back| back.number);
        let can_run = |revision: &&Revision| self.inner.catalogue.can_run(revision);
        let predecessor = processor.current().and_then(|r| r.predecessor);
        let predecessor = predecessor.and_then(|number| processor.revision(number));
        let predecessor = predecessor.filter(can_run).map(|r| r.number);
        let earlier = |r: &&Revision| r.number < processor.current && !r.trial;
        let earlier = processor.revisions.iter().filter(earlier).filter(can_run);
        back.or(predecessor)
            .or_else(|| earlier.map(|r| r.number).max())
    }

    /// Why there is no way back.
    fn nowhere(&self, processor: &Processor) -> ProcessorError {
        let worked = |r: &&Revision| {
            r.number < processor.current && !r.trial && r.record.worked_at.is_some()
        };
        let revisions = processor.revisions.iter().filter(worked);
        let revisions: Vec<u32> = revisions.map(|r| r.number).collect();
        let name = processor.name.clone();
        match revisions.is_empty() {
            true => ProcessorError::NothingToRollBack(name),
            false => ProcessorError::WayBackGone { name, revisions },
        }
    }

    fn go_back(&self, processor: &mut Processor, target: u32, why: Option<&str>) {
        self.leave(processor);
        let from = processor.current;
        match on_trial(processor) == Some(target) {
            true => end_trials(processor),
            false => self.end_trial(processor, &format!("revision {from} was taken back")),
        }
        let run = unproven_run(processor);
        let text = self.told(processor, target, why);
        processor.current = target;
        make_void(processor, from);
        let now = self.inner.clock.wall();
        let is_target = |r: &&mut Revision| r.number == target;
        if let Some(revision) = processor.revisions.iter_mut().find(is_target) {
            if revision.trial {
                begin_anew(revision, from, now);
            }
            revision.unproven_run = run;
            revision.record.begin_anew();
        }
        self.record(processor, ChangeKind::Rollback, target, Some(text));
    }

    /// The history's text about a rollback: why, from where, what is skipped, and how to redrive what was given up.
    fn told(&self, processor: &Processor, target: u32, why: Option<&str>) -> String {
        let from = processor.current;
        let mut text = format!("from revision {from}");
        let is_unknown = |r: &Revision| r.record.worked_at.is_none();
        if target < from && processor.revision(target).is_some_and(is_unknown) {
            text += &format!(" to revision {target}, which is not known to have worked");
        }
        text += &self.passed_over(processor, from, target);
        if target < from {
            let sent_again = match processor.current() {
                Some(bad) if why.is_some() && bad.spec.auto_redrive => {
                    "what it gave up is sent again".to_owned()
                }
                _ => sends_again(&processor.name, from),
            };
            text = format!("{text}; {sent_again}");
        }
        match why {
            None => text,
            Some(why) => {
                let room = CHANGE_TEXT_BYTES_MAX.saturating_sub(text.len() + 2);
                format!("{}: {text}", cut(why.to_owned(), room))
            }
        }
    }

    /// Revisions between the two that a rollback skips, and why.
    fn passed_over(&self, processor: &Processor, from: u32, target: u32) -> String {
        let between = |r: &&Revision| r.number > target && r.number < from && !r.trial;
        let why = |r: &Revision| match (&r.record.stopped, r.record.worked_at) {
            _ if !self.inner.catalogue.can_run(r) => "whose topics or modules are gone",
            (_, None) => "which never processed a message",
            (Some(_), _) => "which was stopped when it was replaced",
            _ => "which was current",
        };
        let mut groups: Vec<(u32, u32, &str)> = Vec::new();
        for revision in processor.revisions.iter().filter(between) {
            match groups.last_mut() {
                Some((_, last, said)) if *said == why(revision) => *last = revision.number,
                _ => groups.push((revision.number, revision.number, why(revision))),
            }
        }
        let more = groups.len().saturating_sub(PASSED_GROUPS_MAX);
        groups.truncate(PASSED_GROUPS_MAX);
        let mut passed: Vec<String> = groups
            .into_iter()
            .map(|(first, last, why)| match first == last {
                true => format!("revision {first}, {why}"),
                false => format!("revisions {first} to {last}, {why}"),
            })
            .collect();
        passed.extend((more > 0).then(|| "others".to_owned()));
        match passed.is_empty() {
            true => String::new(),
            false => format!(", passing over {}", passed.join(" and ")),
        }
    }

    /// Rolls back a bad deploy, once: not if it is no longer current, or was made current again by someone.
    async fn roll_back_by_itself(
        &self,
        name: &ProcessorName,
        number: u32,
        back_to: u32,
        why: String,
    ) -> Result<(), ProcessorError> {
        let take_back = || self.roll_back_by_itself_now(name, number, back_to, &why);
        self.inner.catalogue.decide(take_back).await
    }

    async fn roll_back_by_itself_now(
        &self,
        name: &ProcessorName,
        number: u32,
        back_to: u32,
        why: &str,
    ) -> Result<(), ProcessorError> {
        let mut processor = self.known(name)?.processor;
        let bad = processor
            .current()
            .filter(|r| r.number == number && r.note.is_none());
        let Some(redrives) = bad.map(|bad| bad.spec.auto_redrive) else {
            return Ok(());
        };
        // The way back at the time of the judgement may have lost its topics since.
        let judged = processor.revision(back_to);
        let back = judged.filter(|back| self.inner.catalogue.can_run(back));
        let back = back.or_else(|| self.inner.catalogue.way_back(&processor));
        let back_to = match back {
            Some(back) => back.number,
            None => return Err(self.nowhere(&processor)),
        };
        let due = redrives.then(|| redrive_due(&processor, back_to));
        let sent_again = match redrives {
            true => "what it gave up is sent again".to_owned(),
            false => sends_again(name, number),
        };
        self.go_back(&mut processor, back_to, Some(why));
        let is_bad = |r: &&mut Revision| r.number == number;
        if let Some(bad) = processor.revisions.iter_mut().find(is_bad) {
            bad.redrive_due = due;
            bad.note = Some(format!("{}{why}; {sent_again}", note_of(back_to)));
        }
        self.check_chains(&processor)?;
        self.change(processor).await?;
        counter!("millrace_auto_rollbacks_total", "processor" => name.to_string()).increment(1);
        if redrives {
            self.have_sent_what_is_due(name);
        }
        tracing::error!(processor = %name, revision = number, back_to, why, "a bad deploy was rolled back; `millrace dlq redrive {name} --failed-revision {number}` sends again what it gave up");
        Ok(())
    }

    /// Stores why the revision could not be rolled back, or that there is no such problem; returns whether that is new.
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

/// The command that redrives what a revision gave up.
fn sends_again(name: &ProcessorName, revision: u32) -> String {
    format!(
        "`millrace dlq redrive {name} --failed-revision {revision}` sends again what it gave up"
    )
}

/// The beginning of a revision's note after an automatic rollback to this one.
fn note_of(back_to: u32) -> String {
    format!("rolled back to revision {back_to} by the host: ")
}

/// The range of time in which the current revision and those after `back_to` gave up messages. The first one's time is unknown if it is
/// no longer kept; then the time of the one to go back to serves.
fn redrive_due(processor: &Processor, back_to: u32) -> RedriveDue {
    // Messages given up by a proven revision are not due to a bad deploy.
    let proven = processor.revisions.iter();
    let proven = proven.filter(|r| r.record.proven && !r.trial && r.number < processor.current);
    let proven = proven.map(|r| r.number).max().unwrap_or(0);
    let from = back_to.max(proven) + 1;
    let revisions = [from, back_to, processor.current];
    let mut known = revisions.into_iter().filter_map(|n| processor.revision(n));
    RedriveDue {
        from,
        since: known.next().map(|r| r.deployed_at).unwrap_or_default(),
    }
}

/// The revision from which the host rolled back, if that was the last change and the revision is still kept.
pub(super) fn gone_back_from(processor: &Processor) -> Option<u32> {
    let last = processor.changes.iter().rfind(is_of_the_current)?;
    let went_back = last.what == ChangeKind::Rollback && last.revision == processor.current;
    let left = processor.revisions.iter().filter(|r| !r.trial);
    let left = left.max_by_key(|r| r.record.left_as)?;
    (went_back && left.record.left_as > 0 && left.number > processor.current).then_some(left.number)
}

/// Whether the change made another revision current. Other changes do not.
fn is_of_the_current(change: &&Change) -> bool {
    use ChangeKind::{Canary, Pause, Resume, Shadow, Withdraw};
    !matches!(change.what, Pause | Resume | Canary | Shadow | Withdraw)
}

/// Whether the last change was an automatic rollback or withdrawal: from which revision, if still known, and whether it was a canary.
fn done_last_by_host(processor: &Processor, now: Timestamp) -> Option<(Option<u32>, bool)> {
    let by_host = |change: &Change, what| {
        let is_recent = change.at.until(now) < ASKED_AFTER_HOST;
        change.what == what && change.by.as_deref() == Some(HOST) && is_recent
    };
    let goes_on = |change: &&Change| matches!(change.what, ChangeKind::Pause | ChangeKind::Resume);
    let last = processor.changes.iter().rfind(|change| !goes_on(change))?;
    if by_host(last, ChangeKind::Withdraw) {
        return Some((Some(last.revision), true));
    }
    let last = processor.changes.iter().rfind(is_of_the_current)?;
    let note = note_of(processor.current);
    let taken_back = |r: &&Revision| r.note.as_ref().is_some_and(|of| of.starts_with(&note));
    let taken_back = processor.revisions.iter().rev().find(taken_back);
    by_host(last, ChangeKind::Rollback).then(|| (taken_back.map(|r| r.number), false))
}
