//! Tests that lost data is detected at the next start and named, and that a repair continues
//! without it, says what was lost, and removes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use millrace_log::JournalError;
use millrace_log::RealDisk;

use super::*;
use crate::keep::evidence;
use crate::keep::names;
use crate::start::examine::{Severity, examine};
use crate::start::repair::{Done, RepairError, plan, repair};

fn noting() -> LocalOptions {
    LocalOptions {
        notes_durable: true,
        checkpoint_journal_bytes: 1 << 30,
        ..small()
    }
}

/// Ten messages in `orders/0` since the last checkpoint; the process ended without closing, after a
/// quiet moment.
async fn killed() -> (tempfile::TempDir, TopicPartition) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), noting()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    // More than fits into one journal file.
    for number in 0..10 {
        let value = format!("{number} {}", "v".repeat(3_000));
        produce(&engine, orders, &value).await.unwrap();
    }
    let durable = engine.commits.journal.lock().durable().0;
    eventually(async || {
        let known = evidence::read(&RealDisk, dir.path()).unwrap();
        known.is_some_and(|known| known.durable == durable)
    })
    .await;
    drop(engine);
    (dir, orders)
}

/// The journal's files in use, in order.
fn journal(dir: &Path) -> Vec<PathBuf> {
    let used = millrace_log::journal::examine::used_files(&dir.join("journal")).unwrap();
    let path = |(number, _)| dir.join(format!("journal/{number:012}.journal"));
    used.into_iter().map(path).collect()
}

async fn why_not(dir: &Path) -> OpenError {
    open_real(dir, small())
        .await
        .err()
        .expect("it does not open")
}

/// The bytes of every file, with its path.
fn all_bytes(dir: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            all.insert(fs::read(&path).unwrap(), path);
        }
    }
    all
}

/// Makes the repairs that an examination plans, and checks that every earlier file still exists
/// somewhere.
async fn repaired(dir: &Path) -> Vec<Done> {
    let owned = dir.to_owned();
    let before = all_bytes(dir);
    let work = move || {
        let planned = plan(&examine(&owned, &mut |_| {}).unwrap());
        let done = repair(&owned, None, Timestamp(7), &mut |_| {}).expect("it is repaired");
        assert_eq!(planned, done);
        done
    };
    let done = tokio::task::spawn_blocking(work).await.unwrap();
    let after = all_bytes(dir);
    for (bytes, path) in before {
        let kept = after.contains_key(&bytes) || path.ends_with(evidence::FILE);
        assert!(kept, "{} is gone", path.display());
    }
    done
}

fn lost(done: &[Done]) -> Vec<&str> {
    done.iter()
        .filter_map(|done| done.lost.as_deref())
        .collect()
}

