//! Begins with 100 MiB of memory but uses almost none of it; passes everything through.

use std::sync::atomic::{AtomicU8, Ordering};

use millrace_guest::{Message, Outcome, processor};

processor!(process);

const ROOM_BYTES: usize = 100 << 20;

static ROOM: [AtomicU8; ROOM_BYTES] = [const { AtomicU8::new(0) }; ROOM_BYTES];

fn process(message: &Message) -> Outcome {
    // A position unknown to the compiler, so that all of it must exist.
    let place = message.value().map_or(0, |value| value.len() * 7919) % ROOM_BYTES;
    ROOM[place].fetch_add(1, Ordering::Relaxed);
    Outcome::Emit(message.output())
}
