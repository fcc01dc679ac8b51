//! Decisions about one batch, without an engine.

use std::sync::Arc;
use std::time::Duration;

use millrace_model::bounds::ATTEMPT_LOG_MAX;
use millrace_model::processor::{Grants, RetryPolicy};
use millrace_model::{
    Answer, Attempt, ColumnBatch, Digest, PartitionId, ProcessorSpec, Topic, TopicId, TopicName,
    TopicSpec,
};

use super::fate::{HELD_DELAY_MAX, HELD_DELAY_MIN};
use super::*;
use crate::dispatch::answer::Outputs;
use crate::dispatch::breaker::PROVEN_AFTER;
use crate::dispatch::failed::Failed;
use crate::dispatch::word::Left;
use crate::ground::columns::push;
use crate::handler::Cause;

const NOW: Timestamp = Timestamp(10_000_000);

fn input() -> Input {
    let name = |name| TopicName::parse(name).unwrap();
    let topic = |id, called| Topic {
        id: TopicId(id),
        spec: TopicSpec {
            name: name(called),
            partitions: 1,
            durability: Default::default(),
            partitioner: None,
            owner: None,
            created_at: Timestamp::default(),
            settings: Default::default(),
        },
    };
    Input {
        topic: topic(1, "in"),
        partition: PartitionId(0),
        origin: name("in"),
        dead_letters: topic(2, "in.p.dlq"),
        range: None,
        first: None,
        times: None,
    }
}

fn spec() -> ProcessorSpec {
    ProcessorSpec {
        topics: vec![TopicName::parse("in").unwrap()],
        module: Digest([0; 32]),
        output: None,
        grants: Grants::default(),
        order: Default::default(),
        batch: Default::default(),
        retry: Default::default(),
        error_handler: None,
        limits: Default::default(),
        breaker: Default::default(),
        dead_letters: Default::default(),
        auto_rollback: false,
        auto_redrive: false,
        hops_max: None,
    }
}

/// Messages with these keys, at offsets from 10 on. The first `retried` of them were parked before.
fn batch(keys: &[&str], retried: usize) -> Batch {
    let mut columns = ColumnBatch::default();
    for (offset, key) in (10..).zip(keys) {
        let parts = (Some(key.as_bytes()), None);
        push(&mut columns, offset, 5, 1, parts, std::iter::empty());
    }
    let end = 10 + keys.len() as u64;
    Batch {
        columns: Arc::new(columns),
        offsets: (10..end).map(Offset).collect(),
        retried,
        redrives: Vec::new(),
        side: Default::default(),
        skipped: Vec::new(),
        next: Offset(end),
    }
}

fn failed(message: usize, cause: Cause, after_ms: Option<u64>) -> Failed {
    Failed {
        message,
        cause,
        class: cause.as_str().to_owned(),
        reason: "because".to_owned(),
        after_ms,
        backtrace: None,
    }
}

fn decide(
    batch: &Batch,
    failed: Vec<Failed>,
    decisions: &[Decision],
    progress: &Progress,
) -> Effects {
    decide_with(batch, failed, decisions, progress, false)
}

fn counts_for(unproven: u32) -> Word {
    Word::CountsFor(Left {
        unproven,
        accepted: 0,
    })
}

const WHOSE: Whose = Whose {
    revision: 4,
    back: Some(2),
    made_at: Timestamp(5),
};

fn decide_with(
    batch: &Batch,
    failed: Vec<Failed>,
    decisions: &[Decision],
    progress: &Progress,
    is_short: bool,
) -> Effects {
    let verdict = Verdict {
        outputs: Outputs::default(),
        failed,
        ..Verdict::default()
    };
    let settling = Settling {
        processor: "p",
        revision: 4,
        module: "digest",
        spec: &spec(),
        input: &input(),
        batch,
        verdict: &verdict,
        places: &[],
        decisions,
        progress,
        is_short,
        word: Word::Counts,
        whose: WHOSE,
        same_handler: true,
        excuses: &|_| false,
        now: NOW,
    };
    settle(&settling, &mut fastrand::Rng::with_seed(1))
}

#[test]
fn what_succeeded_leaves_progress_behind_and_nothing_else() {
    let effects = decide(
        &batch(&["a", "b"], 0),
        Vec::new(),
        &[],
        &Progress::default(),
    );
    assert_eq!(effects.progress.next, Offset(12));
    assert_eq!(effects.progress.revision, 4);
    assert!(effects.progress.parked.is_empty());
    assert_eq!(effects.counts.ok, 2);
}

