//! Tests of the memory and disk space that state takes, and of its bounds.

use millrace_engine::conformance::named;
use millrace_engine::room::{HostBound, HostBounds, Room};
use millrace_model::bounds::STATE_FILES_MAX;

use super::*;

/// Approximate memory cost of an entry that [`fill`] writes.
const ENTRY_COST: usize = 550;

const HOUR_MS: u64 = 3_600_000;

fn with_bounds(state_bytes: usize, state_disk_bytes: Option<usize>) -> LocalOptions {
    LocalOptions {
        bounds: HostBounds {
            state_bytes,
            state_disk_bytes,
            ..HostBounds::default()
        },
        ..small()
    }
}

fn entry(number: usize, value: Option<u8>) -> StateChange {
    StateChange {
        key: format!("key {number:08}").as_bytes().into(),
        value: value.map(|value| StateValue::new(&[value; 200])),
        ends_at: NEVER,
    }
}

/// Writes this many entries, some at a time.
async fn fill(engine: &LocalEngine, at: TopicPartition, entries: usize, value: u8) {
    for from in (0..entries).step_by(40) {
        let some = from..entries.min(from + 40);
        let changes = some.map(|number| entry(number, Some(value)));
        change(engine, at, false, changes.collect()).await;
    }
}

fn writing(partition: TopicPartition, change: StateChange) -> Transaction {
    Transaction {
        state: vec![StateWrite {
            group: named(GROUP),
            partition,
            lease: None,
            writes: Arc::new(StateWrites {
                resets: false,
                changes: vec![change],
                adds: None,
            }),
        }],
        ..Transaction::default()
    }
}

async fn is_paged(engine: &LocalEngine, at: TopicPartition) -> bool {
    engine
        .state(&named(GROUP), at)
        .await
        .expect("a table")
        .is_paged()
}

fn room(engine: &LocalEngine) -> Arc<Room> {
    Arc::clone(&engine.commits.state.read().room)
}

