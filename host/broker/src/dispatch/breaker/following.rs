//! Exchanges a revision's record with other hosts, each of which has seen a part.

use millrace_model::Record;

use super::{Breaker, Now};

/// The part of a revision's record that one host has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// The record, including the stored parts.
    pub(crate) record: Record,
    /// Whether the revision has ever processed anything.
    pub(crate) has_worked: bool,
    /// Messages processed here that are not stored yet.
    pub(crate) fresh: u32,
    /// Whether the revision was stopped here and has processed something since.
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

    /// Records that this many messages are stored. After [`follow`](Self::follow) they count among
    /// those of all hosts.
    pub(crate) fn written(&mut self, fresh: u32) {
        self.proof.written(fresh);
    }

    /// Takes over the revision's record as any host has stored it.
    pub(crate) fn follow(&mut self, record: &Record) {
        self.proof.follow(record);
        self.usual.follow(record);
        if record.stopped.is_some() {
            return;
        }
        self.goes_on = false;
        match self.stopped_here {
            // Another host's progress overwrote the stop of this host, so it is stored again.
            true => self.written.stopped = false,
            false => self.stopped = None,
        }
    }
}