#[test]
fn a_retried_message_is_parked_and_one_of_its_key_behind_it_untried() {
    let failures = vec![
        failed(0, Cause::Retry, Some(50)),
        failed(2, Cause::Reject, None),
    ];
    let effects = decide(
        &batch(&["a", "b", "a"], 0),
        failures,
        &[],
        &Progress::default(),
    );
    let [front, behind] = &effects.progress.parked[..] else {
        panic!("{:?}", effects.progress)
    };
    assert_eq!(
        (front.offset, front.due, front.attempts),
        (Offset(10), Some(NOW.after(Duration::from_millis(50))), 1)
    );
    assert_eq!((front.first_failed_at, front.log.len()), (NOW, 1));
    assert_eq!(
        (behind.offset, behind.due, behind.attempts),
        (Offset(12), None, 0)
    );
    assert_eq!(front.ordering, behind.ordering);
    assert!(
        effects.dead_letters.is_empty(),
        "the reject behind a retry does not count"
    );
    let counts = (
        effects.counts.ok,
        effects.counts.failed,
        effects.counts.retries,
    );
    assert_eq!(counts, (1, 1, 1));
}

#[test]
fn a_dead_letter_does_not_hold_its_key_back() {
    let failures = vec![failed(0, Cause::Reject, None)];
    let effects = decide(&batch(&["a", "a"], 0), failures, &[], &Progress::default());
    assert!(effects.progress.parked.is_empty());
    assert_eq!((effects.counts.ok, effects.counts.dead_letters), (1, 1));
    assert_eq!(effects.dead_letters[0].message_count(), 1);
}

#[test]
fn the_last_attempt_ends_in_the_dead_letters_and_the_log_stays_short() {
    let mut progress = Progress {
        next: Offset(11),
        ..Progress::default()
    };
    progress.parked = vec![behind(Offset(10), None), behind(Offset(99), None)];
    let one = batch(&["a"], 1);
    for attempt in 1..RetryPolicy::default().attempts_max {
        let effects = decide(&one, vec![failed(0, Cause::Retry, Some(0))], &[], &progress);
        assert_eq!(effects.progress.parked[0].attempts, attempt);
        assert_eq!(effects.progress.parked[1].offset, Offset(99), "others stay");
        progress = effects.progress;
    }
    let effects = decide(&one, vec![failed(0, Cause::Retry, Some(0))], &[], &progress);
    assert_eq!(effects.progress.parked.len(), 1);
    assert_eq!(effects.counts.dead_letters, 1);
    let forever = [Decision::RetryAfter(Duration::from_millis(1))];
    for _ in 0..20 {
        let effects = decide(
            &one,
            vec![failed(0, Cause::Trap, None)],
            &forever,
            &progress,
        );
        progress = effects.progress;
    }
    let before = RetryPolicy::default().attempts_max - 1;
    assert_eq!(progress.parked[0].attempts, before + 20);
    assert_eq!(progress.parked[0].log.len(), ATTEMPT_LOG_MAX);
    assert!(Progress::decode(&progress.encode()).is_some());
}

#[test]
fn without_room_the_last_attempt_is_remembered_alone_and_says_what_is_left_out() {
    let one = batch(&["a"], 1);
    let retried = |progress: &Progress, is_short| {
        let failure = Failed {
            reason: "é".repeat(200),
            ..failed(0, Cause::Retry, Some(0))
        };
        decide_with(&one, vec![failure], &[], progress, is_short).progress
    };
    let mut progress = Progress {
        next: Offset(11),
        ..Progress::default()
    };
    progress.parked = vec![behind(Offset(10), None)];
    for _ in 0..3 {
        progress = retried(&progress, false);
    }
    assert_eq!(progress.parked[0].log.len(), 3);
    progress = retried(&progress, true);
    let [parked] = &progress.parked[..] else {
        panic!("{progress:?}");
    };
    assert_eq!((parked.attempts, parked.log.len()), (4, 1));
    let reason = &parked.log[0].reason;
    assert!(reason.contains("é… [3 earlier attempts"), "{reason}");
    assert!(reason.len() < 140, "{reason}");
    progress = retried(&progress, false);
    assert_eq!(progress.parked[0].log.len(), 2, "there is room again");
}

