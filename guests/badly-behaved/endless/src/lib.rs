//! Never returns on the value `endless`, after logging that it will not; passes everything else
//! through.

use std::hint::black_box;

use millrace_guest::{Message, Outcome, log, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"endless") {
        log::info("never to return");
        while black_box(true) {}
    }
    Outcome::Emit(message.output())
}
