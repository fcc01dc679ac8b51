//! Fails as its headers say, and passes everything else through:
//! `fail-times: n` retries until attempt n is over, under the class that `fail-class` names (`flaky` without);
//! `reject: class` rejects; `unavailable: reason` says that the whole batch cannot be processed.

use millrace_guest::{Message, Outcome, Unavailable, processor};

processor!(process);

fn process(message: &Message) -> Result<Outcome, Unavailable> {
    if let Some(reason) = text(message, "unavailable") {
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

fn text(message: &Message, header: &str) -> Option<String> {
    message
        .header(header)
        .map(|value| String::from_utf8_lossy(value).into_owned())
}