#[test]
fn a_dropped_message_is_told_and_gone() {
    let dropped = [Decision::Drop("noise".to_owned())];
    let failures = vec![failed(0, Cause::Retry, None)];
    let effects = decide(&batch(&["a"], 0), failures, &dropped, &Progress::default());
    assert_eq!(effects.dropped, [(Offset(10), "noise".to_owned())]);
    assert!(effects.progress.parked.is_empty());
    assert!(effects.dead_letters.is_empty());
}

#[test]
fn skipped_messages_are_parked_in_their_place() {
    let mut cut = batch(&["a", "b"], 0);
    cut.offsets = vec![Offset(10), Offset(12)];
    cut.next = Offset(14);
    cut.skipped = vec![behind(Offset(11), Some(1)), behind(Offset(13), Some(1))];
    let before = Progress {
        next: Offset(10),
        revision: 1,
        parked: vec![behind(Offset(3), Some(1))],
        ..Progress::default()
    };
    let effects = decide(&cut, vec![failed(1, Cause::Retry, None)], &[], &before);
    let offsets: Vec<u64> = effects.progress.parked.iter().map(|p| p.offset.0).collect();
    assert_eq!(offsets, [3, 11, 12, 13]);
    assert_eq!(effects.progress.next, Offset(14));
}

#[test]
fn outputs_of_one_partition_stand_in_one_batch_in_order() {
    let cut = batch(&["a", "b", "c"], 0);
    let answer = Answer {
        outcomes: vec![1, 1, 2],
        sources: vec![0, 0, 1],
        ..Answer::default()
    };
    let topics = crate::dispatch::live::OutputTopics {
        topics: Vec::new(),
        default: Some(0),
        takes_all: false,
    };
    let verdict = Verdict::of(answer, &cut.columns, &topics, 10).unwrap();
    let settling = Settling {
        processor: "p",
        revision: 1,
        module: "digest",
        spec: &spec(),
        input: &input(),
        batch: &cut,
        verdict: &verdict,
        places: &[2, 0, 2],
        decisions: &[],
        progress: &Progress::default(),
        is_short: false,
        word: Word::Counts,
        whose: WHOSE,
        same_handler: true,
        excuses: &|_| false,
        now: NOW,
    };
    let effects = settle(&settling, &mut fastrand::Rng::with_seed(1));
    let found: Vec<_> = effects
        .outputs
        .iter()
        .map(|(topic, partition, batch)| (*topic, *partition, batch.message_count()))
        .collect();
    assert_eq!(found, [(0, 2, 2), (0, 0, 1)]);
}

fn by_word(
    word: Word,
    failed: Vec<Failed>,
    decisions: &[Decision],
    progress: &Progress,
    retried: usize,
) -> Effects {
    let batch = batch(&["a", "b", "c", "d", "e", "f"], retried);
    let verdict = Verdict {
        outputs: Outputs::default(),
        failed,
        ..Verdict::default()
    };
    let settling = Settling {
        processor: "p",
        revision: 4,
        module: "digest",
        spec: &spec(),
        input: &input(),
        batch: &batch,
        verdict: &verdict,
        places: &[],
        decisions,
        progress,
        is_short: false,
        word,
        whose: WHOSE,
        same_handler: true,
        excuses: &|class| class == "usual",
        now: NOW,
    };
    settle(&settling, &mut fastrand::Rng::with_seed(1))
}

fn of_class(message: usize, class: &str) -> Failed {
    Failed {
        class: class.to_owned(),
        ..failed(message, Cause::Reject, None)
    }
}

#[test]
fn a_canary_gives_up_nothing_and_what_only_asks_for_a_retry_stays_its_own() {
    let failures = vec![
        failed(0, Cause::Reject, None),
        failed(1, Cause::Trap, None),
        failed(2, Cause::Retry, None),
        failed(3, Cause::Retry, None),
        of_class(4, "usual"),
    ];
    let decisions = [
        Decision::Policy,
        Decision::RetryAfter(Duration::from_secs(9)),
        Decision::Policy,
        Decision::Drop("noise".to_owned()),
        Decision::DeadLetter,
    ];
    let effects = by_word(
        Word::IsAskedAgain,
        failures,
        &decisions,
        &Progress::default(),
        0,
    );
    assert!(effects.given_up.is_empty() && effects.dropped.is_empty());
    let asked = effects.progress.parked.iter().map(|p| p.current_only);
    assert_eq!(asked.collect::<Vec<_>>(), [true, true, false, true, true]);
    let at_once = |parked: &Parked| parked.due == Some(NOW);
    assert!(
        effects
            .progress
            .parked
            .iter()
            .filter(|p| p.current_only)
            .all(at_once)
    );
    assert_eq!((effects.counts.asked_again, effects.counts.retries), (4, 1));
}

