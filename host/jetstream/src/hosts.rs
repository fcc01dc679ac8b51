//! This host among the others: it says every few seconds that it lives, in a cell that the server removes when it stops. Who lives is judged
//! by the times that the server gave to these messages. It decides only who may take whose work; what may be committed is decided by the
//! epochs of leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_model::go_by;
use tokio::sync::watch;

use crate::atomic::{self, GONE, Put};
use crate::store::{Store, random};
use crate::subjects::word;
use crate::trouble::Trouble;

/// A difference between the clocks that an operator should know of.
const CLOCK_MS_TOLD: i64 = 1_000;

/// Whether the last time it reached the servers.
pub(crate) struct Reached(AtomicBool);

impl Reached {
    /// A host that has just opened the stream has reached them.
    pub(crate) fn now() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_so: bool) -> bool {
        self.0.swap(is_so, Ordering::Relaxed)
    }
}

impl Store {
    /// Says that this host lives: its address, for itself when it said so, by its monotonic clock in milliseconds, and its seat.
    pub(crate) async fn say(&self) -> Result<u64, Trouble> {
        let subject = self.subjects.host(self.me);
        let address = word(&self.options.address);
        let now_ms = self.clock.monotonic().as_millis();
        let seat = self.seat.lock().map(|seat| format!(" {seat}"));
        let note = format!("{address} {now_ms}{}", seat.unwrap_or_default());
        let mut put = Put::cell(subject, None, Vec::new()).noted(note);
        put.ttl_s = Some(self.options.dead_after.as_secs().max(1) * 3);
        atomic::publish(&self.client, &[put], random).await
    }

    /// Says something that no other host needs: whoever knows it knows all that was there before.
    pub(crate) async fn say_word(&self) -> Result<u64, Trouble> {
        let mut put = Put::cell(self.subjects.word(self.me), None, Vec::new());
        put.ttl_s = Some(self.options.dead_after.as_secs().max(1) * 3);
        atomic::publish(&self.client, &[put], random).await
    }

    /// Says that this host lives, and sets its clock by the time that the server gave to that. A message that one host accepts is delivered by
    /// another, and a schedule goes on at another, so that all must have the same time.
    pub(crate) async fn say_and_hear(&self) -> Result<(), Trouble> {
        let before = self.clock.wall();
        let said = self.say().await?;
        let after = self.clock.wall();
        self.hear(said).await?;
        if let Some(by_ms) = go_by(&*self.clock, (before, after), self.mirror.own_beat())
            && by_ms.abs() > CLOCK_MS_TOLD
        {
            tracing::warn!(
                by_ms,
                "this machine's clock differs from the server's; this host goes by the server's. Set the machine's clock"
            );
        }
        let seen = self.mirror.seat(self.me);
        let said = std::mem::replace(&mut *self.seat.lock(), seen);
        if said != seen {
            self.hear(self.say().await?).await?;
        }
        Ok(())
    }

    /// Leaves: what this host held can be taken at once.
    pub(crate) async fn leave(&self) {
        let subject = self.subjects.host(self.me);
        let mut put = Put::cell(subject, None, Vec::new()).noted(GONE);
        put.ttl_s = Some(self.options.dead_after.as_secs().max(1) * 3);
        if let Err(error) = atomic::publish(&self.client, &[put], random).await {
            tracing::debug!(%error, "the others will learn from its silence that this host has ended");
        }
    }
}

/// Keeps this host alive until it is told to stop.
pub(crate) async fn live(
    store: Arc<Store>,
    reached: Arc<Reached>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        // One that counts wrongly leaves its work to others.
        let is_fit = store.check_counts().is_ok();
        if is_fit && !store.is_stalled.load(Ordering::SeqCst) {
            let said = store.say_and_hear().await;
            let was_reached = reached.set(said.is_ok());
            if let (Err(error), true) = (said, was_reached) {
                tracing::warn!(%error, "NATS cannot be reached; this host tries again until it can");
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(store.options.heartbeat_interval) => {}
        }
    }
}
