//! Admits connections: a maximum number, a reserve for administration, and at the bound the least active connection makes room for a
//! new one.
//!
//! A new connection gets a free place if there is one; otherwise that of an inactive connection; otherwise one of the reserve, for
//! administration only; otherwise an answer that there is none.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::bounds::{
    ENDING_CONNECTIONS_MAX, FIRST_BYTE_MS_MAX, HEAD_MS_MAX, REFUSED_CONNECTIONS_MAX,
    RESERVED_IDLE_MS_MAX,
};
use super::line::{Line, Phase};

/// At the bound, a head that is incomplete after this time makes room for others.
const HEAD_GRACE: Duration = Duration::from_secs(2);
/// At the bound of the reserve, a request that takes this long makes room for others.
const RESERVED_GRACE: Duration = Duration::from_secs(5);
/// While the host stops, a head that is incomplete after this time is not waited for.
const STOPPING_GRACE: Duration = Duration::from_secs(1);

/// What a connection counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Reserved,
    /// It is being closed to make room.
    Leaving,
    /// It gets only the answer that there is no place.
    Refused,
}

/// The size of a door: how many connections it takes, and how long it keeps an idle one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DoorLimits {
    /// Maximum number of regular connections.
    pub(crate) regular_max: usize,
    /// Additional connections reserved for administration.
    pub(crate) reserved_max: usize,
    /// How long an idle connection is kept between two requests.
    pub(crate) idle: Duration,
}

/// All connections of one door.
pub(crate) struct Places {
    limits: DoorLimits,
    held: Mutex<Held>,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Held {
    next: u64,
    lines: HashMap<u64, (Kind, Arc<Line>)>,
    counts: [usize; 4],
}

/// A connection's place; returned when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    pub(super) line: Arc<Line>,
    /// Whether it gets only the answer that there is no place.
    pub(super) refused: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held().forget(self.id);
    }
}

impl Places {
    pub(super) fn new(limits: DoorLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            held: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Each change completes before anything can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; none if not even a refusal can be sent.
    pub(super) fn take(self: &Arc<Self>, now: Duration) -> Option<Place> {
        let mut held = self.held();
        let kind = if held.count(Kind::Regular) < self.limits.regular_max
            || held.make_room(Kind::Regular, now)
        {
            Kind::Regular
        } else if held.count(Kind::Reserved) < self.limits.reserved_max
            || held.make_room(Kind::Reserved, now)
        {
            Kind::Reserved
        } else if held.count(Kind::Refused) < REFUSED_CONNECTIONS_MAX {
            Kind::Refused
        } else {
            return None;
        };
        let line = Arc::new(Line::new(kind == Kind::Reserved, now));
        let id = held.remember(kind, line.clone());
        drop(held);
        Some(Place {
            places: self.clone(),
            id,
            line,
            refused: kind == Kind::Refused,
        })
    }

    /// Closes connections that have been silent too long.
    pub(super) fn sweep(&self, now: Duration) {
        let stopping = self.stopping.load(Relaxed);
        for (_, line) in self.held().lines.values() {
            let patience = self.patience(line, stopping);
            if patience.is_some_and(|patience| line.for_how_long(now) >= patience) {
                line.close();
            }
        }
    }

    fn patience(&self, line: &Line, stopping: bool) -> Option<Duration> {
        match line.phase() {
            Phase::Waiting if line.is_reserved() => {
                Some(Duration::from_millis(RESERVED_IDLE_MS_MAX))
            }
            Phase::Waiting if line.is_used() => Some(self.limits.idle),
            Phase::Waiting => Some(
                self.limits
                    .idle
                    .min(Duration::from_millis(FIRST_BYTE_MS_MAX)),
            ),
            Phase::Head | Phase::Ending if stopping => Some(STOPPING_GRACE),
            Phase::Head => Some(Duration::from_millis(HEAD_MS_MAX)),
            Phase::Busy | Phase::Answered | Phase::Ending | Phase::Session => None,
        }
    }

    /// From now on the host is stopping: idle connections and unfinished heads are closed by the
    /// next sweep, not by their usual timeouts.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Running connections: regular ones, and those of the reserve.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let held = self.held();
        (held.count(Kind::Regular), held.count(Kind::Reserved))
    }

    /// The process cannot open more files: closes an idle connection to free some.
    pub(super) fn shrink(&self, now: Duration) {
        self.held().make_room(Kind::Regular, now);
    }
}

impl Held {
    fn count(&self, kind: Kind) -> usize {
        self.counts[kind as usize]
    }

    fn remember(&mut self, kind: Kind, line: Arc<Line>) -> u64 {
        self.next += 1;
        self.lines.insert(self.next, (kind, line));
        self.counts[kind as usize] += 1;
        self.next
    }

    fn forget(&mut self, id: u64) {
        if let Some((kind, _)) = self.lines.remove(&id) {
            self.counts[kind as usize] -= 1;
        }
    }

