//! Tests of a table in memory: its pages, its changes for checkpoints, and its size.

use super::super::keeper::KeepTable as _;
use super::super::{ENTRY_OVERHEAD_BYTES, StateChange, StateEntry, StateValue};
use super::*;

impl StateTable {
    fn write(&self, writes: &StateWrites) {
        self.apply(writes).unwrap();
    }
}

fn write(key: &str, value: Option<&str>, ends_at: u64) -> StateChange {
    StateChange {
        key: key.as_bytes().into(),
        value: value.map(|value| StateValue::new(value.as_bytes())),
        ends_at: Timestamp(ends_at),
    }
}

fn writes(changes: Vec<StateChange>) -> StateWrites {
    StateWrites {
        resets: false,
        changes,
        adds: None,
    }
}

fn keys(table: &StateTable, prefix: &str, now: u64) -> Vec<String> {
    let page = table.page(&StateQuery {
        prefix: prefix.into(),
        entries_max: 100,
        bytes_max: usize::MAX,
        now: Timestamp(now),
        ..StateQuery::default()
    });
    let page = page.unwrap();
    let key = |entry: &StateEntry| String::from_utf8_lossy(&entry.key).into_owned();
    page.entries.iter().map(key).collect()
}

#[test]
fn a_checkpoint_is_told_what_changed_and_nothing_else() {
    let table = StateTable::default();
    table.write(&writes(vec![
        write("a", Some("1"), u64::MAX),
        write("b", Some("2"), u64::MAX),
    ]));
    assert_eq!(table.take_changes().entries.len(), 2);
    assert!(table.take_changes().entries.is_empty());
    table.write(&writes(vec![
        write("a", None, 0),
        write("b", Some("3"), u64::MAX),
    ]));
    table.write(&writes(vec![write("a", Some("4"), u64::MAX)]));
    let changes = table.take_changes();
    assert_eq!(changes.freed, [0]);
    let slots: Vec<u64> = changes.entries.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [1, 2]);
}

#[test]
fn what_was_stored_is_no_change() {
    let (before, after) = (StateTable::default(), StateTable::default());
    before.write(&writes(vec![
        write("a", Some("1"), 5),
        write("b", Some("2"), u64::MAX),
    ]));
    for (slot, entry) in before.take_changes().entries {
        after.insert_stored(slot, &entry);
    }
    assert!(after.take_changes().entries.is_empty());
    assert_eq!(after.size(), before.size());
    after.write(&writes(vec![write("c", Some("3"), u64::MAX)]));
    assert_eq!(after.take_changes().entries[0].0, 2);
}

#[test]
fn ended_entries_are_absent_and_then_gone() {
    let table = StateTable::default();
    table.write(&writes(vec![
        write("a", Some("1"), 10),
        write("b", Some("2"), 20),
    ]));
    table.write(&writes(vec![write("b", Some("2"), 30)]));
    assert_eq!(keys(&table, "", 9), ["a", "b"]);
    assert_eq!(keys(&table, "", 10), ["b"]);
    let turn = table.turn.try_lock().unwrap();
    assert_eq!(
        table.sweep_idle(Timestamp(25), 100),
        0,
        "somebody is at work"
    );
    drop(turn);
    table.sweep_idle(Timestamp(25), 100);
    assert_eq!(table.size().entries, 1);
    table.sweep(Timestamp(30), 100);
    assert_eq!(table.size(), StateSize::default());
}

#[test]
fn keys_are_listed_in_order_by_prefix_and_after_another() {
    let table = StateTable::default();
    let all = ["b", "ab", "a", "abc", "ac"];
    let changes = all.map(|key| write(key, Some(""), u64::MAX));
    table.write(&writes(changes.to_vec()));
    assert_eq!(keys(&table, "a", 0), ["a", "ab", "abc", "ac"]);
    let after = |key: &[u8]| StateQuery {
        prefix: b"a".to_vec(),
        after: Some(key.to_vec()),
        entries_max: 1,
        bytes_max: 0,
        now: Timestamp(0),
    };
    let page = table.page(&after(b"ab")).unwrap();
    assert_eq!((&*page.entries[0].key, page.has_more), (&b"abc"[..], true));
    assert!(!table.page(&after(b"abc")).unwrap().has_more);
    assert!(table.page(&after(b"b")).unwrap().entries.is_empty());
}

#[test]
fn pages_of_one_version_have_nothing_written_between_them() {
    let table = StateTable::default();
    let version = || table.page(&StateQuery::default()).unwrap().version;
    let first = version();
    assert_eq!(version(), first);
    table.write(&writes(vec![write("absent", None, u64::MAX)]));
    assert_ne!(version(), first);
    let resets = StateWrites {
        resets: true,
        ..StateWrites::default()
    };
    table.write(&resets);
    assert_eq!(version(), first + 2);
}

#[test]
fn a_page_ends_at_its_bytes_and_has_one_entry_at_least() {
    let table = StateTable::default();
    let all = ["a", "b", "c"].map(|key| write(key, Some("123"), u64::MAX));
    table.write(&writes(all.to_vec()));
    let page = |bytes_max| {
        let page = table.page(&StateQuery {
            entries_max: 3,
            bytes_max,
            ..StateQuery::default()
        });
        let page = page.unwrap();
        (page.entries.len(), page.has_more)
    };
    let entry = 4 + ENTRY_OVERHEAD_BYTES;
    assert_eq!(page(0), (1, true));
    assert_eq!(page(2 * entry), (2, true));
    assert_eq!(page(3 * entry - 1), (2, true));
    assert_eq!(page(3 * entry), (3, false));
}

#[test]
fn the_size_after_writes_is_known_before_them() {
    let table = StateTable::default();
    table.write(&writes(vec![
        write("a", Some("long before"), u64::MAX),
        write("b", Some("2"), u64::MAX),
    ]));
    let changes = vec![
        write("a", Some("1"), u64::MAX),
        write("b", None, u64::MAX),
        write("absent", None, u64::MAX),
        write("c", Some("first"), u64::MAX),
        write("c", Some("twice"), u64::MAX),
    ];
    for resets in [false, true, false] {
        let writes = StateWrites {
            resets,
            changes: changes.clone(),
            adds: None,
        };
        let foretold = table.size_after(&writes).unwrap();
        let before = match resets {
            true => StateSize::default(),
            false => table.size(),
        };
        assert_eq!(table.adds(&writes).unwrap().after(before), Some(foretold));
        table.write(&writes);
        assert_eq!(table.size(), foretold);
        assert_eq!(foretold.entries, 2);
    }
}

#[test]
fn an_emptied_table_has_no_bytes_and_gives_no_number_again() {
    let table = StateTable::default();
    table.write(&writes(vec![write("a", Some("1"), u64::MAX)]));
    table.write(&StateWrites {
        resets: true,
        changes: vec![write("a", Some("2"), u64::MAX)],
        adds: None,
    });
    let changes = table.take_changes();
    assert!(changes.empties);
    assert_eq!(changes.entries[0].0, 1);
    assert_eq!(table.size().entries, 1);
}
