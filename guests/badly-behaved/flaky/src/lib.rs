//! Fails as its headers say, and passes everything else through. `fail-times: n` retries the first
//! n attempts, with the class in `fail-class` (default `flaky`); `reject: class` rejects;
//! `unavailable: reason` makes the whole batch unavailable, and with `unavailable-calls: n` only in
//! the first n calls of an instance that reach such a message.

use std::sync::atomic::{AtomicU32, Ordering};

use millrace_guest::{Message, Outcome, Unavailable, processor};

processor!(process);

fn process(message: &Message) -> Result<Outcome, Unavailable> {
    if let Some(reason) = text(message, "unavailable").filter(|_| is_down(message)) {
        return Err(Unavailable::new(reason));
    }
    if let Some(class) = text(message, "reject") {
        return Ok(Outcome::reject(class, "its header says so"));
    }
    let times = text(message, "fail-times")
        .and_then(|times| times.parse().ok())
        .unwrap_or(0);
    if message.attempt() <= times {
        let class = text(message, "fail-class").unwrap_or_else(|| "flaky".to_owned());
        return Ok(Outcome::retry(class, format!("fails {times} times")));
    }
    Ok(Outcome::Emit(message.output()))
}

/// Calls of this instance that reported an outage.
static UNAVAILABLE_CALLS: AtomicU32 = AtomicU32::new(0);

fn is_down(message: &Message) -> bool {
    let calls = text(message, "unavailable-calls").and_then(|calls| calls.parse::<u32>().ok());
    let before = UNAVAILABLE_CALLS.fetch_add(1, Ordering::Relaxed);
    calls.is_none_or(|calls| before < calls)
}

fn text(message: &Message, header: &str) -> Option<String> {
    message
        .header(header)
        .map(|value| String::from_utf8_lossy(value).into_owned())
}
