//! The records of revisions: how each performed, which are proven, which are void, and which are
//! kept.

use millrace_model::bounds::REVISIONS_KEPT_MAX;
use millrace_model::{Processor, Record, Rejections, Revision, Stopped, Timestamp};

use crate::dispatch::breaker::{CLASSES_MAX, Noted, PROVEN_AFTER, PROVEN_MESSAGES};
use crate::ground::planted::planted;
use crate::processors::revisions::Seen;

/// The first run of unproven revisions of a new processor. It differs from the runs of a deleted
/// processor with the same name, whose counts may still be in progress.
pub(crate) fn first_run(now: Timestamp) -> u32 {
    // Tenths of seconds since the epoch, which repeat after about thirteen years.
    ((now.0 / 100) as u32).max(1)
}

/// Stores the record of the current revision before another one becomes current.
pub(crate) fn leave(processor: &mut Processor, seen: Seen, now: Timestamp) {
    let number = processor.current;
    let mut noted = seen.noted;
    if let Some(problem) = seen.problem {
        // A revision that cannot be loaded must not become a target of a rollback.
        let record = &mut noted.get_or_insert_default().record;
        record.stopped.get_or_insert(Stopped {
            class: None,
            text: problem,
        });
    }
    if let Some(noted) = noted {
        take_down(processor, number, noted, now);
    }
    let left = processor.revisions.iter().map(|r| r.record.left_as).max();
    if let Some(current) = processor.revisions.iter_mut().find(|r| r.number == number) {
        current.record.left_as = left.unwrap_or(0).saturating_add(1);
    }
}

/// Merges a revision's record, running or final, with what other hosts saw; returns whether
/// anything is new.
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
        // Without news from this host the stored stop stays: it may come from another host.
        record.stopped = noted.stopped;
    }
    record.processed_since = match record.stopped {
        Some(_) => None,
        // The hour of proof counts from the time when it was stopped on no host.
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

/// Merges shares of rejections. Shares come from the host that has measured most. A class that
/// another host has not seen is not forgotten.
fn reject(record: &mut Record, rejections: Vec<Rejections>, measured: u32) {
    if rejections.is_empty() {
        return;
    }
    if measured >= record.measured {
        // The reporting host has followed the stored record, so its own counts include it.
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

/// The run of a revision that becomes current: the previous revision's run, or a new one if that
/// revision was proven meanwhile. Rolling back to a revision that was proven earlier starts no new
/// run.
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

/// Removes revisions beyond the maximum. Those that never worked as the current one go first, and
/// do not displace others. The revision to go back to and the last proven one are always kept.
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

/// Adds records to an entry of an earlier version, which has none. Each revision that was current
/// and not rolled back counts as having worked. The current one is proven only if it has run for an
/// hour.
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

/// Voids a revision that was rolled back or withdrawn: its decisions no longer count.
pub(crate) fn make_void(processor: &mut Processor, number: u32) {
    if let Some(revision) = processor.revisions.iter_mut().find(|r| r.number == number) {
        revision.record.voided = true;
    }
}

/// Makes a revision on trial current: from now on it counts as new.
pub(crate) fn begin_anew(revision: &mut Revision, before: u32, now: Timestamp) {
    revision.trial = false;
    revision.deployed_at = now;
    revision.predecessor = Some(before);
    revision.note = None;
    revision.record.worked_at = None;
    revision.record.proven = false;
    revision.record.begin_anew();
}

/// Revisions whose decisions no longer count: they were stopped when they were replaced, rolled
/// back or withdrawn.
pub(crate) fn voided(processor: &Processor) -> Vec<u32> {
    let is_void = |r: &&Revision| {
        !processor.runs(r.number) && (r.record.stopped.is_some() || r.record.voided)
    };
    let voided = processor.revisions.iter().filter(is_void);
    voided.map(|r| r.number).collect()
}
