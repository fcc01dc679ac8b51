//! Cells that only those need who use them: chains, producers, requests. What this host knows of them may be old; whether it is, the server
//! says when a commit expects it. A batch is referred to by its sequence: its offset is known only after it is written.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::HostId;
use millrace_engine::idempotence::producers::{Named, ProducerState, Sent};
use millrace_engine::idempotence::requests::Request;
use millrace_model::bounds::PRODUCER_BATCHES_KEPT_MAX;
use millrace_model::{Offset, ProducerId, Progress, Timestamp};
use parking_lot::Mutex;

use crate::encoding::{Reader, Writer};

/// Cells that this host remembers; beyond that it forgets all, and reads again those it needs.
const CELLS_MAX: usize = 200_000;

/// What this host knows of cells.
#[derive(Default)]
pub(crate) struct Cells {
    known: Mutex<HashMap<String, Known>>,
}

/// A cell: the sequence of its last message (zero if there is none), and its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) seq: u64,
    pub(crate) body: Bytes,
}

impl Cells {
    pub(crate) fn get(&self, subject: &str) -> Option<Known> {
        self.known.lock().get(subject).cloned()
    }

    /// Of two that arrive crosswise, the newer one stays.
    pub(crate) fn put(&self, subject: &str, cell: Known) {
        let mut known = self.known.lock();
        if known.len() >= CELLS_MAX {
            known.clear();
        }
        let is_newer = known.get(subject).is_none_or(|old| old.seq <= cell.seq);
        if is_newer {
            known.insert(subject.to_owned(), cell);
        }
    }

    pub(crate) fn forget(&self, subject: &str) {
        self.known.lock().remove(subject);
    }
}

/// The newest lease of a group in a partition, who has it, and the progress.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chain {
    pub(crate) epoch: u64,
    pub(crate) holder: Option<HostId>,
    /// Whether the holder has it to work; otherwise it is an operator's.
    pub(crate) works: bool,
    /// Whether a worker left it without giving it back, and nobody was told yet.
    pub(crate) is_left: bool,
    pub(crate) progress: Option<Progress>,
}

impl Chain {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.epoch);
        out.number(u64::from(self.holder.is_some()));
        out.number(self.holder.map_or(0, |holder| holder.0));
        out.number(u64::from(self.works));
        out.number(u64::from(self.is_left));
        let progress = self.progress.as_ref().map(Progress::encode);
        out.maybe(progress.as_deref());
        out.done()
    }

    /// `None` if it cannot be read.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader(bytes);
        let epoch = read.number()?;
        let has_holder = read.flag()?;
        let holder = HostId(read.number()?);
        let works = read.flag()?;
        let is_left = read.flag()?;
        let progress = match read.maybe()? {
            Some(bytes) => Some(Progress::decode(bytes)?),
            None => None,
        };
        Some(Self {
            epoch,
            holder: has_holder.then_some(holder),
            works,
            is_left,
            progress,
        })
    }

    /// What hosts hear of it: the epoch, and where the group goes on.
    pub(crate) fn note(&self) -> String {
        match &self.progress {
            Some(progress) => format!("{} {}", self.epoch, progress.next.0),
            None => format!("{} -", self.epoch),
        }
    }
}

/// Offsets from here on are places of batches in a commit that is being made; those below are sequences.
pub(crate) const PLACES: u64 = 1 << 62;

/// A reference to a batch, in a cell that is written at this place of its commit.
fn refer(out: &mut Writer, base: Offset, own_place: usize, place_of: impl Fn(usize) -> usize) {
    match base.0.checked_sub(PLACES) {
        // Both are in one commit, so that the distance of their sequences is known.
        Some(draft) => {
            let place = place_of(draft as usize);
            out.number(1).number(own_place.saturating_sub(place) as u64);
        }
        None => drop(out.number(0).number(base.0)),
    }
}

fn referred(read: &mut Reader<'_>, seq: u64) -> Option<Offset> {
    let is_near = read.flag()?;
    let number = read.number()?;
    match is_near {
        true => seq.checked_sub(number).map(Offset),
        false => Some(Offset(number)),
    }
}

/// A producer's last batches in a partition.
pub(crate) fn encode_producer(
    state: &ProducerState,
    own_place: usize,
    place_of: impl Fn(usize) -> usize,
) -> Vec<u8> {
    let mut out = Writer::default();
    out.number(state.epoch as u64).number(state.seen_at.0);
    out.number(state.sent().len() as u64);
    for sent in state.sent() {
        out.number(sent.first as u32 as u64);
        out.number(sent.last as u32 as u64);
        refer(&mut out, sent.base, own_place, &place_of);
    }
    out.done()
}

