//! Requests with a key: each takes effect once within a window, and a repeat gets the first answer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::bounds::{
    REQUEST_AGE_MS_MAX, REQUESTS_BYTES_MAX, REQUESTS_PER_TOPIC_BYTES_MAX, REQUESTS_PER_TOPIC_MAX,
};
use millrace_model::{Offset, Timestamp, TopicId};

use crate::contract::{CommitError, Receipt, RequestMark};

/// Approximate memory of a request besides its note and its offsets.
const REQUEST_OVERHEAD_BYTES: usize = 200;

/// The requests of all topics.
#[derive(Debug, Default)]
pub struct Requests {
    windows: HashMap<TopicId, Window>,
    bytes: usize,
    bounds: Bounds,
    changed: BTreeSet<TopicId>,
}

/// As in [`millrace_model::bounds`]; smaller in tests.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    count: usize,
    topic_bytes: usize,
    bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            count: REQUESTS_PER_TOPIC_MAX,
            topic_bytes: REQUESTS_PER_TOPIC_BYTES_MAX,
            bytes: REQUESTS_BYTES_MAX,
        }
    }
}

/// The last requests of one topic.
#[derive(Debug, Default)]
struct Window {
    /// The position of a key in `order`, counted from the topic's first request.
    positions: HashMap<[u8; 16], u64>,
    order: VecDeque<Arc<Request>>,
    /// The position of the first one in `order`.
    first: u64,
    /// The first position that the last checkpoint does not have.
    unsaved: u64,
    bytes: usize,
}

/// A request that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// A digest of the key.
    pub key: [u8; 16],
    /// A digest of the request.
    pub fingerprint: [u8; 16],
    /// When it took effect.
    pub at: Timestamp,
    /// The offset of each append.
    pub base_offsets: Vec<Offset>,
    /// What the caller needs besides the offsets to repeat its answer.
    pub note: Bytes,
}

/// Changes of a topic's window since a checkpoint: requests at their positions, and where the window now begins.
#[derive(Clone, Debug)]
pub struct WindowChange {
    /// The topic.
    pub topic: TopicId,
    /// The position of the oldest request that is still known.
    pub first: u64,
    /// New requests since the last change, by position.
    pub added: Vec<(u64, Arc<Request>)>,
}

impl Request {
    /// A request that takes effect now, with these offsets.
    pub fn new(mark: RequestMark, at: Timestamp, base_offsets: Vec<Offset>) -> Self {
        Self {
            key: mark.key,
            fingerprint: mark.fingerprint,
            at,
            base_offsets,
            note: mark.note,
        }
    }

    /// Its answer.
    pub fn repeat(&self, mark: &RequestMark) -> Result<Receipt, CommitError> {
        if self.fingerprint != mark.fingerprint {
            return Err(CommitError::RequestReused);
        }
        Ok(Receipt {
            base_offsets: self.base_offsets.clone(),
            repeated: true,
            note: self.note.clone(),
            ..Receipt::default()
        })
    }

    /// Whether it is old enough to be forgotten.
    #[must_use]
    pub fn is_old(&self, now: Timestamp) -> bool {
        now.0.saturating_sub(self.at.0) > REQUEST_AGE_MS_MAX
    }

    fn weight(&self) -> usize {
        self.note.len() + 8 * self.base_offsets.len() + REQUEST_OVERHEAD_BYTES
    }
}

impl Requests {
    /// Sets the bound in bytes; a topic has its own bound or all of them.
    pub fn bound(&mut self, bytes: usize) {
        self.bounds.bytes = bytes;
        self.bounds.topic_bytes = REQUESTS_PER_TOPIC_BYTES_MAX.min(bytes);
    }

    /// The request of a key.
    #[must_use]
    pub fn get(&self, topic: TopicId, key: &[u8; 16]) -> Option<&Arc<Request>> {
        let window = self.windows.get(&topic)?;
        let index = window.positions.get(key)? - window.first;
        window.order.get(index as usize)
    }

    /// Applies a request, and forgets those that are too old or too many.
    pub fn apply(&mut self, topic: TopicId, request: Arc<Request>, now: Timestamp) {
        self.changed.insert(topic);
        let window = self.windows.entry(topic).or_default();
        self.bytes += window.push(request);
        let Bounds {
            count,
            topic_bytes,
            bytes,
        } = self.bounds;
        while let Some(first) = window.order.front() {
            let over = window.order.len() > count
                || window.bytes > topic_bytes
                || (self.bytes > bytes && window.order.len() > 1);
            if !over && !first.is_old(now) {
                return;
            }
            self.bytes -= window.pop();
        }
    }

    /// Applies a stored request; positions ascend.
    pub fn insert_stored(&mut self, topic: TopicId, position: u64, request: Request) {
        let window = self.windows.entry(topic).or_default();
        if window.order.is_empty() {
            window.first = position;
        }
        // A checkpoint has no gaps; if it had one, the positions would still be these.
        self.bytes += window.push(Arc::new(request));
        window.unsaved = window.end();
    }

