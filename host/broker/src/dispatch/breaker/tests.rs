//! The breaker, with a clock that the test sets.

use std::ops::Range;

use millrace_model::{PartitionId, TopicId};
use proptest::prelude::*;

use super::*;
use crate::dispatch::failed::Failed;

fn at(ms: u64) -> Now {
    Now {
        wall: Timestamp(1_000_000 + ms),
        monotonic: Duration::from_millis(ms),
    }
}

fn partition(number: u32) -> TopicPartition {
    TopicPartition {
        topic: TopicId(1),
        partition: PartitionId(number),
    }
}

fn failed(message: usize, cause: Cause, class: &str) -> Failed {
    Failed {
        message,
        cause,
        class: class.to_owned(),
        reason: "because".to_owned(),
        after_ms: None,
        backtrace: None,
    }
}

struct Bench {
    breaker: Breaker,
    rng: fastrand::Rng,
    revision: u32,
    next: u64,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        let subject = Subject {
            revision: 1,
            ..Subject::default()
        };
        Self {
            breaker: Breaker::new(BreakerPolicy::default(), &subject, at(0)),
            rng: fastrand::Rng::with_seed(3),
            revision: 1,
            next: 0,
            now_ms: 0,
        }
    }

    fn swap(&mut self, revision: u32) {
        self.swap_from(revision, |_| {});
    }

    /// Makes another revision take over. `change` may change the record of the previous one first.
    fn swap_from(&mut self, revision: u32, change: impl FnOnce(&mut Record)) {
        let mut record = self.breaker.record(at(self.now_ms));
        change(&mut record);
        let subject = Subject {
            revision,
            back: Some(Back {
                revision: self.revision,
                same_handler: true,
                usual: record.rejections.clone(),
                record,
            }),
            ..Subject::default()
        };
        self.revision = revision;
        self.breaker
            .install(BreakerPolicy::default(), &subject, at(self.now_ms));
    }

    /// Reports a batch of `count` new messages, of which `failed` failed.
    fn batch(&mut self, count: usize, failed: &[Failed], probe: bool) -> Judgement {
        let offsets: Vec<Offset> = (self.next..self.next + count as u64).map(Offset).collect();
        self.next += count as u64;
        let says = vec![Says::News; failed.len()];
        self.again(&offsets, failed, &says, probe)
    }

    fn again(
        &mut self,
        offsets: &[Offset],
        failed: &[Failed],
        says: &[Says],
        probe: bool,
    ) -> Judgement {
        let report = Report {
            revision: self.revision,
            partition: partition(0),
            offsets,
            retried: 0,
            failed,
            says,
        };
        let now = at(self.now_ms);
        let judgement = self.breaker.report(&report, probe, now, &mut self.rng);
        if judgement == Judgement::Settle {
            // The batch is committed.
            let processed = report.processed();
            self.breaker.has_processed(self.revision, processed, now);
        }
        judgement
    }

    fn good(&mut self, count: usize) -> Judgement {
        self.batch(count, &[], false)
    }

    fn bad(&mut self, cause: Cause) -> Judgement {
        self.batch(1, &[failed(0, cause, cause.as_str())], false)
    }

    /// Reports a batch of `count` messages, of which those in `bad` failed.
    fn part(&mut self, count: usize, bad: Range<usize>, cause: Cause) -> Judgement {
        let failures: Vec<Failed> = bad.map(|m| failed(m, cause, "busy")).collect();
        self.batch(count, &failures, false)
    }

    fn reason(&self) -> Option<Reason> {
        self.breaker.trip().map(|trip| trip.reason)
    }

    /// Waits until the probe is due, and takes it.
    fn probe(&mut self) -> u64 {
        let before = self.now_ms;
        loop {
            match self.breaker.admit(at(self.now_ms)) {
                Admission::Probe => return self.now_ms - before,
                Admission::Wait(wait) => self.now_ms += wait.as_millis() as u64 + 1,
                Admission::Go => panic!("it is closed"),
            }
        }
    }
}

