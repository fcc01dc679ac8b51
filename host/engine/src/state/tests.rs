//! Tests of calls on state.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_model::Timestamp;
use millrace_model::bounds::{STATE_ATTEMPT_BYTES_MAX, STATE_CALL_KEYS_MAX, STATE_KEY_BYTES_MAX};
use millrace_model::columns::NONE;

use super::keeper::KeepTable as _;
use super::{
    KeyColumns, NEVER, StateAttempt, StateChange, StateError, StateSize, StateTable, StateValue,
    StateWrites, ValueColumns, WriteColumns,
};
use crate::conformance::named;
use crate::room::{HostBounds, Room};

const NOW: Timestamp = Timestamp(1_000);

/// Columns of texts, for the calls.
#[derive(Default)]
struct Columns {
    data: Vec<u8>,
    spans: Vec<u32>,
}

impl Columns {
    fn of(texts: &[&str]) -> Self {
        let mut columns = Self::default();
        texts.iter().for_each(|text| columns.push(text));
        columns
    }

    fn push(&mut self, text: &str) {
        self.spans
            .extend([self.data.len() as u32, text.len() as u32]);
        self.data.extend_from_slice(text.as_bytes());
    }

    fn keys(&self) -> KeyColumns<'_> {
        KeyColumns {
            data: &self.data,
            spans: &self.spans,
        }
    }
}

fn by(messages: &[u32]) -> WriteColumns<'_> {
    WriteColumns {
        ttl_ms: &[],
        messages,
    }
}

fn attempt(table: &Arc<StateTable>) -> StateAttempt {
    StateAttempt::new(Arc::clone(table), NOW, 4)
}

fn set(attempt: &mut StateAttempt, key: &str, value: Option<&str>) -> Result<(), StateError> {
    let both = Columns::of(&[key, value.unwrap_or_default()]);
    let value = match value {
        Some(_) => [both.spans[2], both.spans[3]],
        None => [0, NONE],
    };
    let key = KeyColumns {
        data: &both.data,
        spans: &both.spans[..2],
    };
    attempt.put(&key, &value, &by(&[]))
}

fn add(attempt: &mut StateAttempt, keys: &[&str], deltas: &[i64]) -> Vec<i64> {
    let keys = Columns::of(keys);
    let sums = attempt.add(&keys.keys(), deltas, &by(&[]));
    sums.expect("added")
}

fn texts(found: &ValueColumns, spans: &[u32]) -> Vec<Option<String>> {
    let text = |span: &[u32; 2]| match span {
        [_, NONE] => None,
        [start, length] => {
            let bytes = &found.data[*start as usize..][..*length as usize];
            Some(String::from_utf8_lossy(bytes).into_owned())
        }
    };
    spans.as_chunks().0.iter().map(text).collect()
}

fn get(attempt: &mut StateAttempt, keys: &[&str]) -> Vec<Option<String>> {
    let found = attempt.get(&Columns::of(keys).keys()).expect("found");
    texts(&found, &found.values)
}

fn list(attempt: &mut StateAttempt, prefix: &str, after: Option<&str>, max: usize) -> Vec<String> {
    let after = after.map(str::as_bytes);
    let listed = attempt.list(prefix.as_bytes(), after, max);
    let listed = listed.expect("listed");
    let keys = texts(&listed, &listed.keys);
    keys.into_iter().flatten().collect()
}

fn is_misuse<T: std::fmt::Debug>(result: Result<T, StateError>) -> bool {
    matches!(result, Err(StateError::Misuse(_)))
}

#[test]
fn a_call_sees_what_it_wrote_and_nobody_else_does_before_it_is_committed() {
    let table = Arc::new(StateTable::default());
    let mut first = attempt(&table);
    set(&mut first, "a", Some("1")).expect("set");
    set(&mut first, "b", Some("2")).expect("set");
    set(&mut first, "b", None).expect("removed");
    assert_eq!(
        get(&mut first, &["a", "b", "c"]),
        [Some("1".into()), None, None]
    );
    assert_eq!(get(&mut attempt(&table), &["a"]), [None]);
    table.apply(&first.into_writes()).unwrap();
    assert_eq!(
        get(&mut attempt(&table), &["a", "b"]),
        [Some("1".into()), None]
    );
}

#[test]
fn sums_go_on_from_the_table_and_within_the_call() {
    let table = Arc::new(StateTable::default());
    let mut first = attempt(&table);
    assert_eq!(add(&mut first, &["a", "b", "a"], &[5, -1, 7]), [5, -1, 12]);
    table.apply(&first.into_writes()).unwrap();
    let mut second = attempt(&table);
    assert_eq!(add(&mut second, &["a", "c", "a"], &[]), [13, 1, 14]);
    assert_eq!(add(&mut second, &["c"], &[i64::MAX]), [i64::MAX]);
    assert_eq!(add(&mut second, &["c"], &[1]), [i64::MAX]);
    set(&mut second, "a", None).expect("removed");
    assert_eq!(add(&mut second, &["a"], &[2]), [2]);
}

