//! Scripts of the life of topics besides appends: repeated requests and batches, trims, retention,
//! compaction, changed settings.

use millrace_engine::TopicChange;
use millrace_model::Durability::{Durable, Os};
use millrace_model::TopicSettings;

use super::model::{GROUPS, PRODUCERS, Step};

pub(super) const HOUR_MS: u64 = 60 * 60 * 1000;

/// All scripts, by name.
pub(super) fn all() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        ("requests that are repeated", requests()),
        ("producers that send again", producers()),
        ("trims", trims()),
        ("retention by size", retention_by_size()),
        ("retention by age", retention_by_age()),
        ("compaction", compaction()),
        ("compaction of tombstones", tombstones()),
        ("deleted keys of a quiet topic", deleted_keys()),
        ("a topic deleted and made again", made_again()),
        ("topics that are given more partitions", grown()),
    ]
}

/// Random settings.
pub(super) fn random_change(random: &mut fastrand::Rng, topic: &'static str) -> Step {
    let mut now_and_then = |most: u64| {
        let is_set = random.u8(..3) == 0;
        is_set.then(|| random.u64(1..most))
    };
    let retention_bytes = now_and_then(12_000);
    let retention_ms = now_and_then(40 * HOUR_MS);
    let segment_ms = now_and_then(20 * HOUR_MS);
    let durability = random
        .choice([None, None, Some(Os), Some(Durable)])
        .flatten();
    let settings = TopicSettings {
        retention_bytes,
        retention_ms,
        segment_ms,
        compact: random.bool(),
        tombstone_ms: random.u64(..20 * HOUR_MS),
        ..TopicSettings::default()
    };
    Step::Change(
        topic,
        TopicChange {
            durability,
            settings: random.bool().then_some(settings),
            partitions: None,
        },
    )
}

fn set(topic: &'static str, change: impl FnOnce(&mut TopicSettings)) -> Step {
    let mut settings = TopicSettings::default();
    change(&mut settings);
    let settings = Some(settings);
    Step::Change(
        topic,
        TopicChange {
            settings,
            ..TopicChange::default()
        },
    )
}

/// A step that raises the topic's number of partitions.
pub(super) fn grow(topic: &'static str, partitions: u32) -> Step {
    let partitions = Some(partitions);
    Step::Change(
        topic,
        TopicChange {
            partitions,
            ..TopicChange::default()
        },
    )
}

fn to(topic: &'static str, partition: u32, bytes: usize) -> Step {
    Step::Append(vec![(topic, partition)], bytes)
}

fn request(topic: &'static str, key: u8, bytes: usize) -> Step {
    Step::Request(vec![(topic, 0)], key, bytes)
}

fn requests() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 2, Durable), Step::Create("o", 1, Os)];
    for n in 0..4 {
        script.push(request("o", n, 300));
        script.push(Step::Request(vec![("d", 0), ("o", 0), ("d", 1)], n, 40));
        script.push(request("o", n, 300));
        script.push(request("o", n / 2, 300));
        match n {
            0 => script.push(Step::Checkpoint),
            1 => script.push(Step::Restart),
            2 => script.push(Step::Wait(23 * HOUR_MS)),
            _ => script.push(Step::Reopen),
        }
        script.push(Step::Request(vec![("d", 0), ("o", 0), ("d", 1)], n, 40));
    }
    // The first requests are too old now, so they count as new.
    script.push(Step::Wait(2 * HOUR_MS));
    script.push(request("d", 0, 1_500));
    script.push(request("d", 0, 1_500));
    script.push(Step::Checkpoint);
    script.push(request("o", 1, 2_000));
    script.push(request("o", 1, 2_000));
    script
}

