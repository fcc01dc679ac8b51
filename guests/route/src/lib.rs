//! Sends each message to the topic that its header `route-to` names; one without goes to the default output. The processor
//! needs a grant for each topic that may be named.

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
