//! Decides which compile is next. Uploaders take turns: first by address, then by claimed name, so that many uploads only delay their
//! own uploader. What the host itself has to load goes first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_broker::handler::{AdmitError, Uploader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Compiles that wait for their turn in one lane. At the bound the newest of the uploader with the most waiting is refused.
const WAITING_MAX: usize = 32;

/// Compiles of one uploader that wait in one lane; another one is told to come back.
const WAITING_PER_UPLOADER_MAX: usize = 8;

/// Uploaders whose last turn is remembered. Beyond it those without waiting compiles are forgotten.
const REMEMBERED_MAX: usize = 1_000;

/// The delay after which a refused upload may come back, in seconds.
const COME_BACK_S: u32 = 5;

/// What a module is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// The host, which needs the module to start what is deployed.
    Host,
    Uploader(Uploader),
}

impl Asker {
    /// Its address; none for the host.
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Host => None,
            Self::Uploader(uploader) => uploader.address,
        }
    }
}

/// A lane for one compile at a time.
pub(crate) struct Turns(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    taken: bool,
    /// The order of arrival.
    waiting: Vec<Waiting>,
    turns: u64,
    /// When each had its last turn; uploaders without an entry never had one.
    addresses: HashMap<Option<IpAddr>, u64>,
    askers: HashMap<Asker, u64>,
}

struct Waiting {
    asker: Asker,
    wake: oneshot::Sender<Turn>,
}

/// The right to compile now.
pub(crate) struct Turn(Arc<Turns>);

impl Turns {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// The number waiting.
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.0.lock();
        let waits = |waiting: &&Waiting| !waiting.wake.is_closed();
        queue.waiting.iter().filter(waits).count()
    }

    /// The turn, if it is free and nothing waits for it.
    pub(crate) fn try_take(self: &Arc<Self>, asker: &Asker) -> Option<Turn> {
        let mut queue = self.0.lock();
        queue.forget_the_gone();
        if queue.taken || !queue.waiting.is_empty() {
            return None;
        }
        queue.note(asker);
        Some(Turn(Arc::clone(self)))
    }

    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>, asker: &Asker) -> Result<Turn, AdmitError> {
        if let Some(turn) = self.try_take(asker) {
            return Ok(turn);
        }
        let woken = self.0.lock().join(asker)?;
        // The last place may have become free in between.
        self.hand_on();
        let turn = woken.await;
        turn.map_err(|_| busy(WAITING_MAX, "all places are taken"))
    }

    /// Passes the turn on if it is free.
    fn hand_on(self: &Arc<Self>) {
        let next = self.0.lock().next();
        if let Some(next) = next {
            // A caller that is gone drops it, which passes it on again.
            drop(next.wake.send(Turn(Arc::clone(self))));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.lock().taken = false;
        self.0.hand_on();
    }
}

impl Queue {
    fn join(&mut self, asker: &Asker) -> Result<oneshot::Receiver<Turn>, AdmitError> {
        self.forget_the_gone();
        let own = self.waiting_of(asker);
        if own >= WAITING_PER_UPLOADER_MAX && *asker != Asker::Host {
            return Err(busy(own, "uploads of the same uploader wait already"));
        }
        if self.waiting.len() >= WAITING_MAX && !self.make_room(own) {
            return Err(busy(self.waiting.len(), "uploads wait already"));
        }
        // A newcomer goes before the uploader that has the turn now, and behind all others: unknown names are no way to the front.
        let behind = self.turns.saturating_sub(1);
        self.askers.entry(asker.clone()).or_insert(behind);
        let (wake, woken) = oneshot::channel();
        let asker = asker.clone();
        self.waiting.push(Waiting { asker, wake });
        Ok(woken)
    }

    /// Refuses the newest compile of the uploader with the most waiting, if it has more than `own` plus one.
    fn make_room(&mut self, own: usize) -> bool {
        let most = self.waiting.iter().map(|one| self.waiting_of(&one.asker));
        let most = most.max().unwrap_or(0);
        if most <= own + 1 {
            return false;
        }
        let newest = self
            .waiting
            .iter()
            .rposition(|one| one.asker != Asker::Host && self.waiting_of(&one.asker) == most);
        if let Some(newest) = newest {
            self.waiting.remove(newest);
        }
        newest.is_some()
    }

    fn waiting_of(&self, asker: &Asker) -> usize {
        self.waiting
            .iter()
            .filter(|one| one.asker == *asker)
            .count()
    }

    fn forget_the_gone(&mut self) {
        self.waiting.retain(|waiting| !waiting.wake.is_closed());
    }

