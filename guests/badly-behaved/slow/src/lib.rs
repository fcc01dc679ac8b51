//! Works on each message for as many microseconds as its header `work-us` says, and passes it through.

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
