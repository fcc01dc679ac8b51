//! Finds messages that may have ended the host. A trap is caught; a crash of the process is not,
//! and would recur at every start.
//!
//! So a new worker writes a mark with its progress before its first call. If the next worker finds
//! the mark, the host ended during that call. The messages of the call are then suspects, and each
//! is called alone, under a mark of its own. A message with two such marks was in flight at three
//! ends of the host: it is not called again but given up. Once the first call has returned, nothing
//! is marked any more, so all this costs one commit per start.
//!
//! This file decides only; the worker commits the marks.

use std::collections::HashSet;

use millrace_model::bounds::ATTEMPT_LOG_MAX;
use millrace_model::processor::Order;
use millrace_model::{Attempt, Offset, Parked, Progress, Timestamp};

use crate::dispatch::batcher::{self, Batch, Due};
use crate::handler::Cause;

/// A message is given up after this many ends of the host during which it was in flight alone. One
/// is not enough: a host that is ended from outside, and again while it starts, may just be calling
/// a harmless message.
const ENDS_ALONE_MAX: usize = 2;

/// Removes the mark of a call by a host that is alive: that host lost its lease during the call, so
/// the call incriminates no message.
pub(crate) fn forget_call(progress: &mut Progress) {
    if progress.first_call.take().is_none() {
        return;
    }
    let called = |parked: &Parked| {
        let last = parked.log.last().filter(|attempt| is_mark(attempt));
        last.map(|attempt| attempt.at)
    };
    // The newest mark belongs to that call, if there was one. Otherwise an end of the host is
    // forgotten, and one message is called once too often.
    let newest = progress
        .parked
        .iter_mut()
        .max_by_key(|parked| called(parked));
    if let Some(parked) = newest.filter(|parked| called(parked).is_some()) {
        parked.log.pop();
    }
}

/// Removes the mark of a call that this host was about to make. The mark's commit was in doubt, and
/// nothing was called.
pub(crate) fn forget_mark(progress: &mut Progress, (offset, at): (Offset, Timestamp)) {
    let marked = progress.parked.iter_mut().find(|p| p.offset == offset);
    if let Some(parked) = marked {
        let mark = |attempt: &Attempt| is_mark(attempt) && attempt.at == at;
        if let Some(found) = parked.log.iter().rposition(mark) {
            parked.log.remove(found);
        }
    }
}

/// Parks the batch's only message, so that it is found again wherever it came from; returns the
/// progress.
pub(crate) fn parked(
    progress: &Progress,
    order: Order,
    batch: &mut Batch,
    now: Timestamp,
) -> Progress {
    let mut progress = progress.clone();
    if batch.retried == 0 {
        let ordering = batcher::ordering(order, batch.columns.key(0));
        progress.parked.push(Parked {
            due: Some(now),
            ..batcher::behind(batch.offsets[0], ordering)
        });
        progress.parked.append(&mut batch.skipped);
        progress.parked.sort_unstable_by_key(|parked| parked.offset);
        progress.next = batch.next;
        batch.retried = 1;
    }
    progress
}

fn is_mark(attempt: &Attempt) -> bool {
    attempt.class == Cause::HostDied.as_str()
}

/// What a worker knows about the host's last end.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Messages below this offset were in flight at the host's last end; `None` if there were none,
    /// or all have been called since.
    until: Option<Offset>,
    /// Suspects that were called since the worker started.
    cleared: HashSet<Offset>,
    /// Messages to give up without a call.
    convicted: Vec<Offset>,
    /// Whether a call has returned since the worker started.
    begun: bool,
    /// Whether a mark is committed that no later commit has removed.
    marked: bool,
}

impl Suspects {
    /// Reads the previous worker's progress. With `left` false, that worker's host is alive, so no
    /// host ended during its call.
    pub(crate) fn of(progress: &Progress, left: bool) -> Self {
        let ends = |parked: &Parked| parked.log.iter().filter(|a| is_mark(a)).count();
        let convicted = progress
            .parked
            .iter()
            .filter(|parked| ends(parked) >= ENDS_ALONE_MAX);
        Self {
            until: progress.first_call.filter(|_| left),
            convicted: convicted.map(|parked| parked.offset).collect(),
            ..Self::default()
        }
    }

    /// The next message to give up.
    pub(crate) fn convicted(&self) -> Option<Offset> {
        self.convicted.last().copied()
    }

    /// Records that the convicted message was given up.
    pub(crate) fn is_gone(&mut self) {
        self.convicted.pop();
    }

    /// Whether suspects are left, so that messages are called alone.
    pub(crate) fn are_there(&self) -> bool {
        self.until.is_some()
    }

    /// Ends the search if all suspects were called; true if it ends now.
    pub(crate) fn end(&mut self, progress: &Progress, now: Timestamp) -> bool {
        let Some(until) = self.until.filter(|until| progress.next >= *until) else {
            return false;
        };
        let due = batcher::oldest_due(&progress.parked, now, &self.cleared);
        let ends = due.offsets.first().is_none_or(|&offset| offset >= until);
        if ends {
            self.until = None;
            self.cleared.clear();
        }
        ends
    }