#[test]
fn what_is_no_number_is_not_added_to() {
    let table = Arc::new(StateTable::default());
    let mut attempt = attempt(&table);
    set(&mut attempt, "a", Some("text")).expect("set");
    let keys = Columns::of(&["a"]);
    assert!(is_misuse(attempt.add(&keys.keys(), &[], &by(&[]))));
}

#[test]
fn what_has_ended_counts_as_absent_and_a_sum_keeps_its_end() {
    let table = Arc::new(StateTable::default());
    let mut first = attempt(&table);
    let keys = Columns::of(&["a", "b"]);
    let ttl = WriteColumns {
        ttl_ms: &[10, u64::MAX],
        messages: &[],
    };
    first.add(&keys.keys(), &[], &ttl).expect("added");
    table.apply(&first.into_writes()).unwrap();
    let mut second = StateAttempt::new(Arc::clone(&table), Timestamp(1_009), 1);
    assert_eq!(add(&mut second, &["a", "b"], &[]), [2, 2]);
    table.apply(&second.into_writes()).unwrap();
    let mut third = StateAttempt::new(Arc::clone(&table), Timestamp(1_010), 1);
    assert_eq!(get(&mut third, &["a"]), [None]);
    assert_eq!(list(&mut third, "", None, 9), ["b"]);
    assert_eq!(add(&mut third, &["a", "b"], &[]), [1, 3]);
}

#[test]
fn keys_of_the_call_and_of_the_table_are_listed_as_one() {
    let table = Arc::new(StateTable::default());
    let mut first = attempt(&table);
    for key in ["xa", "xb", "xd", "y"] {
        set(&mut first, key, Some("t")).expect("set");
    }
    table.apply(&first.into_writes()).unwrap();
    let mut second = attempt(&table);
    set(&mut second, "xb", None).expect("removed");
    set(&mut second, "xc", Some("o")).expect("set");
    set(&mut second, "xd", Some("o")).expect("set");
    assert_eq!(list(&mut second, "x", None, 9), ["xa", "xc", "xd"]);
    assert_eq!(list(&mut second, "x", None, 2), ["xa", "xc"]);
    assert_eq!(list(&mut second, "x", Some("xc"), 2), ["xd"]);
    assert_eq!(list(&mut second, "", Some("xd"), 9), ["y"]);
    assert_eq!(list(&mut second, "z", None, 9), [""; 0]);
}

#[test]
fn what_is_written_after_a_listing_is_listed_and_many_ended_keys_are_passed_over() {
    let table = Arc::new(StateTable::default());
    let ended = |number: u32| StateChange {
        key: format!("a{number}").as_bytes().into(),
        value: Some(StateValue::of_number(1)),
        ends_at: NOW,
    };
    table
        .apply(&StateWrites {
            resets: false,
            changes: (0..3_500).map(ended).collect(),
            adds: None,
        })
        .unwrap();
    let mut attempt = attempt(&table);
    assert_eq!(list(&mut attempt, "", None, 9), [""; 0]);
    for key in ["c", "a1700", "b"] {
        set(&mut attempt, key, Some("t")).expect("set");
    }
    assert_eq!(list(&mut attempt, "", None, 9), ["a1700", "b", "c"]);
    set(&mut attempt, "b", None).expect("removed");
    assert_eq!(list(&mut attempt, "", None, 9), ["a1700", "c"]);
}

#[test]
fn writes_are_the_messages_own_or_everybodys() {
    let table = Arc::new(StateTable::default());
    let mut attempt = attempt(&table);
    let keys = Columns::of(&["a", "b"]);
    attempt.add(&keys.keys(), &[], &by(&[1, 3])).expect("added");
    assert_eq!(
        [0, 1, 2, 3].map(|at| attempt.wrote(at)),
        [false, true, false, true]
    );
    set(&mut attempt, "c", Some("")).expect("set");
    assert!(attempt.wrote(0) && attempt.wrote(2));
}

