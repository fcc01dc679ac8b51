//! Parked messages between two batches: what an operator wants done with them, those that are no longer kept, and what a worker
//! waits for that has nothing else to do.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_model::calendar::utc;
use millrace_model::{Offset, Parked, Progress};

use super::{Trouble, Worker};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{self, Batch, Due, WHOLE_PARTITION};
use crate::dispatch::breaker::Judgement;
use crate::dispatch::command::Command;
use crate::dispatch::live::Live;
use crate::dispatch::orders::{Meant, Obeyed, Order, ParkedAction};
use crate::dispatch::sides::Side;
use crate::dispatch::standing::State;

/// Messages that one commit gives up.
const GIVEN_UP_AT_ONCE_MAX: usize = 500;
/// Bytes of them, but for one larger message.
const GIVEN_UP_BYTES_AT_ONCE_MAX: usize = 4 << 20;

impl Worker {
    /// Other revisions run from now on. What one that is gone kept from being given up, or made wait and was wrong, is due at once.
    pub(super) fn let_go(&mut self, command: &Command) {
        let now = self.now();
        let live = &command.live;
        let waits =
            |parked: &Parked| batcher::waits_in_vain(parked, live.revision, &live.voided, now);
        if !self.progress.parked.iter().any(waits) {
            return;
        }
        let progress = Arc::make_mut(&mut self.progress);
        for parked in progress.parked.iter_mut().filter(|parked| waits(parked)) {
            parked.due = Some(now);
        }
    }

    /// Does what operators want, if they want anything.
    pub(super) async fn obey(&mut self, live: &Arc<Live>) {
        let state = self.window.lock().state.clone();
        while let Some(order) = self.orders.take() {
            // What is at hand is cut again afterwards.
            self.pieces.clear();
            let Order {
                action,
                meant,
                by,
                answer,
            } = order;
            let obeyed = match action {
                ParkedAction::TryNow => self.try_now(&meant).await,
                ParkedAction::GiveUp => self.give_up(live, &meant, by.as_deref()).await,
            };
            self.show(state.clone());
            // Whoever asked may not have waited.
            let _ = answer.send(obeyed.map_err(|trouble| match trouble {
                Trouble::Wait(why) | Trouble::Stop(why) | Trouble::Leave(why) => why,
            }));
        }
    }