#[test]
fn the_fifth_different_message_in_a_row_that_fails_alike_opens_it_and_is_discarded() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        assert_eq!(bench.bad(Cause::Trap), Judgement::Settle);
    }
    assert_eq!(bench.bad(Cause::Trap), Judgement::Discard);
    assert_eq!(bench.reason(), Some(Reason::PoisonFlood));
    let text = bench
        .breaker
        .trip()
        .map(ToString::to_string)
        .unwrap_or_default();
    assert_eq!(
        text,
        "poison flood: 5 different messages in a row failed alike (trap: because)"
    );
}

#[test]
fn the_same_message_again_and_again_never_opens_it() {
    let mut bench = Bench::new();
    for attempt in 0..1_000 {
        let poison = failed(0, Cause::Trap, "trap");
        let says = if attempt == 0 {
            Says::News
        } else {
            Says::Nothing
        };
        let judgement = bench.again(&[Offset(7)], &[poison], &[says], false);
        assert_eq!(judgement, Judgement::Settle);
    }
    // Nor if the attempt stays the first one forever, because its commit fails each time.
    for _ in 0..1_000 {
        let poison = failed(0, Cause::Trap, "trap");
        assert_eq!(
            bench.again(&[Offset(7)], &[poison], &[Says::News], false),
            Judgement::Settle
        );
    }
}

#[test]
fn failures_that_are_not_alike_or_have_a_success_between_them_do_not_open_it() {
    let mut bench = Bench::new();
    for class in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let odd = failed(0, Cause::Retry, class);
        assert_eq!(bench.batch(1, &[odd], false), Judgement::Settle);
    }
    for _ in 0..100 {
        assert_eq!(bench.bad(Cause::Trap), Judgement::Settle);
        bench.good(2);
    }
}

#[test]
fn a_batch_that_fails_whole_is_discarded_before_anything_of_it_is_decided() {
    let mut bench = Bench::new();
    bench.good(100_000);
    assert_eq!(
        bench.part(1_000, 0..1_000, Cause::Retry),
        Judgement::Discard
    );
    assert_eq!(bench.reason(), Some(Reason::Outage));
}

#[test]
fn half_of_the_latest_messages_opens_it_and_less_does_not() {
    let mut bench = Bench::new();
    bench.good(100_000);
    assert_eq!(bench.part(1_000, 100..599, Cause::Retry), Judgement::Settle);
    assert_eq!(
        bench.part(1_000, 100..610, Cause::Retry),
        Judgement::Discard
    );
}

#[test]
fn old_failures_are_forgotten() {
    let mut bench = Bench::new();
    for _ in 0..30 {
        for _ in 0..4 {
            assert_eq!(bench.bad(Cause::Trap), Judgement::Settle);
        }
        bench.good(1);
        bench.now_ms += 11_000;
    }
}

#[test]
fn what_the_component_says_is_down_opens_it_at_once_and_any_answer_closes_it() {
    let mut bench = Bench::new();
    bench
        .breaker
        .unavailable(1, "no tills", false, at(0), &mut bench.rng);
    assert_eq!(bench.reason(), Some(Reason::Outage));
    bench.probe();
    let now = at(bench.now_ms);
    bench
        .breaker
        .unavailable(1, "no tills yet", true, now, &mut bench.rng);
    assert_eq!(
        bench.breaker.status().text.as_deref(),
        Some("outage: no tills yet")
    );
    assert_eq!(bench.breaker.status().probes, 1);
    bench.probe();
    let judgement = bench.batch(1, &[failed(0, Cause::Reject, "odd")], true);
    assert_eq!((judgement, bench.reason()), (Judgement::Settle, None));
}

