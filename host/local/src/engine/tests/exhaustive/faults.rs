//! Faults of single operations, at every operation: errors, full disks, failing syncs. Also disks
//! that lie, which the checks must detect; otherwise they would prove nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_log::sim::{Effect, Fault, Loss, OperationKind};

use super::model::Step;
use super::recover::Worker;
use super::run::{
    Bug, Run, options, paged, run, run_bent, run_lying, run_paged, run_until_failure,
};
use super::{explore, life_scripts, paged_scripts, scripts, stateful};
use crate::LocalOptions;

/// Every operation of the script fails once; in a second run, so do all operations after it.
fn every_operation_meets(effect: &Effect, kind: Option<OperationKind>, script: &[Step]) -> u64 {
    every_operation_of(effect, kind, script, &options())
}

fn every_operation_of(
    effect: &Effect,
    kind: Option<OperationKind>,
    script: &[Step],
    options: &LocalOptions,
) -> u64 {
    let mut met = 0;
    for for_ever in [false, true] {
        for place in 0.. {
            let mut fault = Fault::new(effect.clone()).after(place);
            fault = kind.into_iter().fold(fault, Fault::on);
            fault = if for_ever { fault.for_ever() } else { fault };
            let ended = run_until_failure(script, fault, options.clone());
            if !ended.disk.is_fault_met() {
                break;
            }
            met += 1;
            let what = format!(
                "{effect:?} at {place} ({kind:?}, {for_ever}): {:?}",
                ended.failed
            );
            if matches!(effect, Effect::Full) {
                assert!(ended.failed.is_none(), "a full disk is no failure: {what}");
            }
            let seen = Default::default();
            let mut worker = Worker::new(&ended.run, &seen);
            // Only the process ended: reads may still show data that the disk never had.
            let home = worker.home().to_owned();
            let live = ended.run.points[0].moved(&ended.run.dir, &home);
            worker.explore(&live, place, &what);
            for loss in [Loss::NAMED[1], Loss::random(place * 3 + 1)] {
                let (remains, _) = ended.run.points[0].lose(loss, &ended.run.dir, &home);
                worker.explore(&remains, place + 5, &format!("{what}, {loss:?}"));
            }
            drop(ended.home);
        }
    }
    met
}

fn script() -> Vec<Step> {
    scripts::faulty()
}

#[test]
fn exhaustive_errors_of_writes_and_syncs_lose_nothing_that_was_acknowledged() {
    use OperationKind::{Create, CreateDir, Preallocate, Rename, SetLength, Sync, SyncDir, Write};
    let mut met = every_operation_meets(&Effect::Short, None, &script());
    met += every_operation_meets(&Effect::DropPages, None, &script());
    for kind in [
        Create,
        CreateDir,
        Preallocate,
        Rename,
        SetLength,
        Sync,
        SyncDir,
        Write,
    ] {
        met += every_operation_meets(&Effect::Fail, Some(kind), &script());
    }
    println!("{met} errors met");
    assert!(met > 200, "{met}");
}

#[test]
fn exhaustive_errors_of_reads_lose_nothing_that_was_acknowledged() {
    use OperationKind::{Length, List, Map, Open, Read};
    let mut met = 0;
    for kind in [Length, List, Map, Open, Read] {
        met += every_operation_meets(&Effect::Fail, Some(kind), &script());
    }
    println!("{met} errors met");
    assert!(met > 20, "{met}");
}

#[test]
fn exhaustive_errors_while_messages_are_removed_lose_nothing_that_is_kept() {
    use OperationKind::{Create, Map, Open, Read, Remove, Rename, SetLength, Sync, SyncDir, Write};
    let script = life_scripts::faulty();
    let mut met = every_operation_meets(&Effect::Full, None, &script);
    for kind in [
        Create, Map, Open, Read, Remove, Rename, SetLength, Sync, SyncDir, Write,
    ] {
        met += every_operation_meets(&Effect::Fail, Some(kind), &script);
    }
    println!("{met} errors met");
    assert!(met > 200, "{met}");
}

#[test]
fn exhaustive_full_disks_refuse_and_go_on_by_themselves() {
    let met = every_operation_meets(&Effect::Full, None, &script());
    println!("{met} full disks met");
    assert!(met > 100, "{met}");
}

