//! Passes messages through with the header `revision: 1`, so that outputs name their revision;
//! `stamp-2` is the other revision.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    Outcome::Emit(message.output().header("revision", "1"))
}
