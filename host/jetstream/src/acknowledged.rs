//! Commits of this host that the servers have acknowledged. If such a commit is the next in the stream, the feed passes it at once, as it was sent;
//! otherwise it comes with the feed, like those of others. So a host that is alone with its topics waits for the servers once for each commit.

use std::collections::BTreeMap;

use millrace_model::Timestamp;
use tokio::sync::mpsc;

use crate::atomic::{Note, Put};
use crate::feed::Arrived;
use crate::store::Store;
use crate::subjects::Place;

/// Acknowledged commits that the feed has not looked at. Further ones come with the stream.
pub(crate) const ACKNOWLEDGED_MAX: usize = 256;
/// Acknowledged commits that wait for what is before them in the stream. At the bound the last of them comes with the stream.
const WAITING_MAX: usize = 64;

/// A commit as it is in the stream.
pub(crate) struct Acknowledged {
    first_seq: u64,
    messages: Vec<Arrived>,
}

impl Acknowledged {
    /// `None` if it is about more than messages, progress and state: changes of the catalogue are for all hosts, and are read from the stream.
    fn of(store: &Store, puts: &[Put], commit: u64, first_seq: u64) -> Option<Self> {
        let mut messages = Vec::with_capacity(puts.len());
        for (index, put) in puts.iter().enumerate() {
            let place = store.subjects.parse(&put.subject);
            match place {
                Place::Piece(_) | Place::Delta(..) | Place::Chain(..) | Place::Other => {}
                _ => return None,
            }
            messages.push(Arrived {
                seq: first_seq + index as u64,
                // The server's time of it is not known, and not needed for these.
                at: Timestamp(0),
                place,
                note: Note::of_put(put, commit, index, puts.len())?,
                bytes: put.body.len() as u64,
                body: None,
            });
        }
        Some(Self {
            first_seq,
            messages,
        })
    }
}

/// Tells the feed that these messages are in the stream, the first of them with this sequence.
pub(crate) fn tell(
    sender: &mpsc::Sender<Acknowledged>,
    store: &Store,
    puts: &[Put],
    (commit, first_seq): (u64, u64),
) {
    if let Some(acknowledged) = Acknowledged::of(store, puts, commit, first_seq) {
        // A feed that is far behind will come to it.
        let _ = sender.try_send(acknowledged);
    }
}

/// Those that are not the next yet.
#[derive(Default)]
pub(crate) struct WaitingForTurn(BTreeMap<u64, Vec<Arrived>>);

impl WaitingForTurn {
    pub(crate) fn add(&mut self, acknowledged: Acknowledged) {
        let Acknowledged {
            first_seq,
            messages,
        } = acknowledged;
        self.0.insert(first_seq, messages);
        if self.0.len() > WAITING_MAX {
            self.0.pop_last();
        }
    }

    /// The one that follows this sequence. Those before it have come with the stream.
    pub(crate) fn next(&mut self, last: u64) -> Option<Vec<Arrived>> {
        self.0 = self.0.split_off(&(last + 1));
        self.0.remove(&(last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(first_seq: u64, messages: u64) -> Acknowledged {
        let note = Note {
            commit: first_seq,
            index: 0,
            count: 1,
            words: Vec::new(),
        };
        let message = |seq| Arrived {
            seq,
            at: Timestamp(0),
            place: Place::Other,
            note: note.clone(),
            bytes: 0,
            body: None,
        };
        Acknowledged {
            first_seq,
            messages: (first_seq..first_seq + messages).map(message).collect(),
        }
    }

    fn next(waiting: &mut WaitingForTurn, last: u64) -> Option<u64> {
        waiting.next(last)?.last().map(|message| message.seq)
    }

    #[test]
    fn a_commit_passes_when_all_before_it_has_passed_and_only_once() {
        let mut waiting = WaitingForTurn::default();
        waiting.add(commit(14, 2));
        waiting.add(commit(11, 3));
        assert_eq!(next(&mut waiting, 9), None);
        assert_eq!(next(&mut waiting, 10), Some(13));
        assert_eq!(next(&mut waiting, 13), Some(15));
        assert_eq!(next(&mut waiting, 13), None);
    }

    #[test]
    fn what_came_with_the_stream_meanwhile_is_forgotten() {
        let mut waiting = WaitingForTurn::default();
        waiting.add(commit(11, 3));
        // The stream has brought a part of it.
        assert_eq!(next(&mut waiting, 11), None);
        assert_eq!(next(&mut waiting, 10), None);
    }

    #[test]
    fn no_more_wait_than_the_bound() {
        let mut waiting = WaitingForTurn::default();
        for first in (0..200).rev() {
            waiting.add(commit(first, 1));
        }
        assert_eq!(waiting.0.len(), WAITING_MAX);
    }
}
