//! Answers a request by what it sends and reads, as the words of its query say, separated by commas:
//!
//! - `send,TOPIC,KEY,VALUE` sends a message; an empty KEY is none
//! - `once,ID,TOPIC,KEY,VALUE` sends it under an idempotency key
//! - `later,TOPIC,VALUE,MS` sends it for delivery at this time
//! - `pass,PROCESSOR,TOPIC,KEY,VALUE` sends it and waits for the processor
//! - `wait,PROCESSOR,TOPIC,MS` waits for an offset that is never reached
//! - `get,PROCESSOR,KEY`, `count,PROCESSOR`, `scan,PROCESSOR,PARTITION,PREFIX` read state
//! - `fail,TOPIC,VALUE` sends a message and then traps
//!
//! It exports a processor as well, which sends too.

use std::time::Duration;

use millrace_guest::producer::{self, Outgoing, Place, SendError, Sent};
use millrace_guest::views::{View, ViewError};
use millrace_guest::{Message, Outcome, processor};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Courier;

wasip2::http::proxy::export!(Courier);

processor!(process);

/// Longer than any test waits.
const PATIENCE: Duration = Duration::from_secs(60);

fn process(message: &Message) -> Outcome {
    let value = message.value().unwrap_or_default();
    match producer::send("out", &[Outgoing::new(value)]) {
        Ok(_) => Outcome::reject("sent", "a processor could send"),
        Err(error) => Outcome::reject("refused", error.to_string()),
    }
}

impl Guest for Courier {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let words: Vec<&str> = query.split(',').collect();
        let said = done(&words);
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("its body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("its stream");
        // Whoever asked may be gone.
        let _ = stream.blocking_write_and_flush(said.as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn done(words: &[&str]) -> String {
    match words {
        ["send", topic, key, value] => sent(producer::send(topic, &[message(key, value)])),
        ["once", id, topic, key, value] => {
            sent(producer::send_once(topic, id, &[message(key, value)]))
        }
        ["later", topic, value, ms] => {
            let at = ms.parse().expect("milliseconds");
            sent(producer::send(
                topic,
                &[Outgoing::new(*value).deliver_at(at)],
            ))
        }
        ["pass", processor, topic, key, value] => {
            let sent = match producer::send(topic, &[message(key, value)]) {
                Ok(sent) => sent,
                Err(error) => return failed(&error),
            };
            waited(producer::settled(processor, topic, &sent, PATIENCE))
        }
        ["wait", processor, topic, ms] => {
            let never = Sent {
                places: vec![Place {
                    partition: 0,
                    offset: Some(1 << 40),
                }],
                repeated: false,
            };
            let patience = Duration::from_millis(ms.parse().expect("milliseconds"));
            waited(producer::settled(processor, topic, &never, patience))
        }
        ["get", processor, key] => match View::of(processor).get(key) {
            Ok(Some(value)) => format!("value {}", shown(&value)),
            Ok(None) => "no value".to_owned(),
            Err(error) => unseen(&error),
        },
        ["count", processor] => match View::of(processor).partitions() {
            Ok(partitions) => format!("{partitions} partitions"),
            Err(error) => unseen(&error),
        },
        ["scan", processor, partition, prefix] => {
            let partition = partition.parse().expect("a partition");
            match View::of(processor).scan(partition, prefix.as_bytes(), None, 2) {
                Ok(page) => {
                    let entries = page.entries.iter();
                    let entries = entries
                        .map(|entry| format!("{}={}", shown(&entry.key), shown(&entry.value)));
                    let entries: Vec<String> = entries.collect();
                    format!("{} more {}", entries.join(" "), page.has_more)
                }
                Err(error) => unseen(&error),
            }
        }
        ["fail", topic, value] => {
            let sent = producer::send(topic, &[Outgoing::new(*value)]);
            panic!("after {sent:?}");
        }
        _ => "what?".to_owned(),
    }
}

fn message<'a>(key: &'a str, value: &'a str) -> Outgoing<'a> {
    let message = Outgoing::new(value).header("by", "courier");
    match key.is_empty() {
        true => message,
        false => message.key(key),
    }
}

/// A number as state counts, or text.
fn shown(value: &[u8]) -> String {
    match <[u8; 8]>::try_from(value) {
        Ok(number) => i64::from_le_bytes(number).to_string(),
        Err(_) => String::from_utf8_lossy(value).into_owned(),
    }
}

fn sent(result: Result<Sent, SendError>) -> String {
    match result {
        Ok(Sent { places, repeated }) => {
            let place = |place: &Place| match place.offset {
                Some(offset) => format!("{}/{offset}", place.partition),
                None => format!("{}/later", place.partition),
            };
            let places: Vec<String> = places.iter().map(place).collect();
            format!("sent {} repeated {repeated}", places.join(" "))
        }
        Err(error) => failed(&error),
    }
}

fn waited(result: Result<bool, SendError>) -> String {
    match result {
        Ok(passed) => format!("passed {passed}"),
        Err(error) => failed(&error),
    }
}

fn failed(error: &SendError) -> String {
    let word = match error {
        SendError::NotGranted(_) => "not granted",
        SendError::Refused(_) => "refused",
        SendError::KeyReused(_) => "key reused",
        SendError::Unavailable(_) => "unavailable",
    };
    format!("{word}: {error}")
}

fn unseen(error: &ViewError) -> String {
    let word = match error {
        ViewError::NotGranted(_) => "not granted",
        ViewError::Refused(_) => "refused",
        ViewError::Unavailable(_) => "unavailable",
    };
    format!("{word}: {error}")
}
