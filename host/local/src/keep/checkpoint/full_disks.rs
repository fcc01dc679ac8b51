//! Tests checkpoints that repeatedly find the disk full.

use super::*;

fn limit_pages(store: &mut CheckpointStore, pages: u32) {
    let limit = format!("PRAGMA max_page_count = {pages}");
    let limit = sqlx::raw_sql(sqlx::AssertSqlSafe(limit)).execute(&mut store.connection);
    store.runtime.block_on(limit).unwrap();
}

fn save(store: &mut CheckpointStore, sequence: u64, bytes: usize) -> Result<(), sqlx::Error> {
    let entry = |n: usize| {
        let value = Bytes::from(vec![n as u8; 20_000]);
        (EntryKind::Processor, format!("{sequence}-{n}"), Some(value))
    };
    let changes = Changes {
        next_topic: TopicId(1),
        entries: (0..bytes / 20_000).map(entry).collect(),
        ..Changes::default()
    };
    store.save(&Step {
        sequence,
        journal_file: 1,
        changes: &changes,
        marks: &[],
        swept_topics: &[],
        runs: &RunsStep::default(),
    })
}

#[test]
fn after_any_number_of_full_disks_a_step_that_is_made_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.sqlite");
    let mut store = CheckpointStore::open(&path, None).unwrap();
    save(&mut store, 1, 0).unwrap();
    for round in 0..6 {
        limit_pages(&mut store, 60);
        for _ in 0..=round {
            let refused = save(&mut store, 1_000, 2_000_000).unwrap_err();
            assert!(store.is_full(&refused), "{refused}");
        }
        limit_pages(&mut store, 1_000_000);
        save(&mut store, 10 + round, 0).unwrap();
        let mut other = CheckpointStore::open(&path, None).unwrap();
        assert_eq!(other.load().unwrap().sequence, 10 + round);
    }
}

#[test]
fn keys_that_were_adopted_after_full_disks_are_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.sqlite");
    let mut store = CheckpointStore::open(&path, None).unwrap();
    save(&mut store, 1, 2_000_000).unwrap();
    drop(store);
    let key =
        |id| Arc::new(Cipher::parse(&format!("{id}:{}", "0123456789abcdef".repeat(4))).unwrap());
    let open = |id| CheckpointStore::open(&path, Some(key(id))).unwrap();
    let mut store = open(1);
    store.load().unwrap();
    // Every value becomes longer.
    let pages = std::fs::metadata(&path).unwrap().len() / 4_096;
    for _ in 0..3 {
        limit_pages(&mut store, 1);
        let bulk = "CREATE TABLE bulk (x); INSERT INTO bulk VALUES (zeroblob(100000000))";
        let filled = sqlx::raw_sql(bulk).execute(&mut store.connection);
        assert!(
            store.runtime.block_on(filled).is_err(),
            "{pages} pages are no bound"
        );
        let refused = store.adopt_keys().unwrap_err();
        assert!(matches!(refused, OpenError::DiskFull { .. }), "{refused}");
        assert_eq!(open(1).active_key().unwrap(), None);
    }
    limit_pages(&mut store, 1_000_000);
    store.adopt_keys().unwrap();
    assert_eq!(open(1).active_key().unwrap(), Some(1));
    assert_eq!(open(1).load().unwrap().entries.len(), 100);
}
