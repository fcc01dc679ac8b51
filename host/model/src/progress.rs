//! Progress: a group's position in one partition, and the messages below it that still wait.
//!
//! A retry is an entry here, not a copy in another topic. The encoding is our own, version first, little-endian. A commit writes the
//! changes ([`ProgressChange`]), a checkpoint everything: the number of parked messages is bounded by
//! [`PARKED_MESSAGES_MAX`](crate::bounds::PARKED_MESSAGES_MAX).

mod change;

pub use self::change::ProgressChange;

use crate::bounds::{ATTEMPT_LOG_MAX, PARKED_MESSAGES_MAX};
use crate::clock::Timestamp;
use crate::offset::Offset;

/// A group's progress in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The next offset to read. Everything below it is settled, except the parked messages.
    pub next: Offset,
    /// The revision that processed the last batch; 0 before the first.
    pub revision: u32,
    /// Messages below `next` that still wait, ascending by offset.
    pub parked: Vec<Parked>,
    /// The end of the first batch that a new worker is calling. If the next worker finds it, the host ended during that call, and one
    /// of these messages may be the cause.
    pub first_call: Option<Offset>,
    /// How many messages unproven revisions have given up here; `None` if none.
    pub given_up: Option<GivenUp>,
}

/// Messages given up by revisions of which none is proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The run of these revisions.
    pub run: u32,
    /// The number of messages.
    pub messages: u32,
}

/// A parked message: waits for its retry, or behind another one with its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Its offset.
    pub offset: Offset,
    /// Its order key (a hash of its key); `None` if it has no order.
    pub ordering: Option<u64>,
    /// When it is due; `None` while it has not been tried and waits behind an earlier one.
    pub due: Option<Timestamp>,
    /// Attempts so far, by all revisions.
    pub attempts: u32,
    /// The revision of the last ones; 0 if there are none.
    pub revision: u32,
    /// How many of the last attempts are that revision's: only they count against `retry.attempts_max`.
    pub own_attempts: u32,
    /// A canary has failed it, so it goes to the current revision, whatever the canary's share.
    pub current_only: bool,
    /// Since when it is held, because the revision that failed is not proven; `None` if it is not held.
    pub held_since: Option<Timestamp>,
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// The latest attempts, oldest first; at most [`ATTEMPT_LOG_MAX`].
    pub log: Vec<Attempt>,
}

/// One failed attempt, for the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it failed.
    pub at: Timestamp,
    /// The revision.
    pub revision: u32,
    /// `retry`, `trap`, `timeout`, … or the component's class.
    pub class: String,
    /// The reason; cut to [`crate::bounds::ATTEMPT_REASON_BYTES_MAX`].
    pub reason: String,
}

/// After the version: `next`, `revision`, flags, the fields that the flags announce, the parked messages.
const VERSION: u8 = 3;
/// Before that: no flags and no announced fields, and a parked message has neither its revision nor that revision's attempts.
const VERSION_PLAIN: u8 = 1;
/// Like [`VERSION_PLAIN`], with the offset of [`Progress::first_call`] before the parked messages.
const VERSION_FIRST_CALL: u8 = 2;

const HAS_FIRST_CALL: u8 = 1;
const HAS_GIVEN_UP: u8 = 2;

const HAS_ORDERING: u8 = 1;
const HAS_DUE: u8 = 2;
const CURRENT_ONLY: u8 = 4;
const IS_HELD: u8 = 8;

