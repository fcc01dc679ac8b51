//! Properties of plans.

use std::collections::HashMap;

use millrace_model::{Attempt, Progress};

use super::*;
use crate::dispatch::sides::side_of;
use crate::handler::Cause;

const MOST: Most = Most {
    messages: 40,
    bytes: 1 << 20,
};
const TIME_MAX: Duration = Duration::from_secs(1);

fn choice(parked: &[Parked], has_new: bool, now: Timestamp) -> Choice<'_> {
    Choice {
        take: Take::Batch,
        order: Order::None,
        parked,
        has_new,
        current: MOST,
        canary: None,
        now,
    }
}

fn batch(offsets: impl IntoIterator<Item = u64>) -> Batch {
    let offsets: Vec<Offset> = offsets.into_iter().map(Offset).collect();
    Batch {
        next: offsets.last().map_or(Offset(0), |last| last.next()),
        offsets,
        ..Batch::default()
    }
}

fn failed(message: usize, class: &str) -> Failed {
    Failed {
        message,
        cause: Cause::Retry,
        class: class.to_owned(),
        reason: String::new(),
        after_ms: None,
        backtrace: None,
    }
}

/// The size of the next batch of new messages.
fn next_size(plan: &mut Plan) -> usize {
    plan.next(&choice(&[], true, Timestamp(0))).most.messages
}

/// A partition whose worker follows a plan. Some messages fail, some fail their whole batch, and
/// obstacles occur at random.
struct World {
    plan: Plan,
    rng: fastrand::Rng,
    progress: Progress,
    end: Offset,
    now: Timestamp,
    /// How often each message was settled.
    settled: HashMap<Offset, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let end = Offset(rng.u64(1..200));
        let first_call = rng.bool().then(|| Offset(rng.u64(1..=end.0)));
        let progress = Progress {
            first_call,
            ..Progress::default()
        };
        Self {
            plan: Plan::new(Suspects::of(&progress, true)),
            progress,
            end,
            rng,
            now: Timestamp(1),
            settled: HashMap::new(),
        }
    }

    /// Whether a message fails its whole batch.
    fn is_bad(offset: Offset) -> bool {
        side_of(10, None, offset) == Side::Canary
    }

    fn is_done(&self) -> bool {
        self.progress.next == self.end && self.progress.parked.is_empty()
    }

    fn cut(&mut self, want: &Want) -> Batch {
        let mut offsets = want.due.offsets.clone();
        let retried = offsets.len();
        let new = match want.has_new {
            true => want.most.messages.saturating_sub(retried),
            false => 0,
        };
        let left = (self.end.0 - self.progress.next.0) as usize;
        let next = Offset(self.progress.next.0 + new.min(left) as u64);
        offsets.extend((self.progress.next.0..next.0).map(Offset));
        Batch {
            offsets,
            retried,
            next,
            ..Batch::default()
        }
    }

    fn step(&mut self) {
        self.now.0 += self.rng.u64(0..3);
        self.plan.suspects.end(&self.progress, self.now);
        let searches = self.plan.suspects.are_there();
        let want = self.plan.next(&Choice {
            take: match (searches, self.rng.u32(0..20)) {
                (true, _) => Take::Suspect,
                (false, 0) => Take::Probe,
                (false, _) => Take::Batch,
            },
            ..choice(
                &self.progress.parked,
                self.progress.next < self.end,
                self.now,
            )
        });
        assert!((1..=MOST.messages).contains(&want.most.messages));
        assert!(want.most.messages == 1 || want.take == Take::Batch);
        let batch = self.cut(&want);
        assert_eq!(batch.len() == 0, want.is_nothing());
        if batch.len() == 0 {
            self.plan.suspects.end_at(batch.next);
            self.plan.join();
            return;
        }
        assert!(batch.len() <= want.most.messages);
        self.plan.cut(&batch);
        self.call(&batch);
        self.plan.suspects.called(&batch.offsets, false);
    }

    fn call(&mut self, batch: &Batch) {
        let messages = batch.len();
        let some: Vec<usize> = (0..messages).filter(|_| self.rng.u32(0..4) == 0).collect();
        let came = match self.rng.u32(0..12) {
            0 => Came::Discarded,
            1 => Came::Excess(self.rng.usize(0..messages)),
            2 => Came::TooMuchEnded,
            3 if messages > 1 && !some.is_empty() => Came::Isolated(&some),
            4 if !some.is_empty() && some.len() < messages => Came::Spent(&some),
            5 if messages > 1 => {
                self.plan.timed_out(batch.side, messages);
                Came::Failed
            }
            _ if messages > 1 && batch.offsets.iter().any(|offset| Self::is_bad(*offset)) => {
                Came::Failed
            }
            _ => {
                self.settle(batch);
                Came::Settled
            }
        };
        self.plan.on(batch, came);
    }

    fn settle(&mut self, batch: &Batch) {
        for offset in &batch.offsets {
            let parked = &mut self.progress.parked;
            let place = parked.binary_search_by_key(offset, |parked| parked.offset);
            let before = place.map_or_else(|_| Parked::default(), |at| parked.remove(at));
            let fails = Self::is_bad(*offset) || self.rng.u32(0..20) == 0;
            if !fails || before.attempts == 3 {
                *self.settled.entry(*offset).or_default() += 1;
                continue;
            }
            let cause = match batch.len() {
                1 => Cause::Trap,
                _ => Cause::Retry,
            };
            let at = place.unwrap_or_else(|at| at);
            let attempt = Attempt {
                at: self.now,
                revision: 1,
                class: cause.as_str().to_owned(),
                reason: String::new(),
            };
            let again = Parked {
                offset: *offset,
                due: Some(Timestamp(self.now.0 + self.rng.u64(0..9))),
                attempts: before.attempts + 1,
                log: vec![attempt],
                ..Parked::default()
            };
            parked.insert(at, again);
        }
        self.progress.next = batch.next;
    }
}

