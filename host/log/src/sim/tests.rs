//! Tests that the simulated disk is as bad as documented, and no worse.

use super::*;
use crate::disk::{Disk, DiskFile};

fn dir() -> &'static Path {
    Path::new("/data/a")
}

fn file(name: &str) -> PathBuf {
    dir().join(name)
}

/// A disk with a durable directory, and in it a durable file of zeros.
fn disk_with(name: &str, bytes: usize) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::default();
    disk.create_dir_all(dir()).unwrap();
    let made = disk.create(&file(name)).unwrap();
    made.write_all_at(&vec![0; bytes], 0).unwrap();
    made.sync_data().unwrap();
    disk.sync_dir(dir()).unwrap();
    (disk, made)
}

fn left(disk: &SimDisk, name: &str) -> Vec<u8> {
    disk.contents(&file(name)).unwrap_or_default()
}

fn after(disk: &SimDisk, loss: Loss) -> SimDisk {
    let mut image = disk.image();
    image.lose_power(loss);
    SimDisk::with_image(image)
}

#[test]
fn each_named_loss_keeps_what_it_says() {
    let (disk, made) = disk_with("f", 3);
    for at in 0..3 {
        made.write_all_at(b"x", at).unwrap();
    }
    let expected: [&[u8]; 8] = [
        b"xxx", b"\0\0\0", b"xx\0", b"\0xx", b"\0\0x", b"x\0\0", b"xxx", b"\0\0\0",
    ];
    for (loss, expected) in Loss::NAMED.into_iter().zip(expected) {
        assert_eq!(left(&after(&disk, loss), "f"), expected, "{:?}", loss.keep);
    }
}

#[test]
fn chance_finds_every_subset_of_unsynced_writes_and_a_prefix_of_blocks_is_not_the_only_tear() {
    let (disk, made) = disk_with("f", 3);
    for at in 0..3 {
        made.write_all_at(b"x", at).unwrap();
    }
    let seen: std::collections::BTreeSet<Vec<u8>> = (0..500)
        .map(|seed| left(&after(&disk, Loss::random(seed)), "f"))
        .collect();
    assert_eq!(seen.len(), 8);

    let (disk, made) = disk_with("f", 4 * 512);
    made.write_all_at(&[1; 4 * 512], 0).unwrap();
    let torn = (0..500).map(|seed| left(&after(&disk, Loss::random(seed)), "f"));
    let torn: std::collections::BTreeSet<Vec<u8>> = torn.collect();
    let blocks = |n: [u8; 4]| -> Vec<u8> { n.into_iter().flat_map(|b| [b; 512]).collect() };
    assert!(
        torn.contains(&blocks([0, 1, 0, 1])),
        "later blocks without earlier ones"
    );
}

#[test]
fn what_was_synced_survives_every_loss_and_an_unsynced_name_may_go_with_its_bytes() {
    let (disk, _) = disk_with("f", 0);
    let made = disk.create(&file("g")).unwrap();
    made.write_all_at(b"bytes", 0).unwrap();
    made.sync_data().unwrap();
    let mut gone = 0;
    for seed in 0..100 {
        let after = after(&disk, Loss::random(seed));
        assert!(after.contents(&file("f")).is_some());
        match after.contents(&file("g")) {
            Some(bytes) => assert_eq!(bytes, b"bytes"),
            None => gone += 1,
        }
    }
    assert!((10..90).contains(&gone), "{gone}");
    disk.sync_dir(dir()).unwrap();
    assert_eq!(left(&after(&disk, Loss::NAMED[1]), "g"), b"bytes");
}

#[test]
fn names_may_be_lost_out_of_order_and_a_lost_directory_takes_its_files_along() {
    let (disk, _) = disk_with("f", 0);
    disk.create(&file("g")).unwrap();
    disk.create(&file("h")).unwrap();
    let only_later = |seed| {
        let after = after(&disk, Loss::random(seed));
        after.contents(&file("g")).is_none() && after.contents(&file("h")).is_some()
    };
    assert!((0..100).any(only_later), "as btrfs does it");

    let inner = dir().join("inner");
    disk.create_dir_all(&inner).unwrap();
    let deep = disk.create(&inner.join("deep")).unwrap();
    deep.sync_data().unwrap();
    disk.sync_dir(&inner).unwrap();
    assert_eq!(
        after(&disk, Loss::NAMED[1]).contents(&inner.join("deep")),
        None
    );
    disk.sync_dir(dir()).unwrap();
    assert!(
        after(&disk, Loss::NAMED[1])
            .contents(&inner.join("deep"))
            .is_some()
    );
}

#[test]
fn a_rename_is_atomic_in_every_loss() {
    let (disk, _) = disk_with("old", 3);
    disk.rename(&file("old"), &file("new")).unwrap();
    for seed in 0..50 {
        let after = after(&disk, Loss::random(seed));
        let found = [file("old"), file("new")].map(|path| after.contents(&path));
        assert_eq!(found.iter().flatten().count(), 1, "one name or the other");
    }
}