pub(crate) fn decode_producer(cell: &Known) -> Option<ProducerState> {
    let mut read = Reader(&cell.body);
    let epoch = read.number()? as i16;
    let seen_at = Timestamp(read.number()?);
    let count = usize::try_from(read.number()?).ok()?;
    let mut batches = Vec::new();
    for _ in 0..count.min(PRODUCER_BATCHES_KEPT_MAX) {
        batches.push(Sent {
            first: read.number()? as u32 as i32,
            last: read.number()? as u32 as i32,
            base: referred(&mut read, cell.seq)?,
        });
    }
    ProducerState::stored(epoch, seen_at, &batches)
}

/// A request that took effect.
pub(crate) fn encode_request(
    request: &Request,
    own_place: usize,
    place_of: impl Fn(usize) -> usize,
) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(&request.key).bytes(&request.fingerprint);
    out.number(request.at.0).bytes(&request.note);
    out.number(request.base_offsets.len() as u64);
    for base in &request.base_offsets {
        refer(&mut out, *base, own_place, &place_of);
    }
    out.done()
}

pub(crate) fn decode_request(cell: &Known) -> Option<Request> {
    let mut read = Reader(&cell.body);
    let key = read.bytes()?.try_into().ok()?;
    let fingerprint = read.bytes()?.try_into().ok()?;
    let at = Timestamp(read.number()?);
    let note = Bytes::copy_from_slice(read.bytes()?);
    let count = read.number()?;
    let mut base_offsets = Vec::new();
    for _ in 0..count {
        base_offsets.push(referred(&mut read, cell.seq)?);
    }
    Some(Request {
        key,
        fingerprint,
        at,
        base_offsets,
        note,
    })
}

/// The last id given to a producer, by the cell of ids: its sequence, and what is added to all of them. `None` if it cannot be read.
pub(crate) fn last_id(cell: &Known) -> Option<u64> {
    let added = match cell.body.is_empty() {
        true => 0,
        false => Reader(&cell.body).number()?,
    };
    Some(cell.seq.saturating_add(added))
}

/// The body of the cell of ids.
pub(crate) fn encode_added_ids(added: u64) -> Vec<u8> {
    let mut out = Writer::default();
    out.number(added);
    out.done()
}

/// A named producer: by its name, and by its id.
pub(crate) fn encode_named(name: &str, named: Named) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(name.as_bytes()).number(named.producer.id as u64);
    out.number(named.producer.epoch as u64).number(named.at.0);
    out.done()
}

pub(crate) fn decode_named(bytes: &[u8]) -> Option<(Arc<str>, Named)> {
    let mut read = Reader(bytes);
    let name = std::str::from_utf8(read.bytes()?).ok()?;
    let producer = ProducerId {
        id: read.number()? as i64,
        epoch: read.number()? as i16,
    };
    let at = Timestamp(read.number()?);
    Some((name.into(), Named { producer, at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_as_it_was_written() {
        let held = Chain {
            epoch: 7,
            holder: Some(HostId(u64::MAX)),
            works: true,
            is_left: false,
            progress: Some(Progress::default()),
        };
        for chain in [Chain::default(), held] {
            assert_eq!(Chain::decode(&chain.encode()), Some(chain));
        }
        assert_eq!(Chain::decode(&[1, 2]), None);
    }

    #[test]
    fn batches_are_found_by_their_distance_in_the_commit() {
        let sent = |base| Sent {
            first: 3,
            last: 4,
            base: Offset(base),
        };
        // One from before, and the batch that is drafted third and comes fourth.
        let state = ProducerState::stored(2, Timestamp(9), &[sent(55), sent(PLACES + 2)]);
        let state = state.expect("it has batches");
        let body = encode_producer(&state, 10, |draft| draft + 1);
        let read = decode_producer(&Known {
            seq: 1010,
            body: body.into(),
        });
        let bases: Vec<u64> = read
            .expect("readable")
            .sent()
            .iter()
            .map(|s| s.base.0)
            .collect();
        assert_eq!(bases, [55, 1003]);
    }

    #[test]
    fn an_older_cell_does_not_replace_a_newer_one() {
        let cells = Cells::default();
        for (seq, expected) in [(5, 5), (3, 5), (8, 8)] {
            cells.put(
                "one",
                Known {
                    seq,
                    body: Bytes::new(),
                },
            );
            assert_eq!(cells.get("one").map(|cell| cell.seq), Some(expected));
        }
    }
}
