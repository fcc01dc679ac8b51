//! The rules of revisions: which one is current, which one is on trial, which are kept, and what
//! the history says.
//!
//! Each transition decides about one processor. Its inputs are who asks, the time, and what the
//! workers have seen; it reads and writes nothing else. A refused transition changes nothing.
//! Public methods call a transition and commit its result.

mod records;
mod ways_back;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use millrace_model::bounds::{CHANGE_TEXT_BYTES_MAX, CHANGES_KEPT_MAX};
use millrace_model::processor::Config;
use millrace_model::{
    Change, ChangeKind, Processor, ProcessorName, ProcessorSpec, Record, Replay, Revision,
    Timestamp, Trial,
};

use crate::dispatch::breaker::Noted;
use crate::ground::text::cut;
use crate::processors::error::{ProcessorError, invalid};
use records::{begin_anew, first_run};

pub(crate) use records::{
    forget_oldest, leave, make_void, take_down, told_of_records, unproven_run, voided,
};
pub(crate) use ways_back::{Asks, gone_back_from, roll_back, take_back};

/// Who changes a processor, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The name that the caller claims.
    pub(crate) by: Option<&'a str>,
    pub(crate) now: Timestamp,
}

/// What this host has seen of the running revisions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The current revision's record so far; `None` if it does not run here.
    pub(crate) noted: Option<Noted>,
    /// Why the current revision could not be loaded.
    pub(crate) problem: Option<String>,
    /// Why the revision on trial could not be loaded.
    pub(crate) trial_problem: Option<String>,
    /// Why the revision on trial is about to be withdrawn.
    pub(crate) trouble: Option<String>,
    /// What the revision on trial got wrong, for the history.
    pub(crate) wrong: Option<String>,
}

/// How a deployed revision begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// It takes over from the current one.
    Current,
    /// It takes the messages of this percentage of the keys.
    Canary { percent: u32 },
    /// It is called beside the current one.
    Shadow,
}

/// A processor with its first revision.
pub(crate) fn create(name: &ProcessorName, spec: ProcessorSpec, asked: Asked) -> Processor {
    let mut processor = begun(name, 1, spec, asked);
    record(&mut processor, asked, ChangeKind::Deploy, 1, None);
    processor
}

/// A processor that replays a revision of another one. The revision keeps its number, because
/// guests can see it.
pub(crate) fn create_replay(
    name: &ProcessorName,
    spec: ProcessorSpec,
    replay: Replay,
    asked: Asked,
) -> Processor {
    let number = replay.revision;
    let mut processor = begun(name, number, spec, asked);
    let text = format!("revision {number} of {} into {}", replay.of, replay.into);
    record(
        &mut processor,
        asked,
        ChangeKind::Replay,
        number,
        Some(text),
    );
    processor.replay = Some(replay);
    processor
}

fn begun(name: &ProcessorName, number: u32, spec: ProcessorSpec, asked: Asked) -> Processor {
    let first = Revision {
        unproven_run: first_run(asked.now),
        ..revision(number, spec, asked)
    };
    Processor {
        name: name.clone(),
        made_at: asked.now,
        current: number,
        paused: false,
        config: Default::default(),
        revisions: vec![first],
        trial: None,
        replay: None,
        start: Vec::new(),
        resumes: Default::default(),
        changes: Vec::new(),
    }
}

/// Deploys a specification. If it is already on trial, no second revision is created: the trial
/// begins in the new way. Returns whether anything changes.
pub(crate) fn deploy(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    spec: ProcessorSpec,
    beginning: Beginning,
) -> Result<bool, ProcessorError> {
    match beginning {
        Beginning::Current if processor.current().is_some_and(|r| r.spec == spec) => Ok(false),
        Beginning::Current if is_tried(processor, &spec) => {
            promote(processor, asked, seen, false)?;
            Ok(true)
        }
        Beginning::Current => {
            deploy_anew(processor, asked, seen, spec)?;
            Ok(true)
        }
        Beginning::Canary { .. } | Beginning::Shadow => {
            begin_trial(processor, asked, &seen, spec, beginning)
        }
    }
}

/// Makes the specification current as a new revision, even if the current one has the same; returns
/// the new number. A trial ends.
pub(crate) fn deploy_anew(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    spec: ProcessorSpec,
) -> Result<u32, ProcessorError> {
    check_no_replay(processor)?;
    leave(processor, seen, asked.now);
    let number = add(processor, asked, spec, false);
    end_trial(processor, asked, &format!("in favour of revision {number}"));
    processor.current = number;
    record(processor, asked, ChangeKind::Deploy, number, None);
    Ok(number)
}

/// Puts a specification on trial beside the current revision. Another trial ends.
fn begin_trial(
    processor: &mut Processor,
    asked: Asked,
    seen: &Seen,
    spec: ProcessorSpec,
    beginning: Beginning,
) -> Result<bool, ProcessorError> {
    if let Beginning::Canary { percent } = beginning {
        check_percent(percent)?;
    }
    check_beside(processor, &spec)?;
    let tried = processor.on_trial().filter(|_| is_tried(processor, &spec));
    // A revision on trial that could not be loaded is tried again.
    let goes_on = processor.trial.as_ref().is_some_and(|trial| {
        tried.is_some() && begins_as(trial) == beginning && seen.trial_problem.is_none()
    });
    if goes_on {
        return Ok(false);
    }
    let number = tried.unwrap_or_else(|| add(processor, asked, spec, true));
    if tried.is_none() {
        end_trial(processor, asked, &format!("in favour of revision {number}"));
    }
    begin(processor, asked, number, beginning);
    Ok(true)
}