#[test]
fn a_failed_sync_drops_what_reads_still_show_and_the_next_one_succeeds() {
    let (disk, made) = disk_with("f", 1);
    let other = disk.open(&file("f")).unwrap();
    made.write_all_at(b"x", 0).unwrap();
    disk.fail_syncs(1);
    assert!(made.sync_data().is_err());
    assert_eq!(left(&disk, "f"), b"x");
    made.sync_data().unwrap();
    // As on Linux: each open handle reports it once.
    assert!(other.sync_data().is_err());
    other.sync_data().unwrap();
    disk.open(&file("f")).unwrap().sync_data().unwrap();
    assert_eq!(left(&after(&disk, Loss::NAMED[0]), "f"), b"\0");
}

#[test]
fn lying_syncs_and_lost_writes_are_seen_after_the_power_cut_only() {
    for effect in [Effect::Lie, Effect::LoseWrite] {
        let (disk, made) = disk_with("f", 1);
        disk.inject(Fault::new(effect.clone()).at_path("a/f"));
        made.write_all_at(b"x", 0).unwrap();
        made.sync_data().unwrap();
        assert_eq!(left(&disk, "f"), b"x");
        assert_eq!(
            left(&after(&disk, Loss::NAMED[1]), "f"),
            b"\0",
            "{effect:?}"
        );
    }
}

#[test]
fn a_misdirected_write_hits_another_place_or_another_file() {
    let (disk, made) = disk_with("f", 4);
    disk.plant(&file("g"), &[0; 4]);
    let hit = |path, at| Fault::new(Effect::Misdirect { path, at });
    disk.inject(hit(None, 2));
    disk.inject(hit(Some(file("g")), 3));
    made.write_all_at(b"x", 0).unwrap();
    made.write_all_at(b"y", 1).unwrap();
    assert_eq!(
        left(&disk, "f"),
        b"xy\0\0",
        "the cache shows what was meant"
    );
    let after = after(&disk, Loss::NAMED[0]);
    assert_eq!(left(&after, "f"), b"\0\0x\0");
    assert_eq!(left(&after, "g"), b"\0\0\0y");
}

#[test]
fn faults_meet_the_chosen_operations_as_often_as_asked() {
    let (disk, made) = disk_with("f", 4);
    let fails = |fault: Fault| disk.inject(fault);
    fails(
        Fault::new(Effect::Fail)
            .on(OperationKind::Read)
            .after(1)
            .times(2),
    );
    let mut buffer = [0; 4];
    let reads: [bool; 4] = std::array::from_fn(|_| made.read_at(&mut buffer, 0).is_ok());
    assert_eq!(reads, [true, false, false, true]);
    fails(Fault::new(Effect::Full).at_path("elsewhere").for_ever());
    made.write_all_at(b"fits", 0).unwrap();
    fails(Fault::new(Effect::Full).for_ever());
    let full = made.write_all_at(b"no", 0).unwrap_err();
    assert!(crate::disk::is_full(&full));
    made.sync_data().unwrap();
    disk.heal();
    fails(Fault::new(Effect::Short));
    assert!(made.write_all_at(b"half", 0).is_err());
    assert_eq!(left(&disk, "f"), b"hats");
    made.sync_data().unwrap();
    made.write_all_at(b"late", 0).unwrap();
    fails(Fault::new(Effect::Stale));
    made.read_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"hats");
    made.read_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"late");
}

#[test]
fn a_gate_holds_one_operation_and_nobody_else() {
    let (disk, made) = disk_with("f", 1);
    let gate = Gate::default();
    disk.inject(Fault::new(Effect::Wait(gate.clone())).on(OperationKind::Sync));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| made.sync_data());
        assert!(gate.wait_for_arrival(Duration::from_secs(20)));
        made.write_all_at(b"x", 0).unwrap();
        assert!(!held.is_finished());
        gate.open();
        held.join().unwrap().unwrap();
    });
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn the_same_operations_give_the_same_trace_and_others_another() {
    let run = |at| {
        let (disk, made) = disk_with("f", 9);
        disk.keep_trace();
        disk.set_slowness(1000);
        let before = disk.virtual_time();
        made.write_all_at(b"x", at).unwrap();
        assert!(disk.virtual_time() - before >= Duration::from_millis(20));
        let trace = disk.trace();
        assert_eq!((trace[0].at, &*trace[0].path), (at, Path::new("a/f")));
        disk.trace_hash()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_file_without_a_name_lives_while_it_is_open() {
    let (disk, made) = disk_with("f", 5);
    disk.remove(&file("f")).unwrap();
    disk.sync_dir(dir()).unwrap();
    assert_eq!(made.length().unwrap(), 5);
    drop(made);
    assert_eq!(disk.used_bytes(), 0);
}