async fn count(dir: &Path, orders: TopicPartition) -> usize {
    let engine = open_real(dir, small()).await.expect("it opens");
    let count = values(&engine, orders).await.len();
    produce(&engine, orders, "another").await.unwrap();
    engine.close().await;
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_file_that_is_taken_away_is_missed_and_put_back_nothing_was_lost() {
    let (dir, orders) = killed().await;
    let newest = journal(dir.path()).pop().unwrap();
    let away = dir.path().join("away");
    fs::rename(&newest, &away).unwrap();
    let error = why_not(dir.path()).await;
    assert!(
        matches!(
            error,
            OpenError::Missing { to: 11, .. } | OpenError::Journal(_)
        ),
        "{error}"
    );
    assert!(error.to_string().contains("doctor --repair"), "{error}");
    fs::rename(&away, &newest).unwrap();
    assert_eq!(count(dir.path(), orders).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_file_that_is_cut_short_is_missed_and_a_repair_goes_on_without_what_it_held() {
    let (dir, orders) = killed().await;
    let newest = journal(dir.path()).pop().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&newest)
        .and_then(|file| file.set_len(100))
        .unwrap();
    let from = match why_not(dir.path()).await {
        OpenError::Missing { from, .. } => from,
        // The next file, prepared before it was needed, also records it.
        OpenError::Journal(error) => match &*error {
            JournalError::Damaged { sequence, .. } => *sequence,
            error => panic!("{error}"),
        },
        error => panic!("{error}"),
    };
    let to = 11;
    let done = repaired(dir.path()).await;
    let told = lost(&done).join("; ");
    assert!(
        told.contains(&format!("transactions {from} to {to}")),
        "{told}"
    );
    // The topic was the first transaction.
    assert_eq!(count(dir.path(), orders).await as u64, from - 2);
    assert_eq!(count(dir.path(), orders).await as u64, from - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_to_the_very_last_write_is_told_from_a_torn_tail_after_a_quiet_moment() {
    let (dir, orders) = killed().await;
    let newest = journal(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let last = bytes.iter().rposition(|&byte| byte == b'v').unwrap();
    bytes[last] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let error = why_not(dir.path()).await;
    assert!(
        matches!(
            error,
            OpenError::Missing {
                from: 11,
                to: 11,
                ..
            }
        ),
        "{error}"
    );
    repaired(dir.path()).await;
    assert_eq!(count(dir.path(), orders).await, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_cut_before_the_damage_and_all_of_it_is_kept_aside() {
    let (dir, orders) = killed().await;
    let first = &journal(dir.path())[0];
    let mut bytes = fs::read(first).unwrap();
    let text = b"2 vvv";
    let place = bytes.windows(text.len()).position(|w| w == text).unwrap();
    bytes[place + 9] ^= 1;
    fs::write(first, bytes).unwrap();
    assert!(matches!(why_not(dir.path()).await, OpenError::Journal(_)));
    let done = repaired(dir.path()).await;
    let told = lost(&done).join("; ");
    assert!(told.contains("transactions 4 to 11"), "{told}");
    assert_eq!(count(dir.path(), orders).await, 2);
    let report = tokio::task::spawn_blocking({
        let dir = dir.path().to_owned();
        move || examine(&dir, &mut |_| {}).unwrap()
    });
    assert!(report.await.unwrap().worst() < Severity::Damage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_close_in_order_the_journal_may_be_missing_without_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), noting()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    produce(&engine, orders, "kept").await.unwrap();
    engine.close().await;
    let known = evidence::read(&RealDisk, dir.path()).unwrap().unwrap();
    assert!(
        known.is_closed && known.checkpoint == known.durable,
        "{known:?}"
    );
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    assert_eq!(count(dir.path(), orders).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_checkpoint_is_refused_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("checkpoint.sqlite");
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    produce(&engine, orders, "kept").await.unwrap();
    engine.close().await;
    let old = fs::read(&checkpoint).unwrap();
    assert_eq!(count(dir.path(), orders).await, 1);
    let new = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, old).unwrap();
    let error = why_not(dir.path()).await;
    assert!(matches!(error, OpenError::CheckpointOld { .. }), "{error}");
    fs::write(&checkpoint, new).unwrap();
    assert_eq!(count(dir.path(), orders).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_checkpoint_is_said_to_be_lost_and_is_built_again_with_every_message() {
    for is_empty in [false, true] {
        for is_closed in [false, true] {
            let (dir, orders) = killed().await;
            let mut messages = 10;
            if is_closed {
                assert_eq!(count(dir.path(), orders).await, messages);
                messages += 1;
            }
            let checkpoint = dir.path().join("checkpoint.sqlite");
            match is_empty {
                true => fs::write(&checkpoint, "").unwrap(),
                false => fs::remove_file(&checkpoint).unwrap(),
            }
            let error = why_not(dir.path()).await;
            assert!(
                matches!(error, OpenError::CheckpointMissing { .. }),
                "{error}"
            );
            assert_eq!(checkpoint.exists(), is_empty, "nothing was made");
            if !is_closed {
                // The topic is only in the journal, which begins after the copy of the names.
                let copy = names::read(&RealDisk, dir.path()).unwrap().unwrap();
                assert_eq!(copy.topics, []);
            }
            let done = repaired(dir.path()).await;
            assert!(lost(&done).join("; ").contains("progress"), "{done:?}");
            assert_eq!(count(dir.path(), orders).await, messages);
            assert_eq!(count(dir.path(), orders).await, messages + 1);
        }
    }
}

/// The growth is in the journal, in the copy of the names, or in both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_were_added_are_found_by_the_doctor_and_by_a_repair_without_the_checkpoint()
{
    for is_closed in [false, true] {
        let (dir, orders) = killed().await;
        let engine = open_real(dir.path(), noting()).await.unwrap();
        let grown = grow(&engine, "orders", 5).await;
        let added = at(&grown, 4);
        for number in 0..4 {
            let value = format!("{number} {}", "v".repeat(3_000));
            produce(&engine, added, &value).await.unwrap();
        }
        if is_closed {
            engine.close().await;
        } else {
            let durable = engine.commits.journal.lock().durable().0;
            eventually(async || {
                let known = evidence::read(&RealDisk, dir.path()).unwrap();
                known.is_some_and(|known| known.durable == durable)
            })
            .await;
        }
        drop(engine);
        let owned = dir.path().to_owned();
        let examining = move || examine(&owned, &mut |_| {}).unwrap();
        let report = tokio::task::spawn_blocking(examining).await.unwrap();
        assert!(report.worst() < Severity::Damage, "{report:?}");
        let said = format!("{report:?}");
        assert!(said.contains("of 5 partitions"), "{said}");

        fs::remove_file(dir.path().join("checkpoint.sqlite")).unwrap();
        repaired(dir.path()).await;
        assert_eq!(count(dir.path(), added).await, 4);
        assert_eq!(count(dir.path(), orders).await, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_not_the_hosts_are_moved_aside_and_a_running_host_is_not_repaired() {
    let (dir, orders) = killed().await;
    let engine = open_real(dir.path(), small()).await.unwrap();
    let owned = dir.path().to_owned();
    let busy = move || repair(&owned, None, Timestamp(1), &mut |_| {}).unwrap_err();
    let error = tokio::task::spawn_blocking(busy).await.unwrap();
    assert!(
        matches!(
            error,
            RepairError::Examine(crate::start::examine::ExamineError::InUse { .. })
        ),
        "{error}"
    );
    engine.close().await;
    drop(engine);
    for stray in ["notes.txt", "topics/notes.txt", "journal/notes.txt"] {
        fs::write(dir.path().join(stray), stray).unwrap();
    }
    let done = repaired(dir.path()).await;
    assert_eq!((done.len(), lost(&done).len()), (3, 0), "{done:?}");
    let moved = dir.path().join("quarantine/7/topics/notes.txt");
    assert_eq!(fs::read_to_string(moved).unwrap(), "topics/notes.txt");
    assert_eq!(repaired(dir.path()).await, []);
    assert_eq!(count(dir.path(), orders).await, 10);
}

#[tokio::test]
async fn a_copy_of_the_names_that_is_not_whole_is_none() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_real(dir.path(), small()).await.unwrap());
    let path = dir.path().join(names::FILE);
    let bytes = fs::read(&path).unwrap();
    assert!(names::read(&RealDisk, dir.path()).unwrap().is_some());
    for length in 0..bytes.len() - 1 {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(
            names::read(&RealDisk, dir.path()).unwrap(),
            None,
            "{length}"
        );
    }
}