fn producers() -> Vec<Step> {
    let [first, second] = PRODUCERS;
    let mut script = vec![
        Step::Create("d", 2, Durable),
        Step::Create("o", 1, Os),
        Step::Producer(None),
        Step::Producer(Some(first)),
        Step::Producer(Some(second)),
    ];
    for n in 0..4 {
        script.push(Step::Send(first, ("d", n % 2), false));
        script.push(Step::Send(second, ("o", 0), false));
        script.push(Step::Send(first, ("d", n % 2), true));
        script.push(to("o", 0, 1_200));
        script.push(Step::Send(second, ("o", 0), true));
        match n {
            0 => script.push(Step::Restart),
            1 => script.push(Step::Producer(Some(first))),
            2 => script.push(Step::Checkpoint),
            _ => script.push(Step::Reopen),
        }
        script.push(Step::Send(second, ("o", 0), true));
        script.push(Step::Send(first, ("d", 0), true));
    }
    // More than are remembered.
    for _ in 0..6 {
        script.push(Step::Send(second, ("d", 1), false));
    }
    script.push(Step::Producer(None));
    script.push(Step::Checkpoint);
    script.push(Step::Send(second, ("d", 1), true));
    script
}

fn trims() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 1, Durable), Step::Create("o", 2, Os)];
    script.push(Step::Claim(GROUPS[0], "d", 0));
    for n in 0..6 {
        script.push(to("d", 0, 1_300));
        script.push(to("o", n % 2, 1_300));
        script.push(to("d", 0, 700));
        match n {
            1 => script.push(Step::Trim(("d", 0), 1)),
            2 => script.push(Step::Checkpoint),
            3 => {
                script.push(Step::Trim(("d", 0), 4));
                // Everything, not only what is in files.
                script.push(Step::Trim(("o", 0), 100));
                script.push(Step::Checkpoint);
            }
            4 => script.push(Step::Restart),
            _ => script.push(Step::Flush),
        }
    }
    script.push(Step::Work(GROUPS[0], ("d", 0), ("o", 1)));
    script.push(Step::Checkpoint);
    script.push(Step::Trim(("d", 0), 100));
    script.push(Step::Trim(("d", 0), 100));
    script.push(Step::Checkpoint);
    script.push(to("d", 0, 10));
    script.push(to("o", 0, 10));
    script
}

fn retention_by_size() -> Vec<Step> {
    let mut script = vec![
        Step::Create("d", 1, Durable),
        Step::Create("o", 1, Os),
        set("d", |settings| settings.retention_bytes = Some(7_000)),
        set("o", |settings| settings.retention_bytes = Some(5_000)),
    ];
    for n in 0..7 {
        for topic in ["d", "o"] {
            script.push(to(topic, 0, 1_400));
            script.push(to(topic, 0, 1_400));
        }
        if n % 2 == 0 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Clean(("d", 0)));
        script.push(Step::Clean(("o", 0)));
        if n == 4 {
            script.push(Step::Restart);
        }
    }
    script.push(Step::Checkpoint);
    script.push(set("d", |settings| settings.retention_bytes = None));
    script.push(to("d", 0, 4_000));
    script.push(Step::Checkpoint);
    script.push(Step::Clean(("d", 0)));
    script
}

fn retention_by_age() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 1, Durable), Step::Create("o", 1, Os)];
    for topic in ["d", "o"] {
        script.push(set(topic, |settings| {
            settings.retention_ms = Some(HOUR_MS);
            settings.segment_ms = Some(HOUR_MS / 2);
        }));
    }
    for n in 0..5 {
        script.push(to("d", 0, 500));
        script.push(Step::Keyed(("o", 0), vec![(n, Some(900)), (n, None)]));
        script.push(Step::Checkpoint);
        script.push(Step::Wait(HOUR_MS * 2 / 3));
        script.push(Step::Clean(("d", 0)));
        script.push(Step::Clean(("o", 0)));
        if n == 3 {
            script.push(Step::Restart);
        }
    }
    script.push(Step::Wait(9 * HOUR_MS));
    script.push(Step::Clean(("d", 0)));
    script.push(Step::Clean(("o", 0)));
    script.push(Step::Checkpoint);
    script.push(to("d", 0, 5));
    script
}