    /// Forgets a deleted topic.
    pub fn forget(&mut self, topic: TopicId) {
        self.changed.remove(&topic);
        if let Some(window) = self.windows.remove(&topic) {
            self.bytes -= window.bytes;
        }
    }

    /// Everything that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<WindowChange> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let change = |topic| self.windows.get_mut(&topic).map(|w| w.take_change(topic));
        changed.filter_map(change).collect()
    }
}

impl Window {
    fn end(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    fn push(&mut self, request: Arc<Request>) -> usize {
        let weight = request.weight();
        self.positions.insert(request.key, self.end());
        self.order.push_back(request);
        self.bytes += weight;
        weight
    }

    fn pop(&mut self) -> usize {
        let Some(request) = self.order.pop_front() else {
            return 0;
        };
        // Its key may have been used again after it expired.
        if self.positions.get(&request.key) == Some(&self.first) {
            self.positions.remove(&request.key);
        }
        self.first += 1;
        let weight = request.weight();
        self.bytes -= weight;
        weight
    }

    fn take_change(&mut self, topic: TopicId) -> WindowChange {
        let from = self.unsaved.max(self.first);
        self.unsaved = self.end();
        let added = self.order.iter().skip((from - self.first) as usize);
        WindowChange {
            topic,
            first: self.first,
            added: (from..).zip(added.cloned()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = TopicId(3);

    fn mark(key: u8, fingerprint: u8) -> RequestMark {
        RequestMark {
            topic: TOPIC,
            key: [key; 16],
            fingerprint: [fingerprint; 16],
            note: Bytes::new(),
        }
    }

    fn request(key: u8, at: u64) -> Arc<Request> {
        Arc::new(Request {
            key: [key; 16],
            fingerprint: [key; 16],
            at: Timestamp(at),
            base_offsets: vec![Offset(at)],
            note: Bytes::from(vec![key; 100]),
        })
    }

    fn kept(requests: &Requests) -> Vec<u8> {
        let known = |key: &u8| requests.get(TOPIC, &[*key; 16]).is_some();
        (0..=255).filter(known).collect()
    }

    #[test]
    fn the_same_key_is_answered_again_and_refused_for_something_else() {
        let first = request(7, 5);
        let again = first.repeat(&mark(7, 7)).expect("the same");
        assert!(again.repeated && again.base_offsets == [Offset(5)]);
        let other = first.repeat(&mark(7, 8));
        assert!(matches!(other, Err(CommitError::RequestReused)));
    }

    #[test]
    fn the_oldest_go_at_each_bound_and_with_age() {
        let bounds = |count, topic_bytes, bytes| Bounds {
            count,
            topic_bytes,
            bytes,
        };
        // 308 bytes each.
        for bounds in [
            bounds(3, 9_999, 9_999),
            bounds(99, 1_000, 9_999),
            bounds(99, 9_999, 1_000),
        ] {
            let mut requests = Requests {
                bounds,
                ..Requests::default()
            };
            for key in 0..10 {
                requests.apply(TOPIC, request(key, 0), Timestamp(0));
            }
            assert_eq!(kept(&requests), [7, 8, 9]);
        }
        let mut requests = Requests::default();
        requests.apply(TOPIC, request(1, 0), Timestamp(0));
        let later = REQUEST_AGE_MS_MAX + 1;
        requests.apply(TOPIC, request(2, later), Timestamp(later));
        assert_eq!(kept(&requests), [2]);
        requests.forget(TOPIC);
        assert_eq!(requests.bytes, 0);
    }

    #[test]
    fn a_key_that_was_used_again_after_it_grew_old_stays_known() {
        let mut requests = Requests::default();
        requests.bounds.count = 2;
        for (key, at) in [(1, 0), (1, 1), (2, 2)] {
            requests.apply(TOPIC, request(key, at), Timestamp(at));
        }
        let found = requests.get(TOPIC, &[1; 16]).expect("known");
        assert_eq!(found.at, Timestamp(1));
    }

    #[test]
    fn changes_are_what_a_checkpoint_lacks_and_make_the_same_window_again() {
        let mut requests = Requests::default();
        requests.bounds.count = 3;
        let mut table = std::collections::BTreeMap::new();
        for key in 0..20 {
            requests.apply(TOPIC, request(key, u64::from(key)), Timestamp(0));
            if key % 4 == 3 || key == 19 {
                for change in requests.take_changes() {
                    assert!(change.added.len() <= 4);
                    table.extend(change.added);
                    table.retain(|position, _| *position >= change.first);
                }
            }
        }
        let mut again = Requests::default();
        for (position, stored) in table {
            again.insert_stored(TOPIC, position, (*stored).clone());
        }
        assert_eq!(kept(&again), kept(&requests));
        assert!(again.take_changes().is_empty());
    }
}
