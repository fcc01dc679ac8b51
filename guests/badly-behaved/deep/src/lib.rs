//! Recurses without bound on the value `deep`; passes everything else through.

use std::hint::black_box;

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"deep") {
        descend(0);
    }
    Outcome::Emit(message.output())
}

/// There is work after each call, so that it is not optimised into a loop.
#[inline(never)]
fn descend(depth: u64) -> u64 {
    if black_box(depth) == u64::MAX {
        return depth;
    }
    black_box(descend(depth + 1)) + 1
}