fn compaction() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 1, Durable), Step::Create("o", 1, Os)];
    for topic in ["d", "o"] {
        script.push(set(topic, |settings| settings.compact = true));
    }
    for n in 0..10 {
        for (topic, own) in [("d", 3), ("o", 2)] {
            let messages = vec![(n % own, Some(500)), (7, Some(40)), (n % 2, Some(200))];
            script.push(Step::Keyed((topic, 0), messages));
            script.push(Step::Keyed((topic, 0), vec![(n, Some(700))]));
        }
        if n % 3 == 2 {
            script.push(Step::Checkpoint);
            script.push(Step::Clean(("d", 0)));
            script.push(Step::Clean(("o", 0)));
        }
        match n {
            4 => script.push(Step::Restart),
            6 => script.push(Step::Trim(("d", 0), 4)),
            _ => {}
        }
    }
    // Without messages with keys.
    script.push(to("d", 0, 4_000));
    script.push(Step::Checkpoint);
    script.push(Step::Clean(("d", 0)));
    script.push(Step::Keyed(("d", 0), vec![(1, Some(5))]));
    script.push(Step::Checkpoint);
    script
}

fn tombstones() -> Vec<Step> {
    let mut script = vec![
        Step::Create("d", 1, Durable),
        set("d", |settings| {
            settings.compact = true;
            settings.tombstone_ms = HOUR_MS;
        }),
    ];
    for n in 0..8 {
        let key = n % 3;
        script.push(Step::Keyed(
            ("d", 0),
            vec![(key, Some(900)), (key + 3, Some(300))],
        ));
        script.push(Step::Keyed(("d", 0), vec![(5, Some(1_500))]));
        if n % 2 == 1 {
            script.push(Step::Keyed(("d", 0), vec![(key, None), (6, Some(10))]));
            script.push(Step::Checkpoint);
            script.push(Step::Clean(("d", 0)));
            script.push(Step::Wait(HOUR_MS * 2 / 3));
        }
        if n == 4 {
            script.push(Step::Restart);
        }
    }
    // Keys that are not written again: their tombstones are removed, and nothing reappears.
    for key in 0..3 {
        script.push(Step::Keyed(("d", 0), vec![(key, None)]));
    }
    for _ in 0..3 {
        script.push(Step::Keyed(("d", 0), vec![(5, Some(3_500))]));
        script.push(Step::Checkpoint);
        script.push(Step::Wait(2 * HOUR_MS));
        script.push(Step::Clean(("d", 0)));
    }
    script.push(Step::Checkpoint);
    script.push(Step::Keyed(("d", 0), vec![(0, Some(5))]));
    script
}

/// Small values whose removal does not shrink their segments, and no writes while their tombstones
/// grow old.
fn deleted_keys() -> Vec<Step> {
    let mut script = vec![
        Step::Create("d", 1, Durable),
        set("d", |settings| {
            settings.compact = true;
            settings.tombstone_ms = HOUR_MS;
        }),
        Step::Keyed(("d", 0), vec![(0, Some(0))]),
        Step::Keyed(("d", 0), vec![(1, Some(0)), (2, Some(1_500))]),
        Step::Keyed(("d", 0), vec![(3, Some(2_900))]),
        Step::Keyed(("d", 0), vec![(0, None)]),
        Step::Keyed(("d", 0), vec![(4, Some(2_000)), (1, None)]),
        Step::Checkpoint,
        Step::Clean(("d", 0)),
    ];
    for n in 0..4 {
        match n {
            1 => script.push(Step::Restart),
            2 => script.push(Step::Trim(("d", 0), 1)),
            _ => {}
        }
        script.push(Step::Wait(HOUR_MS * 3 / 2));
        // The first check sees that there are no writes, the second one ends the segment.
        script.push(Step::Clean(("d", 0)));
        script.push(Step::Clean(("d", 0)));
        script.push(Step::Checkpoint);
    }
    script.push(Step::Keyed(("d", 0), vec![(5, Some(10))]));
    script.push(Step::Restart);
    script
}

