//! A processor's history: its revisions, and what was done to it, by whom and when. Stored in the same commit as the change.

use std::sync::Arc;

use millrace_model::bounds::{CHANGE_TEXT_BYTES_MAX, CHANGES_KEPT_MAX, REVISIONS_KEPT_MAX};
use millrace_model::{
    Change, ChangeKind, Processor, ProcessorName, ProcessorSpec, Record, Rejections, Revision,
    Stopped, Timestamp,
};

use crate::broker::Broker;
use crate::canary::on_trial;
use crate::dispatch::answer::cut;
use crate::dispatch::breaker::{CLASSES_MAX, Noted, PROVEN_AFTER, PROVEN_MESSAGES};
use crate::dispatch::gate::Gate;
use crate::dispatch::planted::planted;
use crate::processors::ProcessorError;

/// The name under which the host acts by itself.
pub(crate) const HOST: &str = "host";

impl Broker {
    /// The same broker, which makes changes to processors under this name. A recorded claim, not proof.
    #[must_use]
    pub fn on_behalf_of(&self, by: &str) -> Self {
        Self {
            by: Some(by.into()),
            ..self.clone()
        }
    }

    /// The same broker, for what the host does by itself.
    pub(crate) fn by_itself(&self) -> Self {
        self.on_behalf_of(HOST)
    }

    /// A processor with its first revision.
    pub(crate) fn first_revision(&self, name: &ProcessorName, spec: ProcessorSpec) -> Processor {
        let now = self.inner.clock.wall();
        let mut processor = Processor {
            name: name.clone(),
            made_at: now,
            current: 1,
            paused: false,
            revisions: vec![self.revision(1, spec, None)],
            canary: None,
            shadow: None,
            replay: None,
            start: Vec::new(),
            resumes: Default::default(),
            changes: Vec::new(),
        };
        for first in &mut processor.revisions {
            first.unproven_run = first_run(now);
        }
        self.record(&mut processor, ChangeKind::Deploy, 1, None);
        processor
    }

    /// The processor with its next revision, current.
    pub(crate) fn next_revision(&self, mut processor: Processor, spec: ProcessorSpec) -> Processor {
        self.leave(&mut processor);
        let number = self.add_revision(&mut processor, spec);
        self.end_trial(&mut processor, &format!("in favour of revision {number}"));
        processor.current = number;
        self.record(&mut processor, ChangeKind::Deploy, number, None);
        processor
    }

    /// Adds a revision, which becomes current or is put on trial; returns its number.
    pub(crate) fn add_revision(&self, processor: &mut Processor, spec: ProcessorSpec) -> u32 {
        let newest = processor.revisions.iter().map(|r| r.number).max();
        let number = newest.unwrap_or(0).max(processor.current) + 1;
        let mut revision = self.revision(number, spec, Some(processor.current));
        revision.unproven_run = unproven_run(processor);
        processor.revisions.push(revision);
        forget_oldest(processor, number);
        number
    }

    /// Another revision becomes current: stores the previous one's record.
    pub(crate) fn leave(&self, processor: &mut Processor) {
        let gate = self.inner.supervisor.gate(&processor.name);
        let mut noted = gate.and_then(|gate| gate.record(processor.current));
        let known = self.known(&processor.name).ok();
        if let Some(problem) = known.and_then(|known| known.problem) {
            // A revision that cannot even be loaded is not one to go back to.
            let record = &mut noted.get_or_insert_default().record;
            record.stopped.get_or_insert(Stopped {
                class: None,
                text: problem,
            });
        }
        leave(processor, noted, self.inner.clock.wall());
    }

    /// Stores the record of a running revision.
    pub(crate) async fn note_record(
        &self,
        name: &ProcessorName,
        revision: u32,
    ) -> Result<(), ProcessorError> {
        let noted = self.decide(|| self.note_record_now(name, revision)).await;
        if noted.is_err() {
            self.gates_of(name).for_each(|gate| gate.not_written());
        }
        noted
    }

