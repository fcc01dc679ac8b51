//! Never returns on the value `endless`; passes everything else through.

use std::hint::black_box;

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"endless") {
        while black_box(true) {}
    }
    Outcome::Emit(message.output())
}