#[test]
fn a_revision_that_is_not_proven_gives_up_so_many_and_the_others_wait() {
    let failures: Vec<Failed> = (0..5).map(|m| of_class(m, "new")).collect();
    let effects = by_word(counts_for(2), failures, &[], &Progress::default(), 0);
    assert_eq!(
        (effects.given_up.clone(), effects.given_up_unproven),
        (vec![0, 1], 2)
    );
    let longest = Duration::from_millis(spec().retry.delay_max_ms);
    let longest = NOW.after(longest.clamp(HELD_DELAY_MIN, HELD_DELAY_MAX));
    let due: Vec<_> = effects.progress.parked.iter().map(|p| p.due).collect();
    assert_eq!(due, [Some(longest); 3]);
    let mut effects = effects;
    effects.count_unproven(4);
    effects.count_unproven(4);
    let counted = effects.progress.given_up.map(|g| (g.run, g.messages));
    assert_eq!(counted, Some((4, 4)));
    effects.count_unproven(9);
    let counted = effects.progress.given_up.map(|g| (g.run, g.messages));
    assert_eq!(counted, Some((9, 2)), "another count began");
}

#[test]
fn what_is_usual_and_what_the_host_ends_counts_against_nobody() {
    let failures = vec![of_class(0, "usual"), failed(1, Cause::GivenUp, None)];
    let effects = by_word(counts_for(0), failures, &[], &Progress::default(), 0);
    assert_eq!(
        (effects.given_up, effects.given_up_unproven),
        (vec![0, 1], 0)
    );
}

#[test]
fn attempts_of_other_revisions_count_for_nothing_and_a_first_failure_is_never_the_last() {
    let tried = |revision: u32, own_attempts: u32| Parked {
        due: Some(NOW),
        attempts: 50,
        revision,
        own_attempts,
        ..behind(Offset(10), Some(1))
    };
    let after = |parked: Parked, word: Word| {
        let before = Progress {
            next: Offset(11),
            parked: vec![parked],
            ..Progress::default()
        };
        by_word(word, vec![failed(0, Cause::Trap, None)], &[], &before, 1)
    };
    let other = after(tried(3, 50), Word::Counts);
    let parked = &other.progress.parked[0];
    assert_eq!(
        (parked.attempts, parked.revision, parked.own_attempts),
        (51, 4, 1)
    );
    assert!(after(tried(4, 8), Word::Counts).given_up.is_empty());
    assert_eq!(after(tried(4, 9), Word::Counts).given_up, [0]);
    // After these attempts, the handler would give the message up.
    let before = Progress {
        next: Offset(11),
        parked: vec![tried(3, 50)],
        ..Progress::default()
    };
    let failures = || vec![failed(0, Cause::Trap, None)];
    let decisions = [Decision::DeadLetter];
    let effects = by_word(counts_for(4), failures(), &decisions, &before, 1);
    assert!(effects.given_up.is_empty());
    let effects = by_word(Word::Counts, failures(), &decisions, &before, 1);
    assert_eq!(effects.given_up, [0], "a proven one's word counts");
}

fn with_attempt(revision: u32, at: Timestamp, class: &str) -> Parked {
    Parked {
        due: Some(NOW),
        attempts: 1,
        revision,
        own_attempts: 9,
        log: vec![Attempt {
            at,
            revision,
            class: class.to_owned(),
            reason: String::new(),
        }],
        ..behind(Offset(10), Some(1))
    }
}

fn before(parked: Parked) -> Progress {
    Progress {
        next: Offset(11),
        parked: vec![parked],
        ..Progress::default()
    }
}

#[test]
fn what_the_revision_to_go_back_to_had_failed_at_alike_counts_against_nobody() {
    for (by, class, given_up) in [(2, "new", 1), (2, "other", 0), (3, "new", 0)] {
        // This is the second attempt: a first failure is never final.
        let before = before(Parked {
            revision: 4,
            own_attempts: 1,
            ..with_attempt(by, NOW, class)
        });
        let effects = by_word(counts_for(0), vec![of_class(0, "new")], &[], &before, 1);
        assert_eq!(effects.given_up.len(), given_up, "{by} {class}");
        assert_eq!(effects.given_up_unproven, 0);
    }
}