#[test]
fn one_probe_at_a_time_later_and_later_until_one_succeeds() {
    let mut bench = Bench::new();
    bench.part(9, 0..9, Cause::Trap);
    let mut waits = Vec::new();
    for _ in 0..12 {
        waits.push(bench.probe());
        assert!(matches!(
            bench.breaker.admit(at(bench.now_ms)),
            Admission::Wait(_)
        ));
        let judgement = bench.batch(1, &[failed(0, Cause::Trap, "trap")], true);
        assert_eq!(judgement, Judgement::Postpone);
    }
    assert!((50..=110).contains(&waits[0]), "{waits:?}");
    assert!(
        waits[11] >= 5_000 && waits.iter().all(|&wait| wait <= 10_010),
        "{waits:?}"
    );
    bench.probe();
    assert_eq!(bench.batch(1, &[], true), Judgement::Settle);
    assert_eq!(bench.breaker.admit(at(bench.now_ms)), Admission::Go);
}

#[test]
fn a_relapse_goes_on_with_the_waits_of_before_and_health_ends_that() {
    let mut bench = Bench::new();
    for (health_ms, at_least_ms) in [(0, 0), (100, 1_000), (20_000, 0)] {
        bench.now_ms += health_ms;
        bench.part(9, 0..9, Cause::Trap);
        let wait = bench.probe();
        assert!(
            wait >= at_least_ms && (at_least_ms > 0 || wait < 200),
            "{wait}"
        );
        for _ in 0..5 {
            bench.batch(1, &[failed(0, Cause::Trap, "trap")], true);
            bench.probe();
        }
        bench.batch(1, &[], true);
    }
}

#[test]
fn a_probe_given_back_is_for_the_next_one_to_take() {
    let mut bench = Bench::new();
    bench.part(9, 0..9, Cause::Trap);
    bench.probe();
    bench.breaker.give_back();
    assert_eq!(bench.breaker.admit(at(bench.now_ms)), Admission::Probe);
}

#[test]
fn what_was_in_flight_when_it_opened_is_discarded_only_if_it_failed() {
    let mut bench = Bench::new();
    bench.part(9, 0..9, Cause::Trap);
    assert_eq!(bench.good(9), Judgement::Settle);
    assert_eq!(bench.part(9, 3..4, Cause::Trap), Judgement::Discard);
    assert!(bench.reason().is_some(), "neither closes it");
}

#[test]
fn a_new_revision_that_fails_is_a_bad_deploy_and_one_that_proved_itself_is_not() {
    let mut bench = Bench::new();
    bench.good(5_000);
    bench.swap(2);
    bench.good(3);
    bench.part(9, 0..9, Cause::Trap);
    let bad = Reason::BadDeploy {
        revision: 2,
        back: 1,
    };
    assert_eq!(bench.reason(), Some(bad));
    bench.swap(3);
    assert_eq!(bench.reason(), None, "another revision may do better");
    bench.good(1_000);
    bench.part(1_000, 0..1_000, Cause::Trap);
    assert_eq!(bench.reason(), Some(Reason::PoisonFlood));
}

#[test]
fn rejections_are_decisions_unless_they_are_new_with_a_new_revision() {
    let mut bench = Bench::new();
    let rejects = |class: &str| {
        (0..9)
            .map(|m| failed(m, Cause::Reject, class))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        bench.batch(9, &rejects("no-json"), false),
        Judgement::Settle
    );
    bench.swap(2);
    assert_eq!(
        bench.batch(9, &rejects("no-json"), false),
        Judgement::Settle
    );
    assert_eq!(
        bench.batch(9, &rejects("no-xml"), false),
        Judgement::Discard
    );
    assert_eq!(bench.reason().map(Reason::as_str), Some("bad-deploy"));
}

