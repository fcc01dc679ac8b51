//! What a breaker stores about its revision, and what it takes over from other hosts: each of them saw a part.

use millrace_model::Record;

use super::{Breaker, Now};

/// The part of a revision's record that one host has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// The record, including what was stored before.
    pub(crate) record: Record,
    /// Whether it has processed anything, now or before.
    pub(crate) has_worked: bool,
    /// Messages processed here that are not stored yet.
    pub(crate) fresh: u32,
    /// Whether it was stopped here and has processed something since.
    pub(crate) goes_on: bool,
}

impl Breaker {
    /// The revision's record in the form to store.
    pub(crate) fn noted(&self, now: Now) -> Noted {
        Noted {
            record: self.record(now),
            has_worked: self.proof.has_worked(),
            fresh: self.proof.fresh(),
            goes_on: self.goes_on,
        }
    }

    /// This many messages are stored; after [following](Self::follow) they count among those of all hosts.
    pub(crate) fn written(&mut self, fresh: u32) {
        self.proof.written(fresh);
    }

    /// The revision's record as stored by now, by any host.
    pub(crate) fn follow(&mut self, record: &Record) {
        self.proof.follow(record);
        self.usual.follow(record);
        if record.stopped.is_some() {
            return;
        }
        self.goes_on = false;
        match self.stopped_here {
            // The stop here was overwritten by another host's progress: it is stored again.
            true => self.written.stopped = false,
            false => self.stopped = None,
        }
    }
}
