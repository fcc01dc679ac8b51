//! Handwritten histories of a counting processor whose dead letters are sent again: the correct one
//! passes, and each falsification of it is found.

use std::collections::BTreeMap;

use millrace_tests::torture::checker::{Checker, Kind, Verdict};
use millrace_tests::torture::history::{Ages, Event, Pipeline, Rules, Seen, TopicRule};
use millrace_tests::torture::value::{self, Id};

const KEYS: u64 = 2;

/// Four inputs. 0 and 1 are in the output; 2 is a dead letter; 3 was a dead letter, was sent again,
/// and is in the output.
struct Story {
    outputs: Vec<u64>,
    dead: Vec<u64>,
    standing: Vec<u64>,
    /// The counts of keys 0 and 1 in the state, after a start and at the end.
    before: [i64; 2],
    counts: [i64; 2],
}

impl Default for Story {
    fn default() -> Self {
        Self {
            outputs: vec![0, 1, 3],
            dead: vec![3, 2],
            standing: vec![2],
            before: [1, 1],
            counts: [1, 2],
        }
    }
}

impl Story {
    fn judge(&self) -> Verdict {
        let mut checker = Checker::default();
        let placed: Vec<(u32, u64)> = (0..4).map(|offset| (0, offset)).collect();
        for event in [
            Event::Rules(rules()),
            Event::Invoke {
                producer: 7,
                first: 0,
                count: 4,
                topic: "in".to_owned(),
                once: false,
            },
            Event::Ok {
                producer: 7,
                first: 0,
                placed,
            },
            state(self.before, false),
            read("in", &[0, 1, 2, 3]),
            read("out", &self.outputs),
            read("dead", &self.dead),
            state(self.counts, true),
            Event::Standing {
                processor: "count".to_owned(),
                letters: seen(&self.standing),
            },
        ] {
            checker.observe(&event);
        }
        checker.finish()
    }

    fn is_found_as(&self, kind: Kind) {
        let verdict = self.judge();
        assert!(verdict.has(kind), "{:?}", verdict.findings);
    }
}

fn rules() -> Rules {
    let rule = |name: &str| TopicRule {
        name: name.to_owned(),
        durable: true,
        produced: name == "in",
        ages: Ages::Never,
        delays: false,
    };
    Rules {
        seed: 0,
        topics: ["in", "out", "dead"].map(rule).to_vec(),
        pipelines: vec![Pipeline {
            processor: "count".to_owned(),
            input: "in".to_owned(),
            output: "out".to_owned(),
            dead_letters: "dead".to_owned(),
            keys: KEYS,
            counts: true,
            redrives: true,
        }],
        several: false,
    }
}

fn seen(sequences: &[u64]) -> Vec<Seen> {
    let seen = |(offset, sequence): (u64, &u64)| {
        let value = value::make(Id::new(7, *sequence), 0, &mut fastrand::Rng::with_seed(1));
        Seen::new(offset, &value)
    };
    (0..).zip(sequences).map(seen).collect()
}

fn read(topic: &str, sequences: &[u64]) -> Event {
    Event::Read {
        topic: topic.to_owned(),
        partition: 0,
        messages: seen(sequences),
        last: true,
    }
}

fn state(counts: [i64; 2], last: bool) -> Event {
    let counts = [("7/0", counts[0]), ("7/1", counts[1])];
    let counts = counts.map(|(key, count)| (key.to_owned(), count));
    Event::State {
        processor: "count".to_owned(),
        partition: 0,
        counts: BTreeMap::from(counts),
        last,
    }
}

#[test]
fn the_true_story_of_a_redrive_passes() {
    let verdict = Story::default().judge();
    assert!(verdict.is_clean(), "{:?}", verdict.findings);
    assert_eq!(verdict.tally.redriven, 1);
}

#[test]
fn state_that_counts_more_or_less_than_is_out_is_found() {
    for counts in [[1, 3], [1, 1], [2, 2]] {
        let story = Story {
            counts,
            ..Story::default()
        };
        story.is_found_as(Kind::Miscounted);
    }
}

#[test]
fn a_count_that_becomes_less_over_a_start_is_found() {
    let story = Story {
        before: [1, 3],
        ..Story::default()
    };
    story.is_found_as(Kind::WentBack);
}

#[test]
fn an_output_that_is_there_twice_or_not_at_all_is_found() {
    let twice = Story {
        outputs: vec![0, 1, 3, 1],
        counts: [1, 3],
        ..Story::default()
    };
    twice.is_found_as(Kind::Twice);
    let missing = Story {
        outputs: vec![0, 3],
        counts: [1, 1],
        before: [1, 0],
        ..Story::default()
    };
    missing.is_found_as(Kind::Missing);
}

#[test]
fn a_dead_letter_that_is_sent_again_and_goes_nowhere_is_found() {
    let nowhere = Story {
        standing: vec![],
        ..Story::default()
    };
    nowhere.is_found_as(Kind::Missing);
    let stays = Story {
        standing: vec![3, 2],
        ..Story::default()
    };
    stays.is_found_as(Kind::Twice);
}