#[test]
fn whatever_gets_in_the_way_every_message_is_settled_once() {
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        let mut steps = 0;
        while !world.is_done() {
            world.step();
            steps += 1;
            assert!(steps < 20_000, "seed {seed} does not end");
        }
        let once = world.settled.values().all(|times| *times == 1);
        assert!(once, "seed {seed}");
        assert_eq!(world.settled.len() as u64, world.end.0, "seed {seed}");
    }
}

#[test]
fn parts_cover_their_batch_and_after_them_batches_are_as_large_as_before() {
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut plan = Plan::default();
        if rng.bool() {
            plan.timed_out(Side::Current, rng.usize(1..200));
        }
        let before = next_size(&mut plan);
        let whole = batch(0..before as u64);
        let mut next = Offset(0);
        // The batch is split again and again, at random.
        let mut open = true;
        while open || next < whole.next {
            let size = next_size(&mut plan) as u64;
            let part = batch(next.0..(next.0 + size).min(whole.next.0));
            assert!(
                size <= whole.next.0 - next.0,
                "seed {seed}: beyond the batch"
            );
            let some: Vec<usize> = (0..part.len()).filter(|_| rng.bool()).collect();
            let came = match rng.u32(0..4) {
                0 if part.len() > 1 => Came::Failed,
                1 if part.len() > 1 => Came::Isolated(&some),
                2 if part.len() > 1 => Came::Spent(&some),
                3 if part.len() > 1 => Came::Excess(rng.usize(1..part.len())),
                _ => {
                    next = part.next;
                    Came::Settled
                }
            };
            open = false;
            plan.on(&part, came);
        }
        assert_eq!(next_size(&mut plan), before, "seed {seed}");
    }
}