/// Nothing of a topic applies to its successor: no offset, no request, no producer's sequence, no
/// setting.
fn made_again() -> Vec<Step> {
    let [first, _] = PRODUCERS;
    let mut script = vec![Step::Producer(Some(first))];
    for n in 0..3 {
        let durability = if n == 1 { Os } else { Durable };
        script.push(Step::Create("t", 1, durability));
        script.push(set("t", |settings| settings.compact = n != 1));
        script.push(Step::Keyed(("t", 0), vec![(1, Some(1_500)), (2, None)]));
        script.push(request("t", 1, 2_000));
        script.push(request("t", 1, 2_000));
        script.push(Step::Send(first, ("t", 0), false));
        script.push(Step::Send(first, ("t", 0), true));
        script.push(Step::Keyed(("t", 0), vec![(1, Some(900))]));
        if n != 2 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Clean(("t", 0)));
        script.push(Step::Trim(("t", 0), 1));
        let change = TopicChange {
            durability: Some(Os),
            ..TopicChange::default()
        };
        script.push(Step::Change("t", change));
        script.push(to("t", 0, 100));
        if n == 0 {
            script.push(Step::Restart);
        }
        script.push(Step::Delete("t"));
    }
    script.push(Step::Create("t", 1, Durable));
    script.push(Step::Send(first, ("t", 0), false));
    script.push(request("t", 1, 20));
    script
}

/// New partitions are written, processed and rolled at once, before and after checkpoints; existing
/// ones continue where they were.
fn grown() -> Vec<Step> {
    let [first, _] = PRODUCERS;
    let mut script = vec![
        Step::Create("d", 1, Durable),
        Step::Create("o", 2, Os),
        Step::Producer(Some(first)),
        to("d", 0, 300),
        to("o", 1, 1_200),
        Step::Send(first, ("d", 0), false),
        request("d", 1, 300),
    ];
    for n in 0..4 {
        script.push(grow("d", 2 + n));
        script.push(grow("o", 3 + 2 * n));
        script.push(Step::Append(
            vec![("d", 1 + n), ("o", 1 + 2 * n), ("d", 0), ("o", 2 + 2 * n)],
            1_300,
        ));
        if n % 2 == 0 {
            script.push(Step::Flush);
        }
        script.push(to("o", 2 + 2 * n, 3_000));
        script.push(Step::Claim(GROUPS[0], "d", 1 + n));
        script.push(Step::Work(GROUPS[0], ("d", 1 + n), ("o", 0)));
        script.push(Step::Send(first, ("d", 1 + n), false));
        script.push(Step::Send(first, ("d", 1 + n), true));
        script.push(request("d", 1, 300));
        script.push(match n {
            0 => Step::Restart,
            1 => Step::Checkpoint,
            2 => Step::Reopen,
            _ => Step::Trim(("o", 2 + 2 * n), 1),
        });
    }
    script.push(Step::Delete("o"));
    script.push(Step::Create("o", 1, Durable));
    script.push(grow("o", 3));
    script.push(to("o", 2, 20));
    script
}

/// A little of everything, for runs with a fault at each operation.
pub(super) fn faulty() -> Vec<Step> {
    let [first, _] = PRODUCERS;
    vec![
        Step::Create("d", 1, Durable),
        set("d", |settings| settings.compact = true),
        Step::Keyed(("d", 0), vec![(1, Some(1_500)), (2, Some(1_500))]),
        Step::Keyed(("d", 0), vec![(1, Some(1_500)), (3, Some(900))]),
        Step::Keyed(("d", 0), vec![(2, Some(3_900))]),
        Step::Checkpoint,
        Step::Clean(("d", 0)),
        Step::Producer(Some(first)),
        Step::Send(first, ("d", 0), false),
        request("d", 1, 30),
        Step::Checkpoint,
        Step::Trim(("d", 0), 3),
        Step::Send(first, ("d", 0), true),
        request("d", 1, 30),
        Step::Checkpoint,
        Step::Restart,
        request("d", 1, 30),
        Step::Send(first, ("d", 0), true),
        grow("d", 2),
        Step::Keyed(("d", 1), vec![(1, Some(900))]),
        set("d", |settings| settings.retention_bytes = Some(1)),
        to("d", 0, 3_900),
        Step::Checkpoint,
        Step::Clean(("d", 0)),
        Step::Checkpoint,
        to("d", 0, 10),
    ]
}
