//! State as a handler's test sees it: a map in the thread's memory.

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