    /// Gives the turn to the compile that has waited longest: by address, then by name, then by
    /// arrival.
    fn next(&mut self) -> Option<Waiting> {
        self.forget_the_gone();
        if self.taken {
            return None;
        }
        let rank = |(index, one): &(usize, &Waiting)| {
            let address = self.addresses.get(&one.asker.address());
            let asker = self.askers.get(&one.asker);
            (one.asker != Asker::Host, address, asker, *index)
        };
        let waiting = self.waiting.iter().enumerate();
        let (index, _) = waiting.min_by_key(rank)?;
        let next = self.waiting.remove(index);
        self.note(&next.asker);
        Some(next)
    }

    fn note(&mut self, asker: &Asker) {
        self.taken = true;
        // In steps of two: there is a place for newcomers between two turns.
        self.turns += 2;
        self.addresses.insert(asker.address(), self.turns);
        self.askers.insert(asker.clone(), self.turns);
        if self.askers.len().max(self.addresses.len()) > REMEMBERED_MAX {
            let waiting = &self.waiting;
            self.askers
                .retain(|asker, _| waiting.iter().any(|one| one.asker == *asker));
            self.addresses
                .retain(|address, _| waiting.iter().any(|one| one.asker.address() == *address));
        }
    }
}

/// How many wait, and why there is no place for another one.
fn busy(waiting: usize, why: &str) -> AdmitError {
    AdmitError::Busy {
        reason: format!("{waiting} {why} to be compiled"),
        retry_after_s: COME_BACK_S,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;

    fn uploader(name: &str) -> Asker {
        Asker::Uploader(Uploader {
            address: Some(IpAddr::from([127, 0, 0, 1])),
            name: name.to_owned(),
        })
    }

    /// Waits for its turn and says when it has it.
    fn queue_up(turns: &Arc<Turns>, asker: Asker) -> JoinHandle<Result<Turn, AdmitError>> {
        let turns = Arc::clone(turns);
        tokio::spawn(async move { turns.take(&asker).await })
    }

    async fn until_waiting(turns: &Arc<Turns>, count: usize) {
        while turns.waiting() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn an_honest_uploader_waits_for_one_compile_of_whoever_sends_many() {
        let turns = Turns::new();
        let first = turns.take(&uploader("mallory")).await.unwrap();
        let mut many = Vec::new();
        for count in 1..=5 {
            many.push(queue_up(&turns, uploader("mallory")));
            until_waiting(&turns, count).await;
        }
        let honest = queue_up(&turns, uploader("ada"));
        until_waiting(&turns, 6).await;
        drop(first);
        let turn = honest.await.unwrap().unwrap();
        assert!(many.iter().all(|one| !one.is_finished()));
        drop(turn);
        for one in many {
            one.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_host_goes_first_and_who_is_gone_holds_nobody_up() {
        let turns = Turns::new();
        let first = turns.take(&uploader("a")).await.unwrap();
        let gone = queue_up(&turns, uploader("b"));
        until_waiting(&turns, 1).await;
        let next = queue_up(&turns, uploader("c"));
        until_waiting(&turns, 2).await;
        let host = queue_up(&turns, Asker::Host);
        until_waiting(&turns, 3).await;
        gone.abort();
        until_waiting(&turns, 2).await;
        drop(first);
        let turn = host.await.unwrap().unwrap();
        assert!(!next.is_finished());
        drop(turn);
        next.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn new_names_are_no_way_to_the_front() {
        let turns = Turns::new();
        drop(turns.take(&uploader("ada")).await.unwrap());
        let first = turns.take(&uploader("mallory-0")).await.unwrap();
        let mut many = Vec::new();
        for count in 1..=5 {
            many.push(queue_up(&turns, uploader(&format!("mallory-{count}"))));
            until_waiting(&turns, count).await;
        }
        let honest = queue_up(&turns, uploader("ada"));
        until_waiting(&turns, 6).await;
        drop(first);
        drop(honest.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn whoever_has_most_waiting_gives_way_when_all_places_are_taken() {
        let turns = Turns::new();
        let first = turns.take(&uploader("a")).await.unwrap();
        let mut many = Vec::new();
        for name in ["b", "c", "d", "e"] {
            for _ in 0..WAITING_PER_UPLOADER_MAX {
                many.push(queue_up(&turns, uploader(name)));
                until_waiting(&turns, many.len()).await;
            }
        }
        let error = turns.take(&uploader("b")).await.err().unwrap();
        assert!(matches!(error, AdmitError::Busy { .. }), "{error}");
        let late = queue_up(&turns, uploader("late"));
        let mut sent_away = 0;
        while sent_away == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            sent_away = many.iter().filter(|one| one.is_finished()).count();
        }
        assert_eq!((sent_away, turns.waiting()), (1, WAITING_MAX));
        drop((first, many));
        late.await.unwrap().unwrap();
    }
}
