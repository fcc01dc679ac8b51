//! The short tortures that are part of every run of the tests; `docs/reliability.md` describes the
//! longer ones.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use millrace_tests::torture::history::{Copied, Fault, Step, Trial};
use millrace_tests::torture::hosts::{self, StoreKind};
use millrace_tests::torture::{Plan, run};

/// The binary under test, built by the same cargo run.
const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

const KILLS: u32 = 200;
const POWER_CUTS: u32 = 200;
const OTHERS: u32 = 4;

#[test]
fn through_kills_power_cuts_and_other_faults_nothing_acknowledged_is_lost_or_changed() {
    let count = |fault: Fault| match fault {
        Fault::Kill => KILLS,
        Fault::Power => POWER_CUTS,
        _ => OTHERS,
    };
    let report = run(&Plan {
        binary: PathBuf::from(MILLRACE),
        seed: fastrand::u64(..),
        faults: Fault::ALL.map(|fault| (fault, count(fault))).to_vec(),
        faults_per_world: 25,
        worlds_at_once: 4,
        keep: std::env::temp_dir().join("torture-kept"),
    });
    // Not by a macro: the output of macros is shown only for failing tests, and what was skipped
    // must be seen.
    let shown = writeln!(std::io::stderr(), "{report}");
    shown.expect("stderr takes it");
    assert!(
        report.is_clean(),
        "see the findings above; their histories are kept"
    );
    // One of these worlds breaks mediums, and another world replaces it if its file system is lost
    // with them.
    assert!(report.lost_file_systems.len() <= 2);
    let removed = report.tally.removed;
    assert!(removed > 1_000, "only {removed} messages were removed");
    for fault in Fault::ALL {
        let skipped = report.skipped.iter().any(|(skipped, _)| *skipped == fault);
        let (done, asked) = (report.count(fault), u64::from(count(fault)));
        assert!(
            skipped || done >= asked,
            "only {done} of {asked}: {}",
            fault.word()
        );
    }
    assert!(
        report.count(Fault::Kill) >= 200,
        "kills need nothing and are never skipped"
    );
    for step in Step::ALL {
        let met = report.tally.met(step);
        assert!(met > 0, "no fault {}", step.words());
    }
    let tally = &report.tally;
    let judged = tally.copied(Copied::Judged);
    assert!(judged > 10, "only {judged} backups were judged");
    assert!(tally.delayed > 0 && tally.ticks > 0);
    assert!(tally.trials.contains_key(&Trial::Begun));
}

/// Faults of three hosts on one store in each run of the tests.
const FAULTS_OF_SEVERAL: u32 = 50;

#[test]
fn through_faults_of_hosts_and_their_database_each_message_is_processed_once() {
    endure(StoreKind::Postgres);
}

#[test]
fn through_faults_of_hosts_and_nats_servers_each_message_is_processed_once() {
    endure(StoreKind::Jetstream);
}

fn endure(store: StoreKind) {
    let kinds = store.faults();
    let report = hosts::run(&hosts::Plan {
        binary: PathBuf::from(MILLRACE),
        store,
        hosts: 3,
        seed: fastrand::u64(..),
        faults: hosts::mixture(FAULTS_OF_SEVERAL, &kinds),
        faults_per_world: 20,
        worlds_at_once: 3,
        keep: std::env::temp_dir().join("torture-kept"),
    });
    let shown = writeln!(std::io::stderr(), "{report}");
    shown.expect("stderr takes it");
    assert!(
        report.is_clean(),
        "see the findings above; their histories are kept"
    );
    let is_skipped = |fault| report.skipped.iter().any(|(skipped, _)| *skipped == fault);
    for fault in kinds {
        let done = report.tally.faults.get(&fault).copied().unwrap_or(0);
        assert!(done > 0 || is_skipped(fault), "no {}", fault.word());
    }
    // Without a store there is nothing to test.
    let is_there = !is_skipped(Fault::StoreKill);
    assert!(!is_there || report.faults() >= u64::from(FAULTS_OF_SEVERAL) - 5);
    let tally = &report.tally;
    assert!(!is_there || tally.delayed > 0 && tally.ticks > 0 && tally.redriven > 0);
}