impl Progress {
    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.push(VERSION);
        out.extend(self.next.0.to_le_bytes());
        out.extend(self.revision.to_le_bytes());
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.push(
            flag(self.first_call.is_some(), HAS_FIRST_CALL)
                | flag(self.given_up.is_some(), HAS_GIVEN_UP),
        );
        out.extend(self.first_call.iter().flat_map(|end| end.0.to_le_bytes()));
        if let Some(given_up) = self.given_up {
            out.extend(given_up.run.to_le_bytes());
            out.extend(given_up.messages.to_le_bytes());
        }
        out.extend((self.parked.len() as u32).to_le_bytes());
        for parked in &self.parked {
            out.extend(parked.offset.0.to_le_bytes());
            out.push(
                flag(parked.ordering.is_some(), HAS_ORDERING)
                    | flag(parked.due.is_some(), HAS_DUE)
                    | flag(parked.current_only, CURRENT_ONLY)
                    | flag(parked.held_since.is_some(), IS_HELD),
            );
            out.extend(parked.ordering.unwrap_or(0).to_le_bytes());
            out.extend(parked.due.unwrap_or_default().0.to_le_bytes());
            out.extend(parked.attempts.to_le_bytes());
            out.extend(parked.revision.to_le_bytes());
            out.extend(parked.own_attempts.to_le_bytes());
            out.extend(parked.held_since.iter().flat_map(|at| at.0.to_le_bytes()));
            out.extend(parked.first_failed_at.0.to_le_bytes());
            out.push(parked.log.len() as u8);
            for attempt in &parked.log {
                out.extend(attempt.at.0.to_le_bytes());
                out.extend(attempt.revision.to_le_bytes());
                for text in [&attempt.class, &attempt.reason] {
                    out.extend((text.len() as u16).to_le_bytes());
                    out.extend(text.as_bytes());
                }
            }
        }
        out
    }

    /// Its encoded size: with thousands of parked messages the buffer should not have to grow.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let attempt = |attempt: &Attempt| 16 + attempt.class.len() + attempt.reason.len();
        let log = |parked: &Parked| parked.log.iter().map(attempt).sum::<usize>();
        let held = |parked: &Parked| parked.held_since.map_or(0, |_| 8);
        let parked = self
            .parked
            .iter()
            .map(|parked| 46 + held(parked) + log(parked));
        let optional = self.first_call.map_or(0, |_| 8) + self.given_up.map_or(0, |_| 8);
        18 + optional + parked.sum::<usize>()
    }

    /// Reads what [`Progress::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let [version] = rest.take()?;
        let next = Offset(rest.u64()?);
        let revision = rest.u32()?;
        let flags = match version {
            VERSION => {
                let [flags] = rest.take()?;
                flags
            }
            VERSION_PLAIN => 0,
            VERSION_FIRST_CALL => HAS_FIRST_CALL,
            _ => return None,
        };
        let first_call = match flags & HAS_FIRST_CALL {
            0 => None,
            _ => Some(Offset(rest.u64()?)),
        };
        let given_up = match flags & HAS_GIVEN_UP {
            0 => None,
            _ => Some(GivenUp {
                run: rest.u32()?,
                messages: rest.u32()?,
            }),
        };
        let count = rest.u32()? as usize;
        if count > PARKED_MESSAGES_MAX {
            return None;
        }
        let parked = (0..count).map(|_| rest.parked(version));
        let parked = parked.collect::<Option<_>>()?;
        rest.0.is_empty().then_some(Self {
            next,
            revision,
            parked,
            first_call,
            given_up,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = u16::from_le_bytes(self.take()?) as usize;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(taken.to_vec()).ok()
    }

    fn parked(&mut self, version: u8) -> Option<Parked> {
        let offset = Offset(self.u64()?);
        let [flags] = self.take()?;
        let ordering = self.u64()?;
        let due = Timestamp(self.u64()?);
        let attempts = self.u32()?;
        let own = match version {
            VERSION => Some((self.u32()?, self.u32()?)),
            _ => None,
        };
        let held_since = match flags & IS_HELD {
            0 => None,
            _ => Some(Timestamp(self.u64()?)),
        };
        let first_failed_at = Timestamp(self.u64()?);
        let [count] = self.take()?;
        if count as usize > ATTEMPT_LOG_MAX {
            return None;
        }
        let log = (0..count).map(|_| self.attempt());
        let log = log.collect::<Option<Vec<Attempt>>>()?;
        // Then the revision of the last attempt counts as having made them all.
        let (revision, own_attempts) =
            own.unwrap_or_else(|| (log.last().map_or(0, |last| last.revision), attempts));
        Some(Parked {
            offset,
            ordering: (flags & HAS_ORDERING != 0).then_some(ordering),
            due: (flags & HAS_DUE != 0).then_some(due),
            attempts,
            revision,
            own_attempts,
            current_only: flags & CURRENT_ONLY != 0,
            held_since,
            first_failed_at,
            log,
        })
    }

    fn attempt(&mut self) -> Option<Attempt> {
        let at = Timestamp(self.u64()?);
        let revision = self.u32()?;
        Some(Attempt {
            at,
            revision,
            class: self.text()?,
            reason: self.text()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn any_parked() -> impl Strategy<Value = Parked> {
        let attempt = (any::<u64>(), any::<u32>(), "[a-z]{0,9}", ".{0,20}").prop_map(
            |(at, revision, class, reason)| Attempt {
                at: Timestamp(at),
                revision,
                class,
                reason,
            },
        );
        (
            any::<u64>(),
            any::<Option<u64>>(),
            any::<Option<u64>>(),
            any::<u32>(),
            any::<(u32, u32, bool, Option<u64>)>(),
            proptest::collection::vec(attempt, 0..ATTEMPT_LOG_MAX),
        )
            .prop_map(|(offset, ordering, due, attempts, own, log)| Parked {
                offset: Offset(offset),
                ordering,
                due: due.map(Timestamp),
                attempts,
                revision: own.0,
                own_attempts: own.1,
                current_only: own.2,
                held_since: own.3.map(Timestamp),
                first_failed_at: Timestamp(offset / 2),
                log,
            })
    }

    proptest! {
        #[test]
        fn progress_reads_back_as_written(
            next: u64,
            revision: u32,
            parked in proptest::collection::vec(any_parked(), 0..5),
            first_call: Option<u64>,
            given_up: Option<(u32, u32)>,
        ) {
            let first_call = first_call.map(Offset);
            let given_up = given_up.map(|(run, messages)| GivenUp { run, messages });
            let progress = Progress { next: Offset(next), revision, parked, first_call, given_up };
            prop_assert_eq!(progress.encode().len(), progress.encoded_bytes());
            prop_assert_eq!(Progress::decode(&progress.encode()), Some(progress));
        }

        #[test]
        fn what_was_written_before_revisions_had_attempts_of_their_own_is_read(
            next: u64, revision: u32, first_call: Option<u64>, attempts: u32,
        ) {
            let mut old = vec![first_call.map_or(VERSION_PLAIN, |_| VERSION_FIRST_CALL)];
            old.extend(next.to_le_bytes());
            old.extend(revision.to_le_bytes());
            old.extend(first_call.iter().flat_map(|end| end.to_le_bytes()));
            old.extend(1_u32.to_le_bytes());
            old.extend(5_u64.to_le_bytes());
            old.push(HAS_DUE);
            old.extend([0; 8]);
            old.extend(9_u64.to_le_bytes());
            old.extend(attempts.to_le_bytes());
            old.extend(8_u64.to_le_bytes());
            old.push(1);
            old.extend(8_u64.to_le_bytes());
            old.extend(revision.to_le_bytes());
            for text in ["trap", "why"] {
                old.extend((text.len() as u16).to_le_bytes());
                old.extend(text.as_bytes());
            }
            let read = Progress::decode(&old).expect("it is read");
            let parked = &read.parked[0];
            prop_assert_eq!((parked.revision, parked.own_attempts, parked.current_only), (revision, attempts, false));
            prop_assert_eq!((parked.due, parked.attempts), (Some(Timestamp(9)), attempts));
            prop_assert_eq!((read.next.0, read.first_call.map(|end| end.0)), (next, first_call));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Progress::decode(&bytes);
        }
    }
}
