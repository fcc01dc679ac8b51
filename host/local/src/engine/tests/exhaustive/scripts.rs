//! The workloads whose every operation is a crash point.

use fastrand::Rng;
use millrace_engine::EntryKind;
use millrace_model::Durability::{Durable, Os};

use super::model::{GROUPS, PRODUCERS, Step};
use super::stateful::{Change, Writes};
use super::{life_scripts, stateful};

/// All scripts, by name.
pub(super) fn all() -> Vec<(&'static str, Vec<Step>)> {
    let mut all = vec![
        ("append to many partitions, durable and not", append()),
        ("more partitions than are synced singly", wide()),
        ("segments roll", roll()),
        ("topics come and go", topics()),
        ("progress with outputs", progress()),
        ("the catalogue", catalogue()),
        ("checkpoints and the journal's files", checkpoints()),
        ("modules", modules()),
        ("restarts", restarts()),
    ];
    all.extend(life_scripts::all());
    all
}

fn to(topic: &'static str, partition: u32, bytes: usize) -> Step {
    Step::Append(vec![(topic, partition)], bytes)
}

fn append() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 4, Durable), Step::Create("o", 4, Os)];
    for n in 0..8 {
        script.push(to("o", n % 4, 300));
        script.push(Step::Append(
            vec![("o", n % 3), ("d", n % 4), ("o", n % 3)],
            40,
        ));
        script.push(to("d", (n + 1) % 4, 900));
        if n % 3 == 2 {
            script.push(Step::Flush);
        }
    }
    script.push(Step::Checkpoint);
    script.push(to("o", 0, 10));
    script
}

fn wide() -> Vec<Step> {
    let all: Vec<_> = (0..30).map(|n| ("w", n)).collect();
    vec![
        Step::Create("w", 30, Os),
        Step::Append(all.clone(), 60),
        Step::Checkpoint,
        Step::Append(all[..26].to_vec(), 300),
        Step::Flush,
        Step::Append(all[2..].to_vec(), 10),
        Step::Checkpoint,
        to("w", 29, 10),
        Step::Checkpoint,
    ]
}

fn roll() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 1, Durable), Step::Create("o", 1, Os)];
    for n in 0..14 {
        script.push(to(if n % 2 == 0 { "d" } else { "o" }, 0, 1_500));
        match n % 5 {
            2 => script.push(Step::Flush),
            4 => script.push(Step::Checkpoint),
            _ => {}
        }
    }
    script
}

fn topics() -> Vec<Step> {
    let mut script = Vec::new();
    for n in 0..3 {
        script.push(Step::Create("a", 2, Durable));
        script.push(Step::Create("b", 1, Os));
        script.push(to("a", 1, 200));
        script.push(to("b", 0, 200));
        script.push(Step::Claim(GROUPS[0], "a", 1));
        if n != 1 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Delete("a"));
        script.push(to("b", 0, 300));
        script.push(Step::Delete("b"));
    }
    script.push(Step::Create("a", 1, Durable));
    script.push(to("a", 0, 5));
    script
}

fn progress() -> Vec<Step> {
    let mut script = vec![
        Step::Create("in", 2, Durable),
        Step::Create("out", 2, Durable),
        Step::Create("loose", 1, Os),
        to("in", 0, 100),
        to("in", 1, 100),
    ];
    for n in 0..5 {
        script.push(Step::Claim(GROUPS[n % 2], "in", 0));
        script.push(Step::Claim(GROUPS[0], "in", 1));
        script.push(Step::Work(GROUPS[n % 2], ("in", 0), ("out", 1)));
        script.push(Step::Work(GROUPS[0], ("in", 1), ("loose", 0)));
        script.push(Step::Work(GROUPS[0], ("in", 1), ("out", 0)));
        if n == 2 {
            script.push(Step::Checkpoint);
        }
    }
    script
}

fn catalogue() -> Vec<Step> {
    let mut script = Vec::new();
    for n in 0..6 {
        script.push(Step::Entry(EntryKind::Processor, "p", Some(10 + n)));
        script.push(Step::Entry(EntryKind::Module, "m", Some(500 + n)));
        script.push(Step::Entry(EntryKind::Processor, "q", Some(n)));
        if n % 2 == 0 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Entry(EntryKind::Processor, "p", None));
    }
    script
}

/// More than fits into one journal file between two checkpoints, and more files than are kept.
fn checkpoints() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 2, Durable), Step::Create("o", 1, Os)];
    for n in 0..22 {
        script.push(to(if n % 3 == 0 { "d" } else { "o" }, 0, 3_500));
        if n % 7 == 6 {
            script.push(Step::Checkpoint);
            script.push(to("d", 1, 30));
        }
    }
    script.push(Step::Checkpoint);
    script.push(Step::Checkpoint);
    script.push(to("o", 0, 20));
    script
}

fn modules() -> Vec<Step> {
    let mut script = Vec::new();
    for n in 0..4 {
        script.push(Step::PutModule(n));
        script.push(Step::Entry(EntryKind::Module, "m", Some(n.into())));
        script.push(Step::PutModule(n));
        if n > 0 {
            script.push(Step::DeleteModule(n - 1));
        }
    }
    script.push(Step::PutModule(0));
    script.push(Step::Restart);
    script.push(Step::DeleteModule(0));
    script
}

fn restarts() -> Vec<Step> {
    let mut script = vec![Step::Create("d", 2, Durable), Step::Create("o", 2, Os)];
    for n in 0..3 {
        script.push(to("o", n % 2, 700));
        script.push(to("d", n % 2, 700));
        script.push(Step::Claim(GROUPS[0], "d", 0));
        script.push(Step::Work(GROUPS[0], ("d", 0), ("o", 1)));
        script.push(if n == 1 { Step::Reopen } else { Step::Restart });
    }
    script.push(to("o", 0, 10));
    script
}