    /// The gates of the current revision and of the canary.
    fn gates_of(&self, name: &ProcessorName) -> impl Iterator<Item = Arc<Gate>> + use<> {
        let supervisor = &self.inner.supervisor;
        let canary = supervisor
            .canary(name)
            .map(|canary| Arc::clone(&canary.gate));
        supervisor.gate(name).into_iter().chain(canary)
    }

    async fn note_record_now(
        &self,
        name: &ProcessorName,
        revision: u32,
    ) -> Result<(), ProcessorError> {
        for gate in self.gates_of(name) {
            let (Some(noted), Ok(known)) = (gate.record(revision), self.known(name)) else {
                continue;
            };
            let mut processor = known.processor;
            let fresh = noted.fresh;
            if take_down(&mut processor, revision, noted, self.inner.clock.wall()) {
                let version = self.keep(&processor).await?;
                gate.written(revision, fresh);
                self.know_with(processor, version, known.problem, known.trial_problem);
            }
        }
        Ok(())
    }

    /// Ends the trial, if there is one; the history says why.
    pub(crate) fn end_trial(&self, processor: &mut Processor, why: &str) {
        if let Some(revision) = on_trial(processor) {
            end_trials(processor);
            make_void(processor, revision);
            self.record(
                processor,
                ChangeKind::Withdraw,
                revision,
                Some(why.to_owned()),
            );
        }
    }

    fn revision(&self, number: u32, spec: ProcessorSpec, predecessor: Option<u32>) -> Revision {
        Revision {
            number,
            spec,
            deployed_at: self.inner.clock.wall(),
            deployed_by: self.by.as_deref().map(str::to_owned),
            predecessor,
            trial: false,
            note: None,
            unproven_run: 0,
            redrive_due: None,
            record: Record::default(),
        }
    }

    /// Records a change.
    pub(crate) fn record(
        &self,
        processor: &mut Processor,
        what: ChangeKind,
        revision: u32,
        text: Option<String>,
    ) {
        let excess = (processor.changes.len() + 1).saturating_sub(CHANGES_KEPT_MAX);
        processor.changes.drain(..excess);
        processor.changes.push(Change {
            at: self.inner.clock.wall(),
            by: self.by.as_deref().map(str::to_owned),
            what,
            revision,
            text: text.map(|text| cut(text, CHANGE_TEXT_BYTES_MAX)),
        });
    }
}

/// The first run of unproven revisions of a new processor. Counts in the progress of a deleted processor of the same name belong to
/// none of its runs.
fn first_run(now: Timestamp) -> u32 {
    // Tenths of seconds, which last for about thirteen years.
    ((now.0 / 100) as u32).max(1)
}

/// Another revision becomes current; the previous one had this record.
pub(crate) fn leave(processor: &mut Processor, noted: Option<Noted>, now: Timestamp) {
    let number = processor.current;
    if let Some(noted) = noted {
        take_down(processor, number, noted, now);
    }
    let left = processor.revisions.iter().map(|r| r.record.left_as).max();
    if let Some(current) = processor.revisions.iter_mut().find(|r| r.number == number) {
        current.record.left_as = left.unwrap_or(0).saturating_add(1);
    }
}

/// Merges a revision's record, running or final, with what other hosts saw; returns whether anything is new.
pub(crate) fn take_down(
    processor: &mut Processor,
    number: u32,
    noted: Noted,
    now: Timestamp,
) -> bool {
    let Some(revision) = processor.revisions.iter_mut().find(|r| r.number == number) else {
        return false;
    };
    let before = revision.record.clone();
    let record = &mut revision.record;
    let worked_now = (noted.has_worked && !revision.trial).then_some(now);
    let (fresh, goes_on) = (u64::from(noted.fresh), noted.goes_on);
    let noted = noted.record;
    record.proven |= noted.proven;
    record.proven_anew |= noted.proven_anew;
    record.worked_at = record.worked_at.or(worked_now);
    let processed = (u64::from(record.processed) + fresh).min(PROVEN_MESSAGES);
    record.processed = processed as u32;
    if noted.stopped.is_some() || goes_on {
        // Otherwise it may be stopped on another host.
        record.stopped = noted.stopped;
    }
    record.processed_since = match record.stopped {
        Some(_) => None,
        // The hour counts from when it was stopped nowhere.
        None => record.processed_since.max(noted.processed_since),
    };
    for class in noted.doubted {
        if !record.doubted.contains(&class) && record.doubted.len() < CLASSES_MAX {
            record.doubted.push(class);
        }
    }
    reject(record, noted.rejections, noted.measured);
    *record != before
}