    /// Closes the least active connection of this kind; false if all are active.
    fn make_room(&mut self, kind: Kind, now: Duration) -> bool {
        if self.count(Kind::Leaving) >= ENDING_CONNECTIONS_MAX {
            return false;
        }
        let of_kind = self.lines.iter_mut().filter(|(_, (of, _))| *of == kind);
        let spare = of_kind.filter_map(|(_, entry)| Some((missed(&entry.1, now)?, entry)));
        let Some((_, entry)) = spare.min_by_key(|(missed, _)| *missed) else {
            return false;
        };
        entry.0 = Kind::Leaving;
        entry.1.close();
        self.counts[kind as usize] -= 1;
        self.counts[Kind::Leaving as usize] += 1;
        true
    }
}

/// How dispensable a connection is, lower first; `None` if it is active. Expired ones, then those that never sent anything, then slow
/// heads, then those kept for another request, then long work on the reserve; the oldest first.
fn missed(line: &Line, now: Duration) -> Option<(u8, u64)> {
    let age = line.for_how_long(now);
    let rank = match line.phase() {
        Phase::Ending => 0,
        Phase::Waiting if !line.is_used() => 1,
        Phase::Head if age >= HEAD_GRACE => 2,
        Phase::Waiting => 3,
        Phase::Busy if line.is_reserved() && age >= RESERVED_GRACE => 4,
        Phase::Head | Phase::Busy | Phase::Answered | Phase::Session => return None,
    };
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    Some((rank, u64::MAX - age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bounds::RESERVED_CONNECTIONS_MAX;

    const S: Duration = Duration::from_secs(1);

    fn places(regular_max: usize) -> Arc<Places> {
        Places::new(DoorLimits {
            regular_max,
            reserved_max: RESERVED_CONNECTIONS_MAX,
            idle: 60 * S,
        })
    }

    fn busy(places: &Arc<Places>, now: Duration) -> Place {
        let place = places.take(now).expect("a place");
        place.line.enter(Phase::Busy, now);
        place
    }

    #[test]
    fn a_silent_connection_makes_room_and_one_at_work_never_does() {
        let places = places(2);
        let _at_work = busy(&places, S);
        let silent = places.take(S).expect("a place");
        let newcomer = places.take(2 * S).expect("a place");
        assert!(silent.line.closing().is_cancelled() && !newcomer.line.is_reserved());
        newcomer.line.enter(Phase::Busy, 2 * S);
        assert!(places.take(3 * S).expect("a place").line.is_reserved());
    }

    #[test]
    fn who_never_said_anything_goes_before_who_is_kept_for_another_request() {
        let places = places(3);
        let kept = busy(&places, S);
        kept.line.enter(Phase::Waiting, S);
        let older = places.take(2 * S).expect("a place");
        let younger = places.take(3 * S).expect("a place");
        let mut newcomers = Vec::new();
        for gone in [&older, &younger] {
            assert!(!gone.line.closing().is_cancelled());
            newcomers.push(busy(&places, 4 * S));
            assert!(gone.line.closing().is_cancelled());
        }
        newcomers.push(busy(&places, 4 * S));
        assert!(kept.line.closing().is_cancelled());
    }

    #[test]
    fn beyond_the_bound_administration_has_places_and_then_there_are_refusals() {
        let places = places(1);
        let mut held = vec![busy(&places, S)];
        for _ in 0..RESERVED_CONNECTIONS_MAX {
            held.push(busy(&places, S));
        }
        assert_eq!(places.counts(), (1, RESERVED_CONNECTIONS_MAX));
        for _ in 0..REFUSED_CONNECTIONS_MAX {
            let place = places.take(S).expect("a place");
            assert!(place.refused);
            held.push(place);
        }
        assert!(places.take(S).is_none());
        held.clear();
        assert_eq!(places.counts(), (0, 0));
        assert!(!places.take(S).expect("a place").refused);
    }

    #[test]
    fn a_door_without_a_reserve_refuses_beyond_its_bound() {
        let places = Places::new(DoorLimits {
            regular_max: 1,
            reserved_max: 0,
            idle: 60 * S,
        });
        let session = places.take(S).expect("a place");
        session.line.enter(Phase::Session, S);
        assert!(places.take(2 * S).expect("a place").refused);
        assert!(!session.line.closing().is_cancelled());
        places.sweep(3_600 * S);
        assert!(!session.line.closing().is_cancelled(), "nobody ends it");
    }

    #[test]
    fn the_sweep_ends_silence_and_slow_heads_and_leaves_work_alone() {
        let places = places(9);
        let silent = places.take(S).expect("a place");
        let head = places.take(S).expect("a place");
        head.line.enter(Phase::Head, S);
        let kept = busy(&places, S);
        kept.line.enter(Phase::Waiting, S);
        let at_work = busy(&places, S);
        let all = [&silent, &head, &kept, &at_work];
        let closed = || all.map(|place| place.line.closing().is_cancelled());
        places.sweep(S + Duration::from_millis(FIRST_BYTE_MS_MAX));
        assert_eq!(closed(), [true, false, false, false]);
        places.sweep(S + Duration::from_millis(HEAD_MS_MAX));
        assert_eq!(closed(), [true, true, false, false]);
        places.sweep(3_600 * S);
        assert_eq!(closed(), [true, true, true, false]);
    }
}