fn counted() -> Step {
    let writes = Writes::new(vec![(1, Change::Add(1)), (2, Change::Set(700, None))]);
    Step::Count(GROUPS[0], ("d", 0), ("d", 1), ("d", 0), writes)
}

/// A little of everything, for runs with a fault at each operation.
pub(super) fn faulty() -> Vec<Step> {
    vec![
        Step::Create("d", 2, Durable),
        Step::Create("o", 1, Os),
        Step::PutModule(1),
        Step::Append(vec![("d", 0), ("o", 0)], 2_500),
        Step::Claim(GROUPS[0], "d", 0),
        Step::Flush,
        to("o", 0, 2_000),
        counted(),
        Step::Checkpoint,
        to("o", 0, 2_500),
        to("d", 1, 10),
        to("o", 0, 9_000),
        Step::Delete("o"),
        Step::Entry(EntryKind::Processor, "p", Some(5)),
        counted(),
        Step::Restart,
        to("d", 0, 10),
        Step::Reopen,
        to("d", 0, 10),
    ]
}

/// A random script from a seed: any valid steps, in any order.
pub(super) fn random(seed: u64) -> Vec<Step> {
    let mut random = Rng::with_seed(seed);
    let names = ["a", "b", "c"];
    let mut there: Vec<(&'static str, u32)> = Vec::new();
    let mut claims: Vec<(&'static str, (&'static str, u32))> = Vec::new();
    let mut script = vec![Step::Producer(Some(PRODUCERS[0]))];
    while script.len() < 45 {
        let absent = names
            .iter()
            .find(|n| there.iter().all(|(name, _)| name != *n));
        let pick = |random: &mut Rng, there: &[(&'static str, u32)]| {
            let (name, partitions) = there[random.usize(..there.len())];
            (name, random.u32(..partitions))
        };
        let choice = if there.is_empty() { 0 } else { random.u8(..37) };
        script.push(match (choice, absent) {
            (0 | 1, Some(name)) => {
                let partitions = random.u32(1..=3);
                there.push((name, partitions));
                Step::Create(name, partitions, if random.bool() { Durable } else { Os })
            }
            (2, _) if there.len() > 1 => {
                let (name, _) = there.swap_remove(random.usize(..there.len()));
                claims.retain(|(_, (topic, _))| *topic != name);
                Step::Delete(name)
            }
            (3 | 4, _) => {
                let (at, group) = (pick(&mut random, &there), GROUPS[random.usize(..2)]);
                claims.push((group, at));
                Step::Claim(group, at.0, at.1)
            }
            (5..=7, _) if !claims.is_empty() => {
                let (group, at) = claims[random.usize(..claims.len())];
                Step::Work(group, at, pick(&mut random, &there))
            }
            (8, _) => Step::Entry(
                EntryKind::Processor,
                "p",
                random.bool().then(|| random.usize(..50)),
            ),
            (9, _) => Step::PutModule(random.u8(..4)),
            (10, _) => Step::DeleteModule(random.u8(..4)),
            (11, _) => Step::Flush,
            (12, _) => Step::Checkpoint,
            (13, _) if random.bool() => Step::Restart,
            (13, _) => Step::Reopen,
            (14, _) => {
                let keys = (0..random.usize(1..5)).map(|_| {
                    let bytes = random.u8(..4) > 0;
                    (random.u8(..5), bytes.then(|| random.usize(..900)))
                });
                let keys = keys.collect();
                Step::Keyed(pick(&mut random, &there), keys)
            }
            (15 | 16, _) => {
                let to = (0..random.usize(1..3)).map(|_| pick(&mut random, &there));
                let to = to.collect();
                Step::Request(to, random.u8(..4), random.usize(..300))
            }
            (17 | 18, _) => {
                let to = pick(&mut random, &there);
                Step::Send(PRODUCERS[0], to, random.bool())
            }
            (19, _) => Step::Producer(random.choice([None, Some(PRODUCERS[0])]).flatten()),
            (20, _) => Step::Trim(pick(&mut random, &there), random.u64(..6)),
            (21 | 22, _) => Step::Clean(pick(&mut random, &there)),
            (23, _) => {
                let (name, _) = pick(&mut random, &there);
                life_scripts::random_change(&mut random, name)
            }
            (30..=33, _) if !claims.is_empty() => {
                let (group, at) = claims[random.usize(..claims.len())];
                let writes = stateful::random_writes(&mut random);
                Step::Count(group, at, pick(&mut random, &there), at, writes)
            }
            (34, _) => {
                let mut writes = stateful::random_writes(&mut random);
                writes.resets = random.bool();
                Step::Write(GROUPS[0], pick(&mut random, &there), writes)
            }
            (35, _) => Step::Renew(GROUPS[random.usize(..2)], pick(&mut random, &there).0),
            (36, _) => {
                let which = random.usize(..there.len());
                let (name, partitions) = &mut there[which];
                *partitions += random.u32(1..=2);
                life_scripts::grow(name, *partitions)
            }
            (24, _) => Step::Wait(random.u64(..30 * life_scripts::HOUR_MS)),
            _ => {
                let to = (0..random.usize(1..4))
                    .map(|_| pick(&mut random, &there))
                    .collect();
                Step::Append(to, random.usize(..3) * random.usize(..1_300))
            }
        });
    }
    script
}
