//! Parked messages between two batches: operators' orders, messages that no longer exist, and what
//! an idle worker waits for.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_model::calendar::utc;
use millrace_model::{Offset, Parked, Progress};

use super::round::Round;
use super::round::Settled;
use super::{Step, Trouble, Worker};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{self, Batch, WHOLE_PARTITION};
use crate::dispatch::command::Command;
use crate::dispatch::live::Live;
use crate::dispatch::orders::{Meant, Obeyed, Order, ParkedAction};
use crate::dispatch::plan::Most;
use crate::dispatch::standing::State;

/// Maximum number of messages that one commit gives up.
const GIVEN_UP_AT_ONCE_MAX: usize = 500;
/// Bytes per commit, except for one larger message.
const GIVEN_UP_BYTES_AT_ONCE_MAX: usize = 4 << 20;

const GIVEN_UP_AT_ONCE: Most = Most {
    messages: GIVEN_UP_AT_ONCE_MAX,
    bytes: GIVEN_UP_BYTES_AT_ONCE_MAX,
};

/// Why a message that may have ended the host is given up.
const HOST_DIED: &str = "the host ended while processing this message, once in a batch and twice alone; it is not called again";

impl Worker {
    /// Applies a change of revisions. Messages that a replaced revision held, or made wait by a
    /// decision that no longer counts, are due at once.
    pub(super) fn let_go(&mut self, command: &Command) {
        let now = self.now();
        let live = &command.live;
        let waits =
            |parked: &Parked| batcher::waits_in_vain(parked, live.revision, &live.voided, now);
        if !self.ledger.progress.parked.iter().any(waits) {
            return;
        }
        let progress = Arc::make_mut(&mut self.ledger.progress);
        for parked in progress.parked.iter_mut().filter(|parked| waits(parked)) {
            parked.due = Some(now);
        }
    }

    /// Carries out operators' orders, if there are any.
    pub(super) async fn obey(&mut self, command: &Command) {
        let state = self.outside.window.lock().state.clone();
        while let Some(order) = self.outside.orders.take() {
            // The current batch is cut again after the orders.
            self.plan.join();
            let Order {
                action,
                meant,
                by,
                answer,
            } = order;
            let obeyed = match action {
                ParkedAction::TryNow => self.try_now(&meant).await,
                ParkedAction::GiveUp => self.give_up(command, &meant, by.as_deref()).await,
            };
            self.show(state.clone());
            // The caller may have stopped waiting.
            let _ = answer.send(obeyed.map_err(|trouble| match trouble {
                Trouble::Wait(why) | Trouble::Stop(why) | Trouble::Leave(why) => why,
            }));
        }
    }

    /// The parked messages that an order applies to; and the named ones that are not parked, with
    /// the reason.
    fn meant(&self, meant: &Meant) -> (Vec<Offset>, Vec<(Offset, String)>) {
        let parked = &self.ledger.progress.parked;
        let offsets = |which: &dyn Fn(&Parked) -> bool| {
            let found = parked.iter().filter(|parked| which(parked));
            found.map(|parked| parked.offset).collect()
        };
        match meant {
            Meant::All => (offsets(&|_| true), Vec::new()),
            Meant::Class(class) => {
                let is_of = |parked: &Parked| parked.log.last().is_some_and(|a| a.class == *class);
                (offsets(&is_of), Vec::new())
            }
            Meant::Offsets(named) => {
                let mut named = named.clone();
                named.sort_unstable();
                named.dedup();
                let is_there = |offset: &Offset| parked.binary_search_by_key(offset, |p| p.offset);
                let (there, gone): (Vec<_>, Vec<_>) = named
                    .into_iter()
                    .partition(|offset| is_there(offset).is_ok());
                let why = "it is not parked, or no longer parked".to_owned();
                let gone = gone.into_iter().map(|offset| (offset, why.clone()));
                (there, gone.collect())
            }
        }
    }