    /// Reports that nothing is left to call below `next`; true if that ends the search.
    pub(crate) fn end_at(&mut self, next: Offset) -> bool {
        let ends = self.until.is_some_and(|until| next >= until);
        if ends {
            self.until = None;
        }
        ends
    }

    /// The parked message to call next. `has_new` tells whether new messages are left to read.
    pub(super) fn due(&self, parked: &[Parked], has_new: bool, now: Timestamp) -> Due {
        match batcher::oldest_due(parked, now, &self.cleared) {
            // The next suspect waits behind a message that was called before, so that one continues
            // first.
            due if due.offsets.is_empty() && !has_new => {
                batcher::oldest_due(parked, now, &HashSet::new())
            }
            due => due,
        }
    }

    /// Whether the next call is the worker's first one, whose batch must be marked as a whole.
    pub(crate) fn is_first_call(&self) -> bool {
        !self.begun && self.until.is_none()
    }

    /// The progress with the mark of a suspect that is about to be called.
    pub(crate) fn marked(
        &self,
        progress: &Progress,
        offset: Offset,
        revision: u32,
        at: Timestamp,
    ) -> Progress {
        let mut marked = progress.clone();
        // If the host ends now, this message and those behind it are still suspects.
        marked.first_call = self.until;
        if let Some(parked) = marked.parked.iter_mut().find(|p| p.offset == offset) {
            // The oldest attempt is dropped. The marks of the latest ends are the newest attempts
            // and stay.
            if parked.log.len() >= ATTEMPT_LOG_MAX {
                parked.log.remove(0);
            }
            parked.log.push(Attempt {
                at,
                revision,
                class: Cause::HostDied.as_str().to_owned(),
                reason: "called alone without an answer: the host ended".to_owned(),
            });
        }
        marked
    }

    /// Records that a mark is committed.
    pub(crate) fn mark(&mut self) {
        self.marked = true;
    }

    /// Records that a commit has removed the mark.
    pub(super) fn answered(&mut self) {
        self.marked = false;
    }

    /// Records that a call has returned, unless it was interrupted; returns whether a mark is left
    /// to remove.
    pub(crate) fn called(&mut self, offsets: &[Offset], interrupted: bool) -> bool {
        self.begun = true;
        if self.until.is_some() && !interrupted {
            self.cleared.extend(offsets);
        }
        std::mem::take(&mut self.marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(offset: u64) -> Parked {
        Parked {
            offset: Offset(offset),
            due: Some(Timestamp(0)),
            ..Parked::default()
        }
    }

    #[test]
    fn a_message_in_flight_at_three_ends_of_the_host_is_given_up() {
        let mut progress = Progress {
            next: Offset(5),
            parked: vec![parked(3), parked(4)],
            first_call: Some(Offset(5)),
            ..Progress::default()
        };
        for end in 1..=ENDS_ALONE_MAX {
            let suspects = Suspects::of(&progress, true);
            assert!(suspects.are_there() && suspects.convicted().is_none());
            // The next worker reads this progress if the host ends during the call.
            progress = suspects.marked(&progress, Offset(3), 1, Timestamp(end as u64));
        }
        let mut suspects = Suspects::of(&progress, true);
        assert_eq!(suspects.convicted(), Some(Offset(3)));
        suspects.is_gone();
        assert_eq!(suspects.convicted(), None);
    }

    #[test]
    fn a_host_that_is_alive_or_had_not_called_yet_incriminates_nobody() {
        let before = Progress {
            next: Offset(5),
            parked: vec![parked(3), parked(4)],
            first_call: Some(Offset(5)),
            ..Progress::default()
        };
        assert!(!Suspects::of(&before, false).are_there());
        let suspects = Suspects::of(&before, true);
        let marked = suspects.marked(&before, Offset(4), 1, Timestamp(7));
        let mut left = marked.clone();
        forget_call(&mut left);
        assert_eq!((left.first_call, &left.parked), (None, &before.parked));
        let mut doubtful = marked;
        forget_mark(&mut doubtful, (Offset(4), Timestamp(7)));
        assert_eq!(doubtful, before);
    }

    #[test]
    fn suspects_are_called_alone_until_all_of_them_were_and_only_the_first_batch_is_marked() {
        let progress = Progress {
            next: Offset(5),
            parked: vec![parked(3), parked(4), parked(6)],
            first_call: Some(Offset(5)),
            ..Progress::default()
        };
        let mut suspects = Suspects::of(&progress, true);
        let now = Timestamp(0);
        for offset in [3, 4].map(Offset) {
            assert!(!suspects.end(&progress, now) && !suspects.is_first_call());
            assert_eq!(suspects.due(&progress.parked, true, now).offsets, [offset]);
            suspects.mark();
            assert!(suspects.called(&[offset], true), "a mark is left to remove");
            // The interrupted call says nothing about the message, so it is called again.
            assert_eq!(suspects.due(&progress.parked, true, now).offsets, [offset]);
            suspects.mark();
            suspects.answered();
            assert!(!suspects.called(&[offset], false), "its commit removed it");
        }
        assert!(suspects.end(&progress, now));
        assert!(!suspects.are_there() && !suspects.is_first_call());
        assert!(Suspects::of(&Progress::default(), true).is_first_call());
    }
}
