//! Computes for the number of microseconds in each message's header `work-us`, then passes the
//! message through.

use std::time::{Duration, Instant};

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    let work = Duration::from_micros(work_us(message).unwrap_or(0));
    let began = Instant::now();
    while began.elapsed() < work {}
    Outcome::Emit(message.output())
}

fn work_us(message: &Message) -> Option<u64> {
    str::from_utf8(message.header("work-us")?)
        .ok()?
        .parse()
        .ok()
}
