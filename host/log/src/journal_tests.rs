//! Tests of what the journal keeps, cuts and refuses, on the simulated disk.

use super::files::SPARE_FILES_MAX;
use super::*;
use crate::disk::is_full;
use crate::sim::SimDisk;

const FILE_BYTES: u64 = 4096;

/// The number of the first file of a fresh journal.
const FIRST: u64 = 2;

fn dir() -> &'static Path {
    Path::new("/data/journal")
}

fn scan_from(disk: &SimDisk, file: u64, after: u64) -> Result<JournalScan, JournalError> {
    scan(Arc::new(disk.clone()), dir(), file, after)
}

fn fresh(disk: &SimDisk) -> Journal {
    Journal::start(scan_from(disk, 0, 0).unwrap(), FILE_BYTES).unwrap()
}

fn append(journal: &mut Journal, body: &[u8]) -> io::Result<u64> {
    let mut frame = FrameBuffer::default();
    frame.body().extend_from_slice(body);
    journal.append(&mut frame)
}

fn body(number: u64) -> Vec<u8> {
    format!("transaction {number} {}", "x".repeat(number as usize % 90)).into_bytes()
}

fn write(journal: &mut Journal, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(append(journal, &body(number)).unwrap(), number);
    }
}

fn replayed(scan: &JournalScan) -> Vec<(u64, Bytes)> {
    let mut all = Vec::new();
    scan.replay(|sequence, body| {
        all.push((sequence, body));
        Ok::<_, io::Error>(())
    })
    .unwrap();
    all
}

fn assert_holds(scan: &JournalScan, numbers: std::ops::RangeInclusive<u64>) {
    let expected: Vec<(u64, Bytes)> = numbers.map(|n| (n, body(n).into())).collect();
    assert_eq!(replayed(scan), expected);
}

#[test]
fn what_is_synced_is_replayed_in_order_over_many_files() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=300);
    journal.sync().unwrap();
    disk.restore_power(1);
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=300);
}

#[test]
fn after_any_power_cut_a_prefix_remains_that_holds_all_that_was_synced() {
    for seed in 0..300 {
        let disk = SimDisk::default();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut journal = fresh(&disk);
        disk.cut_power_after(random.u64(1..120));
        let (mut synced, mut written) = (0, 0);
        while append(&mut journal, &body(written + 1)).is_ok() {
            written += 1;
            if random.u8(..4) == 0 && journal.sync().is_ok() {
                synced = written;
            }
        }
        disk.restore_power(seed);
        let scan = scan_from(&disk, 1, 0).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let last = scan.last_sequence();
        assert!(synced <= last && last <= written + 1, "seed {seed}");
        assert_holds(&scan, 1..=last);
    }
}

#[test]
fn recycled_files_do_not_bring_old_frames_back() {
    for seed in 0..100 {
        let disk = SimDisk::default();
        let mut journal = fresh(&disk);
        write(&mut journal, 1..=200);
        let live = journal.rotate().unwrap();
        journal.recycle_before(live).unwrap();
        // Bodies of the same sizes, so that new frames end exactly where old ones begin.
        for number in 201..=200 + seed {
            append(&mut journal, &body(number - 200)).unwrap();
        }
        journal.sync().unwrap();
        append(&mut journal, b"never synced").unwrap();
        disk.restore_power(seed);
        let last = scan_from(&disk, live, 200).unwrap().last_sequence();
        assert!((200 + seed..=201 + seed).contains(&last), "{last}");
    }
}

#[test]
fn recycling_reuses_files_instead_of_making_more() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    for round in 0..20u64 {
        write(&mut journal, round * 100 + 1..=round * 100 + 100);
        let live = journal.rotate().unwrap();
        journal.recycle_before(live).unwrap();
    }
    assert!(disk.paths().len() <= SPARE_FILES_MAX + 2);
}

#[test]
fn a_torn_last_frame_is_cut() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=9);
    journal.sync().unwrap();
    let at = journal.position as usize;
    write(&mut journal, 10..=10);
    disk.flip_bit(&file_path(dir(), FIRST), at + 40, 3);
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=9);
}

#[test]
fn an_unsynced_frame_lost_before_a_later_one_is_a_torn_tail_too() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=9);
    journal.sync().unwrap();
    let at = journal.position as usize;
    write(&mut journal, 10..=12);
    disk.flip_bit(&file_path(dir(), FIRST), at + 40, 3);
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=9);
}

#[test]
fn damage_to_a_synced_frame_is_reported_and_not_cut() {
    for damaged in [0, 5, 20, 35, 56] {
        let disk = SimDisk::default();
        let mut journal = fresh(&disk);
        write(&mut journal, 1..=9);
        let at = journal.position as usize;
        write(&mut journal, 10..=10);
        journal.sync().unwrap();
        write(&mut journal, 11..=11);
        disk.flip_bit(&file_path(dir(), FIRST), at + damaged, 0);
        match scan_from(&disk, 1, 0) {
            Err(JournalError::Damaged {
                sequence, position, ..
            }) => {
                assert_eq!((sequence, position), (10, at as u64));
            }
            other => panic!("byte {damaged}: {:?}", other.map(|s| s.last_sequence())),
        }
    }
}

#[test]
fn damage_at_the_end_of_a_file_that_is_not_the_last_is_reported() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=9);
    let at = journal.position as usize;
    write(&mut journal, 10..=10);
    journal.sync().unwrap();
    journal.rotate().unwrap();
    disk.flip_bit(&file_path(dir(), FIRST), at + 40, 0);
    let refused = scan_from(&disk, 1, 0);
    assert!(matches!(
        refused,
        Err(JournalError::Damaged { sequence: 10, .. })
    ));
}