#[test]
fn columns_that_contradict_themselves_are_misuse_and_never_a_panic() {
    let table = Arc::new(StateTable::default());
    let mut attempt = attempt(&table);
    let spans: [&[u32]; 6] = [
        &[0],
        &[0, 5],
        &[u32::MAX, 1],
        &[3, u32::MAX - 1],
        &[0, NONE],
        &[4, 1],
    ];
    for spans in spans {
        let keys = KeyColumns {
            data: b"abcd",
            spans,
        };
        assert!(is_misuse(attempt.get(&keys)), "{spans:?}");
        assert!(is_misuse(attempt.add(&keys, &[], &by(&[]))), "{spans:?}");
        let values = vec![0; spans.len()];
        assert!(
            is_misuse(attempt.put(&keys, &values, &by(&[]))),
            "{spans:?}"
        );
    }
    let keys = Columns::of(&["a", "b"]);
    assert!(is_misuse(attempt.add(&keys.keys(), &[1], &by(&[]))));
    assert!(is_misuse(attempt.add(&keys.keys(), &[], &by(&[0]))));
    assert!(is_misuse(attempt.add(&keys.keys(), &[], &by(&[0, 4]))));
    assert!(is_misuse(attempt.put(&keys.keys(), &[0, 1], &by(&[]))));
    let ttl = WriteColumns {
        ttl_ms: &[1],
        messages: &[],
    };
    assert!(is_misuse(attempt.add(&keys.keys(), &[], &ttl)));
    let long = "k".repeat(STATE_KEY_BYTES_MAX + 1);
    assert!(is_misuse(attempt.get(&Columns::of(&[&long]).keys())));
    let many = vec![0; (STATE_CALL_KEYS_MAX + 1) * 2];
    let keys = KeyColumns {
        data: b"",
        spans: &many,
    };
    assert!(is_misuse(attempt.get(&keys)));
}

#[test]
fn a_full_table_takes_no_new_keys_and_goes_on_with_those_it_has() {
    let bounds = HostBounds {
        table: StateSize {
            entries: 1_000,
            bytes: 1 << 20,
        },
        ..HostBounds::default()
    };
    let table = Arc::new(StateTable::in_room(&Room::new(bounds), &named("p")));
    let change = |number: usize| StateChange {
        key: number.to_le_bytes()[..4].into(),
        value: Some(StateValue::of_number(1)),
        ends_at: NEVER,
    };
    table
        .apply(&StateWrites {
            resets: false,
            changes: (0..1_000).map(change).collect(),
            adds: None,
        })
        .unwrap();
    let mut attempt = attempt(&table);
    let keys = KeyColumns {
        data: &[1, 0, 0, 0, 0],
        spans: &[0, 4, 1, 4],
    };
    let full = attempt.add(&keys, &[], &by(&[]));
    assert!(full.is_ok(), "both are there: {full:?}");
    let full = set(&mut attempt, "new key", Some(""));
    assert!(matches!(full, Err(StateError::Full(_))), "{full:?}");
    assert_eq!(get(&mut attempt, &["new key"]), [None]);
    set(&mut attempt, "absent key", None).expect("what is removed needs no room");
    let removed = attempt.put(&keys, &[0, NONE, 0, NONE], &by(&[]));
    removed.expect("room is made");
    set(&mut attempt, "new key", Some("")).expect("there is room");
}

#[test]
fn a_call_writes_no_more_than_it_may() {
    let table = Arc::new(StateTable::default());
    let mut attempt = attempt(&table);
    let value = "x".repeat(200 << 10);
    let fits = STATE_ATTEMPT_BYTES_MAX / value.len() - 1;
    for _ in 0..fits {
        set(&mut attempt, "same", Some(&value)).expect("set");
    }
    let over = (0..3).find_map(|_| set(&mut attempt, "same", Some(&value)).err());
    assert!(matches!(over, Some(StateError::Misuse(_))), "{over:?}");
}

#[test]
fn any_calls_give_what_a_map_gives() {
    let table = Arc::new(StateTable::default());
    let mut model: BTreeMap<String, i64> = BTreeMap::new();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..300 {
        let mut tried = attempt(&table);
        let mut expected = model.clone();
        for _ in 0..rng.usize(1..20) {
            let key = format!("key {}", rng.u32(0..30));
            match rng.u32(0..4) {
                0 => {
                    set(&mut tried, &key, None).expect("removed");
                    expected.remove(&key);
                }
                _ => {
                    let delta = rng.i64(-5..6);
                    let sum = expected.entry(key.clone()).or_default();
                    *sum += delta;
                    assert_eq!(add(&mut tried, &[&key], &[delta]), [*sum]);
                }
            }
            let keys: Vec<String> = expected.keys().cloned().collect();
            assert_eq!(list(&mut tried, "key ", None, 100), keys);
        }
        // Some attempts fail and leave nothing.
        if rng.u32(0..3) > 0 {
            let (writes, before) = (tried.into_writes(), table.size());
            table.apply(&writes).unwrap();
            let after = writes.adds.and_then(|adds| adds.after(before));
            assert_eq!(after, Some(table.size()));
            model = expected;
        }
        assert_eq!(table.size().entries, model.len());
    }
    let bytes: usize = model.keys().map(|key| key.len() + 8 + 64).sum();
    assert_eq!(table.size().bytes, bytes);
}