/// How the revision on trial began.
fn begins_as(trial: &Trial) -> Beginning {
    match *trial {
        Trial::Canary { percent, .. } => Beginning::Canary { percent },
        Trial::Shadow { .. } => Beginning::Shadow,
    }
}

fn begin(processor: &mut Processor, asked: Asked, revision: u32, beginning: Beginning) {
    let since = asked.now;
    let (trial, what, text) = match beginning {
        Beginning::Canary { percent } => (
            Trial::Canary {
                revision,
                percent,
                since,
            },
            ChangeKind::Canary,
            Some(format!("{percent} % of the keys")),
        ),
        Beginning::Current | Beginning::Shadow => {
            (Trial::Shadow { revision, since }, ChangeKind::Shadow, None)
        }
    };
    processor.trial = Some(trial);
    record(processor, asked, what, revision, text);
}

/// Changes the canary's share; 0 withdraws it.
pub(crate) fn change_share(
    processor: &mut Processor,
    asked: Asked,
    percent: u32,
) -> Result<(), ProcessorError> {
    let Some(Trial::Canary {
        revision,
        percent: before,
        ..
    }) = processor.trial
    else {
        return Err(ProcessorError::NoTrial(processor.name.clone()));
    };
    if percent == 0 {
        withdraw(processor, asked, None)?;
    } else if percent != before {
        check_percent(percent)?;
        begin(processor, asked, revision, Beginning::Canary { percent });
    }
    Ok(())
}

/// Makes the revision on trial current. Refused if the trial has failed, unless `anyway`. The
/// history records what the revision got wrong.
pub(crate) fn promote(
    processor: &mut Processor,
    asked: Asked,
    seen: Seen,
    anyway: bool,
) -> Result<(), ProcessorError> {
    let Some(revision) = processor.on_trial() else {
        return Err(ProcessorError::NoTrial(processor.name.clone()));
    };
    kept(processor, revision)?;
    if let Some(why) = seen.trouble.clone().filter(|_| !anyway) {
        return Err(ProcessorError::TrialFails {
            name: processor.name.clone(),
            revision,
            why,
        });
    }
    let before = processor.current;
    let wrong = seen.wrong.as_ref();
    let wrong = wrong.map_or_else(String::new, |wrong| format!("; on trial {wrong}"));
    leave(processor, seen, asked.now);
    let run = unproven_run(processor);
    for promoted in with_number(processor, revision) {
        begin_anew(promoted, before, asked.now);
        promoted.unproven_run = run;
    }
    processor.trial = None;
    processor.current = revision;
    let text = format!("takes over from revision {before}{wrong}");
    record(processor, asked, ChangeKind::Promote, revision, Some(text));
    Ok(())
}

/// Ends the trial; the current revision takes all messages again.
pub(crate) fn withdraw(
    processor: &mut Processor,
    asked: Asked,
    why: Option<String>,
) -> Result<(), ProcessorError> {
    let Some(trial) = processor.trial.take() else {
        return Err(ProcessorError::NoTrial(processor.name.clone()));
    };
    make_void(processor, trial.revision());
    record(
        processor,
        asked,
        ChangeKind::Withdraw,
        trial.revision(),
        why,
    );
    Ok(())
}

/// Ends the trial of a shadow.
pub(crate) fn end_shadow(processor: &mut Processor, asked: Asked) -> Result<(), ProcessorError> {
    match processor.trial {
        Some(Trial::Shadow { .. }) => withdraw(processor, asked, None),
        _ => Err(ProcessorError::NoTrial(processor.name.clone())),
    }
}

/// Withdraws a failing revision on behalf of the host, if it is still on trial; returns whether it
/// was.
pub(crate) fn withdraw_failing(
    processor: &mut Processor,
    asked: Asked,
    revision: u32,
    why: &str,
) -> bool {
    if processor.on_trial() != Some(revision) {
        return false;
    }
    for bad in with_number(processor, revision) {
        bad.note = Some(format!("withdrawn by the host: {why}"));
    }
    withdraw(processor, asked, Some(why.to_owned())).is_ok()
}

/// Stops taking batches.
pub(crate) fn pause(processor: &mut Processor, asked: Asked) {
    if !std::mem::replace(&mut processor.paused, true) {
        let current = processor.current;
        record(processor, asked, ChangeKind::Pause, current, None);
    }
}