#[test]
fn a_missing_file_in_the_middle_is_reported() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=100);
    journal.sync().unwrap();
    write(&mut journal, 101..=200);
    assert!(journal.file.number > FIRST + 2);
    disk.remove(&file_path(dir(), FIRST + 1)).unwrap();
    assert!(matches!(
        scan_from(&disk, 1, 0),
        Err(JournalError::Damaged { .. })
    ));
}

#[test]
fn a_damaged_file_header_before_sound_frames_costs_nothing() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=9);
    journal.sync().unwrap();
    disk.flip_bit(&file_path(dir(), FIRST), 17, 0);
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=9);
}

#[test]
fn a_full_disk_refuses_the_frame_and_takes_it_when_there_is_room() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    disk.set_capacity(Some(disk.used_bytes() + 100));
    let mut number = 1;
    let refused = loop {
        match append(&mut journal, &body(number)) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(is_full(&refused));
    assert!(append(&mut journal, &body(number)).is_err_and(|e| is_full(&e)));
    disk.set_capacity(None);
    write(&mut journal, number..=number + 100);
    journal.sync().unwrap();
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=number + 100);
}

#[test]
fn a_journal_goes_on_in_a_new_file_after_a_restart() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=50);
    journal.sync().unwrap();
    let scan = scan_from(&disk, 1, 0).unwrap();
    let (live, last) = (scan.next_file(), scan.last_sequence());
    let mut journal = Journal::start(scan, FILE_BYTES).unwrap();
    write(&mut journal, 51..=60);
    journal.sync().unwrap();
    assert_holds(&scan_from(&disk, live, last).unwrap(), 51..=60);
}

#[test]
fn files_that_follow_a_lost_unsynced_end_are_cut_with_it() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=9);
    journal.sync().unwrap();
    let at = journal.position as usize;
    write(&mut journal, 10..=200);
    assert!(journal.file.number > FIRST + 2);
    disk.flip_bit(&file_path(dir(), FIRST), at + 40, 3);
    let scan = scan_from(&disk, 1, 0).unwrap();
    assert_holds(&scan, 1..=9);
    // Frames that were cut do not reappear when their files are reused, even if their sequences
    // would fit.
    let live = scan.next_file();
    let mut journal = Journal::start(scan, FILE_BYTES).unwrap();
    for number in 10..=200 {
        append(&mut journal, b"another history").unwrap();
        journal.sync().unwrap();
        let scan = scan_from(&disk, live, 9).unwrap();
        assert_eq!(scan.last_sequence(), number);
    }
}

#[test]
fn a_sync_covers_what_was_written_before_it_began_in_all_files() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=100);
    let (first, second) = (journal.begin_sync(1), journal.begin_sync(2));
    write(&mut journal, 101..=110);
    assert_eq!(journal.synced_sequence(), 0);
    assert_eq!(second.run().unwrap(), 100);
    assert_eq!(journal.synced_sequence(), 100);
    disk.cut_power();
    drop(first);
    disk.restore_power(7);
    assert!(scan_from(&disk, 1, 0).unwrap().last_sequence() >= 100);
}

#[test]
fn a_file_that_is_made_ready_before_it_is_needed_is_the_next_one() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    let mut prepared = 0;
    for number in 1..=200 {
        write(&mut journal, number..=number);
        if let Some(preparation) = journal.preparation() {
            preparation.run().unwrap();
            prepared += 1;
            assert!(journal.preparation().is_none(), "once for each file");
        }
    }
    assert!(prepared > 3);
    journal.sync().unwrap();
    disk.cut_power();
    disk.restore_power(prepared);
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=200);
}

#[test]
fn each_who_syncs_is_told_of_a_failure() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=3);
    let (first, second) = (journal.begin_sync(1), journal.begin_sync(2));
    disk.fail_syncs(1);
    assert!(first.run().is_err());
    assert!(second.run().is_err(), "it was to cover the same frames");
    assert_eq!(journal.synced_sequence(), 0);
}

#[test]
fn after_a_failed_sync_nothing_more_is_written_and_what_was_synced_is_replayed() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    write(&mut journal, 1..=3);
    journal.sync().unwrap();
    // The next file's header is written, and its sync fails.
    disk.fail_syncs(1);
    journal.rotate().unwrap_err();
    append(&mut journal, &body(4)).unwrap_err();
    journal.sync().unwrap_err();
    journal.rotate().unwrap_err();
    drop(journal);
    // Only the process is restarted.
    assert_holds(&scan_from(&disk, 1, 0).unwrap(), 1..=3);
}

#[test]
fn files_kept_back_take_frames_without_messages_and_then_a_rotation_on_a_full_disk() {
    let disk = SimDisk::default();
    let mut journal = fresh(&disk);
    assert!(journal.has_reserved());
    disk.set_capacity(Some(disk.used_bytes()));
    let mut number = 0;
    let mut fill = |journal: &mut Journal, brings_messages| {
        while journal.make_room(200, brings_messages, true).is_ok() {
            number += 1;
            write(journal, number..=number);
        }
        journal.file.number
    };
    assert_eq!(fill(&mut journal, true), FIRST);
    assert_eq!(fill(&mut journal, false), FIRST + 1);
    let live = journal.rotate().expect("a spare for a checkpoint");
    assert!(!journal.has_reserved());
    journal.recycle_before(live).unwrap();
    assert!(journal.has_reserved());
    assert!(journal.make_room(200, false, false).is_ok());
}