#[test]
fn what_messages_failed_at_before_is_no_news_and_what_parked_ones_fail_at_anew_is() {
    let mut bench = Bench::new();
    bench.good(2_000);
    bench.swap(2);
    let offsets: Vec<Offset> = (0..9).map(Offset).collect();
    let failures: Vec<Failed> = (0..9).map(|m| failed(m, Cause::Retry, "busy")).collect();
    // Under the previous revision they failed alike, so the deployment is not the reason.
    let known = bench.again(&offsets, &failures, &[Says::Nothing; 9], false);
    assert_eq!((known, bench.reason()), (Judgement::Settle, None));
    let traps: Vec<Failed> = (0..9).map(|m| failed(m, Cause::Trap, "trap")).collect();
    let news = bench.again(&offsets, &traps, &[Says::News; 9], false);
    assert_eq!(news, Judgement::Discard);
    assert_eq!(bench.reason().map(Reason::as_str), Some("bad-deploy"));
}

#[test]
fn what_the_error_handler_settles_is_a_success_of_a_probe_too() {
    let mut bench = Bench::new();
    let all: Vec<Failed> = (0..9).map(|m| failed(m, Cause::Trap, "trap")).collect();
    let offsets: Vec<Offset> = (0..9).map(Offset).collect();
    for _ in 0..100 {
        let judgement = bench.again(&offsets, &all, &[Says::Settled; 9], false);
        assert_eq!(judgement, Judgement::Settle);
    }
    bench.part(9, 0..9, Cause::Trap);
    assert!(bench.reason().is_some());
    bench.probe();
    let judgement = bench.again(&[Offset(70)], &all[..1], &[Says::Settled], true);
    assert_eq!((judgement, bench.reason()), (Judgement::Settle, None));
}

#[test]
fn a_class_that_was_usual_is_known_at_about_its_usual_share() {
    let mut bench = Bench::new();
    let rejects = |count: usize| {
        (0..count)
            .map(|m| failed(m, Cause::Reject, "bad-route"))
            .collect::<Vec<_>>()
    };
    for _ in 0..50 {
        bench.batch(25, &rejects(1), false);
    }
    bench.swap(2);
    for _ in 0..30 {
        assert_eq!(bench.batch(25, &rejects(1), false), Judgement::Settle);
    }
    assert_eq!(bench.batch(25, &rejects(25), false), Judgement::Discard);
    assert_eq!(bench.reason().map(Reason::as_str), Some("bad-deploy"));
    // The breaker stays open until a message is not rejected.
    bench.probe();
    assert_eq!(bench.batch(1, &rejects(1), true), Judgement::Postpone);
    bench.probe();
    assert_eq!(bench.batch(1, &[], true), Judgement::Settle);
}

#[test]
fn a_revision_that_fails_as_the_one_before_did_when_it_was_left_is_no_bad_deploy() {
    for (class, reason) in [
        ("busy", Reason::Outage),
        (
            "trap",
            Reason::BadDeploy {
                revision: 2,
                back: 1,
            },
        ),
    ] {
        let mut bench = Bench::new();
        bench.good(2_000);
        let stopped = Some(Stopped {
            class: Some(class.to_owned()),
            text: String::new(),
        });
        bench.swap_from(2, |record| record.stopped = stopped);
        bench.part(9, 0..9, Cause::Retry);
        assert_eq!(bench.reason(), Some(reason));
    }
}

#[test]
fn slow_traffic_and_idle_hours_prove_nothing_and_an_hour_of_work_does() {
    let mut bench = Bench::new();
    bench.good(2_000);
    bench.swap(2);
    bench.now_ms += 5 * 3_600_000;
    // Every other message fails, at one message per minute.
    let mut messages = 0;
    while bench.reason().is_none() {
        bench.now_ms += 60_000;
        bench.good(1);
        bench.now_ms += 60_000;
        bench.bad(Cause::Trap);
        messages += 2;
        assert!(messages < 60, "it is seen within an hour");
    }
    assert_eq!(bench.reason().map(Reason::as_str), Some("bad-deploy"));
    // One message, followed by an idle night.
    bench.swap(3);
    bench.good(1);
    bench.now_ms += 8 * 3_600_000;
    bench.part(9, 0..9, Cause::Trap);
    assert_eq!(bench.reason().map(Reason::as_str), Some("bad-deploy"));
    bench.swap(4);
    bench.good(PROVEN_LEAST as usize - 1);
    bench.now_ms += 3_600_000;
    bench.good(1);
    bench.part(9, 0..9, Cause::Trap);
    assert_eq!(bench.reason(), Some(Reason::PoisonFlood));
}

