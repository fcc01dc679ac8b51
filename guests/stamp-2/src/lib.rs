//! Passes messages through with the header `revision: 2`, so that outputs show which revision made
//! them. `stamp-1` is the other revision.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    Outcome::Emit(message.output().header("revision", "2"))
}
