//! Handwritten histories of delayed messages and of a schedule: the correct one passes, and each
//! falsification of it is found.

use millrace_tests::torture::checker::{Checker, Kind, Verdict};
use millrace_tests::torture::history::{Ages, DELAYED, Event, Fault, Rules, Seen, Tick, TopicRule};
use millrace_tests::torture::value::{self, Id};

/// When the story begins; a full second.
const BEGAN_MS: u64 = 1_795_000_000_000;

/// Three messages that are due after 900, 300 and 600 ms, and a schedule that creates one per
/// second.
struct Story {
    /// When the delayed messages are read, and their order in the partition.
    read_ms: u64,
    there: Vec<u64>,
    /// The messages that were there earlier, and are read at 400 ms.
    before: Vec<u64>,
    /// The second of each message of the schedule, and how many missed times it stands for.
    ticks: Vec<(u64, u64)>,
    /// When the fault occurs; the host is up again a second later.
    hit_ms: u64,
    /// Whether it starts again, or continues as after a full disk.
    starts: bool,
    /// Whether clients noted the time throughout.
    looks: bool,
    /// When the schedule is read for the last time.
    end_ms: u64,
}

impl Default for Story {
    fn default() -> Self {
        Self {
            read_ms: 1_000,
            there: vec![1, 2, 0],
            before: vec![1],
            // Down from 2,500 to 3,500.
            ticks: vec![(1, 0), (2, 0), (4, 1), (5, 0), (6, 0), (7, 0), (8, 0)],
            hit_ms: 2_500,
            starts: true,
            looks: true,
            end_ms: 8_500,
        }
    }
}

impl Story {
    fn judge(&self) -> Verdict {
        let mut checker = Checker::default();
        let mut events = self.beginning();
        events.push(clock(400));
        events.push(read(&self.before, false));
        self.look(&mut events, 400, self.hit_ms);
        events.extend([
            Event::Fault {
                kind: Fault::Kill,
                how: "as planned".to_owned(),
                forgets: false,
            },
            clock(self.hit_ms + 1_000),
        ]);
        events.extend(self.starts.then_some(Event::Started { after_ms: 1 }));
        self.look(&mut events, self.hit_ms + 1_000, self.end_ms);
        events.push(ticks(self.end_ms, &self.ticks, true));
        // The checker takes the time from the order of events, so the reading goes right after the
        // clock of its time.
        let at = events
            .iter()
            .position(|event| is_clock(event, self.read_ms));
        events.insert(
            at.map_or(events.len(), |at| at + 1),
            read(&self.there, true),
        );
        for event in events {
            checker.observe(&event);
        }
        checker.finish()
    }

    fn beginning(&self) -> Vec<Event> {
        let rule = TopicRule {
            name: "later".to_owned(),
            durable: true,
            produced: true,
            ages: Ages::Never,
            delays: true,
        };
        let due_ms = [900, 300, 600].map(|ms| BEGAN_MS + ms).to_vec();
        let mut events = vec![
            Event::Rules(Rules {
                seed: 0,
                topics: vec![rule],
                pipelines: Vec::new(),
                several: false,
            }),
            clock(0),
            Event::Started { after_ms: 1 },
            Event::Scheduled {
                every_ms: 1_000,
                since_ms: BEGAN_MS,
            },
            Event::Due {
                producer: 7,
                first: 0,
                due_ms,
            },
        ];
        for first in 0..3 {
            events.push(Event::Invoke {
                producer: 7,
                first,
                count: 1,
                topic: "later".to_owned(),
                once: true,
            });
            events.push(Event::Ok {
                producer: 7,
                first,
                placed: vec![(0, DELAYED)],
            });
        }
        events
    }

    fn look(&self, events: &mut Vec<Event>, from_ms: u64, until_ms: u64) {
        let step = if self.looks { 100 } else { 10_000 };
        let looks = (from_ms..until_ms).step_by(step).skip(1);
        events.extend(looks.map(clock));
        events.push(clock(until_ms));
    }

    fn is_found_as(&self, kind: Kind) {
        let verdict = self.judge();
        assert!(verdict.has(kind), "{kind:?}: {:?}", verdict.findings);
    }
}

fn clock(ms: u64) -> Event {
    Event::Clock {
        now_ms: BEGAN_MS + ms,
    }
}

fn is_clock(event: &Event, ms: u64) -> bool {
    matches!(event, Event::Clock { now_ms } if *now_ms >= BEGAN_MS + ms)
}

fn read(sequences: &[u64], last: bool) -> Event {
    let seen = |(offset, sequence): (u64, &u64)| {
        let value = value::make(Id::new(7, *sequence), 0, &mut fastrand::Rng::with_seed(1));
        Seen::new(offset, &value)
    };
    Event::Read {
        topic: "later".to_owned(),
        partition: 0,
        messages: (0..).zip(sequences).map(seen).collect(),
        last,
    }
}

