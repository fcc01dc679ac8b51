//! Traps on the value `poison`; passes everything else through.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"poison") {
        swallow();
    }
    Outcome::Emit(message.output())
}

/// A function of its own, so that the backtrace has its name.
#[inline(never)]
fn swallow() {
    panic!("poisoned");
}