/// Checks that the table has exactly this many entries, all with this value.
async fn assert_all(engine: &LocalEngine, at: TopicPartition, entries: usize, value: u8) {
    let mut found = 0;
    let mut query = StateQuery {
        entries_max: 1_000,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    };
    loop {
        let page = engine
            .read_state(&named(GROUP), at, &query)
            .await
            .expect("read");
        assert_eq!(page.size.entries, entries);
        for stored in &page.entries {
            let expected = entry(found, Some(value));
            assert_eq!(
                (&stored.key, Some(&stored.value)),
                (&expected.key, expected.value.as_ref())
            );
            found += 1;
        }
        let Some(last) = page.entries.last() else {
            break;
        };
        query.after = Some(last.key.to_vec());
    }
    assert_eq!(found, entries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_costs_an_eighth_of_the_memory_is_paged_at_a_checkpoint_and_memory_goes_down()
{
    let dir = tempfile::tempdir().unwrap();
    let options = with_bounds(100 * ENTRY_COST, None);
    let engine = open_real(dir.path(), options).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    let (large, little) = (at(&topic, 0), at(&topic, 1));
    fill(&engine, large, 50, 1).await;
    fill(&engine, little, 10, 1).await;
    checkpoint(&engine).await;
    assert!(is_paged(&engine, large).await);
    assert!(!is_paged(&engine, little).await);
    let held = room(&engine).held(Kept::State);
    assert!(held < 20 * ENTRY_COST, "{held}");
    let stored = room(&engine).stored();
    assert!(stored > 60 * 200, "{stored}: wherever it stands");
    assert_all(&engine, large, 50, 1).await;
    assert_all(&engine, little, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_tables_are_paged_where_all_together_are_more_than_most_of_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let options = with_bounds(100 * ENTRY_COST, None);
    let engine = open_real(dir.path(), options).await.unwrap();
    let mut partitions = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let topic = topic(&engine, name, Durability::Durable).await;
        partitions.extend((0..3).map(|partition| at(&topic, partition)));
    }
    // None takes more than an eighth.
    for (place, &partition) in partitions.iter().enumerate() {
        fill(&engine, partition, 4 + place % 8, 1).await;
    }
    checkpoint(&engine).await;
    let mut paged = Vec::new();
    for &partition in &partitions {
        paged.push(is_paged(&engine, partition).await);
    }
    assert!(paged[7], "a largest one: {paged:?}");
    assert!(!paged[0] && !paged[1], "the smallest stay: {paged:?}");
    let held = room(&engine).held(Kept::State);
    assert!(held <= 80 * ENTRY_COST, "{held}");
    for (place, &partition) in partitions.iter().enumerate() {
        assert_all(&engine, partition, 4 + place % 8, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_ten_thousand_keys_stays_in_memory_unless_memory_is_scarce() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    fill(&engine, at, 10_000, 1).await;
    checkpoint(&engine).await;
    assert!(!is_paged(&engine, at).await);
    assert!(runs(dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_state_is_larger_than_its_memory_goes_on_and_a_start_finds_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = with_bounds(100 * ENTRY_COST, None);
    let engine = open_real(dir.path(), options.clone()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    let entries = 2_000;
    fill(&engine, at, entries, 1).await;
    fill(&engine, at, entries, 2).await;
    assert!(is_paged(&engine, at).await);
    assert_all(&engine, at, entries, 2).await;
    change(&engine, at, false, vec![entry(entries, Some(2))]).await;
    checkpoint(&engine).await;
    let size = page(&engine, at).await.size;
    assert_eq!(room(&engine).stored(), size.bytes);
    let held = room(&engine).held(Kept::State);
    assert!(held < size.cost() / 10, "{held} of {}", size.cost());
    change(&engine, at, false, vec![entry(entries + 1, Some(2))]).await;
    // Without a last checkpoint.
    drop(engine);
    let engine = open_real(dir.path(), options).await.unwrap();
    assert!(is_paged(&engine, at).await);
    assert_all(&engine, at, entries + 2, 2).await;
    let size = page(&engine, at).await.size;
    assert_eq!(room(&engine).stored(), size.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_beyond_the_bound_of_the_disk_are_refused_and_removals_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(
        dir.path(),
        LocalOptions {
            state_resident_bytes: Some(0),
            ..with_bounds(1 << 20, Some(30_000))
        },
    )
    .await
    .unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    let write = async |number: usize, value: Option<u8>| match engine
        .commit(writing(at, entry(number, value)))
        .await
    {
        Ok(_) => Ok(()),
        Err(CommitError::RoomFull(full)) => Err(full),
        Err(other) => panic!("{other}"),
    };
    let mut count = 0;
    let full = loop {
        if let Err(full) = write(count, Some(1)).await {
            break full;
        }
        count += 1;
    };
    // Keys of 12 bytes, and 64 for each entry.
    assert_eq!(count, 30_000 / 276);
    assert_eq!((full.kept, full.bound), (Kept::State, HostBound::StateDisk));
    let text = full.to_string();
    assert!(text.contains("state_disk_bytes_max"), "{text}");
    assert!(text.contains("delete some entries"), "{text}");
    checkpoint(&engine).await;
    assert!(write(count, Some(1)).await.is_err(), "files count as well");
    write(0, Some(2))
        .await
        .expect("it takes the place that it has");
    write(1, None).await.expect("what is removed needs no room");
    write(count, Some(1)).await.expect("there is room");
    assert!(write(count + 1, Some(1)).await.is_err(), "and no more");
    let table = engine.state(&named(GROUP), at).await.unwrap();
    assert_eq!(table.size().entries, count);
    commit(&engine, at, true, &[]).await;
    assert_eq!(room(&engine).stored(), 0);
    write(count, Some(1)).await.expect("there is room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_and_is_in_no_file_yet_is_bounded_and_checkpoints_are_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        state_resident_bytes: Some(0),
        state_changes_bytes_max: 40 * ENTRY_COST,
        // Nothing else requests checkpoints.
        checkpoint_journal_bytes: 1 << 30,
        journal_file_bytes: 64 << 10,
        ..small()
    };
    let engine = open_real(dir.path(), options).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    fill(&engine, at, 1, 1).await;
    checkpoint(&engine).await;
    let before = engine.commits.headroom.checkpoints_made();
    for round in 0..20 {
        fill(&engine, at, 400, round).await;
        let unwritten = room(&engine).unwritten();
        assert!(unwritten <= 80 * ENTRY_COST, "{unwritten}");
    }
    let made = engine.commits.headroom.checkpoints_made() - before;
    assert!(made > 20, "{made}");
    assert_all(&engine, at, 400, 19).await;
    // Removals do not wait.
    let gone = (0..400).map(|number| entry(number, None)).collect();
    change(&engine, at, false, gone).await;
    assert_eq!(page(&engine, at).await.size.entries, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_too_many_files_takes_no_values_and_everything_else_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    let (many, few) = (at(&topic, 0), at(&topic, 1));
    // No merges run.
    engine.checkpoints.merges.stop();
    for number in 0..STATE_FILES_MAX {
        change(&engine, many, false, vec![entry(number, Some(1))]).await;
        checkpoint(&engine).await;
    }
    let refused = engine.commit(writing(many, entry(0, Some(2)))).await;
    let refused = refused.expect_err("it is in too many files");
    assert!(matches!(refused, CommitError::State(_)), "{refused}");
    engine
        .commit(writing(many, entry(0, None)))
        .await
        .expect("what only removes goes on");
    change(&engine, few, false, vec![entry(0, Some(1))]).await;
    commit(&engine, many, true, &[]).await;
    change(&engine, many, false, vec![entry(0, Some(1))]).await;
    assert_all(&engine, many, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_out_about_ends_comes_into_a_file_though_nobody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    let now = SystemClock::new().wall().0;
    for ends_at in [Timestamp(now + HOUR_MS), NEVER] {
        let ending = StateChange {
            ends_at,
            ..entry(0, Some(1))
        };
        change(&engine, at, false, vec![ending]).await;
        checkpoint(&engine).await;
    }
    assert_eq!(room(&engine).unwritten(), 0);
    let table = engine.state(&named(GROUP), at).await.unwrap();
    let later = Timestamp(now + 2 * HOUR_MS);
    let ended = table.find_ended(later, 10, 1 << 20).unwrap();
    assert!(ended.is_empty(), "its end was moved");
    assert!(room(&engine).unwritten() > 0, "nothing ends there any more");
    checkpoint(&engine).await;
    assert_eq!(room(&engine).unwritten(), 0);
    assert_all(&engine, at, 1, 1).await;
}
