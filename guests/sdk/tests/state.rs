//! Tests of state without WASM: a map in the thread's memory.

use millrace_guest::{Batch, Sample, state};

fn batch() -> Batch {
    let sample = Sample::new("orders").message("a", "1").message("b", "2");
    Batch::new(sample.message("a", "3").nullable(None, None).columns())
}

#[test]
fn each_message_adds_to_its_key() {
    let batch = batch();
    assert_eq!(state::Sums::of_keys(&batch).add(), Ok(vec![1, 1, 2, 1]));
    let ten = state::Sums::of_keys(&batch).deltas(|message| message.index() as i64 * 10);
    assert_eq!(ten.add(), Ok(vec![2, 11, 22, 31]));
    assert_eq!(state::add(&batch.message(0), b"a", -22), Ok(0));
}

#[test]
fn keys_are_set_read_scanned_and_deleted() {
    let batch = batch();
    let message = batch.message(0);
    for (key, value) in [(b"x1", "one"), (b"x2", "two"), (b"y1", "three")] {
        state::set(&message, key, value.as_bytes()).unwrap();
    }
    assert_eq!(state::get(b"x1"), Some(b"one".to_vec()));
    let two = (b"x2".to_vec(), b"two".to_vec());
    assert_eq!(state::scan(b"x", Some(b"x1"), 10), [two]);
    state::delete(&message, b"x1");
    let found = state::get_many(&[b"x1", b"x2"]);
    assert_eq!(found, [None, Some(b"two".to_vec())]);
}

#[test]
fn many_keys_are_set_and_deleted_at_once() {
    let batch = batch();
    let mut writes = state::Writes::default();
    let value = vec![7; 1 << 20];
    for number in 0..12_000 {
        let large = number % 2_000 == 0;
        let value: &[u8] = if large { &value } else { b"small" };
        writes.set(&batch.message(number % 4), &key(number), value);
    }
    writes.delete(&batch.message(1), &key(5));
    writes.set(&batch.message(2), &key(6), b"later");
    writes.write().unwrap();
    let keys: Vec<Vec<u8>> = [4_000, 5, 6, 11_999].map(key).to_vec();
    let asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let found = state::get_many(&asked);
    let expected = [Some(&value[..]), None, Some(b"later"), Some(b"small")];
    let found: Vec<Option<&[u8]>> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, expected);
}

fn key(number: usize) -> Vec<u8> {
    format!("key {number}").into_bytes()
}
