//! Checks the checker: with bugs planted around the engine, one at a time, each is found within a
//! few seeds, and the engine without them passes the same seeds. The bugs wrap the engine or its
//! disk; the product has no switch for them.
#![forbid(unsafe_code)]

mod bent_disk;
mod bent_engine;
mod counted;
mod life;
mod timed;

use bent_disk::DiskBug;
use bent_engine::EngineBug;
use life::Bugs;
use millrace_tests::torture::checker::Kind;

const SEEDS: u64 = 20;

/// Tries seeds until there is a finding of one of these kinds.
fn found(bugs: Bugs, kinds: &[Kind]) {
    for seed in 0..SEEDS {
        let verdict = life::live(seed, bugs);
        if let Some(finding) = verdict.findings.iter().find(|it| kinds.contains(&it.kind)) {
            eprintln!("{bugs:?}: found with seed {seed}: {finding}");
            return;
        }
        for finding in &verdict.findings {
            eprintln!("{bugs:?}: seed {seed} has another finding: {finding}");
        }
    }
    panic!("{bugs:?} was not found in {SEEDS} seeds");
}

fn found_on_disk(bug: DiskBug, kinds: &[Kind]) {
    let bugs = Bugs {
        disk: Some(bug),
        engine: None,
    };
    found(bugs, kinds);
}

fn found_in_engine(bug: EngineBug, kinds: &[Kind]) {
    let bugs = Bugs {
        disk: None,
        engine: Some(bug),
    };
    found(bugs, kinds);
}

#[test]
fn the_engine_as_it_is_passes_the_same_seeds() {
    let (mut acknowledged, mut removed) = (0, 0);
    for seed in 0..SEEDS {
        let verdict = life::live(seed, Bugs::default());
        let findings = &verdict.findings;
        assert!(verdict.is_clean(), "seed {seed}: {findings:#?}");
        acknowledged += verdict.tally.acknowledged;
        removed += verdict.tally.removed;
    }
    assert!(removed > 200, "only {removed} messages were removed");
    assert!(
        acknowledged > 1_000,
        "only {acknowledged} messages: no load"
    );
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    found_on_disk(DiskBug::NoSync, &[Kind::Lost]);
}

#[test]
fn a_skipped_sync_of_directories_is_found() {
    // What is missing may also be what the host needs to start.
    found_on_disk(DiskBug::NoDirectorySync, &[Kind::Lost, Kind::Stuck]);
}

#[test]
fn a_journal_cut_below_what_was_acknowledged_is_found() {
    found_on_disk(DiskBug::JournalCut, &[Kind::Lost]);
}

#[test]
fn a_segment_cut_below_its_mark_is_found() {
    found_on_disk(DiskBug::SegmentCut, &[Kind::Lost, Kind::Stuck]);
}

#[test]
fn progress_that_is_committed_before_the_output_is_found() {
    found_in_engine(EngineBug::ProgressFirst, &[Kind::Missing]);
}

#[test]
fn output_that_is_committed_before_the_progress_is_found() {
    found_in_engine(EngineBug::OutputFirst, &[Kind::Twice]);
}

#[test]
fn state_that_is_committed_before_or_after_its_progress_is_found() {
    for bug in [EngineBug::StateFirst, EngineBug::StateLast] {
        found_in_engine(bug, &[Kind::Miscounted]);
    }
}

#[test]
fn state_that_is_forgotten_is_found() {
    found_in_engine(EngineBug::ForgetsState, &[Kind::Miscounted]);
}

#[test]
fn an_output_that_is_kept_twice_or_not_at_all_is_found() {
    found_in_engine(EngineBug::OutputTwice, &[Kind::Twice]);
    found_in_engine(EngineBug::OutputForgotten, &[Kind::Missing]);
}

#[test]
fn a_request_that_is_taken_twice_is_found() {
    found_in_engine(EngineBug::Twice, &[Kind::Duplicated]);
}

#[test]
fn a_request_that_is_taken_by_halves_is_found() {
    found_in_engine(EngineBug::Halves, &[Kind::Torn]);
}

#[test]
fn messages_in_another_order_are_found() {
    found_in_engine(EngineBug::Reversed, &[Kind::Reordered]);
}

#[test]
fn a_reader_that_is_shown_another_value_is_found() {
    found_in_engine(EngineBug::OtherValue, &[Kind::Divergent]);
}

#[test]
fn a_message_that_was_refused_and_is_there_is_found() {
    found_in_engine(EngineBug::RefusedAndTaken, &[Kind::Phantom]);
}

#[test]
fn progress_that_goes_back_is_found() {
    found_in_engine(EngineBug::OldProgress, &[Kind::WentBack]);
}

#[test]
fn an_acknowledgement_of_what_was_not_even_tried_is_found() {
    found_in_engine(EngineBug::NotTaken, &[Kind::Lost]);
}

#[test]
fn a_processor_that_stands_still_is_found() {
    found_in_engine(EngineBug::StandsStill, &[Kind::Stuck]);
}

#[test]
fn a_request_whose_key_is_forgotten_is_found() {
    found_in_engine(EngineBug::ForgetsKeys, &[Kind::Duplicated]);
}

#[test]
fn a_trim_of_more_than_was_asked_for_is_found() {
    found_in_engine(EngineBug::TrimsMore, &[Kind::Lost]);
}

#[test]
fn a_trim_that_is_acknowledged_and_not_done_is_found() {
    found_in_engine(EngineBug::TrimsNothing, &[Kind::WentBack]);
}

#[test]
fn a_partition_that_begins_later_for_no_reason_is_found() {
    found_in_engine(EngineBug::BeginsLater, &[Kind::Lost]);
}

#[test]
fn a_deleted_key_that_comes_back_is_found() {
    found_in_engine(EngineBug::BringsBack, &[Kind::Returned]);
}

#[test]
fn a_compaction_that_drops_the_latest_value_of_a_key_is_found() {
    found_in_engine(EngineBug::CompactsLatest, &[Kind::Lost]);
}
