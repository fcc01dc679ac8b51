//! Passes messages through with the header `revision: 2`, so that outputs name their revision;
//! `stamp-1` is the other revision.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    Outcome::Emit(message.output().header("revision", "2"))
}