/// Gives the component other settings; returns whether they differ.
pub(crate) fn configure(processor: &mut Processor, asked: Asked, config: Config) -> bool {
    let before = std::mem::replace(&mut processor.config, config);
    let (now, current) = (&processor.config, processor.current);
    let keys: BTreeSet<&String> = before.iter().chain(now).map(|(key, _)| key).collect();
    let differ = keys
        .into_iter()
        .filter(|key| before.get(key) != now.get(key));
    let differ: Vec<&str> = differ.map(String::as_str).collect();
    if differ.is_empty() {
        return false;
    }
    // Values may be confidential; keys say what to look at.
    let text = differ.join(", ");
    record(processor, asked, ChangeKind::Configure, current, Some(text));
    true
}

/// Takes batches again and accepts this many dead letters in advance.
pub(crate) fn resume(processor: &mut Processor, asked: Asked, accept_dead_letters: Option<u64>) {
    let was_paused = std::mem::replace(&mut processor.paused, false);
    let current = processor.current;
    if was_paused || accept_dead_letters.is_some() {
        let text = accept_dead_letters.map(|count| format!("{count} dead letters accepted"));
        record(processor, asked, ChangeKind::Resume, current, text);
    }
    // This tells other hosts of the resume, even if nothing else differs.
    let accepted = accept_dead_letters.unwrap_or(0);
    processor.resumes.again(current, accepted);
}

/// Adds a revision that is about to become current or go on trial; returns its number.
fn add(processor: &mut Processor, asked: Asked, spec: ProcessorSpec, trial: bool) -> u32 {
    let newest = processor.revisions.iter().map(|r| r.number).max();
    let number = newest.unwrap_or(0).max(processor.current) + 1;
    let added = Revision {
        predecessor: Some(processor.current),
        unproven_run: unproven_run(processor),
        trial,
        ..revision(number, spec, asked)
    };
    processor.revisions.push(added);
    forget_oldest(processor, number);
    number
}

fn revision(number: u32, spec: ProcessorSpec, asked: Asked) -> Revision {
    Revision {
        number,
        spec,
        deployed_at: asked.now,
        deployed_by: asked.by.map(str::to_owned),
        predecessor: None,
        trial: false,
        note: None,
        unproven_run: 0,
        redrive_due: None,
        record: Record::default(),
    }
}

/// Ends a trial if there is one. The history records `why`.
fn end_trial(processor: &mut Processor, asked: Asked, why: &str) {
    // Without a trial there is nothing to end.
    let _ = withdraw(processor, asked, Some(why.to_owned()));
}

/// Adds a change to the history.
fn record(
    processor: &mut Processor,
    asked: Asked,
    what: ChangeKind,
    revision: u32,
    text: Option<String>,
) {
    let excess = (processor.changes.len() + 1).saturating_sub(CHANGES_KEPT_MAX);
    processor.changes.drain(..excess);
    processor.changes.push(Change {
        at: asked.now,
        by: asked.by.map(str::to_owned),
        what,
        revision,
        text: text.map(|text| cut(text, CHANGE_TEXT_BYTES_MAX)),
    });
}

/// The revision with this number, or an error that names the kept ones.
pub(crate) fn kept(processor: &Processor, number: u32) -> Result<&Revision, ProcessorError> {
    let unknown = || ProcessorError::NoSuchRevision {
        name: processor.name.clone(),
        revision: number,
        kept: processor.revisions.iter().map(|r| r.number).collect(),
    };
    processor.revision(number).ok_or_else(unknown)
}

/// The revision with this number, to change it; empty if it is not kept.
fn with_number(processor: &mut Processor, number: u32) -> impl Iterator<Item = &mut Revision> {
    let revisions = processor.revisions.iter_mut();
    revisions.filter(move |revision| revision.number == number)
}

/// Whether the revision on trial has this specification.
fn is_tried(processor: &Processor, spec: &ProcessorSpec) -> bool {
    let tried = processor.on_trial();
    let tried = tried.and_then(|number| processor.revision(number));
    tried.is_some_and(|revision| revision.spec == *spec)
}

fn check_percent(percent: u32) -> Result<(), ProcessorError> {
    match percent {
        1..=99 => Ok(()),
        _ => invalid(format!(
            "a canary's share is 1 to 99 %, not {percent} %. To give it all keys, promote it; to give it none, withdraw it (a share of 0)"
        )),
    }
}

/// Whether further revisions may be deployed.
fn check_no_replay(processor: &Processor) -> Result<(), ProcessorError> {
    match &processor.replay {
        None => Ok(()),
        Some(replay) => invalid(format!(
            "{} is a replay of {}; deploy to that one, or delete the replay first",
            processor.name, replay.of
        )),
    }
}

/// Whether a specification can be on trial beside the current one.
fn check_beside(processor: &Processor, spec: &ProcessorSpec) -> Result<(), ProcessorError> {
    check_no_replay(processor)?;
    let current = &kept(processor, processor.current)?.spec;
    if current == spec {
        return invalid(format!(
            "it is the same as the current revision {}; there is nothing to try",
            processor.current
        ));
    }
    let mut topics = [current.topics.clone(), spec.topics.clone()];
    topics.iter_mut().for_each(|topics| topics.sort());
    if topics[0] != topics[1] || current.order != spec.order {
        return invalid(
            "a revision on trial reads the same topics in the same order as the current one; to change those, deploy it without --canary or --shadow".to_owned(),
        );
    }
    Ok(())
}
