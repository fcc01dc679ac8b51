//! A checkpoint that finds no room, again and again.

use super::*;

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
    })
}

#[test]
fn after_any_number_of_full_disks_a_step_that_is_made_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.sqlite");
    let mut store = CheckpointStore::open(&path, None).unwrap();
    save(&mut store, 1, 0).unwrap();
    for round in 0..6 {
        let limit = sqlx::raw_sql("PRAGMA max_page_count = 60");
        store
            .runtime
            .block_on(limit.execute(&mut store.connection))
            .unwrap();
        for _ in 0..=round {
            let refused = save(&mut store, 1_000, 2_000_000).unwrap_err();
            assert!(store.is_full(&refused), "{refused}");
        }
        let none = sqlx::raw_sql("PRAGMA max_page_count = 1000000");
        store
            .runtime
            .block_on(none.execute(&mut store.connection))
            .unwrap();
        save(&mut store, 10 + round, 0).unwrap();
        let mut other = CheckpointStore::open(&path, None).unwrap();
        assert_eq!(other.load().unwrap().sequence, 10 + round);
    }
}