#[test]
fn attempts_of_a_processor_that_was_deleted_count_for_nothing() {
    for (at, given_up) in [(Timestamp(4), 0), (Timestamp(5), 1)] {
        let before = before(with_attempt(4, at, "trap"));
        let failures = vec![failed(0, Cause::Trap, None)];
        let effects = by_word(Word::Counts, failures, &[], &before, 1);
        assert_eq!(effects.given_up.len(), given_up, "{at:?}");
    }
}

#[test]
fn what_the_handler_drops_counts_where_the_call_did_not_return() {
    let failures = vec![failed(0, Cause::Retry, None), failed(1, Cause::Trap, None)];
    let drops = [
        Decision::Drop("noise".to_owned()),
        Decision::Drop("noise".to_owned()),
    ];
    let none = Progress::default();
    let effects = by_word(counts_for(1), failures.clone(), &drops, &none, 0);
    assert_eq!((effects.dropped.len(), effects.given_up_unproven), (2, 1));
    let effects = by_word(counts_for(0), failures.clone(), &drops, &none, 0);
    assert_eq!((effects.dropped.len(), effects.given_up_unproven), (1, 0));
    assert_eq!(effects.progress.parked[0].held_since, Some(NOW));
    let effects = by_word(Word::Counts, failures, &drops, &none, 0);
    assert_eq!((effects.dropped.len(), effects.given_up_unproven), (2, 0));
}

#[test]
fn what_is_kept_from_being_given_up_waits_an_hour_at_the_most() {
    for (waited, given_up) in [(PROVEN_AFTER / 2, 0), (PROVEN_AFTER, 1)] {
        let held_since = Timestamp(NOW.0 - waited.as_millis() as u64);
        let before = before(Parked {
            held_since: Some(held_since),
            ..with_attempt(4, held_since, "new")
        });
        let effects = by_word(counts_for(0), vec![of_class(0, "new")], &[], &before, 1);
        assert_eq!(effects.given_up.len(), given_up);
        assert_eq!(
            effects.given_up_unproven, 0,
            "it is no more than was to be waited for"
        );
    }
}

#[test]
fn what_an_operator_has_accepted_is_given_up_beside_the_bound() {
    let left = Left {
        unproven: 1,
        accepted: 2,
    };
    let failures: Vec<Failed> = (0..5).map(|m| of_class(m, "new")).collect();
    let none = Progress::default();
    let effects = by_word(Word::CountsFor(left), failures, &[], &none, 0);
    assert_eq!(
        (effects.given_up, effects.given_up_unproven),
        (vec![0, 1, 2], 1)
    );
    // An operator's acceptance does not cover dropped messages.
    let failures: Vec<Failed> = (0..3).map(|m| failed(m, Cause::Trap, None)).collect();
    let drops = vec![Decision::Drop("noise".to_owned()); 3];
    let effects = by_word(Word::CountsFor(left), failures, &drops, &none, 0);
    assert_eq!((effects.dropped.len(), effects.given_up_unproven), (1, 1));
}

#[test]
fn no_decisions_of_an_error_handler_break_a_batch() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..5_000 {
        let failures: Vec<Failed> = (0..4)
            .map(|message| failed(message, Cause::Retry, None))
            .collect();
        // Fewer than failures, as many, or more; with any delay and any reason.
        let decisions: Vec<Decision> = (0..rng.usize(..7))
            .map(|_| match rng.u32(..5) {
                0 => Decision::RetryAfter(Duration::from_millis(rng.u64(..))),
                1 => Decision::RetryAfter(Duration::from_millis(u64::MAX >> rng.u32(..64))),
                2 => Decision::DeadLetter,
                3 => Decision::Drop("x\u{1b}\n".repeat(rng.usize(..3_000))),
                _ => Decision::Policy,
            })
            .collect();
        let batch = batch(&["a", "b", "a", "c"], 0);
        let effects = decide(&batch, failures, &decisions, &Progress::default());
        let kept = effects.progress.parked.len() + effects.given_up.len() + effects.dropped.len();
        assert_eq!(kept, 4, "each message has one fate");
    }
}
