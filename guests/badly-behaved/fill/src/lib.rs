//! Fills its state as each message says: a value `160 100000 x` sets 160 keys that begin with `x`
//! to 100,000 bytes each. If there is no room, it emits the error instead, and continues.

use millrace_guest::{Message, Outcome, processor, state};

processor!(process);

fn process(message: &Message) -> Outcome {
    let text = String::from_utf8_lossy(message.value().unwrap_or_default());
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
    let (keys, bytes) = (number().unwrap_or(0), number().unwrap_or(0));
    let prefix = words.next().unwrap_or_default();
    let value = vec![7; bytes];
    for key in 0..keys {
        let key = format!("{prefix}{key}");
        if let Err(full) = state::set(message, key.as_bytes(), &value) {
            return Outcome::Emit(message.output().value(full.to_string()));
        }
    }
    Outcome::Emit(message.output().value("done"))
}
