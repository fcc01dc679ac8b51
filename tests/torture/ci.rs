//! The torture that every test run includes; `docs/reliability.md` has the longer one.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use millrace_tests::torture::history::{Copied, Fault, Step, Trial};
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
    // Without a macro: their output is shown only for failed tests, but what was skipped must be
    // visible.
    let shown = writeln!(std::io::stderr(), "{report}");
    shown.expect("stderr takes it");
    assert!(
        report.is_clean(),
        "see the findings above; their histories are kept"
    );
    // One world breaks media here; another one replaces it if its file system is lost with them.
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