#[test]
fn a_start_of_the_host_takes_nothing_away_from_a_proof() {
    for (before, after) in [(900, 100), (PROVEN_LEAST as usize - 1, 1)] {
        let mut bench = Bench::new();
        bench.swap(2);
        bench.good(before);
        let mut record = bench.breaker.record(at(bench.now_ms));
        assert!(!record.proven);
        record.worked_at = Some(at(0).wall);
        let back = bench.breaker.back.clone();
        let subject = Subject {
            revision: 2,
            back,
            record,
        };
        bench.now_ms += 3_600_000;
        let now = at(bench.now_ms);
        bench.breaker = Breaker::new(BreakerPolicy::default(), &subject, now);
        assert!(!bench.breaker.record(now).proven);
        bench.good(after);
        assert!(bench.breaker.record(now).proven, "{before}");
    }
}

#[test]
fn what_the_error_handler_drops_is_no_rejection() {
    let mut bench = Bench::new();
    let rejects = |count: usize| -> Vec<Failed> {
        let rejected = (0..count).map(|m| failed(m, Cause::Reject, "spam"));
        rejected.collect()
    };
    for _ in 0..50 {
        bench.batch(25, &rejects(1), false);
    }
    bench.swap(2);
    for round in 0..20 {
        let offsets: Vec<Offset> = (0..25).map(|m| Offset(10_000 + round * 25 + m)).collect();
        bench.again(&offsets, &rejects(25), &[Says::Settled; 25], false);
        assert_eq!(bench.reason(), None);
    }
}

#[test]
fn a_class_of_which_there_was_too_much_is_usual_no_more() {
    let mut bench = Bench::new();
    let bad = failed(0, Cause::Reject, "bad-route");
    for _ in 0..50 {
        bench.batch(25, std::slice::from_ref(&bad), false);
    }
    bench.swap(2);
    assert!(bench.breaker.excuses("bad-route"));
    while bench.reason().is_none() {
        bench.batch(1, std::slice::from_ref(&bad), false);
    }
    bench.probe();
    bench.batch(1, &[], true);
    assert!(bench.reason().is_none() && !bench.breaker.excuses("bad-route"));
    let record = bench.breaker.record(at(bench.now_ms));
    assert_eq!(record.doubted, ["bad-route"]);
}

#[test]
fn a_canary_that_hangs_or_is_wrong_is_out() {
    let mut bench = Bench::new();
    bench.swap(2);
    let now = at(0);
    bench.breaker.timed_out(2, now, &mut bench.rng);
    bench.good(1);
    bench.breaker.timed_out(2, now, &mut bench.rng);
    assert_eq!(bench.reason(), None, "not in a row");
    bench.breaker.timed_out(2, now, &mut bench.rng);
    assert!(bench.reason().is_some());
    bench.swap(3);
    bench.breaker.contradicted(4, now, &mut bench.rng);
    let text = bench.breaker.trip().map(ToString::to_string);
    assert!(
        text.unwrap_or_default()
            .contains("4 messages that the canary would have given up")
    );
}