    /// Makes messages due that wait behind no other. The next commit stores this, and until then a
    /// restart would try them soon anyway. But a paused worker beside other hosts leaves right
    /// after its orders, and the next worker reads what is stored; so this one commits first.
    async fn try_now(&mut self, meant: &Meant) -> Result<Obeyed, Trouble> {
        let goes = self.outside.commands.borrow().paused && !self.context.hosts.is_alone();
        if goes && self.has_suspects() {
            // A commit would clear the suspects of the host's last end.
            return Err(Trouble::Wait(
                "messages that were in flight when a host ended must be called first; resume the processor and try again".to_owned(),
            ));
        }
        let obeyed = self.all_due_now(meant);
        if goes && obeyed.done > 0 {
            self.keep(Progress::clone(&self.ledger.progress)).await?;
        }
        Ok(obeyed)
    }

    fn all_due_now(&mut self, meant: &Meant) -> Obeyed {
        let (there, mut left) = self.meant(meant);
        let is_named = matches!(meant, Meant::Offsets(_));
        let now = self.now();
        let wanted: HashSet<Offset> = there.into_iter().collect();
        let mut done = 0;
        let mut fronts = std::collections::HashMap::new();
        for parked in &mut Arc::make_mut(&mut self.ledger.progress).parked {
            let front = parked.ordering.map(|ordering| {
                let front = fronts.entry(ordering).or_insert(parked.offset);
                *front
            });
            if !wanted.contains(&parked.offset) {
                continue;
            }
            match front.filter(|front| *front != parked.offset) {
                Some(front) if is_named => {
                    left.push((parked.offset, format!("it waits behind offset {front}")));
                }
                Some(_) => {}
                None => {
                    parked.due = Some(now);
                    done += 1;
                }
            }
        }
        Obeyed { done, left }
    }