#[test]
fn a_batch_that_failed_is_halved_and_a_failed_message_that_wrote_stands_alone() {
    let mut plan = Plan::default();
    let sizes = |plan: &mut Plan| {
        let mut sizes = Vec::new();
        while !plan.parts.is_empty() {
            let size = next_size(plan);
            sizes.push(size);
            plan.on(&batch(0..size as u64), Came::Settled);
        }
        sizes
    };
    plan.on(&batch(0..7), Came::Failed);
    assert_eq!(sizes(&mut plan), [3, 4]);
    plan.on(&batch(0..7), Came::Isolated(&[0, 1, 4]));
    assert_eq!(sizes(&mut plan), [1, 1, 2, 1, 2]);
    plan.on(&batch(0..7), Came::Spent(&[2, 3, 6]));
    assert_eq!(sizes(&mut plan), [2, 2, 2, 1]);
    plan.on(&batch(0..7), Came::Excess(5));
    assert_eq!(sizes(&mut plan), [5, 2]);
    plan.on(&batch(0..7), Came::Failed);
    plan.on(&batch(0..3), Came::Discarded);
    assert_eq!(next_size(&mut plan), MOST.messages);
}

#[test]
fn a_part_that_was_only_begun_keeps_its_rest() {
    let mut plan = Plan::default();
    plan.on(&batch(0..10), Came::Failed);
    plan.on(&batch(0..2), Came::Settled);
    assert_eq!(next_size(&mut plan), 3);
}

#[test]
fn retries_that_run_alone_and_new_messages_take_turns() {
    let trapped = Attempt {
        at: Timestamp(0),
        revision: 1,
        class: Cause::Trap.as_str().to_owned(),
        reason: String::new(),
    };
    let parked = [Parked {
        log: vec![trapped],
        ..Parked::default()
    }];
    let mut plan = Plan::default();
    let retries: Vec<usize> = (0..4)
        .map(|_| plan.next(&choice(&parked, true, Timestamp(0))))
        .map(|want| want.due.offsets.len())
        .collect();
    assert_eq!(retries, [1, 0, 1, 0]);
    let only = |plan: &mut Plan| plan.next(&choice(&parked, false, Timestamp(0)));
    assert!(
        (0..3).all(|_| only(&mut plan).due.alone),
        "nothing else waits"
    );
}

#[test]
fn the_sides_take_turns_but_the_parts_of_a_batch_stay_with_theirs() {
    let offset_of = |side| {
        let found = (0..).find(|&offset| side_of(50, None, Offset(offset)) == side);
        Offset(found.expect("one in two"))
    };
    let both = [offset_of(Side::Current), offset_of(Side::Canary)];
    let mut plan = Plan::default();
    let next = |plan: &mut Plan| {
        let want = plan.next(&Choice {
            canary: Some((50, MOST)),
            ..choice(&[], true, Timestamp(0))
        });
        let mut split = want.split.expect("there is a canary");
        split.choose(both.iter().map(|offset| (None, *offset, false)));
        let batch = Batch {
            side: split.side(),
            ..batch(0..4)
        };
        plan.cut(&batch);
        batch
    };
    let sides: Vec<Side> = (0..3).map(|_| next(&mut plan).side).collect();
    assert_eq!(sides, [Side::Canary, Side::Current, Side::Canary]);
    let failed = next(&mut plan);
    plan.on(&failed, Came::Failed);
    let parts: Vec<Side> = (0..2)
        .map(|_| {
            let part = next(&mut plan);
            plan.on(&batch(0..2), Came::Settled);
            part.side
        })
        .collect();
    assert_eq!(parts, [failed.side; 2]);
    assert_ne!(next(&mut plan).side, failed.side);
}

#[test]
fn before_its_side_is_known_a_batch_may_have_what_the_faster_side_takes() {
    let mut plan = Plan::default();
    plan.timed_out(Side::Canary, 40);
    let with_canary = Choice {
        canary: Some((10, MOST)),
        ..choice(&[], true, Timestamp(0))
    };
    assert_eq!(plan.next(&with_canary).most.messages, MOST.messages);
    plan.timed_out(Side::Current, 80);
    assert_eq!(plan.next(&with_canary).most.messages, 20);
}