    /// Those that are meant and there, and of those that were named the others.
    fn meant(&self, meant: &Meant) -> (Vec<Offset>, Vec<(Offset, String)>) {
        let parked = &self.progress.parked;
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
                let why = "it is not parked, or no longer".to_owned();
                let gone = gone.into_iter().map(|offset| (offset, why.clone()));
                (there, gone.collect())
            }
        }
    }

    /// Those that wait for nobody are due now. It is in progress with the next commit, and until then a start would try them soon enough; but a worker
    /// that is paused beside other hosts goes as soon as it has obeyed, and who comes next reads what is stored.
    async fn try_now(&mut self, meant: &Meant) -> Result<Obeyed, Trouble> {
        let goes = self.commands.borrow().paused && !self.context.hosts.is_alone();
        if goes && self.has_suspects() {
            // A commit would let those go.
            return Err(Trouble::Wait(
                "messages that were in flight when a host ended are called first; resume the processor, and try again".to_owned(),
            ));
        }
        let obeyed = self.all_due_now(meant);
        if goes && obeyed.done > 0 {
            self.keep(Progress::clone(&self.progress)).await?;
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
        for parked in &mut Arc::make_mut(&mut self.progress).parked {
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

    /// They become dead letters, in as many commits as it takes. The bound of dead letters is not asked: somebody wants them.
    async fn give_up(
        &mut self,
        live: &Arc<Live>,
        meant: &Meant,
        by: Option<&str>,
    ) -> Result<Obeyed, Trouble> {
        let (there, mut left) = self.meant(meant);
        let mut done = 0;
        let mut rest = &there[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(GIVEN_UP_AT_ONCE_MAX));
            let batch = self.parked_batch(some).await?;
            // What did not fit comes with the next ones; what is no longer kept has been let go.
            let taken = batch.offsets.last().map_or(some.len(), |last| {
                some.partition_point(|offset| offset <= last)
            });
            let gone = some[..taken].iter();
            let gone = gone.filter(|offset| batch.offsets.binary_search(offset).is_err());
            left.extend(gone.map(|&offset| (offset, "it is no longer kept".to_owned())));
            if batch.len() > 0 {
                let verdict = self.given_up(&batch, by);
                self.side = Side::Current;
                let before = self.commits;
                self.settle(live, &batch, &verdict, &[], &[], Judgement::Settle)
                    .await?;
                if self.commits == before {
                    return Err(Trouble::Wait(
                        "it was told to do something else meanwhile".to_owned(),
                    ));
                }
                done += batch.len();
            }
            rest = match taken < some.len() {
                true => &rest[taken..],
                false => others,
            };
        }
        Ok(Obeyed { done, left })
    }

    fn given_up(&self, batch: &Batch, by: Option<&str>) -> Verdict {
        let parked = &self.progress.parked;
        let last = batch.offsets.iter().map(|offset| {
            let found = parked.binary_search_by_key(offset, |parked| parked.offset);
            found.ok().and_then(|index| parked[index].log.last())
        });
        Verdict::given_up(last, by)
    }

    async fn parked_batch(&mut self, offsets: &[Offset]) -> Result<Batch, Trouble> {
        let mut cut = self.empty_cut(GIVEN_UP_AT_ONCE_MAX, GIVEN_UP_BYTES_AT_ONCE_MAX);
        let due = Due {
            offsets: offsets.to_vec(),
            alone: false,
        };
        self.take_due(&due, &mut cut).await?;
        Ok(cut.finish(self.progress.next))
    }

    /// Lets go of parked messages before the partition's start: they were trimmed, or retention took them. Whatever waited behind
    /// them goes on.
    pub(super) async fn release(&mut self) -> Result<(), Trouble> {
        let Some(first) = self.progress.parked.first() else {
            return Ok(());
        };
        let start = self.context.engine.ends(self.partition)?.start;
        if first.offset >= start {
            return Ok(());
        }
        let mut progress = Progress::clone(&self.progress);
        let gone = progress.parked.partition_point(|p| p.offset < start);
        progress.parked.drain(..gone);
        tracing::warn!(topic = %self.input.topic.spec.name, partition = %self.input.partition, messages = gone, before = %start, "parked messages were removed from their topic; they are given up");
        self.meters.lost(gone as u64);
        self.keep(progress.clone()).await?;
        self.progress = progress.into();
        self.remembered.set(&self.progress);
        self.show_parked();
        Ok(())
    }

    /// After a step of the wall clock the times of retries are moved with it, so that each waits as long as it was to wait.
    pub(super) fn follow_clock(&mut self) {
        let Some(step) = self.time.follow(&*self.context.clock) else {
            return;
        };
        if self.progress.parked.is_empty() {
            return;
        }
        for parked in &mut Arc::make_mut(&mut self.progress).parked {
            parked.due = parked.due.map(|due| step.moved(due));
            parked.held_since = parked.held_since.map(|since| step.moved(since));
        }
        tracing::info!(topic = %self.input.topic.spec.name, partition = %self.input.partition, by_ms = step.ms(), "the wall clock was set; retries wait as long as they were to wait");
        self.show_parked();
    }

    /// The same state, of what is parked now.
    fn show_parked(&mut self) {
        let state = self.window.lock().state.clone();
        self.show(state);
    }

    /// How it does that has nothing to call with.
    pub(super) fn resting(&self, live: &Live) -> State {
        let parked = &self.progress.parked;
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
            (0, true) => "the order of the partition is kept, and all of it waits".to_owned(),
            (0, false) => format!(
                "{} messages are parked, as many as there may be, and no new ones are read",
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