#[test]
fn exhaustive_errors_and_full_disks_leave_state_in_files_as_it_was() {
    use OperationKind::{
        Create, CreateDir, Length, List, Open, Read, Remove, Sync, SyncDir, Write,
    };
    let (script, options) = (paged_scripts::faulty(), paged());
    let mut met = every_operation_of(&Effect::Full, None, &script, &options);
    met += every_operation_of(&Effect::Short, None, &script, &options);
    for kind in [
        Create, CreateDir, Length, List, Open, Read, Remove, Sync, SyncDir, Write,
    ] {
        met += every_operation_of(&Effect::Fail, Some(kind), &script, &options);
    }
    println!("{met} errors met");
    assert!(met > 200, "{met}");
}

#[test]
fn exhaustive_checks_find_out_when_state_in_files_is_not_durable_that_was_said_to_be() {
    use OperationKind::{Sync, SyncDir};
    let script = paged_scripts::faulty();
    for kind in [Sync, SyncDir] {
        let lie = Fault::new(Effect::Lie).on(kind).at_path("state").for_ever();
        let run = run_lying("on a disk that lies", &script, &[lie], paged());
        assert!(finds_fault_with(&run), "{kind:?}");
    }
}

#[test]
fn exhaustive_checks_find_out_when_a_checkpoint_loses_state_in_files() {
    let script = paged_scripts::faulty();
    for loss in [
        "DELETE FROM state_runs WHERE number > 1",
        "DELETE FROM state_runs; DELETE FROM state_tables",
    ] {
        let mut run = run_paged("a checkpoint that loses", &script);
        run.change_checkpoints(loss);
        assert!(finds_fault_with(&run), "{loss}");
    }
}

/// Whether the checks detect that the disk lied while the script ran.
fn is_caught(script: &[Step], fault: Fault) -> bool {
    // The engine itself may also detect it when it opens its files again.
    let explored = catch_unwind(AssertUnwindSafe(|| {
        explore(&run("on a disk that lies", script, &[fault]), 2)
    }));
    explored.is_err()
}

#[test]
fn exhaustive_checks_find_out_when_something_is_not_durable_that_was_said_to_be() {
    use OperationKind::{Sync, SyncDir};
    let lies = |kind, path: &str| Fault::new(Effect::Lie).on(kind).at_path(path).for_ever();
    let scripts = scripts::all();
    let script = |name: &str| {
        &scripts
            .iter()
            .find(|(n, _)| *n == name)
            .expect("a script")
            .1
    };
    let append = script("append to many partitions, durable and not");
    let modules = script("modules");
    let compaction = script("compaction");
    for (script, fault) in [
        (append, lies(Sync, "journal")),
        (append, lies(SyncDir, "journal")),
        (append, lies(Sync, "topics")),
        (append, lies(SyncDir, "topics/1")),
        (append, lies(SyncDir, "topics")),
        (modules, lies(Sync, "modules")),
        (modules, lies(SyncDir, "modules")),
        (compaction, lies(Sync, "unfinished")),
        (
            append,
            Fault::new(Effect::LoseWrite).at_path("journal").after(6),
        ),
        (
            append,
            Fault::new(Effect::LoseWrite).at_path("topics").after(2),
        ),
        (
            append,
            Fault::new(Effect::Misdirect {
                path: None,
                at: 9_000,
            })
            .at_path("journal")
            .after(6),
        ),
    ] {
        assert!(is_caught(script, fault.clone()), "{fault:?}");
    }
}

/// Whether the checks detect an error that was planted in a run.
fn finds_fault_with(run: &Run) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore(run, 2))).is_err()
}

#[test]
fn exhaustive_checks_find_out_when_state_and_progress_are_not_of_one_transaction() {
    let (name, script) = &stateful::all()[0];
    for bug in [Bug::StateFirst, Bug::StateLast] {
        let run = run_bent(name, script, &[], bug);
        assert!(finds_fault_with(&run), "{bug:?}");
    }
}

#[test]
fn exhaustive_checks_find_out_when_a_checkpoint_loses_state() {
    let (name, script) = &stateful::all()[0];
    for loss in [
        // All rows; rows that were rewritten; rows of one group.
        "DELETE FROM state",
        "DELETE FROM state WHERE slot > 2",
        "DELETE FROM state WHERE name = 'audit'",
    ] {
        let mut run = run(name, script, &[]);
        run.change_checkpoints(loss);
        assert!(finds_fault_with(&run), "{loss}");
    }
}

#[test]
fn exhaustive_checks_complain_about_nothing_where_nothing_is_wrong() {
    assert!(!is_caught(
        &script(),
        Fault::new(Effect::Lie).at_path("nowhere")
    ));
}