#[test]
fn what_is_to_be_written_down_is_said_once() {
    let mut bench = Bench::new();
    assert!(!bench.breaker.take_news());
    bench.good(1);
    assert!(bench.breaker.take_news() && !bench.breaker.take_news());
    bench.good(3);
    assert!(!bench.breaker.take_news());
    bench.good(995);
    assert!(bench.breaker.take_news() && !bench.breaker.take_news());
    assert!(!bench.breaker.record(at(0)).proven);
    bench.good(1);
    assert!(bench.breaker.take_news() && !bench.breaker.take_news());
    assert!(bench.breaker.record(at(0)).proven);
    bench.batch(1, &[failed(0, Cause::Reject, "odd")], false);
    assert!(bench.breaker.take_news(), "a class that it rejects");
    bench.breaker.not_written();
    assert!(bench.breaker.take_news() && !bench.breaker.take_news());
}

#[test]
fn an_answer_of_a_revision_that_no_longer_runs_decides_nothing_bad() {
    let mut bench = Bench::new();
    bench.swap(2);
    bench.revision = 1;
    assert_eq!(bench.part(9, 0..9, Cause::Trap), Judgement::Discard);
    assert_eq!(bench.good(9), Judgement::Settle);
    assert_eq!(bench.reason(), None);
}

#[test]
fn off_it_never_judges_and_an_operator_may_have_it_so_for_a_while() {
    let mut bench = Bench::new();
    bench.breaker.accept(true);
    assert_eq!(bench.part(50, 0..50, Cause::Trap), Judgement::Settle);
    bench.breaker.accept(false);
    bench.breaker.policy.enabled = false;
    assert_eq!(bench.part(50, 0..50, Cause::Trap), Judgement::Settle);
    assert_eq!(bench.breaker.status().state, "off");
}

#[derive(Clone, Debug)]
enum Happens {
    Batch(usize, Vec<bool>, u8),
    Unavailable,
    Time(u64),
    Swap,
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (1..30usize, proptest::collection::vec(any::<bool>(), 30), 0..5u8)
            .prop_map(|(count, bad, cause)| Happens::Batch(count, bad, cause)),
        1 => Just(Happens::Unavailable),
        3 => (0..5_000u64).prop_map(Happens::Time),
        1 => Just(Happens::Swap),
    ]
}

proptest! {
    /// Invariants for any sequence: while it is open, only probes are settled; there is always a
    /// next probe; a success closes it; fewer failures than the minimum never open it.
    #[test]
    fn it_keeps_its_promises_whatever_happens(
        steps in proptest::collection::vec(anything(), 1..200),
    ) {
        let mut bench = Bench::new();
        for step in steps {
            let was_open = bench.reason().is_some();
            match step {
                Happens::Time(ms) => bench.now_ms += ms,
                Happens::Swap => {
                    bench.swap(bench.revision + 1);
                    prop_assert!(bench.reason().is_none());
                }
                Happens::Unavailable => {
                    let now = at(bench.now_ms);
                    bench.breaker.unavailable(bench.revision, "down", false, now, &mut bench.rng);
                    prop_assert!(bench.reason().is_some());
                }
                Happens::Batch(count, bad, cause) => {
                    let cause = [Cause::Retry, Cause::Trap, Cause::Timeout, Cause::Memory, Cause::BadAnswer][cause as usize];
                    let failures: Vec<Failed> = (0..count).filter(|&m| bad[m]).map(|m| failed(m, cause, "x")).collect();
                    let judgement = bench.batch(count, &failures, false);
                    if was_open {
                        prop_assert_eq!(judgement == Judgement::Settle, failures.is_empty());
                        prop_assert!(bench.reason().is_some(), "only a probe closes it");
                    } else {
                        prop_assert_eq!(judgement == Judgement::Discard, bench.reason().is_some());
                    }
                }
            }
            prop_assert!(bench.breaker.run.len() <= 5);
            if bench.reason().is_some() {
                let wait = bench.probe();
                prop_assert!(wait <= 10_001, "a probe comes");
                bench.breaker.give_back();
            }
        }
        if bench.reason().is_some() {
            bench.probe();
            prop_assert_eq!(bench.batch(1, &[], true), Judgement::Settle);
            prop_assert!(bench.reason().is_none());
        }
    }
}
