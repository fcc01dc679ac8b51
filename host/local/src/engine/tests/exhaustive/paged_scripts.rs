//! Scripts of state in files: with a checkpoint after every step, so that tables become paged
//! between two writes, and with everything that can happen to a paged table. They run with only
//! changes of state in memory.

use millrace_engine::EntryKind;
use millrace_model::Durability::{Durable, Os};

use super::life_scripts::HOUR_MS;
use super::model::{GROUPS, Step};
use super::stateful::{self, Change, Writes};

/// All scripts, by name. With more effort, also those of tables in memory; the others include the
/// same actions.
pub(super) fn all(effort: u64) -> Vec<(&'static str, Vec<Step>)> {
    let often = stateful::all().into_iter();
    let often = often.map(|(name, script)| (name, with_checkpoints(script)));
    let mut all: Vec<_> = often.collect();
    if effort > 1 {
        all.extend(stateful::all());
    }
    all.push(("a paged table that is emptied", emptied()));
    all.push(("a paged table of which everything is removed", removed()));
    all.push(("a paged table whose topic goes", gone()));
    all.push(("a paged table whose entries end", ends()));
    all
}

/// A little of everything, for runs with faults.
pub(super) fn faulty() -> Vec<Step> {
    use Change::{Add, Remove, Set};
    let [first, _] = GROUPS;
    let write = |changes| write(first, changes);
    vec![
        Step::Create("in", 1, Durable),
        write(vec![(1, Add(1)), (10, Set(40, None))]),
        Step::Checkpoint,
        write(vec![(1, Add(1)), (2, Add(1)), (10, Remove)]),
        Step::Checkpoint,
        empty(first, vec![(3, Add(1))]),
        Step::Checkpoint,
        write(vec![(3, Add(1)), (10, Set(700, Some(HOUR_MS)))]),
        Step::Restart,
        write(vec![(10, Remove)]),
        Step::Checkpoint,
    ]
}

fn with_checkpoints(script: Vec<Step>) -> Vec<Step> {
    let steps = script.into_iter();
    let steps = steps.flat_map(|step| match step {
        Step::Checkpoint | Step::Restart | Step::Reopen | Step::Wait(_) => vec![step],
        step => vec![step, Step::Checkpoint],
    });
    steps.collect()
}

fn write(group: &'static str, changes: Vec<(u8, Change)>) -> Step {
    Step::Write(group, ("in", 0), Writes::new(changes))
}

fn empty(group: &'static str, changes: Vec<(u8, Change)>) -> Step {
    let writes = Writes {
        resets: true,
        changes,
    };
    Step::Write(group, ("in", 0), writes)
}

/// A table is emptied in each state: just paged, with changes besides its runs, with several runs,
/// and when its processor is deleted.
fn emptied() -> Vec<Step> {
    use Change::{Add, Set};
    let [first, second] = GROUPS;
    let mut script = vec![Step::Create("in", 1, Durable)];
    let some = || vec![(1, Add(1)), (2, Add(2)), (10, Set(90, None))];
    for n in 0..4 {
        script.push(write(first, some()));
        script.push(write(second, some()));
        script.push(Step::Checkpoint);
        if n % 2 == 1 {
            script.push(write(first, vec![(2, Add(1)), (11, Set(5, Some(HOUR_MS)))]));
        }
        if n > 1 {
            script.push(Step::Checkpoint);
            script.push(write(first, vec![(3, Add(1))]));
        }
        match n {
            // There is no later write.
            0 => script.push(empty(first, Vec::new())),
            1 => script.push(empty(first, vec![(2, Add(1))])),
            2 => script.push(Step::Renew(first, "in")),
            _ => {
                script.push(empty(first, vec![(4, Add(1))]));
                script.push(empty(first, vec![(5, Add(1))]));
            }
        }
        if n % 2 == 0 {
            script.push(Step::Restart);
        }
        script.push(write(first, vec![(1, Add(5))]));
        script.push(Step::Checkpoint);
    }
    script
}

