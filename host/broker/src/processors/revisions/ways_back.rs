//! Rollbacks to a revision that worked: on an operator's request, or by the host after a bad
//! deploy.

use std::time::Duration;

use millrace_model::bounds::CHANGE_TEXT_BYTES_MAX;
use millrace_model::{
    Change, ChangeKind, Processor, ProcessorName, RedriveDue, Revision, Timestamp,
};

use crate::ground::caller::HOST;
use crate::ground::text::cut;
use crate::processors::error::ProcessorError;
use crate::processors::revisions::records::{begin_anew, leave};
use crate::processors::revisions::{
    Asked, Seen, end_trial, kept, make_void, record, unproven_run, with_number, withdraw,
};

/// For this long after an automatic rollback, an operator's rollback must name its target.
const ASKED_AFTER_HOST: Duration = Duration::from_secs(60 * 60);
/// Maximum number of groups of skipped revisions that the history names.
const PASSED_GROUPS_MAX: usize = 4;

/// The target of a rollback.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asks {
    /// The target; `None` is the last revision that worked.
    pub(crate) to: Option<u32>,
    /// The revision that must be taken back; if it would be another one, the rollback is refused.
    pub(crate) from: Option<u32>,
}

/// A bad deploy that the host has rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TakenBack {
    /// The revision that is current now.
    pub(crate) to: u32,
    /// Whether the host redrives messages that the bad revision gave up.
    pub(crate) redrives: bool,
}

/// Whether the topics and modules of a revision still exist.
type CanRun<'a> = &'a dyn Fn(&Revision) -> bool;

/// Rolls back as asked. Without a target, or with the current revision as the target, a revision on
/// trial is withdrawn and the current one stays.
pub(crate) fn roll_back(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    asks: Asks,
    can_run: CanRun,
) -> Result<(), ProcessorError> {
    let trial = processor.on_trial();
    let takes_back = trial.unwrap_or(processor.current);
    if let Some(expected) = asks.from.filter(|&expected| expected != takes_back) {
        return Err(ProcessorError::OtherRevision {
            name: processor.name.clone(),
            expected,
            current: takes_back,
        });
    }
    let is_current = |number| number == processor.current;
    // A current revision that cannot be loaded must not stay.
    if asks.to.is_none_or(is_current) && trial.is_some() && seen.problem.is_none() {
        return withdraw(processor, asked, None);
    }
    let target = match asks.to {
        Some(number) if is_current(number) => return Ok(()),
        Some(number) => kept(processor, number)?.number,
        None => one_step_back(processor, asked.now, can_run)?,
    };
    go_back(processor, asked, seen, target, None, can_run);
    Ok(())
}

/// Rolls back a bad deploy on behalf of the host, once: not if it is no longer current, or if
/// someone has made it current again.
pub(crate) fn take_back(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    (bad, back_to): (u32, u32),
    why: &str,
    can_run: CanRun,
) -> Result<Option<TakenBack>, ProcessorError> {
    let current = processor.current();
    let current = current.filter(|r| r.number == bad && r.note.is_none());
    let Some(redrives) = current.map(|bad| bad.spec.auto_redrive) else {
        return Ok(None);
    };
    // The target was chosen when the deploy was judged; its topics may be gone since.
    let judged = processor.revision(back_to);
    let back = judged.filter(|back| back.number < bad && can_run(back));
    let back = back.or_else(|| way_back(processor, can_run));
    let Some(to) = back.map(|back| back.number) else {
        return Err(nowhere(processor));
    };
    let due = redrives.then(|| redrive_due(processor, to));
    let sent_again = match redrives {
        true => "what it gave up is sent again".to_owned(),
        false => sends_again(&processor.name, bad),
    };
    go_back(processor, asked, seen, to, Some(why), can_run);
    for bad in with_number(processor, bad) {
        bad.redrive_due = due;
        bad.note = Some(format!("{}{why}; {sent_again}", note_of(to)));
    }
    Ok(Some(TakenBack { to, redrives }))
}

fn way_back<'a>(processor: &'a Processor, can_run: CanRun) -> Option<&'a Revision> {
    processor.way_back_among(processor.current, can_run)
}

/// The target of a rollback without a number.
fn one_step_back(
    processor: &Processor,
    now: Timestamp,
    can_run: CanRun,
) -> Result<u32, ProcessorError> {
    let before = revision_before(processor, can_run);
    match done_last_by_host(processor, now) {
        Some((from, withdrawn)) if !withdrawn || before.is_some() => {
            Err(ProcessorError::RolledBackAlready {
                name: processor.name.clone(),
                current: processor.current,
                from,
                withdrawn,
                further: before,
            })
        }
        _ => before.ok_or_else(|| nowhere(processor)),
    }
}