    /// Turns messages into dead letters, in as many commits as necessary. The bound of dead letters
    /// does not apply, because an operator wants them.
    async fn give_up(
        &mut self,
        command: &Command,
        meant: &Meant,
        by: Option<&str>,
    ) -> Result<Obeyed, Trouble> {
        let (there, mut left) = self.meant(meant);
        let mut done = 0;
        let mut rest = &there[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(GIVEN_UP_AT_ONCE_MAX));
            let batch = self.parked_batch(some, GIVEN_UP_AT_ONCE).await?;
            // The next commits take the rest. Messages that no longer exist were released.
            let taken = batch.offsets.last().map_or(some.len(), |last| {
                some.partition_point(|offset| offset <= last)
            });
            let gone = some[..taken].iter();
            let gone = gone.filter(|offset| batch.offsets.binary_search(offset).is_err());
            left.extend(gone.map(|&offset| (offset, "it is no longer kept".to_owned())));
            if batch.len() > 0 {
                let verdict = self.given_up(&batch, by);
                self.plan.pick();
                done += batch.len();
                let mut round = Round::new(command, &self.gate, batch);
                let settled = self.settle(&mut round, &verdict.into()).await?;
                if !matches!(settled, Settled::Committed) {
                    return Err(Trouble::Wait(
                        "the worker received another command meanwhile".to_owned(),
                    ));
                }
            }
            rest = match taken < some.len() {
                true => &rest[taken..],
                false => others,
            };
        }
        Ok(Obeyed { done, left })
    }

    fn given_up(&self, batch: &Batch, by: Option<&str>) -> Verdict {
        let parked = &self.ledger.progress.parked;
        let last = batch.offsets.iter().map(|offset| {
            let found = parked.binary_search_by_key(offset, |parked| parked.offset);
            found.ok().and_then(|index| parked[index].log.last())
        });
        Verdict::given_up(last, by)
    }

    /// Gives up a message without a call, because it may have ended the host.
    pub(super) async fn bury(
        &mut self,
        command: &Command,
        offset: Offset,
    ) -> Result<Step, Trouble> {
        self.plan.pick();
        let alone = Most {
            messages: 1,
            bytes: usize::MAX,
        };
        let batch = self.parked_batch(&[offset], alone).await?;
        let mut settled = Settled::PutBack;
        if batch.len() > 0 {
            let mut round = Round::new(command, &self.gate, batch);
            tracing::error!(processor = %round.live.processor, topic = %self.input.topic.spec.name, partition = %self.input.partition, %offset, "the host ended repeatedly with this message in flight; it becomes a dead letter");
            let verdict = Verdict::host_died(HOST_DIED.to_owned());
            settled = self.settle(&mut round, &verdict.into()).await?;
        }
        let parked = &self.ledger.progress.parked;
        let waits = parked.binary_search_by_key(&offset, |parked| parked.offset);
        if waits.is_err() {
            self.plan.suspects.is_gone();
        }
        settled.step()
    }

    /// Releases a parked message that no longer exists and so cannot be retried or shown. Its last
    /// attempt is logged.
    pub(super) fn release_lost(&mut self, index: usize) {
        let gone = Arc::make_mut(&mut self.ledger.progress)
            .parked
            .remove(index);
        self.ledger.count();
        self.meters.lost(1);
        let last = gone.log.last();
        let reason = last.map_or("it waited behind another message", |last| &last.reason);
        tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, offset = %gone.offset, attempts = gone.attempts, reason, "a parked message is no longer kept and is given up");
    }

    /// Releases parked messages below the partition's start, which were removed by a trim or by
    /// retention. Messages behind them continue.
    pub(super) async fn release(&mut self) -> Result<(), Trouble> {
        let Some(first) = self.ledger.progress.parked.first() else {
            return Ok(());
        };
        let start = self.context.engine.ends(self.hold.partition)?.start;
        if first.offset >= start {
            return Ok(());
        }
        let mut progress = Progress::clone(&self.ledger.progress);
        let gone = progress.parked.partition_point(|p| p.offset < start);
        progress.parked.drain(..gone);
        tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, messages = gone, before = %start, "parked messages were removed from their topic and are given up");
        self.meters.lost(gone as u64);
        // Boxed, because it is rare and idle workers run this code.
        Box::pin(self.keep(progress.clone())).await?;
        self.ledger.progress = progress.into();
        self.ledger.count();
        self.show_parked();
        Ok(())
    }

    /// Moves the times of retries when the wall clock is set, so that each keeps its delay.
    pub(super) fn follow_clock(&mut self) {
        let Some(step) = self.time.follow(&*self.context.clock) else {
            return;
        };
        if self.ledger.progress.parked.is_empty() {
            return;
        }
        for parked in &mut Arc::make_mut(&mut self.ledger.progress).parked {
            parked.due = parked.due.map(|due| step.moved(due));
            parked.held_since = parked.held_since.map(|since| step.moved(since));
        }
        tracing::info!(topic = %self.input.topic.spec.name, partition = %self.input.partition, by_ms = step.ms(), "the wall clock was set; retries keep their delays");
        self.show_parked();
    }

    /// Shows the same status for the messages that are parked now.
    fn show_parked(&mut self) {
        let state = self.outside.window.lock().state.clone();
        self.show(state);
    }

    /// The status when there is nothing to call.
    pub(super) fn resting(&self, live: &Live) -> State {
        let parked = &self.ledger.progress.parked;
        if parked.is_empty() {
            return match self.source.is_done() {
                true => State::Done,
                false => State::Running,
            };
        }
        let Some(next) = batcher::next_front(parked) else {
            return State::Running;
        };
        let until = next.due.unwrap_or_default();
        let room = batcher::new_messages_max(live.spec.order, parked);
        let in_line = parked.iter().any(|p| p.ordering == Some(WHOLE_PARTITION));
        let what = match (room, in_line) {
            (0, true) => "the order of the partition is kept, so all of it waits".to_owned(),
            (0, false) => format!(
                "{} messages are parked, the maximum, and no new ones are read",
                parked.len()
            ),
            _ => format!("{} parked, nothing else to do", parked.len()),
        };
        let last = next.log.last();
        let why = last.map_or_else(String::new, |last| format!(" ({})", last.class));
        let held = match next.held_since {
            Some(_) => format!(
                " would be given up, but revision {} is not proven; it",
                next.revision
            ),
            None => String::new(),
        };
        let reason = format!(
            "{what}; offset {}{why}{held} is tried again at {}",
            next.offset,
            utc(until)
        );
        State::Waiting(reason, Some(until))
    }
}