#[test]
fn another_revision_starts_from_scratch() {
    let mut plan = Plan::default();
    assert!(plan.run((1, None)));
    plan.timed_out(Side::Current, 40);
    plan.on(&batch(0..8), Came::Failed);
    plan.report(&batch(0..1), &[failed(0, "late")]);
    assert!(!plan.run((1, None)));
    assert_eq!(next_size(&mut plan), 4);
    assert!(plan.run((2, None)));
    assert_eq!(next_size(&mut plan), MOST.messages);
    assert!(!plan.has_reported(&batch(0..1), &failed(0, "late")));
    assert!(plan.run((2, Some((3, 10)))), "a canary changes what runs");
}

#[test]
fn a_failure_is_reported_once_until_its_message_is_settled() {
    let mut plan = Plan::default();
    let two = batch([4, 9]);
    plan.report(&two, &[failed(1, "late")]);
    assert!(plan.has_reported(&batch([9]), &failed(0, "late")));
    assert!(!plan.has_reported(&batch([9]), &failed(0, "other")));
    assert!(!plan.has_reported(&batch([4]), &failed(0, "late")));
    let by_canary = Batch {
        side: Side::Canary,
        ..batch([9])
    };
    assert!(!plan.has_reported(&by_canary, &failed(0, "late")));
    plan.on(&batch([4]), Came::Settled);
    assert!(plan.has_reported(&two, &failed(1, "late")));
    plan.on(&two, Came::Settled);
    assert!(!plan.has_reported(&two, &failed(1, "late")));
}

#[test]
fn a_canary_gets_many_times_the_longest_recent_time_of_the_current_revision() {
    let mut plan = Plan::default();
    let limit = Duration::from_secs(60);
    assert_eq!(plan.call_max(Side::Canary, 1, limit), None);
    let mut answered = |side, messages, took| {
        plan.answered(&Call {
            side,
            messages,
            took,
            guest_time: took,
            time_max: TIME_MAX,
        });
        [Side::Current, Side::Canary].map(|side| plan.call_max(side, 10, limit))
    };
    let ms = Duration::from_millis;
    assert_eq!(answered(Side::Canary, 1, ms(900)), [None; 2]);
    assert_eq!(
        answered(Side::Current, 1, ms(10)),
        [None, Some(CANARY_CALL_MIN)]
    );
    // Ten messages may take ten times as long as one.
    assert_eq!(
        answered(Side::Current, 1, ms(100)),
        [None, Some(CANARY_SLOWNESS_MAX * ms(1_000))]
    );
    assert_eq!(
        answered(Side::Current, 1, ms(900)),
        [None; 2],
        "its limit is shorter"
    );
}

#[test]
fn expired_state_is_left_in_place_until_the_batch_is_settled() {
    let mut plan = Plan::default();
    plan.on(&batch(0..4), Came::TooMuchEnded);
    plan.on(&batch(0..4), Came::Failed);
    assert!(plan.leaves_ended() && !plan.has_settled());
    plan.on(&batch(0..2), Came::Settled);
    assert!(!plan.leaves_ended() && plan.has_settled());
}

#[test]
fn a_fuller_batch_is_worth_waiting_for_only_if_nothing_is_urgent() {
    let due = [Parked::default()];
    let mut plan = Plan::default();
    let lingers = |plan: &mut Plan, parked: &[Parked], has_new, take| {
        let choice = choice(parked, has_new, Timestamp(0));
        plan.next(&Choice { take, ..choice }).lingers
    };
    assert!(lingers(&mut plan, &[], true, Take::Batch));
    assert!(!lingers(&mut plan, &[], false, Take::Batch));
    assert!(!lingers(&mut plan, &due, true, Take::Batch));
    assert!(!lingers(&mut plan, &[], true, Take::Probe));
    plan.on(&batch(0..4), Came::Failed);
    assert!(!lingers(&mut plan, &[], true, Take::Batch));
}
