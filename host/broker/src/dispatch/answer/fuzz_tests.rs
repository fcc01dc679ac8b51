//! Answers of any shape: sound ones with many lies at once, and columns of anything. Whatever passes the checks can be used without a
//! panic and within the bounds. `MILLRACE_FUZZ_SECONDS` makes it go on for longer, from a seed of its own.

use std::time::{Duration, Instant};

use fastrand::Rng;
use millrace_model::bounds::{ANSWER_OUTPUT_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX};
use millrace_model::columns::Detail;

use super::tests::{batch, sound, topics};
use super::*;

/// Outputs that an answer may have here.
const OUTPUTS_MAX: usize = 10;

/// Runs in an ordinary test.
const RUNS: u64 = 40_000;

#[test]
fn no_answer_of_a_component_breaks_what_uses_it() {
    let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok();
    let time = seconds.and_then(|seconds| seconds.parse().ok());
    let time = time.map(Duration::from_secs);
    let (start, seed) = (Instant::now(), time.map_or(7, |_| fastrand::u64(..)));
    let mut rng = Rng::with_seed(seed);
    let (mut runs, mut taken) = (0_u64, 0_u64);
    let goes_on = |runs: u64| time.map_or(runs < RUNS, |time| start.elapsed() < time);
    while goes_on(runs) {
        let answer = any_answer(&mut rng);
        // A panic prints it.
        let shown = Shown(&answer, seed, runs);
        taken += u64::from(used(answer.clone(), rng.bool()));
        drop(shown);
        runs += 1;
    }
    println!("{runs} answers from seed {seed}, {taken} of them taken");
    assert!(
        taken > runs / 1_000,
        "only {taken} of {runs} passed the checks"
    );
}

/// Says which answer it was, if the test panics.
struct Shown<'a>(&'a Answer, u64, u64);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}, run {}: {:?}", self.1, self.2, self.0);
        }
    }
}

/// Uses everything of an answer that passes the checks; whether it did.
fn used(answer: Answer, has_default: bool) -> bool {
    let (batch, topics) = (batch(), topics(has_default));
    let Ok(mut verdict) = Verdict::of(answer, &batch, &topics, OUTPUTS_MAX) else {
        return false;
    };
    let failed = |failed: &Failed| failed.message < batch.len() && !failed.class.is_empty();
    assert!(verdict.failed.iter().all(failed), "{:?}", verdict.failed);
    assert!(verdict.failed.is_sorted_by_key(|failed| failed.message));
    let outputs = &mut verdict.outputs;
    assert!(outputs.len() <= OUTPUTS_MAX && outputs.byte_count() <= ANSWER_OUTPUT_BYTES_MAX);
    let is_in_time = outputs.check_times(&batch, Timestamp(1_000)).is_ok();
    let mut columns = ColumnBatch::default();
    let mut builder = BatchBuilder::with_capacity(0);
    for output in 0..outputs.len() {
        assert!(outputs.source(output) < batch.len());
        let topic = outputs.topic(output);
        assert!((topic as usize) < topics.topics.len());
        let partitions = topics.partitions(topic);
        assert!(
            outputs
                .partition(output)
                .is_none_or(|partition| partition < partitions)
        );
        let bytes = [outputs.key(output, &batch), outputs.value(output, &batch)];
        let bytes: usize = bytes.iter().flatten().map(|part| part.len()).sum();
        assert!(bytes <= MESSAGE_BYTES_MAX);
        let headers = outputs
            .own_headers(output, &batch)
            .map_or(0, Iterator::count);
        assert!(headers <= MESSAGE_HEADERS_MAX);
        let _ = outputs.topic_named(output);
        if is_in_time {
            outputs.show(output, &batch, &mut columns);
            outputs.write(output, &batch, &mut builder);
        }
    }
    if is_in_time && outputs.len() > 0 {
        let written = builder.finish().expect("what was checked can be stored");
        let records = written.records().expect("and read again");
        let read = records.map(|view| {
            let view = view.expect("each of it");
            view.to_message(written.bytes()).expect("whole")
        });
        assert_eq!(read.count(), outputs.len());
        assert_eq!(columns.len(), outputs.len());
    }
    true
}

/// A sound answer with lies, or one that is made of nothing but numbers.
fn any_answer(rng: &mut Rng) -> Answer {
    let mut answer = match rng.u32(..4) {
        0 => Answer::default(),
        1 => passing(),
        _ => sound(),
    };
    for _ in 0..rng.u32(..5) {
        lie(&mut answer, rng);
    }
    answer
}

/// Every message is passed on.
fn passing() -> Answer {
    Answer {
        outcomes: vec![1; 3],
        sources: vec![0, 1, 2],
        ..Answer::default()
    }
}

fn lie(answer: &mut Answer, rng: &mut Rng) {
    match rng.u32(..12) {
        0 => changed(&mut answer.outcomes, rng, |rng| rng.u8(..6)),
        1 => changed(&mut answer.data, rng, |rng| rng.u8(..)),
        2 => changed(&mut answer.sources, rng, |rng| rng.u32(..4)),
        3 => changed(&mut answer.topics, rng, number),
        4 => changed(&mut answer.partitions, rng, number),
        5 => changed(&mut answer.keys, rng, number),
        6 => changed(&mut answer.values, rng, number),
        7 => changed(&mut answer.header_ends, rng, number),
        8 => changed(&mut answer.headers, rng, number),
        9 => changed(&mut answer.times, rng, time_like),
        10 => changed(&mut answer.details, rng, detail),
        _ => changed(&mut answer.topic_names, rng, |rng| {
            let names = ["out", "other", "nowhere", "", "out\0", "__millrace"];
            names[rng.usize(..names.len())].to_owned()
        }),
    }
}

/// One entry more, less, or another one, or another column altogether.
fn changed<T: Clone>(column: &mut Vec<T>, rng: &mut Rng, any: impl Fn(&mut Rng) -> T) {
    match rng.u32(..6) {
        0 => column.push(any(rng)),
        1 => drop(column.pop()),
        2 => column.clear(),
        3 => *column = (0..rng.usize(..12)).map(|_| any(rng)).collect(),
        4 => *column = vec![any(rng); rng.usize(..9)],
        _ => {
            if !column.is_empty() {
                let at = rng.usize(..column.len());
                column[at] = any(rng);
            }
        }
    }
}

fn number(rng: &mut Rng) -> u32 {
    match rng.u32(..6) {
        0 => rng.u32(..4),
        1 => rng.u32(..12),
        2 => rng.u32(30..90),
        3 => NONE - rng.u32(..3),
        4 => 1 << rng.u32(..32),
        _ => rng.u32(..),
    }
}

fn time_like(rng: &mut Rng) -> u64 {
    match rng.u32(..4) {
        0 => NO_TIME,
        1 => rng.u64(..2_000),
        2 => 1 << rng.u32(..64),
        _ => rng.u64(..),
    }
}

fn detail(rng: &mut Rng) -> Detail {
    let words = ["", "busy", "host-died", "given-up", "h\u{e4}\n\u{1b}[31m"];
    let long = rng.u32(..20) == 0;
    Detail {
        message: rng.u32(..5),
        after_ms: rng.bool().then(|| time_like(rng)),
        class: words[rng.usize(..words.len())].repeat(if long { 1_000 } else { 1 }),
        reason: words[rng.usize(..words.len())].to_owned(),
    }
}