/// Keys are removed, added again, and removed until none is left.
fn removed() -> Vec<Step> {
    use Change::{Add, AddFor, Remove, Set};
    let [first, _] = GROUPS;
    let mut script = vec![Step::Create("in", 1, Durable)];
    for n in 0..2 {
        let several = (1..6).map(|key| (key, Add(key.into())));
        script.push(write(first, several.collect()));
        script.push(write(first, vec![(20, Set(300, Some(HOUR_MS)))]));
        script.push(Step::Checkpoint);
        script.push(write(first, vec![(1, Remove), (2, AddFor(1, HOUR_MS))]));
        script.push(Step::Checkpoint);
        script.push(write(first, vec![(1, Add(1)), (3, Remove), (9, Remove)]));
        script.push(Step::Checkpoint);
        if n == 0 {
            script.push(Step::Restart);
        }
        let all = [1, 2, 4, 5, 20].map(|key| (key, Remove));
        script.push(write(first, all.to_vec()));
        script.push(Step::Checkpoint);
        script.push(Step::Wait(HOUR_MS / 2));
        script.push(Step::Reopen);
    }
    script
}

/// Entries expire: entries in runs, entries that are not in runs yet, entries whose expiry was
/// moved, and entries that were removed and written again with the same expiry. They are removed by
/// writers, by the cleaner, and after a crash.
fn ends() -> Vec<Step> {
    use Change::{Add, AddFor, Remove, Set};
    let [first, _] = GROUPS;
    let hour = Some(HOUR_MS);
    let mut script = vec![Step::Create("in", 1, Durable)];
    for n in 0..3 {
        let numbers = (1..4).map(|key| (key, AddFor(1, HOUR_MS)));
        script.push(write(first, numbers.chain([(4, Add(1))]).collect()));
        let texts = (10..13).map(|key| (key, Set(20, hour)));
        script.push(write(first, texts.collect()));
        script.push(Step::Checkpoint);
        let moved = vec![
            (1, AddFor(1, 3 * HOUR_MS)),
            (10, Set(5, None)),
            (11, Remove),
        ];
        script.push(write(first, moved));
        if n == 1 {
            script.push(Step::Checkpoint);
        }
        script.push(write(first, vec![(11, Set(3, hour))]));
        if n > 0 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Wait(HOUR_MS));
        script.push(Step::Sweep);
        if n == 2 {
            script.push(Step::Checkpoint);
        }
        // Only their places remain.
        script.push(Step::Wait(2_000));
        script.push(Step::Sweep);
        script.push(Step::Checkpoint);
        if n < 2 {
            script.push(Step::Restart);
        }
        script.push(write(first, vec![(2, AddFor(1, HOUR_MS))]));
        script.push(Step::Wait(3 * HOUR_MS));
        script.push(write(first, vec![(4, Add(1))]));
        if n > 0 {
            script.push(Step::Checkpoint);
        }
    }
    script.push(Step::Reopen);
    script.push(Step::Sweep);
    script.push(Step::Checkpoint);
    script
}

/// A topic is deleted whose tables are paged or about to be; others stay.
fn gone() -> Vec<Step> {
    use Change::{Add, Set};
    let [first, second] = GROUPS;
    let mut script = vec![
        Step::Create("stays", 1, Os),
        Step::Write(first, ("stays", 0), Writes::new(vec![(1, Add(1))])),
    ];
    for n in 0..3 {
        script.push(Step::Create("in", 1, Durable));
        script.push(write(first, vec![(1, Add(1)), (10, Set(50, None))]));
        if n > 0 {
            script.push(Step::Checkpoint);
            script.push(write(second, vec![(1, Add(1))]));
            script.push(write(first, vec![(1, Add(1))]));
        }
        if n > 1 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Delete("in"));
        script.push(Step::Write(
            first,
            ("stays", 0),
            Writes::new(vec![(2, Add(1))]),
        ));
        match n {
            0 => script.push(Step::Restart),
            _ => script.push(Step::Checkpoint),
        }
    }
    script.push(Step::Entry(EntryKind::Processor, "p", Some(3)));
    script.push(Step::Restart);
    script
}