/// Shares come from the host that has measured most; a class is not forgotten because another host has not seen it.
fn reject(record: &mut Record, rejections: Vec<Rejections>, measured: u32) {
    if rejections.is_empty() {
        return;
    }
    if measured >= record.measured {
        // The host that reports has followed the stored record, and its own includes it.
        (record.rejections, record.measured) = (rejections, measured);
        return;
    }
    for one in rejections {
        let is_known = record
            .rejections
            .iter()
            .any(|known| known.class == one.class);
        if !is_known && record.rejections.len() < CLASSES_MAX {
            record.rejections.push(one);
        }
    }
}

/// The run of a revision that becomes current: that of the previous one, or a new one if that was proven meanwhile. A revision that was
/// proven earlier and rolled back to does not start a new run.
pub(crate) fn unproven_run(processor: &Processor) -> u32 {
    let goes_on = |current: &&Revision| {
        !current.record.proven_anew && current.unproven_run > 0 && !planted!(BoundPerRevision)
    };
    let last = processor.revisions.iter().map(|r| r.unproven_run).max();
    match processor.current().filter(goes_on) {
        Some(current) => current.unproven_run,
        None => last.unwrap_or(0).wrapping_add(1).max(1),
    }
}

/// Removes revisions beyond the maximum. Those that never worked as the current one are removed first, and do not displace others; the
/// way back and the last proven one are always kept.
pub(crate) fn forget_oldest(processor: &mut Processor, newest: u32) {
    let was_proven = |r: &&Revision| r.record.proven && !r.trial && r.number != newest;
    let proven = processor.revisions.iter().filter(was_proven);
    let back = [
        processor.way_back_from(newest).map(|r| r.number),
        processor.way_back().map(|r| r.number),
        proven
            .max_by_key(|r| (r.record.left_as, r.number))
            .map(|r| r.number),
    ];
    while processor.revisions.len() > REVISIONS_KEPT_MAX {
        let stays = |r: &Revision| {
            r.number == newest || processor.runs(r.number) || back.contains(&Some(r.number))
        };
        let has_worked = |r: &Revision| r.record.worked_at.is_some() && !r.trial;
        let revisions = &processor.revisions;
        let worked = revisions.iter().filter(|r| has_worked(r)).count();
        let oldest = revisions.iter().position(|r| !has_worked(r) && !stays(r));
        let oldest = oldest.or_else(|| {
            let too_many = worked > REVISIONS_KEPT_MAX;
            let oldest = || revisions.iter().position(|r| !stays(r));
            too_many.then(oldest).flatten()
        });
        match oldest {
            Some(oldest) => processor.revisions.remove(oldest),
            None => break,
        };
    }
}

/// Entries of earlier versions have no records of revisions: each one that was current and not rolled back counts as having worked. The
/// current one is proven only if it had its hour.
pub(crate) fn told_of_records(processor: &mut Processor, now: Timestamp) {
    let current = processor.current;
    for revision in processor
        .revisions
        .iter_mut()
        .filter(|r| r.unproven_run == 0)
    {
        revision.unproven_run = revision.number;
        if revision.trial || revision.note.is_some() {
            continue;
        }
        let had_its_hour = revision.deployed_at.after(PROVEN_AFTER) <= now;
        let proven = revision.number != current || had_its_hour;
        let record = &mut revision.record;
        record.worked_at = Some(revision.deployed_at);
        (record.proven, record.proven_anew) = (proven, proven);
    }
}

/// The revision was rolled back or withdrawn: its decisions no longer count.
pub(crate) fn make_void(processor: &mut Processor, number: u32) {
    if let Some(revision) = processor.revisions.iter_mut().find(|r| r.number == number) {
        revision.record.voided = true;
    }
}

/// Another revision becomes current: the trial beside the previous one ends.
pub(crate) fn end_trials(processor: &mut Processor) {
    processor.canary = None;
    processor.shadow = None;
}
