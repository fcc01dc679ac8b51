//! Sends each message to the topic in its header `route-to`, or to the default output without one.
//! The processor needs a grant for each of these topics.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    let Some(topic) = message.header("route-to") else {
        return Outcome::Emit(message.output());
    };
    match std::str::from_utf8(topic) {
        Ok(topic) => Outcome::Emit(message.output().topic(topic)),
        Err(error) => Outcome::reject("bad-route", error.to_string()),
    }
}