/// The last revision before the current one that worked. If none did, the one that the current
/// revision replaced, or else the newest earlier one that was current.
fn revision_before(processor: &Processor, can_run: CanRun) -> Option<u32> {
    let back = way_back(processor, can_run).map(|back| back.number);
    let can_run = |revision: &&Revision| can_run(revision);
    let predecessor = processor.current().and_then(|r| r.predecessor);
    let predecessor = predecessor.and_then(|number| processor.revision(number));
    let predecessor = predecessor.filter(can_run).map(|r| r.number);
    let earlier = |r: &&Revision| r.number < processor.current && !r.trial;
    let earlier = processor.revisions.iter().filter(earlier).filter(can_run);
    back.or(predecessor)
        .or_else(|| earlier.map(|r| r.number).max())
}

/// Why there is no way back.
fn nowhere(processor: &Processor) -> ProcessorError {
    let worked =
        |r: &&Revision| r.number < processor.current && !r.trial && r.record.worked_at.is_some();
    let revisions = processor.revisions.iter().filter(worked);
    let revisions: Vec<u32> = revisions.map(|r| r.number).collect();
    let name = processor.name.clone();
    match revisions.is_empty() {
        true => ProcessorError::NothingToRollBack(name),
        false => ProcessorError::WayBackGone { name, revisions },
    }
}

fn go_back(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    target: u32,
    why: Option<&str>,
    can_run: CanRun,
) {
    leave(processor, seen, asked.now);
    let from = processor.current;
    match processor.on_trial() == Some(target) {
        true => processor.trial = None,
        false => end_trial(processor, asked, &format!("revision {from} was taken back")),
    }
    let run = unproven_run(processor);
    let text = told(processor, target, why, can_run);
    processor.current = target;
    make_void(processor, from);
    for revision in with_number(processor, target) {
        if revision.trial {
            begin_anew(revision, from, asked.now);
        }
        revision.unproven_run = run;
        revision.record.begin_anew();
    }
    record(processor, asked, ChangeKind::Rollback, target, Some(text));
}

/// The history's text about a rollback: why, from which revision, which ones it skips, and how to
/// redrive messages that were given up.
fn told(processor: &Processor, target: u32, why: Option<&str>, can_run: CanRun) -> String {
    let from = processor.current;
    let mut text = format!("from revision {from}");
    let is_unknown = |r: &Revision| r.record.worked_at.is_none();
    if target < from && processor.revision(target).is_some_and(is_unknown) {
        text += &format!(" to revision {target}, which is not known to have worked");
    }
    text += &passed_over(processor, from, target, can_run);
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

/// A sentence about the revisions between the two that a rollback skips, and why.
fn passed_over(processor: &Processor, from: u32, target: u32, can_run: CanRun) -> String {
    let between = |r: &&Revision| r.number > target && r.number < from && !r.trial;
    let why = |r: &Revision| match (&r.record.stopped, r.record.worked_at) {
        _ if !can_run(r) => "whose topics or modules are gone",
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

/// The command that redrives messages that a revision gave up.
fn sends_again(name: &ProcessorName, revision: u32) -> String {
    format!(
        "`millrace dlq redrive {name} --failed-revision {revision}` sends again what it gave up"
    )
}

/// The beginning of the note on a revision that was automatically rolled back to this one.
fn note_of(back_to: u32) -> String {
    format!("rolled back to revision {back_to} by the host: ")
}

/// The time range in which the current revision and those after `back_to` gave up messages. If the
/// first of them is no longer kept, its time is unknown, and the time of `back_to` is used.
fn redrive_due(processor: &Processor, back_to: u32) -> RedriveDue {
    // A proven revision's dead letters were not caused by a bad deploy.
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

/// The revision from which the host rolled back, if that was the last change and the revision is
/// still kept.
pub(crate) fn gone_back_from(processor: &Processor) -> Option<u32> {
    let last = processor.changes.iter().rfind(is_of_the_current)?;
    let went_back = last.what == ChangeKind::Rollback && last.revision == processor.current;
    let left = processor.revisions.iter().filter(|r| !r.trial);
    let left = left.max_by_key(|r| r.record.left_as)?;
    (went_back && left.record.left_as > 0 && left.number > processor.current).then_some(left.number)
}

/// Whether the change made another revision current.
fn is_of_the_current(change: &&Change) -> bool {
    use ChangeKind::{Canary, Configure, Pause, Resume, Shadow, Withdraw};
    !matches!(
        change.what,
        Pause | Resume | Configure | Canary | Shadow | Withdraw
    )
}

/// The last change, if it was an automatic rollback or withdrawal: the revision, if still known,
/// and whether it was a canary.
fn done_last_by_host(processor: &Processor, now: Timestamp) -> Option<(Option<u32>, bool)> {
    let by_host = |change: &Change, what| {
        let is_recent = change.at.until(now) < ASKED_AFTER_HOST;
        change.what == what && change.by.as_deref() == Some(HOST) && is_recent
    };
    let goes_on = |change: &&Change| {
        use ChangeKind::{Configure, Pause, Resume};
        matches!(change.what, Pause | Resume | Configure)
    };
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