fn ticks(asked_ms: u64, ticks: &[(u64, u64)], last: bool) -> Event {
    let tick = |(offset, &(second, missed)): (u64, &(u64, u64))| Tick {
        offset,
        due_ms: BEGAN_MS + second * 1_000,
        missed,
    };
    Event::Ticks {
        asked_ms: BEGAN_MS + asked_ms,
        ticks: (0..).zip(ticks).map(tick).collect(),
        last,
    }
}

#[test]
fn the_true_story_of_delays_and_a_schedule_passes() {
    let verdict = Story::default().judge();
    assert!(verdict.is_clean(), "{:?}", verdict.findings);
    let tally = verdict.tally;
    assert_eq!((tally.delayed, tally.ticks, tally.ticks_missed), (3, 7, 1));
}

#[test]
fn a_delayed_message_that_never_comes_is_found() {
    let there = vec![1, 2];
    let story = Story {
        there,
        ..Story::default()
    };
    story.is_found_as(Kind::Lost);
}

#[test]
fn a_delayed_message_that_comes_twice_is_found() {
    let there = vec![1, 2, 0, 2];
    let story = Story {
        there,
        ..Story::default()
    };
    story.is_found_as(Kind::Duplicated);
}

#[test]
fn a_delayed_message_before_its_time_is_found() {
    let story = Story {
        read_ms: 800,
        ..Story::default()
    };
    story.is_found_as(Kind::Early);
    let story = Story {
        before: vec![1, 2],
        ..Story::default()
    };
    story.is_found_as(Kind::Early);
}

#[test]
fn delayed_messages_out_of_the_order_of_their_times_are_found() {
    let story = Story {
        there: vec![1, 0, 2],
        ..Story::default()
    };
    story.is_found_as(Kind::Reordered);
}

#[test]
fn a_time_without_a_message_is_found() {
    for ticks in [
        vec![(1, 0), (2, 0), (4, 1), (6, 0), (7, 0), (8, 0)],
        vec![(2, 0), (4, 1), (5, 0), (6, 0), (7, 0), (8, 0)],
        vec![(1, 0), (2, 0), (4, 1)],
        Vec::new(),
    ] {
        let story = Story {
            ticks,
            ..Story::default()
        };
        story.is_found_as(Kind::Missing);
    }
}

#[test]
fn a_time_with_two_messages_is_found() {
    for ticks in [
        vec![
            (1, 0),
            (2, 0),
            (2, 0),
            (4, 1),
            (5, 0),
            (6, 0),
            (7, 0),
            (8, 0),
        ],
        vec![(1, 0), (2, 0), (4, 2), (5, 0), (6, 0), (7, 0), (8, 0)],
    ] {
        let story = Story {
            ticks,
            ..Story::default()
        };
        story.is_found_as(Kind::Twice);
    }
}

#[test]
fn a_message_before_its_time_by_a_schedule_is_found() {
    let mut ticks = Story::default().ticks;
    ticks.push((9, 0));
    let story = Story {
        ticks,
        ..Story::default()
    };
    story.is_found_as(Kind::Early);
}

#[test]
fn a_time_that_is_missed_while_the_host_is_up_is_found_unless_the_machine_stood_still() {
    let story = |looks| Story {
        ticks: vec![(1, 0), (2, 0), (8, 5)],
        looks,
        ..Story::default()
    };
    story(true).is_found_as(Kind::Missing);
    let verdict = story(false).judge();
    assert!(verdict.is_clean(), "{:?}", verdict.findings);
}

#[test]
fn how_late_a_schedule_is_says_nothing_after_a_full_disk() {
    let story = |starts| Story {
        ticks: vec![(1, 0), (2, 0)],
        starts,
        ..Story::default()
    };
    story(true).is_found_as(Kind::Missing);
    let verdict = story(false).judge();
    assert!(verdict.is_clean(), "{:?}", verdict.findings);
}

#[test]
fn what_a_schedule_made_stays_as_it_is() {
    let mut checker = Checker::default();
    let mut events = Story::default().beginning();
    events.extend([
        clock(2_000),
        ticks(2_000, &[(1, 0), (2, 0)], false),
        ticks(2_000, &[(1, 0), (2, 1)], false),
        ticks(2_000, &[(1, 0)], true),
        read(&[1, 2, 0], true),
    ]);
    for event in events {
        checker.observe(&event);
    }
    let verdict = checker.finish();
    for kind in [Kind::Divergent, Kind::Lost] {
        assert!(verdict.has(kind), "{kind:?}: {:?}", verdict.findings);
    }
}
